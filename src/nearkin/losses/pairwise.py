"""Losses over pairs of rows: contrastive, Multi-Similarity, InfoNCE, SupCon, SNCA. No triplets, no
classes."""

from __future__ import annotations

import torch
from torch import Tensor

from nearkin.closed import distance_slope, in_blocks, split, split_log_sum_exp
from nearkin.core import Comparison, Terms, home
from nearkin.reduce import logsumexp_over, mean, positive, ratio, softplus


@home("in_batch", "cosine")
def contrastive(c: Comparison, *, margin: float = 1.0) -> Terms:
    """Contrastive loss (Hadsell et al. 2006; as in Boudiaf et al. 2020, eq. 2).

    tightness = (1/A) Σ_same d²          contrast = (1/A) Σ_different [margin - d]₊²

    Sums over ordered pairs, divided by the number of anchors. Memory O(A·R).
    """
    positives, anchors = c.positives, max(c.shape[0], 1)

    def near(s: Tensor) -> tuple[Tensor, Tensor]:
        total, slope = s.new_zeros(()), torch.empty_like(s)
        for part in in_blocks(s.shape):
            d = c.distance_of(s[part])
            gap = (margin - d).clamp_min_(0).mul_(c.different[part])
            total += gap.square().sum()
            torch.mul(gap, distance_slope(d).mul_(-2), out=slope[part])
        return total, slope

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

    tightness = mean_i (1/α) log(1 + Σ_same e^{-α(s - base)})
    contrast  = mean_i (1/β) log(1 + Σ_different e^{β(s - base)})

    An anchor without a side contributes 0 there and counts in the mean. Memory O(A·R).
    """
    positive(alpha=alpha, beta=beta)
    positives, anchors = c.positives, max(c.shape[0], 1)
    own, push = split_log_sum_exp(c.similarity, positives, c.different, beta)
    pull = logsumexp_over(positives, -alpha * (own - base))
    return Terms(
        tightness=softplus(pull).sum() / (alpha * anchors),
        contrast=softplus(push - beta * base).sum() / (beta * anchors),
    )


@home("in_batch", "cosine")
def infonce(c: Comparison, *, temperature: float | Tensor = 0.1) -> Terms:
    """InfoNCE, each positive against the different ones (van den Oord et al. 2018; NT-Xent).

    With s' = s / temperature, over positive pairs (i, j):
    tightness = -mean s'_ij          contrast = mean log(e^{s'_ij} + Σ_{k different} e^{s'_ik})

    Other positives of the anchor stay out of the sum. The temperature may be learned.
    Memory O(A·R).
    """
    positive(temperature=temperature)
    positives = c.positives
    own, others = split_log_sum_exp(c.similarity, positives, c.different, 1 / temperature)
    own = positives.fill(own / temperature, 0.0)
    everyone = positives.fill(torch.logaddexp(own, others[:, None]), 0.0)
    pairs = positives.count.sum()
    return Terms(tightness=-ratio(own.sum(), pairs), contrast=ratio(everyone.sum(), pairs))


@home("in_batch", "cosine")
def supcon(c: Comparison, *, temperature: float | Tensor = 0.1) -> Terms:
    """Supervised contrastive loss, the log inside the positive mean (Khosla et al. 2020, L_out).

    With s' = s / temperature, over anchors that have a positive:
    tightness = -mean_i mean_{same} s'          contrast = mean_i log Σ_{same or different} e^{s'}

    No factor temperature / 0.07. The temperature may be learned. Memory O(A·R).
    """
    positive(temperature=temperature)
    positives = c.positives
    own, everyone = split_log_sum_exp(c.similarity, positives, c.compared, 1 / temperature)
    own = ratio(positives.fill(own / temperature, 0.0).sum(1), positives.count)
    scored = positives.count > 0
    return Terms(tightness=-mean(own, scored), contrast=mean(everyone, scored))


@home("in_batch", "cosine")
def snca(c: Comparison, *, temperature: float | Tensor = 0.05) -> Terms:
    """Scalable neighborhood component analysis, the log outside the positive sum (Wu et al. 2018;
    in two parts as in Boudiaf et al. 2020, table 2).

    With s' = s / temperature, over anchors that have a positive:
    tightness = -mean_i log Σ_same e^{s'}          contrast = mean_i log Σ_{same or different}
    e^{s'}

    No sum counts the anchor itself, as the table's tightness would: the total is -log of a
    probability. Wu et al. compare with a memory of all training rows. The temperature may be
    learned. Memory O(A·R).
    """
    positive(temperature=temperature)
    positives = c.positives
    own, everyone = split_log_sum_exp(c.similarity, positives, c.compared, 1 / temperature)
    scored = positives.count > 0
    own = logsumexp_over(positives, own / temperature)
    return Terms(tightness=-mean(own, scored), contrast=mean(everyone, scored))
