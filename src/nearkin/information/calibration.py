"""Estimators on tasks of known truth: what each says, how far off it is, which bounds break."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from nearkin.information import tasks as known
from nearkin.information.base import Information
from nearkin.information.estimate import ESTIMATORS
from nearkin.information.labels import label_information
from nearkin.information.samples import samples
from nearkin.information.tasks import Task

BROKEN = 3.0  # standard errors beyond the truth at which a bound counts as broken
PROBE = "probe"  # the lower bound of nk.label_information


@dataclass(frozen=True)
class Cell:
    """One estimator on one task; a reason instead of an estimate where it could not say any.

    within   the estimate misses the truth by at most 3 standard errors
    broken   it is a bound and on the wrong side of the truth by more than that
    """

    estimator: str
    task: Task
    found: Information | None
    reason: str = ""

    @property
    def off(self) -> float:
        """Estimate minus truth in standard errors; NaN where there is none."""
        if self.found is None or not self.found.error:
            return math.nan
        return (self.found.nats - self.task.nats) / (self.found.error * math.log(2))

    @property
    def within(self) -> bool:
        """Whether the truth is no further than 3 standard errors."""
        return abs(self.off) <= BROKEN

    @property
    def broken(self) -> bool:
        """Whether a bound is on the wrong side by more than 3 standard errors."""
        kind = self.found.kind if self.found else "neither"
        return (kind == "lower" and self.off > BROKEN) or (kind == "upper" and self.off < -BROKEN)

    def to_dict(self) -> dict[str, Any]:
        """For JSON; numbers in nats."""
        said: dict[str, Any] = {
            "estimator": self.estimator,
            "task": self.task.name,
            "truth": self.task.nats,
        }
        if self.found is None:
            return {**said, "estimate": None, "reason": self.reason}
        assert self.found.error is not None
        return {
            **said,
            "estimate": self.found.nats,
            "error": self.found.error * math.log(2),
            "kind": self.found.kind,
            "broken": self.broken,
        }


def quick_tasks() -> list[Task]:
    """A few of each sort: normal, many dimensions, maps, tails, much information, none, classes."""
    base = known.gaussian(1.0, 5)
    return [
        known.independent(5),
        base,
        known.processed(1.0, 5),
        base.doubled(),
        known.two_pair(3).mapped("2-pair spiral 3 x 3", known.spiral(0, 1), known.spiral(1, 2)),
        known.asinh_student(5, 2),
        known.additive(0.1),
        known.cubic(2.0, 20),
        known.gaussian(6.0, 20),
        known.classes(3.0, 4, 5),
        known.overlapping(5),
    ]


def full_tasks() -> list[Task]:
    """All families, and the correlated Gaussians of 2 to 10 nats, plain and cubic."""
    ladder = [make(nats) for make in (known.gaussian, known.cubic) for nats in (2, 4, 6, 8, 10)]
    quick = [task for task in quick_tasks() if "20 x 20" not in task.name]
    named = {task.name: task for task in [*quick, *known.benchmark(), *ladder]}
    return list(named.values())


def calibrate(
    tasks: Sequence[Task],
    estimators: Sequence[str] | None = None,
    *,
    rows: int = 2000,
    steps: int = 300,
    batch: int = 64,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[Cell]:
    """Each estimator on each task that it is made for, with `rows` pairs, one sample a task.

    estimators   names of `nk.mutual_information`, and probe for that of labels; default all
    rows         pairs; those that learn train on 48 % of them and report on 40 %
    steps        of training, at most
    batch        pairs a step, K: the ceiling of infonce is log K

    Raises ValueError for an unknown estimator.
    """
    every = [*ESTIMATORS, PROBE]
    chosen = list(estimators or every)
    for name in chosen:
        if name not in every:
            raise ValueError(f"there is no estimator {name!r}; known: {', '.join(every)}")
    todo = [(name, task) for task in tasks for name in chosen if _fits(name, task)]
    cells = []
    for done, (name, task) in enumerate(todo):
        if progress is not None:
            progress(done, len(todo))
        taken = inspect.signature(ESTIMATORS[name]).parameters if name in ESTIMATORS else {}
        settings = {"steps": steps, "batch": batch} if "steps" in taken else {}
        cells.append(_cell(name, task, rows, seed, settings))
    return cells


def _fits(name: str, task: Task) -> bool:
    return (name in ("mixed", PROBE)) == (task.of == "classes")


def _cell(name: str, task: Task, rows: int, seed: int, settings: dict[str, Any]) -> Cell:
    x, y = task.sample(rows, seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the table itself says what is off
        try:
            if name == PROBE:
                return Cell(name, task, label_information(x, y, seed))
            return Cell(name, task, ESTIMATORS[name](samples(x, y, seed), **settings))
        except ValueError as error:
            return Cell(name, task, None, str(error))


def consistency(cells: Sequence[Cell]) -> dict[str, dict[str, float]]:
    """Of each estimator the three checks of Song & Ermon 2020: `independent`, what it finds where
    there is nothing (0); `processed`, its share of what noise leaves (at most 1); `doubled`, how
    many times more two copies have (2). Nats; without what was not measured."""
    base = known.gaussian(1.0, 5)
    names = {
        "independent": known.independent(5).name,
        "processed": known.processed(1.0, 5).name,
        "doubled": base.doubled().name,
    }
    value = {(c.estimator, c.task.name): c.found.nats for c in cells if c.found is not None}
    said: dict[str, dict[str, float]] = {}
    for estimator in dict.fromkeys(cell.estimator for cell in cells):
        whole = value.get((estimator, base.name))
        row = {}
        for check, task in names.items():
            seen = value.get((estimator, task))
            if seen is not None and check == "independent":
                row[check] = seen
            elif seen is not None and whole:
                row[check] = seen / whole
        if row:
            said[estimator] = row
    return said
