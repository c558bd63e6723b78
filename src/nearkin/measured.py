"""`nearkin evaluate`: a run, or anybody's embeddings, by the evaluator that training uses."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nearkin import model as models
from nearkin.assemble import OWN, prepared
from nearkin.config import build, load_recipe
from nearkin.data.base import Splits, Table
from nearkin.data.images import find_classes, find_faults
from nearkin.data.npz import npz, read_arrays
from nearkin.evaluation import evaluate
from nearkin.floors import floors, has_features
from nearkin.measure import Asked, Watch, block, information
from nearkin.run_folder import RunFolder
from nearkin.runtime import Shards, first_then_all

METRICS = ("recall@1", "recall@2", "recall@4", "recall@8", "map@r")
CLOSENESS = ("cosine", "euclidean")
HELD = ("embeddings", "labels", "names", "ids", "is_query", "is_gallery", "relevant")
ABOVE = ("super_labels", "gallery_super_labels")
GALLERY_NEEDS = {
    "gallery_labels": ("gallery_embeddings",),
    "gallery_ids": ("gallery_embeddings",),
    "gallery_groups": ("gallery_embeddings", "groups"),
    "gallery_super_labels": ("gallery_embeddings", "super_labels"),
}

FITTED = tuple(f"{part}_{name}" for part in ("train", "validation") for name in HELD[:2])
READ = ("embeddings", "labels", "groups", "super_labels", "ids", "gallery_embeddings")
READ = (*READ, *GALLERY_NEEDS, *FITTED)
TOGETHER = 1024  # rows that are looked at together

Progress = Callable[[int, int], None]


def measure(
    source: str | Path,
    *,
    data: str | None = None,
    metrics: Sequence[str] | None = None,
    closeness: str | None = None,
    with_floors: bool = False,
    trust_code: bool = False,
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
    compared: Progress | None = None,
    asked: Asked | None = None,
) -> dict[str, Any]:
    """One block as under "test" in metrics.json, with "queries" and "without_relevant".

    source      a run folder, or an .npz with embeddings, labels and optionally gallery_embeddings,
                gallery_labels, groups (and gallery_groups), super_labels (and
                gallery_super_labels), ids (and gallery_ids)
    data        for a run: measure on this folder of images, or on the test split of this .csv,
                .parquet or .npz file or named data set
    metrics     names; default: those of the run's recipe, or recall@1, 2, 4, 8 and map@r
    closeness   cosine or euclidean; default both
    with_floors add "floors" (nearkin.floors): of a run whose encoder stands on features; or of an
                .npz with train_embeddings, train_labels and optionally validation_embeddings,
                validation_labels, or with inputs, labels, split as `nearkin train` reads them: then
                its test split is measured
    progress    told of (done, total) items of `data` that are embedded
    say         told once, in a line, what the comparison will take
    compared    told of (done, total) blocks of similarities
    asked       keeps the results, by closeness, and says what intervals resample and what gains
                ndcg@K has

    Raises ValueError or OSError for whatever cannot be read, and ValueError where the rows that
    floors are fitted on share a class with those that are measured.
    """
    path = Path(source)
    closenesses = CLOSENESS if closeness is None else (closeness,)
    watch, asked = Watch(say, compared), asked or Asked()
    if path.suffix.lower() == ".npz":
        if data is not None:
            raise ValueError("--data goes with a run; an .npz file holds its own embeddings")
        if not path.exists():
            raise FileNotFoundError(f"there is no file {path}; give a run, or embeddings as .npz")
        return _of_file(path, tuple(metrics or METRICS), closenesses, with_floors, watch, asked)
    if path.is_file():
        raise ValueError(f"{path} is a file; give a run folder, or embeddings as .npz")
    (folder := RunFolder(path)).check_format()
    recipe = load_recipe(path / "recipe.yaml")
    if with_floors and data is not None:
        raise ValueError("the floors of a run are those of its own data; leave --data out")
    z, table = _embedded(folder, data, trust_code, progress)
    wanted = list(metrics or recipe.get("evaluate") or METRICS)
    said = block(z, table, wanted, recipe.get("seed", 0), closenesses, watch, asked)
    if with_floors:
        held = folder.json("metrics.json").get("floors") if metrics is None else None
        said["floors"] = held or _floors_of_run(folder, recipe, wanted, trust_code, progress)
    return said


def _embedded(
    folder: RunFolder, data: str | None, trust_code: bool, progress: Progress | None
) -> tuple[Tensor, Table]:
    """Embeddings and their rows: the test split of the run, or other data, embedded now."""
    if data is None:
        table = test_rows(folder)
        assert isinstance(table.inputs, Tensor)
        return table.inputs, table
    model = models.load(folder.path, trust_code=trust_code)
    table = _table(data, trust_code)
    return torch.from_numpy(model.embed(table.inputs, progress=progress)), table


def _floors_of_run(
    folder: RunFolder,
    recipe: Mapping[str, Any],
    metrics: Sequence[str],
    trust_code: bool,
    progress: Progress | None,
) -> dict[str, Any]:
    """Measured now, on the features of the run's own data."""
    if OWN in (recipe["data"], recipe["encoder"]):
        raise ValueError(
            f"the data or the encoder of the run in {folder.path} were given in Python, so its "
            "features cannot be had here; nearkin.floors.floors measures tables of features"
        )
    model = models.load(folder.path, trust_code=trust_code)
    splits = build(recipe["data"], "data", {}, "data", trust_code=trust_code)
    splits = first_then_all(lambda: prepared(splits, model.encoder, 2, progress))
    if not has_features(splits.test):
        raise ValueError(
            f"the encoder of the run in {folder.path} does not stand on fixed features, so it has "
            "no floors; floors are of given rows of features, or of a head on a frozen trunk"
        )
    return floors(splits.train, splits.validation, splits.test, metrics, recipe.get("seed", 0))


