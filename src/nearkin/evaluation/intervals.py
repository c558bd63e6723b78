"""Confidence by resampling classes: intervals of means and of paired differences."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

RESAMPLES = 1_000
_AT_ONCE = 1 << 21  # random draws held at a time


@dataclass(frozen=True)
class Difference:
    """The mean paired difference of two results on the same queries, first minus second.

    value      mean over queries scored in both
    low, high  95 % interval over resampled classes
    p          two-sided: how likely a difference this far from 0 is if there is none; >= 2/1001
    classes    how many classes were resampled
    """

    value: float
    low: float
    high: float
    p: float
    classes: int

    def __repr__(self) -> str:
        return (
            f"{self.value:+.4f} (95 % {self.low:+.4f}..{self.high:+.4f}, p = {self.p:.3f}, "
            f"{self.classes} classes)"
        )


def resampled_means(values: np.ndarray, classes: np.ndarray, seed: int) -> np.ndarray:
    """(1000,) means of `values` (Q,) over as many classes, drawn with replacement.

    Queries of a class resemble each other, so that drawing queries one by one would give intervals
    too narrow (cluster bootstrap). values must be finite; classes (Q,) int.
    """
    _, codes = np.unique(classes, return_inverse=True)
    sums, sizes = np.bincount(codes, weights=values), np.bincount(codes)
    generator = np.random.default_rng(seed)
    means = []
    step = max(1, _AT_ONCE // len(sums))
    for start in range(0, RESAMPLES, step):
        drawn = generator.integers(0, len(sums), (min(step, RESAMPLES - start), len(sums)))
        means.append(sums[drawn].sum(1) / sizes[drawn].sum(1))
    return np.concatenate(means)


def interval(values: np.ndarray, classes: np.ndarray, seed: int) -> tuple[float, float]:
    """The 95 % percentile interval of the mean over resampled classes; (nan, nan) of one class."""
    if len(np.unique(classes)) < 2:
        return float("nan"), float("nan")
    low, high = np.quantile(resampled_means(values, classes, seed), (0.025, 0.975))
    return float(low), float(high)


def difference(first: np.ndarray, second: np.ndarray, classes: np.ndarray, seed: int) -> Difference:
    """The paired difference of two sets of finite values (Q,) of the same queries.

    p = 2 (1 + the smaller number of resamples on either side of 0) / 1001, at most 1.
    Raises ValueError for a single class, which cannot be resampled.
    """
    count = len(np.unique(classes))
    if count < 2:
        raise ValueError("a comparison resamples classes and needs at least two, but there is one")
    gain = first - second
    means = resampled_means(gain, classes, seed)
    low, high = np.quantile(means, (0.025, 0.975))
    # Means that are 0 but for rounding stand on both sides.
    flat = 1e-12 * max(float(np.abs(gain).max()), 1e-300)
    opposed = min((means <= flat).sum(), (means >= -flat).sum())
    p = min(1.0, 2.0 * (1 + int(opposed)) / (RESAMPLES + 1))
    return Difference(float(gain.mean()), float(low), float(high), p, count)
