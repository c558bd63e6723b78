"""Losses over pairs of rows: contrastive, Multi-Similarity, InfoNCE, SupCon, SNCA. No triplets, no
classes."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from nearkin.core import Comparison, Terms, home
from nearkin.reduce import log1p_sum_exp, logsumexp, mean, positive, ratio


@home("in_batch", "cosine")
def contrastive(c: Comparison, *, margin: float = 1.0) -> Terms:
    """Contrastive loss (Hadsell et al. 2006; as in Boudiaf et al. 2020, eq. 2).

    tightness = (1/A) Σ_same d²          contrast = (1/A) Σ_different [margin - d]₊²

    Sums over ordered pairs, divided by the number of anchors. Memory O(A·R).
    """
    anchors = max(c.shape[0], 1)
    near = F.relu(margin - c.distance).square()
    return Terms(
        # d² without the root: its gradient is exact at distance 0.
        tightness=torch.where(c.same, 2 - 2 * c.similarity, 0.0).sum() / anchors,
        contrast=torch.where(c.different, near, 0.0).sum() / anchors,
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
    s = c.similarity - base
    anchors = max(c.shape[0], 1)
    return Terms(
        tightness=log1p_sum_exp(-alpha * s, c.same).sum() / (alpha * anchors),
        contrast=log1p_sum_exp(beta * s, c.different).sum() / (beta * anchors),
    )


@home("in_batch", "cosine")
def infonce(c: Comparison, *, temperature: float = 0.1) -> Terms:
    """InfoNCE, each positive against the different ones (van den Oord et al. 2018; NT-Xent).

    With s' = s / temperature, over positive pairs (i, j):
    tightness = -mean s'_ij          contrast = mean log(e^{s'_ij} + Σ_{k different} e^{s'_ik})

    Other positives of the anchor stay out of the sum. Memory O(A·R).
    """
    positive(temperature=temperature)
    logits = c.similarity / temperature
    others = logsumexp(logits, c.different)
    return Terms(
        tightness=-mean(logits, c.same),
        contrast=mean(torch.logaddexp(logits, others[:, None]), c.same),
    )


@home("in_batch", "cosine")
def supcon(c: Comparison, *, temperature: float = 0.1) -> Terms:
    """Supervised contrastive loss, the log inside the positive mean (Khosla et al. 2020, L_out).

    With s' = s / temperature, over anchors that have a positive:
    tightness = -mean_i mean_{same} s'          contrast = mean_i log Σ_{same or different} e^{s'}

    No factor temperature / 0.07. Memory O(A·R).
    """
    positive(temperature=temperature)
    logits = c.similarity / temperature
    scored = c.same.any(1)
    own = ratio(torch.where(c.same, logits, 0.0).sum(1), c.same.sum(1))
    everyone = logsumexp(logits, c.same | c.different)
    return Terms(tightness=-mean(own, scored), contrast=mean(everyone, scored))


@home("in_batch", "cosine")
def snca(c: Comparison, *, temperature: float = 0.05) -> Terms:
    """Scalable neighborhood component analysis, the log outside the positive sum (Wu et al. 2018;
    in two parts as in Boudiaf et al. 2020, table 2).

    With s' = s / temperature, over anchors that have a positive:
    tightness = -mean_i log Σ_same e^{s'}          contrast = mean_i log Σ_{same or different}
    e^{s'}

    No sum counts the anchor itself, as the table's tightness would: the total is -log of a
    probability. Wu et al. compare with a memory of all training rows. Memory O(A·R).
    """
    positive(temperature=temperature)
    logits = c.similarity / temperature
    scored = c.same.any(1)
    return Terms(
        tightness=-mean(logsumexp(logits, c.same), scored),
        contrast=mean(logsumexp(logits, c.same | c.different), scored),
    )
