"""The plots of a run, made with plotly: the course of training, distances of pairs.

Colors of text and grid are set in the page, by the reader's color scheme; no HTML is made here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

MOST_POINTS = 1_500
_LONG = 100

# Readable on white and on near-black; told apart by dash and order too, never by color alone.
BLUE, ORANGE, GREEN, PURPLE, GRAY = "#3d85c6", "#dd8327", "#2f9e72", "#a06cd5", "#8b9099"
_COLORS = (BLUE, ORANGE, GREEN, PURPLE, GRAY)
_DASHES = ("solid", "dash", "dot", "dashdot")


@dataclass(frozen=True, eq=False)
class Curve:
    """One line of a plot: x and y (P,) float64 of equal length, its name and how it is drawn.

    A long noisy one is drawn as a running mean over its own faint trace.
    """

    name: str
    x: np.ndarray
    y: np.ndarray
    color: str
    dash: str = "solid"
    area: bool = False
    noisy: bool = False


@dataclass(frozen=True, eq=False)
class Plot:
    """A figure and what stands around it: a title, how to read it, and its curves as a key."""

    title: str
    note: str
    curves: tuple[Curve, ...]
    figure: Figure


def training_plots(log: Sequence[Mapping[str, Any]], chosen: int | None = None) -> list[Plot]:
    """The course of training, from the lines of a log; what was not logged has no plot.

    `chosen` is the epoch whose weights were taken; it is marked in the validation plot.
    """
    plots = [*_over_steps(_latest(log, "step")), *_over_epochs(_latest(log, "epoch"), chosen)]
    return [plot for plot in plots if plot is not None]


def _over_steps(lines: Sequence[Mapping[str, Any]]) -> list[Plot | None]:
    terms = [replace(curve, noisy=True) for curve in _family(lines, "step", "terms", "total")]
    long = any(len(curve.x) > _LONG for curve in terms)
    how = "In nats. Bold: running mean over steps; faint: single steps." if long else "In nats."
    pull = _curve("pull", lines, "step", ("pull",), 0)
    push = _curve("push", lines, "step", ("push",), 1)
    apart = "How strongly the loss draws same pairs together and different pairs apart."
    return [
        _plot("Terms of the loss", how, terms, "step"),
        _plot("Pull and push", apart, [pull, push], "step"),
        _plot("Learning rates", "One for each learner.", _family(lines, "step", "rates"), "step"),
    ]


def _over_epochs(lines: Sequence[Mapping[str, Any]], chosen: int | None) -> list[Plot | None]:
    validation = _family(lines, "epoch", "validation")
    disjoint = "On classes disjoint from those of training and test."
    marked = f"{disjoint} Dotted: the epoch taken." if chosen is not None else disjoint
    bits = _curve("bits", lines, "epoch", ("information", "bits"), 0)
    ceiling = _curve("ceiling", lines, "epoch", ("information", "ceiling"), 4)
    cosine = _curve("mean cosine", lines, "epoch", ("cosine_mean",), 0)
    rank = _curve("effective rank", lines, "epoch", ("effective_rank",), 0)
    bound = "Lower bound in bits; the ceiling is the entropy of the classes."
    return [
        _plot("Validation", marked, validation, "epoch", chosen),
        _plot("Information about the class", bound, [bits, ceiling], "epoch"),
        _plot(
            "Mean cosine of pairs", "Near 1, all is embedded alike: a collapse.", [cosine], "epoch"
        ),
        _plot("Effective rank", "How many dimensions the embedding uses.", [rank], "epoch"),
    ]


def distance_plots(log: Sequence[Mapping[str, Any]]) -> list[Plot]:
    """Distances of same and different test pairs, before and after training, on the same axes."""
    found = {line["when"]: line for line in log if line.get("event") == "distances"}
    shown = [when for when in ("untrained", "trained") if _drawable(found.get(when))]
    if not shown:
        return []
    top = max(max(found[when][kind]) for when in shown for kind in ("same", "different"))
    low = min(found[when]["edges"][0] for when in shown)
    high = max(found[when]["edges"][-1] for when in shown)
    plots = []
    for when in shown:
        line = found[when]
        edges = np.asarray(line["edges"], dtype=np.float64)
        middle = (edges[1:] + edges[:-1]) / 2
        curves = [
            Curve("same", middle, np.asarray(line["same"], np.float64), BLUE, "solid", area=True),
            Curve(
                "different", middle, np.asarray(line["different"], np.float64), ORANGE, "dot", True
            ),
        ]
        title = "Before training" if when == "untrained" else "After training"
        plot = _plot(title, f"The two overlap by {_overlap(line):.0f} %.", curves, "distance")
        if plot is not None:
            plot.figure.update_yaxes(range=[0, 1.06 * top or 1], showticklabels=False)
            plot.figure.update_xaxes(range=[low, high])
            plots.append(plot)
    return plots


def decimate(
    x: np.ndarray, y: np.ndarray, most: int = MOST_POINTS
) -> tuple[np.ndarray, np.ndarray]:
    """At most `most` points: both ends, the lowest and highest of every stretch (spikes stay)."""
    if len(x) <= most:
        return x, y
    keep = {0, len(x) - 1}
    for stretch in np.array_split(np.arange(1, len(x) - 1), (most - 2) // 2):
        keep |= {int(stretch[y[stretch].argmin()]), int(stretch[y[stretch].argmax()])}
    rows = np.array(sorted(keep))
    return x[rows], y[rows]


def running_mean(y: np.ndarray, window: int) -> np.ndarray:
    """The mean over `window` values around each; at the ends over those that are there."""
    half = window // 2
    total = np.concatenate([[0.0], np.cumsum(y)])
    position = np.arange(len(y))
    start, end = np.maximum(position - half, 0), np.minimum(position + half + 1, len(y))
    return (total[end] - total[start]) / (end - start)


def _latest(log: Iterable[Mapping[str, Any]], kind: str) -> list[Mapping[str, Any]]:
    """The lines of one kind in order; a resumed run says some twice, and the later one holds."""
    lines = {line[kind]: line for line in log if line.get("event") == kind and kind in line}
    return [lines[key] for key in sorted(lines)]


def _drawable(line: Mapping[str, Any] | None) -> bool:
    if line is None or len(line.get("edges", ())) < 2:
        return False
    bins = len(line["edges"]) - 1
    return all(len(line.get(kind, ())) == bins for kind in ("same", "different"))


def _overlap(line: Mapping[str, Any]) -> float:
    width = np.diff(np.asarray(line["edges"], dtype=np.float64))
    both = np.minimum(np.asarray(line["same"], float), np.asarray(line["different"], float))
    return 100.0 * float((both * width).sum())


def _curve(
    name: str, lines: Sequence[Mapping[str, Any]], axis: str, path: Sequence[str], place: int
) -> Curve:
    """The numbers at `path` of every line that has them; NaN and infinity are left out."""
    points = []
    for line in lines:
        value: Any = line
        for key in path:
            value = value.get(key) if isinstance(value, Mapping) else None
        if isinstance(value, int | float) and math.isfinite(value):
            points.append((line[axis], value))
    x, y = np.array(points, dtype=np.float64).reshape(-1, 2).T
    return Curve(name, x, y, _COLORS[place % len(_COLORS)], _DASHES[place % len(_DASHES)])


def _family(
    lines: Sequence[Mapping[str, Any]], axis: str, under: str, first: str = ""
) -> list[Curve]:
    """One curve a key of the mapping `under`, `first` leading; what is always 0 is left out."""
    names: dict[str, None] = {first: None} if first else {}
    for line in lines:
        found = line.get(under)
        names |= dict.fromkeys(found) if isinstance(found, Mapping) else {}
    curves: list[Curve] = []
    for name in names:
        curve = _curve(name, lines, axis, (under, name), len(curves))
        if name == first or np.any(curve.y != 0):
            curves.append(curve)
    # A total of one part alone would hide behind it.
    return curves[1:] if first and len(curves) == 2 else curves


def _plot(
    title: str, note: str, curves: list[Curve], axis: str, mark: int | None = None
) -> Plot | None:
    from plotly.graph_objects import Figure

    curves = [curve for curve in curves if len(curve.x)]
    if not curves:
        return None
    figure = Figure()
    for curve in curves:
        _draw(figure, curve)
    figure.update_layout(
        template={},
        autosize=True,
        showlegend=False,
        hovermode="x unified",
        margin={"l": 46, "r": 14, "t": 10, "b": 42},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"size": 12, "color": GRAY},
    )
    grid = {"gridcolor": "rgba(128,128,128,0.2)", "zeroline": False, "automargin": True}
    figure.update_xaxes(
        title={"text": axis, "standoff": 6}, nticks=7, **{**grid, "showgrid": False}
    )
    figure.update_yaxes(nticks=6, **grid)
    if mark is not None:
        figure.add_vline(x=mark, line={"color": GRAY, "width": 1, "dash": "dot"})
    return Plot(title, note, tuple(curves), figure)


def _draw(figure: Figure, curve: Curve) -> None:
    from plotly.graph_objects import Scatter

    name = escape(curve.name)  # plotly reads a few tags in names
    y = curve.y
    if curve.noisy and len(y) > _LONG:
        x, faint = decimate(curve.x, y)
        figure.add_trace(
            Scatter(
                x=_short(x), y=_short(faint), mode="lines", opacity=0.25, hoverinfo="skip"
            ).update(line={"color": curve.color, "width": 1})
        )
        y = running_mean(y, window=max(5, len(y) // 40))
    x, y = decimate(curve.x, y)
    few = len(x) <= 30 and not curve.area
    line = {"color": curve.color, "width": 2, "dash": curve.dash}
    trace = Scatter(
        x=_short(x), y=_short(y), mode="lines+markers" if few else "lines", name=name, line=line
    )
    trace.update(hovertemplate="%{y:.4~g}", marker={"size": 5})
    if curve.area:
        trace.update(fill="tozeroy", fillcolor=_faint(curve.color), line={"shape": "hvh"})
    figure.add_trace(trace)


def _short(values: np.ndarray) -> list[float]:
    """Six digits are more than a screen shows, and half the size of the page's data."""
    return [float(f"{value:.6g}") for value in values]


def _faint(color: str) -> str:
    red, green, blue = (int(color[at : at + 2], 16) for at in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.22)"
