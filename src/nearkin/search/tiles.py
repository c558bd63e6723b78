"""The matrix of similarities cut into tiles, and its rows of tiles worked on by several threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from itertools import groupby

import torch
from torch import Tensor

SIDE = 1024  # rows and columns of a tile

Pair = tuple[int, int]  # a block of queries and one of the gallery
Stripe = tuple[int, list[int]]  # the blocks of the gallery that a block of queries meets


def cut(start: int, stop: int) -> list[slice]:
    """Slices of `SIDE` from start to stop."""
    size = SIDE
    return [slice(i, min(i + size, stop)) for i in range(start, stop, size)]


def pairs_of(queries: int, gallery: int, symmetric: bool) -> list[Pair]:
    """All pairs of blocks; each one once, and both ways at a time, of a symmetric matrix."""
    return [(i, j) for i in range(queries) for j in range(i if symmetric else 0, gallery)]


def stripes_of(pairs: Sequence[Pair]) -> list[Stripe]:
    """Pairs that share their block of queries, together; every other one backwards.

    Where one stripe ends the next begins, so that a rounded block may serve twice.
    """
    grouped = [(i, [j for _, j in group]) for i, group in groupby(pairs, key=lambda pair: pair[0])]
    return [(i, columns[:: -1 if i % 2 else 1]) for i, columns in grouped]


class Threads:
    """Workers of one process: each with a buffer of one tile and products of one thread."""

    def __init__(self, dtype: torch.dtype, device: torch.device, limit: int | None = None):
        wanted = torch.get_num_threads() if device.type == "cpu" else 1
        self.count = max(1, min(wanted, limit or wanted))
        self.dtype, self.device = dtype, device
        self._local = threading.local()

    @property
    def buffer(self) -> Tensor:
        """The worker's own room for a tile."""
        if not hasattr(self._local, "buffer"):
            self._local.buffer = torch.empty(SIDE * SIDE, dtype=self.dtype, device=self.device)
        return self._local.buffer

    def work(self, do: Callable[[Stripe], None], stripes: Sequence[Stripe]) -> Iterator[int]:
        """`do` every stripe, the longest first; yields the number of tiles of each that is done."""
        ordered = sorted(stripes, key=lambda stripe: -len(stripe[1]))
        if self.count == 1:
            for stripe in ordered:
                do(stripe)
                yield len(stripe[1])
            return
        with (
            _one_thread_each() as settle,
            ThreadPoolExecutor(self.count, initializer=settle) as pool,
        ):
            waiting = {pool.submit(do, stripe): len(stripe[1]) for stripe in ordered}
            try:
                for future in as_completed(waiting):
                    future.result()
                    yield waiting[future]
            finally:
                for future in waiting:
                    future.cancel()


class Shared:
    """A switch of the whole process, held by several threads at once: the first one turns it, and
    the last one turns it back."""

    def __init__(self, turn: Callable[[], Callable[[], None]]):
        """turn: turns the switch; what it returns turns it back."""
        self._turn, self._lock, self._holders = turn, threading.Lock(), 0
        self._back: Callable[[], None] = lambda: None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Turned within."""
        with self._lock:
            if self._holders == 0:
                self._back = self._turn()
            self._holders += 1
        try:
            yield
        finally:
            with self._lock:
                self._holders -= 1
                if self._holders == 0:
                    self._back()


def _to_one_thread() -> Callable[[], None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    return lambda: torch.set_num_threads(before)


_ONE_THREAD = Shared(_to_one_thread)


@contextmanager
def _one_thread_each() -> Iterator[Callable[[], None]]:
    """Products of one thread each, while several workers make them; as before afterwards."""
    with _ONE_THREAD.held():
        yield lambda: torch.set_num_threads(1)
