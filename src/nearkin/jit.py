"""Loops compiled by numba (extra `fast`), kept between runs. Imported only where numba is there."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import wraps
from typing import Any

import numba

from nearkin.cache import cache_folder
from nearkin.core import warn_once

# A division by 0 is infinite, as in numpy: asking costs a branch, and raises in plain loops.
_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy"}


def jit(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiled when first called, and kept in nearkin's own cache folder where it can be (or in
    numba's, where NUMBA_CACHE_DIR names one)."""
    uncached = numba.njit(**_OPTIONS)(function)
    before = numba.config.CACHE_DIR  # type: ignore[attr-defined]
    try:
        numba.config.CACHE_DIR = before or str(cache_folder() / "numba")  # type: ignore[attr-defined]
        cached = numba.njit(**_OPTIONS, cache=True)(function)
    except (OSError, RuntimeError) as error:  # nowhere to write
        _warn(error)
        return uncached
    finally:
        numba.config.CACHE_DIR = before  # type: ignore[attr-defined]
    kept = [cached]

    @wraps(function)
    def call(*arguments):
        # The file is written before the loop runs, so that nothing is counted twice.
        if kept:
            try:
                return kept[0](*arguments)
            except (OSError, EOFError) as error:
                with contextlib.suppress(IndexError):  # another thread was as unlucky
                    kept.pop()
                _warn(error)
        return uncached(*arguments)

    return call


def _warn(error: BaseException) -> None:
    warn_once(
        f"the compiled loops cannot be kept in {cache_folder() / 'numba'} and are compiled anew by "
        f"each process, which takes seconds; make room there, or set NEARKIN_HOME: {error}"
    )