def test_rows(folder: RunFolder) -> Table:
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


def _of_file(
    path: Path,
    metrics: tuple[str, ...],
    closenesses: Sequence[str],
    with_floors: bool,
    watch: Watch,
    asked: Asked,
) -> dict[str, Any]:
    held = read_arrays(path)
    if with_floors and "train_embeddings" not in held:
        return _of_features(path, held, metrics, closenesses, asked)
    if with_floors and "super_labels" in held and any(m.startswith("ndcg") for m in metrics):
        raise ValueError(
            f"{path} has super_labels, which grade ndcg, but floors know one grade; ask for other "
            "metrics, or leave --floors out"
        )
    missing = [name for name in ("embeddings", "labels") if name not in held]
    if missing:
        raise ValueError(
            f"{path} has no array {missing[0]!r}; it has {', '.join(sorted(held)) or 'none'}"
        )
    ranked = [name for name in metrics if name != "information"] or list(METRICS)
    said: dict[str, Any] = {}
    try:
        _check_pairs(held)
        asked.ids = _ids(held)
        graded = asked.graded(*(held.get(name) for name in ABOVE))
        say = watch.say
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
                planned=watch.planned,
                progress=watch.compared,
                **graded,
            )
            asked.results[closeness] = result
            said[closeness] = result.to_dict(asked.over)
            said["queries"], said["without_relevant"] = result.queries, result.without_relevant
        if "information" in metrics:
            said["information"] = information(held["embeddings"], held["labels"], 0)
        if with_floors:
            train, validation = (_rows(held, name) for name in ("train", "validation"))
            assert train is not None
            splits = Splits(train, validation, _tested(held))  # raises where they share a class
            said["floors"] = floors(splits.train, splits.validation, splits.test, metrics, 0)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from None
    if say is not None:
        for remark in _doubts(held):
            say(f"{path}: {remark}")
    return said


def _doubts(held: Mapping[str, np.ndarray]) -> Iterator[str]:
    """What is no error, and hardly meant."""
    for name in sorted(set(held) - set(READ)):
        meant = get_close_matches(name, set(READ) - set(held), 1, 0.8)
        if meant:
            yield f"the array {name!r} is not read; is {meant[0]!r} meant?"
    for name in ("embeddings", "gallery_embeddings"):
        z = held.get(name, ())
        blocks = (z[start : start + TOGETHER] for start in range(0, len(z), TOGETHER))
        if len(z) > 2 and all((block == z[0]).all() for block in blocks):
            what = "the embedding" if name == "embeddings" else "the gallery's embedding"
            yield f"all {len(z)} rows are equal: {what} has collapsed to one point"


def _of_features(
    path: Path,
    held: Mapping[str, np.ndarray],
    metrics: Sequence[str],
    closenesses: Sequence[str],
    asked: Asked,
) -> dict[str, Any]:
    """The test split of a file of features, and its floors."""
    if "split" not in held:
        raise ValueError(
            f"{path} has no rows to fit the floors on; add the arrays train_embeddings and "
            "train_labels (and validation_embeddings, validation_labels), or split with the values "
            "train, validation and test"
        )
    splits = npz(path)
    if not has_features(splits.test):
        raise ValueError(
            f"{path} holds inputs of shape {tuple(splits.test.inputs.shape[1:])}; floors are of "  # type: ignore[union-attr]
            "flat rows of numbers"
        )
    assert isinstance(splits.test.inputs, Tensor)
    said = block(splits.test.inputs, splits.test, metrics, 0, closenesses, asked=asked)
    below = floors(splits.train, splits.validation, splits.test, metrics, 0)
    return {**said, "floors": below}


