"""What every sampler is, and how rows take turns. Which rows stand in a batch is said beside."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

Batches = list[Tensor]


class Sampler:
    """Chooses the rows of each batch of an epoch, from the columns of the table alone.

    `needs` names the columns that are read; `vectors` those among them that hold rows of floating
    numbers (N, D), where the others hold one integer a row.
    """

    needs: ClassVar[tuple[str, ...]] = ("label",)
    vectors: ClassVar[tuple[str, ...]] = ()

    def batches(self, columns: Mapping[str, Tensor], seed: int, epoch: int) -> Batches:
        """The epoch's batches as (rows,) int64 indices; the same arguments give the same
        batches."""
        raise TypeError(
            f"{type(self).__name__} says no batches; a Sampler must return index tensors"
        )

    def count(self, columns: Mapping[str, Tensor], seed: int, epoch: int) -> int:
        """How many batches the epoch has; `columns` need not hold `vectors`."""
        return len(self.batches(columns, seed, epoch))

    def remarks(self, columns: Mapping[str, Tensor]) -> list[str]:
        """What a person should know about these batches on this table, one sentence each; `columns`
        need not hold `vectors`."""
        return []


def generator(seed: int, epoch: int, *more: int) -> np.random.Generator:
    """The random numbers of an epoch."""
    return np.random.default_rng([seed, epoch, *more])


def members_of(label: np.ndarray) -> list[np.ndarray]:
    """The rows of each class, classes in the order of their labels."""
    if label.ndim > 1:
        raise ValueError(
            f"this sampler needs one label a row, not labels of shape {label.shape}; use uniform"
        )
    order = np.argsort(label, kind="stable")
    borders = np.flatnonzero(np.diff(label[order])) + 1
    return np.split(order, borders)


class Turns:
    """0..present-1 in turn: each is taken once a round, in an order that is drawn for the round.

    None is taken twice at once unless there are too few, and then all are taken as often.
    """

    def __init__(self, present: int, random: np.random.Generator):
        self.present, self.random = present, random
        self.waiting: list[int] = []

    def take(self, count: int) -> list[int]:
        """The next ones."""
        whole, rest = divmod(count, self.present)
        while len(self.waiting) < rest:
            fresh = self.random.permutation(self.present).tolist()
            # What is left over from the last round goes first, so it must come last in this one.
            self.waiting += sorted(fresh, key=self.waiting.__contains__)
        chosen, self.waiting = self.waiting[:rest], self.waiting[rest:]
        return [*range(self.present)] * whole + chosen


def batches_of(
    members: Sequence[np.ndarray],
    choices: Iterable[Sequence[int]],
    per_class: int,
    random: np.random.Generator,
) -> Batches:
    """A batch for each choice of classes: `per_class` rows of each, which take turns."""
    turns = [Turns(len(rows), random) for rows in members]
    return [
        torch.from_numpy(np.concatenate([members[k][turns[k].take(per_class)] for k in chosen]))
        for chosen in choices
    ]
