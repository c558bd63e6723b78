"""Labels as numbers, for losses and samplers: the same label has the same number everywhere."""

from __future__ import annotations

import difflib
import functools
import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nearkin.information.given import given_labels


@functools.lru_cache(1 << 16)
def hashed(name: Any) -> int:
    """A name's number of 64 bits: two of a million names share one with probability 3e-8."""
    digest = hashlib.blake2b(str(name).encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


class Coder:
    """Labels to numbers, batch by batch: called as `coded` is.

    names         the classes that strings may name, in the order of their numbers. Without them a
                  string's number is its hash, which a restart and other processes agree on
    needs_names   whether strings without names are refused
    """

    def __init__(self, names: Sequence[str] | None = None, needs_names: bool = False):
        self.numbers = None if names is None else {name: i for i, name in enumerate(names)}
        self.needs_names = needs_names

    def __call__(self, labels: Any, what: str, length: int) -> Tensor:
        """(N,) int64 or (N, L) bool; raises as `coded` does, and for strings that are no class."""
        return coded(labels, what, length, self._number)

    def check_kinds(self, labels: Any, others: Any, what: str) -> None:
        """Raise ValueError where one of two sets of labels holds texts and the other numbers; the
        names of classes make both one kind."""
        if self.numbers is not None or not (len(labels) and len(others)):
            return
        kinds = ["texts" if holds_texts(each) else "integers" for each in (labels, others)]
        if kinds[0] != kinds[1]:
            raise ValueError(
                f"labels are {kinds[0]}, but {what} are {kinds[1]}; give both of one kind"
            )

    def _number(self, name: str) -> int:
        if self.numbers is not None:
            if name in self.numbers:
                return self.numbers[name]
            near = difflib.get_close_matches(name, self.numbers, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(
                f"the label {name!r} is none of the {len(self.numbers)} classes given{hint}"
            )
        if self.needs_names:
            raise ValueError(
                "labels are strings, so the classes must be named: classes=[...] says which string "
                "has which number"
            )
        return hashed(name)


def holds_texts(labels: Any) -> bool:
    """Whether labels that were coded are texts; those that are hold nothing else."""
    return not isinstance(labels, Tensor) and isinstance(next(iter(labels), None), str | bytes)


def coded(labels: Any, what: str, length: int, number: Callable[[str], int] = hashed) -> Tensor:
    """Labels as (N,) int64, or multi-hot as (N, L) bool.

    labels   integers of any size, or texts, in a tensor, an array, a list or a pandas column; or
             (N, L) multi-hot, bool or 0/1
    what     their name in messages
    length   how many there must be
    number   what stands for a text

    Integers stand for themselves, those beyond int64 for their hash. Raises ValueError for other
    labels: floats, truth values, other lengths or shapes.
    """
    if isinstance(labels, np.ndarray) and labels.dtype.kind in "biu" and labels.dtype.itemsize < 9:
        # What uint64 holds beyond int64 keeps its differences in the negative half.
        wide = labels.astype(np.int64) if labels.dtype == np.uint64 else labels
        labels = torch.from_numpy(np.ascontiguousarray(wide))
    if isinstance(labels, Tensor):
        return _checked(labels, what, length)
    try:
        found = given_labels(labels, length, what, "the batch")
    except TypeError as error:
        raise ValueError(str(error)) from None
    if found.hot is not None:
        return found.hot
    numbers = [_number(name, what, number) for name in found.names] or [0]
    return torch.tensor(numbers, dtype=torch.int64)[found.codes]


def _number(name: Any, what: str, number: Callable[[str], int]) -> int:
    if isinstance(name, bool):
        raise ValueError(f"{what} must be classes, not truth values; a match bit is no class label")
    if isinstance(name, int):
        return name if -(2**63) <= name < 2**63 else hashed(name)
    return number(name.decode() if isinstance(name, bytes) else name)


def _checked(labels: Tensor, what: str, length: int) -> Tensor:
    """A tensor of labels as int64 or bool; this is all that a step costs where they are tensors."""
    if labels.is_floating_point() or labels.is_complex():
        raise ValueError(
            f"{what} must be integers, strings or multi-hot, not {labels.dtype}; labels are never "
            "floats: convert them with .long()"
        )
    if labels.ndim not in (1, 2) or labels.shape[1:] == (1,):
        instead = f"; give {what}[:, 0]" if labels.ndim == 2 else ""
        raise ValueError(
            f"{what} must be (N,) classes or (N, L) multi-hot, not of shape "
            f"{tuple(labels.shape)}{instead}"
        )
    if len(labels) != length:
        raise ValueError(f"{len(labels)} {what} for {length} rows; give one for each row")
    if labels.ndim == 2:
        if labels.dtype != torch.bool and bool((labels.long() | 1).ne(1).any()):
            raise ValueError(f"multi-hot {what} must hold 0 and 1 only")
        return labels.bool()
    if labels.dtype == torch.bool:
        raise ValueError(f"{what} must be classes, not truth values; a match bit is no class label")
    return labels.long()
