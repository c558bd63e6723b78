"""What several runs differ in: paired differences of their scores, and keys of their recipes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from nearkin.report.figures import COLORS, DASHES, GRAY, GREEN, ORANGE, PURPLE, Curve, Plot, plot
from nearkin.report.gallery import drawn_queries
from nearkin.report.scores import CLUSTERING, DASH, Row, closenesses, definition, value_of
from nearkin.report.scores import metric_names as measured_metrics
from nearkin.report.view import RunView

if TYPE_CHECKING:
    from nearkin.evaluation import Result

MOST_KEYS = 200
_MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True)
class Gain:
    """One metric of a run minus that of the first: points of percent, with interval and p."""

    text: str
    interval: str
    p: str
    number: float
    clear: bool


@dataclass(frozen=True)
class Against:
    """A run against the first one: a gain a metric (None where one has it not), or why there is
    none."""

    run: str
    gains: list[Gain | None]
    reason: str = ""


@dataclass(frozen=True)
class Paired:
    """All runs against the first, on the same queries. `queries` were compared of `of` there
    are."""

    first: str
    metrics: list[str]
    lines: list[Against]
    queries: int
    of: int


def paired(views: Sequence[RunView], names: Sequence[str]) -> Paired | None:
    """Differences by cosine with intervals over resampled classes, paired by query.

    Runs of other test rows get a reason in place of numbers. None where nothing was measured that
    has a value for each query.
    """
    first = views[0]
    metrics = _per_query(first)
    if not metrics:
        return None
    queries = drawn_queries(first)
    mine = _result(first, np.arange(len(first.ids)), queries, metrics)
    lines = []
    for view, name in zip(views[1:], names[1:], strict=True):
        order = _as_in(first, view)
        if mine is None or order is None:
            lines.append(Against(name, [], "it was tested on other items, so no query is paired"))
            continue
        theirs = _result(view, order, queries, metrics)
        gains = [] if theirs is None else [_gain(theirs, mine, metric) for metric in metrics]
        lines.append(Against(name, gains, "" if gains else "no query could be scored"))
    return Paired(names[0], metrics, lines, len(queries), int(first.is_query.sum()))


def _per_query(view: RunView) -> list[str]:
    """The metrics measured by cosine that are means over queries and have a definition of ours."""
    block = view.metrics.get("test")
    rows = [Row("", "", "trained", block)] if isinstance(block, Mapping) else []
    names = measured_metrics(rows, "cosine")
    return [name for name in names if definition(name) and name not in CLUSTERING]


def _as_in(first: RunView, other: RunView) -> np.ndarray | None:
    """(M,) int64: the rows of `other` in the order of `first`; None where they are others.

    Class, relevance and roles must be the same, whatever numbers stand for them.
    """
    if len(first.ids) != len(other.ids) or len(set(first.ids)) != len(first.ids):
        return None
    place = {row: at for at, row in enumerate(other.ids)}
    order = np.array([place.get(row, -1) for row in first.ids], dtype=np.int64)
    if (order < 0).any():
        return None
    same = np.array_equal(_codes(first.relevant), _codes(other.relevant[order])) and all(
        np.array_equal(a, b[order])
        for a, b in (
            (first.is_query, other.is_query),
            (first.is_gallery, other.is_gallery),
            (_groups(first), _groups(other)),
        )
    )
    return order if same else None


def _groups(view: RunView) -> np.ndarray:
    return np.full(len(view.ids), -1) if view.group is None else view.group


def _codes(labels: np.ndarray) -> np.ndarray:
    """Labels renumbered by their first appearance."""
    _, start, codes = np.unique(labels, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(start))[codes]


def _result(
    view: RunView, order: np.ndarray, queries: np.ndarray, metrics: Sequence[str]
) -> Result | None:
    """The evaluator's result of these queries (places in `order`); None where none can be scored.

    A gallery that holds the queries themselves is left-one-out, as in the run's own evaluation.
    """
    from nearkin.evaluation import evaluate

    z, relevant = view.embeddings[order], _codes(view.relevant[order])
    group = None if view.group is None else view.group[order]
    gallery = np.flatnonzero(view.is_gallery[order])
    oneself = bool(view.is_query.all() and view.is_gallery.all())
    if group is None and oneself:
        group = np.arange(len(order))
    try:
        return evaluate(
            z[queries],
            relevant[queries],
            z[gallery],
            relevant[gallery],
            metrics=metrics,
            exclude=None if group is None else (group[queries], group[gallery]),
        )
    except ValueError:
        return None


def _gain(theirs: Result, mine: Result, metric: str) -> Gain | None:
    from nearkin.evaluation import compare_results

    try:
        found = compare_results(theirs, mine, metric)
    except ValueError:
        return None
    known = math.isfinite(found.low) and math.isfinite(found.high)
    interval = f"{_signed(found.low)} to {_signed(found.high)}" if known else ""
    clear = known and (found.low > 0 or found.high < 0)
    p = ("p < 0.01" if found.p < 0.01 else f"p = {found.p:.2f}") if known else ""
    return Gain(_signed(found.value), interval, p, round(found.value, 6), clear)


def _signed(share: float) -> str:
    text = f"{abs(100 * share):.1f}"
    sign = "" if text == "0.0" else ("+" if share > 0 else _MINUS)
    return sign + text


def recipe_differences(views: Sequence[RunView]) -> list[tuple[str, list[str]]]:
    """(dotted key, its value in each run) of the recipes' leaves that are not alike."""
    leaves = [
        dict(_leaves({k: v for k, v in view.recipe.items() if k != "paper"})) for view in views
    ]
    keys = dict.fromkeys(key for found in leaves for key in found)
    lines = [(key, [found.get(key, DASH) for found in leaves]) for key in keys]
    return [(key, values) for key, values in lines if len(set(values)) > 1][:MOST_KEYS]


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{name}.")
        else:
            yield name, "yes" if isinstance(value, Mapping) else str(value)


