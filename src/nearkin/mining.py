"""Mining: Comparison -> Comparison. Narrows who is compared with whom; never weighs and never
scores.

What mining chooses has no gradient; the similarity that it read is handed on with its graph, so
that the loss does not compute it again.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from nearkin.closed import in_blocks
from nearkin.core import Comparison
from nearkin.positives import Positives

Mining = Callable[[Comparison], Comparison]


def all(c: Comparison) -> Comparison:
    """Every pair stays: the comparison as it is.

    Use it where a recipe or a search over recipes names the mining. Memory O(1).
    """
    return c


def hard(c: Comparison) -> Comparison:
    """Each anchor keeps its hardest positive and its hardest negative (Hermans et al. 2017, batch
    hard).

    The hardest positive is the least similar one, the hardest negative the most similar one. Memory
    O(A·R).
    """
    if not c.shape[1]:
        return c
    s = c.similarity.detach()
    allowed = torch.zeros_like(c.same)
    for part in in_blocks(s.shape):
        nearest, column = c.keep_different(s[part].clone(), part, -torch.inf).max(1)
        _allow(allowed[part], column, nearest > -torch.inf)
    if c.positives.columns.numel():
        own = c.positives.fill(s.gather(1, c.positives.columns), torch.inf)
        _allow(allowed, _at(c.positives, own.argmin(1)), c.positives.count > 0)
    return c.narrowed(allowed)


def easy_positive(c: Comparison, *, copy: float | None = 0.9999) -> Comparison:
    """Each anchor keeps its most similar positive, and all its negatives (Xuan et al. 2020, easy
    positive mining).

    copy   similarity from which on a positive is taken for a copy of the anchor and passed over, as
           in the reference implementation; null: none is. Where similarities are not cosines, set
           it to what is identical there

    An anchor without a positive that is left keeps its negatives. Use it where a class holds
    several kinds of things that need not come together. Memory O(A·R).
    """
    if not c.shape[1]:
        return c
    allowed = c.different.clone()
    if c.positives.columns.numel():
        own = c.similarity.detach().gather(1, c.positives.columns)
        if copy is not None:
            own = torch.where(own < copy, own, -torch.inf)
        own = c.positives.fill(own, -torch.inf)
        _allow(allowed, _at(c.positives, own.argmax(1)), own.amax(1) > -torch.inf)
    return c.narrowed(allowed)


def semi_hard(c: Comparison) -> Comparison:
    """For each positive pair, the nearest negative that is farther than the positive (FaceNet,
    Schroff et al. 2015).

    Where no negative is farther, the farthest one, as in the reference implementation. The rows of
    the result are the positive pairs of anchors that have a negative; its two columns are the
    positive and the negative. Memory O(A·R).
    """
    if not c.shape[1]:
        return c
    s, positives = c.similarity.detach(), c.positives.columns
    chosen, kept = torch.empty_like(positives), c.positives.count > 0
    for part in in_blocks(s.shape):
        negatives = c.keep_different(s[part].clone(), part, -torch.inf)
        own = s[part].gather(1, positives[part])
        for k in range(positives.shape[1]):
            beyond = torch.where(negatives < own[:, k : k + 1], negatives, -torch.inf)
            nearest, chosen[part, k] = beyond.max(1)
            _farthest(negatives, nearest, chosen[part, k], kept[part])
    return _triplets(c, chosen, kept)


def distance_weighted(c: Comparison, *, cutoff: float = 0.5, farthest: float = 1.4) -> Comparison:
    """For each positive pair, a negative drawn so that all distances are as likely (Wu et al.
    2017).

    P(n | a) ∝ 1 / q(max(d_an, cutoff))  over the negatives with d_an < farthest
    q(d) = d^{D-2} (1 - d²/4)^{(D-3)/2}

    q is the density of distances between random unit rows of D dimensions. The weights are
    normalized for each anchor, as a softmax of their logarithms: at D = 512 they span more than the
    exponents of float32, and where the largest weight of the whole batch is divided out, as in
    other implementations, an anchor with distant negatives alone loses all of them. An anchor
    without a negative nearer than `farthest` is left out.

    cutoff     distances below it count as it: the nearest negatives are noisy
    farthest   a negative from there on is not drawn: margin + beta of the margin loss, where its
               hinge ends

    Draws from torch's default generator, which the loop seeds for each step. The rows of the result
    are the positive pairs; its two columns are the positive and the negative. Memory O(A·R). Raises
    ValueError where no embeddings are compared (`given`), or by inner products.
    """
    if not 0 < cutoff < farthest <= 2:
        raise ValueError(
            "distance_weighted needs 0 < cutoff < farthest <= 2, the distances of unit rows, not "
            f"{cutoff} and {farthest}"
        )
    if not c.shape[1]:
        return c
    if c.anchors is None or c.closeness == "inner":
        seen = "a given similarity" if c.anchors is None else "inner products"
        raise ValueError(
            f"distance_weighted draws by the distances of unit rows, but these pairs are compared "
            f"by {seen}; compare rows by 'cosine', or take another mining"
        )
    s = c.similarity.detach()
    share, found = _shares(c, s, cutoff, farthest)
    drawn = c.positives.columns.shape[1]
    if not drawn:
        return _triplets(c, c.positives.columns, found)
    return _triplets(c, torch.multinomial(share, drawn, replacement=True), found)


def multi_similarity(c: Comparison, *, epsilon: float = 0.1) -> Comparison:
    """Pairs that are informative beside the anchor's others (Wang et al. 2019, eq. 7-8).

    A negative stays if its similarity exceeds the least similar positive's minus epsilon; a
    positive if its similarity is under the most similar negative's plus epsilon. An anchor that
    lacks a side keeps nothing, as in the reference implementation. Memory O(A·R).
    """
    if not c.shape[1]:
        return c
    s = c.similarity.detach()
    allowed = torch.zeros_like(c.same)
    if not c.positives.columns.numel():
        return c.narrowed(allowed)
    own = s.gather(1, c.positives.columns)
    hardest = c.positives.fill(own, torch.inf).amin(1, keepdim=True)
    for part in in_blocks(s.shape):
        above = s[part] + epsilon > hardest[part]
        torch.logical_and(c.different[part], above, out=allowed[part])
        nearest = c.keep_different(s[part].clone(), part, -torch.inf).amax(1, keepdim=True)
        allowed[part] |= (s[part] - epsilon < nearest) & c.same[part]
    return c.narrowed(allowed)


def _farthest(negatives: Tensor, nearest: Tensor, chosen: Tensor, kept: Tensor) -> None:
    """In place, for anchors (B,) without a negative beyond a positive (`nearest` is -inf): `chosen`
    is the farthest of the `negatives` (B, R), and `kept` says whether there is one."""
    rows = (nearest == -torch.inf).nonzero()[:, 0]
    if not len(rows):
        return
    own = negatives[rows]
    farthest, column = own.masked_fill_(own == -torch.inf, torch.inf).min(1)
    chosen[rows] = column
    kept[rows] &= farthest < torch.inf


def _shares(c: Comparison, s: Tensor, cutoff: float, farthest: float) -> tuple[Tensor, Tensor]:
    """(A, R) with what probability each negative is drawn, and (A,) bool whether there is one."""
    dim = c.anchors.shape[1]  # type: ignore[union-attr]
    share, found = torch.empty_like(s), c.positives.count > 0
    for part in in_blocks(s.shape):
        squared = 2 - 2 * s[part]
        near = c.different[part] & (squared < farthest**2)
        squared.clamp_(cutoff**2, farthest**2)
        log = squared.log().mul_((2 - dim) / 2)
        log.add_((1 - squared / 4).log(), alpha=(3 - dim) / 2)
        log.masked_fill_(~near, -torch.inf)
        some = log.amax(1) > -torch.inf
        torch.softmax(log, 1, out=share[part])
        # A row without candidates is dropped later; until then it must be a distribution.
        share[part][~some] = 1.0
        found[part] &= some
    return share, found


def _at(positives: Positives, place: Tensor) -> Tensor:
    """(A,) the column in which the positive at this place (A,) stands."""
    return positives.columns.gather(1, place[:, None])[:, 0]


def _allow(allowed: Tensor, column: Tensor, where: Tensor) -> None:
    """Set `allowed` (A, R), in place, at one column (A,) of each row `where` (A,) is true."""
    rows = where.nonzero()[:, 0]
    allowed[rows, column[rows]] = True


def _triplets(c: Comparison, chosen: Tensor, kept: Tensor) -> Comparison:
    """One row a positive pair of the anchors `kept` (A,): the positive, and the negative `chosen`
    (A, P) for it."""
    positives = c.positives
    valid = kept[:, None].expand(chosen.shape)
    if positives.valid is not None:
        valid = valid & positives.valid
    rows, places = valid.nonzero(as_tuple=True)
    columns = torch.stack([positives.columns[rows, places], chosen[rows, places]], 1)
    return c.columns(rows, columns)
