"""Loops over tiles of screened similarities, compiled by numba (extra `fast`).

Imported only where numba is there; what they compute is written in plain torch beside their use.
"""

from __future__ import annotations

from functools import wraps
from typing import NamedTuple

import numba
import numpy as np

from nearkin.cache import cache_folder
from nearkin.core import warn_once

FEW = 32  # thresholds of a query that are counted run by run; more, item by item
WIDER = np.float32(1 + 4e-6)  # `cut` is below the half of a row, times this above it
RUN = 64  # entries that are looked at together: most runs hold nothing that is near enough
U = np.uint64  # of an index: signed ones may be negative, which keeps loops from vector units
NEVER = np.iinfo(np.int64).min  # of `own`: no item is the query itself


class Part(NamedTuple):
    """A block of B rows, as arrays.

    source  (B, D) float32 or float64: rows that are exact after `factor`
    factor, norm, half  (B,) float64, as in `side.Side`
    weight, cut  (B,) float32: norm, and half rounded down
    code    (B,) int64 labels; group (B,) int64, or empty; hot (B, W) uint64 bits, or W = 0
    """

    source: np.ndarray
    factor: np.ndarray
    norm: np.ndarray
    half: np.ndarray
    weight: np.ndarray
    cut: np.ndarray
    code: np.ndarray
    group: np.ndarray
    hot: np.ndarray


class Goal(NamedTuple):
    """What the items of a tile are counted against, for B queries.

    first   (B + 1,) int64: where the thresholds of each query start
    low     (B,) float32: nothing below it can reach the last threshold; infinite without any
    values  all thresholds, descending within a query
    counts  int64, one a threshold: items that reach it and not the one before
    """

    first: np.ndarray
    low: np.ndarray
    values: np.ndarray
    counts: np.ndarray


class Terms(NamedTuple):
    """How a tile is to be read.

    bits    how far its entries are shifted to be the bits of float32: 16 for bfloat16, else 0
    flat, steep, reach  the bound, and float32: how far an entry may be off at most, rounded up
    plain   cosine: norms are 1 and halves 0
    squares euclidean: ties are in units of the mean of both squares
    tie     half a tie, in units of a pair
    shift   (D,) what is taken off `source`; empty for nothing
    """

    bits: int
    flat: float
    steep: float
    reach: np.float32
    plain: bool
    squares: bool
    tie: float
    shift: np.ndarray


def _jit(function):
    """Compiled when first called, and kept in nearkin's own cache folder where it can be."""
    uncached = numba.njit(nogil=True)(function)
    before = numba.config.CACHE_DIR  # type: ignore[attr-defined]
    try:
        numba.config.CACHE_DIR = str(cache_folder() / "numba")  # type: ignore[attr-defined]
        cached = numba.njit(nogil=True, cache=True)(function)
    except (OSError, RuntimeError) as error:  # nowhere to write
        _warn(error)
        return uncached
    finally:
        numba.config.CACHE_DIR = before  # type: ignore[attr-defined]
    kept = [cached]

    @wraps(function)
    def call(*arguments):
        # The file is written before the loop runs, so that nothing is counted twice.
        if kept:
            try:
                return kept[0](*arguments)
            except (OSError, EOFError) as error:
                kept.clear()
                _warn(error)
        return uncached(*arguments)

    return call


def _warn(error: BaseException) -> None:
    warn_once(
        f"the compiled loops cannot be kept in {cache_folder() / 'numba'} and are compiled anew by "
        f"each process, which takes seconds; make room there, or set NEARKIN_HOME: {error}"
    )


def _helper(function):
    """Part of a loop: sums may be taken in any order, and nothing here is NaN."""
    return numba.njit(nogil=True, fastmath={"reassoc", "contract", "nsz", "nnan"})(function)


@_helper
def _dot(left, i, right, j, shift):
    """The product of two rows, each less `shift`, in float64."""
    total = 0.0
    if len(shift):
        for k in range(left.shape[1]):
            total += (np.float64(left[i, k]) - shift[k]) * (np.float64(right[j, k]) - shift[k])
    else:
        for k in range(left.shape[1]):
            total += np.float64(left[i, k]) * np.float64(right[j, k])
    return total


@numba.njit(nogil=True)
def _tie(query, item, tie, squares):
    """Half a tie of a pair, from the norms of both."""
    return tie * ((query * query + item * item) / 2 if squares else query * item)


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


@numba.njit(nogil=True)
def _number(bits, shift):
    return np.int32(np.int32(bits) << np.int32(shift)).view(np.float32)


# Tuples of arrays are taken apart before a loop: handing them on counts references of all of them.


