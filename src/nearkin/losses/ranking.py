"""Losses over the ranking of each anchor's references: Smooth-AP, recall@k, ranked lists. Rankings
by histogram are in `histograms`."""

from __future__ import annotations

import torch
from torch import Tensor

from nearkin.closed import Rest, distance_slope, for_passes, in_blocks, split
from nearkin.core import Comparison, Terms, home
from nearkin.fast import compiled
from nearkin.positives import Positives
from nearkin.reduce import mean, not_negative, positive, ratio
from nearkin.soft_ranks import soft_ranks


@home("in_batch", "cosine")
def smooth_ap(c: Comparison, *, temperature: float = 0.01) -> Terms:
    """Smooth-AP: average precision with soft ranks (Brown et al. 2020).

    With P_i the positives of an anchor, σ(x) = 1 / (1 + e^{-x / temperature}) and two soft ranks of
    a positive, r⁺_ip = 1 + Σ_{q∈P_i, q≠p} σ(s_iq - s_ip) among the positives and
    r_ip = 1 + Σ_{j≠p} σ(s_ij - s_ip) among all:
    joint = 1 - mean_i (1/|P_i|) Σ_{p∈P_i} r⁺_ip / r_ip

    All are the rows compared with the anchor, of its class or not; the mean is over anchors that
    have a positive. The released code and pytorch-metric-learning let an anchor be its own first
    hit, which raises every precision; here no row is compared with itself.

    temperature   of the soft ranks, in similarity

    Use it for retrieval that is judged by the whole ranking (mAP), with large batches. Only pairs
    within a few temperatures of each other have a gradient, so it refines an embedding better than
    it begins one; a higher temperature reaches further.

    Equals 1 - the mean average precision of the rankings as the temperature goes to 0.

    Time O(A·R·P) for P positives an anchor. Memory O(A·R). Raises ValueError for a temperature that
    is not above 0.
    """
    positive(temperature=temperature)
    positives = c.positives
    own, everyone = soft_ranks(c.similarity, positives, c.compared, temperature)
    mates = _ranks_among(own, positives, temperature)
    # Each positive stands in both sums with σ(0) = ½ for itself.
    precision = positives.fill((mates + 0.5) / (everyone + 0.5), 0.0)
    joint = mean(1 - ratio(precision.sum(1), positives.count), positives.count > 0)
    return Terms(other={"joint": joint})


def _ranks_among(own: Tensor, positives: Positives, temperature: float) -> Tensor:
    """(A, P): the soft ranks of the positives among themselves."""
    columns = torch.arange(own.shape[1], device=own.device).expand(own.shape)
    mates = positives.valid
    mates = torch.ones_like(own, dtype=torch.bool) if mates is None else mates
    return soft_ranks(
        own, Positives(columns, mates, positives.count, positives.pairs), mates, temperature
    )[1]


@home("in_batch", "cosine")
def recall_at_k(
    c: Comparison,
    *,
    k: tuple[int, ...] = (1, 2, 4, 8),
    temperature: float = 1.0,
    rank_temperature: float = 0.01,
) -> Terms:
    """Recall@k surrogate: how many positives are among the k nearest, softly (Patel et al. 2022).

    With P_i the positives of an anchor, σ(x) = 1 / (1 + e^{-x}) and
    r_ip = 1 + Σ_{j≠p} σ((s_ij - s_ip) / rank_temperature) the soft rank of a positive:
    joint = 1 - mean_k mean_i min(1, Σ_{p∈P_i} σ((k - r_ip) / temperature) / min(k, |P_i|))

    k                  the cutoffs (the paper takes 1, 2, 4, 8, 16 for most sets)
    temperature        of counting a rank as within k (τ₁ in the paper)
    rank_temperature   of the ranks (τ₂ in the paper)

    A rank counts all rows compared with the anchor, of its class or not; the mean is over anchors
    that have a positive. This recall is the share of the positives that are found, of at most k,
    not whether one is. A positive at rank k counts half, so a perfect ranking is not at 0. The
    division and the cap are those of the released code, which also counts the anchor in its own
    ranking, so that its ranks begin at 2; here no row is compared with itself.

    Use it for retrieval that is judged by its first few hits, with the largest batches that fit: a
    k beyond what a batch can confuse teaches nothing.

    Equals, as both temperatures go to 0, 1 - the mean of two shares: the positives among the k
    nearest and among the k - 1 nearest, both over min(k, |P_i|).

    Time O(A·R·P) for P positives an anchor. Memory O(A·(R + K·P)) for K values of k. Raises
    ValueError for a temperature that is not above 0, for no k and for a k below 1.
    """
    positive(temperature=temperature, rank_temperature=rank_temperature)
    if not k or min(k) < 1:
        raise ValueError(f"k must be one or more numbers from 1 on, not {k}")
    positives = c.positives
    _, ahead = soft_ranks(c.similarity, positives, c.compared, rank_temperature)
    ranks = positives.fill(ahead + 0.5, torch.inf)  # a positive counts σ(0) = ½ for itself
    cutoffs = ranks.new_tensor(k)
    hits = torch.sigmoid((cutoffs[:, None, None] - ranks) / temperature).sum(2)  # (K, A)
    most = torch.minimum(cutoffs[:, None], positives.count)
    recall = ratio(hits, most).clamp_max(1).mean(0)
    return Terms(other={"joint": mean(1 - recall, positives.count > 0)})


