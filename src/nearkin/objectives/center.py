"""Center: rows are drawn to running centers of their classes, and a classifier spreads the
classes."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from nearkin.compare import Classifier, bounded
from nearkin.core import Batch, Terms
from nearkin.losses.classification import cross_entropy
from nearkin.objectives.base import Objective, pull_and_push
from nearkin.reduce import positive


class Center(Objective):
    """Center loss beside cross-entropy (Wen et al. 2016, eq. 5; in two parts as in Boudiaf et al.
    2020, table 2).

    tightness = weight · ½ Σ_i |z_i - c_{y_i}|²          contrast = -mean_i log softmax_{y_i}(l_i)

    weight   of the tightness, a sum over rows beside a mean, as the table has it. Wen et al. sum
             both, so that their 0.003 is weight = 0.003 / batch here
    rate     how far centers move in a batch: c_k ← c_k - rate Σ_{i in k} (c_k - z_i) / (1 + n_k)
             (eq. 4)

    Distances are euclidean, of the rows as they are. The centers are constants for the gradient and
    move after the encoder's update, while training; a class starts at the mean of its rows in the
    first batch that holds it. l is a linear classifier with bias, both started at 0. Memory O(N·D)
    beside the classifier's.

    Raises ValueError for settings out of range, multi-label rows and labels without a class.
    """

    name: ClassVar[str] = "center"

    def __init__(self, classes: int, dim: int, weight: float = 0.003, rate: float = 0.5):
        super().__init__()
        positive(weight=weight)
        if not 0 < rate <= 1:
            raise ValueError(f"rate must be above 0 and at most 1, not {rate}")
        self.weight, self.rate = weight, rate
        self.classifier = Classifier(classes, dim, closeness="inner")
        self.register_buffer("centers", torch.zeros(classes, dim))
        self.register_buffer("started", torch.zeros(classes, dtype=torch.bool))
        self.centers: Tensor
        self.started: Tensor

    def forward(self, z: Tensor, batch: Batch) -> Terms:
        """The classifier's cross-entropy and the distances to the centers."""
        if batch["label"].ndim > 1:
            raise ValueError(
                "a center needs rows of one class each; use a loss over pairs for multi-label rows"
            )
        softmax = cross_entropy(self.classifier(z, batch))
        rows, label = bounded(z), batch["label"]
        _, place, _, centers = self._before(rows.detach(), label)
        away = (rows - centers[place]).square().sum() / 2
        return Terms(tightness=self.weight * away, contrast=softmax.tightness + softmax.contrast)

    @torch.no_grad()
    def after(self, z: Tensor, batch: Batch) -> None:
        """Move the centers of the classes in the batch, while training."""
        if not self.training:
            return
        rows = bounded(z)
        present, place, count, centers = self._before(rows, batch["label"])
        gap = torch.zeros_like(centers).index_add_(0, place, centers[place] - rows)
        moved = centers - self.rate * gap / (1 + count)[:, None]
        self.centers[present] = moved.to(self.centers.dtype)
        self.started[present] = True

    @torch.no_grad()
    def diagnosis(self, z: Tensor, batch: Batch) -> dict[str, float]:
        """pull and push of both comparisons: with the classifier by inner products, with the own
        center by 1 - d²/2."""
        c = self.classifier(z, batch)
        said = pull_and_push(
            c.similarity,
            c.same,
            c.different,
            lambda leaf: cross_entropy(replace(c, given=leaf)).total,
        )
        # The tightness is weight · Σ (1 - s): every row is drawn by the weight.
        return {**said, "pull": said["pull"] + self.weight * len(z)}

    def _before(self, rows: Tensor, label: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The classes in the batch: their numbers (P,), each row's place among them (N,), how many
        rows each has (P,), their centers (P, D) before this batch moves them."""
        present, place, count = torch.unique(label, return_inverse=True, return_counts=True)
        kept = self.centers[present].to(rows.dtype)
        mean = torch.zeros_like(kept).index_add_(0, place, rows) / count[:, None]
        return present, place, count, torch.where(self.started[present, None], kept, mean)