@_jit
def count_rows(tile, q, g, goal, terms, own):
    """Count a tile (B, T) whose rows are queries; own: item - query of a query itself."""
    rows, columns = tile.shape
    first, lows, values, counts = goal.first, goal.low, goal.values, goal.counts
    left, factors, norms, weights = q.source, q.factor, q.norm, q.weight
    right, factor, norm, half, weight, cut = g.source, g.factor, g.norm, g.half, g.weight, g.cut
    mine, groups, hots = q.code, q.group, q.hot
    code, group, hot = g.code, g.group, g.hot
    shift, tie, squares, plain = terms.shift, terms.tie, terms.squares, terms.plain
    flat, steep, reach, bits = terms.flat, terms.steep, terms.reach, terms.bits
    up, down = np.empty(columns, np.float32), np.empty(columns, np.float32)
    if plain:
        down = up
    low, high = np.empty(FEW, np.float32), np.empty(FEW, np.float32)
    sure = np.empty(FEW, np.int64)
    for i in range(rows):
        least, begin, end = lows[i], first[i], first[i + 1]
        if least == np.inf:
            continue
        kept = end - begin
        few = kept <= FEW and hots.shape[1] == 0
        label, set_ = mine[i], groups[i] if len(groups) else 0
        if few:
            _limits(values, begin, kept, norms[i], flat, steep, tie, plain, low, high)
            sure[:kept] = 0
        for start in range(0, columns, RUN):
            stop = min(start + RUN, columns)
            if plain:
                if not _reaches(tile, i, start, stop, bits, least):
                    continue
                _read(tile, i, start, stop, bits, up)
            else:
                _read(tile, i, start, stop, bits, up)
                if not _place(up, down, start, stop, weights[i], weight, cut, reach, least):
                    continue
            if few:
                unsure = _tally(up, down, start, stop, low, high, kept, sure)
                if unsure or _kin(code, group, start, stop, label, set_):
                    _mend(
                        up, down, start, stop, low, high, begin, kept, sure, least, unsure, values,
                        code, group, label, set_, left, i, factors[i], norms[i], right, factor,
                        norm, half, shift, tie, squares,
                    )  # fmt: skip
            else:
                _one_by_one(
                    tile, up, start, stop, bits, begin, end, least, flat, steep, values, counts,
                    code, group, label, set_, hots, hot, own, left, i, factors[i], norms[i], right,
                    factor, norm, half, shift, tie, squares,
                )  # fmt: skip
        if few:
            before = 0
            for p in range(kept):
                counts[begin + p] += sure[p] - before
                before = sure[p]


@numba.njit(nogil=True)
def _kin(code, group, start, stop, label, set_):
    """Whether a run holds an item that is no different one."""
    same = _meets(code, start, stop, label)
    return same or (len(group) > 0 and _meets(group, start, stop, set_))


@numba.njit(nogil=True)
def _mend(
    up, down, start, stop, low, high, begin, kept, sure, least, unsure, values,
    code, group, label, set_, left, i, factor, norm, right, factors, norms, half, shift, tie,
    squares,
):  # fmt: skip
    """After `_tally`: take out items that are no different ones, settle in float64 the unsure."""
    for j in range(start, stop):
        if up[j] < least:
            continue
        if code[j] == label or (len(group) and group[j] == set_):
            for p in range(kept):
                sure[p] -= np.int64(down[j] >= high[p])
        elif unsure and _between(up[j], down[j], low, high, kept):
            exact = _dot(left, i, right, j, shift) * factor * factors[j] - half[j]
            exact += _tie(norm, norms[j], tie, squares)
            for p in range(kept):
                sure[p] += np.int64(values[begin + p] <= exact and down[j] < high[p])


@numba.njit(nogil=True)
def _one_by_one(
    tile, up, start, stop, bits, begin, end, least, flat, steep, values, counts, code, group,
    label, set_, hots, hot, own, left, i, factor, norm, right, factors, norms, half, shift, tie,
    squares,
):  # fmt: skip
    """Count the items of a run that may be near enough: those of many thresholds or labels."""
    for j in range(start, stop):
        if up[j] < least:
            continue
        if hots.shape[1]:
            kin = i + own == j or _share(hots, i, hot, j)
        else:
            kin = code[j] == label
        if kin or (len(group) and group[j] == set_):
            continue
        v = np.float64(_number(tile[i, j], bits))
        off, size = flat + steep * abs(v), norm * norms[j]
        # Eight half ties are far more than what float64 rounds here.
        more = 8 * _tie(norm, norms[j], tie, squares)
        above = _first_reached(values, begin, end, (v + off) * size - half[j] + more)
        if above == end:
            continue
        below = _first_reached(values, above, end, (v - off) * size - half[j] - more)
        if above != below:
            exact = _dot(left, i, right, j, shift) * factor * factors[j] - half[j]
            exact += _tie(norm, norms[j], tie, squares)
            above = _first_reached(values, above, below, exact)
        if above < end:
            counts[above] += 1


@numba.njit(nogil=True)
def _between(up, down, low, high, kept):
    """Whether a threshold lies within the bounds of a similarity."""
    unsure = False
    for p in range(kept):
        unsure |= (up >= low[p]) & (down < high[p])
    return unsure


