"""Losses that pass each pair through a hinge around a boundary, hard or soft: margin, binomial
deviance, sigmoid, circle. No triplets; the squared hinge stands in pairwise."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nearkin.closed import (
    Keep,
    Rest,
    distance_slope,
    in_blocks,
    log_sum_exp_,
    split,
)
from nearkin.core import Comparison, Terms, home
from nearkin.reduce import logsumexp_over, mean, not_negative, positive, ratio, softplus

LOG_10 = math.log(10)  # SigLIP starts with a factor of 10
LARGEST = 80  # e^80 is still a float32


@home("in_batch", "cosine")
def margin(
    c: Comparison, *, margin: float = 0.2, beta: float | Tensor = 1.2, nu: float = 0.0
) -> Terms:
    """Margin loss: hinges around a boundary on the distance (Wu et al. 2017).

    With n the number of terms that are not 0:
    tightness = (1/n) Σ_{same} [d - β_y + margin]₊
    contrast  = (1/n) Σ_{different} [β_y - d + margin]₊
    other.beta = (ν/n) Σ_i β_{y_i}, only where ν > 0

    Each pair of the comparison counts once, and y is the anchor's class. The paper samples one
    negative for each positive pair: `mining: distance_weighted`, then a row of the comparison is a
    triplet. Without terms all is 0. As in the authors' code, the regularizer sums over the rows of
    the comparison and has the same divisor n; other implementations do not divide a single β.

    margin   half the width of the gap between positives and negatives
    beta     the boundary: a number, a tensor that learns, or one for each class (classes,)
    nu       weight of the boundaries; above 0 it keeps them from growing

    Use it with distance-weighted mining on classes of few rows; learn beta (one for each class)
    where classes differ in how far they spread.

    Equals the contrastive hinges, not squared, with margins β - margin and β + margin.

    Memory O(A·R). Raises ValueError where closeness is no distance, for a beta per class with
    multi-hot labels or with a label that it has no entry for, and for a negative nu.
    """
    not_negative(margin=margin, nu=nu)
    positives, boundary = c.positives, _boundary(c, beta)
    crossing = torch.zeros_like(boundary)

    def near(s: Tensor) -> tuple[Tensor, Tensor]:
        value, slope = s.new_empty(len(s)), torch.empty_like(s)
        edge = (boundary + margin)[:, None]
        for part in in_blocks(s.shape):
            d = c.distance_of(s[part])
            gap = c.keep_different((edge[part] - d).clamp_min_(0), part, 0.0)
            inside = gap > 0
            value[part], crossing[part] = gap.sum(1), inside.sum(1).to(s.dtype)
            torch.mul(distance_slope(d).neg_(), inside, out=slope[part])
        return value, slope

    own, apart = split(c.similarity, positives, near)
    pull = c.distance_of(own) - (boundary - margin)[:, None]
    pull = positives.fill(pull.clamp_min(0), 0.0)
    # Adds nothing but the gradient: each hinge that is open moves with its boundary.
    apart = apart + crossing * (boundary - boundary.detach())
    terms = (pull > 0).sum() + crossing.sum()
    other = {"beta": nu * torch.where(terms > 0, ratio(boundary.sum(), terms), 0.0)} if nu else {}
    return Terms(ratio(pull.sum(), terms), ratio(apart.sum(), terms), other)


def _boundary(c: Comparison, beta: float | Tensor) -> Tensor:
    """(A,) the boundary of each anchor, of the similarity's dtype."""
    s = c.similarity
    if not isinstance(beta, Tensor) or beta.ndim == 0:
        return torch.as_tensor(beta, dtype=s.dtype, device=s.device).expand(len(s))
    if beta.ndim > 1:
        raise ValueError(
            f"beta must be a number or hold one for each class (classes,), not {tuple(beta.shape)}"
        )
    label = c.anchor_label
    if label.ndim > 1:
        raise ValueError(
            "a beta for each class needs rows of one class each, and these labels are multi-hot; "
            "give one beta for all"
        )
    if len(label):
        least, most = (int(bound) for bound in label.aminmax())
        if least < 0 or most >= len(beta):
            raise ValueError(
                f"label {least if least < 0 else most} is out of range: beta holds a boundary for "
                f"classes 0..{len(beta) - 1}; give `classes` the number of training classes and "
                "number the labels from 0"
            )
    return beta.to(s.dtype).index_select(0, label)


@home("in_batch", "cosine")
def binomial_deviance(
    c: Comparison, *, alpha: float = 2.0, beta: float = 0.5, cost: float = 25.0
) -> Terms:
    """Binomial deviance of pairs by their similarity (Yi et al. 2014).

    tightness = mean_{same} log(1 + e^{-α(s - β)})
    contrast  = mean_{different} log(1 + e^{α·cost·(s - β)})

    Each side is the mean over its own ordered pairs, so that the few positives are not outvoted.

    alpha   sharpness of both sides
    beta    the similarity where a pair changes sides
    cost    what a negative costs beside a positive; 10 is usual for re-identification

    Use it for verification by one threshold, and as the base of ensembles such as BIER; it never
    looks at the other pairs of the anchor.

    Equals Multi-Similarity's terms times α and α·cost where each anchor has one positive and one
    negative.

    Memory O(A·R). Raises ValueError for an alpha or cost that is not above 0.
    """
    positive(alpha=alpha, cost=cost)
    positives, steep = c.positives, alpha * cost
    own, apart = split(
        c.similarity, positives, _soft_hinges(c.keep_different, steep, -steep * beta)
    )
    near = positives.fill(softplus(-alpha * (own - beta)), 0.0)
    return Terms(
        tightness=ratio(near.sum(), positives.pairs),
        contrast=ratio(apart, c.negative_pairs),
    )


