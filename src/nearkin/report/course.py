"""The course of training as plots, from the lines of a log: terms, rates, validation, distances.
What the panel measured of the embedding has its plots in embedding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from nearkin.report.embedding import overlaid_panels
from nearkin.report.figures import BLUE, LONG, ORANGE, Curve, Plot, plot
from nearkin.report.lines import curve_of, latest
from nearkin.report.scores import CLUSTERING

_LOSS = ("step", ("terms", "total"))


def training_plots(log: Sequence[Mapping[str, Any]], chosen: int | None = None) -> list[Plot]:
    """The course of training, from the lines of a log; what was not logged has no plot.

    `chosen` is the epoch whose weights were taken; it is marked in the validation plot.
    """
    plots = [*_over_steps(latest(log, "step")), *_over_epochs(latest(log, "epoch"), chosen)]
    return [drawn for drawn in plots if drawn is not None]


def _over_steps(lines: Sequence[Mapping[str, Any]]) -> list[Plot | None]:
    own, parts = _terms_and_parts(lines)
    terms = [replace(curve, noisy=True) for curve in _family(own, "step", "terms", "total")]
    added = [replace(curve, noisy=True) for curve in _family(parts, "step", "parts")]
    long = any(len(curve.x) > LONG for curve in terms)
    smooth = " Bold: running mean over steps; faint: single steps." if long else ""
    pull = curve_of("pull", lines, "step", ("pull",), 0)
    push = curve_of("push", lines, "step", ("push",), 1)
    return [
        plot(
            "Terms of the loss",
            f"{_what_terms_do(terms)}{smooth}",
            terms,
            "step",
        ),
        plot(
            "Parts of the sum",
            f"What each part of the objective adds to the total, by its weight, in nats.{smooth}",
            added,
            "step",
        ),
        plot(
            "Pull and push",
            "How strongly the loss draws same pairs together and different pairs apart; near 0, "
            "nothing is left to learn.",
            [pull, push],
            "step",
        ),
        plot(
            "Learning rates",
            "How long the strides of each learner were.",
            _family(lines, "step", "rates"),
            "step",
        ),
    ]


def _terms_and_parts(
    lines: Sequence[Mapping[str, Any]],
) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
    """The lines with the terms of the whole loss alone, and with the total of each part of a sum
    under `parts`."""
    own: list[Mapping[str, Any]] = []
    parts: list[Mapping[str, Any]] = []
    for line in lines:
        terms = line.get("terms")
        if not isinstance(terms, Mapping):
            continue
        names = {key.split(".")[0] for key in terms if key.endswith(".total")}
        whole = {key: value for key, value in terms.items() if key.split(".")[0] not in names}
        own.append({**line, "terms": whole})
        parts.append(
            {**line, "parts": {name: terms.get(f"{name}.total") for name in sorted(names)}}
        )
    return own, parts


def _what_terms_do(terms: Sequence[Curve]) -> str:
    names = {curve.name for curve in terms}
    if {"tightness", "contrast"} <= names:
        return (
            "In nats, to be made small: tightness draws a class together, contrast keeps classes "
            "apart."
        )
    return "In nats, to be made small."


def _over_epochs(lines: Sequence[Mapping[str, Any]], chosen: int | None) -> list[Plot | None]:
    """Curves over epochs; one epoch alone has none."""
    if len(lines) < 2:
        return []
    validation, test = (_family(lines, "epoch", part) for part in ("validation", "test"))
    taken = " Dotted: the epoch taken." if chosen is not None else ""
    bits = curve_of("bits", lines, "epoch", ("information", "bits"), 0)
    low, high = (curve_of("", lines, "epoch", ("information", end), 0).y for end in ("low", "high"))
    if len(low) == len(high) == len(bits.y):
        bits = replace(bits, low=low, high=high)
    ceiling = curve_of("ceiling", lines, "epoch", ("information", "ceiling"), 4)
    return [
        plot(
            "Validation",
            f"On classes that are neither trained on nor tested.{taken}",
            validation,
            "epoch",
            chosen,
            percent=_shares(validation),
        ),
        plot(
            "The test classes, epoch by epoch",
            "Looked at as papers do that choose the epoch here; the highest point is no honest "
            "figure.",
            test,
            "epoch",
            percent=_shares(test),
        ),
        plot(
            "Information about the class",
            "How many bits an embedding is known to tell of its class; the ceiling is all there "
            "is to tell.",
            [bits, ceiling],
            "epoch",
        ),
    ]


def _shares(curves: Sequence[Curve]) -> bool:
    return not any(curve.name in CLUSTERING for curve in curves)


def overlaid(logs: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Plot]:
    """What several runs share, one curve a run (name -> log), those of a kind in one plot."""
    shown = (
        ("Loss", "The total of each run, in nats; different losses have different scales.", *_LOSS),
        *(
            (f"Validation {metric}", "On classes neither trained on nor tested.", "epoch", path)
            for metric, path in _validated(logs)
        ),
        (
            "Information about the class",
            "Bits that an embedding is known to tell of its class.",
            "epoch",
            ("information", "bits"),
        ),
    )
    plots = []
    for title, note, axis, path in shown:
        curves = [
            replace(curve_of(name, latest(log, axis), axis, path, place), noisy=axis == "step")
            for place, (name, log) in enumerate(logs.items())
        ]
        found = [curve for curve in curves if len(curve.x) > 1]
        percent = path[0] == "validation" and path[-1] not in CLUSTERING
        plots.append(plot(title, note, found, axis, percent=percent))
    return [drawn for drawn in plots if drawn is not None] + overlaid_panels(logs)


def _validated(
    logs: Mapping[str, Sequence[Mapping[str, Any]]],
) -> list[tuple[str, tuple[str, str]]]:
    """The metrics that any run followed on its validation classes."""
    names: dict[str, None] = {}
    for log in logs.values():
        for line in latest(log, "epoch"):
            found = line.get("validation")
            names |= dict.fromkeys(found) if isinstance(found, Mapping) else {}
    return [(name, ("validation", name)) for name in names]


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
        drawn = plot(title, f"The two overlap by {_overlap(line):.0f} %.", curves, "distance")
        if drawn is not None:
            drawn.figure.update_yaxes(range=[0, 1.06 * top or 1], showticklabels=False)
            drawn.figure.update_xaxes(range=[low, high])
            plots.append(drawn)
    return plots


def _drawable(line: Mapping[str, Any] | None) -> bool:
    if line is None or len(line.get("edges", ())) < 2:
        return False
    bins = len(line["edges"]) - 1
    return all(len(line.get(kind, ())) == bins for kind in ("same", "different"))


def _overlap(line: Mapping[str, Any]) -> float:
    width = np.diff(np.asarray(line["edges"], dtype=np.float64))
    both = np.minimum(np.asarray(line["same"], float), np.asarray(line["different"], float))
    return 100.0 * float((both * width).sum())


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
        curve = curve_of(name, lines, axis, (under, name), len(curves))
        if name == first or np.any(curve.y != 0):
            curves.append(curve)
    # A total of one part alone would hide behind it.
    return curves[1:] if first and len(curves) == 2 else curves
