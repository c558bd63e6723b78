"""What an encoder eats, row by row: a tensor, or something that makes tensors of its rows when they
are asked for."""

from __future__ import annotations

import torch
from torch import Tensor


class Taken:
    """N rows that are made when they are taken: pictures on disk, for example.

    `shape` is (N, ...) of what all rows together would be, `dtype` their dtype.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype

    def __len__(self) -> int:
        return self.shape[0]

    def take(self, rows: Tensor, keys: Tensor | None = None) -> Tensor:
        """(B, ...) of the rows with these numbers, as evaluation sees them; with a key for each
        row as training does, the same for the same key anywhere.

        It is called from other threads too, for batches that are needed later; what is random in it
        hangs on the keys alone.
        """
        raise TypeError(f"{type(self).__name__} says no take")

    def select(self, rows: Tensor) -> Taken:
        """The rows with these numbers alone; nothing is made yet."""
        raise TypeError(f"{type(self).__name__} says no select")


Inputs = Tensor | Taken


def take(inputs: Inputs, rows: Tensor, keys: Tensor | None = None) -> Tensor:
    """(B, ...) of the rows with these numbers (int64); with keys (B,) as training sees them."""
    if isinstance(inputs, Tensor):
        return inputs.index_select(0, rows)
    return inputs.take(rows, keys)
