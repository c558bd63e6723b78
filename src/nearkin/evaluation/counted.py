"""Counting a tile of screened similarities: compiled where numba is, in plain torch elsewhere."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from nearkin.search import loops
from nearkin.search.screen import Bound
from nearkin.search.side import Side
from nearkin.search.space import TIE
from nearkin.search.tiles import cut

if TYPE_CHECKING:
    from nearkin.evaluation.counting import Retrieval
    from nearkin.evaluation.screened import Sides, Thresholds

OPEN = 4096  # pairs compared in float64 at a time


def usable(sides: Sides) -> Any:
    """The compiled loops where they fit and pay: many rows, in main memory."""
    if sides.queries.norm.device.type != "cpu":
        return None
    return loops.compiled_for(len(sides.queries) * len(sides.gallery))


def counter(
    task: Retrieval, sides: Sides, goal: Thresholds, counts: Tensor, bound: Bound
) -> Compiled | Plain:
    """What counts the tiles of this pass into `counts`."""
    kind = Plain if usable(sides) is None else Compiled
    return kind(task, sides, goal, counts, bound)


def seconds_an_open_pair(task: Retrieval, sides: Sides) -> float:
    """About what one comparison in float64 costs."""
    return (3e-6 if usable(sides) is None else 2e-7) + 1.5e-10 * task.queries.dim


def _lows(sides: Sides, goal: Thresholds, bound: Bound) -> tuple[Tensor, float]:
    """(B,) float32 that (v + reach) · norms - half must reach in float32 for one count, and reach.

    Under cosine it is what v itself must reach. Infinite for queries without a threshold.
    """
    reach = bound.flat + 1.02 * bound.steep + 2.0**-20
    if not len(goal.values):
        return torch.full((goal.stop - goal.start,), torch.inf, device=goal.first.device), reach
    last = goal.values[(goal.first[1:] - 1).clamp_min(0)]
    if sides.queries.space.name == "cosine":
        low = last - bound.flat - 8 * TIE
        low = torch.where(low >= 0, low / (1 + bound.steep), low / (1 - bound.steep)) - 1e-6
    else:
        norm = sides.queries.norm[goal.start : goal.stop]
        low = last - 1e-6 * last.abs() - 1e-10 * norm.square() - 1e-30
    return low.masked_fill(goal.first[1:] == goal.first[:-1], torch.inf).float(), reach


class Plain:
    """In plain torch, on any device: the reference of `Compiled`."""

    def __init__(
        self, task: Retrieval, sides: Sides, goal: Thresholds, counts: Tensor, bound: Bound
    ):
        self.task, self.sides, self.goal, self.bound = task, sides, goal, bound
        self.counts = counts
        self.low, self.reach = _lows(sides, goal, bound)
        self.lock = threading.Lock()

    def rows(self, tile: Tensor, queries: slice, gallery: slice) -> None:
        """Count a tile (B, T) for the queries, which are its rows."""
        self._count(tile, queries, gallery, False)

    def columns(self, tile: Tensor, queries: slice, gallery: slice) -> None:
        """Count the same tile for the gallery, whose items are queries too: its columns."""
        self._count(tile, gallery, queries, True)

    def _count(self, tile: Tensor, queries: slice, gallery: slice, turned: bool) -> None:
        low = self.low[queries.start - self.goal.start : queries.stop - self.goal.start]
        seen = self._reached(tile, low, queries, gallery, turned).nonzero()
        value = tile[seen[:, 0], seen[:, 1]].double()
        row, column = seen.T.flip(0) if turned else seen.T
        row, column = row + queries.start, column + gallery.start
        kept = self.task.relevance.different(row, column)
        found = self._settled(value[kept], row[kept], column[kept])
        with self.lock:
            self.counts.index_add_(0, found, torch.ones_like(found))

    def _reached(
        self, tile: Tensor, low: Tensor, queries: slice, gallery: slice, turned: bool
    ) -> Tensor:
        """Where an item may be near enough to count."""
        if self.sides.queries.space.name == "cosine":
            if tile.dtype == torch.bfloat16:
                low = (low - 2.0**-8 * low.abs()).to(tile.dtype)
            return tile >= (low if turned else low[:, None])
        weight, other = self.sides.queries.norm[queries].float(), self.sides.gallery.norm[gallery]
        cut = self.sides.gallery.half[gallery].float() * (1 - 1e-6)
        if turned:
            reach = (tile.float() + self.reach) * (weight * other.float()[:, None])
            return reach - cut[:, None] >= low
        reach = (tile.float() + self.reach) * (weight[:, None] * other.float())
        return reach - cut >= low[:, None]

    def _settled(self, value: Tensor, row: Tensor, column: Tensor) -> Tensor:
        """Places of the thresholds that pairs (L,) reach first; of those that reach any."""
        left, right = self.sides.queries, self.sides.gallery
        start, stop = (self.goal.first[row - self.goal.start + more] for more in (0, 1))
        off = self.bound.flat + self.bound.steep * value.abs()
        size, half = left.norm[row] * right.norm[column], right.half[column]
        tie = left.space.slack(left.norm[row], right.norm[column])
        above = self._first(start, stop, (value + off) * size - half + 8 * tie)
        below = self._first(above, stop, (value - off) * size - half - 8 * tie)
        for part in (above != below).nonzero()[:, 0].split(OPEN):
            exact = (left.exact(row[part]) * right.exact(column[part])).sum(1)
            exact = exact - half[part] + tie[part]
            above[part] = self._first(above[part], below[part], exact)
        return above[above < stop]

    def _first(self, start: Tensor, stop: Tensor, x: Tensor) -> Tensor:
        """Place of the first of the descending values start..stop that is <= x; stop for none."""
        start, stop = start.clone(), stop.clone()
        for _ in range(int((stop - start).max()).bit_length() if len(start) else 0):
            middle = (start + stop) >> 1
            reached = self.goal.values[middle.clamp_max(len(self.goal.values) - 1)] <= x
            open_ = start < stop
            stop = torch.where(open_ & reached, middle, stop)
            start = torch.where(open_ & ~reached, middle + 1, start)
        return start


class Compiled:
    """In loops compiled by numba."""

    def __init__(
        self, task: Retrieval, sides: Sides, goal: Thresholds, counts: Tensor, bound: Bound
    ):
        self.loops, self.goal, self.counts = loops.compiled(), goal, counts.numpy()
        self.first, self.values = goal.first.numpy(), goal.values.numpy()
        low, reach = _lows(sides, goal, bound)
        self.low, self.own = low.numpy(), task.relevance.leave_one_out
        self.queries = Arrays(sides.queries, task.relevance.query, task, 0)
        self.gallery = Arrays(sides.gallery, task.relevance.gallery, task, 1)
        self.terms = loops.terms_of(self.loops, sides.queries, bound, reach)
        # A block of queries counts in one worker at a time.
        self.locks = {at.start: threading.Lock() for at in cut(goal.start, goal.stop)}

    def rows(self, tile: Tensor, queries: slice, gallery: slice) -> None:
        """Count a tile (B, T) for the queries, which are its rows."""
        self._count(tile, queries, gallery, False)

    def columns(self, tile: Tensor, queries: slice, gallery: slice) -> None:
        """Count the same tile for the gallery, whose items are queries too: its columns."""
        self._count(tile, gallery, queries, True)

    def _count(self, tile: Tensor, queries: slice, gallery: slice, turned: bool) -> None:
        q, g = self.queries.part(queries), self.gallery.part(gallery)
        own = queries.start - gallery.start if self.own else self.loops.NEVER
        a, b = queries.start - self.goal.start, queries.stop - self.goal.start
        goal = self.loops.Goal(self.first[a : b + 1], self.low[a:b], self.values, self.counts)
        with self.locks[queries.start]:
            self.loops.count(loops.bits_of(tile), q, g, goal, self.terms, own, turned)


class Arrays:
    """A side and its labels as arrays, cut into parts."""

    def __init__(self, side: Side, labels: Any, task: Any, place: int):
        self.side, self.loops = side, loops.compiled()
        self.whole = loops.side_arrays(side)
        groups = task.relevance.groups
        self.code = labels.codes.numpy()
        self.group = np.zeros(0, np.int64) if groups is None else groups[place].numpy()
        self.hot = np.zeros((len(side), 0), np.uint64)
        if labels.hot is not None:
            packed = np.packbits(labels.hot.numpy(), axis=1)
            wide = np.zeros((len(packed), -(-packed.shape[1] // 8) * 8), np.uint8)
            wide[:, : packed.shape[1]] = packed
            self.hot = wide.view(np.uint64)

    def part(self, at: slice) -> Any:
        """The rows of a slice."""
        return self.loops.Part(
            self.side.source(at),
            *(array[at] for array in self.whole),
            self.code[at],
            self.group[at],
            self.hot[at],
        )


def thresholds(
    task: Retrieval, sides: Sides, start: int, stop: int, depth: int, wanted: Tensor, large: int
) -> tuple[Tensor, Tensor, Tensor]:
    """(first, values, relevant) as of `screened.Thresholds`, of queries with one label each.

    The values of queries with more than `large` items of their label are left open.
    """
    made, relevance = loops.compiled(), task.relevance
    queries = Arrays(sides.queries, relevance.query, task, 0).part(slice(start, stop))
    gallery = Arrays(sides.gallery, relevance.gallery, task, 1).part(slice(0, len(task.gallery)))
    order = torch.argsort(relevance.gallery.codes, stable=True).numpy()
    sizes = torch.bincount(relevance.gallery.codes, minlength=len(relevance.query.names))
    begin = np.concatenate([[0], sizes.cumsum(0).numpy()])
    own = start if relevance.leave_one_out else made.NEVER
    relevant = torch.from_numpy(
        made.relevant_counts(queries.code, queries.group, gallery.group, order, begin, own)
    )
    relevant *= wanted[start:stop]
    first = torch.zeros(stop - start + 1, dtype=torch.int64)
    first[1:] = relevant.clamp_max(depth).cumsum(0)
    values = torch.empty(int(first[-1]), dtype=torch.float64)
    terms = loops.terms_of(made, sides.queries, Bound(0.0, 0.0), 0.0)
    made.relevant(queries, gallery, order, begin, first.numpy(), values.numpy(), terms, own, large)
    return first, values, relevant


def can_compile(task: Retrieval, sides: Sides) -> bool:
    """Whether `thresholds` may be used: one label a row, and rows that are read as they are."""
    whole = all(side.as_given and side.narrow for side in (sides.queries, sides.gallery))
    return usable(sides) is not None and task.relevance.query.hot is None and whole
