"""Floors: what features of the test split give without training: raw, standardized, whitened.
A trained figure under them bought nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from nearkin.data.base import Table
from nearkin.inputs import Inputs, take
from nearkin.measure import QUICK, block, evaluate_table
from nearkin.whitening import (
    LARGEST,
    Score,
    choose_shrinkage,
    scatter,
    standardizing,
    whitening,
)

FLOORS = ("raw", "standardized", "whitened")


def has_features(table: Table) -> bool:
    """Whether the rows of a table are features: flat rows of floating numbers, 8,192 at most."""
    inputs = table.inputs
    if not isinstance(inputs, Inputs) or not inputs.dtype.is_floating_point:
        return False
    return len(inputs.shape) == 2 and inputs.shape[1] <= LARGEST


def floors(
    train: Table, validation: Table | None, test: Table, metrics: Sequence[str], seed: int
) -> dict[str, Any]:
    """{"raw": block, "standardized": block, "whitened": block} of the test rows by cosine.

    Each block is as under "test" in metrics.json. The shrinkage of the whitening is chosen by
    recall@1 (then map@r) of the validation classes under a map fitted on the training classes; the
    maps that are measured are fitted on both. A floor thus knows every class that a run may look
    at. The whitened block says "shrinkage" and "chosen_on": "validation" or "default".

    metrics   names; "information", "nmi" and "ami" are left out

    Several processes share the queries; all of them must ask. Raises ValueError for rows that hold
    NaN or infinity.
    """
    ranked = ranking_metrics(metrics)
    inputs = _features(train)
    found = scatter(inputs, train.label)
    rows = None if validation is None else _features(validation)
    score = None if validation is None else validation_score(validation, seed)
    shrinkage, chosen_on = choose_shrinkage(found, rows, score)
    if validation is not None and rows is not None:
        found = found + scatter(rows, validation.label)
    tested = _features(test)
    said = {
        "raw": take(tested, torch.arange(len(tested))),
        "standardized": standardizing(found)(tested),
        "whitened": whitening(found, shrinkage)(tested),
    }
    blocks = {name: block(z, test, ranked, seed, ("cosine",)) for name, z in said.items()}
    blocks["whitened"] |= {"shrinkage": shrinkage, "chosen_on": chosen_on}
    return blocks


def ranking_metrics(metrics: Sequence[str]) -> list[str]:
    """Those of a ranking; recall@1 and map@r where none is named."""
    return [m for m in metrics if m not in ("nmi", "ami", "information")] or list(QUICK)


def validation_score(table: Table, seed: int) -> Score:
    """(N, D) embeddings of the table -> (recall@1, map@r) by cosine."""

    def score(z: torch.Tensor) -> tuple[float, ...]:
        """Raises ValueError where no row has a relevant one."""
        result = evaluate_table(z, table, QUICK, "cosine", seed)
        return tuple(result[name] for name in QUICK)

    return score


def _features(table: Table) -> Inputs:
    assert isinstance(table.inputs, Inputs)
    return table.inputs
