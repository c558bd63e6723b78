"""Learning-rate schedules: the step's number, from 0, to a factor on every learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable

Schedule = Callable[[int], float]


def warmup_cosine(total: int, *, warmup: int = 100) -> Schedule:
    """min((i + 1) / warmup, (1 + cos(π i / total)) / 2), per iteration (Boudiaf et al. 2020, code).

    The smaller of a ramp and a half cosine over all steps; neither a product nor two phases.
    """
    if warmup < 1:
        raise ValueError(f"warmup is a number of steps >= 1, not {warmup}; use cosine without one")
    return lambda i: min((i + 1) / warmup, (1 + math.cos(math.pi * i / total)) / 2)


def step(total: int, *, at: list[float] | None = None, factor: float = 0.1) -> Schedule:
    """Times `factor` at each of the given shares of all steps (default: half and three
    quarters)."""
    shares = [0.5, 0.75] if at is None else at
    if not all(0 < share < 1 for share in shares):
        raise ValueError(f"step changes at shares of the run between 0 and 1, not {shares}")
    return lambda i: factor ** sum(i >= share * total for share in shares)


def constant(total: int) -> Schedule:
    """The same learning rate throughout."""
    return lambda i: 1.0
