"""A listing: a CSV or Parquet file with a row an image, read cell by cell; every error names the
row and the column. Splits are made of it in table."""

from __future__ import annotations

import csv
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from nearkin.boxes import Boxed

SUFFIXES = (".csv", ".parquet")
FLAGS = ("is_query", "is_gallery")
_SIDES = ("x0", "y0", "x1", "y1")
COLUMNS = ("path", "label", "split", "box", *_SIDES, "group", "super_label", *FLAGS)
_TRUE, _FALSE = ("1", "true", "t", "yes", "y"), ("0", "false", "f", "no", "n", "")

T = TypeVar("T")


@dataclass(frozen=True)
class Listing:
    """The columns of a table file, as they were written; texts in CSV, any plain value in Parquet.

    lines        for CSV the number of the line on which each row ends
    passed_over  names of further columns, which were not read
    """

    path: Path
    columns: Mapping[str, Sequence[Any]]
    lines: Sequence[int] | None = None
    passed_over: tuple[str, ...] = ()

    def __contains__(self, column: str) -> bool:
        return column in self.columns

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def where(self, row: int, column: str) -> str:
        """The place of a cell, as a person finds it; rows count from 1 below the header."""
        line = "" if self.lines is None else f" (line {self.lines[row]})"
        return f"row {row + 1}{line} of {self.path}, column {column!r}"

    def read(self, column: str, cell: Callable[[Any], T]) -> list[T]:
        """Every cell of a column by `cell`, whose ValueError gets the place of the cell."""
        if column not in self.columns:
            there = ", ".join([*self.columns, *self.passed_over])
            raise ValueError(f"{self.path} has no column {column!r}; it has {there}")
        read = []
        for row, value in enumerate(self.columns[column]):
            try:
                read.append(cell(value))
            except ValueError as error:
                raise ValueError(f"{self.where(row, column)}: {error}") from None
        return read

    def files(self, root: Path | None = None) -> list[str]:
        """The paths in the column `path`; relative ones start at `root`, the listing's folder."""
        start = self.path.parent if root is None else root
        return [os.path.join(start, text) for text in self.read("path", filled)]

    def boxes(self) -> list[tuple[int, int, int, int] | None]:
        """The boxes of `box` or of x0, y0, x1, y1; None where a row or the listing has none."""
        sides = [name for name in _SIDES if name in self]
        if "box" in self and sides:
            raise ValueError(f"{self.path} has a column 'box' and {sides[0]!r}; give one of them")
        if "box" in self:
            return self.read("box", _box_of_text)
        if not sides:
            return [None] * len(self)
        numbers = zip(*(self.read(name, _number) for name in _SIDES), strict=True)
        boxes = []
        for row, four in enumerate(numbers):
            try:
                boxes.append(_box(four))
            except ValueError as error:
                raise ValueError(f"{self.where(row, 'x0')}: {error}") from None
        return boxes

    def images(self, root: Path | None = None) -> tuple[list[str | Boxed], list[str]]:
        """What an image encoder prepares for each row, and a text that names the row."""
        items: list[str | Boxed] = []
        ids = []
        rows = zip(self.files(root), self.read("path", filled), self.boxes(), strict=True)
        for file, text, box in rows:
            items.append(file if box is None else Boxed(file, box))
            ids.append(text if box is None else str(Boxed(text, box)))
        return items, ids


