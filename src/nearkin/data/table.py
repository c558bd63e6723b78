"""The set `table`: images listed in a CSV or Parquet file, with what is known of each. How cells
are read stands in listing."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from nearkin.boxes import Boxed, upright_size
from nearkin.data.base import Splits, Table
from nearkin.data.images import SPLIT_NAMES, ImageFile, find_faults
from nearkin.data.listing import FLAGS, Listing, exact, filled, flag, read_listing
from nearkin.data.splits import hold_out, natural, split_classes

_NUMBERED = {"0": "train", "1": "validation", "2": "test"}


def table(
    path: str | Path,
    root: str | Path | None = None,
    validation: float = 0.2,
    test: float = 0.25,
    seed: int = 0,
    contiguous: bool = True,
    image_size: int = 64,
) -> Splits:
    """Images listed in a CSV or Parquet file, one a row, with label and perhaps split, box, group.

    Source: the file. License: that of its images. A class is a value of `label`. Columns, one entry
    a row; others are passed over:

    path        of the image; relative ones start at the file's folder
    label       texts or integers, compared exactly
    split       optional: train, validation, test (or val, valid; 0, 1, 2). Without validation,
                classes are taken from train; without the column, the classes are split as
                `split_classes` does
    box         optional: x0,y0,x1,y1 in pixels of the upright picture (or four columns of these
                names); only the part inside is the input. Empty: the whole picture
    group       optional: rows of one group never find each other (one burst, one article)
    super_label optional: what the class belongs to; contiguous splits follow it
    is_query, is_gallery   optional, both or none: the roles of test rows (and of validation). A row
                of both never finds itself

    root        where relative paths start, if not in the file's folder
    validation, test, seed, contiguous, image_size  as in `folder`

    Inputs are paths or boxes (nearkin.boxes), ids are paths as written. Every image is decoded once
    before training; what cannot be decoded is left out and stands in `left_out`. Raises
    FileNotFoundError for the file or an image, ValueError for cells that are wrong, with their row
    and column, and where classes are too few.
    """
    listing = read_listing(path)
    every, left_out = _readable(listing, None if root is None else Path(root))
    facts = {"image_size": image_size, "channels": 3}
    if every.classes < 2:
        seen = repr(every.names[int(every.label[0])]) if len(every) else "no readable image"
        raise ValueError(f"{path} holds one class at most, {seen}; retrieval needs several")
    if "split" not in every.columns:
        train, validated, tested = split_classes(
            every, validation=validation, test=test, seed=seed, contiguous=contiguous
        )
    else:
        parts = _by_split(every, path)
        train, validated, tested = parts["train"], parts.get("validation"), parts["test"]
        if validated is None:
            train, validated = hold_out(train, validation, seed=seed, contiguous=contiguous)
        train, tested = train.compact(), tested.compact()
        validated = validated and validated.compact()
    return Splits(
        _in_roles(train, "train", path),
        validated and _in_roles(validated, "validation", path),
        _in_roles(tested, "test", path),
        facts=facts,
        left_out=left_out,
    )


def _readable(listing: Listing, root: Path | None) -> tuple[Table, tuple[tuple[str, str], ...]]:
    """All rows whose image can be decoded, and (path, reason) of the other images."""
    labels = listing.read("label", filled)
    items, ids = listing.images(root)
    files = listing.files(root)
    _refuse_missing(listing, files)
    distinct = dict.fromkeys(files)
    faults = find_faults(listing.path, [ImageFile(file, file, "", None) for file in distinct])
    _refuse_boxes_outside(listing, items, faults)
    names = sorted(set(labels), key=natural)
    code = {name: i for i, name in enumerate(names)}
    every = Table(
        inputs=tuple(items),
        label=torch.tensor([code[name] for name in labels], dtype=torch.int64),
        names=tuple(names),
        ids=tuple(ids),
        columns=_columns(listing),
    )
    good = torch.tensor([file not in faults for file in files])
    return (every if good.all() else every.select(good)), tuple(faults.items())


def _refuse_missing(listing: Listing, files: Sequence[str]) -> None:
    missing = [row for row, file in enumerate(files) if not os.path.isfile(file)]
    if missing:
        more = f", and {len(missing) - 1} more are missing" if len(missing) > 1 else ""
        raise FileNotFoundError(
            f"{listing.where(missing[0], 'path')}: there is no file {files[missing[0]]}{more}; "
            "relative paths start at the folder of the listing, or at root"
        )


def _refuse_boxes_outside(
    listing: Listing, items: Sequence[str | Boxed], faults: dict[str, str]
) -> None:
    boxed = [
        (row, item)
        for row, item in enumerate(items)
        if isinstance(item, Boxed) and item.path not in faults
    ]
    paths = list(dict.fromkeys(item.path for _, item in boxed))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        size = dict(zip(paths, pool.map(upright_size, paths), strict=True))
    column = "box" if "box" in listing else "x0"
    for row, item in boxed:
        try:
            item.within(size[item.path])
        except ValueError as error:
            raise ValueError(f"{listing.where(row, column)}: {error}") from None


def _columns(listing: Listing) -> dict[str, Tensor]:
    given = [name for name in FLAGS if name in listing]
    if len(given) == 1:
        other = next(name for name in FLAGS if name not in given)
        raise ValueError(f"{listing.path} has a column {given[0]!r}, which needs {other!r} too")
    columns = {name: torch.tensor(listing.read(name, flag)) for name in given}
    if "group" in listing:
        columns["group"] = _groups(listing.read("group", exact))
    elif given and bool((columns["is_query"] & columns["is_gallery"]).any()):
        # A row that is searched for among rows with itself must not find itself.
        columns["group"] = torch.arange(len(listing))
    if "super_label" in listing:
        texts = listing.read("super_label", filled)
        code = {text: i for i, text in enumerate(sorted(set(texts), key=natural))}
        columns["super_label"] = torch.tensor([code[text] for text in texts])
    if "split" in listing:
        order = list(_NUMBERED.values())
        columns["split"] = torch.tensor([order.index(s) for s in listing.read("split", _split)])
    return columns


def _groups(texts: Sequence[str]) -> Tensor:
    """A number for each text; a row without one is a group of its own."""
    code: dict[str | int, int] = {}
    return torch.tensor([code.setdefault(t or row, len(code)) for row, t in enumerate(texts)])


def _split(value: object) -> str:
    text = exact(value).strip().lower()
    named = {**SPLIT_NAMES, **_NUMBERED}
    if text not in named:
        raise ValueError(f"expected train, validation or test (or 0, 1, 2), got {value!r}")
    return named[text]


def _by_split(every: Table, path: str | Path) -> dict[str, Table]:
    rows = _without(every, ("split",))
    parts = {}
    for i, name in enumerate(_NUMBERED.values()):
        chosen = every["split"] == i
        if chosen.any():
            parts[name] = rows.select(chosen)
        elif name != "validation":
            raise ValueError(f"column 'split' of {path} has no row of {name}; it needs both")
    if parts["train"].classes < 2:
        only = min(parts["train"].class_names)
        raise ValueError(f"{path} trains on one class only, {only!r}; it needs several")
    return parts


def _in_roles(rows: Table, split: str, path: str | Path) -> Table:
    """The table of a split; without roles where none of its rows has one, or where it trains."""
    if FLAGS[0] not in rows.columns:
        return rows
    query, gallery = (bool(rows[name].any()) for name in FLAGS)
    if query and gallery and split != "train":
        return rows
    if split != "train" and query != gallery:
        has, lacks = ("is_query", "is_gallery") if query else ("is_gallery", "is_query")
        raise ValueError(
            f"the {split} rows of {path} are true in column {has!r}, but none is in {lacks!r}; "
            "retrieval needs rows of both"
        )
    return _without(rows, FLAGS)


def _without(rows: Table, columns: Sequence[str]) -> Table:
    kept = {name: column for name, column in rows.columns.items() if name not in columns}
    return replace(rows, columns=kept)