@_helper
def _reaches(tile, i, start, stop, bits, low):
    """Whether any of a run of entries is `low` or more."""
    found = False
    for j in range(U(start), U(stop)):
        found |= _number(tile[i, j], bits) >= low
    return found


@_helper
def _read(tile, i, start, stop, bits, out):
    for j in range(U(start), U(stop)):
        out[j] = _number(tile[i, j], bits)


@_helper
def _place(up, down, start, stop, weight, weights, cuts, reach, low):
    """Bounds of the similarities of a run, from its entries in `up`; whether any reaches `low`."""
    found = False
    for j in range(U(start), U(stop)):
        product, cut, v = weight * weights[j], cuts[j], up[j]
        upper = (v + reach) * product - cut
        up[j] = upper
        down[j] = (v - reach) * product - cut * WIDER
        found |= upper >= low
    return found


@_helper
def _tally(up, down, start, stop, low, high, kept, sure):
    """Add how many surely reach each threshold; whether any may or may not."""
    unsure = False
    for p in range(kept):
        may, does = np.float32(0), np.float32(0)
        least, most = low[p], high[p]
        for j in range(U(start), U(stop)):
            may += np.float32(1) if up[j] >= least else np.float32(0)
            does += np.float32(1) if down[j] >= most else np.float32(0)
        sure[p] += np.int64(does)
        unsure |= may != does
    return unsure


@_helper
def _meets(codes, start, stop, code):
    """Whether a run holds a code."""
    found = False
    for j in range(U(start), U(stop)):
        found |= codes[j] == code
    return found


@numba.njit(nogil=True)
def _limits(values, begin, kept, norm, flat, steep, tie, plain, low, high):
    """float32 that `up` must reach where a similarity may reach a value, and that `down` reaches
    only where it does."""
    for p in range(kept):
        value = values[begin + p]
        if plain:
            below, above = value - flat - 8 * tie, value + flat + 8 * tie
            below /= 1 + np.copysign(steep, below)
            above /= 1 - np.copysign(steep, above)
            low[p], high[p] = np.float32(below - 1e-6), np.float32(above + 1e-6)
        else:
            wide = 1e-6 * abs(value) + 1e-10 * norm * norm + 1e-30
            low[p], high[p] = np.float32(value - wide), np.float32(value + wide)


@_jit
def relevant(q, g, order, start, first, values, terms, own):
    """Thresholds of queries that have one label each: the nearest relevant items, less half a tie.

    order, start    gallery items by label, and where each label starts: (G,), (C + 1,)
    first           (B + 1,) where the values of each query go: as many as are kept
    """
    shift, tie, squares = terms.shift, terms.tie, terms.squares
    left, factors, norms, labels, groups = q.source, q.factor, q.norm, q.code, q.group
    right, factor, norm, half, group = g.source, g.factor, g.norm, g.half, g.group
    for i in range(len(labels)):
        begin, end = first[i], first[i]
        room = first[i + 1] - begin
        for place in range(start[labels[i]], start[labels[i] + 1]):
            j = order[place]
            if room == 0 or i + own == j or (len(groups) and groups[i] == group[j]):
                continue
            value = _dot(left, i, right, j, shift) * factors[i] * factor[j] - half[j]
            value -= _tie(norms[i], norm[j], tie, squares)
            if end - begin == room:
                if value <= values[end - 1]:
                    continue
                end -= 1
            at = end
            while at > begin and values[at - 1] < value:
                values[at] = values[at - 1]
                at -= 1
            values[at] = value
            end += 1


@_jit
def relevant_counts(labels, groups, group, order, start, own):
    """(B,) int64: how many relevant items each query has; see `relevant`."""
    counts = np.zeros(len(labels), np.int64)
    for i in range(len(labels)):
        for place in range(start[labels[i]], start[labels[i] + 1]):
            j = order[place]
            if i + own != j and (len(groups) == 0 or groups[i] != group[j]):
                counts[i] += 1
    return counts


@_jit
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
    up = np.empty(columns, np.float32)
    down = up if plain else np.empty(columns, np.float32)
    for i in range(rows):
        for start in range(0, columns, RUN):
            stop = min(start + RUN, columns)
            least = _floor(best[i, 0], norms[i])
            if plain:
                if not _reaches(tile, i, start, stop, bits, least - reach):
                    continue
                _read(tile, i, start, stop, bits, up)
            else:
                _read(tile, i, start, stop, bits, up)
                if not _place(up, down, start, stop, weights[i], weight, cut, reach, least):
                    continue
            for j in range(start, stop):
                v = np.float64(_number(tile[i, j], bits))
                upper = (v + flat + steep * abs(v)) * norms[i] * norm[j] - half[j]
                own = _tie(norms[i], norm[j], tie, squares)
                if upper + 8 * own <= best[i, 0] + slack[i, 0] or base + j == skipped[i]:
                    continue
                exact = _dot(left, i, right, j, shift) * factors[i] * factor[j] - half[j]
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
