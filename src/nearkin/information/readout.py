"""Reads bounds off the scores of a critic on held-out pairs, each with the standard error; and
trains the critic before. The estimators themselves stand in critical."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nearkin.core import Comparison, Terms
from nearkin.information.base import Information
from nearkin.information.critics import CRITICS
from nearkin.information.samples import Samples
from nearkin.information.training import batches, seeded, split, train

Bound = Callable[[Comparison], Terms]


def paired(scores: Tensor) -> Comparison:
    """Scores (K, K) as a comparison: x_i is the same as y_i and different from every other."""
    number = torch.arange(len(scores))
    return Comparison(number, number, closeness="given", given=scores)


@dataclass(frozen=True)
class Read:
    """What pairs say: a value in nats for each pair, whose mean is the estimate and whose spread
    its standard error (the first-order influence of the pair, as x_i and as y_i)."""

    each: Tensor

    @property
    def value(self) -> float:
        """Nats."""
        return float(self.each.mean())

    @property
    def error(self) -> float:
        """Nats."""
        return float(self.each.std()) / math.sqrt(len(self.each)) if len(self.each) > 1 else 0.0


def read_infonce(scores: Tensor, over: str = "rows") -> Read:
    """Scores (B, K, K) of B batches: mean_i (s_ii - log mean_j e^{s_ij}), the positive among the K.

    over   rows (the y_j of one x_i compete), columns (the x_j of one y_i), or both: their mean
    """
    if over == "both":
        sides = [read_infonce(scores, side) for side in ("rows", "columns")]
        return Read((sides[0].each + sides[1].each) / 2)
    s = scores.double() if over == "rows" else scores.double().transpose(1, 2)
    own = s.diagonal(dim1=1, dim2=2)
    value = own - s.logsumexp(2) + math.log(s.shape[2])
    # As y_i a pair pushes down the value of every x_j that takes it for its own.
    weight = s.softmax(2)
    pushed = weight.sum(1) - weight.diagonal(dim1=1, dim2=2)
    return Read(_centered(value, -(pushed - pushed.mean())))


def read_exponential(scores: Tensor, log_baseline: float) -> Read:
    """Scores (B, K, K): 1 + mean s_ii - log a - mean_{i≠j} e^{s_ij} / a, the bound of TUBA."""
    s = scores.double() - log_baseline
    own, far = s.diagonal(dim1=1, dim2=2), _off_diagonal(s.exp())
    as_x, as_y = far.sum(2) / (s.shape[1] - 1), far.sum(1) / (s.shape[1] - 1)
    mean = as_x.mean()
    return Read(_centered(1 + own - mean, -(as_x + as_y - 2 * mean)))


def read_log_mean(scores: Tensor, clip: float = math.inf) -> Read:
    """Scores (B, K, K): mean s_ii - log mean_{i≠j} e^{s_ij}, the mean over all batches; in it s is
    clipped to [-clip, clip]."""
    s = scores.double()
    own, clipped = s.diagonal(dim1=1, dim2=2), s.clamp(-clip, clip)
    top = clipped.max()
    far = _off_diagonal((clipped - top).exp())
    as_x, as_y = far.sum(2) / (s.shape[1] - 1), far.sum(1) / (s.shape[1] - 1)
    mean = as_x.mean()
    value = own - (mean.log() + top)
    return Read(_centered(value, -(as_x + as_y) / mean + 2))


def read_interpolated(scores: Tensor, alpha: float) -> Read:
    """Scores (B, K, K): the bound of that name of each x_i, its baseline 1; the influence of a pair
    as y_i is left out, as it is bounded by what the share of one pair in a mean is."""
    s = scores.double()
    size = s.shape[1]
    own = s.diagonal(dim1=1, dim2=2)
    eye = torch.eye(size, dtype=torch.bool)
    far = s.masked_fill(eye, -torch.inf).logsumexp(2) - math.log(size - 1)
    of_alpha = math.log(alpha) if alpha else -math.inf
    rest = torch.tensor(math.log(1 - alpha) if alpha < 1 else -math.inf, dtype=s.dtype)
    less = math.log1p(-1 / (size - 1)) if size > 2 else -math.inf
    mine = torch.logaddexp(own - math.log(size - 1), far + less) + of_alpha
    share = (far - torch.logaddexp(far + of_alpha, rest)).exp()
    return Read((1 + own - torch.logaddexp(mine, rest) - share).flatten())


def _centered(value: Tensor, influence: Tensor) -> Tensor:
    """(B·K,) whose mean is that of `value`, with an influence of mean 0 on top."""
    return (value + influence - influence.mean()).flatten()


def _off_diagonal(s: Tensor) -> Tensor:
    return s * (1 - torch.eye(s.shape[1], dtype=s.dtype))


def estimated(
    name: str,
    s: Samples,
    loss: Callable[[Tensor], Tensor],
    read: Callable[[Tensor], Read],
    kind: str,
    ceiling: Callable[[int], float] = lambda size: math.inf,
    *,
    critic: str,
    batch: int,
    steps: int,
    rate: float,
    held_out: float,
) -> Information:
    """Train a critic by the loss of its scores (K, K), read the estimate off held-out batches."""
    x, y = s.numbers(name)
    if critic not in CRITICS:
        raise ValueError(f"{critic!r} is no critic; expected one of {', '.join(CRITICS)}")
    if batch < 2:
        raise ValueError(f"a batch needs 2 pairs or more to tell them apart, not {batch}")
    generator = s.generator()
    parts = split(x, y, generator, held_out)
    made = seeded(lambda: CRITICS[critic](x.shape[1], y.shape[1]), generator)
    size = min(batch, len(parts.held_out[0]), len(parts.train[0]))
    train(
        made,
        lambda a, b: loss(made(a, b)),
        batches(parts.train, size, generator),
        steps=steps,
        rate=rate,
        check=lambda: _mean_loss(made, loss, parts.validation, size),
    )
    with torch.no_grad():
        scores = _scores(made, parts.held_out, size)
    found = read(scores)
    if not math.isfinite(found.value):
        raise ValueError(
            f"the critic of {name} diverged: its estimate is {found.value}; lower rate "
            f"(now {rate:g}) or take 'infonce' or 'smile'"
        )
    return Information.from_nats(found.value, found.error, kind, ceiling(size))


def _scores(critic: nn.Module, pairs: tuple[Tensor, Tensor], size: int) -> Tensor:
    """(B, K, K) of batches of K pairs; the few pairs beyond whole batches stay out."""
    whole = len(pairs[0]) // size * size
    parts = zip(*(side[:whole].split(size) for side in pairs), strict=True)
    return torch.stack([critic(x, y) for x, y in parts])


def _mean_loss(
    critic: nn.Module,
    loss: Callable[[Tensor], Tensor],
    pairs: tuple[Tensor, Tensor],
    size: int,
) -> float:
    size = min(size, len(pairs[0]))
    return float(torch.stack([loss(s) for s in _scores(critic, pairs, size)]).mean())


def by_bound(bound: Bound) -> Callable[[Tensor], Tensor]:
    """The loss of scores (K, K) that a bound of `nearkin.losses` gives."""
    return lambda scores: bound(paired(scores)).total
