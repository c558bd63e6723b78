"""Label information by class means alone: the probe where classes are very many, and what a run
can afford while it trains. The careful probe stands in probe."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nearkin.information.base import Information
from nearkin.information.classified import bound_of_labels, classified
from nearkin.information.given import Rows

TUNING_ROWS = 1_024  # rows that sharpness and share are fitted on
_COARSE = range(-1, 13)  # log of the sharpness, in units of the mean squared distance
_ENTRIES = 1 << 22  # rows x classes held at a time
_NO_DISTANCE = 1e-28  # squared, of entries up to 1: what rounding leaves of rows that are alike
_MANY = 1 << 26  # rows x classes above which float32 takes half the time


def class_mean_information(z: Any, labels: Any, seed: int = 0) -> Information:
    """A lower bound of I(Z;Y) in about ten milliseconds: the probe is a softmax over squared
    distances to class means.

    z        (N, D) numpy or torch, any float dtype
    labels   (N,) integers, texts or categories
    seed     of the halves: the probe's sharpness and its share of the prior are fitted on one half
             of the rows and used on the other

    Each row is taken out of its own mean, so that no row is scored by a probe that has seen it
    (Boudiaf et al. 2020, Lemma 2). `label_information` fits a better probe below 1,000 classes, at
    ten to a hundred times the cost; above, it is this one. Rows of classes with a single row are
    left out. Time O(N·C·D).

    Raises ValueError for wrong shapes, NaN, multi-hot labels, fewer than two classes of two rows;
    TypeError for other dtypes.
    """
    rows, used, y = classified(z, labels)
    log_q = class_mean_log_likelihoods(rows, used, y, seed)
    return bound_of_labels(log_q, y, left_out=len(rows) - len(used))


def class_mean_log_likelihoods(
    rows: Rows, used: np.ndarray, y: np.ndarray, seed: int
) -> np.ndarray:
    """(M,) log q(y|z) in nats of the rows at the places `used` (M,), of the classes y (M,):

    q = (1 - share) · softmax(log prior - sharpness · |z - mean of c without the row|²)
        + share · prior

    Both numbers are fitted on up to 1,024 rows of one half and score the other half, both ways.
    Time M x C x D; above 2²⁶ pairs of a row and a class the products are in float32.
    """
    label = torch.from_numpy(y)
    means = _Means(rows, torch.from_numpy(used), label)
    log_prior = (means.sizes / len(label)).log()
    generator = torch.Generator().manual_seed(seed)
    halves = torch.randperm(len(label), generator=generator).tensor_split(2)
    log_q = torch.empty(len(label), dtype=torch.float64)
    at_once = max(1, _ENTRIES // len(log_prior))
    for fitted, scored in (halves, halves[::-1]):
        tuning = fitted[: min(TUNING_ROWS, 4 * at_once)]
        sharpness, share = _calibrated(means.squared(tuning).float(), label[tuning], log_prior)
        for at in scored.split(at_once):
            own = label[at]
            chance = _chance(means.squared(at), own, log_prior, sharpness).double()
            log_q[at] = torch.log((1 - share) * chance + share * log_prior[own].exp())
    return log_q.numpy()


class _Means:
    """Squared distances to class means. index (M,) places of rows, label (M,) their classes."""

    def __init__(self, rows: Rows, index: Tensor, label: Tensor):
        self.rows, self.index, self.label = rows, index, label
        self.scale = rows.largest or 1.0  # squares of large entries would overflow
        self.sizes = torch.bincount(label).double()
        self.centers = torch.zeros(len(self.sizes), rows.dim, dtype=torch.float64)
        for part, classes in zip(index.split(2048), label.split(2048), strict=True):
            self.centers.index_add_(0, classes, rows.block(part).cpu() / self.scale)
        self.centers /= self.sizes[:, None]
        # Distances do not see a common shift; without it their expansion cancels.
        self.middle = self.centers.mean(0)
        self.centers -= self.middle
        many = len(index) * len(self.sizes) > _MANY
        self.dtype = torch.float32 if many else torch.float64
        self.turned = self.centers.T.to(self.dtype)
        self.squares = self.centers.square().sum(1).to(self.dtype)

    def squared(self, at: Tensor) -> Tensor:
        """(B, C): of the rows at `at` (B,) of the index; to the own mean without the row."""
        x = self.rows.block(self.index[at]).cpu() / self.scale - self.middle
        squared = torch.addmm(self.squares, x.to(self.dtype), self.turned, alpha=-2)
        squared += x.square().sum(1)[:, None]
        own, n = self.label[at], self.sizes[self.label[at]]
        alone = (x - self.centers[own]).square().sum(1) * (n / (n - 1)) ** 2
        squared[torch.arange(len(at)), own] = alone.to(self.dtype)
        return squared.clamp_min_(0)


def _chance(squared: Tensor, label: Tensor, log_prior: Tensor, sharpness: float) -> Tensor:
    """(B,) what the softmax alone gives to the own class, from distances (B, C)."""
    logits = torch.add(log_prior.to(squared.dtype), squared, alpha=-sharpness)
    return (logits.gather(1, label[:, None])[:, 0] - logits.logsumexp(1)).exp()


def _calibrated(squared: Tensor, label: Tensor, log_prior: Tensor) -> tuple[float, float]:
    """Sharpness and share of about the least cross-entropy on these rows, by eighteen looks."""
    typical = max(float(squared.mean()), _NO_DISTANCE)
    looked: dict[float, tuple[float, float]] = {}
    chances_of_prior = log_prior[label].exp().numpy()

    def look(log_sharpness: float) -> None:
        """The share that goes best with this sharpness, and its cross-entropy."""
        sharpness = math.exp(log_sharpness) / typical
        chance = _chance(squared, label, log_prior, sharpness).double().numpy()
        share = _share(chance, chances_of_prior)
        loss = -float(np.log((1 - share) * chance + share * chances_of_prior).mean())
        looked[log_sharpness] = (loss, share)

    for each in _COARSE:
        look(float(each))
    for step in (0.5, 0.25):
        best = min(looked, key=lambda each: looked[each][0])
        for each in (best - step, best + step):
            look(each)
    best = min(looked, key=lambda each: looked[each][0])
    return math.exp(best) / typical, looked[best][1]


def _share(chance: np.ndarray, prior: np.ndarray) -> float:
    """The share of the prior that fits chances (N,) best, by expectation and maximization."""
    # Rows without an error do not show that there is none: at least one in n + 2 (Laplace), which
    # bounds what a single row can cost.
    floor = 1 / (len(chance) + 2)
    share = 0.5
    for _ in range(20):
        by_prior = share * prior
        share = max(floor, float((by_prior / (by_prior + (1 - share) * chance)).mean()))
    return min(share, 1 - 1e-6)