def _rows(held: Mapping[str, np.ndarray], name: str) -> Table | None:
    """The rows of train_embeddings and train_labels; None where both are missing."""
    both = f"{name}_embeddings", f"{name}_labels"
    there = [array in held for array in both]
    if not any(there):
        return None
    if not all(there):
        raise ValueError(f"{both[there.index(True)]} needs {both[there.index(False)]} too")
    z, label = (held[array] for array in both)
    if z.ndim != 2 or z.dtype.kind not in "fiu" or z.shape[1] != held["embeddings"].shape[1]:
        raise ValueError(
            f"{both[0]} must be rows of {held['embeddings'].shape[1]} numbers like embeddings, not "
            f"{z.dtype} of {z.shape}"
        )
    if label.ndim != 1 or len(label) != len(z) or not len(z):
        raise ValueError(f"{both[1]} needs one entry a row of {both[0]}, which has {len(z)}")
    names, code = np.unique(label, return_inverse=True)
    return Table(
        inputs=torch.from_numpy(z.astype(np.float32)),
        label=torch.from_numpy(code.astype(np.int64)),
        names=tuple(map(str, names.tolist())),
        ids=tuple(map(str, range(len(z)))),
    )


def _tested(held: Mapping[str, np.ndarray]) -> Table:
    """The rows that are measured, queries before a gallery, as `evaluate` has checked them."""
    z, labels = [held["embeddings"]], [held["labels"]]
    groups = [held["groups"]] if "groups" in held else []
    columns: dict[str, Tensor] = {}
    if "gallery_embeddings" in held:
        z.append(held["gallery_embeddings"])
        labels.append(held["gallery_labels"])
        groups += [held["gallery_groups"]] if groups else []
        is_query = torch.arange(len(z[0]) + len(z[1])) < len(z[0])
        columns = {"is_query": is_query, "is_gallery": ~is_query}
    if any(label.ndim != 1 for label in labels):
        raise ValueError("floors need one label a row, not several")
    names, code = np.unique(np.concatenate(labels), return_inverse=True)
    if groups:
        code_of_group = np.unique(np.concatenate(groups), return_inverse=True)[1]
        columns["group"] = torch.from_numpy(code_of_group.astype(np.int64))
    return Table(
        inputs=torch.from_numpy(np.concatenate(z).astype(np.float32)),
        label=torch.from_numpy(code.astype(np.int64)),
        names=tuple(map(str, names.tolist())),
        ids=tuple(map(str, range(len(code)))),
        columns=columns,
    )


def _check_pairs(held: Mapping[str, np.ndarray]) -> None:
    """Raises ValueError for arrays of a gallery that would go unused."""
    for name, needs in GALLERY_NEEDS.items():
        missing = [other for other in needs if other not in held]
        if name in held and missing:
            raise ValueError(f"{name} needs {missing[0]} too; add that array or leave this one out")


def _ids(held: Mapping[str, np.ndarray]) -> tuple[Sequence[Any], Sequence[Any]]:
    """Names of the queries and of the items that they find; their rows where they have none."""
    found: list[Sequence[Any]] = []
    for name, rows in (("ids", "embeddings"), ("gallery_ids", "gallery_embeddings")):
        if rows not in held:
            return found[0], found[0]
        if name in held and held[name].shape != held[rows].shape[:1]:
            raise ValueError(f"{name} must have one entry for each row of {rows}")
        found.append(held[name].tolist() if name in held else range(len(held[rows])))
    return found[0], found[1]


def _groups(held: dict[str, np.ndarray]) -> Any:
    groups = held.get("groups")
    if groups is None or "gallery_embeddings" not in held:
        return groups
    if "gallery_groups" not in held:
        raise ValueError("groups with a gallery need gallery_groups too")
    return groups, held["gallery_groups"]


def _table(data: str, trust_code: bool) -> Table:
    """All images of a folder of classes, or the test split of a table, an .npz or a named set."""
    path = Path(data)
    if path.is_dir():
        return labelled_folder(path)
    for kind, endings in {"npz": (".npz",), "table": (".csv", ".parquet")}.items():
        if path.suffix.lower() in endings:
            return build({kind: {"path": data}}, "data", {}, "--data").test
    if len(path.parts) > 1 and ":" not in data:
        raise FileNotFoundError(
            f"there is no folder {data}; give a folder, .csv, .parquet, .npz or data set"
        )
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
