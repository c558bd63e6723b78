"""Estimators that raise a bound by a critic and read it off held-out pairs.

Each trains on batches of K pairs, in which the K·(K - 1) pairs of x_i with another y_j stand for
the product of the marginals; the bounds are the losses of `nearkin.losses`, on the critic's scores.
A validation part chooses the state of the critic f and the scale t, from 0 to 1, of t·f: what was
learned by heart of few pairs is taken back by it. Where the estimate has a mean of e^f (nwj, tuba,
js_kl, donsker_varadhan, mine), it also chooses m and c of min(t·f, m) + c, so that one score far
out does not decide that mean. All these are critics, so that bounds stay bounds. What is reported
is of batches of K pairs that neither part holds; a standard error is at least that of one free
number, 1 / (√2 N) nats (`base.least_error`). Those that do without a critic stand beside: nearest,
gaussian, conditional.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nearkin.information.base import Information
from nearkin.information.readout import (
    Way,
    by_bound,
    estimated,
    exponential,
    paired,
    read_infonce,
    read_interpolated,
    read_log_mean,
)
from nearkin.information.samples import Samples
from nearkin.losses import bounds
from nearkin.losses.pairwise import infonce as infonce_loss


def infonce(
    s: Samples,
    *,
    critic: str = "separable",
    over: str = "rows",
    batch: int = 128,
    steps: int = 2000,
    rate: float = 5e-4,
    held_out: float = 0.4,
) -> Information:
    """InfoNCE with its log K (van den Oord et al. 2018; Poole et al. 2019, eq. 10).

    I >= log K + mean_i log (e^{f(x_i, y_i)} / Σ_j e^{f(x_i, y_j)})

    A lower bound, never above log K, which is its ceiling; near it the truth may be anything above.

    critic     separable, bilinear, concatenated or on_distance
    over       rows (the y_j of one x_i compete), columns (the x_j of one y_i), or both: the mean
    batch      K, of training and of the estimate
    steps      of Adam at most; training ends earlier where validation no longer improves
    rate       of Adam
    held_out   share of the pairs that the estimate is read off

    Warns where nothing was learned that holds for the validation part: the estimate is about 0.
    Raises ValueError for fewer than 40 pairs, for unknown settings, and where training diverged.
    """
    if over not in ("rows", "columns", "both"):
        raise ValueError(f"over must be rows, columns or both, not {over!r}")

    def loss(scores: Tensor) -> Tensor:
        sides = {"rows": [scores], "columns": [scores.T], "both": [scores, scores.T]}[over]
        each = [infonce_loss(paired(side), temperature=1.0).total for side in sides]
        return torch.stack(each).mean()

    return estimated(
        "infonce",
        s,
        Way(loss, lambda scores: read_infonce(scores, over), "lower", math.log),
        critic=critic,
        batch=batch,
        steps=steps,
        rate=rate,
        held_out=held_out,
    )


def donsker_varadhan(
    s: Samples,
    *,
    critic: str = "separable",
    batch: int = 128,
    steps: int = 2000,
    rate: float = 5e-4,
    held_out: float = 0.4,
) -> Information:
    """Donsker-Varadhan estimate (Donsker & Varadhan 1983; Belghazi et al. 2018).

    I = mean_i f(x_i, y_i) - log mean_{i≠j} e^{f(x_i, y_j)}

    A lower bound over the population, but of a sample the log of a mean is on average too small and
    the estimate too large: no bound. Settings as of infonce.

    critic, batch, steps, rate, held_out   as of infonce

    Raises ValueError as infonce does.
    """
    return estimated(
        "donsker_varadhan",
        s,
        Way(by_bound(bounds.donsker_varadhan), read_log_mean, "neither", judge="cap"),
        critic=critic,
        batch=batch,
        steps=steps,
        rate=rate,
        held_out=held_out,
    )


def mine(
    s: Samples,
    *,
    critic: str = "separable",
    memory: float = 0.99,
    batch: int = 128,
    steps: int = 2000,
    rate: float = 5e-4,
    held_out: float = 0.4,
) -> Information:
    """Donsker-Varadhan with the corrected gradient of MINE (Belghazi et al. 2018, section 3.2).

    I = mean_i f(x_i, y_i) - log mean_{i≠j} e^{f(x_i, y_j)}

    The gradient of the log is that of mean e^f over a running mean of e^f, not over the batch's
    own, which removes its bias. The estimate is read as of donsker_varadhan and is no bound.

    memory   weight of the past in the running mean, from 0 (none) to under 1
    critic, batch, steps, rate, held_out   as of infonce

    Raises ValueError as infonce does, and for a memory out of range.
    """
    if not 0 <= memory < 1:
        raise ValueError(f"memory is the weight of the past, from 0 to under 1, not {memory}")
    return estimated(
        "mine",
        s,
        Way(Corrected(memory), read_log_mean, "neither", judge="cap"),
        critic=critic,
        batch=batch,
        steps=steps,
        rate=rate,
        held_out=held_out,
    )


class Corrected:
    """The loss of MINE: the value of Donsker-Varadhan's, the gradient with a running mean."""

    def __init__(self, memory: float):
        self.memory = memory
        self.log_running: Tensor | None = None

    def __call__(self, scores: Tensor) -> Tensor:
        """Scores (K, K) -> 0-dim. Without gradients the running mean stays as it is."""
        terms = bounds.donsker_varadhan(paired(scores))
        if not torch.is_grad_enabled():
            return terms.total
        now = terms.contrast.detach()
        if self.log_running is None:
            self.log_running = now
        past = self.log_running + (math.log(self.memory) if self.memory else -math.inf)
        self.log_running = torch.logaddexp(past, now + math.log1p(-self.memory))
        # Cut, or one batch far off would hide the slope of the joint pairs for good.
        weight = (now - self.log_running).clamp_max(10.0).exp()
        return terms.tightness + now + weight * (terms.contrast - now)


