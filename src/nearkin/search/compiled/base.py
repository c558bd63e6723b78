"""What the compiled loops share: their arguments, how they are compiled, and single pairs."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numba
import numpy as np

from nearkin.jit import jit_of

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


jit = jit_of(Path(__file__).parent.glob("*.py"))


def helper(function):
    """Part of a loop: sums may be taken in any order, and nothing here is NaN."""
    return numba.njit(nogil=True, fastmath={"reassoc", "contract", "nsz", "nnan"})(function)


# Tuples of arrays are taken apart before a loop: handing them on counts references of all of them.


@helper
def dot(left, i, right, j, shift):
    """The product of two rows, each less `shift`, in float64."""
    total = 0.0
    if len(shift):
        for k in range(U(left.shape[1])):
            total += (np.float64(left[i, k]) - shift[k]) * (np.float64(right[j, k]) - shift[k])
    else:
        for k in range(U(left.shape[1])):
            total += np.float64(left[i, k]) * np.float64(right[j, k])
    return total


@numba.njit(nogil=True)
def half_tie(query, item, tie, squares):
    """Half a tie of a pair, from the norms of both."""
    return tie * ((query * query + item * item) / 2 if squares else query * item)


@numba.njit(nogil=True)
def number(bits, shift):
    """The float32 of an entry of a tile."""
    return np.int32(np.int32(bits) << np.int32(shift)).view(np.float32)


@helper
def reaches(tile, i, start, stop, bits, low):
    """Whether any of a run of entries is `low` or more."""
    found = False
    for j in range(U(start), U(stop)):
        found |= number(tile[i, j], bits) >= low
    return found


@helper
def read(tile, i, start, stop, bits, raw):
    """A run of a row's entries into `raw`; what lies beyond it reaches nothing."""
    for k in range(U(stop - start)):
        raw[k] = number(tile[i, U(start) + k], bits)
    for k in range(U(stop - start), U(len(raw))):
        raw[k] = -np.inf


@helper
def read_down(tile, i, start, stop, bits, raw):
    """The same of a column's."""
    for k in range(U(stop - start)):
        raw[k] = number(tile[U(start) + k, i], bits)
    for k in range(U(stop - start), U(len(raw))):
        raw[k] = -np.inf


@helper
def place(raw, count, start, weight, weights, cuts, reach, low, up, down):
    """Bounds of the similarities of items start ..., from their entries in `raw`; whether any
    reaches `low`. What lies beyond `count` reaches nothing."""
    found = False
    for k in range(U(count)):
        product, cut, v = weight * weights[U(start) + k], cuts[U(start) + k], raw[k]
        upper = (v + reach) * product - cut
        up[k] = upper
        down[k] = (v - reach) * product - cut * WIDER
        found |= upper >= low
    for k in range(U(count), U(len(raw))):
        up[k] = -np.inf
        down[k] = -np.inf
    return found
