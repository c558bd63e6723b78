"""Official archives as people extract them: where their files lie, whether all are there, and
whether they are as many as published. What each set holds stands in its own file."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nearkin.cache import cache_folder
from nearkin.data.base import Table
from nearkin.data.splits import natural

# Recipes of the papers cut pictures to 224 x 224; an encoder that names no size takes it.
FACTS = {"channels": 3, "image_size": 224}
_DEEPEST = 2


def set_folder(name: str, path: str | Path | None) -> Path:
    """Where a set lies: `path`, or its folder in the cache, which may not exist.

    Raises NotADirectoryError for a file.
    """
    folder = cache_folder() / "data" / name if path is None else Path(path).expanduser()
    if folder.is_file():
        raise NotADirectoryError(
            f"{folder} is a file; give a folder, or extract it with nearkin data prepare {name} "
            f"--archive {folder}"
        )
    return folder


def find(name: str, folder: Path, wanted: str) -> Path:
    """The file or folder `wanted` in `folder` or up to two folders below it, the highest first.

    Raises FileNotFoundError that says how the set comes there.
    """
    found = search(folder, wanted)
    if found is None:
        raise FileNotFoundError(
            f"there is no {wanted} in {folder}; run nearkin data prepare {name}, or extract its "
            f"archive there, or name its folder with data.{name}.path=FOLDER"
        )
    return found


def search(folder: Path, wanted: str) -> Path | None:
    """The file or folder `wanted` in `folder` or up to two folders below it; None without it."""
    level = [folder]
    for _ in range(_DEEPEST + 1):
        for here in level:
            if (here / wanted).exists():
                return here / wanted
        level = [below for here in level for below in _folders(here)]
    return None


def _folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        names = [e.name for e in entries if e.is_dir() and not e.name.startswith((".", "__"))]
    return [folder / name for name in sorted(names)]


def read_lines(
    file: Path, entries: Sequence[Callable[[str], Any]], header: int = 0
) -> list[tuple[Any, ...]]:
    """The lines of a list, split at blanks, each entry converted; lines of the header are skipped.

    Raises ValueError that names the line.
    """
    rows = []
    text = file.read_text(encoding="utf-8", errors="replace")
    for number, line in enumerate(text.splitlines(), 1):
        parts = line.split()
        if number <= header or not parts:
            continue
        try:
            rows.append(tuple(read(part) for read, part in zip(entries, parts, strict=True)))
        except ValueError:
            raise ValueError(
                f"line {number} of {file} is {line.strip()!r}, which does not have the "
                f"{len(entries)} entries expected there; get the file anew"
            ) from None
    return rows


def image_table(
    root: Path,
    files: Sequence[str],
    classes: Sequence[str],
    columns: Mapping[str, Tensor] | None = None,
) -> Table:
    """Files below `root` (posix paths, which are the ids) with the name of the class of each."""
    names = sorted(set(classes), key=natural)
    code = {name: i for i, name in enumerate(names)}
    return Table(
        inputs=tuple(os.path.join(root, *file.split("/")) for file in files),
        label=torch.tensor([code[name] for name in classes], dtype=torch.int64),
        names=tuple(names),
        ids=tuple(files),
        columns=columns or {},
    )


def refuse_missing(name: str, root: Path, files: Sequence[str], listing: str) -> None:
    """Raise FileNotFoundError where files (posix paths below `root`) that a list names are missing.

    Folders are listed once each, so that a hundred thousand files cost a second.
    """
    there: dict[str, frozenset[str]] = {}
    missing = []
    for file in files:
        parent, _, last = file.rpartition("/")
        if parent not in there:
            folder = root / parent
            there[parent] = frozenset(os.listdir(folder) if folder.is_dir() else ())
        if last not in there[parent]:
            missing.append(file)
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of the {len(files)} images in {listing} are missing, such as "
            f"{root / missing[0]}; the archive was not extracted whole: remove {root} and run "
            f"nearkin data prepare {name}"
        )


class OtherCounts(UserWarning):
    """A set has other numbers of images or classes than the published one."""


def note_counts(
    name: str, seen: Mapping[str, Table], official: Mapping[str, tuple[int, int]]
) -> None:
    """Warn (OtherCounts) where the parts have other numbers of (images, classes) than the published
    set."""
    other = [
        f"{part} has {len(seen[part])} images of {seen[part].classes} classes instead of {rows} of "
        f"{classes}"
        for part, (rows, classes) in official.items()
        if (len(seen[part]), seen[part].classes) != (rows, classes)
    ]
    if other:
        warnings.warn(
            f"this is not the official {name}: {', '.join(other)}; figures cannot be compared with "
            "published ones",
            OtherCounts,
            stacklevel=3,
        )
