"""Exact ranks by counting in float64, in bounded memory; metrics of ranks stand elsewhere.

No list of neighbors is sorted: the j-th relevant item of a query has rank j + the number of
different items that are at least as close, ties included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from nearkin.evaluation.base import NOWHERE, Ranking
from nearkin.evaluation.relevance import Relevance
from nearkin.information.given import Rows
from nearkin.search.space import TIE, Space

QUERIES = (
    4096  # queries of a block, at most; many, since every block prepares the whole gallery anew
)
TILE = 512  # gallery rows of a tile
THRESHOLDS = 1 << 21  # entries (queries of a block) x (relevant items), at most: 16 MiB an array
LARGE = 256  # relevant items of a query from which on products of blocks find them faster
KEPT = 1 << 23  # entries of a prepared gallery that is kept between blocks: 64 MiB


@dataclass(frozen=True, eq=False)
class Retrieval:
    """Queries and gallery (the same object for leave-one-out), their space and relevance."""

    queries: Rows
    gallery: Rows
    space: Space
    relevance: Relevance


def rankings(task: Retrieval, queries: Tensor) -> Iterator[tuple[Tensor, Ranking]]:
    """Rankings of `queries` (Q,) int64, block by block: (places in `queries` (B,), Ranking of B).

    Every query is in exactly one block. Extra memory: below 512 MiB for any number of rows and any
    class sizes. Time: one float64 product of queries and gallery, and one of queries and relevant
    items with a sort of these, which is little unless classes hold a large part of all rows.
    """
    most = task.relevance.most_relevant()[queries]
    # Neighbors of one class share their relevant items; those of like size share a block well.
    order = torch.argsort(task.relevance.query.codes[queries], stable=True)
    order = order[torch.argsort(most[order], stable=True)]
    tiles = _tiles(task)
    for block in query_blocks(most[order].tolist()):
        places = order[block]
        rows = queries[places]
        # Negated similarities ascend, as searching wants it: the first is the nearest.
        negated = -task.space.query(task.queries.block(rows))
        thresholds, relevant = thresholds_of(task, rows, negated, int(most[places].max()))
        above = _count_above(task, rows, negated, thresholds, relevant, tiles)
        del thresholds
        ranks = above.add_(torch.arange(1, above.shape[1] + 1, device=rows.device))
        nowhere = torch.arange(above.shape[1], device=rows.device)[None] >= relevant[:, None]
        ranks.masked_fill_(nowhere, NOWHERE)
        yield places, Ranking(ranks, relevant, task.relevance.candidates[rows])


def query_blocks(
    most: list[int], queries: int = QUERIES, thresholds: int = THRESHOLDS
) -> Iterator[slice]:
    """Slices of at most `queries` queries, with queries x their largest `most` in `thresholds`.

    most: how many relevant items each query has at most. A query that exceeds the bound alone
    stands alone.
    """
    start, largest = 0, 0
    for stop, size in enumerate(most):
        larger = max(largest, size)
        if stop > start and (stop - start == queries or (stop - start + 1) * larger > thresholds):
            yield slice(start, stop)
            start, larger = stop, size
        largest = larger
    if start < len(most):
        yield slice(start, len(most))


def _tiles(task: Retrieval) -> Callable[[], Iterator[tuple[Tensor, Tensor]]]:
    """Gives, on each call, the whole gallery as (indices (T,), their prepared rows (T, E))."""
    everything = torch.arange(len(task.gallery), device=task.gallery.device)

    def prepare() -> Iterator[tuple[Tensor, Tensor]]:
        for columns in everything.split(TILE):
            block = slice(int(columns[0]), int(columns[-1]) + 1)
            yield columns, task.space.gallery(task.gallery.block(block), TIE / 2)

    if len(task.gallery) * task.gallery.dim > KEPT:
        return prepare
    kept = list(prepare())
    return lambda: iter(kept)


def thresholds_of(
    task: Retrieval, rows: Tensor, negated: Tensor, most: int, depth: int | None = None
) -> tuple[Tensor, Tensor]:
    """Negated similarities to relevant items plus half a tie (B, P), ascending; how many (B,).

    depth   only of the nearest ones, so many: P is no more
    """
    found = torch.full(
        (len(rows), max(most, 1)), torch.inf, dtype=torch.float64, device=rows.device
    )
    relevant = torch.zeros(len(rows), dtype=torch.int64, device=rows.device)
    for columns in task.relevance.columns(rows).split(TILE):
        lowered = task.space.gallery(task.gallery.block(columns), -TIE / 2)
        distance = negated @ lowered.T  # (B, T)
        same = task.relevance.same(rows, columns)
        here = same.sum(1)
        at, column = same.nonzero(as_tuple=True)
        before = here.cumsum(0) - here
        slot = relevant[at] + torch.arange(len(at), device=at.device) - before[at]
        found[at, slot] = distance[at, column]
        relevant += here
    found = found[:, : max(int(relevant.max()), 1)]
    if depth is not None and depth < found.shape[1]:
        return found.topk(depth, dim=1, largest=False).values, relevant
    return found.sort(1).values, relevant


def _count_above(
    task: Retrieval,
    rows: Tensor,
    negated: Tensor,
    thresholds: Tensor,
    relevant: Tensor,
    tiles: Callable[[], Iterator[tuple[Tensor, Tensor]]],
) -> Tensor:
    """(B, P) int64: how many different items are at least as close as each relevant one."""
    last = thresholds.gather(1, (relevant - 1).clamp_min(0)[:, None])  # (B, 1)
    last = last.masked_fill((relevant == 0)[:, None], -torch.inf)
    counts = torch.zeros(thresholds.numel(), dtype=torch.int64, device=rows.device)
    for columns, raised in tiles():
        distance = negated @ raised.T  # (B, T)
        flat = (distance <= last).view(-1).nonzero()[:, 0]
        row = torch.div(flat, len(columns), rounding_mode="floor")
        kept = task.relevance.different(rows[row], columns[flat - row * len(columns)])
        first = _first_at_least(thresholds, distance, flat[kept], row[kept])
        counts += torch.bincount(first, minlength=len(counts))
    # An item nearer than one threshold is nearer than all that follow.
    return counts.view(thresholds.shape).cumsum(1)


def _first_at_least(thresholds: Tensor, distance: Tensor, flat: Tensor, row: Tensor) -> Tensor:
    """Flat places (L,) in (B, P) of the first threshold of a row >= the distance at `flat` (L,)."""
    width = thresholds.shape[1]
    if 8 * len(flat) > distance.numel():
        return torch.searchsorted(thresholds, distance).view(-1)[flat] + row * width
    # The library's search takes whole rows, of which few entries are near enough to count: a binary
    # search over those alone.
    value, ascending = distance.view(-1)[flat], thresholds.reshape(-1)
    first, end = row * width, row * width + (width - 1)
    step = 1 << max(width - 1, 1).bit_length() - 1
    while step:
        below = ascending[torch.minimum(first + (step - 1), end)] < value
        first += step * below
        step >>= 1
    return first
