"""Batch samplers over the columns of a table; functions of (seed, epoch). They know nothing of
processes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

Batches = list[Tensor]


class Sampler:
    """Chooses the rows of each batch of an epoch, from the columns of the table alone.

    `needs` names the columns that are read.
    """

    needs: ClassVar[tuple[str, ...]] = ("label",)

    def batches(self, columns: Mapping[str, Tensor], seed: int, epoch: int) -> Batches:
        """The epoch's batches as (rows,) int64 indices; the same arguments give the same
        batches."""
        raise TypeError(
            f"{type(self).__name__} says no batches; a Sampler must return index tensors"
        )

    def remarks(self, columns: Mapping[str, Tensor]) -> list[str]:
        """What a person should know about these batches on this table, one sentence each."""
        return []


class Uniform(Sampler):
    """Rows at random without replacement; the incomplete last batch is dropped (the paper's)."""

    name: ClassVar[str] = "uniform"

    def __init__(self, batch: int = 128):
        if batch < 2:
            raise ValueError(f"a batch needs at least 2 rows, not {batch}")
        self.batch = batch

    def batches(self, columns: Mapping[str, Tensor], seed: int, epoch: int) -> Batches:
        """floor(N / batch) batches; a table smaller than one batch is one batch."""
        rows = len(columns["label"])
        order = torch.from_numpy(_generator(seed, epoch).permutation(rows))
        if rows < self.batch:
            return [order]
        return list(order[: rows // self.batch * self.batch].split(self.batch))

    def remarks(self, columns: Mapping[str, Tensor]) -> list[str]:
        """How many rows an epoch covers."""
        rows = len(columns["label"])
        if rows < self.batch:
            return [f"the table has {rows} rows, so each batch holds {rows} and not {self.batch}"]
        count = rows // self.batch
        return [f"an epoch of {count} batches covers {count * self.batch} of {rows} rows"]


class Balanced(Sampler):
    """P x K batches: `classes` classes with `per_class` rows each.

    Every class is visited in every epoch; the rows of a class take turns, so that large classes are
    covered in time. Classes with fewer rows than `per_class` repeat rows.
    """

    name: ClassVar[str] = "balanced"

    def __init__(self, classes: int = 32, per_class: int = 4):
        if classes < 1 or per_class < 1:
            raise ValueError(
                f"balanced needs classes and per_class >= 1, not {classes}, {per_class}"
            )
        self.classes, self.per_class = classes, per_class

    def batches(self, columns: Mapping[str, Tensor], seed: int, epoch: int) -> Batches:
        """max(N / (P·K), C / P) batches of exactly P·K rows."""
        label = columns["label"].numpy()
        members = _members(label)
        self._check(len(members))
        random = _generator(seed, epoch)
        turns = [_rounds(len(rows), self.per_class, random) for rows in members]
        classes = _rounds(len(members), self.classes, random)
        return [
            torch.from_numpy(np.concatenate([members[k][next(turns[k])] for k in chosen]))
            for chosen in islice(classes, self._count(len(label), len(members)))
        ]

    def remarks(self, columns: Mapping[str, Tensor]) -> list[str]:
        """How many rows an epoch covers, and how many classes repeat rows."""
        label = columns["label"].numpy()
        sizes = np.array([len(rows) for rows in _members(label)])
        self._check(len(sizes))
        first = self.batches(columns, 0, 0)
        covered = len(torch.cat(first).unique())
        said = [f"an epoch of {len(first)} batches covers {covered} of {len(label)} rows"]
        small = int((sizes < self.per_class).sum())
        if small:
            said.append(
                f"{small} of {len(sizes)} classes have fewer than {self.per_class} rows "
                "and repeat them within a batch"
            )
        return said

    def _check(self, present: int) -> None:
        if present < self.classes:
            raise ValueError(
                f"a balanced batch of {self.classes} classes needs as many, but the table has "
                f"{present}; set classes to {present} or less"
            )

    def _count(self, rows: int, present: int) -> int:
        return max(rows // (self.classes * self.per_class), -(-present // self.classes))


class Paired(Sampler):
    """Whole pairs at random without replacement: all rows of a chosen `pair` stand in one batch."""

    name: ClassVar[str] = "paired"
    needs: ClassVar[tuple[str, ...]] = ("pair",)

    def __init__(self, pairs: int = 64):
        if pairs < 2:
            raise ValueError(f"a batch needs at least 2 pairs, not {pairs}")
        self.pairs = pairs

    def batches(self, columns: Mapping[str, Tensor], seed: int, epoch: int) -> Batches:
        """floor(pairs of the table / pairs) batches; fewer pairs than asked for are one batch."""
        members = _members(columns["pair"].numpy())
        order = _generator(seed, epoch).permutation(len(members))
        size = min(self.pairs, len(members))
        full = len(members) // size * size
        return [
            torch.from_numpy(np.concatenate([members[k] for k in order[i : i + size]]))
            for i in range(0, full, size)
        ]

    def remarks(self, columns: Mapping[str, Tensor]) -> list[str]:
        """How many pairs an epoch covers."""
        count = len(torch.unique(columns["pair"]))
        size = min(self.pairs, count)
        return [
            f"an epoch of {count // size} batches covers {count // size * size} of {count} pairs"
        ]


def _generator(seed: int, epoch: int) -> np.random.Generator:
    return np.random.default_rng([seed, epoch])


def _members(label: np.ndarray) -> list[np.ndarray]:
    """The rows of each class, classes in the order of their labels."""
    if label.ndim > 1:
        raise ValueError(
            f"this sampler needs one label a row, not labels of shape {label.shape}; use uniform"
        )
    order = np.argsort(label, kind="stable")
    borders = np.flatnonzero(np.diff(label[order])) + 1
    return np.split(order, borders)


def _rounds(present: int, take: int, random: np.random.Generator) -> Iterator[list[int]]:
    """Without end: `take` of 0..present-1, each visited once a round.

    None stands twice in one choice unless there are too few, and then all stand there as often.
    """
    rounds, rest = divmod(take, present)
    waiting: list[int] = []
    while True:
        while len(waiting) < rest:
            fresh = random.permutation(present).tolist()
            # What is left over from the last round goes first, so it must come last in this one.
            waiting += sorted(fresh, key=waiting.__contains__)
        chosen, waiting = waiting[:rest], waiting[rest:]
        yield [*range(present)] * rounds + chosen