def nwj(
    s: Samples,
    *,
    critic: str = "separable",
    batch: int = 128,
    steps: int = 2000,
    rate: float = 5e-4,
    held_out: float = 0.4,
) -> Information:
    """Nguyen-Wainwright-Jordan bound (Nguyen et al. 2010; Poole et al. 2019, eq. 5).

    I >= mean_i f(x_i, y_i) - e^{-1} mean_{i≠j} e^{f(x_i, y_j)}

    A lower bound on average, without a ceiling; its variance grows as e^{2I}, and its standard
    error is itself not to be relied on above about 5 nats. f has the level at which the mean of
    e^{f - 1} is 1 on the validation part, and a cap by the number of its pairs.

    critic, batch, steps, rate, held_out   as of infonce

    Raises ValueError as infonce does.
    """
    return estimated(
        "nwj",
        s,
        exponential(by_bound(bounds.nwj), 1.0),
        critic=critic,
        batch=batch,
        steps=steps,
        rate=rate,
        held_out=held_out,
    )


def tuba(
    s: Samples,
    *,
    critic: str = "separable",
    batch: int = 128,
    steps: int = 2000,
    rate: float = 5e-4,
    held_out: float = 0.4,
) -> Information:
    """Tractable unnormalized Barber-Agakov bound (Poole et al. 2019, eq. 4).

    I >= 1 + mean_i [f(x_i, y_i) - log a(x_i)] - mean_{i≠j} e^{f(x_i, y_j)} / a(x_i)

    A lower bound on average, without a ceiling, with all of nwj's variance. The baseline a is
    learned with the critic: the separable one has it as its number for each x, and for the others
    f - log a is one critic again. It begins at a = 1, where nwj has a = e.

    critic, batch, steps, rate, held_out   as of infonce

    Raises ValueError as infonce does.
    """
    return estimated(
        "tuba",
        s,
        exponential(by_bound(bounds.tuba), 0.0),
        critic=critic,
        batch=batch,
        steps=steps,
        rate=rate,
        held_out=held_out,
    )


def interpolated(
    s: Samples,
    *,
    alpha: float = 0.01,
    critic: str = "separable",
    batch: int = 128,
    steps: int = 2000,
    rate: float = 5e-4,
    held_out: float = 0.4,
) -> Information:
    """Between tuba and infonce (Poole et al. 2019, eq. 9).

    I >= 1 + mean_i log (e^{f_ii} / a_i) - mean_{i≠j} e^{f_ij} / (alpha m_i + 1 - alpha)
    a_i = alpha mean of e^{f_i.} with the positive among the K - 1, plus 1 - alpha

    A lower bound on average, at most 1 + log((K - 1) / alpha); m_i the mean of e^{f_ij} over j ≠ i.
    As the loss of that name, with the baseline in the critic.

    alpha                                  from 0 (tuba) to 1 (infonce)
    critic, batch, steps, rate, held_out   as of infonce

    Raises ValueError as infonce does, and for an alpha out of range.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be from 0 (tuba) to 1 (infonce), not {alpha}")

    def ceiling(size: int) -> float:
        return math.log((size - 1) / alpha) + (alpha < 1) if alpha else math.inf

    return estimated(
        "interpolated",
        s,
        Way(
            by_bound(lambda c: bounds.interpolated(c, alpha=alpha)),
            lambda scores: read_interpolated(scores, alpha),
            "lower",
            ceiling,
            log_baseline=0.0,
        ),
        critic=critic,
        batch=batch,
        steps=steps,
        rate=rate,
        held_out=held_out,
    )


def smile(
    s: Samples,
    *,
    clip: float = 5.0,
    critic: str = "separable",
    batch: int = 128,
    steps: int = 2000,
    rate: float = 5e-4,
    held_out: float = 0.4,
) -> Information:
    """Smoothed estimate of a critic that learns by the Jensen-Shannon bound (Song & Ermon 2020).

    I = mean_i f(x_i, y_i) - log mean_{i≠j} e^{clipped f(x_i, y_j)}

    Small variance and no bound: with the best critic it is above the truth.

    clip                                   in nats; the smaller, the less variance and the more bias
    critic, batch, steps, rate, held_out   as of infonce

    Raises ValueError as infonce does, and for a clip that is not above 0.
    """
    if not clip > 0:
        raise ValueError(f"clip must be above 0, not {clip}")
    return estimated(
        "smile",
        s,
        Way(
            by_bound(bounds.jsd),
            lambda scores: read_log_mean(scores, clip),
            "neither",
            judge="loss",
        ),
        critic=critic,
        batch=batch,
        steps=steps,
        rate=rate,
        held_out=held_out,
    )


def js_kl(
    s: Samples,
    *,
    critic: str = "separable",
    batch: int = 128,
    steps: int = 2000,
    rate: float = 5e-4,
    held_out: float = 0.4,
) -> Information:
    """Bound of Kullback-Leibler of a critic that learns by the Jensen-Shannon one (Hjelm et al.
    2019; Poole et al. 2019).

    I >= 1 + mean_i f(x_i, y_i) - mean_{i≠j} e^{f(x_i, y_j)}

    A lower bound on average, without a ceiling: steadier to train than nwj, as noisy to read.

    critic, batch, steps, rate, held_out   as of infonce

    Raises ValueError as infonce does.
    """
    return estimated(
        "js_kl",
        s,
        exponential(by_bound(bounds.jsd), 0.0),
        critic=critic,
        batch=batch,
        steps=steps,
        rate=rate,
        held_out=held_out,
    )
