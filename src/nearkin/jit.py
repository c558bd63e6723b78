"""Loops compiled by numba (extra `fast`), kept between runs. Imported only where numba is there."""

from __future__ import annotations

import contextlib
import hashlib
import pickle
from collections.abc import Callable, Iterable
from functools import wraps
from pathlib import Path
from typing import Any

import numba

from nearkin.cache import cache_folder
from nearkin.core import warn_once

Loop = Callable[..., Any]


def jit_of(files: Iterable[Path], **options: Any) -> Callable[[Loop], Loop]:
    """A decorator: compiled when first called, and kept in nearkin's own cache folder where it can
    be, or in numba's where NUMBA_CACHE_DIR names one.

    files     all that the loops are written in: numba looks for changes in a loop's own file alone,
              so that another state of any of them needs a folder of its own
    options   of numba.njit
    """
    state = hashlib.sha256(b"\0".join(file.read_bytes() for file in sorted(files))).hexdigest()
    options = {"nogil": True, **options}

    def jit(function: Loop) -> Loop:
        uncached = numba.njit(**options)(function)
        before = numba.config.CACHE_DIR  # type: ignore[attr-defined]
        folder = Path(before) if before else cache_folder() / "numba"
        try:
            numba.config.CACHE_DIR = str(folder / state[:16])  # type: ignore[attr-defined]
            cached = numba.njit(**options, cache=True)(function)
        except (OSError, RuntimeError) as error:  # nowhere to write
            _warn(error)
            return uncached
        finally:
            numba.config.CACHE_DIR = before  # type: ignore[attr-defined]
        kept = [cached]

        @wraps(function)
        def call(*arguments: Any) -> Any:
            # The file is written before the loop runs, so that nothing is counted twice.
            if kept:
                try:
                    return kept[0](*arguments)
                except (OSError, EOFError, pickle.UnpicklingError) as error:
                    with contextlib.suppress(IndexError):  # another thread was as unlucky
                        kept.pop()
                    _warn(error)
            return uncached(*arguments)

        return call

    return jit


def _warn(error: BaseException) -> None:
    warn_once(
        f"the compiled loops cannot be kept in {cache_folder() / 'numba'} and are compiled anew by "
        f"each process, which takes seconds; make room there, or set NEARKIN_HOME: {error}"
    )
