"""Embeddings and labels as users give them, checked once; what is computed of them is elsewhere."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nearkin.rows import BLOCK, Rows, shape_of

__all__ = ["BLOCK", "Labels", "Rows", "given_labels", "labels_together"]


@dataclass(frozen=True, eq=False)
class Labels:
    """Labels as exact integer codes, in the order in which the classes first appear.

    codes   (N,) int64, indices into `names`; for multi-hot labels the code of the whole set of
            labels
    names   the classes as Python ints, texts or bytes; for multi-hot labels tuples of columns
    hot     (N, L) bool for multi-hot labels, else None
    """

    codes: Tensor
    names: tuple[Any, ...]
    hot: Tensor | None = None

    def __len__(self) -> int:
        return len(self.codes)


def given_labels(labels: Any, length: int, name: str = "labels", rows: str = "z") -> Labels:
    """Labels of `length` rows of one set, checked and coded. See `labels_together`."""
    return labels_together([(labels, length, name, rows)])[0]


def labels_together(given: Iterable[tuple[Any, int, str, str]]) -> list[Labels]:
    """Labels of several sets (labels, length, their name, name of their rows), on one code.

    Labels are integers of any size, bools, texts or bytes in a list, a numpy array, a torch tensor
    or whatever numpy reads (a pandas column); or (N, L) multi-hot, bool or 0/1 integers. They are
    compared as Python values and never become floats. Raises TypeError for other labels and for
    sets of different kinds, ValueError for another number of labels than rows.
    """
    sets = []
    for labels, length, name, rows in given:
        values = _values(labels, name)
        if len(values) != length:
            raise ValueError(
                f"{name} has {len(values)} entries but {rows} has {length} rows; "
                f"give one label a row"
            )
        sets.append((values, name))
    kinds = {_kind(values): name for values, name in sets}
    if len(kinds) > 1:
        said = ", but ".join(f"{name} are {kind}" for kind, name in kinds.items())
        raise TypeError(f"labels must be of one kind to be compared: {said}")
    if isinstance(sets[0][0], np.ndarray):
        return _multi_hot(sets)
    seen: dict[Any, int] = {}
    coded = [[seen.setdefault(value, len(seen)) for value in values] for values, _ in sets]
    return [Labels(torch.tensor(codes, dtype=torch.int64), tuple(seen)) for codes in coded]


def _values(labels: Any, name: str) -> list[Any] | np.ndarray:
    """A list of Python values, or a bool matrix for multi-hot labels."""
    if isinstance(labels, str | bytes) or not hasattr(labels, "__len__"):
        raise TypeError(f"{name} must be a sequence with one label a row, not {labels!r:.60}")
    if isinstance(labels, list | tuple):
        if not any(
            isinstance(label, list | tuple) or getattr(label, "ndim", 0) for label in labels
        ):
            # An array would turn [1, "a"] into texts and large integers into floats.
            return [label.item() if hasattr(label, "item") else label for label in labels]
        labels = [
            label.detach().cpu().numpy() if isinstance(label, Tensor) else label for label in labels
        ]
    array = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    if array.ndim == 1:
        return array.tolist()
    if array.ndim != 2 or array.shape[1] == 1:
        raise ValueError(
            f"{name} must be (N,), one class a row, or (N, L) multi-hot with L > 1; "
            f"their shape is {shape_of(array)}"
        )
    binary = array.dtype.kind == "b" or (array.dtype.kind in "iu" and np.isin(array, (0, 1)).all())
    if not binary:
        raise TypeError(
            f"{name} of shape {shape_of(array)} must be multi-hot: bool, or integers that are 0 "
            f"or 1 (seen: {array.dtype})"
        )
    return array.astype(bool)


def _kind(values: list[Any] | np.ndarray) -> str:
    if isinstance(values, np.ndarray):
        return f"multi-hot with {values.shape[1]} columns"
    # The few types say it where all is well; the loop below finds the value that is wrong.
    found = {_kind_of(each) for each in set(map(type, values))}
    if len(found) == 1 and None not in found:
        return str(found.pop())
    kinds = {}
    for place, value in enumerate(values):
        kind = _kind_of(type(value))
        if kind is None:
            remedy = (
                ". Convert them to integers if they are classes; a quantity has none, and "
                "nk.mutual_information(z, y, 'ksg') takes it as it is"
            )
            raise TypeError(
                f"labels must be integers or texts, but label {place} is {value!r:.60} "
                f"({type(value).__name__}){remedy if isinstance(value, float) else ''}"
            )
        kinds.setdefault(kind, value)
    if len(kinds) > 1:
        said = " and ".join(f"{kind} ({value!r:.30})" for kind, value in kinds.items())
        raise TypeError(f"labels must be all integers or all texts, but there are {said}")
    return next(iter(kinds), "integers")


def _kind_of(each: type) -> str | None:
    return next((kind for kind, types in _KINDS.items() if issubclass(each, types)), None)


_KINDS = {"integers": int, "texts": str, "bytes": bytes}


def _multi_hot(sets: list[tuple[Any, str]]) -> list[Labels]:
    seen: dict[bytes, int] = {}
    names: list[tuple[int, ...]] = []
    coded = []
    for values, _ in sets:
        codes = []
        for row, key in zip(values, np.packbits(values, axis=1), strict=True):
            code = seen.setdefault(key.tobytes(), len(seen))
            if code == len(names):
                names.append(tuple(np.flatnonzero(row).tolist()))
            codes.append(code)
        coded.append(codes)
    return [
        Labels(torch.tensor(codes, dtype=torch.int64), tuple(names), torch.from_numpy(values))
        for codes, (values, _) in zip(coded, sets, strict=True)
    ]
