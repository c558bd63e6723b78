"""`nearkin evaluate`: a run, or anybody's embeddings, by the evaluator that training uses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nearkin import model as models
from nearkin.config import build
from nearkin.data.base import Table
from nearkin.data.images import find_images
from nearkin.evaluation import evaluate
from nearkin.measure import block, information
from nearkin.run_folder import RunFolder

METRICS = ("recall@1", "recall@2", "recall@4", "recall@8", "map@r")
CLOSENESS = ("cosine", "euclidean")


def measure(
    source: str | Path,
    *,
    data: str | None = None,
    metrics: Sequence[str] | None = None,
    closeness: str | None = None,
    trust_code: bool = False,
) -> dict[str, Any]:
    """One block as under "test" in metrics.json, with "queries" and "without_relevant".

    source      a run folder, or an .npz with embeddings, labels and optionally gallery_embeddings,
                gallery_labels, groups (and gallery_groups)
    data        for a run: measure on this folder of images, .npz file or named data set (its test
                split)
    metrics     names; default: those of the run's recipe, or recall@1, 2, 4, 8 and map@r
    closeness   cosine or euclidean; default both

    Raises ValueError or OSError for whatever cannot be read.
    """
    path = Path(source)
    closenesses = CLOSENESS if closeness is None else (closeness,)
    if path.suffix == ".npz":
        if data is not None:
            raise ValueError("--data goes with a run; an .npz file holds its own embeddings")
        return _of_file(path, tuple(metrics or METRICS), closenesses)
    folder = RunFolder(path)
    folder.check_format()
    if data is None:
        z, table = _test_of(folder)
    else:
        table, z = _embedded(folder, data, trust_code)
    return block(z, table, list(metrics or _metrics_of(folder)), 0, closenesses)


def _metrics_of(folder: RunFolder) -> list[str]:
    from nearkin.config import load_recipe

    return list(load_recipe(folder.path / "recipe.yaml").get("evaluate") or METRICS)


def _test_of(folder: RunFolder) -> tuple[Tensor, Table]:
    path = folder.path / "embeddings.npz"
    if not path.is_file():
        raise FileNotFoundError(f"the run in {folder.path} is not finished; end it with --resume")
    held = arrays(path)
    table = Table(
        inputs=torch.from_numpy(held["embeddings"]),
        label=torch.from_numpy(held["labels"]),
        names=tuple(held["names"].tolist()),
        ids=tuple(held["ids"].tolist()),
        columns={
            name: torch.from_numpy(held[name]) for name in ("is_query", "is_gallery", "relevant")
        },
    )
    if bool(table["is_query"].all()) and bool(table["is_gallery"].all()):
        # All rows in both roles means leave one out, not that each row finds itself.
        table = Table(
            table.inputs, table.label, table.names, table.ids, {"relevant": table["relevant"]}
        )
    return torch.from_numpy(held["embeddings"]), table


def arrays(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an .npz; raises for a missing file, another kind of file and for pickled
    objects."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no file {path}") from None
    except (ValueError, OSError, AttributeError) as error:
        raise ValueError(
            f"{path} cannot be read as .npz ({error}); write it with numpy.savez, without object "
            "arrays"
        ) from None


def _of_file(path: Path, metrics: tuple[str, ...], closenesses: Sequence[str]) -> dict[str, Any]:
    held = arrays(path)
    missing = [name for name in ("embeddings", "labels") if name not in held]
    if missing:
        raise ValueError(
            f"{path} has no array {missing[0]!r}; it has {', '.join(sorted(held)) or 'none'}"
        )
    gallery, groups = held.get("gallery_embeddings"), held.get("groups")
    if gallery is not None and groups is not None:
        if "gallery_groups" not in held:
            raise ValueError(f"{path} has groups and a gallery, so it needs gallery_groups too")
        groups = (groups, held["gallery_groups"])
    ranked = [name for name in metrics if name != "information"] or list(METRICS)
    said: dict[str, Any] = {}
    for closeness in closenesses:
        result = evaluate(
            held["embeddings"],
            held["labels"],
            gallery,
            held.get("gallery_labels"),
            metrics=ranked,
            closeness=closeness,
            exclude=groups,
        )
        said[closeness] = result.to_dict()
        said["queries"], said["without_relevant"] = result.queries, result.without_relevant
    if "information" in metrics:
        said["information"] = information(held["embeddings"], held["labels"], 0)
    return said


def _embedded(folder: RunFolder, data: str, trust_code: bool) -> tuple[Table, Tensor]:
    model = models.load(folder.path, trust_code=trust_code)
    table = _table(data, trust_code)
    return table, torch.from_numpy(model.embed(table.inputs))


def _table(data: str, trust_code: bool) -> Table:
    """All images of a folder of classes, or the test split of an .npz or of a named data set."""
    path = Path(data)
    if path.is_dir():
        return labelled_folder(path)
    if path.suffix == ".npz":
        return build({"npz": {"path": data}}, "data", {}, "--data").test
    return build(data, "data", {}, "--data", trust_code=trust_code).test


def labelled_folder(path: Path) -> Table:
    """Every image below a folder, its first sub-folder as the class; unreadable ones are left
    out."""
    from nearkin.data.images import fault

    classes = [entry for entry in sorted(path.iterdir()) if entry.is_dir() and entry.name[0] != "."]
    found = [(p, c.name) for c in classes for p in find_images(c) if fault(str(p)) is None]
    if not found:
        raise ValueError(
            f"{path} holds no readable images in sub-folders; give one sub-folder a class"
        )
    names = tuple(dict.fromkeys(name for _, name in found))
    code = {name: i for i, name in enumerate(names)}
    return Table(
        inputs=tuple(str(p) for p, _ in found),
        label=torch.tensor([code[name] for _, name in found]),
        names=names,
        ids=tuple(str(Path(p).relative_to(path)) for p, _ in found),
    )
