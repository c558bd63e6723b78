"""The outcome of a run in sentences and bars. The tables stand in `scores`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from nearkin.report.scores import (
    CLUSTERING,
    Row,
    Value,
    closenesses,
    metric_names,
    rows_of,
    value_of,
)
from nearkin.report.view import RunView


def headline(view: RunView) -> str:
    """The outcome in one sentence: the trained encoder against what was there before."""
    rows = {row.role: row for row in rows_of(view)}
    seen = view.is_query | view.is_gallery
    classes = len(np.unique(view.labels[seen]))
    start = f"On {classes:,} class{'' if classes == 1 else 'es'} never seen in training"
    metric = leading_metric(view)
    if "trained" not in rows or metric is None:
        return f"{start}, no metric was measured."
    said = {role: _leading(row, metric) for role, row in rows.items()}
    text = said["trained"].text(True)
    interval = said["trained"].interval(True)
    text += f" ({interval})" if interval else ""
    if metric == "recall@1":
        item = "the same item" if view.of_instances else "of the same class"
        sentence = f"{start}, the nearest neighbor is {item} for {text} of queries"
    else:
        sentence = f"{start}, {metric} is {text}"
    against = [
        f"{said[role].text(True)} for {name}"
        for role, name in (
            ("raw", rows["raw"].name if "raw" in rows else ""),
            ("untrained", "the untrained encoder"),
        )
        if role in said and said[role].known
    ]
    return sentence + (f", against {' and '.join(against)}." if against else ".")


def leading_metric(view: RunView) -> str | None:
    """recall@1 where it was measured, else the first metric that is a share of something."""
    rows = rows_of(view)
    if not rows or rows[0].role != "trained":
        return None
    for closeness in closenesses(rows[:1]):
        names = [name for name in metric_names(rows[:1], closeness) if name not in CLUSTERING]
        if names:
            return "recall@1" if "recall@1" in names else names[0]
    return None


def _leading(row: Row, metric: str) -> Value:
    for closeness in closenesses([row]):
        if metric in row.block[closeness]:
            return value_of(row.block[closeness][metric])
    return Value(math.nan)


@dataclass(frozen=True)
class Bar:
    """One bar of the picture under the headline; lengths in percent of the track."""

    row: Row
    text: str
    interval: str
    percent: float
    low: float | None
    high: float | None


def bars(view: RunView) -> list[Bar]:
    """The headline's metric as bars, one a row that has it."""
    metric = leading_metric(view)
    drawn = []
    for row in rows_of(view) if metric else []:
        value = _leading(row, str(metric))
        if row.role == "best" or not value.known:
            continue
        spread = value.interval(True)
        drawn.append(
            Bar(
                row,
                value.text(True),
                spread,
                _track(value.value),
                _track(value.low) if spread else None,
                _track(value.high) if spread else None,
            )
        )
    return drawn


def _track(share: float) -> float:
    return round(100 * min(1.0, max(0.0, share)), 2)


def selected_on_test(view: RunView) -> bool:
    """Whether the test classes themselves chose the epoch."""
    train = view.recipe.get("train")
    wish = train.get("select") if isinstance(train, Mapping) else None
    by = (view.metrics.get("selected") or {}).get("by", "")
    return any("best on test" in str(said).replace("_", " ") for said in (wish, by))


def selection(view: RunView) -> str:
    """How the epoch was chosen, in a sentence; empty where the run does not say."""
    chosen = view.metrics.get("selected") or {}
    if "epoch" not in chosen:
        return ""
    epochs = [line["epoch"] for line in view.events("epoch") if "epoch" in line]
    counted = " (counted from 0)" if epochs and min(epochs) == 0 else ""
    by = str(chosen.get("by", "")).replace("_", " ")
    if selected_on_test(view):
        how = ", the best on the test classes"
    elif by == "last":
        how = ", the last one"
    else:
        how = f", chosen by {by}" if by else ""
    return f"The weights are those of epoch {chosen['epoch']}{counted}{how}."
