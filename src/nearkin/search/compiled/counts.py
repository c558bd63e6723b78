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
    low, high = _limits(first, values, norms, lows, hots, flat, steep, tie, plain)
    sure = np.zeros(len(low), np.int64)
    room = RUN * max(tile.shape)
    who, what = np.empty(room, np.int32), np.empty(room, np.int32)
    upper, lower = np.empty(room, np.float32), np.empty(room, np.float32)
    outer = 0
    while outer >= 0:
        outer, waiting = _scan(
            tile, outer, turned, first, lows, low, high, sure, weights, weight, cut, reach, bits,
            plain, mine, groups, hots, code, group, who, what, upper, lower,
        )  # fmt: skip
        _settle(
            waiting, who, what, upper, lower, first, values, low, high, sure, counts, flat, steep,
            mine, groups, hots, code, group, hot, own, left, factors, norms, right, factor, norm,
            half, shift, tie, squares,
        )  # fmt: skip
    for i in range(len(first) - 1):
        if _few(first[i + 1] - first[i], hots):
            before = 0
            for at in range(first[i], first[i + 1]):
                here = sure[at - first[0]]
                counts[at] += here - before
                before = here


@numba.njit(nogil=True)
def _scan(
    tile, outer, turned, first, lows, low, high, sure, weights, weight, cut, reach, bits, plain,
    mine, groups, hots, code, group, who, what, upper, lower,
):  # fmt: skip
    """Count what the bounds settle, from a row (or a strip of rows) on; and write down the pairs
    that remain to be looked at, by their query and item, with the bounds of their similarity.

    Returns (where to go on, -1 for nowhere; how many remain). They are handed on many at a time,
    since a call counts references of all its arrays.
    """
    queries, items = tile.shape[::-1] if turned else tile.shape
    runs, waiting = (items + RUN - 1) // RUN, 0
    raw, top = np.empty(RUN, np.float32), np.empty(queries, np.float32)
    # Entries are their own bounds under cosine.
    up = raw if plain else np.empty(RUN, np.float32)
    down = raw if plain else np.empty(RUN, np.float32)
    outers, inners = (runs, queries) if turned else (queries, runs)
    while outer < outers and waiting + inners * RUN <= len(who):
        if turned:
            _highest(
                tile, outer * RUN, min(outer * RUN + RUN, items), bits, weights, weight, cut,
                reach, plain, top,
            )  # fmt: skip
        for inner in range(inners):
            i, run = (inner, outer) if turned else (outer, inner)
            start, stop, least = run * RUN, min(run * RUN + RUN, items), lows[i]
            if least == np.inf or (turned and top[i] < least):
                continue
            if turned:
                read_down(tile, i, start, stop, bits, raw)
            else:
                if plain and not reaches(tile, i, start, stop, bits, least):
                    continue
                read(tile, i, start, stop, bits, raw)
            if not plain and not place(
                raw, stop - start, start, weights[i], weight, cut, reach, least, up, down
            ):
                continue
            if _few(first[i + 1] - first[i], hots):
                unsure = _tally(
                    up, down, low, high, first[i] - first[0], first[i + 1] - first[0], sure
                )
                set_ = groups[i] if len(groups) else 0
                if not unsure and not _kin(code, group, start, stop, mine[i], set_):
                    continue
                said = down
            else:
                said = raw
            for k in range(stop - start):
                if up[k] >= least:
                    who[waiting], what[waiting] = i, start + k
                    upper[waiting], lower[waiting] = up[k], said[k]
                    waiting += 1
        outer += 1
    return outer if outer < outers else -1, waiting


