"""Confidence by resampling classes or queries: intervals of means, paired differences, tests."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

import numpy as np

RESAMPLES = 1_000
FLIPS = 9_999
UNITS = ("classes", "queries")
TESTS = ("sign_flip", "bootstrap")
_AT_ONCE = 1 << 21  # random draws held at a time
_ALL_SIGNS = 13  # units of which every choice of signs is tried: at most 8,192


@dataclass(frozen=True)
class Difference:
    """The mean paired difference of two results on the same queries, first minus second.

    value      mean over queries scored in both
    low, high  95 % interval over resampled classes, or queries
    p          two-sided: how likely a difference this far from 0 is if there is none
    classes    how many classes the queries have
    queries    how many queries were scored in both
    over       what was resampled and tested: "classes" or "queries"
    test       what gave p: "sign_flip" or "bootstrap"; see `difference`
    """

    value: float
    low: float
    high: float
    p: float
    classes: int
    queries: int = 0
    over: str = "classes"
    test: str = "sign_flip"

    def __repr__(self) -> str:
        count = self.queries if self.over == "queries" else self.classes
        return (
            f"{self.value:+.4f} (95 % {self.low:+.4f}..{self.high:+.4f}, p = {self.p:.3g}, "
            f"{count} {self.over})"
        )


def units_of(classes: np.ndarray, over: str) -> np.ndarray:
    """(Q,) int64: the unit of each query, 0..units-1. Raises ValueError for an unknown `over`."""
    if over not in UNITS:
        raise ValueError(_unknown(over, "over", UNITS))
    if over == "queries":
        return np.arange(len(classes))
    return np.unique(classes, return_inverse=True)[1]


def resampled_means(values: np.ndarray, units: np.ndarray, seed: int) -> np.ndarray:
    """(1000,) means of `values` (Q,) over as many units, drawn with replacement.

    Queries of a class resemble each other, so that drawing queries one by one gives intervals too
    narrow for classes never seen (cluster bootstrap). values must be finite; units (Q,) int.
    """
    _, codes = np.unique(units, return_inverse=True)
    sums, sizes = np.bincount(codes, weights=values), np.bincount(codes)
    generator = np.random.default_rng(seed)
    means = []
    step = max(1, _AT_ONCE // len(sums))
    for start in range(0, RESAMPLES, step):
        drawn = generator.integers(0, len(sums), (min(step, RESAMPLES - start), len(sums)))
        means.append(sums[drawn].sum(1) / sizes[drawn].sum(1))
    return np.concatenate(means)


def interval(values: np.ndarray, units: np.ndarray, seed: int) -> tuple[float, float]:
    """The 95 % percentile interval of the mean over resampled units; (nan, nan) of one unit."""
    if len(np.unique(units)) < 2:
        return float("nan"), float("nan")
    low, high = np.quantile(resampled_means(values, units, seed), (0.025, 0.975))
    return float(low), float(high)


def difference(
    first: np.ndarray,
    second: np.ndarray,
    classes: np.ndarray,
    seed: int,
    over: str = "classes",
    test: str = "sign_flip",
) -> Difference:
    """The paired difference of two sets of finite values (Q,) of the same queries.

    over  "classes": for classes never seen, whose queries resemble each other; "queries": for new
          queries of these very classes, each of which counts by itself
    test  "sign_flip": p is the share of choices of signs, one sign a class (or query), that bring
          the sum of the differences at least as far from 0: of all choices up to 13 that differ,
          else (1 + number) / 10000 of 9,999 drawn (Fisher 1935). Exact where the differences of a
          unit are as likely up as down
          "bootstrap": p = 2 (1 + the smaller number of resampled means on either side of 0) / 1001,
          at most 1: what the interval says, as a number

    Raises ValueError for a single class (or query), which cannot be resampled, and for an unknown
    `over` or `test`.
    """
    units = units_of(classes, over)
    if test not in TESTS:
        raise ValueError(_unknown(test, "test", TESTS))
    if len(np.unique(units)) < 2:
        raise ValueError(
            f"a comparison resamples {over} and needs at least two, but there is one"
            + ("; compare over queries" if over == "classes" and len(classes) > 1 else "")
        )
    gain = first - second
    means = resampled_means(gain, units, seed)
    low, high = np.quantile(means, (0.025, 0.975))
    p = _sign_flip(gain, units, seed) if test == "sign_flip" else _bootstrap(gain, means)
    count = len(np.unique(classes))
    return Difference(float(gain.mean()), float(low), float(high), p, count, len(gain), over, test)


def _bootstrap(gain: np.ndarray, means: np.ndarray) -> float:
    flat = _rounding(gain)  # means that are 0 but for rounding stand on both sides
    opposed = min((means <= flat).sum(), (means >= -flat).sum())
    return min(1.0, 2.0 * (1 + int(opposed)) / (RESAMPLES + 1))


def _sign_flip(gain: np.ndarray, units: np.ndarray, seed: int) -> float:
    sums = np.bincount(units, weights=gain)
    flat = _rounding(gain) * len(gain)
    sums = sums[np.abs(sums) > flat]  # no sign moves the others
    if not len(sums):
        return 1.0
    far, total = abs(float(sums.sum())) - flat, float(sums.sum())
    if len(sums) <= _ALL_SIGNS:
        numbers = np.arange(1 << len(sums), dtype=np.int64)
        chosen = (numbers[:, None] >> np.arange(len(sums))) & 1
        return float((np.abs(total - 2 * (chosen @ sums)) >= far).mean())
    generator = np.random.default_rng(seed)
    wide = -(-len(sums) // 8)
    step = max(1, _AT_ONCE // len(sums))
    farther = 0
    for start in range(0, FLIPS, step):
        rows = min(step, FLIPS - start)
        random = np.frombuffer(generator.bytes(rows * wide), np.uint8).reshape(rows, wide)
        chosen = np.unpackbits(random, axis=1)[:, : len(sums)].astype(np.float64)
        farther += int((np.abs(total - 2 * (chosen @ sums)) >= far).sum())
    return (1 + farther) / (FLIPS + 1)


def _rounding(gain: np.ndarray) -> float:
    return 1e-12 * max(float(np.abs(gain).max()), 1e-300)


def _unknown(value: object, name: str, known: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(str(value), known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(known)}"
    return f"{name} cannot be {value!r}; {hint}"
