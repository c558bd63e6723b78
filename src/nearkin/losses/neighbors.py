"""Losses that ask which neighbor is the right one: NCA, N-pairs, tuplet margin. Their relatives
over plain cosines (InfoNCE, SupCon, SNCA) stand in pairwise."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from nearkin.closed import log_sum_exp, split, split_log_sum_exp
from nearkin.core import Comparison, Terms, at_least_float32, home, warn_once
from nearkin.reduce import (
    logsumexp_over,
    mean_over_scored,
    not_negative,
    pair_means,
    positive,
)


@home("in_batch", "cosine")
def nca(c: Comparison, *, temperature: float | Tensor = 1.0) -> Terms:
    """Neighborhood component analysis, its log form (Goldberger et al. 2004, section 2).

    With s' = -d² / temperature, over anchors that have a positive:
    tightness = -mean_i log Σ_{same} e^{s'}
    contrast  = mean_i log Σ_{same or different} e^{s'}

    The total is -log of the probability that the anchor picks a neighbor of its class; the paper
    also has the sum of these probabilities without the log. It learns a linear map on plain rows:
    compare by euclidean for that. The temperature may be learned.

    temperature   of squared distances: the lower, the fewer neighbors count

    Use it on few dimensions, with nearest neighbors as the classifier; on unit rows lower the
    temperature, since d² is at most 4.

    Equals SNCA at half the temperature on unit rows.

    Memory O(A·R). Raises ValueError where closeness is no distance, and for a temperature that is
    not above 0.
    """
    positive(temperature=temperature)
    positives, sharp = c.positives, 2 / temperature
    c.distance_of(c.similarity.new_empty(0))  # raises where there is none; -d² is 2s - 2
    own, everyone = split_log_sum_exp(c.similarity, positives, c.keep_compared, sharp)
    near, everyone = logsumexp_over(positives, own - sharp), everyone - sharp
    return Terms(
        tightness=-mean_over_scored(positives, near),
        contrast=mean_over_scored(positives, everyone),
    )


@home("in_batch", "inner")
def n_pairs(c: Comparison, *, norm_weight: float = 0.0005) -> Terms:
    """Multi-class N-pair loss with its norm regularizer (Sohn 2016).

    With one pair (f_i, g_i) of each class, s the inner product:
    tightness = -mean_i f_i·g_i          contrast = mean_i log Σ_j e^{f_i·g_j}
    other.norm = norm_weight · (mean_i |f_i|² + mean_i |g_i|²)

    In a batch that meets itself a class's first row is the anchor and its second the positive, so
    the order of rows decides the roles; a class of one row is left out, and rows beyond the second
    are not used (warned of once). Elsewhere (two views, other references, a memory) each anchor
    takes its first positive, and the columns are the references so chosen. Where mining chose
    columns row by row, each row has its own negatives. Multi-hot: an anchor is a row all of whose
    positives come later, and references that share a label with it are left out of its sum.

    norm_weight   0.0005 is the regularizer of TensorFlow's version, 0.25 · 0.002

    Use it with two rows of each of many classes: the work is that of a quarter of the pairs.
    Without unit rows the norm regularizer is what keeps the logits bounded.

    Equals, for two classes, the mean of log(1 + e^{f·(g' - g)}) with g' the other class's positive.

    Memory O(K²) for K pairs, and O(A·R) bits where rows meet other rows. Raises ValueError for a
    negative norm_weight.
    """
    not_negative(norm_weight=norm_weight)
    few, own = _one_each(c)
    s, f, g = few.similarity, few.anchors, few.references
    if own is None:
        pairs, near, everyone = max(len(s), 1), s.diagonal(), s.logsumexp(1)
    else:
        pairs, near = max(len(own), 1), s.gather(1, own[:, None])
        seen = few.different.scatter(1, own[:, None], True)
        everyone = torch.where(seen, s, -torch.inf).logsumexp(1)
    other = {}
    if norm_weight and f is not None and g is not None:
        f, g = (at_least_float32(x).square() for x in (f, g))
        g = g if own is None else g.sum(1).index_select(0, own)
        other = {"norm": (f.sum() + g.sum()) * (norm_weight / pairs)}
    return Terms(-near.sum() / pairs, everyone.sum() / pairs, other)


def _one_each(c: Comparison) -> tuple[Comparison, Tensor | None]:
    """The anchors of N-pairs against the references that they chose, and (K,) which is whose; None:
    each has one class's own, in the same order."""
    columns, count = c.positives.columns, c.positives.count
    first = columns[:, 0] if columns.shape[1] else count
    chosen = count > 0
    square = c.references is not None and c.references is c.anchors
    if square:
        if columns.shape[1] > 1:
            warn_once(
                "n_pairs takes the first two rows of a class and leaves its other rows out; "
                "sample two rows a class (balanced sampler, per_class 2)"
            )
        chosen = first > torch.arange(len(first), device=first.device)  # an empty place holds 0
    rows = chosen.nonzero()[:, 0]
    first = first.index_select(0, rows)
    if c.mined:
        label = c.reference_label.index_select(0, rows)
        few = c.similarity.index_select(0, rows)
        return replace(
            c, anchor_label=c.anchor_label[rows], reference_label=label, given=few
        ), first
    if square and c.allowed is None and c.anchor_label.ndim == 1:
        return _narrowed(c, rows, first), None  # each class has one pair
    used, own = first.unique(return_inverse=True)
    return _narrowed(c, rows, used), own


def _narrowed(c: Comparison, rows: Tensor, columns: Tensor) -> Comparison:
    """These anchors against these references, which hold no row twice."""

    def block(x: Tensor | None) -> Tensor | None:
        return None if x is None else x.index_select(0, rows).index_select(1, columns)

    def some(x: Tensor | None, index: Tensor) -> Tensor | None:
        return None if x is None else x.index_select(0, index)

    return replace(
        c,
        anchor_label=c.anchor_label[rows],
        reference_label=c.reference_label[columns],
        anchors=some(c.anchors, rows),
        references=some(c.references, columns),
        bias=some(c.bias, columns),
        oneself=None,
        allowed=block(c.allowed),
        given=block(c.given),
    )


@home("in_batch", "cosine")
def tuplet_margin(c: Comparison, *, margin: float = 5.73, scale: float = 64.0) -> Terms:
    """Tuplet margin loss, with slack on the angle to the positive (Yu & Tao 2019).

    With θ the angle, over positive pairs (i, j), p_ij = scale·cos(θ_ij - margin):
    tightness = -mean p_ij          contrast = mean log(e^{p_ij} + Σ_{k different} e^{scale·cos
    θ_ik})

    The total is the mean of log(1 + Σ_k e^{scale·cos θ_ik - p_ij}). A positive nearer than the
    margin is pushed back to it. Without the paper's intra-pair variance. At θ = 0, where the
    direction is not known, the gradient is that of cos θ cos(margin).

    margin   in degrees, from 0 to under 180
    scale    sharpness over the negatives

    Use it where hard positives are noisy or a class has poses of its own: the slack keeps the loss
    from forcing all rows of a class onto one point.

    Equals InfoNCE with temperature 1/scale at margin 0.

    Memory O(A·R). Raises ValueError for a comparison by inner products or by euclidean distance,
    for a margin out of range and for a scale that is not above 0.
    """
    positive(scale=scale)
    if not 0 <= margin < 180:
        raise ValueError(f"margin must be in degrees, from 0 to under 180, not {margin}")
    if c.closeness in ("inner", "euclidean"):
        raise ValueError(
            f"tuplet_margin needs angles, but the rows compare by {c.closeness!r}; use cosine"
        )
    positives, slack = c.positives, math.radians(margin)
    own, others = split(c.similarity, positives, log_sum_exp(c.keep_different, scale))
    # The root has an infinite slope at cos = ±1, and rounding can put a cosine beyond.
    sin = ((1 - own) * (1 + own)).clamp_min(torch.finfo(own.dtype).tiny).sqrt()
    near = scale * (own * math.cos(slack) + sin * math.sin(slack))
    near, everyone = pair_means(positives, near, others)
    return Terms(tightness=-near, contrast=everyone)
