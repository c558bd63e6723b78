"""What RankMI has learned as plots: V, T and both sides of the loss over the distances of test
pairs, and their course (Kemertas et al. 2020, figures 1 and 3)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from nearkin.report.figures import BLUE, GRAY, GREEN, ORANGE, PURPLE, Curve, Plot, faint, plot

LOG_2 = math.log(2)
PLACES = "distance"


@dataclass(frozen=True, eq=False)
class Learned:
    """The statistics network after an epoch.

    prefix    of its numbers in the log: "part." in a sum, else empty
    d, v      (M,) float64: distances, and V there
    beta      where V changes its sign, by the last estimate
    margin    on both sides of beta; None: every pair counts
    """

    epoch: int
    prefix: str
    d: np.ndarray
    v: np.ndarray
    beta: float
    margin: float | None


def rankmi_plots(log: Sequence[Mapping[str, Any]], chosen: int | None = None) -> list[Plot]:
    """The plots of a run of RankMI, from the lines of its log; none for any other run.

    `chosen` is the epoch whose weights were taken; default: the last one.
    """
    learned = _learned(log)
    if not learned:
        return []
    last = next((each for each in learned if each.epoch == chosen), learned[-1])
    densities = _densities(log)
    plots = [
        _distances(last, densities),
        _judged(last, learned[0], densities),
        _sides(last, densities),
        *_over_steps(log, last.prefix),
    ]
    return [drawn for drawn in plots if drawn is not None]


def _learned(log: Sequence[Mapping[str, Any]]) -> list[Learned]:
    """Of every epoch, in order; a resumed run says some twice, and the later one holds."""
    found: dict[int, Learned] = {}
    for line in log:
        if line.get("event") != "epoch":
            continue
        for key, said in line.items():
            if key == "rankmi" or key.endswith(".rankmi"):
                read = _read(line.get("epoch"), key[: -len("rankmi")], said)
                found |= {} if read is None else {read.epoch: read}
                break
    return [found[epoch] for epoch in sorted(found)]


def _read(epoch: Any, prefix: str, said: Any) -> Learned | None:
    """None for a record that is no numbers of equal length."""
    try:
        d, v = (np.asarray(said[key], dtype=np.float64) for key in ("distance", "V"))
        beta, margin = float(said["beta"]), said["margin"]
        margin = None if margin is None else float(margin)
    except (KeyError, TypeError, ValueError):
        return None
    fits = d.ndim == 1 and d.shape == v.shape and len(d) > 1 and isinstance(epoch, int)
    finite = np.isfinite(d).all() and np.isfinite(v).all() and math.isfinite(beta)
    return Learned(epoch, prefix, d, v, beta, margin) if fits and finite else None


def _densities(log: Sequence[Mapping[str, Any]]) -> list[Curve]:
    """The distances of same and of different test pairs, as the trained encoder has them."""
    found = [e for e in log if e.get("event") == "distances" and e.get("when") == "trained"]
    if not found:
        return []
    line = found[-1]
    edges = np.asarray(line.get("edges", ()), dtype=np.float64)
    middle = (edges[1:] + edges[:-1]) / 2
    sides = (("same pairs", "same", BLUE, "solid"), ("different pairs", "different", ORANGE, "dot"))
    curves = [
        Curve(name, middle, np.asarray(line.get(key, ()), np.float64), color, dash, area=True)
        for name, key, color, dash in sides
    ]
    return curves if all(len(c.y) == len(middle) > 0 for c in curves) else []


def _distances(last: Learned, densities: Sequence[Curve]) -> Plot | None:
    drawn = plot(
        "Distances of test pairs, and beta",
        f"Line: beta {last.beta:.3f}, where the statistics network changes its mind, which saw "
        f"training pairs alone.{_band(last)}",
        densities,
        PLACES,
    )
    if drawn is not None:
        drawn.figure.update_yaxes(rangemode="tozero", showticklabels=False)
    return _marked(drawn, last, densities)


def _band(last: Learned) -> str:
    if last.margin is None:
        return ""
    return (
        f" Dotted: beta ± {last.margin:g}; the encoder learns from same pairs beyond the left one "
        "and different pairs before the right one."
    )


def _judged(last: Learned, first: Learned, densities: Sequence[Curve]) -> Plot | None:
    """V of the epoch taken and of the first, and T."""
    curves = [
        Curve("V", last.d, last.v, GREEN),
        Curve("T", last.d, statistic(last.v), PURPLE, "dash"),
    ]
    early = ""
    if first.epoch < last.epoch:
        curves.append(Curve("V after the first epoch", first.d, first.v, GRAY, "dot"))
    rising = float((np.diff(last.v) > 0).mean())
    if rising > 0:
        early = (
            f" V rises on {100 * rising:.0f} % of the distances: there it pushes same pairs apart."
        )
    return _over(
        "What the statistics network says of a distance",
        "V is the logit of a same pair, T = log 2 - log(1 + exp(-V)) what enters the bound; above "
        f"0 a pair is taken for a same one.{early}",
        curves,
        densities,
        last,
    )


def _sides(last: Learned, densities: Sequence[Curve]) -> Plot | None:
    curves = [
        Curve("a same pair: -T", last.d, -statistic(last.v), BLUE),
        Curve("a different pair: -log(2 - exp(T))", last.d, -statistic(-last.v), ORANGE, "dash"),
    ]
    return _over(
        "What a pair costs at its distance",
        "The two sides of the loss, in nats; the encoder goes down their slopes.",
        curves,
        densities,
        last,
    )


def statistic(v: np.ndarray) -> np.ndarray:
    """T = log 2 - log(1 + e^-V), any shape; log(2 - e^T) is the same of -V."""
    return LOG_2 - np.logaddexp(0.0, -v)


def _over(
    title: str, note: str, curves: list[Curve], densities: Sequence[Curve], last: Learned
) -> Plot | None:
    """Curves over the distance, above the densities of test pairs."""
    low, high = _reach(densities, last)
    inside = (last.d >= low) & (last.d <= high)
    behind = " Areas: how many same and different test pairs lie there." if densities else ""
    shown = [replace(curve, x=curve.x[inside], y=curve.y[inside]) for curve in curves]
    drawn = plot(title, f"{note}{behind}", shown, PLACES)
    if drawn is not None and densities:
        _lay_under(drawn, densities)
    return _marked(drawn, last, densities)


def _lay_under(drawn: Plot, densities: Sequence[Curve]) -> None:
    """Densities as areas at the foot of a plot, by a scale of their own."""
    from plotly.graph_objects import Scatter

    top = max(float(each.y.max()) for each in densities) or 1.0
    for each in densities:
        line = {"color": faint(each.color), "width": 1, "shape": "hvh"}
        area = Scatter(x=each.x.round(4).tolist(), y=each.y.round(4).tolist(), mode="lines")
        area.update(line=line, fill="tozeroy", fillcolor=faint(each.color), hoverinfo="skip")
        drawn.figure.add_trace(area.update(yaxis="y2"))
    drawn.figure.update_layout(
        yaxis2={"overlaying": "y", "range": [0, 3 * top], "visible": False, "fixedrange": True}
    )


def _reach(densities: Sequence[Curve], last: Learned) -> tuple[float, float]:
    """Where there are pairs, and a little more: beyond them V is a guess, and may be steep."""
    there = [each.x[each.y > 0] for each in densities]
    places = np.concatenate(there) if there else last.d
    places = np.append(places, last.beta) if len(places) else last.d
    return max(float(places.min()) - 0.1, last.d[0]), min(float(places.max()) + 0.1, last.d[-1])


def _marked(drawn: Plot | None, last: Learned, densities: Sequence[Curve]) -> Plot | None:
    """beta as a line, the margin's ends dotted, on the range where there are pairs."""
    if drawn is not None:
        ends = [] if last.margin is None else [last.beta - last.margin, last.beta + last.margin]
        for place, dash in [(last.beta, "solid"), *((end, "dot") for end in ends)]:
            drawn.figure.add_vline(x=place, line={"color": GRAY, "width": 1, "dash": dash})
        drawn.figure.update_xaxes(range=list(_reach(densities, last)))
    return drawn


