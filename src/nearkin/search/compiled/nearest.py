"""The nearest items of queries, tile by tile into heaps."""

from __future__ import annotations

import numba
import numpy as np

from nearkin.search.compiled.base import (
    RUN,
    dot,
    half_tie,
    jit,
    number,
    place,
    reaches,
    read,
)  # fmt: skip


@jit
def nearest_rows(tile, q, g, best, index, slack, base, terms, skipped, most):
    """Take a tile (B, T) into the K nearest items of each of its queries.

    best, index  (B, K) float64 and int64: a heap of what was found, its farthest first
    slack        (B, K) float64: half a tie of each
    base         the index of the tile's first item; tiles are taken in ascending order
    skipped      (B,) int64: an item that is no neighbor of the query; -1 for none
    most         (B,) float64: no half tie of the query is larger
    """
    rows, columns = tile.shape
    bits, plain, flat, steep, reach = terms.bits, terms.plain, terms.flat, terms.steep, terms.reach
    shift, tie, squares = terms.shift, terms.tie, terms.squares
    left, factors, norms, weights = q.source, q.factor, q.norm, q.weight
    right, factor, norm, half, weight, cut = g.source, g.factor, g.norm, g.half, g.weight, g.cut
    raw = np.empty(RUN, np.float32)
    up, down = np.empty(RUN, np.float32), np.empty(RUN, np.float32)
    for i in range(rows):
        for start in range(0, columns, RUN):
            stop = min(start + RUN, columns)
            least = _floor(best[i, 0], norms[i])
            if plain:
                if not reaches(tile, i, start, stop, bits, least - reach):
                    continue
            else:
                count = stop - start
                read(tile, i, start, stop, bits, raw)
                if not place(raw, count, start, weights[i], weight, cut, reach, least, up, down):
                    continue
            for j in range(start, stop):
                v = np.float64(number(tile[i, j], bits))
                upper = (v + flat + steep * abs(v)) * norms[i] * norm[j] - half[j]
                own = half_tie(norms[i], norm[j], tie, squares)
                if upper + 8 * own <= best[i, 0] + slack[i, 0] or base + j == skipped[i]:
                    continue
                exact = dot(left, i, right, j, shift) * factors[i] * factor[j] - half[j]
                # Of a tie the one that came before stays.
                if exact > best[i, 0] + slack[i, 0] + own:
                    at = _last_of_tie(best, index, slack, i, exact, most[i])
                    _replace(best, index, slack, i, at, exact, base + j, own)


@numba.njit(nogil=True)
def _floor(value, norm):
    """float32 that an upper bound must reach where a similarity reaches a value."""
    if value == -np.inf:
        return np.float32(-np.inf)
    return np.float32(value - 1e-6 * abs(value) - 1e-10 * norm * norm - 1e-30)


@numba.njit(nogil=True)
def _nearer(value, index, other, place):
    """Whether an item is nearer than another; of equal ones, the first."""
    return value > other or (value == other and index < place)


@numba.njit(nogil=True)
def _last_of_tie(best, index, slack, i, value, most):
    """Where the heap of a query holds, of what ties with its farthest item and is less than a
    value, the last one."""
    size, at = best.shape[1], 0
    if best[i, 0] == -np.inf:
        return 0
    near = False  # all others are as near as the first two or nearer
    for other in range(1, min(3, size)):
        near |= best[i, other] - best[i, 0] <= most + slack[i, 0]
    if not near:
        return 0
    for other in range(1, size):
        if (
            best[i, other] - best[i, 0] <= slack[i, other] + slack[i, 0]
            and best[i, other] < value
            and index[i, other] > index[i, at]
        ):
            at = other
    return at


@numba.njit(nogil=True)
def _replace(best, index, slack, i, at, value, place, own):
    """Put an item, nearer than what is there, in a place of the heap of a query."""
    size = best.shape[1]
    while 2 * at + 1 < size:
        child = 2 * at + 1
        if child + 1 < size and _nearer(
            best[i, child], index[i, child], best[i, child + 1], index[i, child + 1]
        ):
            child += 1
        if not _nearer(value, place, best[i, child], index[i, child]):
            break
        best[i, at], index[i, at] = best[i, child], index[i, child]
        slack[i, at] = slack[i, child]
        at = child
    best[i, at], index[i, at], slack[i, at] = value, place, own