def recall_plots(rows: Sequence[Row], names: Sequence[str]) -> list[Plot]:
    """Recall over the number of neighbors looked at, one plot a closeness, one curve a row.

    names (one a row) stand in the key. A closeness with fewer than two k has no plot.
    """
    plots = []
    for closeness in closenesses(list(rows)):
        curves = []
        for row, name, (color, dash) in zip(rows, names, _looks(rows), strict=True):
            block = row.block.get(closeness)
            if isinstance(block, Mapping):
                curves.append(_over_k(name, block, color, dash))
        curves = [curve for curve in curves if len(curve.x) > 1]
        drawn = plot(
            f"Recall by {closeness}",
            "How often a relevant item is among the k nearest; whiskers are 95 % intervals.",
            curves,
            "k, the neighbors looked at",
            percent=True,
        )
        if drawn is None:
            continue
        ks = sorted({int(k) for curve in curves for k in curve.x})
        drawn.figure.update_xaxes(type="log", tickvals=ks, ticktext=[f"{k:,}" for k in ks])
        plots.append(drawn)
    return plots


_LOOKS = {
    "best": (ORANGE, "dash"),
    "untrained": (GRAY, "solid"),
    "raw": (GRAY, "dot"),
    "paper": (PURPLE, "dot"),
}


def _looks(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """(color, dash) of each row: trained ones told apart by color, the rest as its role has it."""
    floors = iter(itertools.cycle([(GREEN, dash) for dash in ("dash", "dashdot", "solid", "dot")]))
    trained = iter(itertools.cycle(zip(COLORS * 4, DASHES * 5, strict=True)))
    looks = []
    for row in rows:
        other = next(floors) if row.role == "floor" else _LOOKS.get(row.role)
        looks.append(other or next(trained))
    return looks


def _over_k(name: str, block: Mapping[str, Any], color: str, dash: str) -> Curve:
    points = []
    for metric, entry in block.items():
        base, _, k = metric.partition("@")
        value = value_of(entry)
        if base == "recall" and k.isdigit() and int(k) > 0 and value.known:
            points.append((int(k), value.value, value.low, value.high))
    x, y, low, high = np.array(sorted(points), dtype=np.float64).reshape(-1, 4).T
    curve = Curve(name, x, y, color, dash)
    return replace(curve, low=low, high=high) if np.isfinite([low, high]).all() else curve
