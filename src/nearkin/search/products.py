"""Products of rows in low precision: which library makes them, how fast, and in full precision."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from nearkin.multiply import by_onednn, onednn_sums_in_float32
from nearkin.search.tiles import Shared

FASTER = 1.3  # how much faster bfloat16 must be than float32 to be worth a wider bound
TRIED = (256, 1024)  # rows on both sides of the products that are timed

Way = Callable[[Tensor, Tensor, Tensor], Tensor]


def product(queries: Tensor, gallery: Tensor, out: Tensor) -> Tensor:
    """(B, T) = (B, D) x (T, D)ᵀ; may be written to the first B·T entries of `out`.

    In float32 on a CPU by the faster one of torch's BLAS and oneDNN, which on some processors is
    twice as fast. The bound of `screen.bound_of` holds for both: each sums in float32.
    """
    if queries.dtype == torch.float32 and queries.device.type == "cpu":
        return _fastest(queries.shape[1])(queries, gallery, out)
    return _by_blas(queries, gallery, out)


def _by_blas(queries: Tensor, gallery: Tensor, out: Tensor) -> Tensor:
    tile = out[: len(queries) * len(gallery)].view(len(queries), len(gallery))
    return torch.mm(queries, gallery.T, out=tile)


def _by_onednn(queries: Tensor, gallery: Tensor, out: Tensor) -> Tensor:
    """`out` stays as it is: oneDNN makes a tensor of its own."""
    return by_onednn(queries, gallery)


@lru_cache(maxsize=64)
def _fastest(dim: int) -> Way:
    """What makes float32 products of rows of `dim` entries fastest; measured once."""
    with full_float32():
        if not onednn_sums_in_float32(dim):
            return _by_blas
        taken = {way: _seconds(way, torch.float32, dim) for way in (_by_blas, _by_onednn)}
    return min(taken, key=lambda way: taken[way])


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
    return _seconds(product, dtype, dim)


def _seconds(way: Way, dtype: torch.dtype, dim: int) -> float:
    rows, columns = TRIED
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(rows, dim, generator=generator).to(dtype)
    g = torch.randn(columns, dim, generator=generator).to(dtype)
    out = torch.empty(rows * columns, dtype=dtype)
    best = math.inf
    for _ in range(4):
        begun = time.perf_counter()
        way(q, g, out)
        best = min(best, time.perf_counter() - begun)
    return best / (rows * columns)


def precisions(dim: int, device: torch.device) -> tuple[torch.dtype, ...]:
    """What can screen on this device, the fastest first. Results do not depend on it."""
    if device.type != "cpu" or not has_bfloat16():
        return (torch.float32,)
    threads = torch.get_num_threads()
    full, short = (seconds_a_pair(dtype, dim, threads) for dtype in (torch.float32, torch.bfloat16))
    return (torch.bfloat16, torch.float32) if full > FASTER * short else (torch.float32,)


@contextmanager
def full_float32() -> Iterator[None]:
    """Products of float32 in float32, whatever was allowed before: the bound is that of float32."""
    with _FULL.held():
        yield


def _to_full_float32() -> Callable[[], None]:
    try:
        before = torch.get_float32_matmul_precision()
    except RuntimeError:  # it was set through torch's newer switches, one for each library
        return _each_in_full()
    torch.set_float32_matmul_precision("highest")
    return lambda: torch.set_float32_matmul_precision(before)


def _each_in_full() -> Callable[[], None]:
    places: list[Any] = [torch.backends.cuda.matmul, torch.backends.mkldnn.matmul]  # type: ignore[attr-defined]
    before = [place.fp32_precision for place in places]
    for place in places:
        place.fp32_precision = "ieee"

    def back() -> None:
        """As it was."""
        for place, precision in zip(places, before, strict=True):
            place.fp32_precision = precision

    return back


_FULL = Shared(_to_full_float32)
