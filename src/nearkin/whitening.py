"""Standardizing and within-class whitening in closed form: maps fitted on labelled rows of
features. What they are worth is measured elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from nearkin.inputs import Inputs, take

SHRINKAGES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
DEFAULT = 0.3  # the best or near it on deep features of cars, groceries and Caltech-101
LARGEST = 8192  # dimensions; more would need gigabytes for a matrix, and hours
BLOCK = 4096  # rows that are float64 at a time
_ROUNDING = 1e-7  # of float32, relative: what varies less is constant

Score = Callable[[Tensor], tuple[float, ...]]


@dataclass(frozen=True, eq=False)
class Scatter:
    """How labelled rows of D numbers lie, in float64.

    rows      how many, N
    classes   of how many classes, C
    mean      (D,) m, of all rows
    within    (D, D) Σ_i (x_i - m_y)(x_i - m_y)ᵀ, about the means of the classes
    between   (D, D) Σ_c n_c (m_c - m)(m_c - m)ᵀ
    """

    rows: int
    classes: int
    mean: Tensor
    within: Tensor
    between: Tensor

    def __add__(self, more: Scatter) -> Scatter:
        """Of these rows and of those, which are of other classes."""
        rows = self.rows + more.rows
        apart = more.mean - self.mean
        weight = self.rows * more.rows / rows
        return Scatter(
            rows,
            self.classes + more.classes,
            self.mean + apart * (more.rows / rows),
            self.within + more.within,
            self.between + more.between + weight * torch.outer(apart, apart),
        )

    @property
    def covariance(self) -> Tensor:
        """(D, D) Sw = within / (N - C): the pooled within-class covariance."""
        return self.within / max(self.rows - self.classes, 1)

    @cached_property
    def axes(self) -> tuple[Tensor, Tensor]:
        """(D,) variances and (D, D) unit directions in the columns, of the covariance."""
        variance, axes = torch.linalg.eigh(self.covariance)
        return variance.clamp_min(0), axes


@dataclass(frozen=True, eq=False)
class Affine:
    """x -> (x - mean) matrix: (D,) and (D, K) in float64; a matrix (D,) is a diagonal one."""

    mean: Tensor
    matrix: Tensor

    def __call__(self, inputs: Inputs) -> Tensor:
        """(N, D) rows -> (N, K) float32."""
        return torch.cat([self._of(rows).float() for rows in _blocks(inputs)])

    def _of(self, rows: Tensor) -> Tensor:
        centered = rows - self.mean
        return centered * self.matrix if self.matrix.ndim == 1 else centered @ self.matrix


def scatter(inputs: Inputs, label: Tensor) -> Scatter:
    """The scatter of rows (N, D) with labels (N,) int64.

    Two passes in blocks of rows; memory O(D² + C·D). Raises ValueError for rows that are not flat,
    are longer than 8,192, or hold NaN or infinity.
    """
    if len(inputs.shape) != 2 or not 1 <= inputs.shape[1] <= LARGEST:
        raise ValueError(
            f"a covariance needs rows of 1 to {LARGEST} numbers, not inputs of shape "
            f"{tuple(inputs.shape[1:])}"
        )
    _, code, count = torch.unique(label, return_inverse=True, return_counts=True)
    dim = inputs.shape[1]
    sums = torch.zeros(len(count), dim, dtype=torch.float64)
    for own, rows in zip(code.split(BLOCK), _blocks(inputs), strict=True):
        sums.index_add_(0, own, rows)
    if not bool(sums.isfinite().all()):
        raise ValueError("the features hold NaN or infinite numbers; look at their inputs")
    means = sums / count[:, None]  # (C, D)
    mean = sums.sum(0) / len(label)
    within = torch.zeros(dim, dim, dtype=torch.float64)
    for own, rows in zip(code.split(BLOCK), _blocks(inputs), strict=True):
        apart = rows - means[own]
        within.addmm_(apart.T, apart)
    apart = (means - mean) * count.double().sqrt()[:, None]
    return Scatter(len(label), len(count), mean, within, apart.T @ apart)


def standardizing(found: Scatter) -> Affine:
    """(x - mean) / sd in each dimension, by the rows of the scatter; what is constant in them is
    only centered."""
    sd = ((found.within + found.between).diagonal() / found.rows).sqrt()
    varies = sd > _ROUNDING * found.mean.abs()
    return Affine(found.mean, torch.where(varies, sd, 1.0).reciprocal())


def whitening(found: Scatter, shrinkage: float = DEFAULT, dim: int | None = None) -> Affine:
    """Within-class whitening: W = S^(-1/2), symmetric, of S = (1 - s) Sw + s tr(Sw)/D I.

    Differences between rows of one class then weigh the same in all directions. Centered: a shift
    of all features changes nothing. Where no class varies, W is the identity.

    shrinkage   s in 0..1
    dim         fewer dimensions than D: the directions of greatest variance of all rows after the
                whitening (Mikolajczyk & Matas 2007; Radenović et al. 2018), in falling order.
                Ranked by between-class variance alone (LDA), unseen classes are found worse.

    Raises ValueError for a shrinkage or a dim out of range, and for s = 0 where Sw has no inverse.
    """
    if not 0 <= shrinkage <= 1:
        raise ValueError(f"shrinkage must be in 0..1, not {shrinkage}")
    size = len(found.mean)
    if dim is not None and not 1 <= dim <= size:
        raise ValueError(f"whitening keeps 1 to {size} dimensions, not {dim}")
    matrix = _inverse_root(found, shrinkage)
    if dim is not None and dim < size:
        total = matrix @ (found.within + found.between) @ matrix
        matrix = matrix @ torch.linalg.eigh(total)[1].flip(1)[:, :dim]
    return Affine(found.mean, matrix)


def _inverse_root(found: Scatter, shrinkage: float) -> Tensor:
    variance, axes = found.axes
    level = variance.mean()
    if level <= _ROUNDING**2 * found.mean.square().mean():
        return torch.eye(len(variance), dtype=torch.float64)
    shrunk = (1 - shrinkage) * variance + shrinkage * level
    if float(shrunk.min()) <= 1e-12 * float(level):
        raise ValueError(
            "the within-class covariance has no inverse (fewer rows than dimensions, or a constant "
            "dimension); take a shrinkage above 0"
        )
    return (axes * shrunk.rsqrt()) @ axes.T


def choose_shrinkage(found: Scatter, rows: Inputs | None, score: Score | None) -> tuple[float, str]:
    """The shrinkage of SHRINKAGES with the best score of validation rows (V, D) once whitened, and
    "validation"; equal scores go to the larger one.

    Without rows, and where the score raises ValueError for want of something to score: DEFAULT and
    "default".
    """
    if rows is None or score is None:
        return DEFAULT, "default"
    try:
        scores = {s: score(whitening(found, s)(rows)) for s in SHRINKAGES}
    except ValueError:
        return DEFAULT, "default"
    return max(SHRINKAGES, key=lambda s: (scores[s], s)), "validation"


def _blocks(inputs: Inputs) -> Iterator[Tensor]:
    for rows in torch.arange(len(inputs)).split(BLOCK):
        yield take(inputs, rows).double()
