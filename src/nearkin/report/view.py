"""RunView: a finished run folder, read without torch. What is made of it stands elsewhere."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

FORMAT = 1
_ARRAYS = ("embeddings", "labels", "names", "ids")

Picture = Callable[[int], "Image | None"]


@dataclass(eq=False)
class RunView:
    """What a run folder holds. M test rows, D dimensions, C classes.

    name, folder   the folder's own name and its path
    recipe         the resolved recipe; `recipe_text` is the YAML as it stands in the folder
    environment    environment.json: versions, hardware, seed, commit
    metrics        metrics.json
    log            the lines of log.jsonl, in order
    embeddings     (M, D) float32, not normalized
    labels         (M,) int64 codes, indices into `names`
    relevant       (M,) int64: two test rows are relevant to one another where these are equal
    names          C class names
    ids            M texts that name the rows
    is_query       (M,) bool;  `is_gallery` (M,) bool
    left_out       one line for every item that could not be read
    picture        test row -> its picture, or None where it has none
    group          (M,) int64 or None: rows of equal group never find one another
    """

    name: str
    folder: Path
    recipe: dict[str, Any]
    recipe_text: str
    environment: dict[str, Any]
    metrics: dict[str, Any]
    log: list[dict[str, Any]]
    embeddings: np.ndarray
    labels: np.ndarray
    relevant: np.ndarray
    names: list[str]
    ids: list[str]
    is_query: np.ndarray
    is_gallery: np.ndarray
    left_out: list[str]
    picture: Picture | None = None
    group: np.ndarray | None = None

    def events(self, kind: str) -> list[dict[str, Any]]:
        """The lines of the log of one kind: start, step, epoch, distances, warning."""
        return [line for line in self.log if line.get("event") == kind]

    @property
    def of_instances(self) -> bool:
        """Whether retrieval is of instances: what is relevant is not simply the class."""
        return not np.array_equal(self.relevant, self.labels)


def read_run(folder: str | os.PathLike[str], picture: Picture | None = None) -> RunView:
    """The view of a finished run; `picture` gives the picture of a test row, for the galleries.

    Raises FileNotFoundError where the folder, or a file that a finished run has, is missing, and
    ValueError where the folder is not a run of this format or a file cannot be read.
    """
    folder = Path(folder)
    environment = _environment(folder)
    if not (folder / "metrics.json").is_file():
        raise FileNotFoundError(
            f"the run in {folder} is not finished: it has no metrics.json; finish it with "
            f"`nearkin train --resume`, then report on it"
        )
    recipe_text = _text(folder, "recipe.yaml")
    return RunView(
        name=folder.resolve().name,
        folder=folder,
        recipe=_yaml(recipe_text, folder / "recipe.yaml"),
        recipe_text=recipe_text,
        environment=environment,
        metrics=_json(folder, "metrics.json"),
        log=_log(folder / "log.jsonl"),
        left_out=_lines(folder / "left_out.txt"),
        picture=picture,
        **_arrays(folder),
    )


def _environment(folder: Path) -> dict[str, Any]:
    if not folder.exists():
        near = _nearest(folder)
        hint = f"did you mean {near}?" if near else "name the folder that `nearkin train` wrote"
        raise FileNotFoundError(f"there is no run folder {folder}; {hint}")
    if not (folder / "environment.json").is_file():
        raise ValueError(
            f"{folder} is not a run folder: it has no environment.json; name the folder that "
            f"`nearkin train` wrote"
        )
    environment = _json(folder, "environment.json")
    if environment.get("format") != FORMAT:
        raise ValueError(
            f"the run in {folder} has format {environment.get('format')!r}, and this version reads "
            f"format {FORMAT}; use the version of nearkin that wrote it"
        )
    return environment


def _nearest(folder: Path) -> Path | None:
    if not folder.parent.is_dir():
        return None
    there = [entry.name for entry in folder.parent.iterdir() if entry.is_dir()]
    near = difflib.get_close_matches(folder.name, there, n=1)
    return folder.parent / near[0] if near else None


def _text(folder: Path, name: str) -> str:
    path = folder / name
    if not path.is_file():
        raise FileNotFoundError(
            f"the run in {folder} has no {name}; a finished run has one, so train it again"
        )
    return path.read_text(encoding="utf-8", errors="replace")


def _json(folder: Path, name: str) -> dict[str, Any]:
    try:
        read = json.loads(_text(folder, name))
    except json.JSONDecodeError as error:
        raise ValueError(f"{folder / name} is not JSON ({error}); train the run again") from None
    if not isinstance(read, dict):
        raise ValueError(
            f"{folder / name} holds a {type(read).__name__}, and a mapping was expected"
        )
    return read


def _yaml(text: str, path: Path) -> dict[str, Any]:
    import yaml

    try:
        read = yaml.safe_load(text)
    except yaml.YAMLError as error:
        said = " ".join(str(error).split())
        raise ValueError(f"{path} is not YAML ({said}); train the run again") from None
    if not isinstance(read, dict):
        raise ValueError(f"{path} holds a {type(read).__name__}, and a mapping was expected")
    return read


def _log(path: Path) -> list[dict[str, Any]]:
    """The lines that can be read. A killed run leaves a torn last line; others are warned of."""
    lines = _lines(path)
    log: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        try:
            read = json.loads(line)
        except json.JSONDecodeError:
            read = None
        if isinstance(read, dict):
            log.append(read)
        elif number < len(lines):
            said = f"line {number} of {path.name} cannot be read and is left out of this report"
            log.append({"event": "warning", "message": said})
    return log


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        return []
    # Not splitlines: it also breaks at U+2028 and the like, which a JSON text or a path may hold.
    text = path.read_text(encoding="utf-8", errors="replace")
    return [line for line in text.split("\n") if line.strip()]


def _arrays(folder: Path) -> dict[str, Any]:
    path = folder / "embeddings.npz"
    if not path.is_file():
        raise FileNotFoundError(
            f"the run in {folder} has no embeddings.npz; a finished run has one, so train it again"
        )
    try:
        # numpy leaves a broken file open that it opened itself.
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
    except Exception as error:  # Readers answer broken bytes with whatever went wrong inside.
        raise ValueError(f"{path} cannot be read ({error}); train the run again") from None
    missing = [name for name in _ARRAYS if name not in arrays]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}; train the run again")
    rows = len(arrays["embeddings"])
    labels = _integers(arrays["labels"], "labels", path)
    every = np.ones(rows, dtype=bool)
    view = {
        "embeddings": np.asarray(arrays["embeddings"], dtype=np.float32),
        "labels": labels,
        "relevant": _integers(arrays.get("relevant", labels), "relevant", path),
        "names": [str(name) for name in arrays["names"]],
        "ids": [str(row) for row in arrays["ids"]],
        "is_query": np.asarray(arrays.get("is_query", every), dtype=bool),
        "is_gallery": np.asarray(arrays.get("is_gallery", every), dtype=bool),
        "group": _integers(arrays["group"], "group", path) if "group" in arrays else None,
    }
    _check(view, rows, path)
    return view


def _integers(array: np.ndarray, name: str, path: Path) -> np.ndarray:
    if array.dtype.kind not in "iu":
        raise ValueError(f"{name} in {path} are {array.dtype}, and integer codes were expected")
    return array.astype(np.int64)


def _check(view: dict[str, Any], rows: int, path: Path) -> None:
    if view["embeddings"].ndim != 2:
        raise ValueError(
            f"embeddings in {path} have shape {view['embeddings'].shape}, and (rows, dimensions) "
            f"was expected"
        )
    for name in ("labels", "relevant", "ids", "is_query", "is_gallery", "group"):
        if view[name] is not None and len(view[name]) != rows:
            raise ValueError(
                f"{path} has {rows} embeddings but {len(view[name])} {name}; they must be as many"
            )
    if not np.isfinite(view["embeddings"]).all():
        raise ValueError(f"embeddings in {path} hold NaN or infinity; train the run again")
    labels, classes = view["labels"], len(view["names"])
    if rows and not 0 <= labels.min() <= labels.max() < classes:
        raise ValueError(
            f"labels in {path} run from {labels.min()} to {labels.max()}, and there are names for "
            f"0..{classes - 1}"
        )