@home("in_batch", "cosine")
def sigmoid(
    c: Comparison, *, log_scale: float | Tensor = LOG_10, bias: float | Tensor = -10.0
) -> Terms:
    """Pairwise sigmoid loss of SigLIP (Zhai et al. 2023).

    With l = e^{log_scale} s + bias:
    tightness = (1/A) Σ_{same} log(1 + e^{-l})          contrast = (1/A) Σ_{different} log(1 +
    e^{l})

    Sums over pairs, divided by the number of anchors, as in the paper. Both settings are meant to
    be learned; the bias starts low because almost all pairs are negative.

    log_scale   the log of what multiplies the similarity
    bias        added to every pair

    Use it for two modalities or views with large batches: no pair needs the others of its anchor,
    and a row may have any number of positives.

    Equals the binomial deviance at cost 1 with α = e^{log_scale} and β = -bias/α, but for the
    divisors.

    Memory O(A·R).
    """
    positives, anchors = c.positives, max(c.shape[0], 1)
    if not isinstance(log_scale, Tensor) and not log_scale < LARGEST:
        raise ValueError(
            f"log_scale is the log of what multiplies a similarity, so below {LARGEST}, not "
            f"{log_scale}"
        )
    scale = log_scale.exp() if isinstance(log_scale, Tensor) else math.exp(log_scale)
    if isinstance(scale, Tensor) or isinstance(bias, Tensor):
        logits = scale * c.similarity + bias
        own, apart = split(logits, positives, _soft_hinges(c.keep_different))
    else:
        own, apart = split(c.similarity, positives, _soft_hinges(c.keep_different, scale, bias))
        own = scale * own + bias
    near = positives.fill(softplus(-own), 0.0)
    return Terms(tightness=near.sum() / anchors, contrast=apart / anchors)


def _soft_hinges(keep: Keep, scale: float = 1.0, shift: float = 0.0) -> Rest:
    """Σ_kept log(1 + exp(scale·s + shift)), one value."""

    def rest(s: Tensor) -> tuple[Tensor, Tensor]:
        total, slope = s.new_zeros(()), torch.empty_like(s)
        for part in in_blocks(s.shape):
            x = torch.mul(s[part], scale, out=slope[part]).add_(shift)
            keep(x, part, -torch.inf)
            total += softplus(x).sum()
            x.sigmoid_().mul_(scale)
        return total, slope

    return rest


@home("in_batch", "cosine")
def circle(c: Comparison, *, margin: float = 0.4, scale: float = 80.0) -> Terms:
    """Circle loss over pairs (Sun et al. 2020, eq. 6).

    With α_p = [1 + margin - s]₊ and α_n = [s + margin]₊, constants for the gradient:
    joint = mean_i log(1 + N_i P_i)
    N_i = Σ_{different} e^{scale·α_n·(s - margin)}
    P_i = Σ_{same} e^{-scale·α_p·(s - 1 + margin)}

    The mean is over anchors that have a positive and a negative. The weights are not
    differentiated, as in the paper: the gradient is by definition not that of the value.

    margin   how far the optima lie behind 0 and 1: positives aim at 1 + margin, negatives at
             -margin
    scale    sharpness; 256 for faces and 128 for persons, both with margin 0.25

    Use it to weigh each pair by how far it is from its own optimum: a pair slows as it nears its
    own optimum, and neither side stops while the other is still wrong.

    Memory O(A·R). Raises ValueError for a comparison by inner products or by euclidean distance,
    and for a scale that is not above 0.
    """
    positive(scale=scale)
    not_negative(margin=margin)
    if c.closeness in ("inner", "euclidean"):
        raise ValueError(
            f"circle needs angles, but the rows compare by {c.closeness!r}; use cosine"
        )
    positives = c.positives

    def push(s: Tensor) -> tuple[Tensor, Tensor]:
        value, slope = s.new_empty(len(s)), torch.empty_like(s)
        for part in in_blocks(s.shape):
            weight = (s[part] + margin).clamp_min_(0).mul_(scale)
            x = c.keep_different((s[part] - margin).mul_(weight), part, -torch.inf)
            value[part] = log_sum_exp_(x)
            torch.mul(x, weight, out=slope[part])
        return value, slope

    own, apart = split(c.similarity, positives, push)
    weight = scale * (1 + margin - own.detach()).clamp_min(0)
    near = logsumexp_over(positives, -weight * (own - (1 - margin)))
    both = (positives.count > 0) & (apart != -torch.inf)
    return Terms(other={"joint": mean(softplus(near + apart), both)})
