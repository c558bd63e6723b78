"""Softmax losses over one column a class: cross-entropy and its closed-form relative over class
sums."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from nearkin.core import Comparison, Terms, at_least_float32, home
from nearkin.reduce import BLOCK, blocked_logsumexp, logsumexp, mean, positive, ratio


@home("classifier", "inner")
def cross_entropy(c: Comparison, *, label_smoothing: float = 0.0) -> Terms:
    """Cross-entropy with the paper's label smoothing (Boudiaf et al. 2020, table 2).

    tightness = -mean_i [(1-ε) l_iy + ε/(K-1) Σ_{k≠y} l_ik]
    contrast  = mean_i log Σ_k e^{l_ik}

    ε/(K-1) falls on each other class, where torch's `label_smoothing` puts ε/K on every class. The
    value is without the constant -H(q) of the paper's code. Rows without a column of their own are
    left out. Memory O(A·R) up to 8,192 classes; above, the logits are never held: O(A·8192).
    """
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing must be in [0, 1), not {label_smoothing}")
    own, others, everyone, scored = _in_blocks(c) if _fits_blocks(c) else _whole(c)
    target = (1 - label_smoothing) * own + label_smoothing * others
    return Terms(tightness=-mean(target, scored), contrast=mean(everyone, scored))


@home("centers", "inner", kind="sums")
def spce(c: Comparison, *, scale: float = 1.0) -> Terms:
    """Simplified pairwise cross-entropy: cross-entropy with the class sums as weights (Boudiaf et
    al. 2020, eq. 15).

    tightness = -scale Σ_k |m_k|²          contrast = (1/n) Σ_i log Σ_k e^{scale z_i·m_k}

    m_k = (1/n) Σ_{i in k} z_i over the batch. Nearly flat for many classes of unit rows: raise
    `scale`. Memory O(A·R).
    """
    positive(scale=scale)
    return cross_entropy(replace(c, given=scale * c.similarity))


def _whole(c: Comparison) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    logits = c.similarity
    own = ratio(torch.where(c.same, logits, 0.0).sum(1), c.same.sum(1))
    others = ratio(torch.where(c.different, logits, 0.0).sum(1), c.different.sum(1))
    scored = c.same.any(1)
    everyone = torch.where(scored, logsumexp(logits, c.same | c.different), 0.0)
    return own, others, everyone, scored


def _fits_blocks(c: Comparison) -> bool:
    if c.mined or c.shape[1] <= BLOCK or c.anchor_label.ndim > 1 or c.closeness == "euclidean":
        return False
    # The blocks find one column of each class: several proxies a class go the other way.
    alone = len(c.reference_label.unique()) == c.shape[1]
    return alone and c.given is None and c.allowed is None and c.oneself is None


def _in_blocks(c: Comparison) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    assert c.anchors is not None
    assert c.references is not None
    with torch.autocast(c.anchors.device.type, enabled=False):
        a, r = at_least_float32(c.anchors), at_least_float32(c.references)
        ordered, order = c.reference_label.sort()
        place = torch.searchsorted(ordered, c.anchor_label).clamp_max(len(ordered) - 1)
        scored, place = ordered[place] == c.anchor_label, order[place]
        own, total = (a * r[place]).sum(1), a @ r.sum(0)
        if c.bias is not None:
            own, total = own + c.bias[place], total + c.bias.sum()
        return own, (total - own) / (len(r) - 1), blocked_logsumexp(a, r, c.bias), scored
