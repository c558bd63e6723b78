"""The numbers of metrics.json as table cells. Sentences about them stand in `words`."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nearkin.report.paper import read_paper
from nearkin.report.view import RunView

SPACE = "\N{NO-BREAK SPACE}"
DASH = "\N{EN DASH}"
CLUSTERING = ("nmi", "ami")

_DEFINITIONS = {
    r"(recall|cmc)@(\d+)": "share of queries with at least one relevant item among the {} nearest",
    r"(precision)@(\d+)": "share of relevant items among the {} nearest",
    r"r_precision": "share of relevant items among the R nearest, R being how many there are",
    r"map@r": "mean average precision over the R nearest, R being how many are relevant",
    r"(map)@(\d+)": "mean average precision over the {} nearest",
    r"mrr": "mean of one over the rank of the first relevant item",
    r"(ndcg)@(\d+)": "discounted gain of the {} nearest against that of the ideal order",
    r"nmi": "normalized mutual information of k-means clusters and classes; high already by chance "
    "where classes are many, so its value for random clusters stands beside it",
    r"ami": "nmi corrected for chance: 0 for random clusters, 1 for perfect ones",
}


def definition(metric: str) -> str:
    """What a metric is, in half a sentence; empty for a metric of somebody's own."""
    for pattern, words in _DEFINITIONS.items():
        found = re.fullmatch(pattern, metric)
        if found:
            return words.format(*found.groups()[1:])
    return ""


@dataclass(frozen=True)
class Value:
    """A number with its 95 % interval; NaN where there is none."""

    value: float
    low: float = math.nan
    high: float = math.nan

    @property
    def known(self) -> bool:
        """Whether there is a number at all."""
        return math.isfinite(self.value)

    def text(self, percent: bool) -> str:
        """`61.2 %` or `0.712`; a dash where nothing is known."""
        if not self.known:
            return DASH
        return f"{100 * self.value:.1f}{SPACE}%" if percent else f"{self.value:.3f}"

    def interval(self, percent: bool) -> str:
        """`58.9–63.4` or `0.701–0.723`; empty where there is no interval."""
        if not (math.isfinite(self.low) and math.isfinite(self.high)):
            return ""
        scale, digits = (100, 1) if percent else (1, 3)
        return f"{scale * self.low:.{digits}f}{DASH}{scale * self.high:.{digits}f}"


def value_of(entry: Any) -> Value:
    """A number, or a mapping with value, low and high, as a Value; unknown for anything else."""
    if isinstance(entry, Mapping):
        return Value(*(_number(entry.get(key)) for key in ("value", "low", "high")))
    return Value(_number(entry))


def _number(entry: Any) -> float:
    if isinstance(entry, bool) or not isinstance(entry, int | float):
        return math.nan
    return float(entry)


@dataclass(frozen=True)
class Row:
    """One line of a table: a block of metrics.json, or the figures of a paper.

    role    trained, best (the epoch that the test classes chose), untrained, raw, floor or paper
    note    what to know of it, in a sentence; may be empty
    """

    run: str
    name: str
    role: str
    block: Mapping[str, Any]
    note: str = ""


BEST_NOTE = (
    "the epoch was selected on the test classes, as the paper did; not an honest figure of what "
    "other classes will give"
)
_FLOORS = {
    "raw": ("features as they are", "no training at all"),
    "standardized": (
        "standardized",
        "each dimension brought to mean 0 and deviation 1, no training",
    ),
    "whitened": ("whitened", "within-class whitening alone, a closed form, no training"),
}


def rows_of(view: RunView) -> list[Row]:
    """The blocks of a run worth comparing, the trained encoder first.

    Floors take the place of the raw row: features as they are stand among them.
    """
    raw = "raw pixels" if view.picture is not None else "raw input"
    best, floors = view.metrics.get("best_on_test"), _floors(view)
    found = [
        ("trained", "trained", view.metrics.get("test"), ""),
        (_best_name(best), "best", best, BEST_NOTE),
        ("untrained", "untrained", view.metrics.get("untrained"), "the encoder before step one"),
        (raw, "raw", None if floors else view.metrics.get("raw"), "no encoder at all"),
    ]
    rows = [
        Row(view.name, name, role, block, note)
        for name, role, block, note in found
        if block and isinstance(block, Mapping)
    ]
    rows += floors
    paper, _ = read_paper(view.recipe)
    if paper is not None:
        protocol = f"; its protocol: {paper.selected}" if paper.selected else ""
        rows.append(
            Row(view.name, "paper", "paper", paper.block, f"printed in {paper.source}{protocol}")
        )
    return rows


