"""How an embedding lies on the sphere: alignment, uniformity, effective rank, divergence of pairs,
distance from the simplex. How well it retrieves is measured elsewhere.

All of them look at unit rows, and none changes where the rows are rotated. A row of zeros has no
direction: its similarity to all is 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nearkin.information.given import Rows, given_labels
from nearkin.search.space import unit

BINS = 51  # an odd number, so that orthogonal rows do not lie on an edge
MOST_T = 100.0  # beyond it e^{-4t} leaves the numbers
_ENTRIES, _SQUARE = 1 << 22, 512  # similarities held at a time; rows whose own pairs are picked out


def alignment(z: Any, labels: Any) -> float:
    """Mean squared distance of same pairs, mean |u_i - u_j|² over i ≠ j of one class, 0 to 4 (Wang
    & Isola 2020, eq. 4 with α = 2; their positive pairs are the pairs of one class here).

    z        (N, D) numpy or torch, any float dtype
    labels   (N,) integers, texts or categories

    0 where every class is one point. Every pair counts once, so that large classes count more. Time
    O(N²·D), memory O(N). Raises ValueError without a same pair, for wrong shapes, multi-hot labels
    and NaN.
    """
    return sphere(z, labels).alignment


def uniformity(z: Any, t: float = 2.0) -> float:
    """Log of the mean Gaussian potential of pairs, log mean_{i≠j} e^{-t|u_i - u_j|²}, -4t to 0
    (Wang & Isola 2020, eq. 5).

    z   (N, D) numpy or torch, any float dtype, N of at least 2
    t   how near two rows must be to count, above 0 to 100; the paper's 2

    0 where all rows are one point; about -2t, a little above, where rows of many dimensions are
    spread evenly. Time O(N²·D), memory O(N). Raises ValueError for fewer than two rows, t out of
    range and NaN.
    """
    return sphere(z, t=t).uniformity


def mean_cosine(z: Any) -> float:
    """Mean cosine over pairs of different rows, -1/(N - 1) to 1; 1: all point the same way.

    z   (N, D) numpy or torch, any float dtype, N of at least 2

    Time and memory O(N·D). Raises ValueError for fewer than two rows and NaN.
    """
    u = _unit_rows(Rows(z))
    if len(u) < 2:
        raise ValueError("a mean over pairs needs at least two rows, but there is one")
    whole = u.sum(0, dtype=torch.float64).square().sum()
    own = u.double().square().sum()
    return float((whole - own) / (len(u) * (len(u) - 1)))


def pair_divergence(z: Any, labels: Any, bins: int = BINS) -> float:
    """Jensen-Shannon divergence between the cosines of same and of different pairs, in bits, 0 to
    1.

    z        (N, D) numpy or torch, any float dtype
    labels   (N,) integers, texts or categories
    bins     of equal width over -1 to 1 that the cosines are counted in

    1 where a threshold on the cosine tells every same pair from every different one, 0 where the
    two are distributed alike. Both kinds weigh the same, however many pairs they have: it is the
    information of a pair's cosine about whether the pair is same, for pairs drawn half and half.
    Counting in bins can only lose some of it; n same pairs drawn by chance add about (b - 1)/(8 n
    ln 2), b the bins in use. Time O(N²·D), memory O(N). Raises ValueError without a same or without
    a different pair, for fewer than 2 bins, multi-hot labels and NaN.
    """
    return sphere(z, labels, bins=bins).pair_divergence


def jensen_shannon(p: Any, q: Any) -> float:
    """Jensen-Shannon divergence of two histograms over the same bins, ½KL(p|m) + ½KL(q|m) with
    m = (p + q)/2, in bits, 0 to 1 (Lin 1991).

    p, q   (B,) counts or weights, at least 0; each is divided by its sum

    Raises ValueError for other shapes, negative or infinite weights, and a histogram that is empty.
    """
    both = [np.asarray(each, dtype=np.float64) for each in (p, q)]
    if both[0].ndim != 1 or both[0].shape != both[1].shape:
        raise ValueError(
            f"two histograms must have the same bins, but their shapes are {both[0].shape} and "
            f"{both[1].shape}"
        )
    if any(not np.isfinite(each).all() or (each < 0).any() for each in both):
        raise ValueError("the weights of a histogram must be finite and at least 0")
    if not all(each.sum() > 0 for each in both):
        raise ValueError("a histogram is empty; a divergence needs weight on both sides")
    a, b = (each / each.sum() for each in both)
    middle = (a + b) / 2
    said = sum(float((x[x > 0] * np.log2(x[x > 0] / middle[x > 0])).sum()) for x in (a, b)) / 2
    return min(max(said, 0.0), 1.0)


def effective_rank(z: Any) -> float:
    """e^H of the singular values of the unit rows, H the entropy of their shares σ_k / Σ σ, 1 to
    min(N, D) (Roy & Vetterli 2007).

    z   (N, D) numpy or torch, any float dtype

    1 where one direction holds everything, D where all directions hold the same. The singular
    values themselves are shared out, not their squares, and the rows are not centered. 0 where all
    rows are zeros. Time O(N·D·min(N, D)). Raises ValueError for NaN.
    """
    return rank_of(_unit_rows(Rows(z)))


def rank_of(u: Tensor) -> float:
    """`effective_rank` of (N, D) unit rows that are known to be finite."""
    # The squared singular values, by the smaller Gram matrix; float64 keeps the small ones.
    rows = u.double()
    gram = rows @ rows.T if len(u) < u.shape[1] else rows.T @ rows
    values = torch.linalg.eigvalsh(gram).clamp_min(0).sqrt()
    total = values.sum()
    if not float(total) > 0:
        return 0.0
    share = values / total
    return float((-torch.special.xlogy(share, share).sum()).exp())


def simplex_distance(z: Any, labels: Any, classes: int | None = None) -> float:
    """How far the class means are from a regular simplex around the origin, 0 to √2 (Papyan et al.
    2020; the aim of cross-entropy and of supervised contrast: Graf et al. 2021).

    z         (N, D) numpy or torch, any float dtype
    labels    (N,) integers, texts or categories
    classes   how many corners the simplex has, K; by default the classes that are present, k

    |G/|G| - S/|S|| in Frobenius norms, with G the (k, k) inner products of the means of the unit
    rows and S those of the simplex: 1 on the diagonal, -1/(K - 1) elsewhere. 0 if and only if the
    means have equal norms and cosines of -1/(K - 1), whatever their length; √2 where all classes
    have one mean. It looks at means alone: how tight the classes are is said by the alignment. What
    D dimensions allow at best is `least_simplex_distance`. Memory O(k·D + min(k, D)²), never
    (k, k). Raises ValueError for fewer than two classes, classes below those present, multi-hot
    labels and NaN.
    """
    rows = Rows(z)
    code = _codes(labels, len(rows))
    sizes = torch.bincount(code)
    present = len(sizes)
    corners = _corners(present, classes)
    means = torch.zeros(present, rows.dim, dtype=torch.float64)
    means.index_add_(0, code, _unit_rows(rows).double())
    means /= sizes[:, None]
    gram = means @ means.T if present < rows.dim else means.T @ means
    length = float(gram.square().sum().sqrt())
    if length == 0:
        return math.sqrt(2)
    inner = corners * means.square().sum() - means.sum(0).square().sum()
    cosine = float(inner) / (length * math.sqrt(_squares(present, corners)))
    return math.sqrt(max(0.0, 2 - 2 * cosine))


def least_simplex_distance(present: int, dim: int, classes: int | None = None) -> float:
    """The `simplex_distance` of means that lie as evenly as `dim` dimensions allow (Welch 1974), 0
    to √2.

    present   classes that are looked at, k
    dim       D of the embedding
    classes   all that share the space, K; by default those present

    With K - 1 dimensions or more a simplex fits in, and it is 0. With fewer, the cosines cannot all
    be -1/(K - 1): their mean square is at least (K - D)/(D (K - 1)). Of all classes it is the
    smallest distance that there is; of some of them what they have on the average over the choice,
    where all lie so. Raises ValueError for fewer than two classes, and for `dim` below 1.
    """
    if dim < 1:
        raise ValueError(f"an embedding has at least 1 dimension, not {dim}")
    corners = _corners(present, classes)
    wanted = 1 / (corners - 1) ** 2  # mean square of the cosines of the simplex
    given = max(wanted, (corners - dim) / (dim * (corners - 1)))
    cosine = math.sqrt((1 + (present - 1) * wanted) / (1 + (present - 1) * given))
    return math.sqrt(max(0.0, 2 - 2 * cosine))


@dataclass(frozen=True)
class Sphere:
    """What one pass over all pairs of unit rows counts; see `sphere`.

    same, different   (B,) int64: pairs by their cosine, in bins of equal width over -1 to 1
    same_cosine       the sum of the cosines of same pairs
    potential         the sum of e^{-t|u_i - u_j|²} over pairs
    """

    same: np.ndarray
    different: np.ndarray
    same_cosine: float
    potential: float

    @property
    def alignment(self) -> float:
        """See the function of this name. Raises ValueError without a same pair."""
        pairs = int(self.same.sum())
        if not pairs:
            raise ValueError("no two rows have one class, so that there is no same pair to measure")
        return max(0.0, 2 - 2 * self.same_cosine / pairs)

    @property
    def uniformity(self) -> float:
        """See the function of this name."""
        return min(0.0, math.log(self.potential / int(self.same.sum() + self.different.sum())))

    @property
    def pair_divergence(self) -> float:
        """See the function of this name. Raises ValueError without a same or a different pair."""
        if not self.same.sum() or not self.different.sum():
            lacking = "same" if not self.same.sum() else "different"
            raise ValueError(f"there is no {lacking} pair, so that the two cannot be told apart")
        return jensen_shannon(self.same, self.different)


def sphere(z: Any, labels: Any = None, *, t: float = 2.0, bins: int = BINS) -> Sphere:
    """All pairs of rows counted in one pass: alignment, uniformity and divergence together.

    z        (N, D) numpy or torch, any float dtype, N of at least 2
    labels   (N,); None: every row is a class of its own
    t        of the uniformity
    bins     of the divergence

    Time O(N²·D) in float32, memory O(N). Raises ValueError as those do.
    """
    if not 0 < t <= MOST_T:
        raise ValueError(f"t must be above 0 and at most {MOST_T:g}, not {t}")
    if bins < 2:
        raise ValueError(f"a histogram needs at least 2 bins, not {bins}")
    rows = Rows(z)
    if len(rows) < 2:
        raise ValueError("pairs need at least two rows, but there is one")
    u = _unit_rows(rows)
    code = torch.arange(len(u)) if labels is None else _codes(labels, len(u))
    same = torch.zeros(bins, dtype=torch.float64)
    every = torch.zeros(bins, dtype=torch.float64)
    same_cosine = potential = 0.0
    for cosines, alike in _pairs(u, code):
        potential += float(torch.exp(2 * t * (cosines.double() - 1)).sum())
        near = cosines[alike]
        same_cosine += float(near.sum(dtype=torch.float64))
        same += torch.histc(near, bins, -1, 1).double()
        every += torch.histc(cosines, bins, -1, 1).double()
    counts = same.long().numpy(), (every - same).long().numpy()
    return Sphere(*counts, same_cosine, potential)


def _pairs(u: Tensor, code: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """(P,) cosines of pairs of different rows and whether they are same, every pair once."""
    start = 0
    while start < len(u):
        # Few enough that float32 counts of them are exact.
        end = min(len(u), start + max(1, min(_SQUARE, _ENTRIES // len(u))))
        rows, label = u[start:end], code[start:end]
        upper = torch.ones(end - start, end - start, dtype=torch.bool).triu_(1)
        yield (rows @ rows.T)[upper].clamp_(-1, 1), (label[:, None] == label)[upper]
        if end < len(u):
            alike = label[:, None] == code[end:]
            yield (rows @ u[end:].T).clamp_(-1, 1).flatten(), alike.flatten()
        start = end


def _unit_rows(rows: Rows) -> Tensor:
    """(N, D) float32 rows of length 1, on the CPU."""
    return torch.cat([unit(block).float().cpu() for block in rows.blocks()])


def _codes(labels: Any, length: int) -> Tensor:
    """(N,) int64 of the classes in the order in which they come."""
    coded = given_labels(labels, length)
    if coded.hot is not None:
        raise ValueError("pairs and means need one class a row, but the labels are multi-hot")
    return coded.codes


def _corners(present: int, classes: int | None) -> int:
    corners = present if classes is None else classes
    if present < 2:
        raise ValueError(f"a simplex needs at least two classes, but there is {present}")
    if corners < present:
        raise ValueError(f"there are {present} classes, so a simplex of {corners} has too few")
    return corners


def _squares(present: int, corners: int) -> float:
    """|(K - 1)·S|² of the k corners present."""
    return present * (corners - 1) ** 2 + present * (present - 1)
