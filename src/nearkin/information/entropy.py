"""Differential entropy of rows by their distances: nats, of the data as they are given."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import Tensor

from nearkin.information.given import Rows
from nearkin.information.neighbors import nearest_distances

PAIRS = 1 << 20  # pairs drawn where all would be more
ANCHORS, PARTNERS = 10_000, 64  # rows, and partners of each, of the difference of two entropies
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

    H = d/(N (N - 1)) Σ_{i≠j} log |z_i - z_j| + log V_d + 1

    The mean of Kozachenko-Leonenko's over all k: ψ(N) - mean_{k<N} ψ(k) is 1. Printed with log of
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
    d = rows.shape[1]
    return d * float(logs.mean()) + log_ball(d) + 1.0


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


def contraction(z: Tensor, y: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
    """(A,) D·(mean_j log |z_i - z_j| - mean_{j of the class} log |z_i - z_j|), nats, and (A,) the
    class of each row i. Their mean is H(Z) - H(Z|Y) by `mean_neighbors`, whose constants cancel.

    z (N, D); y (N,) int64, every class of two rows or more. The means are over at most 64 partners,
    the rows at most 10,000, drawn by the seed. Partners at distance 0 are left out and told of.
    Raises ValueError where nothing else is left.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randperm(len(z), generator=generator)[:ANCHORS].sort().values
    others = torch.randint(1, len(z), (len(rows), PARTNERS), generator=generator)
    everyone = (rows[:, None] + others) % len(z)
    order = y.argsort(stable=True)
    place, sizes = torch.empty_like(order), torch.bincount(y)
    place[order] = torch.arange(len(y))
    first, size = (sizes.cumsum(0) - sizes)[y[rows], None], sizes[y[rows], None]
    drawn = torch.rand(len(rows), PARTNERS, generator=generator)
    step = 1 + torch.minimum((drawn * (size - 1)).long(), size - 2)
    mates = order[first + (place[rows, None] - first + step) % size]
    means, zeros = [], 0
    for partners in (everyone, mates):
        left = rows[:, None].expand_as(partners).reshape(-1)
        logs = pair_logs(z, left, partners.reshape(-1)).view(partners.shape)
        there = logs.isfinite()
        zeros += int((~there).sum())
        means.append(torch.where(there, logs, 0.0).sum(1) / there.sum(1))  # 0/0 is NaN
    each = z.shape[1] * (means[0] - means[1])
    told = each.isfinite()
    if not bool(told.any()):
        raise ValueError("all rows of each class coincide, so H(Z|Y) is -∞ and tells nothing")
    if zeros:
        warnings.warn(
            f"{zeros} of {2 * everyone.numel()} pairs coincide; the generative view leaves them "
            "out, and would be infinite with them",
            UserWarning,
            stacklevel=3,
        )
    return each[told], y[rows][told]


def log_ball(d: int) -> float:
    """log of the volume of the unit ball in d dimensions."""
    return d / 2 * math.log(math.pi) - math.lgamma(d / 2 + 1)


def _rows(z: Any) -> Tensor:
    values = z if isinstance(z, Tensor) else torch.as_tensor(z)
    given = Rows(values[:, None] if values.ndim == 1 else values)
    return torch.cat([block.cpu() for block in given.blocks()])
