"""Passes over similarities, compiled by numba (extra `fast`): each does in one loop over a row what
plain torch does in ten, and gives the same to rounding.

Imported only where numba is there; the plain forms stand beside their use. All matrices are float32
and contiguous. `s` (B, R) holds similarities and `x` (B, R) gets their slopes; they may be one
array. What is not counted is -inf, or stands in a column that `skip` (B, K) names for the row, and
gets slope 0.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numba
import numpy as np
from numba.core import types
from numba.extending import intrinsic

from nearkin.jit import jit_of

F = np.float32
ZERO, ONE, TWO = F(0), F(1), F(2)
NOTHING, INFINITE, NAN = F(-np.inf), F(np.inf), F(np.nan)
LEAST = F(np.finfo(np.float32).tiny ** 0.5)  # of a squared distance: see closed.distances
COPIES = F(np.finfo(np.float32).tiny ** 0.25 * 1.001)  # distances of identical rows
FLOATS = 128  # numbers that are summed in float32 before float64 takes them
TILE = 32  # rows and columns of what is turned at once

# A division by 0 is infinite, as in numpy: asking costs a branch, and raises in plain loops.
OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
jit = jit_of([Path(__file__)], **OPTIONS)
_plain = numba.njit(**OPTIONS)
_fused = numba.njit(**OPTIONS, fastmath={"contract"})
_in_any_order = numba.njit(**OPTIONS, fastmath={"reassoc", "contract", "nsz"})


def _read_as(to: Any, of: Any) -> Any:
    """A function that reads the bits of one number as another."""

    def read(context, x):
        def generate(context, builder, signature, arguments):
            return builder.bitcast(arguments[0], context.get_value_type(to))

        return to(of), generate

    return intrinsic(read)


_bits = _read_as(types.int32, types.float32)
_float = _read_as(types.float32, types.int32)


LOG2_E = F(1.44269504088896341)
LN2_HIGH, LN2_LOW = F(0.693359375), F(-2.12194440e-4)
TO_WHOLE = F(12582912.0)  # 1.5 · 2^23: adding it leaves the nearest whole number in the low bits
E2, E3, E4 = F(5.0000001201e-1), F(1.6666665459e-1), F(4.1665795894e-2)
E5, E6, E7 = F(8.3334519073e-3), F(1.3981999507e-3), F(1.9875691500e-4)
LOWEST = F(-87.0)
SIGN, MAGNITUDE = np.int32(31), np.int32(0x7FFFFFFF)
BELOW_ALL = np.int32(np.array(-np.inf, np.float32).view(np.int32) ^ 0x7FFFFFFF)


# Sums in no other order: that would cancel TO_WHOLE.
@_fused
def _exp(x):
    """e^x for x <= 0, to 2 units in the last place; 0 below -87, where float32 loses digits, and
    NaN for NaN. By the polynomial of Cephes (Moshier), which compilers turn into vectors."""
    whole = x * LOG2_E + TO_WHOLE
    times = whole - TO_WHOLE
    r = x - times * LN2_HIGH
    r = r - times * LN2_LOW
    p = ((((E7 * r + E6) * r + E5) * r + E4) * r + E3) * r + E2
    p = p * (r * r) + r + ONE
    y = _float(_bits(p) + (_bits(whole) << np.int32(23)))
    return y if x >= LOWEST else (ZERO if x < LOWEST else x)


@_plain
def _top(row):
    """The largest entry of a row without NaN.

    By their bits, in an order that integers have too: compilers make vectors of that alone.
    """
    top = BELOW_ALL
    for j in range(len(row)):
        bits = _bits(row[j])
        top = max(top, bits ^ ((bits >> SIGN) & MAGNITUDE))
    return _float(top ^ ((top >> SIGN) & MAGNITUDE))


@_in_any_order
def _sum(row):
    total = ZERO
    for j in range(len(row)):
        total += row[j]
    return total


@_fused
def _exps(row, scale, top):
    for j in range(len(row)):
        row[j] = _exp((row[j] - top) * scale)


@_plain
def _taken(s, skip, x, i):
    """Row i of x: that of s, -inf in the columns to skip; and whether one of them is NaN. Then all
    are: no comparison sees NaN, and it must not be lost."""
    row = x[i]
    row[:] = s[i]
    for k in range(skip.shape[1]):
        row[skip[i, k]] = NOTHING
    wrong = np.int32(0)
    for j in range(len(row)):
        wrong |= np.int32(row[j] != row[j])
    if wrong:
        row[:] = NAN
    return row, wrong != 0


@_plain
def _to_exps(row, wrong, scale):
    """log Σ e^{scale·row}, and the sum of what the row turns into: e^{scale·(row - its top)}. A row
    of nothing turns into zeros, and one that is `wrong` stays NaN; the sum is 1 then."""
    top = NAN if wrong else _top(row)
    if not abs(top) < INFINITE:
        row[:] = ZERO if top == NOTHING else NAN
        return np.float64(top), ONE
    _exps(row, F(scale), top)
    total = _sum(row)
    return np.log(np.float64(total)) + scale * np.float64(top), total


@jit
def log_sum_exp(s, skip, x, scale, value):
    """(B,) into `value`: log Σ exp(scale·s) of the rows of s, scale > 0; -inf for rows of
    nothing."""
    for i in range(len(x)):
        row, wrong = _taken(s, skip, x, i)
        value[i], total = _to_exps(row, wrong, scale)
        share = F(scale) / total
        for j in range(len(row)):
            row[j] *= share


@jit
def hinges_squared(s, skip, x, margin):
    """Σ [margin - d]₊² over s, d = √(2 - 2s)."""
    total, farthest, squares = 0.0, F(margin), np.empty(s.shape[1], np.float32)
    for i in range(len(x)):
        row, _ = _taken(s, skip, x, i)
        for j in range(len(row)):
            d = TWO - TWO * row[j]
            d = np.sqrt(LEAST if d < LEAST else d)
            gap = farthest - d
            gap = ZERO if gap < ZERO else gap
            squares[j] = gap * gap
            row[j] = ZERO if d <= COPIES else TWO * gap / d
        total += np.float64(_sum(squares))
    return total


@jit
def triplet_hinges(s, skip, x, near, squared, of_near):
    """Σ [near_ip - d_ij]₊ over the rows i, p and j of near (B, P) and s, d = √(2 - 2s), or its
    square. Into `of_near` (B, P) goes in how many violated triplets each positive is."""
    total, width = 0.0, s.shape[1]
    far, count = np.empty(width, np.float32), np.empty(width, np.float32)
    over = np.empty(width, np.float32)
    for i in range(len(x)):
        row, wrong = _taken(s, skip, x, i)
        if wrong:
            total, of_near[i] = np.nan, NAN
            continue
        for j in range(width):
            d = np.sqrt(max(TWO - TWO * row[j], LEAST))
            # Squared as those of the positives were, or hinges at their edge open by rounding.
            far[j] = d * d if squared else d
            count[j] = ZERO
        for p in range(near.shape[1]):
            of_near[i, p] = _beaten(far, near[i, p], count, over)
            if of_near[i, p] > ZERO:
                total += np.float64(_sum(over))
        if squared:
            for j in range(width):
                row[j] = TWO * count[j]
        else:
            for j in range(width):
                row[j] = count[j] / far[j] if far[j] > COPIES else ZERO
    return total


@_in_any_order
def _beaten(far, threshold, count, over):
    violated = ZERO
    for j in range(len(far)):
        gap = threshold - far[j]
        one = ONE if gap > ZERO else ZERO
        count[j] += one
        violated += one
        over[j] = gap if gap > ZERO else ZERO
    return violated


@jit
def classes_of(label, order):
    """The size of the largest class of label (N,), how many ordered pairs of mates there are, and
    whether all classes are of that size. `order` sorts the labels."""
    most, pairs, size, classes = 0, 0, 0, 0
    for k in range(len(order)):
        size += 1
        if k + 1 == len(order) or label[order[k]] != label[order[k + 1]]:
            most, pairs, size, classes = max(most, size), pairs + size * (size - 1), 0, classes + 1
    return most, pairs, classes * most == len(order)


@jit
def mates(label, order, columns, valid, count):
    """Columns (N, P), valid (N, P) and count (N,) of closed.Positives; `order` sorts the labels,
    stably. `columns` and `valid` are zeros, and `valid` may be (0, 0): nobody reads it then."""
    begin = 0
    for k in range(1, len(order) + 1):
        if k < len(order) and label[order[k]] == label[order[begin]]:
            continue
        for a in range(begin, k):
            row, place = order[a], 0
            for b in range(begin, k):
                if a != b:
                    columns[row, place] = order[b]
                    if len(valid):
                        valid[row, place] = True
                    place += 1
            count[row] = place
        begin = k


@jit
def both_ways(slope, factor, columns, own, x):
    """x = G + Gᵀ (N, N) for G = factor · slope (N, N), a factor a row or (1,), and own (N, P) added
    at `columns` (N, P)."""
    n, one = len(slope), len(factor) == 1
    tile = np.empty((TILE, TILE), np.float32)
    for above in range(0, n, TILE):
        rows = min(TILE, n - above)
        for left in range(above, n, TILE):
            width = min(TILE, n - left)
            for b in range(width):
                f = factor[0 if one else left + b]
                row = slope[left + b, above : above + rows]
                for a in range(rows):
                    tile[a, b] = f * row[a]
            for a in range(rows):
                f = factor[0 if one else above + a]
                row, turned = slope[above + a, left : left + width], tile[a]
                to = x[above + a, left : left + width]
                for b in range(width):
                    both = f * row[b] + turned[b]
                    to[b] = both
                    turned[b] = both
            for b in range(width):
                to = x[left + b, above : above + rows]
                for a in range(rows):
                    to[a] = tile[a, b]
    for i in range(len(columns)):
        for p in range(columns.shape[1]):
            x[i, columns[i, p]] += own[i, p]
            x[columns[i, p], i] += own[i, p]


@_in_any_order
def _dot(a, b):
    total = ZERO
    for j in range(len(a)):
        total += a[j] * b[j]
    return total


@jit
def unit(x, rows, length):
    """The rows of x (N, D) over their length (N, 1); gives the least and the greatest length."""
    least, greatest = INFINITE, ZERO
    for i in range(len(x)):
        one = np.sqrt(_dot(x[i], x[i]))
        length[i, 0] = one
        least = min(least, one)
        greatest = max(greatest, one) if one < INFINITE else INFINITE  # NaN too
        row, to = x[i], rows[i]
        for j in range(len(row)):
            to[j] = row[j] / one
    return least, greatest


@jit
def along_sphere(slope, rows, length):
    """slope (N, D) in place: see closed.along_sphere."""
    for i in range(len(rows)):
        row, to, one = rows[i], slope[i], length[i, 0]
        along = _dot(to, row)
        for j in range(len(row)):
            to[j] = (to[j] - along * row[j]) / one


@jit
def nearness(s, skip, x, value):
    """(B,) into `value`: log Σ e^{-d} of the rows of s, d = √(2 - 2s); -inf for rows of nothing."""
    far = np.empty(s.shape[1], np.float32)
    for i in range(len(x)):
        row, wrong = _taken(s, skip, x, i)
        for j in range(len(row)):
            d = TWO - TWO * row[j]
            far[j] = np.sqrt(LEAST if d < LEAST else d)
            row[j] = -far[j]
        value[i], total = _to_exps(row, wrong, 1.0)
        for j in range(len(row)):
            row[j] = ZERO if far[j] <= COPIES else row[j] / (total * far[j])


@jit
def weighted_hinges(s, skip, x, boundary, temperature, value):
    """(B,) into `value`: Σ v·gap of the rows of s, gap = [boundary - d]₊, d = √(2 - 2s) and v ∝
    e^{temperature · gap} where the gap is above 0, which sum to 1 and are held for the slope."""
    gap, edge, sharp = np.empty(s.shape[1], np.float32), F(boundary), F(temperature)
    for i in range(len(x)):
        row, wrong = _taken(s, skip, x, i)
        for j in range(len(row)):
            gap[j] = max(edge - np.sqrt(max(TWO - TWO * row[j], LEAST)), ZERO)
        if wrong:
            value[i] = NAN
            continue
        top = _top(gap)
        if top == ZERO:
            value[i] = ZERO
            row[:] = ZERO
            continue
        for j in range(len(row)):
            weight = _exp((gap[j] - top) * sharp)
            row[j] = weight if gap[j] > ZERO else ZERO
        total = _sum(row)
        value[i] = _dot(row, gap) / total
        for j in range(len(row)):
            far = edge - gap[j]
            row[j] = row[j] / (total * far) if far > COPIES else ZERO


@_plain
def _first_nan(row, skip):
    """The first column that is NaN and none of those to skip."""
    for j in range(len(row)):
        counts = row[j] != row[j]
        for k in range(len(skip)):
            counts = counts and skip[k] != j
        if counts:
            return j
    return 0


@jit
def nearest_below(s, skip, limit, strictly, columns):
    """Into columns (B, P): the most similar entry of each row of s that is at most (`strictly`:
    below) each limit (B, P), the first of equal ones; -1 where there is none."""
    width = s.shape[1]
    row, below = np.empty((1, width), np.float32), np.empty(width, np.float32)
    for i in range(len(s)):
        _, wrong = _taken(s[i : i + 1], skip[i : i + 1], row, 0)
        if wrong:
            columns[i] = _first_nan(s[i], skip[i])
            continue
        for p in range(limit.shape[1]):
            most = limit[i, p]
            for j in range(width):
                in_reach = row[0, j] < most if strictly else row[0, j] <= most
                below[j] = row[0, j] if in_reach else NOTHING
            top, column = _top(below), 0
            while column < width and below[column] != top:
                column += 1
            columns[i, p] = column if top > NOTHING and column < width else -1


@jit
def sparse_products(slope, columns, rows, x):
    """x (N, D): (W + Wᵀ) rows, for W with the slope (N, K) at `columns` (N, K) and 0 elsewhere."""
    x[:] = ZERO
    for i in range(len(columns)):
        here, to_here = rows[i], x[i]
        for k in range(columns.shape[1]):
            weight, there, to_there = slope[i, k], rows[columns[i, k]], x[columns[i, k]]
            if weight != ZERO:
                for d in range(len(here)):
                    to_here[d] += weight * there[d]
                for d in range(len(here)):
                    to_there[d] += weight * here[d]


@jit
def exponentials(x, places, length, bias, own, top, total):
    """x (B, A) turns into share = e^{logit - top} / length with logit = x / length + bias, and 0 at
    the flat `places`.

    length, bias   (B,), or (0,) for none
    own            out, as many as places: the logits there
    top, total     (A,) out: the largest logit of each column but these, and Σ e^{logit - top}
    """
    rows, width = x.shape
    lowest, flat = F(-3.4028234663852886e38), x.reshape(-1)
    for k in range(len(places)):
        i = places[k] // width
        own[k] = flat[places[k]]
        if len(length):
            own[k] /= length[i]
        if len(bias):
            own[k] += bias[i]
        flat[places[k]] = NOTHING
    top[:] = lowest
    for i in range(rows):
        _scale(x[i], ONE / length[i] if len(length) else ONE, bias[i] if len(bias) else ZERO, top)
    some, every = np.zeros(width, np.float32), np.zeros(width)
    for i in range(rows):
        _add_exps(x[i], ONE / length[i] if len(length) else ONE, top, some)
        if i % FLOATS == FLOATS - 1 or i == rows - 1:
            every += some
            some[:] = ZERO
    for a in range(width):
        total[a] = every[a]


@_fused
def _scale(row, factor, bias, top):
    for a in range(len(row)):
        one = row[a] * factor + bias
        row[a] = one
        top[a] = one if one > top[a] else top[a]


@_fused
def _add_exps(row, factor, top, total):
    for a in range(len(row)):
        one = _exp(row[a] - top[a])
        total[a] += one
        row[a] = one * factor


@jit
def off_ray(slope, rows, length):
    """slope (N, D) in place, less its part along each of `rows` (N, D) of `length` (N, 1)."""
    for i in range(len(rows)):
        row, to = rows[i], slope[i]
        along = _dot(to, row) / length[i, 0] / length[i, 0]
        for d in range(len(row)):
            to[d] -= along * row[d]
