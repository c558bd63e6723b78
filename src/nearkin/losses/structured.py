"""Losses over a whole batch at once: lifted structure, and angles of triangles. Both rows of a
positive pair bring their negatives; losses with an anchor's own alone are in triplets."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from nearkin.closed import (
    Rest,
    distance_slope,
    for_passes,
    in_blocks,
    known,
    log_sum_exp_,
    split,
)
from nearkin.core import Comparison, Terms, home
from nearkin.fast import compiled
from nearkin.reduce import logsumexp_over, mean, not_negative, ratio

# (B, R) exponents or hinge arguments of a block of pairs and all negatives, -inf where there is
# none, changed in place -> the score of each pair (B,), and its slope by each entry (B, R).
Score = Callable[[Tensor], tuple[Tensor, Tensor]]


@home("in_batch", "cosine")
def lifted_structure(c: Comparison, *, margin: float = 1.0) -> Terms:
    """Lifted structured feature embedding (Oh Song et al. 2016, eq. 4).

    With N_i = Σ_{different} e^{margin - d_ik} over the negatives k of a row i:
    joint = (1/2) mean_{same} [log(N_i + N_j) + d_ij]₊²

    The mean is over ordered positive pairs, which is the paper's half mean over unordered ones. A
    pair whose rows have no negative counts as 0. Rows are of length 1 here; the paper leaves them
    as they are (`closeness: euclidean`).

    margin   the distance that negatives should keep

    Use it with small batches of many classes, where each pair should see every negative of both its
    rows. The square lets the farthest pairs dominate; `generalized_lifted` has no square.

    Memory O(A·R). Raises ValueError where references are not the anchors or closeness is no
    distance.
    """
    not_negative(margin=margin)
    c.square()
    total = known(c.similarity, lifts(c, c.distance_of, margin))
    return _joint(ratio(total, 2 * c.positives.pairs), c)


@home("in_batch", "cosine")
def generalized_lifted(c: Comparison, *, margin: float = 1.0) -> Terms:
    """Lifted embedding over all positives of an anchor (Hermans et al. 2017, section 2).

    joint = mean_i [log Σ_{same} e^{d} + log Σ_{different} e^{margin - d}]₊

    The mean is over the anchors that have a positive and a negative, those at 0 too.

    margin   by how much farther the negatives should be than the positives

    Use it as a soft form of batch hard: the farthest positives and the nearest negatives weigh
    most, but all of them learn.

    Equals, with mining `hard`, the batch hard loss.

    Memory O(A·R). Raises ValueError where closeness is no distance.
    """
    not_negative(margin=margin)
    positives = c.positives
    own, near = split(c.similarity, positives, nearness(c, c.distance_of))
    far = logsumexp_over(positives, c.distance_of(own))
    scored = (positives.count > 0) & (near != -torch.inf)
    return Terms(other={"joint": mean((far + near + margin).clamp_min(0), scored)})


@home("in_batch", "cosine")
def angular(c: Comparison, *, angle: float = 45.0) -> Terms:
    """Angular loss, log form (Wang et al. 2017, section 3.3).

    With t = tan angle, f_apn = 4t² (s_an + s_pn) - 2(1 + t²) s_ap:
    joint = mean_{same} log(1 + Σ_{n different} e^{f_apn})

    Over all ordered positive pairs (a, p), each with all negatives of a; the paper draws one pair a
    class. Pairs without a negative count as 0. Reads similarities alone.

    angle   degrees, 36 to 55 in the paper: half of the angle at the negative that is allowed

    Use it beside an N-pair loss (the paper's weight is 2): the angle does not see the scale of a
    class, where one margin for all distances does.

    Memory O(A·R), time O(A·R·P) for P positives an anchor. Raises ValueError where references are
    not the anchors, and for an angle that is not between 0 and 90.
    """
    t = tangent(angle)
    total = over_triangles(c, t, lambda own: -2 * (1 + t * t) * own, log1p_sums)
    return _joint(ratio(total, c.positives.pairs), c)


@home("in_batch", "cosine")
def angular_hinge(c: Comparison, *, angle: float = 45.0) -> Terms:
    """Angular loss, hinge form, mean over all triplets (Wang et al. 2017, section 3.2).

    joint = mean_{apn} [d_ap² - 4 tan² angle · |x_n - (x_a + x_p)/2|²]₊

    The triangle of a, p and n is made upright: its base a-p, the negative over the middle of the
    base; the angle at n is asked to stay below twice `angle`. All ordered triplets count, those at
    0 too.

    angle   degrees, as for `angular`

    Use it where `angular` goes on pushing negatives that are wide enough: the hinge stops.

    Equals, argument by argument, the exponent of `angular` plus 2 - 6 tan² angle.

    Memory O(A·R), time O(A·R·P) for P positives an anchor. Raises ValueError where references are
    not the anchors, closeness is no distance, and for an angle that is not between 0 and 90.
    """
    t = tangent(angle)

    def base(own: Tensor) -> Tensor:
        d = c.distance_of(own).square()
        return d - 4 * t * t * (2 - d / 4)  # |x_n - middle|² = 2 - d²/4 - s_an - s_pn

    triplets = (c.positives.count * c.negatives).sum()
    return _joint(ratio(over_triangles(c, t, base, hinges), triplets), c)


def _joint(value: Tensor, c: Comparison) -> Terms:
    return Terms(other={"joint": value.to(c.similarity.dtype)})


def nearness(c: Comparison, distance_of: Callable[[Tensor], Tensor]) -> Rest:
    """(A,): log Σ_different e^{-d}, -inf where an anchor has no negative."""

    def rest(s: Tensor) -> tuple[Tensor, Tensor]:
        value = s.new_empty(len(s))
        distance_of(s.new_empty(0))  # raises where there is none
        if passes := compiled(s):
            source, skip, slope = for_passes(s, c.keep_different)
            passes.nearness(source, skip, slope.numpy(), value.numpy())
            return value, slope
        slope = torch.empty_like(s)
        for part in in_blocks(s.shape):
            d = distance_of(s[part])
            weight = c.keep_different(-d, part, -torch.inf)
            value[part] = log_sum_exp_(weight)
            torch.mul(weight, distance_slope(d).neg_(), out=slope[part])
        return value, slope

    return rest


def lifts(c: Comparison, distance_of: Callable[[Tensor], Tensor], margin: float) -> Rest:
    """0-dim: Σ_same [log(Σ e^{margin - d_ik} + Σ e^{margin - d_jl}) + d_ij]₊²."""
    positives = c.positives

    def rest(s: Tensor) -> tuple[Tensor, Tensor]:
        near, slope = nearness(c, distance_of)(s)
        near.clamp_min_(torch.finfo(s.dtype).min)  # -inf minus -inf is NaN
        here, there = near[:, None], near[positives.columns]
        both, d = torch.logaddexp(here, there), distance_of(s.gather(1, positives.columns))
        hinge = positives.fill((both + d + margin).clamp_min_(0), 0.0)
        to_here, to_there = hinge * (here - both).exp(), hinge * (there - both).exp()
        weight = to_here.sum(1).index_add_(0, positives.columns.view(-1), to_there.view(-1))
        slope *= 2 * weight[:, None]
        slope.scatter_add_(1, positives.columns, 2 * hinge * distance_slope(d))
        return hinge.square().sum(), slope

    return rest


def tangent(angle: float) -> float:
    """tan of degrees between 0 and 90, which it checks."""
    if not 0 < angle < 90:
        raise ValueError(f"angle must be between 0 and 90 degrees, not {angle}")
    return math.tan(math.radians(angle))


def over_triangles(
    c: Comparison, t: float, base: Callable[[Tensor], Tensor], score: Score
) -> Tensor:
    """0-dim float64: the sum over all positive pairs of the score of f_apn = 4t² (s_an + s_pn) +
    base(s_ap), each pair with all its negatives; base has the slope -2(1 + t²)."""
    c.square()
    s, positives = c.similarity, c.positives
    with torch.no_grad():
        own = positives.fill(base(s.gather(1, positives.columns)), -torch.inf)
        total, slope = s.new_zeros((), dtype=torch.float64), torch.zeros_like(s)
        of_own = torch.empty_like(own)
        for part in in_blocks(s.shape):
            negative = c.keep_different(s[part].clone(), part, -torch.inf)
            for p in range(own.shape[1]):
                other = positives.columns[part, p]
                f = s.index_select(0, other).add_(negative).mul_(4 * t * t)
                value, weight = score(f.add_(own[part, p : p + 1]))
                total += value.sum(dtype=torch.float64)
                torch.sum(weight, 1, out=of_own[part, p])
                slope[part].add_(weight, alpha=4 * t * t)
                slope.index_add_(0, other, weight, alpha=4 * t * t)
        slope.scatter_add_(1, positives.columns, of_own.mul_(-2 * (1 + t * t)))
    return known(s, lambda _: (total, slope))


def log1p_sums(f: Tensor) -> tuple[Tensor, Tensor]:
    """log(1 + Σ e^f) of each row."""
    top = f.amax(1, keepdim=True).clamp_min_(0)
    total = f.sub_(top).exp_().sum(1, keepdim=True).add_((-top).exp_())
    return (total.log() + top)[:, 0], f.div_(total)


def hinges(f: Tensor) -> tuple[Tensor, Tensor]:
    """Σ [f]₊ of each row."""
    value = f.clamp_min_(0).sum(1)
    return value, f.sign_()
