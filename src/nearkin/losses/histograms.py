"""Losses over soft histograms of similarities: the histogram loss and FastAP. No ranks of single
rows."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from nearkin.closed import for_passes, in_blocks, known
from nearkin.core import Comparison, Terms, home
from nearkin.fast import compiled
from nearkin.reduce import mean

# Nodes j = 0 .. bins stand at the similarities 1 - 2j/bins, the nearest first. Cell j + 2 lies
# between the nodes j and j + 1. Cell 0 takes what is not counted, cell 1 what is above 1, cell
# bins + 2 what is at -1 or below.


@home("in_batch", "cosine")
def histogram(c: Comparison, *, bins: int = 100) -> Terms:
    """Histogram loss: how often a negative pair is as similar as a positive one (Ustinova and
    Lempitsky 2016, eq. 1-5).

    With h⁺_r, h⁻_r = the shares of all positive and of all negative pairs at the node
    -1 + 2r/bins, r = 0 .. bins:
    joint = Σ_r h⁻_r Σ_{q≤r} h⁺_q

    A pair is split linearly between the two nodes around its similarity. The pairs of the whole
    comparison share the two histograms, which are kept in float64. Similarities are taken to lie in
    [-1, 1]: what lies beyond (by another closeness than cosine) counts at the last node there, with
    gradient 0. pytorch-metric-learning leaves out the negative pairs of rows that are both alone in
    their class, and has no node for a similarity of 1.

    bins   cells of similarity in [-1, 1]; the result hardly depends on them

    Use it with large batches and where thresholds and margins are hard to tune: it has none, and a
    single outlier moves it little. Once the positive and the negative similarities do not overlap
    it is 0.

    Equals the share of (positive pair, negative pair) with s⁺ ≤ s⁻, which is 1 - AUC of the pairs,
    as bins grow.

    Time O(A·R + bins). Memory O(A·(R + bins)). Raises ValueError for fewer than 1 bin.
    """
    _at_least_one(bins)
    positives, width = c.positives, bins + 3
    pairs = _or_one(c.negative_pairs) * _or_one(positives.pairs)

    def overlap(s: Tensor) -> tuple[Tensor, Tensor]:
        """The mean over negative pairs of the share of the positive pairs that are no nearer."""
        if cells := compiled(s, "nearkin.cells"):
            keep, value = c.keep_different, s.new_empty(())
            # Below -1 all is alike, and -inf hides what a mask leaves out.
            kept, skip, slope = for_passes(s if keep.skip is not None else s.clamp_min(-2), keep)
            own = positives.columns.numpy(), positives.count.numpy()
            given = s.contiguous().numpy(), kept, skip, *own, bins, float(pairs)
            cells.overlap(*given, slope.numpy(), value.numpy())
            return value, slope
        own_cell, share = _cells(s.gather(1, positives.columns), bins)
        if positives.valid is not None:
            own_cell *= positives.valid
        own = _at_nodes(*_all_sums(own_cell, share, width))
        push = _by_cell(own[:-1] * (bins / 2 / pairs)).to(s.dtype)
        near, before, slope = torch.zeros_like(own), torch.zeros_like(own), s.new_empty(s.shape)
        for part in in_blocks(s.shape):
            cell, share = _cells(s[part], bins)
            more = _all_sums(c.keep_different(cell, part, 0), share, width)
            near += more[0]
            before += more[1]
            torch.index_select(push, 0, cell.reshape(-1), out=slope[part].view(-1))
        others = _at_nodes(near, before)
        pull = _by_cell(others[1:] * (-bins / 2 / pairs)).to(s.dtype)
        pull = pull.index_select(0, own_cell.reshape(-1)).view(own_cell.shape)
        slope.scatter_add_(1, positives.columns, pull)
        return torch.dot(others.cumsum(0), own).div(pairs).to(s.dtype), slope

    return Terms(other={"joint": known(c.similarity, overlap)})


@home("in_batch", "cosine")
def fast_ap(c: Comparison, *, bins: int = 10) -> Terms:
    """FastAP: the average precision of each anchor's ranking, from a histogram of its distances
    (Cakir et al. 2019).

    With h_j = how many references stand at the node d² = 4j/bins, j = 0 .. bins, h⁺_j = how many
    positives, H_j = Σ_{q≤j} h_q, H⁺_j = Σ_{q≤j} h⁺_q and P_i the positives of an anchor:
    joint = 1 - mean_i (1/|P_i|) Σ_j h⁺_j H⁺_j / H_j

    A reference is split linearly between the two nodes around its squared distance. The mean is
    over anchors that have a positive. d² = 2 - 2s is taken to lie in [0, 4]: what lies beyond (by
    another closeness than cosine) counts at the last node there, with gradient 0.

    A reference that is split stands partly before itself: with fine bins and no ties the value is
    at least 1 - AP and does not tend to it. Rows within one bin count as ties.

    bins   cells of squared distance in [0, 4]

    Use it for retrieval that is judged by the whole ranking, with large batches that hold classes
    hard to tell apart. Fewer bins reach pairs that are further from their place.

    Memory O(A·(R + bins)). Raises ValueError for fewer than 1 bin.
    """
    _at_least_one(bins)
    positives = c.positives

    def precision(s: Tensor) -> tuple[Tensor, Tensor]:
        own_cell, share = _cells(s.gather(1, positives.columns), bins)
        if positives.valid is not None:
            own_cell *= positives.valid
        own = _at_nodes(*_sums(own_cell, share, bins))
        found = own.cumsum(1)
        # The change of similarity that is one node, and the mean over positives.
        scale = s.new_full((1, 1), -bins / 2) / positives.count.clamp_min(1)[:, None]
        pull, slope = s.new_empty(len(s), bins + 3), torch.empty_like(s)
        value = s.new_empty(len(s))
        for part in in_blocks((len(s), s.shape[1] + bins)):
            cell, share = _cells(s[part], bins)
            near, before = _sums(c.keep_compared(cell, part, 0), share, bins)
            # A sum of terms above 0 alone. Nobody stands in the cell after a node where it is 0.
            total = before.cumsum(1).add_(near).clamp_min_(torch.finfo(s.dtype).tiny)
            here, so_far = own[part] / total, found[part] / total
            value[part] = (own[part] * so_far).sum(1)
            push = _by_cell((here * so_far)[:, :-1].mul_(scale[part]))
            pull[part] = _by_cell((so_far.diff(dim=1) - here[:, :-1]).mul_(scale[part]))
            torch.gather(push, 1, cell, out=slope[part])
        slope.scatter_add_(1, positives.columns, pull.gather(1, own_cell))
        return value / positives.count.clamp_min(1), slope

    found = known(c.similarity, precision)
    return Terms(other={"joint": mean(1 - found, positives.count > 0)})


def _or_one(pairs: int | Tensor) -> int | Tensor:
    """How many pairs, and 1 where there are none."""
    # float64, or a number would be divided by whole ones in float32.
    return max(pairs, 1) if isinstance(pairs, int) else pairs.clamp_min(1).double()


def _at_least_one(bins: int) -> None:
    if bins < 1:
        raise ValueError(f"bins must be at least 1, not {bins}")


def _cells(s: Tensor, bins: int) -> tuple[Tensor, Tensor]:
    """(A, R) int64, (A, R): the cell of each similarity, and its share at the node before it; the
    node after it has the rest."""
    place = (s * (-bins / 2)).add_(bins / 2 + 2).clamp_(1, bins + 2)
    # A similarity that is NaN keeps its NaN in the share, and an index that exists.
    cell = place.nan_to_num(bins + 2).long()
    return cell, place.frac_().neg_().add_(1)


def _all_sums(cell: Tensor, share: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """(bins + 1,), (bins + 1,) float64: as `_sums`, for all rows together."""
    cell = cell.reshape(-1)
    near = torch.zeros(width, dtype=torch.float64, device=cell.device)
    near.scatter_add_(0, cell, share.reshape(-1).double())
    return near[2:], torch.bincount(cell, minlength=width)[1:-1].double()


def _sums(cell: Tensor, share: Tensor, bins: int) -> tuple[Tensor, Tensor]:
    """(A, bins + 1), (A, bins + 1): for each node, the shares of the cell after it, and how many
    are in the cell before it. What lies above 1 is at the first node without a share."""
    empty = share.new_zeros(len(cell), bins + 3)
    near = empty.scatter_add(1, cell, share)[:, 2:]
    count = empty.scatter_add_(1, cell, torch.ones_like(share))
    return near, count[:, 1:-1]


def _at_nodes(near: Tensor, before: Tensor) -> Tensor:
    """(..., bins + 1): how many stand at each node, from the sums of the cells around it."""
    return near + before - pad(near[..., :-1], (1, 0))


def _by_cell(values: Tensor) -> Tensor:
    """(..., bins + 3): `values` (..., bins) in the cells between two nodes, 0 in the others."""
    return pad(values, (2, 1))
