"""Batches of a few classes with some rows each, chosen by labels alone; by embeddings: beside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from nearkin.sample.base import Batches, Sampler, Turns, batches_of, generator, members_of


class OfClasses(Sampler):
    """What samplers of P classes by K rows have in common: sizes, their checks, what they cover."""

    def __init__(self, classes: int, per_class: int):
        if classes < 1 or per_class < 1:
            raise ValueError(
                f"{self._name()} needs classes and per_class >= 1, not {classes}, {per_class}"
            )
        self.classes, self.per_class = classes, per_class

    def count(self, columns: Mapping[str, Tensor], seed: int, epoch: int) -> int:
        """max(N / (P·K), C / P)."""
        label = columns["label"]
        return self.count_of(len(label), len(torch.unique(label)))

    def count_of(self, rows: int, present: int) -> int:
        """How many batches: as many as the rows fill, and enough for every class."""
        return max(rows // (self.classes * self.per_class), -(-present // self.classes))

    def members(self, label: np.ndarray) -> list[np.ndarray]:
        """The rows of each class; raises ValueError where there are fewer classes than in a
        batch."""
        members = members_of(label)
        if len(members) < self.classes:
            raise ValueError(
                f"a {self._name()} batch of {self.classes} classes needs as many, but the table "
                f"has {len(members)}; set classes to {len(members)} or less"
            )
        return members

    def repeats(self, members: Sequence[np.ndarray]) -> list[str]:
        """How many classes repeat rows, if any."""
        small = sum(len(rows) < self.per_class for rows in members)
        if not small:
            return []
        return [
            f"{small} of {len(members)} classes have fewer than {self.per_class} rows "
            "and repeat them within a batch"
        ]

    def _name(self) -> str:
        return str(getattr(self, "name", type(self).__name__))


class Balanced(OfClasses):
    """P x K batches: `classes` classes with `per_class` rows each.

    Every class is visited in every epoch; the rows of a class take turns, so that large classes are
    covered in time. Classes with fewer rows than `per_class` repeat rows.
    """

    name: ClassVar[str] = "balanced"

    def __init__(self, classes: int = 32, per_class: int = 4):
        super().__init__(classes, per_class)

    def batches(self, columns: Mapping[str, Tensor], seed: int, epoch: int) -> Batches:
        """max(N / (P·K), C / P) batches of exactly P·K rows."""
        label = columns["label"].numpy()
        members, random = self.members(label), generator(seed, epoch)
        turns, count = Turns(len(members), random), self.count_of(len(label), len(members))
        choices = (turns.take(self.classes) for _ in range(count))
        return batches_of(members, choices, self.per_class, random)

    def remarks(self, columns: Mapping[str, Tensor]) -> list[str]:
        """How many rows an epoch covers, and how many classes repeat rows."""
        return [covered(self, columns), *self.repeats(self.members(columns["label"].numpy()))]


class Hierarchical(OfClasses):
    """Each batch takes its classes from a few super-classes, so that its negatives are hard (Cakir
    et al. 2019, the hard batches of FastAP).

    classes         P, of a batch
    per_class       K rows of each; classes with fewer repeat rows
    super_classes   S: so many stand in a batch, with P / S classes each; 2 in the paper, where each
                    is half the batch

    Columns: label, and super_label, which is one for all rows of a class. A batch takes the
    super-classes of which the smallest share has been visited in this epoch, drawn at random where
    several are equal, so that small and large ones advance together; a super-class with fewer than
    P / S classes gives all of them, and one more super-class fills the batch. The classes of a
    super-class take turns, and so do the rows of a class.
    """

    name: ClassVar[str] = "hierarchical"
    needs: ClassVar[tuple[str, ...]] = ("label", "super_label")

    def __init__(self, classes: int = 32, per_class: int = 4, super_classes: int = 2):
        super().__init__(classes, per_class)
        if super_classes < 1 or classes % super_classes:
            raise ValueError(
                f"hierarchical takes as many classes from each super-class, so classes must be a "
                f"multiple of super_classes, not {classes} and {super_classes}"
            )
        self.super_classes = super_classes

    def batches(self, columns: Mapping[str, Tensor], seed: int, epoch: int) -> Batches:
        """max(N / (P·K), C / P) batches of exactly P·K rows."""
        label = columns["label"].numpy()
        members, random = self.members(label), generator(seed, epoch)
        families = self._families(members, columns["super_label"].numpy())
        turns = [Turns(len(family), random) for family in families]
        visited = np.zeros(len(families))
        choices = (
            self._choice(families, turns, visited, random)
            for _ in range(self.count_of(len(label), len(members)))
        )
        return batches_of(members, choices, self.per_class, random)

    def remarks(self, columns: Mapping[str, Tensor]) -> list[str]:
        """How many rows an epoch covers, which super-classes are small, which classes repeat
        rows."""
        members = self.members(columns["label"].numpy())
        families = self._families(members, columns["super_label"].numpy())
        said, share = [covered(self, columns)], self.classes // self.super_classes
        small = sum(len(family) < share for family in families)
        if small:
            said.append(
                f"{small} of {len(families)} super-classes have fewer than {share} classes; more "
                f"than {self.super_classes} of them fill a batch that such a one stands in"
            )
        return said + self.repeats(members)

    def _choice(
        self,
        families: Sequence[np.ndarray],
        turns: Sequence[Turns],
        visited: np.ndarray,
        random: np.random.Generator,
    ) -> list[int]:
        """The classes of a batch; the share that was `visited` of each super-class grows in
        place."""
        share, chosen = self.classes // self.super_classes, []
        for k in np.lexsort((random.random(len(families)), visited)):
            take = min(share, len(families[k]), self.classes - len(chosen))
            chosen += families[k][turns[k].take(take)].tolist()
            visited[k] += take / len(families[k])
            if len(chosen) == self.classes:
                break
        return chosen

    def _families(self, members: Sequence[np.ndarray], above: np.ndarray) -> list[np.ndarray]:
        """The classes of each super-class."""
        for rows in members:
            if (above[rows] != above[rows[0]]).any():
                seen = sorted(set(above[rows].tolist()))
                raise ValueError(
                    f"hierarchical needs one super_label for all rows of a class, but the class of "
                    f"row {rows[0]} has {seen[0]} and {seen[1]}"
                )
        families = members_of(np.array([above[rows[0]] for rows in members]))
        share = self.classes // self.super_classes
        most = sum(min(len(family), share) for family in families)
        if len(families) < self.super_classes or most < self.classes:
            raise ValueError(
                f"a hierarchical batch takes {share} classes from each of {self.super_classes} "
                f"super-classes, but the table has {len(families)}, which give {most} classes in "
                "this way; set classes or super_classes lower"
            )
        return families


def covered(sampler: Sampler, columns: Mapping[str, Tensor]) -> str:
    """How many rows the first epoch of seed 0 covers, as a sentence."""
    first = sampler.batches(columns, 0, 0)
    seen = len(torch.cat(first).unique()) if first else 0
    return f"an epoch of {len(first)} batches covers {seen} of {len(columns['label'])} rows"