@home("in_batch", "cosine")
def ranked_list(
    c: Comparison,
    *,
    margin: float = 0.4,
    boundary: float = 1.2,
    temperature: float = 10.0,
    positive_temperature: float = 0.0,
    balance: float = 0.5,
) -> Terms:
    """Ranked list loss: positives within one distance, negatives beyond another (Wang et al. 2019).

    With near = boundary - margin, and weights u, v that are constants for the gradient and sum to 1
    over the pairs of an anchor that violate their side, u_ij ∝ e^{positive_temperature · d_ij} and
    v_ij ∝ e^{-temperature · d_ij}:
    tightness = (1 - balance) mean_i Σ_{same} u_ij [d_ij - near]₊
    contrast = balance mean_i Σ_{different} v_ij [boundary - d_ij]₊

    margin                 between the two distances
    boundary               the distance that negatives should keep (α in the paper)
    temperature            how far the nearest negatives outweigh the others; 0: all weigh the same
    positive_temperature   the same for the farthest positives
    balance                the share of the contrast, 0 to 1 (λ in the paper)

    The mean is over all anchors: one whose pairs are in place contributes 0. As the weights are
    held, the gradient is that of the hinges, not the derivative of the value (but for temperatures
    of 0). pytorch-metric-learning differentiates the weights too, and adds 1e-5·A to their sums.

    Use it where classes should keep an extent of their own instead of shrinking to a point, and to
    let every hard negative of a batch speak without mining.

    Memory O(A·R). Raises ValueError for a balance outside [0, 1], for a temperature below 0 and
    where closeness is no distance.
    """
    not_negative(margin=margin, temperature=temperature, positive_temperature=positive_temperature)
    if not 0 <= balance <= 1:
        raise ValueError(f"balance must be between 0 and 1, not {balance}")
    if margin > boundary:
        raise ValueError(
            f"margin must be at most the boundary {boundary}, not {margin}: positives are asked to "
            "be nearer than boundary - margin"
        )
    positives, anchors = c.positives, max(c.shape[0], 1)
    own, repelled = split(c.similarity, positives, _near_ones(c, boundary, temperature))
    gap = positives.fill((c.distance_of(own) - (boundary - margin)).relu(), 0.0)
    attracted = (_weights(gap.detach(), positive_temperature) * gap).sum()
    return Terms(
        tightness=(1 - balance) / anchors * attracted,
        contrast=balance / anchors * repelled.sum(),
    )


def _near_ones(c: Comparison, boundary: float, temperature: float) -> Rest:
    """(A,): Σ_different v·[boundary - d]₊, the weights v held for the slope."""

    def rest(s: Tensor) -> tuple[Tensor, Tensor]:
        value = s.new_empty(len(s))
        c.distance_of(s.new_empty(0))  # raises where there is none
        if passes := compiled(s):
            source, skip, slope = for_passes(s, c.keep_different)
            given = float(boundary), float(temperature), value.numpy()
            passes.weighted_hinges(source, skip, slope.numpy(), *given)
            return value, slope
        slope = torch.empty_like(s)
        for part in in_blocks(s.shape):
            d = c.distance_of(s[part])
            gap = c.keep_different((boundary - d).clamp_min_(0), part, 0.0)
            weight = _weights(gap, temperature)
            value[part] = (weight * gap).sum(1)
            torch.mul(weight, distance_slope(d).neg_(), out=slope[part])
        return value, slope

    return rest


def _weights(gap: Tensor, temperature: float) -> Tensor:
    """(A, R): in each row e^{temperature · gap} where the gap is above 0, scaled to sum to 1."""
    if not gap.shape[1]:
        return gap
    weight = (gap - gap.amax(1, keepdim=True)).mul_(temperature).exp_().mul_(gap > 0)
    return weight.div_(weight.sum(1, keepdim=True).clamp_min_(torch.finfo(gap.dtype).tiny))
