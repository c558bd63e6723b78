"""Reads bounds off the scores of a critic on held-out pairs, each with the standard error; trains
the critic before, and sets its scale and level. The estimators themselves stand in critical."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nearkin.core import Comparison, Terms
from nearkin.information.base import Information, least_error
from nearkin.information.critics import CRITICS
from nearkin.information.samples import Samples, check_count
from nearkin.information.training import batches, seeded, split, train, warn_if_untrained

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


@dataclass(frozen=True)
class Scaled:
    """min(t·f, m) + c of a critic f, which is a critic again, so that bounds stay bounds; and the
    loss by which t, m and c were chosen."""

    scale: float
    level: float
    loss: float
    most: float = math.inf

    def __call__(self, scores: Tensor) -> Tensor:
        """Scores of any shape -> the same shape, float64."""
        return (self.scale * scores.double()).clamp_max(self.most) + self.level


def scaled(
    scores: Tensor, loss: Callable[[Tensor], float], log_baseline: float | None = None
) -> Scaled:
    """The scale t from 0 to 1 of the least loss on scores (B, K, K) of pairs that the critic was
    not trained on: 1 leaves a critic as it is, 0 makes a constant of one that holds for its
    training pairs only. loss of (B, K, K) float64 has one minimum in t.

    log_baseline   where it is given the level c is the one at which the mean of e^(t·f + c) over
                   different pairs is e^log_baseline; else 0

    The loss is infinite where a score is.
    """
    from scipy.optimize import minimize_scalar

    s = scores.double()
    if not bool(s.isfinite().all()):
        return Scaled(1.0, 0.0, math.inf)

    def at(scale: float) -> Scaled:
        level = 0.0 if log_baseline is None else log_baseline - _log_mean(scale * s)
        return Scaled(scale, level, loss(scale * s + level))

    found = minimize_scalar(
        lambda t: at(t).loss, bounds=(0, 1), method="bounded", options={"xatol": 0.02}
    )
    best = float(found.x)  # type: ignore[attr-defined]
    # An end is the least one more often than not, and the search does not look there.
    return min((at(t) for t in (1.0, 0.0, best)), key=lambda each: each.loss)


def capped(scores: Tensor, log_baseline: float) -> Scaled:
    """Scale, cap and level for bounds with exponentials, on scores (B, K, K) of pairs that the
    critic was not trained on. The scale t maximizes, without a cap,

    mean_i min(t f_ii, m) - log (mean_{i≠j} e^{min(t f_ij, m)} + e^m / M)

    of M pairs i ≠ j; then so does the cap m, from the median of the t f_ii on. c is log_baseline
    less that log, where such a bound is highest (Poole et al. 2019, section 2.2). e^m / M is for
    the pairs that are not among the M: one in M + 2 is to be expected beyond all of them (Laplace's
    rule of succession), and there a critic of 10 nats is e^20 and more, so that the mean over M
    pairs says little of the mean over all.

    The loss is that of t. It is infinite where a score is.
    """

    def uncapped(s: Tensor) -> float:
        return _log_mean(s) - float(s.diagonal(dim1=1, dim2=2).mean())

    chosen = scaled(scores, uncapped)
    if not math.isfinite(chosen.loss):
        return chosen
    s = chosen(scores)
    cap = s.diagonal(dim1=1, dim2=2).flatten().sort().values
    far = s[:, ~torch.eye(s.shape[1], dtype=torch.bool)].flatten().sort().values
    within = torch.arange(1, len(cap) + 1, dtype=s.dtype)
    mean = (cap.cumsum(0) + (len(cap) - within) * cap) / len(cap)
    below = torch.searchsorted(far, cap)  # different pairs below each cap
    nothing = torch.tensor([-math.inf], dtype=s.dtype)
    beyond = (len(far) - below + 1).log() + cap
    log_sum = torch.logaddexp(torch.cat((nothing, far.logcumsumexp(0)))[below], beyond)
    log_mean = log_sum - math.log(len(far))
    half = len(cap) // 2
    best = half + int((mean - log_mean)[half:].argmax())
    level = log_baseline - float(log_mean[best])
    return Scaled(chosen.scale, level, chosen.loss, float(cap[best]))


def _log_mean(s: Tensor) -> float:
    """log mean_{i≠j} e^{s_ij} of all batches (B, K, K)."""
    own = torch.eye(s.shape[1], dtype=torch.bool)
    rows = s.masked_fill(own, -torch.inf).logsumexp(2)
    return float(rows.logsumexp((0, 1))) - math.log(rows.numel() * (s.shape[1] - 1))


@dataclass(frozen=True)
class Way:
    """How an estimator trains a critic and reads it.

    loss           of scores (K, K), to train by
    read           the estimate, of scores (B, K, K)
    kind           of the estimate
    ceiling        of the estimate in nats, of K
    log_baseline   of a bound with exponentials, see `scaled` and `capped`
    judge          what chooses the critic on the validation part: "cap" (capped), "read" (scaled by
                   the estimate, a bound), "loss" (scaled by the loss that it is trained by)
    """

    loss: Callable[[Tensor], Tensor]
    read: Callable[[Tensor], Read]
    kind: str
    ceiling: Callable[[int], float] = lambda size: math.inf
    log_baseline: float | None = None
    judge: str = "read"

    def scaled(self, scores: Tensor) -> Scaled:
        """The critic's scale, level and cap by scores (B, K, K) of a validation part."""
        if self.judge == "cap":
            return capped(scores, self.log_baseline or 0.0)
        return scaled(scores, self._judged, self.log_baseline)

    def _judged(self, scores: Tensor) -> float:
        if self.judge == "read":
            return -self.read(scores).value
        return float(torch.stack([self.loss(s) for s in scores]).mean())


