"""Losses over triplets (anchor, positive, negative) and quadruplets, without ever holding them.
Mining, which chooses triplets for any loss, stands elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nearkin.closed import (
    distance_slope,
    for_passes,
    gathered,
    in_blocks,
    known,
    nearest_below,
)
from nearkin.core import Comparison, Terms, home
from nearkin.fast import compiled
from nearkin.ranks import ladder, ranks_by_class
from nearkin.reduce import mean, not_negative, positive, ratio, softplus

PASSES = 64  # positives an anchor up to which a pass each is faster than a search among them
COMPILED = 256  # the same of compiled passes
COPY = 0.9999  # similarity from which on a positive is taken for a copy of the anchor

# (B, P) distances of the positives of some anchors, lowest where there is none, and (B, R) those of
# the negatives, largest where the pair is none -> the sum over triplets, by how much it grows with
# each positive (B, P), and by how much it falls with each negative (B, R).
Score = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


@home("in_batch", "cosine")
def triplet(c: Comparison, *, margin: float = 0.2) -> Terms:
    """Triplet hinge over all triplets, mean over the violating ones (Schroff et al. 2015, eq. 3;
    unsquared).

    joint = mean_{d_ap - d_an + margin > 0} (d_ap - d_an + margin)

    The hinge couples tightness and contrast, so nothing is split. The paper sums squared distances
    over triplets that it chooses. A mean over all triplets would fade as they are learned; this one
    does not.

    margin   by how much farther a negative should be than a positive, in distance

    Use it where the order alone matters: it asks nothing of a class once its rows are nearer to
    each other than to the rest by the margin.

    Memory O(A·R), time O(A·R·P) for P positives an anchor and O(A·R log P) beyond 64. Raises
    ValueError where closeness is no distance.
    """
    not_negative(margin=margin)
    total, violated = over_triplets(c, Measure(c.distance_of), hinges, margin)
    return _joint(ratio(total, violated.sum(dtype=torch.float64)), c)


@home("in_batch", "cosine")
def triplet_soft_margin(c: Comparison) -> Terms:
    """Triplet loss with a soft margin, mean over all triplets (Hermans et al. 2017, section 2).

    joint = mean log(1 + e^{d_ap - d_an})

    The paper scores the hardest triplet of each anchor alone: mining `hard`.

    Use it in place of a hinge where a class should go on gathering after a margin is met, or where
    no margin is known.

    Equals, with mining `hard`, the paper's batch hard loss with a soft margin.

    Memory O(A·R), time O(A·R·P) for P positives an anchor. Raises ValueError where closeness is no
    distance.
    """
    total, _ = over_triplets(c, Measure(c.distance_of), soft_margins)
    return _joint(ratio(total, triplets(c)), c)


@home("in_batch", "cosine")
def triplet_semi_hard(c: Comparison, *, margin: float = 0.2) -> Terms:
    """Triplet hinge on one semi-hard negative a positive pair (Schroff et al. 2015, eq. 3 and 4).

    joint = mean_{same} [d_ap² - d_an² + margin]₊

    The negative is the nearest one that is farther than the positive; where there is none, the
    farthest of all, as in TensorFlow's implementation. The mean is over all positive pairs whose
    anchor has a negative, those at 0 too. Other implementations call every triplet semi-hard whose
    negative is farther than the positive and whose hinge is above 0.

    margin   by how much farther a negative should be than a positive, in squared distance

    Use it where the hardest negative of a batch is often a wrong label or a copy: large batches,
    many rows a class, faces.

    Equals the mean hinge on the squared distances of mining `semi_hard`.

    Memory O(A·R), time O(A·R·P) for P positives an anchor. Raises ValueError where closeness is no
    distance.
    """
    not_negative(margin=margin)
    s, positives = c.similarity, c.positives
    most = positives.columns.shape[1]
    with torch.no_grad():
        columns = torch.cat([positives.columns, semi_hard(c)], 1)
        valid = (c.negatives > 0)[:, None].expand(-1, most)
        valid = valid if positives.valid is None else valid & positives.valid
    squared = c.distance_of(gathered(s, columns)).square()
    return _joint(mean((squared[:, :most] - squared[:, most:] + margin).clamp_min(0), valid), c)


@home("in_batch", "cosine")
def triplet_hard(c: Comparison, *, margin: float = 0.2) -> Terms:
    """Batch hard triplet hinge, one triplet an anchor (Hermans et al. 2017, section 2).

    joint = mean_i [max_p d_ip - min_n d_in + margin]₊

    The mean is over the anchors that have a positive and a negative, those at 0 too. Distances are
    not squared, as in the paper.

    margin   by how much farther a negative should be than a positive, in distance

    Use it for re-identification, with few rows of each of many classes in a batch and clean labels;
    where it collapses all rows to one point at the start, take `triplet_semi_hard` or a lower
    learning rate.

    Equals `triplet` with mining `hard` where every anchor violates.

    Memory O(A·R). Raises ValueError where closeness is no distance.
    """
    not_negative(margin=margin)
    s, positives = c.similarity, c.positives
    if not positives.columns.numel():
        return _joint(c.distance_of(s[:, :0]).sum(), c)
    with torch.no_grad():
        own = positives.fill(s.gather(1, positives.columns), torch.inf)
        farthest = positives.columns.gather(1, own.argmin(1, keepdim=True))
        everyone = s.new_full((len(s), 1), torch.inf)
        nearest = nearest_below(s, c.keep_different, everyone, strictly=False)
        columns = torch.cat([farthest, nearest.clamp_min(0)], 1)
        scored = (positives.count > 0) & (c.negatives > 0)
    d = c.distance_of(gathered(s, columns))
    return _joint(mean((d[:, 0] - d[:, 1] + margin).clamp_min(0), scored), c)


@home("in_batch", "cosine")
def easy_positive_hard_negative(c: Comparison, *, temperature: float = 0.1) -> Terms:
    """Easiest positive against the hardest negative, EPHN (Xuan et al. 2020, section 3).

    With p and n the most similar positive and the most similar negative of i:
    joint = mean_i log(1 + e^{(s_in - s_ip) / temperature})

    A positive with s ≥ 0.9999 is taken for a copy of the anchor and passed over. The mean is over
    the anchors with s_ip > 0 and s_in > 0, as in the authors' code. It scores similarities, never
    distances.

    temperature   the lower, the sooner a triplet that is right stops teaching

    Use it where a class has several modes (views, styles) and many rows in a batch: a row is asked
    to be near one of its class, not all.

    Equals, with one negative, the N-pair loss of two classes on similarities over the temperature.

    Memory O(A·R). Raises ValueError for a temperature that is not above 0.
    """
    return _joint(
        easiest_against(c, temperature, lambda easiest: torch.full_like(easiest, torch.inf)), c
    )


@home("in_batch", "cosine")
def easy_positive_semi_hard_negative(c: Comparison, *, temperature: float = 0.1) -> Terms:
    """Easiest positive against the hardest negative that is no nearer, EPSHN (Xuan et al. 2020,
    section 3).

    With p the most similar positive of i and n its most similar negative with s_in ≤ s_ip:
    joint = mean_i log(1 + e^{(s_in - s_ip) / temperature})

    As `easy_positive_hard_negative`, and an anchor whose negatives are all nearer than the positive
    is left out. Every term is at most log 2.

    temperature   the lower, the sooner a triplet that is right stops teaching

    Use it as `easy_positive_hard_negative`, which it steadies early in training: it never pulls an
    anchor over a nearer negative.

    Memory O(A·R). Raises ValueError for a temperature that is not above 0.
    """
    return _joint(easiest_against(c, temperature, lambda easiest: easiest), c)


@home("in_batch", "cosine")
def quadruplet(c: Comparison, *, margin: float = 1.0, second_margin: float = 0.5) -> Terms:
    """Quadruplet loss (Chen et al. 2017; squared distances, fixed margins).

    joint = mean_{ijk} [d_ij² - d_ik² + margin]₊ + mean_{ijlk} [d_ij² - d_lk² + second_margin]₊

    i and j are of one class, k of another; in the second mean l and k are of two classes, neither
    that of i. Means over all ordered tuples, those at 0 too; with fewer than three classes the
    second is 0. The paper learns the distance and adapts the margins to a batch.

    margin          of the triplets, which share their anchor
    second_margin   of the pairs that share no row; below `margin`, as it helps them only

    Use it where classes must be compact in one common scale, as for a single threshold: the second
    mean compares distances across anchors.

    Equals, with two classes, the mean triplet hinge on squared distances.

    Memory O(A·R); time O(A·R·P) for P positives an anchor, and O(A·R) for the second mean where few
    distances lie near a threshold. Raises ValueError where references are not the anchors,
    closeness is no distance, or a row has several labels.
    """
    not_negative(margin=margin, second_margin=second_margin)
    s = c.square().similarity
    with torch.no_grad():
        many, tuples = triplets(c).clamp_min(1), quadruplets(c)
        total, slope, _ = scored_triplets(c, Measure(c.distance_of, squared=True), hinges, margin)
        # Without tuples its slopes would cancel, but only after they were rounded.
        if tuples > 0:
            each = many / tuples.double()
            total += each * over_quadruplets(c, second_margin, slope, each)
    return _joint(known(s, lambda _: (total, slope)) / many, c)


def _joint(value: Tensor, c: Comparison) -> Terms:
    return Terms(other={"joint": value.to(c.similarity.dtype)})


@dataclass(frozen=True)
class Measure:
    """Any shape: similarities -> their distances by `distance_of`, perhaps squared, and slopes."""

    distance_of: Callable[[Tensor], Tensor]
    squared: bool = False

    def __call__(self, s: Tensor) -> tuple[Tensor, Tensor | float]:
        """Distances and slopes, of any shape."""
        d = self.distance_of(s)
        return (d.square(), -2.0) if self.squared else (d, distance_slope(d))


def triplets(c: Comparison) -> Tensor:
    """0-dim int64: how many triplets there are."""
    return (c.positives.count * c.negatives).sum()


def over_triplets(
    c: Comparison, measure: Measure, score: Score, margin: float = 0.0
) -> tuple[Tensor, Tensor]:
    """0-dim float64: the sum of a score over all triplets, the margin added to the distances of
    positives; and its slopes by these distances (A, P)."""
    s = c.similarity  # read here, where gradients are recorded
    with torch.no_grad():
        total, slope, grows = scored_triplets(c, measure, score, margin)
    return known(s, lambda _: (total, slope)), grows


def scored_triplets(
    c: Comparison, measure: Measure, score: Score, margin: float
) -> tuple[Tensor, Tensor, Tensor]:
    """0-dim float64: the sum of a score over all triplets; its slopes by similarity (A, R) and by
    the distances of positives (A, P). No gradient."""
    s, positives = c.similarity, c.positives
    limits = torch.finfo(s.dtype)
    own, per_own = measure(s.gather(1, positives.columns))
    near = positives.fill(own + margin, limits.min)
    grows = torch.empty_like(near)
    if score is hinges and near.shape[1] <= COMPILED and (passes := compiled(s)):
        source, skip, slope = for_passes(s, c.keep_different)
        given = slope.numpy(), near.numpy(), measure.squared, grows.numpy()
        total = s.new_tensor(passes.triplet_hinges(source, skip, *given), dtype=torch.float64)
        return total, slope.scatter_add_(1, positives.columns, grows * per_own), grows
    slope, total = torch.empty_like(s), s.new_zeros((), dtype=torch.float64)
    for part in in_blocks(s.shape):
        d, per_s = measure(s[part])
        far = c.keep_different(d.clone(), part, limits.max)
        value, grows[part], falls = score(near[part], far)
        total += value
        falls.neg_().scatter_add_(1, positives.columns[part], grows[part])
        torch.mul(falls, per_s, out=slope[part])
    return total, slope, grows


def hinges(near: Tensor, far: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Σ [near - far]₊; its slopes are the numbers of violated triplets that hold a pair."""
    counts = by_passes if near.shape[1] <= PASSES else by_search
    of_near, of_far = counts(near, far)
    # Large sums cancel here; float64 keeps the small remainder.
    # Rows first: adding float32 as float64 converts a whole matrix.
    total = (of_near.double() * near).sum() - (of_far * far).sum(1).double().sum()
    return total, of_near, of_far


