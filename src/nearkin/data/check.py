"""`check`: what a set of images or of rows holds, and what stands in the way."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import os
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from nearkin.boxes import Boxed
from nearkin.data.base import Splits, Table
from nearkin.data.folder import folder
from nearkin.data.images import ImageFile, Progress, find_classes, find_faults
from nearkin.data.listing import SUFFIXES, read_listing
from nearkin.data.npz import npz
from nearkin.data.table import table
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
    """What `check` saw. Rows are named "split: id".

    kind              "folder", "table", "npz" or the name of a set
    splits            by name, as training would make them; empty where no splits can be made
    unreadable        (path, reason)
    duplicates        groups of rows whose bytes are equal
    across_splits     those of them that stand in several splits
    different_labels  those of them that have several labels, as "split: id (label)"
    tiny, gray        images with a side under 16 pixels; images of gray levels, as their headers
                      say. None for arrays
    problems          sentences on what would stop training, or let the test see training data
    notes             sentences on what is worth a look and stops nothing
    """

    path: str
    kind: str
    splits: Mapping[str, SplitSummary] = field(default_factory=dict)
    unreadable: tuple[tuple[str, str], ...] = ()
    duplicates: tuple[tuple[str, ...], ...] = ()
    across_splits: tuple[tuple[str, ...], ...] = ()
    different_labels: tuple[tuple[str, ...], ...] = ()
    tiny: tuple[str, ...] | None = None
    gray: tuple[str, ...] | None = None
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether nothing would stop training and no test row was seen in training."""
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """All of it and `ok`, as what JSON knows."""
        said = {**asdict(self), "ok": self.ok}
        return {key: _listed(value) for key, value in said.items()}

    def lines(self) -> list[str]:
        """The report as text, a line an entry; long lists are cut short and say so."""
        lines = [f"{self.path} ({self.kind})"]
        lines += [
            f"  {name}: {s.rows} rows, {s.classes} classes of {s.smallest} to {s.largest} rows "
            f"(median {s.median:g}), {s.singletons} of one row"
            for name, s in self.splits.items()
        ]
        if self.tiny is not None and self.gray is not None:
            tiny, gray = len(self.tiny), len(self.gray)
            lines.append(f"  {tiny} images under {_TINY} pixels, {gray} gray images")
            lines += _few(self.tiny, "tiny", str)
            # Where every picture is gray, it is meant.
            every = gray == sum(s.rows for s in self.splits.values())
            lines += [] if every else _few(self.gray, "gray", str)
        lines += _few(self.unreadable, "unreadable", lambda pair: f"{pair[0]} ({pair[1]})")
        lines += _few(self.duplicates, "equal", " = ".join)
        lines += _few(self.across_splits, "across splits", " = ".join)
        lines += _few(self.different_labels, "different labels", " = ".join)
        lines += [f"  note: {note}" for note in self.notes]
        lines += [f"  problem: {problem}" for problem in self.problems]
        return [*lines, "  ok" if self.ok else "  not ok"]


