"""Batches of whole pairs: two views, two modalities, two sentences."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from nearkin.sample.base import Batches, Sampler, generator, members_of

Labels = frozenset[int]


def _pairs(pair: np.ndarray) -> list[np.ndarray]:
    """The rows of each pair; raises where each row is one of its own."""
    members = members_of(pair)
    if len(members) == len(pair):
        raise ValueError(
            f"the column 'pair' joins no two rows: its {len(pair)} values all differ; give both "
            "rows of a pair one number"
        )
    return members


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
        members = _pairs(columns["pair"].numpy())
        order = generator(seed, epoch).permutation(len(members))
        size = min(self.pairs, len(members))
        full = len(members) // size * size
        return [
            torch.from_numpy(np.concatenate([members[k] for k in order[i : i + size]]))
            for i in range(0, full, size)
        ]

    def remarks(self, columns: Mapping[str, Tensor]) -> list[str]:
        """How many pairs an epoch covers."""
        count = len(_pairs(columns["pair"].numpy()))
        size = min(self.pairs, count)
        return [
            f"an epoch of {count // size} batches covers {count // size * size} of {count} pairs"
        ]


class DistinctPairs(Sampler):
    """Whole pairs, of which no two in a batch have a label in common (Sohn 2016, N-pair batches).

    So what a loss takes for a negative in the batch is one: infonce across views, for example, sees
    the pairs and not the labels. Columns: pair, and label, one a row; the rows
    of a pair may have several. Pairs come in random order, each once an epoch; one whose label
    stands in the batch already waits for the next. The epoch ends where no full batch is left: of a
    label with more pairs than there are batches, some wait for another epoch.
    """

    name: ClassVar[str] = "distinct_pairs"
    needs: ClassVar[tuple[str, ...]] = ("pair", "label")

    def __init__(self, pairs: int = 64):
        if pairs < 2:
            raise ValueError(f"a batch needs at least 2 pairs, not {pairs}")
        self.pairs = pairs

    def batches(self, columns: Mapping[str, Tensor], seed: int, epoch: int) -> Batches:
        """Batches of exactly `pairs` pairs; as many as can be filled in the order drawn."""
        members = _pairs(columns["pair"].numpy())
        labels = self._labels(members, columns["label"].numpy())
        order = generator(seed, epoch).permutation(len(members)).tolist()
        batches = [
            torch.from_numpy(np.concatenate([members[k] for k in chosen]))
            for chosen in _disjoint(order, labels, self.pairs)
        ]
        if not batches:
            raise ValueError(
                f"no batch of pairs={self.pairs} without a label in common can be filled from the "
                f"{len(members)} pairs of the table; set pairs lower or use paired"
            )
        return batches

    def remarks(self, columns: Mapping[str, Tensor]) -> list[str]:
        """How many pairs the first epoch of seed 0 covers."""
        count, pairs = self.count(columns, 0, 0), len(torch.unique(columns["pair"]))
        return [f"an epoch of {count} batches covers {count * self.pairs} of {pairs} pairs"]

    def _labels(self, members: Sequence[np.ndarray], label: np.ndarray) -> list[Labels]:
        """The labels of each pair; raises where there are fewer than pairs in a batch."""
        if label.ndim > 1:
            raise ValueError(
                f"distinct_pairs needs one label a row, not labels of shape {label.shape}; use "
                "paired"
            )
        present = len(np.unique(label))
        if present < self.pairs:
            raise ValueError(
                f"a batch of {self.pairs} pairs with a label each needs as many labels, but the "
                f"table has {present}; set pairs to {present} or less"
            )
        return [frozenset(label[rows].tolist()) for rows in members]


def _disjoint(order: Sequence[int], labels: Sequence[Labels], size: int) -> Iterator[list[int]]:
    """`size` pairs at a time, in the order given, that have no label in common."""
    # Those that wait stand by their labels: a batch looks at one pair of each, not at all of them.
    waiting: dict[Labels, deque[int]] = {}
    coming = iter(order)
    while True:
        chosen: list[int] = []
        taken: set[int] = set()
        for key in list(waiting):
            if len(chosen) < size and taken.isdisjoint(key):
                chosen.append(waiting[key].popleft())
                taken |= key
                if not waiting[key]:
                    del waiting[key]
        while len(chosen) < size:
            pair = next(coming, None)
            if pair is None:
                return
            if taken.isdisjoint(labels[pair]):
                chosen.append(pair)
                taken |= labels[pair]
            else:
                waiting.setdefault(labels[pair], deque()).append(pair)
        yield chosen
