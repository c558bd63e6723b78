"""Work in threads: the rows of a batch side by side, batches ahead of the step that needs them.
What a row is made of stands elsewhere."""

from __future__ import annotations

import functools
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

from nearkin.inputs import Inputs, take

T = TypeVar("T")
R = TypeVar("R")

DEPTH = 2  # batches that are made before they are asked for
_SHARES = 4  # parts of a batch for each thread: one slow row does not keep the others waiting


@functools.cache
def threads(count: int) -> ThreadPoolExecutor:
    """Threads that work side by side; torch does not split what one of them does.

    Rows are many and small, so that splitting each costs more than it brings; and what is summed
    in one of these threads does not hang on how many threads torch has elsewhere.
    """
    return ThreadPoolExecutor(count, "nearkin", initializer=_alone)


def _alone() -> None:
    from threadpoolctl import threadpool_limits

    torch.get_num_threads()  # torch sets up a new thread when it is first asked, and not later
    threadpool_limits(1, user_api="openmp")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=threads.cache_clear)  # a fork has no threads but its own


def each(work: Callable[[int], object], count: int, workers: int) -> None:
    """work(0), ..., work(count - 1) by so many threads; the error of the first that failed is
    raised, after all have ended."""
    step = max(1, -(-count // (workers * _SHARES)))

    def part(start: int) -> None:
        for i in range(start, min(start + step, count)):
            work(i)

    parts = [threads(workers).submit(part, start) for start in range(0, count, step)]
    errors = [error for future in parts if (error := future.exception()) is not None]
    if errors:
        raise errors[0]


def taken(
    inputs: Inputs, rows: Iterable[Tensor], keys: Tensor | None = None, pinned: bool = False
) -> Generator[Tensor, None, None]:
    """`take` of each of these batches of rows, in order; `keys` has one entry for each row of
    `inputs`.

    What is made when it is taken is made ahead, in a thread. An error is raised where its batch is
    asked for. Close the iterator (contextlib.closing) where it may be left before its end.

    pinned   whether batches that are made lie in memory from which a GPU copies while it computes
    """
    if isinstance(inputs, Tensor):
        return (take(inputs, chosen) for chosen in rows)

    def made(chosen: Tensor) -> Tensor:
        """One batch."""
        x = take(inputs, chosen, _of(keys, chosen))
        return x.pin_memory() if pinned else x

    return _ahead(made, rows)


def _of(keys: Tensor | None, rows: Tensor) -> Tensor | None:
    return None if keys is None else keys.index_select(0, rows)


def _ahead(make: Callable[[T], R], items: Iterable[T]) -> Generator[R, None, None]:
    begun: deque[Future[R]] = deque()
    with ThreadPoolExecutor(1, "nearkin-ahead") as thread:
        try:
            for item in items:
                begun.append(thread.submit(make, item))
                if len(begun) > DEPTH:
                    yield begun.popleft().result()
            while begun:
                yield begun.popleft().result()
        finally:
            thread.shutdown(cancel_futures=True)
