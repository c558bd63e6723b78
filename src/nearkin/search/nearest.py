"""The exact nearest neighbors of queries, from screened tiles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nearkin.search import loops
from nearkin.search.products import full_float32, product
from nearkin.search.screen import Bound, bound_of
from nearkin.search.side import Side
from nearkin.search.tiles import Stripe, Threads, cut

LAST = np.iinfo(np.int64).max  # the place of a neighbor that there is not
PAIRS = 2048  # compared in float64 at a time


def nearest(
    queries: Side,
    gallery: Side,
    k: int,
    *,
    skipped: Tensor | None = None,
    known: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """The K nearest items of every query: similarities (Q, K) float64, items (Q, K) int64.

    queries, gallery  sides of one space, rounded to one precision; they may be the same
    skipped           (Q,) int64: an item that is no neighbor of the query; -1 for none
    known             similarities (Q, K) and items (Q, K) that were found before: only items nearer
                      than these, by half a tie of their own, replace them

    Two items tie where their similarities differ by no more than the sum of half a tie of each (see
    `Space.slack`); of those that tie with the nearest of them, the lower index comes first. Places
    without an item hold -inf and `LAST`.
    """
    count = len(queries)
    device = queries.norm.device
    if known is None:
        best = torch.full((count, k), -torch.inf, dtype=torch.float64, device=device)
        index = torch.full((count, k), LAST, dtype=torch.int64, device=device)
    else:
        best, index = known[0].clone(), known[1].clone()
    if skipped is None:
        skipped = torch.full((count,), -1, dtype=torch.int64, device=device)
    bound = bound_of(queries.dtype, queries.rows.dim, queries.error, gallery.error)
    slack = torch.zeros_like(best)  # half a tie of each item that is kept
    compiled = loops.compiled_for(count * len(gallery)) if device.type == "cpu" else None
    if compiled is None:
        take = _plain(queries, gallery, bound, skipped, best, index, slack)
    else:
        take = _compiled(compiled, queries, gallery, bound, skipped, best, index, slack)
    rows, columns = cut(0, count), cut(0, len(gallery))
    threads = Threads(queries.dtype, device)

    def work(stripe: Stripe) -> None:
        """One block of queries against its blocks of the gallery."""
        left = queries.rounded(rows[stripe[0]])
        for j in stripe[1]:
            tile = product(left, gallery.rounded(columns[j]), threads.buffer)
            take(tile, rows[stripe[0]], columns[j])

    with full_float32():
        # Each in ascending order: of a tie, the item that came before stays.
        stripes = [(i, list(range(len(columns)))) for i in range(len(rows))]
        for _ in threads.work(work, stripes):
            pass
    return _sorted(best, index, slack)[:2]


Take = Callable[[Tensor, slice, slice], None]


def _compiled(
    compiled: Any,
    queries: Side,
    gallery: Side,
    bound: Bound,
    skipped: Tensor,
    best: Tensor,
    index: Tensor,
    slack: Tensor,
) -> Take:
    """Take tiles into heaps, by compiled loops."""
    reach = bound.flat + 1.02 * bound.steep + 2.0**-20
    terms = loops.terms_of(compiled, queries, bound, reach)
    sides = [(side, loops.side_arrays(side)) for side in (queries, gallery)]
    nothing = np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, 0), np.uint64)
    most = queries.space.slack(queries.norm, gallery.norm.max()).numpy()
    values, places, slacks, own = (x.numpy() for x in (best, index, slack, skipped))

    def part(side: Side, arrays: tuple[np.ndarray, ...], at: slice) -> Any:
        return compiled.Part(side.source(at), *(array[at] for array in arrays), *nothing)

    def take(tile: Tensor, rows: slice, columns: slice) -> None:
        compiled.nearest_rows(
            loops.bits_of(tile),
            part(*sides[0], rows),
            part(*sides[1], columns),
            values[rows],
            places[rows],
            slacks[rows],
            columns.start,
            terms,
            own[rows],
            most[rows],
        )

    return take


def _plain(
    queries: Side,
    gallery: Side,
    bound: Bound,
    skipped: Tensor,
    best: Tensor,
    index: Tensor,
    slack: Tensor,
) -> Take:
    """Take tiles into sorted rows, in plain torch."""

    def take(tile: Tensor, rows: slice, columns: slice) -> None:
        value = tile.double()
        off = bound.flat + bound.steep * value.abs()
        norm, other = queries.norm[rows][:, None], gallery.norm[columns]
        size, half = norm * other, gallery.half[columns]
        half_tie = queries.space.slack(norm, other)
        tie = 8 * half_tie
        lower, upper = (value - off) * size - half - tie, (value + off) * size - half + tie
        places = torch.arange(columns.start, columns.stop, device=tile.device)
        mine = places[None] == skipped[rows][:, None]
        lower.masked_fill_(mine, -torch.inf)
        upper.masked_fill_(mine, -torch.inf)
        k = best.shape[1]
        least = best[rows].amin(1)
        if lower.shape[1] >= k:
            least = torch.maximum(least, lower.topk(k, dim=1).values[:, -1])
        row, column = ((upper >= least[:, None]) & ~mine).nonzero(as_tuple=True)
        if not len(row):
            return
        exact = torch.cat(
            [
                (queries.exact(i + rows.start) * gallery.exact(j + columns.start)).sum(1) - half[j]
                for i, j in zip(row.split(PAIRS), column.split(PAIRS), strict=True)
            ]
        )
        # Candidates side by side, those found before first: a stable sort keeps them there.
        many = torch.bincount(row, minlength=len(tile))
        slot = torch.arange(len(row), device=row.device) - (many.cumsum(0) - many)[row]
        width = int(many.max())
        found = torch.full((len(tile), width), -torch.inf, dtype=torch.float64, device=row.device)
        place = torch.full((len(tile), width), LAST, dtype=torch.int64, device=row.device)
        own = torch.zeros_like(found)
        found[row, slot], place[row, slot] = exact, column + columns.start
        own[row, slot] = half_tie[row, column]
        merged = _sorted(
            torch.cat([best[rows], found], 1),
            torch.cat([index[rows], place], 1),
            torch.cat([slack[rows], own], 1),
        )
        best[rows], index[rows], slack[rows] = (part[:, :k] for part in merged)

    return take


def _sorted(values: Tensor, index: Tensor, slack: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows by descending value; of those that tie with the first of them, the lower index first."""
    order = index.argsort(dim=1, stable=True)
    values, index, slack = (x.gather(1, order) for x in (values, index, slack))
    values, order = values.sort(dim=1, descending=True, stable=True)
    index, slack = index.gather(1, order), slack.gather(1, order)
    group = _groups(values, slack)
    order = index.argsort(dim=1, stable=True)
    order = order.gather(1, group.gather(1, order).argsort(dim=1, stable=True))
    return values.gather(1, order), index.gather(1, order), slack.gather(1, order)


def _groups(values: Tensor, slack: Tensor) -> Tensor:
    """(Q, K) int64, ascending: descending values that tie with the first of their group.

    No chains: many small steps in a row are no tie of their ends.
    """
    apart = torch.ones_like(values, dtype=torch.bool)
    first, its = values[:, 0].clone(), slack[:, 0].clone()
    for k in range(1, values.shape[1]):
        # Of nothing from nothing: -inf less -inf is NaN, and no more than any slack.
        new = first - values[:, k] > its + slack[:, k]
        first, its = torch.where(new, values[:, k], first), torch.where(new, slack[:, k], its)
        apart[:, k] = new
    return apart.cumsum(1)
