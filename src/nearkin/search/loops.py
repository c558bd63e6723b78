"""The compiled loops and what they read: sides, tiles and bounds as arrays."""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nearkin import fast
from nearkin.search.screen import Bound
from nearkin.search.side import Side
from nearkin.search.space import TIE

WORTH = 1 << 24  # pairs of rows from which on plain torch takes longer than what it spares


def compiled() -> Any:
    """The compiled loops; None without numba (extra `fast`), where plain torch gives the same."""
    return fast.loops("nearkin.search.compiled")


def compiled_for(pairs: int) -> Any:
    """The compiled loops where they are worth their first use, which takes seconds; else None."""
    return compiled() if pairs >= WORTH or "nearkin.search.compiled" in sys.modules else None


def installed(pairs: int) -> bool:
    """Whether the loops are to be expected: the same in all processes of one environment."""
    return pairs >= WORTH and importlib.util.find_spec("numba") is not None


def side_arrays(side: Side) -> tuple[np.ndarray, ...]:
    """factor, norm, half, weight, cut of all rows, as `compiled.Part` names them."""
    norm, half = side.norm.numpy(), side.half.numpy()
    cut = (half * (1 - 1e-6)).astype(np.float32)
    return side.factor.numpy(), norm, half, norm.astype(np.float32), cut


def terms_of(loops: Any, side: Side, bound: Bound, reach: float) -> Any:
    """How tiles of this side, rounded as it is now, are to be read."""
    return loops.Terms(
        16 if side.dtype == torch.bfloat16 else 0,
        bound.flat,
        bound.steep,
        np.float32(reach),
        side.space.name == "cosine",
        side.space.name == "euclidean",
        TIE / 2,
        side.shift,
    )


def bits_of(tile: Tensor) -> np.ndarray:
    """The bits of a tile as integers of its width."""
    return tile.view(torch.int16 if tile.dtype == torch.bfloat16 else torch.int32).numpy()
