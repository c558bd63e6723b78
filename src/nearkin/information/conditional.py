"""Estimators by a model q(y|x) of one side given the other: a lower bound, and two upper ones.

q is normal with independent components, their means and deviations networks of x, fitted by maximum
likelihood on pairs that the estimate is not read off.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from nearkin.information.base import Information, least_error
from nearkin.information.critics import network
from nearkin.information.entropy import kozachenko_leonenko
from nearkin.information.samples import Samples, check_count
from nearkin.information.training import batches, seeded, split, train, warn_if_untrained

MOST = 2_000  # held-out pairs that are compared with each other
NARROWEST = 1e-3  # deviation of q, in deviations of y: without an end one row makes it infinite


class Normal(nn.Module):
    """q(y|x): normal with independent components. It begins as the standard normal, whatever x is:
    the model of a standardized y of which x tells nothing."""

    def __init__(self, dx: int, dy: int, width: int = 256, layers: int = 2):
        super().__init__()
        self.net = network(dx, width, layers, 2 * dy)
        last = self.net[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        nn.init.constant_(last.bias[dy:], math.log(math.expm1(1 - NARROWEST)))

    def log_density(self, x: Tensor, y: Tensor) -> Tensor:
        """x (..., Dx), y (..., Dy) that broadcast -> (...): log q(y|x), nats, summed over Dy."""
        return log_normal(self.net(x), y)


def log_normal(said: Tensor, y: Tensor) -> Tensor:
    """(...): log density of y (..., Dy) under means and free deviations (..., 2·Dy)."""
    mean, free = said.chunk(2, -1)
    deviation = NARROWEST + nn.functional.softplus(free)
    each = ((y - mean) / deviation).square() / 2 + deviation.log() + math.log(2 * math.pi) / 2
    return -each.sum(-1)


def ba(
    s: Samples,
    *,
    entropy: float | None = None,
    batch: int = 128,
    steps: int = 2000,
    rate: float = 1e-3,
    held_out: float = 0.4,
) -> Information:
    """Barber-Agakov bound by a model of y given x (Barber & Agakov 2003; Poole et al. 2019, eq. 2).

    I >= H(Y) + mean_i log q(y_i|x_i)

    A lower bound where H(Y) is known. Otherwise H(Y) is the nearest-neighbor entropy of the
    held-out rows, and the estimate is no bound. For classes it is `nk.label_information`.

    entropy    H(Y) in nats, of y as it is given
    batch, steps, rate, held_out   as of infonce

    Raises ValueError for fewer than 40 pairs and for settings out of range.
    """
    if entropy is not None and not math.isfinite(entropy):
        raise ValueError(
            f"entropy is H(Y) in nats and must be finite, not {entropy}; leave it out if it is not "
            "known"
        )
    model, (x, y), _ = _fitted(s, "ba", batch, steps, rate, held_out)
    with torch.no_grad():
        each = model.log_density(x, y).double()
    if entropy is None:
        kind, whole = "neither", kozachenko_leonenko(y.double())
    else:
        assert s.scales is not None
        # In units of the standardized y.
        kind, whole = "lower", entropy - float(s.scales.log().sum())
    return Information.from_nats(whole + float(each.mean()), _error(each), kind)


def club(
    s: Samples,
    *,
    batch: int = 128,
    steps: int = 2000,
    rate: float = 1e-3,
    held_out: float = 0.4,
) -> Information:
    """Contrastive log-ratio upper bound (Cheng et al. 2020, eq. 13).

    I <= mean_i log q(y_i|x_i) - mean_{i≠j} log q(y_j|x_i)

    An upper bound where q is p(y|x) or near it, and a loose one: for normal data I + KL(q||p). A
    poor q makes it too small, so read it beside a lower bound.

    batch, steps, rate, held_out   as of infonce

    Raises ValueError for fewer than 40 pairs and for settings out of range.
    """
    each = read_club(_scores(*_fitted(s, "club", batch, steps, rate, held_out)))
    return Information.from_nats(float(each.mean()), _error(each), "upper")


def l1out(
    s: Samples,
    *,
    batch: int = 128,
    steps: int = 2000,
    rate: float = 1e-3,
    held_out: float = 0.4,
) -> Information:
    """Leave-one-out upper bound by a model of y given x (Poole et al. 2019, eq. 13).

    I <= mean_i [log q(y_i|x_i) - log mean_{j≠i} q(y_i|x_j)]

    An upper bound where q is p(y|x): the mean over few other rows is below p(y). A poor q makes it
    too small, so read it beside a lower bound.

    batch, steps, rate, held_out   as of infonce

    Raises ValueError for fewer than 40 pairs and for settings out of range.
    """
    each = read_l1out(_scores(*_fitted(s, "l1out", batch, steps, rate, held_out)))
    return Information.from_nats(float(each.mean()), _error(each), "upper")


def read_club(scores: Tensor) -> Tensor:
    """(n,) whose mean is CLUB and whose spread its error, from (n, n) scores log q(y_j|x_i)."""
    count = len(scores)
    own = scores.diagonal()
    far = scores - torch.diag(own)
    mean = far.sum() / count / (count - 1)
    return own - (far.sum(1) + far.sum(0)) / (count - 1) + mean


def read_l1out(scores: Tensor) -> Tensor:
    """(n,) whose mean is L1Out, from (n, n) scores log q(y_j|x_i)."""
    others = torch.eye(len(scores), dtype=torch.bool)
    outside = scores.masked_fill(others, -torch.inf).logsumexp(0)
    return scores.diagonal() - outside + math.log(len(scores) - 1)


def _fitted(
    s: Samples, name: str, batch: int, steps: int, rate: float, held_out: float
) -> tuple[Normal, tuple[Tensor, Tensor], torch.Generator]:
    """q, the held-out pairs, and the generator for what is drawn of them."""
    x, y = s.numbers(name)
    check_count("batch", batch, 1, "pairs")
    generator = s.generator()
    parts = split(x, y, generator, held_out)
    made = seeded(lambda: Normal(x.shape[1], y.shape[1]), generator)
    assert isinstance(made, Normal)
    step = train(
        made,
        lambda a, b: -made.log_density(a, b).mean(),
        batches(parts.train, batch, generator),
        steps=steps,
        rate=rate,
        check=lambda: -float(made.log_density(*parts.validation).mean()),
    )
    warn_if_untrained(name, step > 0, len(parts.validation[0]), rate)
    return made, parts.held_out, generator


def _scores(model: Normal, pairs: tuple[Tensor, Tensor], generator: torch.Generator) -> Tensor:
    """(n, n) float64 log q(y_j|x_i), of at most 2,000 of the pairs."""
    x, y = pairs
    chosen = torch.randperm(len(x), generator=generator)[:MOST]
    with torch.no_grad():
        said, partners = model.net(x[chosen]), y[chosen]
        rows = [log_normal(part[:, None], partners[None]).double() for part in said.split(64)]
    return torch.cat(rows)


def _error(each: Tensor) -> float:
    return max(float(each.std()) / math.sqrt(len(each)), least_error(len(each)))
