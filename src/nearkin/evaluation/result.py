"""Result: what an evaluation found, with intervals on demand; and the comparison of two results."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from nearkin.evaluation.intervals import Difference, difference, interval, units_of
from nearkin.evaluation.mistakes import Mistakes, Wrong
from nearkin.evaluation.tables import Part, Theft, parts, thefts, worst
from nearkin.information.given import Labels, given_labels


class DifferentQueriesError(ValueError):
    """Two results cannot be paired, for they are of other queries."""


class Result(Mapping[str, float]):
    """Values of metrics by name: `result["recall@1"]`.

    per_query   (Q,) values of each metric of rankings, NaN for queries without a relevant item
    whole       values of the metrics of a whole embedding (nmi, ami, information)
    labels      of the queries; intervals resample their classes (sets of labels, for multi-hot)
    closeness   by which the rows were compared
    seed        of the resampling
    mistakes    finds wrong neighbors when it is asked to; None for a result without rankings
    """

    def __init__(
        self,
        per_query: Mapping[str, Any],
        whole: Mapping[str, float],
        labels: Labels,
        closeness: str,
        seed: int = 0,
        mistakes: Mistakes | None = None,
    ):
        self._per_query = {
            name: np.asarray(values, dtype=np.float64) for name, values in per_query.items()
        }
        self._whole = dict(whole)
        self._labels = labels
        self._classes = labels.codes.cpu().numpy()
        self._intervals: dict[tuple[str, str], tuple[float, float]] = {}
        self._mistakes = mistakes
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

    def interval(self, name: str, over: str = "classes") -> tuple[float, float]:
        """(low, high): 95 % of the means of 1,000 resamples; (nan, nan) of one class or query.

        over  "classes": of query classes, what new classes would give; "queries": of queries, what
              other queries of these very classes would give, which is narrower

        Raises as `per_query` does, and ValueError for another `over`.
        """
        if (name, over) not in self._intervals:
            values = self.per_query(name)
            scored = ~np.isnan(values)
            units = units_of(self._classes[scored], over)
            self._intervals[name, over] = interval(values[scored], units, self.seed)
        return self._intervals[name, over]

    def by_class(self, name: str) -> list[Part]:
        """(name, queries, value) of every class of the queries, in the order in which they appear.

        value is the mean over its `queries` that were scored, NaN where there are none. Of
        multi-hot labels every column is a class. Raises as `per_query` does.
        """
        return parts(self.per_query(name), self._labels)

    def by_group(self, name: str, groups: Any = None) -> list[Part]:
        """(name, queries, value) of every group of queries, in the order in which they appear.

        groups  (Q,) integers or texts: cameras, makes, days; default: the ids given as `exclude`

        Raises as `per_query` does; ValueError for another number of groups than queries, and where
        there are none.
        """
        values = self.per_query(name)
        if groups is not None:
            return parts(values, given_labels(groups, len(values), "groups", "the result"))
        relevance = None if self._mistakes is None else self._mistakes.task.relevance
        if relevance is None or relevance.groups is None:
            raise ValueError(
                "there are no groups: nothing was excluded by group ids; give groups, one id for "
                "each query"
            )
        return parts(values, Labels(relevance.groups[0].cpu(), relevance.group_names))

    def worst_classes(self, name: str, n: int = 10) -> list[Part]:
        """The n classes of the lowest value; of equals those of more queries first."""
        return worst(self.by_class(name), _count(n))

    def thieves(self, n: int = 10) -> list[Theft]:
        """The n pairs (label, thief, queries, of) of classes taken for another most often.

        `queries` of the `of` queries of class `label` have a nearest neighbor of class `thief`. Of
        multi-hot labels a class is a whole set of labels. Takes one more search at the first call.
        Raises ValueError for a result without metrics of rankings, or without its rows.
        """
        found = self._found()
        wanted, instead = found.codes()
        names = found.task.relevance.gallery.names
        scored = self._classes[~np.isnan(found.first)]
        return thefts(wanted, instead, scored, names, _count(n))

    def wrong(self, n: int = 10, by: str = "similarity") -> list[Wrong]:
        """The n worst (query, neighbor, label, neighbor_label, similarity, rank): queries whose
        nearest neighbor is of another class.

        by  "similarity": the nearest pairs first, where wrong labels and duplicates show; "rank":
            those first whose own class stands farthest behind

        Of a tie the neighbor with the lowest row is named. Takes one more search at the first call.
        Raises ValueError for another `by`, and as `thieves` does.
        """
        if by not in ("similarity", "rank"):
            raise ValueError(f"by must be similarity or rank, not {by!r}")
        return self._found().listed(_count(n), by)

    def forget_rows(self) -> None:
        """Let the rows go, which the result keeps by reference; `wrong` and `thieves` need them."""
        self._mistakes = None

    def _found(self) -> Mistakes:
        if self._mistakes is None:
            raise ValueError(
                "this result has no rows: they were forgotten, or it has no metric of a ranking; "
                "evaluate again with one, such as recall@1"
            )
        return self._mistakes

    def to_dict(self, over: str = "classes") -> dict[str, dict[str, float | None]]:
        """{"recall@1": {"value", "low", "high"}, "nmi": {"value"}, ...} of numbers that JSON has.

        over: what intervals resample. An end that a single class does not allow is None.
        """
        found: dict[str, dict[str, float | None]] = {}
        for name in self._per_query:
            low, high = (None if math.isnan(end) else end for end in self.interval(name, over))
            found[name] = {"value": self[name], "low": low, "high": high}
        for name, value in self._whole.items():
            found[name] = {"value": value}
        return found

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_mistakes": None}  # a pickle of figures holds no embeddings

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


def compare_results(
    first: Result, second: Result, name: str, over: str = "classes", test: str = "sign_flip"
) -> Difference:
    """first - second of one metric, paired by query: value, 95 % interval and p.

    over  "classes": what is resampled and tested are whole classes, as for classes never seen;
          "queries": queries by themselves
    test  "sign_flip": a permutation test, random signs of the paired differences; "bootstrap": the
          resampled means on the other side of 0

    Raises DifferentQueriesError (a ValueError) where the queries differ in number or labels, and
    where none was scored in both; KeyError for a metric that one has not; ValueError for one of a
    whole embedding, for a single class or query, and for another `over` or `test`.
    """
    a, b = first.per_query(name), second.per_query(name)
    if len(a) != len(b):
        raise DifferentQueriesError(
            f"paired results need the same queries, but the first has {len(a)} "
            f"and the second {len(b)}"
        )
    if not first._same_queries(second):
        raise DifferentQueriesError(
            "paired results need the same queries in the same order, but their labels differ"
        )
    both = ~(np.isnan(a) | np.isnan(b))
    if not both.any():
        raise DifferentQueriesError("no query has a relevant item in both results")
    return difference(a[both], b[both], first._classes[both], first.seed, over, test)


def _count(n: Any) -> int:
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise ValueError(f"n must be a whole number of 1 or more, not {n!r}")
    return n
