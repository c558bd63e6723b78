"""Differential entropy of rows by their distances: nats, of the data as they are given."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from nearkin.information.given import Rows
from nearkin.information.neighbors import nearest_distances

PAIRS = 1 << 20  # pairs drawn where all would be more
_AT_ONCE = 1 << 14  # pairs whose rows are held at a time


def kozachenko_leonenko(z: Any, *, k: int = 3) -> float:
    """Nearest-neighbor entropy (Kozachenko & Leonenko 1987), nats.

    H = ψ(N) - ψ(k) + log V_d + (d/N) Σ_i log ε_i

    ε_i the euclidean distance to the k-th neighbor, V_d the volume of the unit ball. Consistent;
    in tens of dimensions too large (N(0, I_20), 2,000 rows: 29.4 for 28.4).

    z   (N,) or (N, D) floats, numpy or torch
    k   neighbors

    Raises ValueError where more than k rows coincide (the entropy is -∞), for N <= k and for NaN.
    """
    rows = _rows(z)
    if k < 1 or len(rows) <= k:
        raise ValueError(f"k must be from 1 to under the number of rows, {len(rows)}, not {k}")
    far = nearest_distances(rows, k)
    if bool((far <= 0).any()):
        raise ValueError(
            f"more than {k} rows coincide, so the entropy is -∞; remove copies, or add tiny noise"
        )
    d = rows.shape[1]
    psi = torch.digamma(torch.tensor([len(rows), k], dtype=torch.float64))
    return float(psi[0] - psi[1]) + log_ball(d) + d * float(far.log().mean())


def mean_neighbors(z: Any, *, seed: int = 0) -> float:
    """Entropy by the mean of all neighbors (Faivishevsky & Goldberger 2008; Wang & Sha 2011), nats.

    H = d/(N (N - 1)) Σ_{i≠j} log |z_i - z_j| + log V_d + ψ(N) - mean_{k<N} ψ(k)

    The mean of Kozachenko-Leonenko's over all k; the last two terms approach 1. Printed with log of
    the squared distance over ordered pairs (Boudiaf et al. 2020, eq. 6) it grows twice too fast
    with the scale of z. Not consistent: for N(0, I_d) too large by 0.12, 0.79, 2.2 at d = 2, 5, 10.
    A monitor of spread. Above 1,048,576 pairs that many are drawn by the seed.

    z   (N,) or (N, D) floats, numpy or torch

    Raises ValueError where rows coincide (the entropy is -∞), for one row and for NaN.
    """
    rows = _rows(z)
    if len(rows) < 2:
        raise ValueError("an entropy by distances needs two rows or more, not 1")
    logs = log_distances(rows, seed)
    if not bool(logs.isfinite().all()):
        raise ValueError("rows coincide, so the entropy is -∞; remove copies, or add tiny noise")
    count, d = len(rows), rows.shape[1]
    psi = torch.digamma(torch.arange(1, count + 1, dtype=torch.float64))
    return d * float(logs.mean()) + log_ball(d) + float(psi[-1] - psi[:-1].mean())


def log_distances(z: Tensor, seed: int = 0, most: int = PAIRS) -> Tensor:
    """(P,) log |z_i - z_j| of all pairs i < j, or of `most` different pairs drawn by the seed."""
    count = len(z)
    if count * (count - 1) // 2 <= most:
        left, right = torch.triu_indices(count, count, 1)
    else:
        generator = torch.Generator().manual_seed(seed)
        left = torch.randint(count, (most,), generator=generator)
        right = (left + torch.randint(1, count, (most,), generator=generator)) % count
    return pair_logs(z, left, right)


def pair_logs(z: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """(P,) float64 log of the distances of the pairs of rows `left`, `right` (P,)."""
    parts = zip(left.split(_AT_ONCE), right.split(_AT_ONCE), strict=True)
    far = [torch.linalg.vector_norm((z[i] - z[j]).double(), dim=1) for i, j in parts]
    return torch.cat(far).log()


def log_ball(d: int) -> float:
    """log of the volume of the unit ball in d dimensions."""
    return d / 2 * math.log(math.pi) - math.lgamma(d / 2 + 1)


def _rows(z: Any) -> Tensor:
    values = z if isinstance(z, Tensor) else torch.as_tensor(z)
    given = Rows(values[:, None] if values.ndim == 1 else values)
    return torch.cat([block.cpu() for block in given.blocks()])
