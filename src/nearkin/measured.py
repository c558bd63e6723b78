"""`nearkin evaluate`: a run, or anybody's embeddings, by the evaluator that training uses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nearkin import model as models
from nearkin.config import build, load_recipe
from nearkin.data.base import Table
from nearkin.data.images import find_classes, find_faults
from nearkin.data.npz import read_arrays
from nearkin.evaluation import evaluate
from nearkin.measure import block, information
from nearkin.run_folder import RunFolder
from nearkin.runtime import Shards

METRICS = ("recall@1", "recall@2", "recall@4", "recall@8", "map@r")
CLOSENESS = ("cosine", "euclidean")
HELD = ("embeddings", "labels", "names", "ids", "is_query", "is_gallery", "relevant")

Progress = Callable[[int, int], None]


def measure(
    source: str | Path,
    *,
    data: str | None = None,
    metrics: Sequence[str] | None = None,
    closeness: str | None = None,
    trust_code: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """One block as under "test" in metrics.json, with "queries" and "without_relevant".

    source      a run folder, or an .npz with embeddings, labels and optionally gallery_embeddings,
                gallery_labels, groups (and gallery_groups)
    data        for a run: measure on this folder of images, or on the test split of this .npz file
                or named data set
    metrics     names; default: those of the run's recipe, or recall@1, 2, 4, 8 and map@r
    closeness   cosine or euclidean; default both
    progress    told of (done, total) items of `data` that are embedded

    Raises ValueError or OSError for whatever cannot be read.
    """
    path = Path(source)
    closenesses = CLOSENESS if closeness is None else (closeness,)
    if path.suffix == ".npz":
        if data is not None:
            raise ValueError("--data goes with a run; an .npz file holds its own embeddings")
        if not path.exists():
            raise FileNotFoundError(f"there is no file {path}; give a run, or embeddings as .npz")
        return _of_file(path, tuple(metrics or METRICS), closenesses)
    if path.is_file():
        raise ValueError(f"{path} is a file; give a run folder, or embeddings as .npz")
    folder = RunFolder(path)
    folder.check_format()
    recipe = load_recipe(path / "recipe.yaml")
    if data is None:
        table = _test_of(folder)
        z = table.inputs
    else:
        model = models.load(path, trust_code=trust_code)
        table = _table(data, trust_code)
        z = torch.from_numpy(model.embed(table.inputs, progress=progress))
    assert isinstance(z, Tensor)
    wanted = list(metrics or recipe.get("evaluate") or METRICS)
    return block(z, table, wanted, recipe.get("seed", 0), closenesses)


def _test_of(folder: RunFolder) -> Table:
    """The test split as the run embedded it."""
    path = folder.path / "embeddings.npz"
    if not path.is_file():
        raise FileNotFoundError(f"the run in {folder.path} is not finished; end it with --resume")
    held = read_arrays(path)
    missing = [name for name in HELD if name not in held]
    if missing:
        raise ValueError(f"{path} has no array {missing[0]!r}; no run of this version wrote it")
    columns = {name: torch.from_numpy(held[name]) for name in HELD[4:]}
    if bool(columns["is_query"].all()) and bool(columns["is_gallery"].all()):
        # All rows in both roles means leave one out, not that each row finds itself.
        columns = {"relevant": columns["relevant"]}
    if "group" in held:
        columns["group"] = torch.from_numpy(held["group"])
    return Table(
        inputs=torch.from_numpy(held["embeddings"]),
        label=torch.from_numpy(held["labels"]),
        names=tuple(held["names"].tolist()),
        ids=tuple(held["ids"].tolist()),
        columns=columns,
    )


def _of_file(path: Path, metrics: tuple[str, ...], closenesses: Sequence[str]) -> dict[str, Any]:
    held = read_arrays(path)
    missing = [name for name in ("embeddings", "labels") if name not in held]
    if missing:
        raise ValueError(
            f"{path} has no array {missing[0]!r}; it has {', '.join(sorted(held)) or 'none'}"
        )
    ranked = [name for name in metrics if name != "information"] or list(METRICS)
    said: dict[str, Any] = {}
    try:
        for closeness in closenesses:
            result = evaluate(
                held["embeddings"],
                held["labels"],
                held.get("gallery_embeddings"),
                held.get("gallery_labels"),
                metrics=ranked,
                closeness=closeness,
                exclude=_groups(held),
                gather=Shards(),
            )
            said[closeness] = result.to_dict()
            said["queries"], said["without_relevant"] = result.queries, result.without_relevant
        if "information" in metrics:
            said["information"] = information(held["embeddings"], held["labels"], 0)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from None
    return said


def _groups(held: dict[str, np.ndarray]) -> Any:
    groups = held.get("groups")
    if groups is None or "gallery_embeddings" not in held:
        return groups
    if "gallery_groups" not in held:
        raise ValueError("groups with a gallery need gallery_groups too")
    return groups, held["gallery_groups"]


def _table(data: str, trust_code: bool) -> Table:
    """All images of a folder of classes, or the test split of an .npz or of a named data set."""
    path = Path(data)
    if path.is_dir():
        return labelled_folder(path)
    if path.suffix == ".npz":
        return build({"npz": {"path": data}}, "data", {}, "--data").test
    if len(path.parts) > 1 and ":" not in data:
        raise FileNotFoundError(f"there is no folder {data}; give a folder, .npz or data set")
    return build(data, "data", {}, "--data", trust_code=trust_code).test


def labelled_folder(path: Path) -> Table:
    """Every readable image of a folder of classes; its test part, where train and test stand
    above the classes."""
    files = find_classes(path).files
    files = [file for file in files if file.split in (None, "test")]
    faults = find_faults(path, files)
    files = [file for file in files if file.path not in faults]
    if not files:
        raise ValueError(f"no image below {path} can be read; nearkin data check {path} says why")
    names = tuple(dict.fromkeys(file.name for file in files))
    code = {name: i for i, name in enumerate(names)}
    return Table(
        inputs=tuple(file.path for file in files),
        label=torch.tensor([code[file.name] for file in files]),
        names=names,
        ids=tuple(file.id for file in files),
    )
