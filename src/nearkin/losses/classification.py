"""Softmax losses over columns of classes: cross-entropy, its relative over class sums, normalized
and with margins."""

from __future__ import annotations

import math
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


@home("proxies", "cosine")
def norm_softmax(c: Comparison, *, temperature: float = 0.05) -> Terms:
    """Normalized softmax: cross-entropy over cosines to class proxies (Zhai & Wu 2019).

    tightness = -mean_i s_iy / temperature          contrast = mean_i log Σ_k e^{s_ik / temperature}

    Of several proxies a class, the mean of the own s counts. Memory O(A·R) up to 8,192 classes;
    above, with one proxy a class, the cosines are never held: O(A·8192).
    """
    positive(temperature=temperature)
    if c.given is not None or c.closeness == "euclidean":
        return cross_entropy(replace(c, given=c.similarity / temperature))
    assert c.anchors is not None
    # The rows bear the temperature, so that the similarities need not be held.
    rows = at_least_float32(c.anchors) / temperature
    return cross_entropy(
        replace(c, anchors=rows, bias=None if c.bias is None else c.bias / temperature)
    )


@home("proxies", "cosine")
def cosface(c: Comparison, *, margin: float = 0.35, scale: float = 64.0) -> Terms:
    """Large-margin cosine loss (Wang et al. 2018, eq. 4).

    With l_ik = scale (cos_ik - margin [k = y_i]):
    tightness = -mean_i l_iy          contrast = mean_i log Σ_k e^{l_ik}

    Of several proxies a class, each bears the margin and the mean of the own l counts.
    Memory O(A·R).
    """
    positive(scale=scale)
    if margin < 0:
        raise ValueError(f"margin must be at least 0, not {margin}")
    cos = c.similarity
    return cross_entropy(replace(c, given=scale * torch.where(c.same, cos - margin, cos)))


@home("proxies", "cosine")
def arcface(c: Comparison, *, margin: float = 0.5, scale: float = 64.0) -> Terms:
    """Additive angular margin loss, margin in radians (Deng et al. 2019, eq. 3).

    With θ the angle to a proxy, l_ik = scale cos θ_ik, but l_iy = scale ψ(θ_iy):
    tightness = -mean_i l_iy          contrast = mean_i log Σ_k e^{l_ik}

    ψ(θ) = cos(θ + margin), and beyond θ = π - margin, where that would rise again, the line
    cos θ - margin sin(margin) of the authors' code (without its easy_margin). At θ = 0, where ψ has
    a corner, the gradient is that of cos(θ) cos(margin). Of several proxies a class, each bears the
    margin and the mean of the own l counts. Memory O(A·R).

    Raises ValueError for a comparison by inner products or by euclidean distance.
    """
    positive(scale=scale)
    if not 0 <= margin <= math.pi / 2:
        raise ValueError(
            f"margin must be in radians from 0 to {math.pi / 2:.4f}, not {margin}; that many "
            f"degrees are {math.radians(margin):.4f}"
        )
    if c.closeness in ("inner", "euclidean"):
        raise ValueError(
            f"arcface needs angles, but the rows compare by {c.closeness!r}; use cosine"
        )
    cos = c.similarity
    return cross_entropy(replace(c, given=scale * torch.where(c.same, _wider(cos, margin), cos)))


def _wider(cos: Tensor, margin: float) -> Tensor:
    """ψ: the cosine of an angle that is wider by the margin, made to fall up to π."""
    m = torch.as_tensor(margin, dtype=cos.dtype, device=cos.device)
    # The root has an infinite slope at cos = ±1, and rounding can put a cosine beyond.
    sin = ((1 - cos) * (1 + cos)).clamp_min(torch.finfo(cos.dtype).tiny).sqrt()
    return torch.where(cos >= -m.cos(), cos * m.cos() - sin * m.sin(), cos - m * m.sin())


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
