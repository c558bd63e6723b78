"""What the panel measured of the embedding, as plots over the steps. The numbers are defined in
evaluation.geometry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from nearkin.report.figures import BLUE, GRAY, ORANGE, Curve, Plot, plot
from nearkin.report.lines import curve_of, latest

_Lines = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class _Shown:
    """One plot: its title, how to read it, the number of the panel, and the best that can be."""

    title: str
    note: str
    path: tuple[str, ...]
    bound: tuple[str, ...] = ()
    bound_name: str = ""


_BITS = _Shown(
    "Bits, trained on and held out",
    "How many bits an embedding is known to tell of its class, by distances to class means: a "
    "lower bound, with its interval. Dotted: all there is to tell.",
    ("information", "bits"),
    ("information", "ceiling"),
    "ceiling",
)
_JSD = _Shown(
    "Same pairs against different pairs",
    "Jensen-Shannon divergence of their cosines, in bits. At 1 a threshold tells them all apart; "
    "at 0 none does.",
    ("jsd",),
)
_RANK = _Shown(
    "Effective rank",
    "How many dimensions the embedding makes use of; near 1, it has collapsed.",
    ("effective_rank",),
)
_SIMPLEX = _Shown(
    "Distance from the simplex",
    "Of the class means: 0 where all are equally far from one another and as far as can be, 1.41 "
    "where all are one point. Dotted: as even as so many classes lie in so few dimensions.",
    ("simplex_distance",),
    ("simplex_least",),
    "most even",
)
_ALL = (
    _BITS,
    _JSD,
    _Shown(
        "Alignment",
        "Mean squared distance of same pairs, on unit vectors; 0 where every class is one point.",
        ("alignment",),
    ),
    _Shown(
        "Uniformity",
        "Log of the mean Gaussian potential of all pairs: the lower, the more evenly the sphere is "
        "filled; 0 is a collapse.",
        ("uniformity",),
    ),
    _Shown("Mean cosine of pairs", "Near 1, all is embedded alike: a collapse.", ("cosine_mean",)),
    _RANK,
    _SIMPLEX,
)
_FLATTERING = " Of rows that were trained on, which flatter."


def panel_plots(log: _Lines) -> list[Plot]:
    """A plot for each number of the panel, of the rows held out and of those trained on."""
    held, trained = (_lines_of(log, of) for of in ("validation", "training"))
    plots = [_drawn(shown, held, trained) for shown in _ALL]
    return [drawn for drawn in plots if drawn is not None]


def overlaid_panels(logs: Mapping[str, _Lines]) -> list[Plot]:
    """The panels of several runs (name -> log), one curve a run: held-out rows where it has them.

    A run without them is left out where others have them: rows that were trained on are no match.
    """
    held = {name: _lines_of(log, "validation") for name, log in logs.items()}
    none = not any(held.values())
    lines = {name: _lines_of(log, "training") for name, log in logs.items()} if none else held
    plots = []
    for shown in (_BITS, _JSD, _RANK, _SIMPLEX):
        curves = [
            curve_of(name, each, "step", shown.path, place)
            for place, (name, each) in enumerate(lines.items())
        ]
        found = [curve for curve in curves if len(curve.x) > 1]
        where = _FLATTERING if none else ""
        title = "Bits of rows held out" if shown is _BITS and not none else shown.title
        note = _without_bound(shown).replace(", with its interval", "")
        plots.append(plot(title, note + where, found, "step"))
    return [drawn for drawn in plots if drawn is not None]


def rows_of_panel(log: _Lines) -> str:
    """Which rows the panel looked at, in a sentence; empty where the log does not say."""
    said = [line["panel"] for line in log if line.get("event") == "start" and "panel" in line]
    held = " Classes of the validation rows are neither trained on nor tested."
    return f"{said[-1]}.{held if _lines_of(log, 'validation') else ''}" if said else ""


def _lines_of(log: _Lines, of: str) -> list[Mapping[str, Any]]:
    return latest([line for line in log if line.get("of") == of], "panel", "step")


def _drawn(shown: _Shown, held: _Lines, trained: _Lines) -> Plot | None:
    curves = []
    for name, lines, color, dash in (
        ("held out", held, BLUE, "solid"),
        ("trained on", trained, ORANGE, "dash"),
    ):
        curve = replace(curve_of(name, lines, "step", shown.path, 0), color=color, dash=dash)
        curves.append(_with_interval(curve, lines) if shown is _BITS else curve)
        bound = curve_of(f"{shown.bound_name}, {name}", lines, "step", shown.bound, 0)
        if shown.bound and np.any(bound.y > 0):
            curves.append(replace(bound, color=GRAY if name == "held out" else color, dash="dot"))
    note = shown.note if any(c.dash == "dot" for c in curves) else _without_bound(shown)
    where = "" if len(curves[0].x) else _FLATTERING
    return plot(shown.title, note + where, curves, "step")


def _without_bound(shown: _Shown) -> str:
    return shown.note.split(" Dotted:")[0]


def _with_interval(curve: Curve, lines: _Lines) -> Curve:
    """The same curve with its whiskers, where every point has them."""
    low, high = (curve_of("", lines, "step", ("information", end), 0).y for end in ("low", "high"))
    fits = len(low) == len(high) == len(curve.y)
    return replace(curve, low=low, high=high) if fits else curve
