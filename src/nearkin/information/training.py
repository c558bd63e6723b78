"""Trains what an estimator needs on one part of the samples, keeps the best by a second part; the
estimate is read off a third, which neither has seen."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from nearkin.information.samples import check_count

Loss = Callable[[Tensor, Tensor], Tensor]
CHECKS, PATIENCE = 25, 6  # looks at the second part, and how many without a better one end it
STEEPEST = 1.0  # norm of a gradient; exponential bounds throw far longer ones


@dataclass(frozen=True)
class Split:
    """Three parts of N pairs, as float32 (n, Dx) and (n, Dy)."""

    train: tuple[Tensor, Tensor]
    validation: tuple[Tensor, Tensor]
    held_out: tuple[Tensor, Tensor]


def split(x: Tensor, y: Tensor, generator: torch.Generator, held_out: float = 0.4) -> Split:
    """Parts drawn at random: the held-out share, a fifth of the rest for validation, the rest.

    Copies of a pair go to one part, or a critic that knows it by heart would be rewarded for it; so
    the shares are of different pairs.

    Raises ValueError for fewer than 40 different pairs, for a share that is not between 0 and 1 and
    for one that leaves too few to train on.
    """
    if not 0 < held_out < 1:
        raise ValueError(f"held_out is a share, between 0 and 1, not {held_out}")
    number = _numbered(torch.cat((x, y), 1))
    count = int(number.max()) + 1
    if count < 40:
        different = "" if count == len(x) else f" different ones among {len(x)}"
        raise ValueError(
            f"an estimator that is trained needs 40 pairs or more, not {count}{different}; use "
            "'ksg' or 'cca'"
        )
    order = torch.randperm(count, generator=generator)
    last = max(8, round(held_out * count))
    middle = max(8, (count - last) // 5)
    left = count - last - middle
    if left < 8:
        raise ValueError(
            f"held_out = {held_out} leaves {max(left, 0)} of {count} pairs to train on, but 8 are "
            "needed; lower it, or give more pairs"
        )
    place = order.argsort()[number]
    sizes = [int((place < end).sum()) for end in (left, left + middle)]
    parts = place.argsort(stable=True).tensor_split(sizes)
    if count < len(x):  # batches are to mix the copies
        parts = [part[torch.randperm(len(part), generator=generator)] for part in parts]
    return Split(*((x[rows].float(), y[rows].float()) for rows in parts))


def _numbered(pairs: Tensor) -> Tensor:
    """(N,) int64: equal rows have one number, the numbers from 0 in order of appearance."""
    _, first, which = np.unique(pairs.numpy(), axis=0, return_index=True, return_inverse=True)
    return torch.from_numpy(first.argsort().argsort()[which.reshape(-1)])


def batches(
    pairs: tuple[Tensor, Tensor], size: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches without replacement within a pass; smaller sets come whole."""
    x, y = pairs
    while True:
        order = torch.randperm(len(x), generator=generator)
        for rows in order.split(size):
            if len(rows) == size or len(x) < size:
                yield x[rows], y[rows]


def train(
    module: nn.Module,
    loss: Loss,
    drawn: Iterator[tuple[Tensor, Tensor]],
    *,
    steps: int,
    rate: float,
    check: Callable[[], float] | None = None,
) -> int:
    """Minimize loss(x, y) over the module's parameters by Adam, its rate falling by a cosine and
    gradients cut at length 1. Returns the step whose state the module is left in.

    check   asked before the first step, after 1, 2, 4, 8 ... of them and then every few; the state
            where it was least is kept, so that few pairs, which are soon known by heart, leave it
            no worse than it was. Training ends when the regular ones no longer fall

    Raises ValueError for steps that are no integer of 1 or more, for a rate that is not above 0 and
    finite, and where no regular check was finite, whatever those before them were.
    """
    check_count("steps", steps, 1, "updates")
    if not 0 < rate < math.inf:
        raise ValueError(f"rate, the step of Adam, must be above 0 and finite, not {rate}")
    optimizer = torch.optim.Adam(module.parameters(), lr=rate)
    every = max(1, steps // CHECKS)
    best = None if check is None else _Best(module, check, rate)
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        loss(*next(drawn)).backward()
        length = nn.utils.clip_grad_norm_(module.parameters(), STEEPEST)
        for group in optimizer.param_groups:
            group["lr"] = rate * (1 + math.cos(math.pi * step / steps)) / 2
        if bool(length.isfinite()):  # else clipping has made NaN of it
            optimizer.step()
        if best is None:
            continue
        if step % every == 0:
            if best.regular(step):
                break
        elif step < every and step & (step - 1) == 0:
            best.look(step)
    return steps if best is None else best.restore()


class _Best:
    """The state of the least check so far, and whether the regular checks still fall."""

    def __init__(self, module: nn.Module, check: Callable[[], float], rate: float):
        self.module, self.check, self.rate = module, check, rate
        self.least, self.step, self.state = math.inf, 0, copy.deepcopy(module.state_dict())
        self.least_regular, self.waited = math.inf, 0
        self.look(0)

    def look(self, step: int) -> float:
        """The check now; the state is kept where it is the least."""
        with torch.no_grad():
            now = self.check()
        if now < self.least:
            self.least, self.step = now, step
            self.state = copy.deepcopy(self.module.state_dict())
        return now

    def regular(self, step: int) -> bool:
        """Look, and say whether it is enough. The looks before are not counted: what begins with
        a loss that rises may still learn."""
        now = self.look(step)
        if now < self.least_regular:
            self.least_regular, self.waited = now, 0
        else:
            self.waited += 1
        return self.waited == PATIENCE

    def restore(self) -> int:
        """Put the best state back; its step."""
        if not math.isfinite(self.least_regular):
            raise ValueError(
                f"training diverged: its loss on the validation part was never finite; lower rate, "
                f"now {self.rate:g}"
            )
        self.module.load_state_dict(self.state)
        return self.step


def warn_if_untrained(name: str, learned: bool, pairs: int, rate: float) -> None:
    """Warn where training has found nothing that holds for pairs it has not seen."""
    if not learned:
        warnings.warn(
            f"{name} has learned nothing that holds on the {pairs} pairs of its validation part, "
            "so that its estimate is that of a model which tells nothing. This is so where x and y "
            f"share nothing, where pairs are too few, and where rate (now {rate:g}) is too high; "
            "'ksg' and 'cca' need no training",
            UserWarning,
            stacklevel=5,
        )


def seeded(make: Callable[[], nn.Module], generator: torch.Generator) -> nn.Module:
    """Build a module with weights by the generator, the global state of randomness untouched."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
        return make()
