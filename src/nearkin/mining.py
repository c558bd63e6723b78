"""Mining: Comparison -> Comparison. Narrows who is compared with whom; never weighs and never
scores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from nearkin.core import Comparison

Mining = Callable[[Comparison], Comparison]


def hard(c: Comparison) -> Comparison:
    """Each anchor keeps its hardest positive and its hardest negative (Hermans et al. 2017, batch
    hard).

    The hardest positive is the least similar one, the hardest negative the most similar one. Memory
    O(A·R).
    """
    if not c.shape[1]:
        return c
    s = c.similarity.detach()
    positive = torch.where(c.same, s, torch.inf).argmin(1, keepdim=True)
    negative = torch.where(c.different, s, -torch.inf).argmax(1, keepdim=True)
    kept = torch.zeros_like(c.same).scatter_(1, positive, True) & c.same
    kept |= torch.zeros_like(c.same).scatter_(1, negative, True) & c.different
    return replace(c, allowed=kept)


def semi_hard(c: Comparison) -> Comparison:
    """For each positive pair, the nearest negative that is farther than the positive (FaceNet,
    Schroff et al. 2015).

    Where no negative is farther, the farthest one, as in the reference implementation. The rows of
    the result are the positive pairs of anchors that have a negative; its two columns are the
    positive and the negative. Memory O(P·R) for P positive pairs.
    """
    if not c.shape[1]:
        return c
    rows, columns = c.pairs()
    s = c.similarity.detach()
    keep = c.different.any(1)[rows]
    rows, columns = rows[keep], columns[keep]
    negatives = torch.where(c.different[rows], s[rows], -torch.inf)
    beyond = negatives < s[rows, columns][:, None]
    nearest_beyond = torch.where(beyond, negatives, -torch.inf).argmax(1)
    farthest = torch.where(c.different[rows], s[rows], torch.inf).argmin(1)
    chosen = torch.where((beyond & negatives.isfinite()).any(1), nearest_beyond, farthest)
    return c.columns(rows, torch.stack([columns, chosen], 1))


def multi_similarity(c: Comparison, *, epsilon: float = 0.1) -> Comparison:
    """Pairs that are informative beside the anchor's others (Wang et al. 2019, eq. 7-8).

    A negative stays if its similarity exceeds the least similar positive's minus epsilon; a
    positive if its similarity is under the most similar negative's plus epsilon. An anchor that
    lacks a side keeps nothing, as in the reference implementation. Memory O(A·R).
    """
    if not c.shape[1]:
        return c
    s = c.similarity.detach()
    hardest_positive = torch.where(c.same, s, torch.inf).amin(1, keepdim=True)
    hardest_negative = torch.where(c.different, s, -torch.inf).amax(1, keepdim=True)
    negatives = c.different & (s + epsilon > hardest_positive)
    positives = c.same & (s - epsilon < hardest_negative)
    return replace(c, allowed=positives | negatives)
