"""Products of two matrices without a gradient, by the faster one of two libraries. Imports torch
only."""

from __future__ import annotations

import contextlib
import os
import platform
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

LARGE = 1 << 22  # multiplications from which on oneDNN's own start of about 10 µs is worth it
SORTS = 256  # of products that oneDNN makes: it keeps code of about 0.7 MB for each
_sorts: set[tuple[int, ...]] = set()


def times(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """(N, M) = a (N, K) x b (K, M), into `out` where it is given. Without gradients.

    Large float32 ones on processors of AMD with AVX-512 are made by oneDNN: MKL, which is torch's
    BLAS, has no AVX-512 for them and takes twice as long. Which of the two is settled by what the
    machine is, not by the clock, so that a run rounds alike when it is repeated. Of more than 256
    sizes in one process, the first ones get it.
    """
    if is_large(a, b) and _may_be_onednn(a, b):
        found = by_onednn(a, b.T)
        return found if out is None else out.copy_(found)
    return torch.mm(a, b, out=out)


def is_large(a: Tensor, b: Tensor) -> bool:
    """Whether a product is so large that oneDNN may make it, outside transforms of functions."""
    if a.shape[0] * a.shape[1] * b.shape[1] < LARGE:
        return False
    return not torch._C._are_functorch_transforms_active()


def _may_be_onednn(a: Tensor, b: Tensor) -> bool:
    if a.dtype != torch.float32 or b.dtype != torch.float32:
        return False
    if a.device.type != "cpu" or b.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    if not onednn_is_faster():
        return False
    sort = (*a.shape, b.shape[1], a.stride(1), b.stride(1))
    if sort not in _sorts and len(_sorts) < SORTS:
        _sorts.add(sort)
    return sort in _sorts


def by_onednn(a: Tensor, b: Tensor) -> Tensor:
    """(N, M) = a (N, K) x b (M, K)ᵀ: an operation of torch's compiler that stands in no contract;
    see `onednn_sums_in_float32`."""
    return torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")


def onednn_is_faster() -> bool:
    """Whether oneDNN makes float32 products faster than torch's BLAS on this machine, and is not
    turned off (`torch.backends.mkldnn.enabled`)."""
    return torch.backends.mkldnn.enabled and _faster_here()  # type: ignore[attr-defined]


@lru_cache
def _faster_here() -> bool:
    if not torch.backends.mkl.is_available() or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    return _vendor() == "AuthenticAMD" and onednn_sums_in_float32(64)


def _vendor() -> str:
    """Who made the processor, as it says itself; "" where the system does not tell."""
    known = ("AuthenticAMD", "GenuineIntel")
    said = [platform.processor()]
    with contextlib.suppress(OSError):
        said += Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    return next((name for line in said for name in known if name in line), "")


@lru_cache(maxsize=64)
def onednn_sums_in_float32(dim: int) -> bool:
    """Whether oneDNN is there, and shortens no float32 of rows of `dim` entries: its own settings
    can make it, on processors that have the units."""
    modes = [os.environ.get(f"{name}_DEFAULT_FPMATH_MODE", "STRICT") for name in ("ONEDNN", "DNNL")]
    if any(mode.upper() != "STRICT" for mode in modes):
        return False
    odd, one = (torch.zeros(n, dim, dtype=torch.float32, device="cpu") for n in (256, 1024))
    odd[:, 0], one[:, 0] = 1 + 2.0**-20, 1.0
    try:
        with torch.no_grad():
            tile = by_onednn(odd, one)
            return tile.dtype == torch.float32 and bool((tile == odd[0, 0]).all())
    except (AttributeError, RuntimeError, TypeError):  # another build of torch
        return False
