"""One side of a search: rows prepared to be screened, and to be compared in float64."""

from __future__ import annotations

import math
import threading
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nearkin.rows import BLOCK, Rows
from nearkin.search.space import Space, unit

HELD = 80 << 20  # bytes of rounded rows that are kept; beyond them, each use rounds anew


class Side:
    """N rows in a space, with what makes a similarity of a pair.

    rows    as given
    space   how they are compared
    norm    (N,) float64 and half (N,) float64, as `Space.norms` gives them
    factor  (N,) float64: what a row of `source`, less `shift`, is multiplied by to be exact
    dtype   of the rounded unit rows, once `round_to` was called: what products are screened in
    error   the largest distance of a unit row from its rounded one
    as_given  whether `source` gives the rows as they are, in main memory; else `exact`
    """

    def __init__(self, rows: Rows, space: Space):
        self.rows, self.space = rows, space
        count, device = len(rows), rows.device
        self.norm = torch.ones(count, dtype=torch.float64, device=device)
        self.half = torch.zeros(count, dtype=torch.float64, device=device)
        self.factor = torch.ones(count, dtype=torch.float64, device=device)
        self.dtype, self.error = torch.float64, 0.0
        self._kept: Tensor | None = None
        self._last: tuple[slice, Tensor] | None = None
        self._lock = threading.Lock()
        self.as_given = _usable_as_given(rows, space)
        self._shortcut = False
        if space.name != "cosine" and self.as_given:
            self.factor /= space.scale
        for at in self._slices():
            block = rows.block(at)
            if space.name != "cosine":
                self.norm[at], self.half[at] = space.norms(block)
            elif self.as_given:
                length = block.norm(dim=1)
                self.factor[at] = torch.where(length > 0, 1 / length, 0.0)
                # Squares of such rows vanish in float64.
                lost = (length < 1e-100) & (block.abs().amax(1) > 0)
                self.as_given = not bool(lost.any())
        if not self.as_given:
            self.factor.fill_(1.0)

    def __len__(self) -> int:
        return len(self.rows)

    def round_to(self, dtype: torch.dtype, held: int = HELD) -> None:
        """Unit rows are rounded to `dtype` from now on; all are kept if they take `held` bytes.

        Raises ArithmeticError where a rounded row is not finite: no bound would hold.
        """
        self.dtype, self.error, self._last, self._kept = dtype, 0.0, None, None
        self._shortcut = self._fits_float32()
        if len(self) * self.rows.dim * dtype.itemsize <= held:
            self._kept = torch.empty(len(self), self.rows.dim, dtype=dtype, device=self.norm.device)
        for at in self._slices():
            rounded = self._rounded(at)
            off = float((self._units(at) - rounded).norm(dim=1).max())
            if not math.isfinite(off):  # max() below would pass NaN over
                raise ArithmeticError(
                    f"rows {at.start}..{at.stop - 1} are not finite after rounding to {dtype}"
                )
            self.error = max(self.error, off * (1 + 1e-6) + 1e-14)
            if self._kept is not None:
                self._kept[at] = rounded

    def rounded(self, at: slice) -> Tensor:
        """(B, D): unit rows of a slice in `dtype`."""
        if self._kept is not None:
            return self._kept[at]
        with self._lock:
            if self._last is not None and self._last[0] == at:
                return self._last[1]
        rounded = self._rounded(at)
        with self._lock:
            self._last = at, rounded
        return rounded

    def exact(self, index: slice | Tensor) -> Tensor:
        """(B, D) float64: rows whose product, less the right one's half, is the similarity."""
        return self.space.exact(self.rows.block(index))

    def _slices(self) -> list[slice]:
        return [slice(i, min(i + BLOCK, len(self))) for i in range(0, len(self), BLOCK)]

    def _units(self, at: slice) -> Tensor:
        block = self.rows.block(at)
        if self.space.name == "cosine" and self.as_given:
            return block * self.factor[at][:, None]
        return unit(self.space.exact(block))

    def _fits_float32(self) -> bool:
        """Whether all rows, as given and scaled, lie well inside the range of float32.

        Told of the whole side: blocks of another size must round as those that `error` is of.
        """
        size = self.norm if self.space.name != "cosine" else self.factor
        inside = bool(((size > 1e-30) & (size < 1e30)).all())
        return (
            self.as_given
            and inside
            and self.rows.largest < 1e30
            and 1e-30 < self.space.scale < 1e30
        )

    def _rounded(self, at: slice) -> Tensor:
        """`error` is measured of what comes out, so that any way of rounding may be taken."""
        if not self._shortcut:
            return self._units(at).to(self.dtype)
        size = self.norm[at] if self.space.name != "cosine" else self.factor[at]
        x = _tensor(self.source(at)).float()
        if self.space.name == "cosine":
            return (x * size.float()[:, None]).to(self.dtype)
        x = x * (1 / self.space.scale)
        if self.space.middle is not None:
            x -= self.space.middle.float()
        return (x / size.float()[:, None]).to(self.dtype)

    @property
    def narrow(self) -> bool:
        """Whether `source` copies nothing: rows that lie in memory as it gives them."""
        values: Any = self.rows.values
        if isinstance(values, Tensor):
            kinds, in_order = (torch.float32, torch.float64), values.is_contiguous()
        else:
            kinds, in_order = (np.float32, np.float64), values.flags.c_contiguous
        return self.as_given and in_order and values.dtype in kinds

    def source(self, at: slice) -> np.ndarray:
        """(B, D) as given, in float32 or float64, copied only where it must; else `exact`."""
        if not self.as_given:
            return np.ascontiguousarray(self.exact(at).numpy())
        values: Any = self.rows.values[at]
        if isinstance(values, Tensor):
            wide = values.dtype == torch.float64
            values = values.to("cpu", torch.float64 if wide else torch.float32)
            return values.contiguous().numpy()
        kind = np.float64 if values.dtype.itemsize > 4 else np.float32
        return np.require(np.asarray(values), kind, ["C", "A"])

    @property
    def shift(self) -> np.ndarray:
        """(D,) float64: what is taken off rows of `source` first; empty for nothing."""
        if self.space.middle is None or not self.as_given:
            return np.zeros(0)
        return (self.space.middle * self.space.scale).cpu().numpy()


def _tensor(array: np.ndarray) -> Tensor:
    """A tensor that is only read; torch warns of arrays that cannot be written to."""
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def _usable_as_given(rows: Rows, space: Space) -> bool:
    """Whether products of the rows as they are lose nothing in float64.

    Where rows are shifted, both sides must answer alike: so it is the scale of both that tells.
    """
    if rows.device.type != "cpu":
        return False
    return rows.largest < 1e100 if space.name == "cosine" else 1e-100 < space.scale < 1e100