def _best_name(block: Any) -> str:
    epoch = block.get("epoch") if isinstance(block, Mapping) else None
    return "⚠ best on test" if epoch is None else f"⚠ best on test (epoch {epoch})"


def _floors(view: RunView) -> list[Row]:
    """What is reached without training, of given features or a frozen trunk."""
    floors = view.metrics.get("floors")
    rows = []
    for key, block in floors.items() if isinstance(floors, Mapping) else ():
        if not isinstance(block, Mapping) or not block:
            continue
        name, note = _FLOORS.get(key, (str(key), "no training"))
        shrinkage = _number(block.get("shrinkage"))
        if math.isfinite(shrinkage):
            note += f"; shrinkage {shrinkage:g}"
            chosen = block.get("chosen_on")
            how = " by default" if chosen == "default" else f", chosen on {chosen}"
            note += how if chosen else ""
        rows.append(Row(view.name, name, "floor", block, note))
    return rows


def measured(rows: list[Row]) -> list[Row]:
    """The rows that are figures of this run, without those of a paper."""
    return [row for row in rows if row.role != "paper"]


def closenesses(rows: list[Row]) -> list[str]:
    """cosine, euclidean and what else was measured, in that order."""
    known = ("cosine", "euclidean", "inner")
    return [name for name in known if any(_of(row, name) for row in rows)]


def metric_names(rows: list[Row], closeness: str) -> list[str]:
    """The metrics of a table, in the order of metrics.json; nmi_random is no column of its own."""
    names: dict[str, None] = {}
    for row in measured(rows) or rows:
        for name in _of(row, closeness):
            if not name.endswith("_random") and name != "information":
                names[name] = None
    return list(names)


def _of(row: Row, closeness: str) -> Mapping[str, Any]:
    block = row.block.get(closeness)
    return block if isinstance(block, Mapping) else {}


@dataclass(frozen=True)
class Cell:
    """A value as it is written, its interval and what stands beside it; `number` sorts it."""

    text: str
    interval: str
    beside: str
    number: float | None


@dataclass(frozen=True)
class Table:
    """Metrics under one closeness, `lines` of a row with its cells."""

    closeness: str
    metrics: list[str]
    lines: list[tuple[Row, list[Cell]]]


def table(rows: list[Row], closeness: str) -> Table:
    """The table of one closeness, one line a row that was measured under it."""
    metrics = metric_names(rows, closeness)
    lines = []
    for row in rows:
        block = _of(row, closeness)
        if block:
            lines.append((row, [_cell(block, metric) for metric in metrics]))
    return Table(closeness, metrics, lines)


def _cell(block: Mapping[str, Any], metric: str) -> Cell:
    value = value_of(block.get(metric))
    percent = metric not in CLUSTERING
    chance = value_of(block.get(f"{metric}_random"))
    beside = f"random {chance.text(percent)}" if chance.known else ""
    number = round(value.value, 6) if value.known else None
    return Cell(value.text(percent), value.interval(percent), beside, number)


@dataclass(frozen=True)
class Information:
    """Bits that an embedding tells of the class, and the bar that shows them."""

    row: Row
    bits: str
    interval: str
    ceiling: str
    percent: float


def information(rows: list[Row]) -> list[Information]:
    """One line for every row whose label information was measured."""
    lines = []
    for row in rows:
        block = row.block.get("information")
        if not isinstance(block, Mapping):
            continue
        bits = Value(*(_number(block.get(key)) for key in ("bits", "low", "high")))
        if not bits.known:
            continue
        ceiling = Value(_number(block.get("ceiling")))
        share = bits.value / ceiling.value if ceiling.known and ceiling.value > 0 else 0.0
        shown = Value(bits.value, bits.low, bits.high)
        lines.append(
            Information(
                row,
                f"{bits.value:.2f}",
                _bits_interval(shown),
                f"{ceiling.value:.2f}" if ceiling.known else DASH,
                100 * min(1.0, max(0.0, share)),
            )
        )
    return lines


def _bits_interval(bits: Value) -> str:
    known = math.isfinite(bits.low) and math.isfinite(bits.high)
    return f"{bits.low:.2f}{DASH}{bits.high:.2f}" if known else ""


def counts(block: Mapping[str, Any]) -> str:
    """How many queries the means are over, and how many could not be scored."""
    queries, without = block.get("queries"), block.get("without_relevant")
    if not isinstance(queries, int):
        return ""
    if not without:
        return f"{queries:,} queries; every one has a relevant item."
    verb, count = ("has", "is") if without == 1 else ("have", "are")
    return (
        f"{queries:,} queries; {without:,} of them {verb} no relevant item and {count} left out of "
        f"every mean."
    )