@numba.njit(nogil=True)
def _settle(
    waiting, who, what, upper, lower, first, values, low, high, sure, counts, flat, steep, mine,
    groups, hots, code, group, hot, own, left, factors, norms, right, factor, norm, half, shift,
    tie, squares,
):  # fmt: skip
    """Settle the pairs that remain, of different items in float64; items that are no different
    ones are taken out of what was counted.

    lower   of queries of many thresholds or labels, that are not counted before: the entry itself
    """
    for w in range(waiting):
        i, j = np.int64(who[w]), np.int64(what[w])
        begin, end, base = first[i], first[i + 1], first[0]
        if hots.shape[1]:
            kin = i + own == j or _share(hots, i, hot, j)
        else:
            kin = code[j] == mine[i]
        kin |= len(group) > 0 and group[j] == groups[i]
        if _few(end - begin, hots):
            if kin:
                for at in range(begin, end):
                    sure[at - base] -= np.int64(lower[w] >= high[at - base])
            elif _between(upper[w], lower[w], low, high, begin - base, end - base):
                exact = dot(left, i, right, j, shift) * factors[i] * factor[j] - half[j]
                exact += half_tie(norms[i], norm[j], tie, squares)
                for at in range(begin, end):
                    sure[at - base] += np.int64(values[at] <= exact and lower[w] < high[at - base])
        elif not kin:
            v = np.float64(lower[w])
            off, size = flat + steep * abs(v), norms[i] * norm[j]
            own_tie = half_tie(norms[i], norm[j], tie, squares)
            # Eight half ties are far more than what float64 rounds here.
            above = _first_reached(values, begin, end, (v + off) * size - half[j] + 8 * own_tie)
            below = _first_from(values, above, end, (v - off) * size - half[j] - 8 * own_tie)
            if above != below:
                exact = dot(left, i, right, j, shift) * factors[i] * factor[j] - half[j]
                above = _first_reached(values, above, below, exact + own_tie)
            if above < end:
                counts[above] += 1


@numba.njit(nogil=True)
def _few(kept, hots):
    """Whether the thresholds of a query are counted run by run."""
    return kept <= FEW and hots.shape[1] == 0


@numba.njit(nogil=True)
def _limits(first, values, norms, lows, hots, flat, steep, tie, plain):
    """(low, high) of all thresholds, float32: what `up` must reach where a similarity may reach
    one, and what `down` reaches only where it does."""
    base = first[0]
    low, high = np.empty(first[-1] - base, np.float32), np.empty(first[-1] - base, np.float32)
    for i in range(len(first) - 1):
        if lows[i] == np.inf or not _few(first[i + 1] - first[i], hots):
            continue
        for at in range(first[i], first[i + 1]):
            value = values[at]
            if plain:
                below, above = value - flat - 8 * tie, value + flat + 8 * tie
                below /= 1 + np.copysign(steep, below)
                above /= 1 - np.copysign(steep, above)
                wide = 1e-6
            else:
                wide = 1e-6 * abs(value) + 1e-10 * norms[i] * norms[i] + 1e-30
                below, above = value, value
            low[at - base], high[at - base] = np.float32(below - wide), np.float32(above + wide)
    return low, high


@helper
def _highest(tile, start, stop, bits, weights, weight, cuts, reach, plain, top):
    """The highest upper bound, as `place` computes it, of each column of a strip of rows."""
    for j in range(U(tile.shape[1])):
        top[j] = -np.inf
    for k in range(start, stop):
        if plain:
            for j in range(U(tile.shape[1])):
                top[j] = max(top[j], number(tile[k, j], bits))
        else:
            item, cut = weight[k], cuts[k]
            for j in range(U(tile.shape[1])):
                upper = (number(tile[k, j], bits) + reach) * (weights[j] * item) - cut
                top[j] = max(top[j], upper)


@helper
def _tally(up, down, low, high, begin, end, sure):
    """Add how many surely reach each threshold; whether any may or may not.

    From the last threshold up: where nothing may reach one, nothing reaches those before it.
    """
    unsure = False
    for back in range(1, end - begin + 1):  # a range that descends would leave the vector units
        p = end - back
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
def _between(upper, lower, low, high, begin, end):
    """Whether a threshold lies within the bounds of a similarity."""
    unsure = False
    for p in range(begin, end):
        unsure |= (upper >= low[p]) & (lower < high[p])
    return unsure


@numba.njit(nogil=True)
def _first_reached(values, start, stop, x):
    """The first of descending values[start:stop] that is <= x; `stop` for none."""
    left = stop - start
    while left > 0:
        step = (left + 1) >> 1
        # No branch to be guessed: half of all guesses would be wrong.
        start = start + step if values[start + step - 1] > x else start
        left -= step
    return start


@numba.njit(nogil=True)
def _first_from(values, start, stop, x):
    """The same where it is likely to be close to the start."""
    near = min(start + 4, stop)
    while start < near and values[start] > x:
        start += 1
    return start if start < near else _first_reached(values, start, stop, x)


@numba.njit(nogil=True)
def _share(left, i, right, j):
    """Whether two sets of labels, as bits, meet."""
    shared = np.uint64(0)
    for word in range(left.shape[1]):
        shared |= left[i, word] & right[j, word]
    return shared != 0
