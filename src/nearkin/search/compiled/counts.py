"""Counting a tile against thresholds, for its rows or for its columns."""

from __future__ import annotations

import numba
import numpy as np

from nearkin.search.compiled.base import (
    RUN,
    U,
    dot,
    half_tie,
    helper,
    jit,
    number,
    place,
    reaches,
    read,
    read_down,
)  # fmt: skip

FEW = 32  # thresholds of a query that are counted run by run; more, item by item


@jit
def count(tile, q, g, goal, terms, own, turned):
    """Count a tile for the queries that are its rows (B, T), or its columns (T, B) if `turned`.

    own     item - query of a query itself
    """
    first, lows, values, counts = goal.first, goal.low, goal.values, goal.counts
    left, factors, norms, weights = q.source, q.factor, q.norm, q.weight
    right, factor, norm, half, weight, cut = g.source, g.factor, g.norm, g.half, g.weight, g.cut
    mine, groups, hots = q.code, q.group, q.hot
    code, group, hot = g.code, g.group, g.hot
    shift, tie, squares, plain = terms.shift, terms.tie, terms.squares, terms.plain
    flat, steep, reach, bits = terms.flat, terms.steep, terms.reach, terms.bits
    raw, up, down, low, high, sure = _room(
        first, values, norms, lows, hots, flat, steep, tie, plain
    )
    queries, items = tile.shape[::-1] if turned else tile.shape
    runs = (items + RUN - 1) // RUN
    top = np.empty(queries, np.float32)
    # Along the tile's rows either way.
    for outer in range(runs if turned else queries):
        if turned:
            start, stop = outer * RUN, min(outer * RUN + RUN, items)
            if plain:
                _highest(tile, start, stop, bits, top)
            else:
                _highest_placed(tile, start, stop, bits, weights, weight, cut, reach, top)
        for inner in range(queries if turned else runs):
            i, run = (inner, outer) if turned else (outer, inner)
            start, stop, least = run * RUN, min(run * RUN + RUN, items), lows[i]
            if least == np.inf:
                continue
            if turned:
                if top[i] < least:
                    continue
                read_down(tile, i, start, stop, bits, raw)
            else:
                if plain and not reaches(tile, i, start, stop, bits, least):
                    continue
                read(tile, i, start, stop, bits, raw)
            if not plain and not place(
                raw, stop - start, start, weights[i], weight, cut, reach, least, up, down
            ):
                continue
            begin, end, label, set_ = first[i], first[i + 1], mine[i], 0
            if len(groups):
                set_ = groups[i]
            if _few(end - begin, hots):
                at, kept = begin - first[0], end - begin
                unsure = _tally(up, down, low, high, at, kept, sure)
                if unsure or _kin(code, group, start, stop, label, set_):
                    _mend(
                        up, down, start, stop, low, high, begin, at, kept, sure, least, unsure,
                        values, code, group, label, set_, left, i, factors[i], norms[i], right,
                        factor, norm, half, shift, tie, squares,
                    )  # fmt: skip
            else:
                _one_by_one(
                    raw, up, start, stop, begin, end, least, flat, steep, values, counts, code,
                    group, label, set_, hots, hot, i + own, left, i, factors[i], norms[i], right,
                    factor, norm, half, shift, tie, squares,
                )  # fmt: skip
    _add(first, hots, sure, counts)


@numba.njit(nogil=True)
def _room(first, values, norms, lows, hots, flat, steep, tie, plain):
    """(raw, up, down, low, high, sure): room for a run, and for the thresholds of all queries:
    their limits, and how many items surely reach each."""
    raw = np.empty(RUN, np.float32)
    # Entries are their own bounds under cosine.
    up = raw if plain else np.empty(RUN, np.float32)
    down = raw if plain else np.empty(RUN, np.float32)
    room = first[-1] - first[0]
    low, high = np.empty(room, np.float32), np.empty(room, np.float32)
    for i in range(len(first) - 1):
        kept = first[i + 1] - first[i]
        if lows[i] != np.inf and _few(kept, hots):
            _limits(values, first[i], kept, first[0], norms[i], flat, steep, tie, plain, low, high)
    return raw, up, down, low, high, np.zeros(room, np.int64)


@numba.njit(nogil=True)
def _few(kept, hots):
    """Whether the thresholds of a query are counted run by run."""
    return kept <= FEW and hots.shape[1] == 0


@numba.njit(nogil=True)
def _limits(values, begin, kept, base, norm, flat, steep, tie, plain, low, high):
    """float32 that `up` must reach where a similarity may reach a value, and that `down` reaches
    only where it does."""
    for at in range(begin, begin + kept):
        value = values[at]
        if plain:
            below, above = value - flat - 8 * tie, value + flat + 8 * tie
            below /= 1 + np.copysign(steep, below)
            above /= 1 - np.copysign(steep, above)
            wide = 1e-6
        else:
            wide = 1e-6 * abs(value) + 1e-10 * norm * norm + 1e-30
            below, above = value, value
        low[at - base], high[at - base] = np.float32(below - wide), np.float32(above + wide)


