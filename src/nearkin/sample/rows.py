"""Batches of rows, whatever their classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from nearkin.sample.base import Batches, Sampler, generator


class Uniform(Sampler):
    """Rows at random without replacement; the incomplete last batch is dropped (the paper's)."""

    name: ClassVar[str] = "uniform"

    def __init__(self, batch: int = 128):
        if batch < 2:
            raise ValueError(f"a batch needs at least 2 rows, not {batch}")
        self.batch = batch

    def batches(self, columns: Mapping[str, Tensor], seed: int, epoch: int) -> Batches:
        """floor(N / batch) batches; a table smaller than one batch is one batch."""
        rows = len(columns["label"])
        order = torch.from_numpy(generator(seed, epoch).permutation(rows))
        if rows < self.batch:
            return [order]
        return list(order[: rows // self.batch * self.batch].split(self.batch))

    def remarks(self, columns: Mapping[str, Tensor]) -> list[str]:
        """How many rows an epoch covers."""
        rows = len(columns["label"])
        if rows < self.batch:
            return [f"the table has {rows} rows, so each batch holds {rows} and not {self.batch}"]
        count = rows // self.batch
        return [f"an epoch of {count} batches covers {count * self.batch} of {rows} rows"]
