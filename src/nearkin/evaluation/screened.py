"""Exact ranks from one pass over screened similarities: tiles, thresholds and counts.

The j-th relevant item of a query has rank j + the number of different items that are at least as
close. Products in low precision tell this of nearly all pairs, by a proven bound; the others are
compared in float64. Metrics of ranks stand elsewhere, and so does the plain pass in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from nearkin.evaluation import counted
from nearkin.evaluation.base import NOWHERE, Ranking
from nearkin.evaluation.counting import LARGE, Retrieval, query_blocks, thresholds_of
from nearkin.evaluation.plan import Plan
from nearkin.search.products import full_float32, precisions, product, seconds_a_pair
from nearkin.search.screen import Bound, bound_of
from nearkin.search.side import Side
from nearkin.search.tiles import Stripe, Threads, cut, pairs_of, stripes_of

PANEL = 1 << 22  # thresholds of a pass, at most: 64 MiB with their counts
SAMPLE = (48, 512)  # queries and items that tell how much a precision leaves open

Told = Callable[[int, int], None]


class Share(Protocol):
    """How several processes share a pass; see `evaluator.Gather`."""

    def slice(self, n: int) -> slice:
        """Which of n parts this process does."""
        ...

    def concatenate(self, values: Tensor) -> Tensor:
        """The values of all processes, one after another."""
        ...


@dataclass(frozen=True, eq=False)
class Thresholds:
    """Similarities to the nearest relevant items of queries start..stop, less half a tie.

    first   (B + 1,) int64: where those of each query begin in `values`, descending
    relevant  (B,) int64: how many relevant items each has
    """

    start: int
    stop: int
    first: Tensor
    values: Tensor
    relevant: Tensor


@dataclass(frozen=True, eq=False)
class Sides:
    """Queries and gallery, prepared; the same object where the gallery is the queries."""

    queries: Side
    gallery: Side

    @classmethod
    def of(cls, task: Retrieval) -> Sides:
        """Of a task."""
        queries = Side(task.queries, task.space)
        same = task.gallery is task.queries
        return cls(queries, queries if same else Side(task.gallery, task.space))

    def round_to(self, dtype: torch.dtype, held: int) -> Bound:
        """Round both to `dtype`; the bound of their products."""
        self.queries.round_to(dtype, held)
        if self.gallery is not self.queries:
            self.gallery.round_to(dtype, held)
        dim = self.queries.rows.dim
        return bound_of(dtype, dim, self.queries.error, self.gallery.error)


def screened(
    task: Retrieval,
    sides: Sides,
    span: slice,
    depth: int,
    wanted: Tensor,
    plan: Plan,
    share: Share | None = None,
    told: Told | None = None,
) -> Iterator[tuple[Tensor, Ranking]]:
    """Rankings of the queries of a span that are `wanted`: (their indices (B,), Ranking of B).

    depth   how many of the nearest relevant items are ranked
    wanted  (Q,) bool, for all queries of the task; others are passed over
    plan    how much memory and how many threads it may take
    share   processes that share the tiles; all get all rankings
    told    of (done, total) tiles
    """
    for start, stop in _panels(task, span, depth, wanted):
        goal = thresholds(task, sides, start, stop, depth, wanted)
        counts = count(task, sides, goal, plan, share, told)
        yield from _ranked(task, goal, counts, wanted)


def _panels(task: Retrieval, span: slice, depth: int, wanted: Tensor) -> Iterator[tuple[int, int]]:
    """(start, stop) of queries whose thresholds are held at a time."""
    most = task.relevance.most_relevant().clamp_max(depth) * wanted
    total = most[span].cumsum(0)
    start = span.start
    while start < span.stop:
        before = int(total[start - span.start - 1]) if start > span.start else 0
        fit = int(torch.searchsorted(total, before + PANEL, right=True))
        stop = min(max(span.start + fit, start + 1), span.stop)
        yield start, stop
        start = stop


def thresholds(
    task: Retrieval, sides: Sides, start: int, stop: int, depth: int, wanted: Tensor
) -> Thresholds:
    """The thresholds of queries start..stop; those that are not wanted have none.

    Where compiled loops may be used, these compare pair by pair, but for queries of large classes:
    their many relevant items are products of blocks, as all are elsewhere.
    """
    rows = torch.arange(start, stop, device=wanted.device)[wanted[start:stop]]
    if counted.can_compile(task, sides):
        made = counted.thresholds(task, sides, start, stop, depth, wanted, LARGE)
        large = rows[task.relevance.most_relevant()[rows] > LARGE]
        for at, similar, relevant in _by_products(task, large, depth):
            _fill(made[0], made[1], at - start, similar, relevant)
        return Thresholds(start, stop, *made)
    relevant = torch.zeros(stop - start, dtype=torch.int64, device=wanted.device)
    found = []
    for at, similar, here in _by_products(task, rows, depth):
        relevant[at - start] = here
        found.append((at - start, similar, here))
    first = torch.zeros(stop - start + 1, dtype=torch.int64, device=wanted.device)
    first[1:] = relevant.clamp_max(depth).cumsum(0)
    values = torch.empty(int(first[-1]), dtype=torch.float64, device=wanted.device)
    for part in found:
        _fill(first, values, *part)
    return Thresholds(start, stop, first, values, relevant)


def _by_products(
    task: Retrieval, rows: Tensor, depth: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """(queries (B,), their nearest relevant items (B, at most depth), how many they have (B,)):
    similarities less half a tie, descending, from float64 products of like queries."""
    most = task.relevance.most_relevant()[rows]
    order = torch.argsort(task.relevance.query.codes[rows], stable=True)
    order = order[torch.argsort(most[order], stable=True)]
    for block in query_blocks(most[order].tolist(), queries=512):
        at = rows[order[block]]
        negated = -task.space.query(task.queries.block(at))
        negated, here = thresholds_of(task, at, negated, int(most[order[block]].max()), depth)
        yield at, -negated, here


def _fill(first: Tensor, values: Tensor, at: Tensor, similar: Tensor, relevant: Tensor) -> None:
    """Put what `_by_products` found for queries into their places among the values."""
    kept = torch.arange(similar.shape[1], device=at.device)[None] < relevant[:, None]
    row, column = kept.nonzero(as_tuple=True)
    values[first[at[row]] + column] = similar[row, column]


def count(
    task: Retrieval,
    sides: Sides,
    goal: Thresholds,
    plan: Plan,
    share: Share | None = None,
    told: Told | None = None,
) -> Tensor:
    """(T,) int64, one a threshold: different items that reach it but not the one before."""
    counts = torch.zeros(len(goal.values), dtype=torch.int64, device=goal.values.device)
    symmetric = (
        task.relevance.leave_one_out
        and sides.queries is sides.gallery
        and (goal.start, goal.stop) == (0, len(task.queries))
    )
    queries, gallery = cut(goal.start, goal.stop), cut(0, len(task.gallery))
    pairs = pairs_of(len(queries), len(gallery), symmetric)
    if share is not None:
        pairs = pairs[share.slice(len(pairs))]
    if len(counts) and pairs:
        dtype = precision(task, sides, goal)
        bound = sides.round_to(dtype, plan.held)
        threads = Threads(dtype, counts.device, plan.threads)
        counter = counted.counter(task, sides, goal, counts, bound)
        with full_float32():
            work = _stripe(sides, queries, gallery, symmetric, threads, counter)
            done = 0
            for tiles in threads.work(work, stripes_of(pairs)):
                done += tiles
                if told is not None:
                    told(done, len(pairs))
    if share is not None and len(counts):
        counts = share.concatenate(counts).view(-1, len(goal.values)).sum(0)
    return counts


def _stripe(
    sides: Sides,
    queries: list[slice],
    gallery: list[slice],
    symmetric: bool,
    threads: Threads,
    counter: Any,
) -> Callable[[Stripe], None]:
    """What a worker does with a stripe of tiles."""

    def work(stripe: Stripe) -> None:
        """One block of queries against its blocks of the gallery."""
        i, columns = stripe
        left = sides.queries.rounded(queries[i])
        for j in columns:
            tile = product(left, sides.gallery.rounded(gallery[j]), threads.buffer)
            counter.rows(tile, queries[i], gallery[j])
            if symmetric and i != j:
                counter.columns(tile, queries[i], gallery[j])

    return work


def precision(task: Retrieval, sides: Sides, goal: Thresholds) -> torch.dtype:
    """What screens these thresholds fastest: products, and the pairs that they leave open."""
    dim = task.queries.dim
    ways = precisions(dim, goal.values.device)
    if len(ways) == 1:
        return ways[0]
    threads = torch.get_num_threads()
    again = counted.seconds_an_open_pair(task, sides) / threads

    pairs = _sample(task, sides, goal)

    def cost(dtype: torch.dtype) -> float:
        share = pairs.left_open(bound_of(dtype, dim, *[_usual(dtype)] * 2))
        return seconds_a_pair(dtype, dim, threads) + 2 * share * again

    return min(ways, key=cost)


def _usual(dtype: torch.dtype) -> float:
    """About how far rounding moves a unit row."""
    return 2.0**-9.7 if dtype == torch.bfloat16 else 2.0**-25


@dataclass(frozen=True, eq=False)
class Sample:
    """Some pairs: (B, T) cosines, what they are multiplied by, their similarities; and (B, P)
    negated thresholds, ascending."""

    cosine: Tensor
    size: Tensor
    value: Tensor
    negated: Tensor

    def left_open(self, bound: Bound) -> float:
        """The share of the pairs that a bound does not settle."""
        off = (bound.flat + bound.steep * self.cosine.abs()) * self.size
        near, far = (torch.searchsorted(self.negated, -(self.value + d)) for d in (off, -off))
        return float((near != far).double().mean())


def _sample(task: Retrieval, sides: Sides, goal: Thresholds) -> Sample:
    rows = torch.arange(goal.start, goal.stop, max(1, (goal.stop - goal.start) // SAMPLE[0]))
    columns = torch.arange(0, len(task.gallery), max(1, len(task.gallery) // SAMPLE[1]))
    q, g = (
        torch.nn.functional.normalize(side.exact(at).float(), dim=1)
        for side, at in ((sides.queries, rows), (sides.gallery, columns))
    )
    cosine = (q @ g.T).double()
    size = sides.queries.norm[rows][:, None] * sides.gallery.norm[columns]
    kept = goal.first[rows - goal.start + 1] - goal.first[rows - goal.start]
    places = torch.arange(int(kept.max()))
    at = goal.first[rows - goal.start][:, None] + places
    negated = -goal.values[at.clamp_max(len(goal.values) - 1)]
    negated.masked_fill_(places[None] >= kept[:, None], torch.inf)
    return Sample(cosine, size, cosine * size - sides.gallery.half[columns], negated)


def _ranked(
    task: Retrieval, goal: Thresholds, counts: Tensor, wanted: Tensor
) -> Iterator[tuple[Tensor, Ranking]]:
    """Rankings, block by block of queries with a like number of thresholds."""
    kept = goal.first[1:] - goal.first[:-1]
    whole = torch.cat([counts.new_zeros(1), counts.cumsum(0), counts.new_zeros(1)])
    rows = wanted[goal.start : goal.stop].nonzero()[:, 0]
    order = rows[torch.argsort(kept[rows], stable=True)]
    for block in query_blocks(kept[order].tolist(), queries=1 << 16):
        at = order[block]
        places = torch.arange(max(int(kept[at].max()), 1), device=at.device)
        index = (goal.first[at][:, None] + places).clamp_max(len(counts))
        ranks = whole[index + 1] - whole[goal.first[at]][:, None] + places + 1
        ranks.masked_fill_(places[None] >= kept[at][:, None], NOWHERE)
        at = at + goal.start
        yield at, Ranking(ranks, goal.relevant[at - goal.start], task.relevance.candidates[at])