def check(path: str | Path, progress: Progress | None = None) -> CheckReport:
    """Look through a folder of images, a table of images (.csv, .parquet) or a .npz file, as the
    sets `folder`, `table` and `npz` would read them.

    Raises FileNotFoundError where there is nothing at `path`, and ValueError for a file of another
    kind; whatever else is wrong stands in the
    report. `progress(done, total)` is told of images that are decoded.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(
            f"there is nothing at {path}; give a folder of images, a .csv, .parquet or .npz file, "
            "or the name of a data set"
        )
    if path.is_dir():
        return _check_folder(path, progress)
    if path.suffix.lower() in SUFFIXES:
        _find_faults_of_table(path, progress)
        return _report(str(path), "table", _made(lambda: table(path)), progress)
    if path.suffix.lower() != ".npz" and not zipfile.is_zipfile(path):
        raise ValueError(
            f"{path} is of no kind that is read; give a folder of images, or a file that ends in "
            f"{', '.join(SUFFIXES)} or .npz"
        )
    return _report(str(path), "npz", _made(lambda: npz(path)), progress)


def check_set(
    make: Callable[..., Splits], path: str | Path | None = None, progress: Progress | None = None
) -> CheckReport:
    """Look through a data set by its function, at `path` or where it lies by default.

    Raises ValueError for a set that takes no path, or needs one that is not given.
    """
    name = make.__name__
    takes = inspect.signature(make).parameters.get("path")
    if path is None and takes is not None and takes.default is inspect.Parameter.empty:
        raise ValueError(f"the data set {name} reads files of your own; give their path instead")
    if path is not None and takes is None:
        raise ValueError(f"the data set {name} takes no path; leave it out")
    where = {} if path is None else {"path": path}
    return _report(str(path or name), name, _made(lambda: make(**where)), progress)


def _check_folder(path: Path, progress: Progress | None) -> CheckReport:
    try:
        found = find_classes(path)
    except (ValueError, OSError) as error:
        return CheckReport(str(path), "folder", problems=(str(error),))
    find_faults(path, found.files, progress)
    made = _made(lambda: folder(path))
    rows = None
    if made.splits is None:
        rows = [_Row("all", file.name, file.id, file.path) for file in found.files]
    report = _report(str(path), "folder", made, progress, rows)
    passed = dict(found.passed_over)
    return replace(
        report,
        unreadable=tuple(pair for pair in report.unreadable if pair[0] not in passed),
        notes=(*(f"{where} {why}" for where, why in passed.items()), *report.notes),
    )


def _find_faults_of_table(path: Path, progress: Progress | None) -> None:
    """Decode the images before `table` does, which tells nobody how far it is."""
    with contextlib.suppress(ValueError, OSError, ImportError):  # what `table` will say itself
        files = dict.fromkeys(read_listing(path).files())
        find_faults(path, [ImageFile(file, file, "", None) for file in files], progress)


@dataclass(frozen=True)
class _Row:
    split: str
    label: str
    id: str
    item: Any

    def __str__(self) -> str:
        return f"{self.split}: {self.id}"


@dataclass(frozen=True)
class _Made:
    """The splits of a set, or why there are none; and what was warned of."""

    splits: Splits | None
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def _made(make: Callable[[], Splits]) -> _Made:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            splits, problems = make(), ()
        except (ValueError, OSError, ImportError) as error:
            splits, problems = None, (str(error),)
    return _Made(splits, problems, tuple(str(each.message) for each in said))


def _report(
    path: str,
    kind: str,
    made: _Made,
    progress: Progress | None,
    rows: Sequence[_Row] | None = None,
) -> CheckReport:
    """The report on splits; on `rows` where no splits could be made of them."""
    splits = made.splits
    rows = _rows(splits) if rows is None else rows
    pictures = bool(rows) and all(isinstance(row.item, (str, Boxed)) for row in rows)
    faults = _faults(path, rows, progress) if pictures else {}
    left_out = dict(splits.left_out) if splits else {}
    # What is in the way of training was not left out.
    broken = [name for name in faults if splits and name not in left_out]
    sound = [row for row in rows if not (pictures and _file(row.item) in faults)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        digests = list(pool.map(lambda row: _digest(row.item), sound))
        looks = list(pool.map(lambda row: _look(row.item), sound)) if pictures else []
    equal = _equal(sound, digests)
    across = [group for group in equal if len({row.split for row in group}) > 1]
    torn = [group for group in equal if len({row.label for row in group}) > 1]
    return CheckReport(
        path,
        kind,
        splits=_summaries(splits),
        unreadable=tuple((left_out | faults).items()),
        duplicates=_said(equal),
        across_splits=_said(across),
        different_labels=tuple(tuple(f"{row} ({row.label})" for row in each) for each in torn),
        tiny=_where(sound, [tiny for tiny, _ in looks]) if pictures else None,
        gray=_where(sound, [gray for _, gray in looks]) if pictures else None,
        problems=(*made.problems, *_unreadable(broken, faults), *_leaks(across)),
        notes=(*made.notes, *_notes(splits, kind, equal, torn)),
    )


def _rows(splits: Splits | None) -> list[_Row]:
    rows: list[_Row] = []
    for split, part in (splits.tables() if splits else {}).items():
        assert not isinstance(part.inputs, Taken)
        each = zip(part.label.tolist(), part.ids, part.inputs, strict=True)
        rows += [_Row(split, part.names[code], row, item) for code, row, item in each]
    return rows


def _faults(path: str, rows: Sequence[_Row], progress: Progress | None) -> dict[str, str]:
    files = list(dict.fromkeys(_file(row.item) for row in rows))
    if not files:
        return {}
    root = path if os.path.exists(path) else os.path.commonpath(files)
    return find_faults(root, [ImageFile(file, file, "", None) for file in files], progress)


def _file(item: str | Boxed) -> str:
    return item.path if isinstance(item, Boxed) else item


def _digest(item: Any) -> bytes:
    """Of the bytes of a file, with the box where there is one, or of a row of numbers."""
    if isinstance(item, torch.Tensor):
        return hashlib.sha256(item.numpy().tobytes()).digest()
    content = hashlib.sha256(Path(_file(item)).read_bytes())
    content.update(repr(item.box).encode() if isinstance(item, Boxed) else b"")
    return content.digest()


def _look(item: str | Boxed) -> tuple[bool, bool]:
    """Whether an image is tiny, and whether it is gray; from its header alone."""
    from PIL import Image

    with Image.open(_file(item)) as picture:
        gray = picture.mode[0] in "1LIF" and picture.mode != "LAB"
        size = picture.size
    if isinstance(item, Boxed):
        x0, y0, x1, y1 = item.box
        size = x1 - x0, y1 - y0
    return min(size) < _TINY, gray


def _where(rows: Sequence[_Row], found: Sequence[bool]) -> tuple[str, ...]:
    return tuple(str(row) for row, it_is in zip(rows, found, strict=True) if it_is)


def _equal(rows: Sequence[_Row], digests: Sequence[bytes]) -> list[list[_Row]]:
    groups: dict[bytes, list[_Row]] = {}
    for row, digest in zip(rows, digests, strict=True):
        groups.setdefault(digest, []).append(row)
    return [group for group in groups.values() if len(group) > 1]


def _said(groups: Sequence[Sequence[_Row]]) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(map(str, group)) for group in groups)


def _unreadable(broken: Sequence[str], faults: Mapping[str, str]) -> tuple[str, ...]:
    if not broken:
        return ()
    return (
        f"{len(broken)} images cannot be read, such as {broken[0]} ({faults[broken[0]]}); extract "
        "the archive anew",
    )


def _leaks(across: Sequence[Sequence[_Row]]) -> tuple[str, ...]:
    if not across:
        return ()
    first, second = across[0][0], next(r for r in across[0] if r.split != across[0][0].split)
    return (
        f"{len(across)} groups of equal rows reach across splits, such as {first.id} "
        f"({first.split}) and {second.id} ({second.split}); remove all but one of each",
    )


def _notes(
    splits: Splits | None, kind: str, equal: Sequence[Any], torn: Sequence[Sequence[_Row]]
) -> tuple[str, ...]:
    notes = []
    if torn:
        names = sorted({row.label for row in torn[0]})
        notes.append(f"{len(torn)} groups of equal rows have several labels, such as {names}")
    if len(equal) > len(torn):
        notes.append(f"{len(equal) - len(torn)} groups of equal rows stand within one class")
    if splits and splits.validation is None and kind in ("folder", "table", "npz"):
        notes.append("the classes are too few for a validation split")
    return tuple(notes)


def _summaries(splits: Splits | None) -> dict[str, SplitSummary]:
    return {name: _summary(part) for name, part in (splits.tables() if splits else {}).items()}


def _summary(part: Table) -> SplitSummary:
    sizes = torch.unique(part.label, return_counts=True)[1].double()
    return SplitSummary(
        rows=len(part),
        classes=len(sizes),
        smallest=int(sizes.min()),
        median=float(sizes.quantile(0.5)),
        largest=int(sizes.max()),
        singletons=int((sizes == 1).sum()),
    )


def _listed(value: Any) -> Any:
    """Tuples as lists, however deep."""
    return [_listed(each) for each in value] if isinstance(value, tuple) else value


def _few(items: Sequence[Any], word: str, said: Callable[[Any], str]) -> list[str]:
    lines = [f"  {word}: {said(item)}" for item in items[:_LISTED]]
    more = len(items) - _LISTED
    return [*lines, f"  {word}: {more} more"] if more > 0 else lines
