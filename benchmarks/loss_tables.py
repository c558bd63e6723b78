"""What the benchmark of losses found, as tables, and what must hold of it; nothing is measured
here."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from loss_memory import needs_columns

CLOSE_TO_FLOOR = {"contrastive", "multi_similarity", "supcon"}
TRIPLETS = {(128, 128): 3.5, (512, 512): 25.0, (2048, 512): 8.0}
CUBIC = ("lifted_structure", "histogram", "infonce")


@dataclass(frozen=True)
class Taken:
    """Seconds of one step: median and best of its measures; how many there are."""

    median: float
    best: float
    count: int


@dataclass(frozen=True)
class Timed:
    """One line of the table of times; `peer` is None where there is none or it was not run."""

    name: str
    rows: int
    dim: int
    each: int
    floor: Taken
    ours: Taken
    peer: Taken | None
    note: str

    @property
    def ratio(self) -> float:
        """Of the medians: above 1 ours is faster."""
        return self.peer.median / self.ours.median if self.peer else float("nan")

    @property
    def above(self) -> float:
        """Ours over the floor, of the medians."""
        return self.ours.median / self.floor.median


@dataclass(frozen=True)
class Check:
    """What must hold: a figure and its limit."""

    what: str
    figure: float
    limit: float
    at_least: bool

    @property
    def holds(self) -> bool:
        """Whether the figure keeps the limit."""
        return self.figure >= self.limit if self.at_least else self.figure <= self.limit

    def __str__(self) -> str:
        sign = ">=" if self.at_least else "<="
        said = "pass" if self.holds else "FAIL"
        return f"{said}  {self.what}: {self.figure:.2f} {sign} {self.limit:g}"


# --- what must hold


def time_checks(found: Sequence[Timed]) -> list[Check]:
    checks = []
    for row in found:
        where = f"{row.name}, B={row.rows}, d={row.dim}"
        plain = row.each == 4
        if row.peer:
            checks.append(Check(f"peer/ours, {where}, {row.each} a class", row.ratio, 0.9, True))
        if plain and row.name == "triplet" and row.peer and (row.rows, row.dim) in TRIPLETS:
            limit = TRIPLETS[row.rows, row.dim]
            checks.append(Check(f"peer/ours, {where}", row.ratio, limit, True))
        if not plain and row.rows == 1024:
            checks.append(Check(f"peer/ours, {where}, 64 a class", row.ratio, 90, True))
        if row.name in CUBIC and row.rows == 128 and row.peer:
            checks.append(Check(f"peer/ours, {where}", row.ratio, 100, True))
        if plain and (row.rows, row.dim) == (2048, 512) and not needs_columns(row.name):
            limit = 2.4 if row.name in CLOSE_TO_FLOOR else 3.0
            checks.append(Check(f"ours/floor, {where}", row.above, limit, False))
    for dim in sorted({row.dim for row in found}):
        ratios = [r.ratio for r in found if r.peer and (r.rows, r.dim) == (512, dim)]
        if ratios:
            middle = statistics.median(ratios)
            compiled = "nearkin.passes" in sys.modules
            what = f"median of peer/ours over {len(ratios)} losses, B=512, d={dim}"
            what += ", compiled" if compiled else ", plain torch"
            checks.append(Check(what, middle, 3.0 if compiled else 2.5, True))
    return checks


def memory_checks(found: Mapping[str, Mapping[str, float]], rows: int) -> list[Check]:
    checks = []
    for name, taken in found.items():
        limit = {"multi_similarity": 4, "supcon": 4, "contrastive": 8}.get(name, 16)
        limit = 8 if "triplet" in name and not needs_columns(name) else limit
        units = taken["ours"] / taken["unit"]
        checks.append(Check(f"matrices held, {name}, B={rows}", units, limit, False))
        if name in ("angular", "angular_hinge", "quadruplet"):
            gigabytes = taken["ours"] / 1e9
            checks.append(Check(f"GB held, {name}, B={rows}", gigabytes, 1, False))
    return checks


def class_checks(
    found: Sequence[Timed], held: Mapping[str, Mapping[str, float]], classes: int
) -> list[Check]:
    checks = [
        Check(f"ours/three products, {row.name}, K={row.each:,}", row.above, 1.1, False)
        for row in found
    ]
    for name, taken in held.items():
        what = f"GB beyond weights and gradient, {name}, K={classes:,}"
        checks.append(Check(what, taken["ours"] / 1e9, 1, False))
    return checks


# --- what is written


def time_table(found: Sequence[Timed], columns: str = "a class") -> list[str]:
    lines = [
        f"| loss | B | d | {columns} | floor ms | peer ms (best) | ours ms (best) | peer/ours "
        "(best) "
        "| ours/floor | |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    for row in sorted(found, key=lambda r: (r.rows, r.dim, r.each)):
        peer = ratio = "-"
        if row.peer:
            peer = f"{row.peer.median * 1e3:.3g} ({row.peer.best * 1e3:.3g})"
            peer += " once" if row.peer.count == 1 else ""
            ratio = f"{row.ratio:.2f} ({row.peer.best / row.ours.best:.2f})"
        lines.append(
            f"| {row.name} | {row.rows} | {row.dim} | {row.each} | {row.floor.median * 1e3:.3g} "
            f"| {peer} | {row.ours.median * 1e3:.3g} ({row.ours.best * 1e3:.3g}) "
            f"| {ratio} | {row.above:.2f} | {row.note} |"
        )
    return lines


def memory_table(found: Mapping[str, Mapping[str, float]], rows: int) -> list[str]:
    lines = [
        "| loss | matrix | MiB | peer: matrices | ours: matrices |",
        "|---|---|---:|---:|---:|",
    ]
    for name, taken in found.items():
        peer = f"{taken['peer'] / taken['unit']:.1f}" if "peer" in taken else "-"
        columns = round(taken["unit"] / 4 / rows)
        lines.append(
            f"| {name} | {rows} x {columns} | {taken['unit'] / 2**20:.0f} | {peer} "
            f"| {taken['ours'] / taken['unit']:.1f} |"
        )
    return lines
