"""Similarities in lower precision, and a proven bound of how far they are off; used to screen."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

ROUND = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8}  # of one rounding, and of a cut
FASTER = 1.3  # how much faster bfloat16 must be than float32 to be worth a wider bound


@dataclass(frozen=True)
class Bound:
    """|s - s'| <= flat + steep·|s'| for the product s of two unit rows and s', as it was computed.

    The proof stands in docs/evaluation.md.
    """

    flat: float
    steep: float


def bound_of(dtype: torch.dtype, dim: int, query: float, gallery: float) -> Bound:
    """The bound of a product of D = `dim` terms that is summed in float32, in any order.

    query, gallery  the largest distance of a unit row from its rounded one, on either side
    """
    terms = (dim + 4) * 2.0**-24
    sums = math.expm1(terms)  # at least (1 + 2^-24)^(D + 4) - 1, and finite
    # Rounded rows are no longer than 1 + their distance; 1e-30 covers what underflows.
    size = (1 + query) * (1 + gallery)
    flat = query + gallery * (1 + query) + sums * size + 1e-30
    # A result in float32 is rounded within the sum; one in bfloat16 is rounded once more.
    steep = ROUND[torch.bfloat16] * 1.01 if dtype == torch.bfloat16 else 0.0
    return Bound(flat * (1 + 1e-6) + 1e-14, steep)


def product(queries: Tensor, gallery: Tensor, out: Tensor) -> Tensor:
    """(B, T) = (B, D) x (T, D)ᵀ, written to the first B·T entries of `out`."""
    tile = out[: len(queries) * len(gallery)].view(len(queries), len(gallery))
    return torch.mm(queries, gallery.T, out=tile)


def has_bfloat16() -> bool:
    """Whether bfloat16 products run in units of this processor that sum in float32."""
    try:
        return torch.backends.mkldnn.is_available() and bool(
            torch.ops.mkldnn._is_mkldnn_bf16_supported()
        )
    except (AttributeError, RuntimeError):  # another build of torch
        return False


@lru_cache(maxsize=64)
def seconds_a_pair(dtype: torch.dtype, dim: int, threads: int) -> float:
    """Seconds that one product of two rows takes as part of a tile, on the CPU; measured once."""
    rows, columns = 256, 1024
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(rows, dim, generator=generator).to(dtype)
    g = torch.randn(columns, dim, generator=generator).to(dtype)
    out = torch.empty(rows * columns, dtype=dtype)
    best = math.inf
    for _ in range(4):
        begun = time.perf_counter()
        product(q, g, out)
        best = min(best, time.perf_counter() - begun)
    return best / (rows * columns)


def precisions(dim: int, device: torch.device) -> tuple[torch.dtype, ...]:
    """What can screen on this device, the fastest first. Results do not depend on it."""
    if device.type != "cpu" or not has_bfloat16():
        return (torch.float32,)
    threads = torch.get_num_threads()
    full, short = (seconds_a_pair(dtype, dim, threads) for dtype in (torch.float32, torch.bfloat16))
    return (torch.bfloat16, torch.float32) if full > FASTER * short else (torch.float32,)
