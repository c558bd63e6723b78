"""The outcome of a run in sentences and bars. The tables stand in `scores`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

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
    """The outcome in one sentence: the trained encoder against what was there before.

    A second one says so where something that needs no training gives more.
    """
    rows = {row.name if row.role == "floor" else row.role: row for row in rows_of(view)}
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
    return f"{sentence}{_against(rows, said)}.{_below(rows, said)}"


_SAID = {
    "untrained": "the untrained encoder",
    "features as they are": "the features as they are",
    "standardized": "standardizing alone",
    "whitened": "whitening alone",
}


def _against(rows: Mapping[str, Row], said: Mapping[str, Value]) -> str:
    """What was there before training, and the highest of the floors."""
    floors = [name for name, row in rows.items() if row.role == "floor" and said[name].known]
    highest = sorted(floors, key=lambda name: -said[name].value)[:1]
    shown = [*highest, *(name for name in ("raw", "untrained") if name in said)]
    parts = [
        f"{said[name].text(True)} for {_SAID.get(rows[name].name, rows[name].name)}"
        for name in shown
        if said[name].known
    ]
    if not parts:
        return ""
    return ", against " + (", ".join(parts[:-1]) + " and " if parts[1:] else "") + parts[-1]


def _below(rows: Mapping[str, Row], said: Mapping[str, Value]) -> str:
    """The plain word where what needs no training gives more than training did."""
    free = [name for name, row in rows.items() if row.role in ("untrained", "raw", "floor")]
    above = [name for name in free if said[name].value > said["trained"].value]
    if not above:
        return ""
    name = max(above, key=lambda name: said[name].value)
    said_as = _SAID.get(rows[name].name, rows[name].name)
    return f" That is less than {said_as} gives without any training."


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


def leading_value(view: RunView) -> Value:
    """The trained encoder's value of the leading metric; unknown where there is none."""
    metric, rows = leading_metric(view), rows_of(view)
    return _leading(rows[0], metric) if metric else Value(math.nan)


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
    """Whether the test classes themselves chose the epoch of the trained row.

    Where the run gives that epoch as a row of its own, the trained row is the last epoch.
    """
    by = str((view.metrics.get("selected") or {}).get("by", "")).replace("_", " ")
    train = view.recipe.get("train")
    wish = train.get("select") if isinstance(train, Mapping) else None
    told = wish == "best_on_test" and "best_on_test" not in view.metrics
    return told or "best on test" in by


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
    elif by in ("last", "last epoch"):
        how = ", the last one"
    else:
        how = f", chosen by {by}" if by else ""
    return f"The weights are those of epoch {chosen['epoch']}{counted}{how}."


def headline_of_several(views: Sequence[RunView], names: Sequence[str]) -> str:
    """The best of several runs and the span of all, in one sentence."""
    metrics = {leading_metric(view) for view in views}
    values = [leading_value(view) for view in views]
    metric = metrics.pop() if len(metrics) == 1 else None
    if metric is None or not all(value.known for value in values):
        return f"{len(views)} runs beside each other."
    if len({frozenset(view.ids) for view in views}) > 1:
        said = ", ".join(
            f"{name} {value.text(True)}" for name, value in zip(names, values, strict=True)
        )
        return f"{len(views)} runs, not all tested on the same items; {metric}: {said}."
    order = sorted(range(len(views)), key=lambda place: -values[place].value)
    best, last = order[0], order[-1]
    interval = values[best].interval(True)
    spread = f" ({interval})" if interval else ""
    return (
        f"Of {len(views)} runs, {names[best]} has the highest {metric}, "
        f"{values[best].text(True)}{spread}; {names[last]} has the lowest, "
        f"{values[last].text(True)}."
    )


def bars_of_several(views: Sequence[RunView], names: Sequence[str]) -> list[Bar]:
    """One bar a run: the trained encoder's leading metric."""
    return [
        replace(bar, row=replace(bar.row, name=name))
        for view, name in zip(views, names, strict=True)
        for bar in bars(view)[:1]
    ]
