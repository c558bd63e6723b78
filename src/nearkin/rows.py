"""Embeddings as users give them: checked once, read as float64 block by block."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

BLOCK = 2048  # rows converted to float64 at a time
CHECKED = 1 << 17  # entries that are looked at together when rows are checked: 1 MiB


class Rows:
    """N embeddings of D dimensions, read as float64 block by block: never copied as a whole.

    values: numpy array, torch tensor or nested list, (N, D), of any float dtype. CUDA tensors stay
    where they are; every other device is read into main memory block by block.
    Raises TypeError for entries that are no floats, ValueError for another shape, for no rows and
    for NaN or infinite entries (naming the first such row).
    """

    def __init__(self, values: Any, name: str = "z"):
        if isinstance(values, Tensor):
            values = values.detach()
            floating, dtype = values.dtype.is_floating_point, str(values.dtype)
        else:
            values = np.asarray(values)
            floating, dtype = values.dtype.kind == "f", str(values.dtype)
        if values.ndim != 2:
            raise ValueError(
                f"{name} must be a matrix (N, D), one row an item, but its shape is "
                f"{shape_of(values)}"
            )
        if not floating:
            raise TypeError(
                f"{name} must hold floating-point numbers, not {dtype}; convert it to float32"
            )
        if 0 in values.shape:
            raise ValueError(f"{name} is empty: its shape is {shape_of(values)}")
        self.values = values
        self.device = (
            values.device
            if isinstance(values, Tensor) and values.device.type == "cuda"
            else torch.device("cpu")
        )
        self.largest = self._checked(name)

    def __len__(self) -> int:
        return len(self.values)

    @property
    def dim(self) -> int:
        """D."""
        return self.values.shape[1]

    def block(self, rows: slice | Tensor) -> Tensor:
        """(B, D) float64: the rows of a slice or of an index (B,) int64, as a copy or a view."""
        if isinstance(self.values, Tensor):
            at = rows if isinstance(rows, slice) else rows.to(self.values.device)
            return self.values[at].to(self.device).to(torch.float64)
        index = rows if isinstance(rows, slice) else rows.cpu().numpy()
        return torch.from_numpy(np.array(self.values[index], dtype=np.float64))

    def blocks(self, size: int = BLOCK) -> Iterator[Tensor]:
        """All rows in their order, `size` at a time, float64."""
        for start in range(0, len(self), size):
            yield self.block(slice(start, start + size))

    def _checked(self, name: str) -> float:
        """The largest absolute entry; raises where one is not finite."""
        # Written to one tensor: small ones kept between blocks would keep these from being freed.
        peaks = torch.empty(len(self), dtype=torch.float64)
        size = max(16, CHECKED // self.dim)
        for start in range(0, len(self), size):
            block = self.block(slice(start, start + size))
            peaks[start : start + size] = block.abs().amax(1)
        broken = (~peaks.isfinite()).nonzero()[:, 0]
        if len(broken):
            raise ValueError(
                f"{name} has NaN or infinite entries in {len(broken)} of {len(self)} rows, "
                f"first in row {int(broken[0])}; leave these rows out or mend the encoder"
            )
        return float(peaks.max())


def shape_of(array: Any) -> tuple[int, ...]:
    """The shape as plain integers, as messages show it."""
    return tuple(int(size) for size in array.shape)
