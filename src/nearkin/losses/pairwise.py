"""Losses over pairs of rows: contrastive, Multi-Similarity, InfoNCE, SupCon, SNCA, alignment and
uniformity. Pairs through a hinge of their own stand in hinges, neighbors as classes in neighbors.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nearkin.closed import (
    distance_slope,
    for_passes,
    in_blocks,
    log_sum_exp,
    split,
    split_log_sum_exp,
)
from nearkin.core import Comparison, Terms, home
from nearkin.fast import compiled
from nearkin.reduce import (
    logsumexp,
    logsumexp_over,
    mean_of_means,
    mean_over_scored,
    not_negative,
    pair_means,
    positive,
    ratio,
    softplus,
)


@home("in_batch", "cosine")
def contrastive(c: Comparison, *, margin: float = 1.0) -> Terms:
    """Contrastive loss (Hadsell et al. 2006, eq. 4; as in Boudiaf et al. 2020, eq. 2).

    tightness = (1/A) Σ_{same} d²          contrast = (1/A) Σ_{different} [margin - d]₊²

    Sums over ordered pairs, divided by the number of anchors, so that the pull grows with the size
    of a class. d is the distance of unit rows, at most 2. Other implementations take the mean over
    the pairs that are not 0, or leave the hinge unsquared (that is `margin`).

    margin   the distance from which on different rows are let be; on unit rows at most 2

    Use it as the plainest baseline, for verification by a threshold on the distance, and where
    rows of a class should become one point.

    Equals, in its tightness for K balanced classes, 4/K times the center loss's.

    Memory O(A·R). Raises ValueError where closeness is no distance.
    """
    not_negative(margin=margin)
    positives, anchors = c.positives, max(c.shape[0], 1)

    def near(s: Tensor) -> tuple[Tensor, Tensor]:
        c.distance_of(s.new_empty(0))  # raises where there is none
        if passes := compiled(s):
            source, skip, slope = for_passes(s, c.keep_different)
            total = passes.hinges_squared(source, skip, slope.numpy(), float(margin))
            return s.new_tensor(total), slope
        total, slope = s.new_zeros((), dtype=torch.float64), torch.empty_like(s)
        for part in in_blocks(s.shape):
            d = c.distance_of(s[part])
            gap = c.keep_different((margin - d).clamp_min_(0), part, 0.0)
            total += gap.square().sum()
            torch.mul(gap, distance_slope(d).mul_(-2), out=slope[part])
        return total.to(s.dtype), slope

    own, repelled = split(c.similarity, positives, near)
    return Terms(
        # d² without the root: its gradient is exact at distance 0.
        tightness=positives.fill(2 - 2 * own, 0.0).sum() / anchors,
        contrast=repelled / anchors,
    )


@home("in_batch", "cosine")
def multi_similarity(
    c: Comparison, *, alpha: float = 2.0, beta: float = 50.0, base: float = 0.5
) -> Terms:
    """Multi-Similarity loss (Wang et al. 2019, eq. 9; in two parts as in Boudiaf et al. 2020).

    tightness = mean_i (1/α) log(1 + Σ_{same} e^{-α(s - base)})
    contrast  = mean_i (1/β) log(1 + Σ_{different} e^{β(s - base)})

    An anchor without a side contributes 0 there and counts in the mean. The paper mines first: that
    is `mining: multi_similarity`. Its base is 1; its code has base 0.5 and β = 40.

    alpha   sharpness among the positives: how much the least similar one outweighs the others
    beta    sharpness among the negatives
    base    the similarity around which both sides turn

    Use it as the first choice among pair losses for retrieval with a few rows a class: it weighs
    each pair by its own similarity and by the anchor's others.

    Equals, with one positive and one negative an anchor, the binomial deviance's terms divided by
    α and by α·cost; as α and β grow, the hinges [base - s]₊ on the least similar positive and
    [s - base]₊ on the most similar negative.

    Memory O(A·R). Raises ValueError for an alpha or beta that is not above 0.
    """
    positive(alpha=alpha, beta=beta)
    positives, anchors = c.positives, max(c.shape[0], 1)
    own, push = split(c.similarity, positives, log_sum_exp(c.keep_different, beta))
    pull = logsumexp_over(positives, -alpha * (own - base))
    return Terms(
        tightness=softplus(pull).sum() / (alpha * anchors),
        contrast=softplus(push - beta * base).sum() / (beta * anchors),
    )


@home("in_batch", "cosine")
def infonce(c: Comparison, *, temperature: float | Tensor = 0.1) -> Terms:
    """InfoNCE, each positive against the different ones (van den Oord et al. 2018, eq. 4; NT-Xent).

    With s' = s / temperature, over positive pairs (i, j):
    tightness = -mean s'_ij          contrast = mean log(e^{s'_ij} + Σ_{k different} e^{s'_ik})

    Other positives of the anchor stay out of the sum. The mean is over pairs: large classes count
    more than in `supcon`. The temperature may be learned.

    temperature   the lower, the more the nearest negatives weigh; 0.05 to 0.2 on unit rows

    Use it where a row has one positive (two views, two modalities, sentence pairs), and where the
    total should be a bound: log(1 + negatives) - total is at most the mutual information.

    Equals, with one positive an anchor, SupCon and SNCA.

    Memory O(A·R). Raises ValueError for a temperature that is not above 0.
    """
    positive(temperature=temperature)
    positives = c.positives
    own, others = split_log_sum_exp(c.similarity, positives, c.keep_different, 1 / temperature)
    own, everyone = pair_means(positives, own, others)
    return Terms(tightness=-own, contrast=everyone)


@home("in_batch", "cosine")
def supcon(c: Comparison, *, temperature: float | Tensor = 0.1) -> Terms:
    """Supervised contrastive loss, the log inside the positive mean (Khosla et al. 2020, L_out).

    With s' = s / temperature, over anchors that have a positive:
    tightness = -mean_i mean_{same} s'          contrast = mean_i log Σ_{same or different} e^{s'}

    Without the authors' code's factor temperature / 0.07. Anchors without a positive are left out;
    that code counts them as 0. The temperature may be learned.

    temperature   the lower, the more the nearest rows weigh; 0.05 to 0.2 on unit rows

    Use it with many rows of a class in a batch and a linear classifier or nearest neighbors
    afterwards. It never reaches 0: for balanced classes its floor is that of classes collapsed on
    the corners of a regular simplex (Graf et al. 2021).

    Equals InfoNCE and SNCA where every anchor has one positive (two views of distinct items:
    NT-Xent); log(N - 1) where all N rows are one point. At least SNCA's total plus the mean of the
    log of the number of positives.

    Memory O(A·R). Raises ValueError for a temperature that is not above 0.
    """
    positive(temperature=temperature)
    positives = c.positives
    own, everyone = split_log_sum_exp(c.similarity, positives, c.keep_compared, 1 / temperature)
    return Terms(
        tightness=-mean_of_means(positives, own), contrast=mean_over_scored(positives, everyone)
    )


@home("in_batch", "cosine")
def snca(c: Comparison, *, temperature: float | Tensor = 0.05) -> Terms:
    """Scalable neighborhood component analysis, the log outside the positive sum (Wu et al. 2018;
    in two parts as in Boudiaf et al. 2020, table 2).

    With s' = s / temperature, over anchors that have a positive:
    tightness = -mean_i log Σ_{same} e^{s'}
    contrast  = mean_i log Σ_{same or different} e^{s'}

    No sum counts the anchor itself, as the table's tightness would: the total is -log of a
    probability. Wu et al. compare with a memory of all training rows. The temperature may be
    learned.

    temperature   the lower, the fewer neighbors count

    Use it where a class has several modes: one near neighbor of the class is enough, the rest of
    the class may stay away. With `memory`, it scores against more than the batch.

    Equals InfoNCE and SupCon where every anchor has one positive; NCA at twice the temperature.

    Memory O(A·R). Raises ValueError for a temperature that is not above 0.
    """
    positive(temperature=temperature)
    positives = c.positives
    own, everyone = split_log_sum_exp(c.similarity, positives, c.keep_compared, 1 / temperature)
    own = logsumexp_over(positives, own)
    return Terms(
        tightness=-mean_over_scored(positives, own), contrast=mean_over_scored(positives, everyone)
    )


@home("in_batch", "cosine")
def alignment_uniformity(
    c: Comparison, *, alpha: float = 2.0, t: float = 2.0, weight: float = 1.0
) -> Terms:
    """Alignment and uniformity on the sphere (Wang & Isola 2020, section 4).

    tightness = mean_{same} d^{α}
    contrast  = weight · log mean_{same or different} e^{-t d²}

    Both means are over ordered pairs of the comparison. The paper's uniformity is over the rows of
    one view; here every compared pair is in it, positives too.

    alpha    power of the distance of positives
    t        sharpness of the Gaussian potential
    weight   of the uniformity

    Use it to see and to set the two aims apart: how close a class is, how evenly the sphere is
    used. Its contrast alone, weight up, keeps embeddings from collapsing.

    Memory O(A·R). Raises ValueError where closeness is no distance, for an alpha or t that is not
    above 0 and for a negative weight.
    """
    positive(alpha=alpha, t=t)
    not_negative(weight=weight)
    positives = c.positives
    own, potential = split(c.similarity, positives, log_sum_exp(c.keep_compared, 2 * t))
    near = positives.fill(c.distance_of(own).pow(alpha), 0.0)
    # The log of an int64 is float32.
    pairs = (c.negatives.sum() + positives.pairs).to(potential.dtype)
    spread = logsumexp(potential, potential != -torch.inf, 0) - 2 * t - pairs.clamp_min(1).log()
    return Terms(
        tightness=ratio(near.sum(), positives.pairs),
        contrast=weight * torch.where(pairs > 0, spread, 0.0),
    )