def estimated(
    name: str,
    s: Samples,
    way: Way,
    *,
    critic: str,
    batch: int,
    steps: int,
    rate: float,
    held_out: float,
) -> Information:
    """Train a critic on one part, choose its state, scale and level by a second, and read the
    estimate off batches of a third."""
    x, y = s.numbers(name)
    if critic not in CRITICS:
        raise ValueError(f"{critic!r} is no critic; expected one of {', '.join(CRITICS)}")
    check_count("batch", batch, 2, "pairs that are told apart")
    generator = s.generator()
    parts = split(x, y, generator, held_out)
    made = seeded(lambda: CRITICS[critic](x.shape[1], y.shape[1]), generator)
    size = min(batch, len(parts.held_out[0]), len(parts.train[0]))
    at_once = min(size, len(parts.validation[0]))
    step = train(
        made,
        lambda a, b: way.loss(made(a, b)),
        batches(parts.train, size, generator),
        steps=steps,
        rate=rate,
        check=lambda: way.scaled(_scores(made, parts.validation, at_once)).loss,
    )
    with torch.no_grad():
        chosen = way.scaled(_scores(made, parts.validation, at_once))
        found = way.read(chosen(_scores(made, parts.held_out, size)))
    if not math.isfinite(found.value):
        raise ValueError(
            f"the critic of {name} diverged: its estimate is {found.value}; lower rate "
            f"(now {rate:g}) or take 'infonce' or 'smile'"
        )
    learned = step > 0 and chosen.scale > 0
    warn_if_untrained(name, learned, len(parts.validation[0]), rate)
    error = max(found.error, least_error(len(found.each)))
    return Information.from_nats(found.value, error, way.kind, way.ceiling(size))


def _scores(critic: nn.Module, pairs: tuple[Tensor, Tensor], size: int) -> Tensor:
    """(B, K, K) of batches of K pairs; the few pairs beyond whole batches stay out."""
    whole = len(pairs[0]) // size * size
    parts = zip(*(side[:whole].split(size) for side in pairs), strict=True)
    return torch.stack([critic(x, y) for x, y in parts])


def by_bound(bound: Bound) -> Callable[[Tensor], Tensor]:
    """The loss of scores (K, K) that a bound of `nearkin.losses` gives."""
    return lambda scores: bound(paired(scores)).total


def exponential(loss: Callable[[Tensor], Tensor], log_baseline: float) -> Way:
    """Read as the bound of TUBA with one baseline, whatever the critic is trained by."""
    return Way(
        loss,
        lambda s: read_exponential(s, log_baseline),
        "lower",
        log_baseline=log_baseline,
        judge="cap",
    )