@numba.njit(nogil=True)
def _add(first, hots, sure, counts):
    """Items that reach each threshold and not the one before, from those that reach each."""
    for i in range(len(first) - 1):
        begin, end, before = first[i], first[i + 1], 0
        if _few(end - begin, hots):
            for at in range(begin, end):
                here = sure[at - first[0]]
                counts[at] += here - before
                before = here


@helper
def _highest(tile, start, stop, bits, top):
    """The highest entry of each column of a strip of rows."""
    for j in range(U(tile.shape[1])):
        top[j] = number(tile[start, j], bits)
    for k in range(start + 1, stop):
        for j in range(U(tile.shape[1])):
            top[j] = max(top[j], number(tile[k, j], bits))


@helper
def _highest_placed(tile, start, stop, bits, weights, weight, cuts, reach, top):
    """The same of the upper bounds, as `place` computes them."""
    for j in range(U(tile.shape[1])):
        top[j] = -np.inf
    for k in range(start, stop):
        item, cut = weight[k], cuts[k]
        for j in range(U(tile.shape[1])):
            upper = (number(tile[k, j], bits) + reach) * (weights[j] * item) - cut
            top[j] = max(top[j], upper)


@helper
def _tally(up, down, low, high, at, kept, sure):
    """Add how many surely reach each threshold; whether any may or may not.

    From the last threshold up: where nothing may reach one, nothing reaches those before it.
    """
    unsure = False
    for back in range(kept):  # a range that descends would leave the vector units
        p = at + kept - 1 - back
        may, does = np.float32(0), np.float32(0)
        least, most = low[p], high[p]
        for k in range(U(len(up))):
            may += np.float32(1) if up[k] >= least else np.float32(0)
            does += np.float32(1) if down[k] >= most else np.float32(0)
        if may == np.float32(0):
            return unsure
        sure[p] += np.int64(does)
        unsure |= may != does
    return unsure


@numba.njit(nogil=True)
def _kin(code, group, start, stop, label, set_):
    """Whether a run holds an item that is no different one."""
    same = _meets(code, start, stop, label)
    return same or (len(group) > 0 and _meets(group, start, stop, set_))


@helper
def _meets(codes, start, stop, code):
    """Whether a run holds a code."""
    found = False
    for j in range(U(start), U(stop)):
        found |= codes[j] == code
    return found


@numba.njit(nogil=True)
def _mend(
    up, down, start, stop, low, high, begin, at, kept, sure, least, unsure, values, code, group,
    label, set_, left, i, factor, norm, right, factors, norms, half, shift, tie, squares,
):  # fmt: skip
    """After `_tally`: take out items that are no different ones, settle in float64 the unsure."""
    for k in range(stop - start):
        if up[k] < least:
            continue
        j = start + k
        if code[j] == label or (len(group) and group[j] == set_):
            for p in range(kept):
                sure[at + p] -= np.int64(down[k] >= high[at + p])
        elif unsure and _between(up[k], down[k], low, high, at, kept):
            exact = dot(left, i, right, j, shift) * factor * factors[j] - half[j]
            exact += half_tie(norm, norms[j], tie, squares)
            for p in range(kept):
                sure[at + p] += np.int64(values[begin + p] <= exact and down[k] < high[at + p])


@numba.njit(nogil=True)
def _between(up, down, low, high, at, kept):
    """Whether a threshold lies within the bounds of a similarity."""
    unsure = False
    for p in range(at, at + kept):
        unsure |= (up >= low[p]) & (down < high[p])
    return unsure


@numba.njit(nogil=True)
def _one_by_one(
    raw, up, start, stop, begin, end, least, flat, steep, values, counts, code, group, label, set_,
    hots, hot, own, left, i, factor, norm, right, factors, norms, half, shift, tie, squares,
):  # fmt: skip
    """Count the items of a run that may be near enough: those of many thresholds or labels."""
    for k in range(stop - start):
        if up[k] < least:
            continue
        j = start + k
        if hots.shape[1]:
            kin = own == j or _share(hots, i, hot, j)
        else:
            kin = code[j] == label
        if kin or (len(group) and group[j] == set_):
            continue
        v = np.float64(raw[k])
        off, size = flat + steep * abs(v), norm * norms[j]
        # Eight half ties are far more than what float64 rounds here.
        more = 8 * half_tie(norm, norms[j], tie, squares)
        above = _first_reached(values, begin, end, (v + off) * size - half[j] + more)
        if above == end:
            continue
        below = _first_reached(values, above, end, (v - off) * size - half[j] - more)
        if above != below:
            exact = dot(left, i, right, j, shift) * factor * factors[j] - half[j]
            exact += half_tie(norm, norms[j], tie, squares)
            above = _first_reached(values, above, below, exact)
        if above < end:
            counts[above] += 1


@numba.njit(nogil=True)
def _first_reached(values, start, stop, x):
    """The first of descending values[start:stop] that is <= x; `stop` for none."""
    while start < stop:
        middle = (start + stop) >> 1
        if values[middle] <= x:
            stop = middle
        else:
            start = middle + 1
    return start


@numba.njit(nogil=True)
def _share(left, i, right, j):
    """Whether two sets of labels, as bits, meet."""
    shared = np.uint64(0)
    for word in range(left.shape[1]):
        shared |= left[i, word] & right[j, word]
    return shared != 0
