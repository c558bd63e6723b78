"""Where loops compiled by numba (extra `fast`) serve. Imports torch only; they are found by name,
where numba is installed."""

from __future__ import annotations

import importlib
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

LARGE, FEW_THREADS = 1 << 20, 4  # entries, and threads, beyond which plain torch passes faster


@lru_cache
def loops(module: str) -> Any:
    """A module of compiled loops; None without numba, where plain torch gives the same."""
    try:
        return importlib.import_module(module)
    except ImportError:
        return None


def passes() -> Any:
    """The passes over similarities that losses make."""
    return loops("nearkin.passes")


def compiled(x: Tensor, module: str = "nearkin.passes") -> Any:
    """The compiled passes of a module where they serve a matrix like this; else None, and plain
    torch gives the same."""
    if x.device.type != "cpu" or x.dtype != torch.float32 or torch.compiler.is_compiling():
        return None
    # A pass has one thread: many of them share a large matrix better.
    if x.numel() > LARGE and torch.get_num_threads() > FEW_THREADS:
        return None
    return passes() and loops(module)
