"""The figures that a paper printed, as a recipe tells them under `paper`; where they are shown
stands elsewhere."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

CLOSENESSES = ("cosine", "euclidean", "inner")


@dataclass(frozen=True)
class Paper:
    """What a paper printed.

    source     where it stands: authors, year, table
    selected   on what the epoch was chosen; empty where the recipe does not say
    block      closeness -> metric -> share in [0, 1], as a block of metrics.json
    """

    source: str
    selected: str
    block: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


def read_paper(recipe: Mapping[str, Any]) -> tuple[Paper | None, list[str]]:
    """The paper's figures, and a sentence for everything under `paper` that is not used.

    None where the recipe has no `paper`, or no figure in it can be read, or where the figures are
    of another set (`paper.data`) than the recipe's.
    """
    told = recipe.get("paper")
    if told is None:
        return None, []
    if not isinstance(told, Mapping):
        return None, [f"the recipe's `paper` is a {type(told).__name__}, not a mapping; left out"]
    about, seen = told.get("data"), _name(recipe.get("data"))
    if about is not None and about != seen:
        return None, [
            f"the recipe's `paper` tells figures of {about}, and this run is of {seen}; left out"
        ]
    notes: list[str] = []
    block: dict[str, dict[str, float]] = {}
    for key, values in told.items():
        if key in CLOSENESSES:
            block[str(key)] = _shares(key, values, notes)
        elif key not in ("data", "source", "selected"):
            notes.append(f"the recipe's `paper` has an unknown key {key!r}; left out")
    block = {closeness: values for closeness, values in block.items() if values}
    if not block:
        return None, [*notes, "the recipe's `paper` tells no figure by cosine or euclidean"]
    source = told.get("source")
    return Paper(str(source or "the paper"), str(told.get("selected") or ""), block), notes


def _name(chosen: Any) -> Any:
    """The name in NAME or in {NAME: settings}."""
    return next(iter(chosen), None) if isinstance(chosen, Mapping) else chosen


def _shares(closeness: str, values: Any, notes: list[str]) -> dict[str, float]:
    """The figures of one closeness that are shares; a note for each that is not."""
    if not isinstance(values, Mapping):
        notes.append(f"the recipe's `paper.{closeness}` is not a mapping of metrics; left out")
        return {}
    shares = {}
    for metric, value in values.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if number and math.isfinite(value) and 0 <= value <= 1:
            shares[str(metric)] = float(value)
        else:
            notes.append(
                f"the recipe's `paper.{closeness}` says {metric}: {value}; a share from 0 to 1 was "
                "expected, so it is left out"
            )
    return shares
