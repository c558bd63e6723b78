"""`check`: what a folder of images or a .npz file holds, and what stands in the way."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from nearkin.data.base import Splits, Table
from nearkin.data.folder import folder
from nearkin.data.images import Progress, find_classes, find_faults
from nearkin.data.npz import npz
from nearkin.inputs import Taken

_TINY = 16
_LISTED = 10


@dataclass(frozen=True)
class SplitSummary:
    """Counts of one split: rows, classes, class sizes, and classes of one row (`singletons`)."""

    rows: int
    classes: int
    smallest: int
    median: float
    largest: int
    singletons: int


@dataclass(frozen=True)
class CheckReport:
    """What `check` saw.

    kind         "folder" or "npz"
    splits       by name, as training would make them; empty where no splits can be made
    unreadable   (path, reason)
    duplicates   groups of rows whose bytes are equal, as "split: id"
    tiny, gray   images with a side under 16 pixels; images of gray levels. 0 for npz
    problems     sentences on what would stop training, or let the test see training data
    notes        sentences on what is worth a look and stops nothing
    """

    path: str
    kind: str
    splits: Mapping[str, SplitSummary] = field(default_factory=dict)
    unreadable: tuple[tuple[str, str], ...] = ()
    duplicates: tuple[tuple[str, ...], ...] = ()
    tiny: int = 0
    gray: int = 0
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether nothing would stop training and no test row was seen in training."""
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """All of it and `ok`, as what JSON knows."""
        return {
            **asdict(self),
            "ok": self.ok,
            "unreadable": [list(pair) for pair in self.unreadable],
            "duplicates": [list(group) for group in self.duplicates],
            "problems": list(self.problems),
            "notes": list(self.notes),
        }

    def lines(self) -> list[str]:
        """The report as text, a line an entry; long lists are cut short and say so."""
        lines = [f"{self.path} ({self.kind})"]
        lines += [
            f"  {name}: {s.rows} rows, {s.classes} classes of {s.smallest} to {s.largest} rows "
            f"(median {s.median:g}), {s.singletons} of one row"
            for name, s in self.splits.items()
        ]
        if self.kind == "folder":
            lines.append(f"  {self.tiny} images under {_TINY} pixels, {self.gray} gray images")
        lines += _few(self.unreadable, "unreadable", lambda pair: f"{pair[0]} ({pair[1]})")
        lines += _few(self.duplicates, "equal", " = ".join)
        lines += [f"  note: {note}" for note in self.notes]
        lines += [f"  problem: {problem}" for problem in self.problems]
        return [*lines, "  ok" if self.ok else "  not ok"]


