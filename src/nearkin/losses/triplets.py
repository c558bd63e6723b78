"""Losses over triplets (anchor, positive, negative), without ever holding the triplets."""

from __future__ import annotations

import torch
from torch import Tensor

from nearkin.core import Comparison, Terms, home


@home("in_batch", "cosine")
def triplet(c: Comparison, *, margin: float = 0.2) -> Terms:
    """Triplet hinge over all triplets, mean over the violating ones (Schroff et al. 2015;
    unsquared).

    joint = mean_{d_ap - d_an + margin > 0} (d_ap - d_an + margin)

    The hinge couples tightness and contrast, so nothing is split. The sum over triplets is
    Σ_p n_p (d_ap + margin) - Σ_n p_n d_an with n_p, p_n the numbers of violated triplets that hold
    a pair: time O(A·R log P) for P positives an anchor. Memory O(A·R).
    """
    d = c.distance  # read here: a view that is first read under no_grad is kept without its graph
    with torch.no_grad():
        of_positive, of_negative = violations(c, margin)
        weight = of_positive - of_negative
        count = of_positive.sum(dtype=torch.float64)
    # Large terms of both signs cancel here; float64 keeps the small remainder exact.
    total = (weight * d).sum(dtype=torch.float64) + margin * count
    joint = total / count.clamp_min(1)
    return Terms(other={"joint": joint.to(d.dtype)})


def violations(c: Comparison, margin: float) -> tuple[Tensor, Tensor]:
    """(A, R), (A, R): in how many violated triplets each pair is the positive, and the negative."""
    d = c.distance
    most = int(c.same.sum(1).max()) if c.same.numel() else 0
    if most == 0:
        return torch.zeros_like(d), torch.zeros_like(d)
    # The few positives of each row, nearest first; places that a row does not fill come first, at
    # -inf.
    thresholds, columns = torch.where(c.same, d + margin, -torch.inf).topk(most, dim=1)
    thresholds, columns = thresholds.flip(1).contiguous(), columns.flip(1)  # (A, P) ascending
    below = torch.searchsorted(thresholds, d.contiguous(), right=True)  # positives that keep off
    of_negative = torch.where(c.different, (most - below).to(d.dtype), 0.0)
    counts = d.new_zeros(len(d), most + 1).scatter_add_(1, below, c.different.to(d.dtype))
    nearer = counts.cumsum(1)[:, :most]  # negatives nearer than each threshold
    nearer = torch.where(thresholds.isinf(), 0.0, nearer)
    return torch.zeros_like(d).scatter_add_(1, columns, nearer), of_negative
