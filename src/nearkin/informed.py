"""`nearkin information`: how many bits embeddings know of their labels, and how far the estimators
are to be trusted on tasks of known truth."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nearkin.data.npz import read_arrays
from nearkin.information.calibration import (
    calibrate,
    consistency,
    full_tasks,
    quick_tasks,
)
from nearkin.information.labels import VIEWS, label_information
from nearkin.measured import test_rows
from nearkin.run_folder import RunFolder

Progress = Callable[[int, int], None]

WORDS = {
    "probe": "at least, by a probe on rows it has not seen",
    "neighbors": "about, by nearest neighbors",
    "generative": "monitor only: H(Z) - H(Z|Y), in its own units",
}
QUICK = {"rows": 2000, "steps": 300, "batch": 64}
FULL = {"rows": 10_000, "steps": 3000, "batch": 128}


def check(source: str | None, calibrate: bool, estimators: str | None, full: bool) -> None:
    """Raise ValueError for arguments of the command that do not go together."""
    if (source is None) != calibrate:
        both = "; not both" if calibrate else ""
        raise ValueError(
            f"give a run or an .npz file with embeddings and labels, or --calibrate{both}"
        )
    if not calibrate and (estimators is not None or full):
        raise ValueError("--estimators and --full go with --calibrate; leave them out")


def answer(
    source: str | None,
    estimators: str | None,
    full: bool,
    seed: int,
    progress: Progress,
    width: int,
) -> tuple[dict[str, Any], str]:
    """What the command says, as JSON and for people; without a source the calibration."""
    if source is not None:
        found = measure(source, seed=seed)
        return found, table(found, source, width)
    names = [name.strip() for name in (estimators or "").split(",") if name.strip()]
    found = calibration(names or None, full=full, seed=seed, progress=progress)
    return found, calibration_table(found, width)


def measure(source: str | Path, *, seed: int = 0) -> dict[str, Any]:
    """{"rows", "classes", "ceiling", "probe": {...}, "neighbors": {...}, "generative": {...}} in
    bits.

    source   a finished run folder (its test embeddings), or an .npz with embeddings and labels

    A view that says nothing is {"bits": None, "reason": ...}. Raises ValueError or OSError for what
    cannot be read, and where labels are no classes or of one class.
    """
    path = Path(source)
    z, labels = _of_file(path) if path.suffix.lower() == ".npz" else _of_run(path)
    said: dict[str, Any] = {}
    try:
        found = label_information(z, labels, seed)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from None
    said = {"rows": len(z), "classes": len(set(np.asarray(labels).tolist()))}
    said |= {"ceiling": found.ceiling, "probe": found.to_dict()}
    for view in VIEWS[1:]:
        try:
            said[view] = label_information(z, labels, seed, by=view).to_dict()
        except ValueError as error:
            said[view] = {"bits": None, "reason": str(error)}
    return said


def _of_file(path: Path) -> tuple[Any, Any]:
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}; give a run, or embeddings as .npz")
    held = read_arrays(path)
    missing = [name for name in ("embeddings", "labels") if name not in held]
    if missing:
        raise ValueError(
            f"{path} has no array {missing[0]!r}; it has {', '.join(sorted(held)) or 'none'}"
        )
    return held["embeddings"], held["labels"]


def _of_run(path: Path) -> tuple[Any, Any]:
    if path.is_file():
        raise ValueError(f"{path} is a file; give a run folder, or embeddings as .npz")
    folder = RunFolder(path)
    folder.check_format()
    table = test_rows(folder)
    assert isinstance(table.inputs, torch.Tensor)
    return table.inputs, table.label.numpy()


def table(found: dict[str, Any], source: str, width: int = 100) -> str:
    """What `measure` found, for people."""
    rows = [("", "bits", "95 %", "kind", "how")]
    for view in VIEWS:
        said = found[view]
        if said["bits"] is None:
            rows.append((view, "", "", "", said["reason"]))
            continue
        kind = {"lower": "lower bound", "neither": "no bound"}[said["kind"]]
        interval = f"{said['low']:.2f} to {said['high']:.2f}"
        rows.append((view, f"{said['bits']:.2f}", interval, kind, WORDS[view]))
    left_out = found["probe"]["left_out"]
    lines = [
        f"{source}: I(Z;Y), bits",
        _table(rows, width),
        f"{found['rows']} rows, {found['classes']} classes; ceiling H(Y) {found['ceiling']:.2f}"
        + (f"; {left_out} rows alone in their class left out" if left_out else ""),
    ]
    return "\n".join(lines)


def calibration(
    estimators: Sequence[str] | None = None,
    *,
    full: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """{"rows", "steps", "batch", "seed", "cells": [...], "consistency": {...}}: the estimators
    named (default: all) on the quick tasks or the full ones; numbers in nats."""
    settings, tasks = (FULL, full_tasks()) if full else (QUICK, quick_tasks())
    cells = calibrate(tasks, estimators, seed=seed, progress=progress, **settings)
    return {
        **settings,
        "seed": seed,
        "cells": [cell.to_dict() for cell in cells],
        "consistency": consistency(cells),
    }


def calibration_table(found: dict[str, Any], width: int = 100) -> str:
    """Estimators by tasks, a few tasks a table, then the consistency checks."""
    cells = {(cell["estimator"], cell["task"]): cell for cell in found["cells"]}
    truths = {cell["task"]: cell["truth"] for cell in found["cells"]}
    said = [
        f"{found['rows']} pairs a task, {found['steps']} steps of {found['batch']} at most, seed "
        f"{found['seed']}; nats ± one standard error; ! marks a bound that is on the wrong side by "
        "more than three"
    ]
    per_table = max(1, (width - 30) // 17)
    for start in range(0, len(truths), per_table):
        some = list(truths)[start : start + per_table]
        truth = ("truth", "", *(f"{truths[name]:.2f}" for name in some))
        rows: list[tuple[str, ...]] = [("", "", *some), truth]
        for name in dict.fromkeys(estimator for estimator, task in cells if task in some):
            row = [cells.get((name, task), {}) for task in some]
            kind = next((cell["kind"] for cell in row if "kind" in cell), "")
            rows.append((name, kind, *map(_shown, row)))
        said.append(_table(rows, width))
    checks = found["consistency"]
    if checks:
        rows = [("", "independent (0)", "with noise / whole (< 1)", "two copies / one (2)")]
        for name, row in checks.items():
            keys = ("independent", "processed", "doubled")
            rows.append((name, *(f"{row[key]:.2f}" if key in row else "" for key in keys)))
        said.append(_table(rows, width))
    failed = [
        f"{name} on {task}: {cell['reason']}"
        for (name, task), cell in cells.items()
        if "reason" in cell
    ]
    return "\n\n".join([*said, *failed])


def _shown(cell: Mapping[str, Any]) -> str:
    if not cell:
        return ""
    if cell["estimate"] is None:
        return "no estimate"
    return f"{cell['estimate']:.2f} ± {cell['error']:.2f}{' !' if cell['broken'] else ''}"


def _table(rows: list[tuple[str, ...]], width: int) -> str:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    made = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for place, head in enumerate(rows[0]):
        made.add_column(head, justify="right" if place > 0 and len(rows[0]) > 5 else "left")
    for row in rows[1:]:
        made.add_row(*row)
    console = Console(width=width, file=io.StringIO(), record=True)
    console.print(made)
    return "\n".join(line.rstrip() for line in console.export_text().rstrip().splitlines())
