"""Batch samplers by name for any DataLoader; how they draw stands in sample."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nearkin.catalog import did_you_mean
from nearkin.checks import broken_row, check_rows, count
from nearkin.config import build
from nearkin.core import warn_once
from nearkin.information.codes import coded
from nearkin.sample import Sampler


def sampler(name: str, labels: Any, *, seed: int = 0, **settings: Any) -> BatchSampler:
    """A batch sampler by name for any DataLoader: `DataLoader(data, batch_sampler=sampler)`.

    labels      (N,) integers or strings; or a dict of columns, for samplers that read others:
                integers or strings too, and `embedding` (N, D) floating
    seed        at least 0; batches are a function of the seed and the epoch
    settings    of the sampler

    Raises ValueError for unknown names and settings, with the nearest known one, and for labels
    that do not go with them.
    """
    if labels is None:
        raise ValueError("a sampler needs labels, one entry a row, or a dict of columns, not None")
    columns = labels if isinstance(labels, Mapping) else {"label": labels}
    chosen: Sampler = build({name: settings}, "sampler", {}, "sampler")
    for key in chosen.needs:
        if key not in columns:
            hint = did_you_mean(key, columns)
            if not isinstance(labels, Mapping):
                hint = f"{{'label': labels, {key!r}: ...}}"
            raise ValueError(
                f"the sampler {name!r} reads the column {key!r}; give it in a dict of columns "
                f"({hint})"
            )
    rows = {
        str(key): np.shape(column)[0] if np.ndim(column) else 0 for key, column in columns.items()
    }
    if len(set(rows.values())) > 1 or not min(rows.values()):
        said = ", ".join(f"{key} {many}" for key, many in rows.items())
        raise ValueError(f"a sampler needs one entry a row in every column; these have {said}")
    read = {
        key: (
            _vectors(columns[key], key)
            if key in chosen.vectors
            else _ordered(columns[key], key, rows[key])
        )
        for key in chosen.needs
    }
    return BatchSampler(chosen, read, count(seed, "seed", 0) or 0)


def _vectors(column: Any, what: str) -> Tensor:
    """(N, D) floating numbers on the CPU, off their graph."""
    rows = column if isinstance(column, Tensor) else torch.as_tensor(np.asarray(column))
    check_rows(rows, f"the column {what!r}")
    row = broken_row(rows)
    if row is not None:
        raise ValueError(
            f"the column {what!r} holds NaN or infinity (first in row {row}); mend these rows or "
            "leave them out"
        )
    return rows.detach().cpu()


def _ordered(column: Any, what: str, length: int) -> Tensor:
    """Labels as integers; strings by their place in the alphabet."""
    texts: list[str] = []
    place = coded(column, what, length, lambda name: (texts.append(name), len(texts) - 1)[1])
    if not texts:
        return place.cpu()
    return torch.from_numpy(np.argsort(np.argsort(texts)))[place]


class BatchSampler:
    """Batches of row numbers, other ones each time it is iterated; made by `nearkin.sampler`."""

    def __init__(self, chosen: Sampler, columns: dict[str, Tensor], seed: int):
        self.chosen, self.columns, self.seed, self.epoch = chosen, columns, seed, 0
        for remark in chosen.remarks(columns):
            if "repeat" in remark:
                warn_once(remark)

    def set_epoch(self, epoch: int) -> None:
        """Make the next iteration that of the given epoch; iterations count on by themselves."""
        self.epoch = count(epoch, "epoch", 0) or 0

    def __len__(self) -> int:
        return self.chosen.count(self.columns, self.seed, self.epoch)

    def __iter__(self) -> Iterator[list[int]]:
        batches = self.chosen.batches(self.columns, self.seed, self.epoch)
        self.epoch += 1
        for rows in batches:
            yield rows.tolist()