def by_passes(near: Tensor, far: Tensor) -> tuple[Tensor, Tensor]:
    """(B, P), (B, R): how many of the far each of the near exceeds, and how many of the near exceed
    each of the far. A pass over the far for each of the near."""
    of_near, of_far, beaten = torch.empty_like(near), torch.zeros_like(far), torch.empty_like(far)
    for p in range(near.shape[1]):
        torch.gt(near[:, p : p + 1], far, out=beaten)
        torch.sum(beaten, 1, out=of_near[:, p])
        of_far += beaten
    return of_near, of_far


def by_search(near: Tensor, far: Tensor) -> tuple[Tensor, Tensor]:
    """As `by_passes`, by a search among the near, sorted."""
    ascending, order = near.sort(1)
    below = torch.searchsorted(ascending, far, right=True)
    counts = near.new_zeros(len(near), near.shape[1] + 1)
    counts.scatter_add_(1, below, near.new_ones(()).expand_as(below))
    of_near = torch.empty_like(near).scatter_(1, order, counts.cumsum(1)[:, :-1])
    return of_near, (near.shape[1] - below).to(far.dtype)


def soft_margins(near: Tensor, far: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Σ log(1 + e^{near - far})."""
    total = near.new_zeros((), dtype=torch.float64)
    of_near, of_far = torch.empty_like(near), torch.zeros_like(far)
    for p in range(near.shape[1]):
        x = near[:, p : p + 1] - far
        total += softplus(x).sum(1).sum(dtype=torch.float64)
        torch.sum(x.sigmoid_(), 1, out=of_near[:, p])
        of_far += x
    return total, of_near, of_far


def semi_hard(c: Comparison) -> Tensor:
    """(A, P) int64: for each positive the most similar negative that is less similar than it; where
    there is none, the least similar negative."""
    s, columns = c.similarity, c.positives.columns
    if not columns.numel():
        return torch.empty_like(columns)
    chosen = nearest_below(s, c.keep_different, s.gather(1, columns), strictly=True)
    if not bool((chosen < 0).any()):
        return chosen
    least = c.keep_different(s.clone(), slice(None), torch.inf).argmin(1, keepdim=True)
    return torch.where(chosen < 0, least, chosen)


def easiest_against(c: Comparison, temperature: float, limit: Callable[[Tensor], Tensor]) -> Tensor:
    """0-dim: the easiest positive of each anchor against the hardest of the negatives that are no
    more similar than the `limit` made of the easiest ones' similarities (A, 1)."""
    positive(temperature=temperature)
    s, positives = c.similarity, c.positives
    if not positives.columns.numel():
        return s[:, :0].sum()
    with torch.no_grad():
        own = s.gather(1, positives.columns)
        own = positives.fill(torch.where(own < COPY, own, -torch.inf), -torch.inf)
        easiest, place = own.max(1, keepdim=True)
        hardest = nearest_below(s, c.keep_different, limit(easiest), strictly=False)
        columns = torch.cat([positives.columns.gather(1, place), hardest.clamp_min(0)], 1)
    s = gathered(s, columns)
    with torch.no_grad():
        # Not `> 0`: NaN must be scored.
        scored = (easiest[:, 0] > 0) & (hardest[:, 0] >= 0) & ~(s[:, 1] <= 0)
    return mean(softplus((s[:, 1] - s[:, 0]) / temperature), scored)


def over_quadruplets(c: Comparison, margin: float, slope: Tensor, each: Tensor) -> Tensor:
    """0-dim float64: Σ [d_ij² - d_lk² + margin]₊ over positive pairs (i, j) and pairs (l, k) of two
    other classes. Adds `each` times its slope by similarity to `slope` (A, R). No gradient.

    The few positives are sorted. A pair (l, k) counts for every threshold d_ij² + margin above it,
    but for those of its own two classes.
    """
    s, of, positives = c.similarity, class_of(c.anchor_label), c.positives
    if not positives.pairs:
        return s.new_zeros((), dtype=torch.float64)
    own = s.gather(1, positives.columns)
    valid = torch.ones_like(own, dtype=torch.bool) if positives.valid is None else positives.valid
    value, order = (squares(own[valid]) + margin).sort()
    classes = of[:, None].expand(own.shape)[valid][order]
    total, counts = beside(c, value, classes, of, slope, each)
    pull = torch.zeros_like(own)
    pull[valid] = torch.empty_like(value).index_copy_(0, order, (-2 * each * counts).to(s.dtype))
    slope.scatter_add_(1, positives.columns, pull)
    return total + (counts * value).sum()


def beside(
    c: Comparison, value: Tensor, own: Tensor, of: Tensor, slope: Tensor, each: Tensor
) -> tuple[Tensor, Tensor]:
    """Over the pairs (l, k) of different classes: minus the sum of d_lk², each as often as it is in
    a violated tuple (0-dim float64); in how many each threshold is (T,) float64. Adds `each` times
    the slope to `slope` (A, R).

    value   (T,) ascending thresholds
    own     (T,) their classes
    of      (A,) the classes of the rows
    """
    s, most, classes = c.similarity, len(value), int(of.max()) + 1
    steps, below_of = ladder(value), ranks_by_class(own, classes, 4 * s.numel())
    size = torch.bincount(own, minlength=classes)
    # A class of n thresholds can have kept off n + 1 numbers of them.
    start = (size.cumsum(0) - size + torch.arange(classes, device=s.device)).int()
    size = size.int()
    # A batch that meets itself has every distance twice: the half above the diagonal is enough.
    half = c.given is None and c.allowed is None
    each = 4 * each if half else 2 * each
    total = s.new_zeros((), dtype=torch.float64)
    # Pairs by the number of thresholds that they keep off: of all, and of each of their classes.
    off, off_own = of.new_zeros(most + 1), of.new_zeros(most + classes)
    for part in in_blocks(s.shape):
        first = part.start if half else 0
        counted = c.different[part, first:]
        d = squares(s[part, first:])
        kept_off = steps.ranks(d)
        # Pairs that do not count keep all off.
        kept_off.masked_fill_(~(counted.triu() if half else counted), most)
        off += torch.bincount(kept_off.view(-1), minlength=most + 1)
        times = most - kept_off
        for rows in ((part, None), (None, slice(first, None))):
            below = below_of(of[rows], kept_off)
            off_own += torch.bincount((below + start[of[rows]]).view(-1), minlength=len(off_own))
            times += below.sub_(size[of[rows]])
        times = times.to(s.dtype)
        total -= (times * d).sum(1).sum(dtype=torch.float64)
        slope[part, first:].addcmul_(times, each.to(s.dtype))
    counts, below = off.cumsum(0)[:most], F.pad(off_own.cumsum(0), (1, 0))
    grouped = own.argsort(stable=True)
    own, place = own[grouped], torch.arange(most, device=s.device)
    of_own = below[place + own + 1] - below[start[own].long()]
    counts = counts.index_add(0, grouped, of_own, alpha=-1).double()
    return (2 * total, 2 * counts) if half else (total, counts)


def squares(s: Tensor) -> Tensor:
    """d² of similarities by a distance."""
    return (2 - 2 * s).clamp_min_(0)


def quadruplets(c: Comparison) -> Tensor:
    """0-dim int64: how many pairs of a positive pair and a pair of two other classes there are."""
    of, row = class_of(c.anchor_label), c.negatives
    touched = row + (row if c.allowed is None else c.different.sum(0))
    touched = touched.new_zeros(len(of)).index_add_(0, of, touched)
    return c.positives.pairs * row.sum() - (touched[of] * c.positives.count).sum()


def class_of(label: Tensor) -> Tensor:
    """(A,) int64 numbers from 0 of the classes of (A,) labels, or of (A, L) multi-hot ones; a row
    without a label is a class of its own."""
    if label.ndim == 2:
        if bool((label.sum(1) > 1).any()):
            raise ValueError(
                "quadruplet takes rows of one class each, but some rows have several labels; use "
                "triplet"
            )
        alone = label.shape[1] + torch.arange(len(label), device=label.device)
        label = torch.where(label.any(1), label.int().argmax(1), alone)
    return label.unique(return_inverse=True)[1]