def _over_steps(log: Sequence[Mapping[str, Any]], prefix: str) -> list[Plot | None]:
    steps = {line["step"]: line for line in log if line.get("event") == "step" and "step" in line}
    lines = [steps[step] for step in sorted(steps)]
    bound = _course("bound", lines, f"{prefix}jsd_bound", GREEN)
    ceiling = Curve("ceiling, log 2", bound.x, np.full_like(bound.y, LOG_2), GRAY, "dashdot")
    return [
        plot(
            "Jensen-Shannon divergence of distances",
            "A lower bound, in nats, of all pairs of a training batch before either side learns "
            "from it: how well distance tells same pairs from different ones.",
            [bound, ceiling],
            "step",
        ),
        plot(
            "Beta",
            "Where the statistics network changes its mind, step by step.",
            [_course("beta", lines, f"{prefix}beta", PURPLE)],
            "step",
        ),
        plot(
            "Pairs that the margin leaves",
            "Which share of the same and of the different pairs of a batch the encoder learns "
            "from.",
            [
                _course("same", lines, f"{prefix}kept_same", BLUE),
                _course("different", lines, f"{prefix}kept_different", ORANGE, "dash"),
            ],
            "step",
            percent=True,
        ),
        plot(
            "Loss, by whose turn it was",
            "In nats. The statistics network sees all pairs, the encoder those near beta, so that "
            "the two are no measure of each other.",
            [
                _turns("encoder", lines, "encoder", BLUE),
                _turns("statistics network", lines, f"{prefix}statistics", GREEN, "dash"),
            ],
            "step",
        ),
    ]


def _turns(
    name: str, lines: Sequence[Mapping[str, Any]], learner: str, color: str, dash: str = "solid"
) -> Curve:
    """The loss in the steps that ended with a turn of this learner."""
    mine = [
        {"step": line["step"], "total": line["terms"].get("total")}
        for line in lines
        if learner in line.get("learns", ()) and isinstance(line.get("terms"), Mapping)
    ]
    return replace(_course(name, mine, "total", color, dash), noisy=True)


def _course(
    name: str, lines: Sequence[Mapping[str, Any]], key: str, color: str, dash: str = "solid"
) -> Curve:
    """A number of the step lines; what is no finite number is left out."""
    points = [
        (line["step"], line[key])
        for line in lines
        if isinstance(line.get(key), int | float) and math.isfinite(line[key])
    ]
    x, y = np.array(points, dtype=np.float64).reshape(-1, 2).T
    return Curve(name, x, y, color, dash)
