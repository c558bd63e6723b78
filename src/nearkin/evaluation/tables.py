"""Values of queries gathered by class or by group; pairs of classes that are taken for another."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from nearkin.information.given import Labels


class Part(NamedTuple):
    """A class or a group: how many of its queries were scored, and their mean (NaN for none)."""

    name: Any
    queries: int
    value: float


class Theft(NamedTuple):
    """Queries of class `label` whose nearest neighbor is of class `thief`: `queries` of the `of`
    queries of the class that were scored."""

    label: Any
    thief: Any
    queries: int
    of: int


def parts(values: np.ndarray, labels: Labels) -> list[Part]:
    """Every class of the labels (Q,) with the mean of its finite values (Q,), in their order.

    Of multi-hot labels every column is a class, and a query counts in each of its own.
    """
    scored = ~np.isnan(values)
    if labels.hot is None:
        codes = labels.codes.cpu().numpy()
        wide = int(codes.max(initial=-1)) + 1  # names behind are those of a gallery
        counts = np.bincount(codes[scored], minlength=wide)
        sums = np.bincount(codes[scored], weights=values[scored], minlength=wide)
        names: Any = labels.names[:wide]
    else:
        hot = labels.hot.cpu().numpy()[scored]
        counts, sums = hot.sum(0), values[scored] @ hot
        names = range(hot.shape[1])
    means = np.full(len(counts), np.nan)
    np.divide(sums, counts, out=means, where=counts > 0)
    return [
        Part(name, int(count), float(mean))
        for name, count, mean in zip(names, counts, means, strict=True)
    ]


def worst(found: list[Part], count: int) -> list[Part]:
    """The `count` parts of the lowest value; of equals those of more queries first."""
    scored = [part for part in found if part.queries]
    return sorted(scored, key=lambda part: (part.value, -part.queries))[:count]


def thefts(
    wanted: np.ndarray, found: np.ndarray, scored: np.ndarray, names: tuple[Any, ...], count: int
) -> list[Theft]:
    """The `count` pairs of classes that came up most; of equals the larger share of its class.

    wanted, found  (L,) codes of a query's class and of its neighbor's, which differ
    scored         (Q,) codes of all queries that were scored
    """
    of = np.bincount(scored, minlength=len(names))
    pairs, times = np.unique(wanted * len(names) + found, return_counts=True)
    label, thief = pairs // len(names), pairs % len(names)
    order = np.lexsort((thief, label, -times / np.maximum(of[label], 1), -times))[:count]
    return [
        Theft(names[label[i]], names[thief[i]], int(times[i]), int(of[label[i]])) for i in order
    ]