def check(path: str | Path, progress: Progress | None = None) -> CheckReport:
    """Look through images or a .npz file, as the sets `folder` and `npz` would read them.

    Raises FileNotFoundError where there is nothing at `path`; whatever else is wrong stands in the
    report. `progress(done, total)` is told of images that are decoded.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(
            f"there is nothing at {path}; give a folder of images or a .npz file"
        )
    return _check_folder(path, progress) if path.is_dir() else _check_npz(path)


def _check_folder(path: Path, progress: Progress | None) -> CheckReport:
    try:
        found = find_classes(path)
    except (ValueError, OSError) as error:
        return CheckReport(str(path), "folder", problems=(str(error),))
    faults = find_faults(path, found.files, progress)
    splits, problems = _made(lambda: folder(path))
    rows = _rows(splits) or [("all", file.name, file.id, file.path) for file in found.files]
    rows = [row for row in rows if row[3] not in faults]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        digests = list(pool.map(lambda row: _digest(Path(row[3]).read_bytes()), rows))
        looks = list(pool.map(lambda row: _look(row[3]), rows))
    equal = _equal(rows, digests)
    tiny, gray = sum(tiny for tiny, _ in looks), sum(gray for _, gray in looks)
    return CheckReport(
        str(path),
        "folder",
        splits=_summaries(splits),
        unreadable=tuple(faults.items()),
        duplicates=_said(equal),
        tiny=tiny,
        gray=gray,
        problems=(*problems, *_leaks(equal)),
        notes=(*(f"{where} {why}" for where, why in found.passed_over), *_notes(splits, equal)),
    )


def _check_npz(path: Path) -> CheckReport:
    splits, problems = _made(lambda: npz(path))
    rows = _rows(splits)
    digests = []
    for table in splits.tables().values() if splits else ():
        assert isinstance(table.inputs, torch.Tensor)
        digests += [_digest(row.numpy().tobytes()) for row in table.inputs]
    equal = _equal(rows, digests)
    return CheckReport(
        str(path),
        "npz",
        splits=_summaries(splits),
        duplicates=_said(equal),
        problems=(*problems, *_leaks(equal)),
        notes=_notes(splits, equal),
    )


# A row as (split, class, id, input).
_Row = tuple[str, str, str, Any]


def _made(make: Callable[[], Splits]) -> tuple[Splits | None, tuple[str, ...]]:
    try:
        return make(), ()
    except (ValueError, OSError) as error:
        return None, (str(error),)


def _rows(splits: Splits | None) -> list[_Row]:
    rows: list[_Row] = []
    for split, table in (splits.tables() if splits else {}).items():
        assert not isinstance(table.inputs, Taken)
        each = zip(table.label.tolist(), table.ids, table.inputs, strict=True)
        rows += [(split, table.names[code], row, item) for code, row, item in each]
    return rows


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


def _look(path: str) -> tuple[bool, bool]:
    """Whether an image is tiny, and whether it is gray; from its header alone."""
    from PIL import Image

    with Image.open(path) as picture:
        return min(picture.size) < _TINY, picture.mode[0] in "1LIF" and picture.mode != "LAB"


def _equal(rows: Sequence[_Row], digests: Sequence[bytes]) -> list[list[_Row]]:
    groups: dict[bytes, list[_Row]] = {}
    for row, digest in zip(rows, digests, strict=True):
        groups.setdefault(digest, []).append(row)
    return [group for group in groups.values() if len(group) > 1]


def _said(equal: Sequence[Sequence[_Row]]) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(f"{split}: {row}" for split, _, row, _ in group) for group in equal)


def _leaks(equal: Sequence[Sequence[_Row]]) -> tuple[str, ...]:
    across = [group for group in equal if len({split for split, *_ in group}) > 1]
    if not across:
        return ()
    first, second = across[0][0], next(row for row in across[0] if row[0] != across[0][0][0])
    return (
        f"{len(across)} groups of equal rows reach across splits, such as {first[2]} "
        f"({first[0]}) and {second[2]} ({second[0]}); remove all but one of each",
    )


def _notes(splits: Splits | None, equal: Sequence[Sequence[_Row]]) -> tuple[str, ...]:
    notes = []
    torn = [group for group in equal if len({name for _, name, *_ in group}) > 1]
    if torn:
        names = sorted({name for _, name, *_ in torn[0]})
        notes.append(f"{len(torn)} groups of equal rows have several labels, such as {names}")
    if len(equal) > len(torn):
        notes.append(f"{len(equal) - len(torn)} groups of equal rows stand within one class")
    if splits and splits.validation is None:
        notes.append("the classes are too few for a validation split")
    return tuple(notes)


def _summaries(splits: Splits | None) -> dict[str, SplitSummary]:
    return {name: _summary(table) for name, table in (splits.tables() if splits else {}).items()}


def _summary(table: Table) -> SplitSummary:
    sizes = torch.unique(table.label, return_counts=True)[1].double()
    return SplitSummary(
        rows=len(table),
        classes=len(sizes),
        smallest=int(sizes.min()),
        median=float(sizes.quantile(0.5)),
        largest=int(sizes.max()),
        singletons=int((sizes == 1).sum()),
    )


def _few(items: Sequence[Any], word: str, said: Callable[[Any], str]) -> list[str]:
    lines = [f"  {word}: {said(item)}" for item in items[:_LISTED]]
    more = len(items) - _LISTED
    return [*lines, f"  {word}: {more} more"] if more > 0 else lines
