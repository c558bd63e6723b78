"""Result: what an evaluation found, with intervals on demand; and the comparison of two results."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from nearkin.evaluation.intervals import Difference, difference, interval
from nearkin.information.given import Labels


class Result(Mapping[str, float]):
    """Values of metrics by name: `result["recall@1"]`.

    per_query   (Q,) values of each metric of rankings, NaN for queries without a relevant item
    whole       values of the metrics of a whole embedding (nmi, ami, information)
    labels      of the queries; intervals resample their classes (sets of labels, for multi-hot)
    closeness   by which the rows were compared
    seed        of the resampling
    """

    def __init__(
        self,
        per_query: Mapping[str, Any],
        whole: Mapping[str, float],
        labels: Labels,
        closeness: str,
        seed: int = 0,
    ):
        self._per_query = {
            name: np.asarray(values, dtype=np.float64) for name, values in per_query.items()
        }
        self._whole = dict(whole)
        self._labels = labels
        self._classes = labels.codes.cpu().numpy()
        self._intervals: dict[str, tuple[float, float]] = {}
        self.closeness = closeness
        self.seed = seed

    def __getitem__(self, name: str) -> float:
        if name in self._whole:
            return self._whole[name]
        return float(np.nanmean(self.per_query(name)))

    def __iter__(self) -> Iterator[str]:
        return iter(self.metrics)

    def __len__(self) -> int:
        return len(self.metrics)

    @property
    def metrics(self) -> tuple[str, ...]:
        """The names that the result has a value of."""
        return (*self._per_query, *self._whole)

    @property
    def queries(self) -> int:
        """How many queries were scored: those with a relevant item."""
        return len(self._classes) - self.without_relevant

    @property
    def without_relevant(self) -> int:
        """How many queries have no relevant item; they are left out of every mean."""
        values = next(iter(self._per_query.values()), np.zeros(0))
        return int(np.isnan(values).sum())

    def per_query(self, name: str) -> np.ndarray:
        """(Q,) float64: the value of every query; NaN where it has no relevant item.

        Raises KeyError for a name that the result has not, ValueError for a metric of a whole
        embedding.
        """
        if name in self._per_query:
            return self._per_query[name].copy()
        if name in self._whole:
            raise ValueError(
                f"{name!r} is one value of the whole embedding; it has no value per query and no "
                "interval"
            )
        near = difflib.get_close_matches(str(name), self.metrics, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(self.metrics)}"
        raise KeyError(f"this result has no {name!r}; {hint}")

    def interval(self, name: str) -> tuple[float, float]:
        """(low, high): 95 % of 1,000 resamples of the query classes; (nan, nan) of one class.

        Raises as `per_query` does.
        """
        if name not in self._intervals:
            values = self.per_query(name)
            scored = ~np.isnan(values)
            self._intervals[name] = interval(values[scored], self._classes[scored], self.seed)
        return self._intervals[name]

    def to_dict(self) -> dict[str, dict[str, float | None]]:
        """{"recall@1": {"value", "low", "high"}, "nmi": {"value"}, ...} of numbers that JSON has.

        An end of an interval that a single class does not allow is None.
        """
        found: dict[str, dict[str, float | None]] = {}
        for name in self._per_query:
            low, high = (None if math.isnan(end) else end for end in self.interval(name))
            found[name] = {"value": self[name], "low": low, "high": high}
        for name, value in self._whole.items():
            found[name] = {"value": value}
        return found

    def __repr__(self) -> str:
        head = f"{len(self._classes)} queries by {self.closeness}"
        if self.without_relevant:
            head += f", {self.without_relevant} of them without a relevant item and left out"
        width = max(map(len, self.metrics))
        lines = [head]
        for name, entry in self.to_dict().items():
            line = f"  {name:<{width}}  {entry['value']:.4f}"
            if entry.get("low") is not None:
                line += f"  ({entry['low']:.4f}..{entry['high']:.4f})"
            lines.append(line)
        return "\n".join(lines)

    def _same_queries(self, other: Result) -> bool:
        # Codes count up in the order of the queries; names behind their last one are the gallery's.
        count = int(self._classes.max()) + 1
        return np.array_equal(self._classes, other._classes) and (
            self._labels.names[:count] == other._labels.names[:count]
        )


def compare_results(first: Result, second: Result, name: str) -> Difference:
    """first - second of one metric, paired by query, with interval and p over resampled classes.

    Raises ValueError where the queries differ in number or labels, KeyError for a metric that one
    has not.
    """
    a, b = first.per_query(name), second.per_query(name)
    if len(a) != len(b):
        raise ValueError(
            f"paired results need the same queries, but the first has {len(a)} "
            f"and the second {len(b)}"
        )
    if not first._same_queries(second):
        raise ValueError(
            "paired results need the same queries in the same order, but their labels differ"
        )
    both = ~(np.isnan(a) | np.isnan(b))
    if not both.any():
        raise ValueError("no query has a relevant item in both results")
    return difference(a[both], b[both], first._classes[both], first.seed)
