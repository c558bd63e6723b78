"""Mutual information of jointly normal numbers, by their canonical correlations."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nearkin.information.base import Information
from nearkin.information.samples import Samples


def cca(s: Samples, *, corrected: bool = True) -> Information:
    """Information of the canonical correlations, exact for jointly normal data (Kay 1992;
    Brillinger 2004).

    I = -(1/2) Σ_k log(1 - ρ_k²)

    What is not linear is not seen, so that of other data it is no bound. Uncorrected it is too
    large by about Dx·Dy/(2N).

    corrected   subtract that bias, exact for normal data by the mean of the log of a Wishart
                determinant

    Raises ValueError for N <= Dx + Dy + 1, and where a column is a combination of others of both
    sides: the information is then infinite.
    """
    x, y = s.numbers("cca")
    count, dims = len(x), (x.shape[1], y.shape[1])
    if count <= sum(dims) + 1:
        raise ValueError(
            f"canonical correlations of {dims[0]} and {dims[1]} columns need more than "
            f"{sum(dims) + 1} rows, not {count}; leave columns out"
        )
    bases = [_basis(side) for side in (x, y)]
    rho = torch.linalg.svdvals(bases[0].T @ bases[1])
    if bool((rho >= 1 - 1e-12).any()):
        raise ValueError(
            "a combination of columns of x equals one of y, so their information is infinite; "
            "leave out what both hold, or add noise"
        )
    value = -float(torch.log1p(-rho.square()).sum()) / 2
    if corrected:
        a, b = (base.shape[1] for base in bases)
        value -= (_bias(a, count) + _bias(b, count) - _bias(a + b, count)) / 2
    error = math.sqrt(float(rho.square().sum()) / count)
    return Information.from_nats(value, error, "neither")


def _basis(side: Tensor) -> Tensor:
    """(N, R) orthonormal columns that span the centered columns of (N, D)."""
    left, values, _ = torch.linalg.svd(side - side.mean(0), full_matrices=False)
    return left[:, values > 1e-10 * values[0]]


def _bias(d: int, count: int) -> float:
    """E log|S| - log|Σ| of the covariance of `count` normal rows in d dimensions."""
    freedom = count - 1
    i = torch.arange(d, dtype=torch.float64)
    return float(torch.digamma((freedom - i) / 2).sum()) - d * math.log(freedom / 2)