def read_listing(path: str | Path) -> Listing:
    """The rows of a .csv (commas, UTF-8, a header) or .parquet file.

    Raises FileNotFoundError, IsADirectoryError, ImportError without pyarrow for Parquet, and
    ValueError for other kinds of files, damaged ones, a header with a name twice, rows of another
    length than the header, and files without rows.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; give a .csv or .parquet file, or use folder")
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}; give a .csv or .parquet file")
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path} must end in .csv or .parquet, not {path.suffix!r}")
    read = _of_csv if path.suffix.lower() == ".csv" else _of_parquet
    listing = read(path)
    if not listing.columns or not len(listing):
        raise ValueError(f"{path} has no rows; it needs at least one below its header")
    return listing


def _of_csv(path: Path) -> Listing:
    rows: list[list[str]] = []
    lines: list[int] = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = [name.strip() for name in next(reader, [])]
            for row in reader:
                if not row:
                    continue
                if len(row) != len(header):
                    raise ValueError(
                        f"row {len(rows) + 1} (line {reader.line_num}) of {path} has {len(row)} "
                        f"cells, but the header has {len(header)}; quote cells that hold commas"
                    )
                rows.append(row)
                lines.append(reader.line_num)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8 ({error.reason}); save it as UTF-8") from None
    except csv.Error as error:
        raise ValueError(f"{path} is no CSV file behind row {len(rows)} ({error})") from None
    if len(header) == 1 and (";" in header[0] or "\t" in header[0]):
        raise ValueError(
            f"{path} needs commas between its columns, but its header is {header[0]!r}"
        )
    twice = [name for name in header if header.count(name) > 1]
    if twice:
        raise ValueError(f"the header of {path} has {twice[0]!r} twice; rename one of them")
    columns = dict(zip(header, zip(*rows, strict=True), strict=True)) if rows else {}
    return Listing(path, columns, lines)


def _of_parquet(path: Path) -> Listing:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ImportError(
            "reading .parquet needs pyarrow: pip install 'nearkin[tables]', or save it as .csv"
        ) from None
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            # Tables of images often hold the pictures too, which would fill the memory.
            columns = file.read([name for name in names if name in COLUMNS]).to_pydict()
    except pyarrow.ArrowException as error:
        what = " ".join(str(error).split())
        raise ValueError(f"{path} cannot be read as Parquet ({what}); write it anew") from None
    passed = tuple(name for name in names if name not in columns)
    if not columns:
        raise ValueError(f"{path} has no column 'path'; it has {', '.join(passed) or 'none'}")
    return Listing(path, columns, passed_over=passed)


# What a cell may hold. Each raises ValueError without the place, which the listing knows.


def exact(value: Any) -> str:
    """A text or an integer as text, unchanged; nothing as the empty text."""
    if value is None:
        return ""
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, str | int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, float):
        raise ValueError(
            f"{value} is a floating-point number, but texts or integers are wanted (tables make "
            "integers floating where one is missing)"
        )
    raise ValueError(f"expected a text or an integer, got {value!r}")


def filled(value: Any) -> str:
    """As `exact`, but not empty."""
    text = exact(value)
    if not text.strip():
        raise ValueError("the cell is empty; fill it in, or remove the row")
    return text


def flag(value: Any) -> bool:
    """true, 1, yes; false, 0, no or nothing."""
    if isinstance(value, bool):
        return value
    text = exact(value).strip().lower()
    if text not in _TRUE + _FALSE:
        raise ValueError(f"expected true or false, got {value!r}")
    return text in _TRUE


def _number(value: Any) -> float | None:
    if value is None or value == "":
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number) or isinstance(value, bool):
        raise ValueError(f"expected a number of pixels, got {value!r}")
    return number


def _box_of_text(value: Any) -> tuple[int, int, int, int] | None:
    """x0,y0,x1,y1 as a text or as a list of four numbers; None where it is empty."""
    if isinstance(value, str):
        value = [part for part in re.split(r"[,;\s]+", value.strip("()[] ")) if part]
    if value is None or (isinstance(value, list) and not value):
        return None
    if not isinstance(value, list) or len(value) != 4:
        raise ValueError(f"expected four numbers x0,y0,x1,y1, got {value!r}")
    return _box([_number(part) for part in value])


def _box(four: Sequence[float | None]) -> tuple[int, int, int, int] | None:
    if all(side is None for side in four):
        return None
    if any(side is None for side in four):
        raise ValueError(f"a box needs all of {', '.join(_SIDES)}, or none of them")
    x0, y0, x1, y1 = (round(side) for side in four if side is not None)
    if x0 >= x1 or y0 >= y1:
        raise ValueError(
            f"the box {x0},{y0},{x1},{y1} holds no pixel; x0 < x1 and y0 < y1 are needed, in "
            "pixels from the upper left corner"
        )
    return x0, y0, x1, y1
