"""Curves out of the lines of a log. What is drawn of them stands in course and embedding."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from nearkin.report.figures import COLORS, DASHES, Curve


def latest(
    log: Iterable[Mapping[str, Any]], kind: str, axis: str | None = None
) -> list[Mapping[str, Any]]:
    """The lines of one kind in the order of `axis` (of the kind itself); a resumed run says some
    twice, and the later one holds."""
    axis = axis or kind
    lines = {line[axis]: line for line in log if line.get("event") == kind and axis in line}
    return [lines[key] for key in sorted(lines)]


def curve_of(
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
    return Curve(name, x, y, COLORS[place % len(COLORS)], DASHES[place % len(DASHES)])
