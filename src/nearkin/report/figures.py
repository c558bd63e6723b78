"""Curves drawn with plotly. What is drawn stands in `course` and `comparison`; no HTML is made.

Colors of text and grid are set in the page, by the reader's color scheme.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

MOST_POINTS = 1_500
LONG = 100

PERCENT = "\N{NO-BREAK SPACE}%"

# Readable on white and on near-black; told apart by dash and order too, never by color alone.
BLUE, ORANGE, GREEN, PURPLE, GRAY = "#3d85c6", "#dd8327", "#2f9e72", "#a06cd5", "#8b9099"
COLORS = (BLUE, ORANGE, GREEN, PURPLE, GRAY)
DASHES = ("solid", "dash", "dot", "dashdot")


@dataclass(frozen=True, eq=False)
class Curve:
    """One line of a plot: x and y (P,) float64 of equal length, its name and how it is drawn.

    A long noisy one is drawn as a running mean over its own faint trace. low and high (P,) are the
    ends of intervals, drawn as whiskers.
    """

    name: str
    x: np.ndarray
    y: np.ndarray
    color: str
    dash: str = "solid"
    area: bool = False
    noisy: bool = False
    low: np.ndarray | None = None
    high: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Plot:
    """A figure and what stands around it: a title, how to read it, and its curves as a key.

    shape    a word for the style sheet: "" or "square"
    target   the name of the page's part that a click on the plot leads to; may be empty
    """

    title: str
    note: str
    curves: tuple[Curve, ...]
    figure: Figure
    shape: str = ""
    target: str = ""


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


def plot(
    title: str,
    note: str,
    curves: Sequence[Curve],
    axis: str,
    mark: int | None = None,
    percent: bool = False,
) -> Plot | None:
    """The curves in one figure; None where no curve has a point. `mark` is a place on the x axis;
    `percent` writes shares in percent."""
    from plotly.graph_objects import Figure

    curves = [curve for curve in curves if len(curve.x)]
    if not curves:
        return None
    figure = Figure()
    for curve in curves:
        _draw(figure, curve, percent)
    dress(figure)
    figure.update_xaxes(title={"text": axis, "standoff": 6}, nticks=7, showgrid=False)
    figure.update_yaxes(nticks=6, ticksuffix=PERCENT if percent else "")
    if mark is not None:
        figure.add_vline(x=mark, line={"color": GRAY, "width": 1, "dash": "dot"})
    return Plot(title, note, tuple(curves), figure)


def dress(figure: Figure) -> None:
    """The look that all plots share."""
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
    figure.update_xaxes(**grid)
    figure.update_yaxes(**grid)


def _draw(figure: Figure, curve: Curve, percent: bool) -> None:
    from plotly.graph_objects import Scatter

    name = escape(curve.name)  # plotly reads a few tags in names
    scale = 100.0 if percent else 1.0
    y = scale * curve.y
    if curve.noisy and len(y) > LONG:
        x, single = decimate(curve.x, y)
        figure.add_trace(
            Scatter(
                x=_short(x), y=_short(single), mode="lines", opacity=0.25, hoverinfo="skip"
            ).update(line={"color": curve.color, "width": 1})
        )
        y = running_mean(y, window=max(5, len(y) // 40))
    x, y = decimate(curve.x, y)
    few = len(x) <= 30 and not curve.area
    line = {"color": curve.color, "width": 2, "dash": curve.dash}
    trace = Scatter(
        x=_short(x), y=_short(y), mode="lines+markers" if few else "lines", name=name, line=line
    )
    hover = f"%{{y:.1f}}{PERCENT}" if percent else "%{y:.4~g}"
    trace.update(hovertemplate=hover, marker={"size": 5})
    if curve.low is not None and curve.high is not None and len(curve.low) == len(x):
        above, below = (
            _short(np.nan_to_num(d)) for d in (scale * curve.high - y, y - scale * curve.low)
        )
        whisker = {"array": above, "arrayminus": below, "thickness": 1, "width": 3}
        trace.update(error_y={"type": "data", "symmetric": False, "color": curve.color, **whisker})
    if curve.area:
        trace.update(fill="tozeroy", fillcolor=faint(curve.color), line={"shape": "hvh"})
    figure.add_trace(trace)


def _short(values: np.ndarray) -> list[float]:
    """Six digits are more than a screen shows, and half the size of the page's data."""
    return [float(f"{value:.6g}") for value in values]


def faint(color: str) -> str:
    """A color `#rrggbb` for areas under curves."""
    red, green, blue = (int(color[at : at + 2], 16) for at in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.22)"
