"""Batches of classes that lie near each other by their embeddings; so their negatives are hard.
Where the embeddings come from stands elsewhere."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import ClassVar, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nearkin.core import warn_once
from nearkin.sample.base import Batches, batches_of, generator
from nearkin.sample.classes import OfClasses

_ENTRIES = 1 << 24  # of a block of cosines between classes: 64 MiB of float32
_ROWS = 1 << 16  # that are scaled at a time


class Neighbors(NamedTuple):
    """The nearest classes of each.

    column   (C, K) int64, nearest first
    cosine   (C, K) float32 of the means of their unit rows
    """

    column: Tensor
    cosine: Tensor


def neighbors(label: Tensor, embedding: Tensor, count: int) -> Neighbors:
    """The `count` nearest classes of each class; classes are numbered in the order of their labels.

    Memory O(C·count + C·D) and a block of 64 MiB.
    """
    means = F.normalize(class_means(label, embedding), dim=1)
    present = len(means)
    column = torch.empty(present, count, dtype=torch.int64)
    cosine = torch.empty(present, count)
    rows = max(_ENTRIES // present, 1)
    for start in range(0, present, rows):
        part = slice(start, start + rows)
        block = means[part] @ means.T
        block.scatter_(1, torch.arange(present)[part, None], -torch.inf)
        cosine[part], column[part] = block.topk(count, 1)
    return Neighbors(column, cosine)


def class_means(label: Tensor, embedding: Tensor) -> Tensor:
    """(C, D) float32 means of the unit rows of (N, D), in the order of the labels (N,) that are
    present."""
    present, place = torch.unique(label, return_inverse=True)
    sums = torch.zeros(len(present), embedding.shape[1])
    for rows, at in zip(embedding.split(_ROWS), place.split(_ROWS), strict=True):
        sums.index_add_(0, at, F.normalize(rows.float(), dim=1))
    return sums / torch.bincount(place)[:, None]


def _begins(present: int, count: int, seed: int, epoch: int) -> Iterator[int]:
    """The `count` classes of this epoch with which batches begin, where every epoch has as many."""
    turn, order = -1, np.empty(0, dtype=np.int64)
    for place in range(epoch * count, (epoch + 1) * count):
        if place // present != turn:
            turn = place // present
            order = generator(seed, turn, 1).permutation(present)
        yield int(order[place % present])


class OfNearClasses(OfClasses):
    """What samplers by embeddings have in common: the column, and where a batch begins.

    The classes that batches begin with take turns, from epoch to epoch too: each has been the first
    before any is again.
    """

    needs: ClassVar[tuple[str, ...]] = ("label", "embedding")
    vectors: ClassVar[tuple[str, ...]] = ("embedding",)
    first: int = 1  # classes of a batch that are drawn at random

    def batches(self, columns: Mapping[str, Tensor], seed: int, epoch: int) -> Batches:
        """max(N / (P·K), C / P) batches of exactly P·K rows."""
        label, embedding = columns["label"], columns["embedding"]
        members = self.members(label.numpy())
        if not bool(embedding.any()):
            warn_once(
                "all embeddings are zeros, so no class is near another and batches are chosen by "
                "the order of the labels; give the embeddings of an encoder"
            )
        near = neighbors(label, embedding, self.classes - 1)
        count = self.count_of(len(label), len(members))
        begins = _begins(len(members), count * self.first, seed, epoch)
        choices = (self.choice([*islice(begins, self.first)], near) for _ in range(count))
        return batches_of(members, choices, self.per_class, generator(seed, epoch))

    def choice(self, drawn: list[int], near: Neighbors) -> list[int]:
        """The classes of the batch that begins with those drawn."""
        raise TypeError(f"{type(self).__name__} says no choice; it must return classes")

    def remarks(self, columns: Mapping[str, Tensor]) -> list[str]:
        """How soon every class is in a batch for certain, and how many classes repeat rows."""
        label = columns["label"].numpy()
        members = self.members(label)
        count = self.count_of(len(label), len(members))
        epochs = -(-len(members) // (count * self.first))
        said = (
            f"each of the {count} batches of an epoch begins with {self.first} of the "
            f"{len(members)} classes in turn; all of them have been visited after "
            f"{'1 epoch' if epochs == 1 else f'{epochs} epochs'}"
        )
        return [said, *self.repeats(members)]


class NearestClasses(OfNearClasses):
    """Classes drawn at random, each with its nearest classes (Ge et al. 2018, anchor-neighbor
    sampling).

    classes     P, of a batch
    per_class   K rows of each; classes with fewer repeat rows
    anchors     of the classes are drawn, and each brings its P / anchors - 1 nearest

    Columns: label, and embedding (N, D). Near is the cosine of the means of the unit rows of two
    classes; the paper takes 2 - 2 c_p·c_q, the mean squared distance of their rows, by which
    classes that are spread are far from all. The classes drawn take turns, from epoch to epoch too.
    """

    name: ClassVar[str] = "nearest_classes"

    def __init__(self, classes: int = 32, per_class: int = 4, anchors: int = 1):
        super().__init__(classes, per_class)
        if anchors < 1 or classes % anchors:
            raise ValueError(
                f"nearest_classes gives each anchor as many neighbors, so classes must be a "
                f"multiple of anchors, not {classes} and {anchors}"
            )
        self.first = anchors

    def choice(self, drawn: list[int], near: Neighbors) -> list[int]:
        """Each class drawn and its nearest ones that are not in the batch."""
        chosen: list[int] = []
        for k in drawn:
            fresh = [j for j in (k, *near.column[k].tolist()) if j not in chosen]
            chosen += fresh[: self.classes // self.first]
        return chosen


class HardClasses(OfNearClasses):
    """A class drawn at random, and one by one the class nearest to any that was chosen (Sohn 2016,
    hard negative class mining).

    classes     P, of a batch
    per_class   K rows of each; classes with fewer repeat rows

    Columns: label, and embedding (N, D). The paper adds the class that violates the triplet
    constraint most with respect to those chosen: here the one whose mean of unit rows has the
    largest cosine with the mean of one of them. The classes drawn take turns, from epoch to epoch
    too.
    """

    name: ClassVar[str] = "hard_classes"

    def __init__(self, classes: int = 32, per_class: int = 4):
        super().__init__(classes, per_class)

    def choice(self, drawn: list[int], near: Neighbors) -> list[int]:
        """The class drawn and those that join it, in order."""
        chosen, nearest = list(drawn), []

        def look(k: int, after: int = 0) -> None:
            """Remember the nearest class of k from the place `after` on that is not chosen."""
            for i in range(after, near.column.shape[1]):
                if (j := int(near.column[k, i])) not in chosen:
                    heapq.heappush(nearest, (-float(near.cosine[k, i]), j, k, i))
                    return

        look(drawn[0])
        while len(chosen) < self.classes:
            _, j, k, i = heapq.heappop(nearest)
            if j not in chosen:
                chosen.append(j)
                look(j)
            look(k, i)
        return chosen
