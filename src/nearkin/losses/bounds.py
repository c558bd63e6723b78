"""Variational bounds on a divergence between same and different pairs, as losses.

Same pairs stand for the joint distribution and different pairs for the product of its marginals; f,
the similarity over its temperature, is the critic. So each is a bound of the mutual information of
the two rows of a positive pair, in nats, where the rows of a batch are drawn at random. Who reports
a figure instead of training by it reads `nearkin.information`: on held-out rows, with an interval.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from nearkin.closed import split_log_sum_exp
from nearkin.core import Comparison, Terms, home
from nearkin.reduce import logsumexp, mean, positive, ratio, softplus

STEEPEST = 50.0  # nats: e^50 times the longest row that is compared is still finite in float32
_NOTHING = -1e35  # the log of nothing in sums of logs, where -inf would make the gradient NaN


@home("in_batch", "cosine")
def jsd(c: Comparison) -> Terms:
    """Jensen-Shannon bound, a class-balanced logistic loss (Kemertas et al. 2020, eq. 10).

    tightness = mean_same softplus(-s)          contrast = mean_different softplus(s)

    2 log 2 - total is a lower bound on twice the Jensen-Shannon divergence between the similarities
    of same and of different pairs, in nats. The similarity is usually a critic's; cosines are too
    narrow for it, their sigmoid never leaves 0.27 to 0.73.

    Use it with a critic that learns (the objectives jensen_shannon and alternating_jensen_shannon),
    or on similarities that are already logits.

    Equals the binomial deviance at cost 1 of a critic that is linear in the similarity, α(s - β).

    Memory O(A·R).
    """
    return Terms(
        tightness=mean(softplus(-c.similarity), c.same),
        contrast=mean(softplus(c.similarity), c.different),
    )


@home("in_batch", "cosine")
def donsker_varadhan(c: Comparison, *, temperature: float | Tensor = 1.0) -> Terms:
    """Donsker-Varadhan bound of mutual information (Donsker & Varadhan 1983; Poole et al. 2019,
    eq. 3).

    With f = s / temperature:
    tightness = -mean_same f          contrast = log mean_different e^f

    -total is the bound. The log of a mean over one batch is on average too small, so that the bound
    is on average too large: it is a lower bound over all pairs, and of a batch it is none. Its
    gradient has the same bias; MINE averages it away (`nearkin.information`). Adding a number to f
    changes nothing.

    temperature   1 for similarities that are logits already; on cosines 0.1 or less, or learned

    Use it with large batches, where a bound without a ceiling is wanted and f need not be
    calibrated.

    Equals NWJ where the mean of e^f is e; it is never below NWJ.

    Memory O(A·R). Raises ValueError for a temperature that is not above 0.
    """
    near, far = _means(c, temperature)
    return Terms(tightness=-near, contrast=torch.where(far != -torch.inf, far, 0.0))


@home("in_batch", "cosine")
def nwj(c: Comparison, *, temperature: float | Tensor = 1.0) -> Terms:
    """Nguyen-Wainwright-Jordan bound of mutual information, also f-GAN's of the Kullback-Leibler
    divergence (Nguyen et al. 2010; Poole et al. 2019, eq. 5).

    With f = s / temperature:
    tightness = -mean_same f          contrast = mean_different e^{f - 1}

    -total is the bound, a lower one on average over batches of any size; at best f = 1 + log r with
    r the ratio of the densities. Its variance grows as e^{2I}: with more than about 5 nats a batch
    says little. Beyond 50 nats the mean goes on growing by its logarithm, so that it stays finite.

    temperature   1 for similarities that are logits already; on cosines 0.1 or less, or learned

    Use it where a bound must not be too large on average, for a few nats.

    Equals TUBA at log_baseline 1.

    Memory O(A·R). Raises ValueError for a temperature that is not above 0.
    """
    near, far = _means(c, temperature)
    return Terms(tightness=-near, contrast=_exp(far - 1))


@home("in_batch", "cosine")
def tuba(
    c: Comparison, *, temperature: float | Tensor = 1.0, log_baseline: float | Tensor = 0.0
) -> Terms:
    """Tractable unnormalized Barber-Agakov bound of mutual information (Poole et al. 2019, eq. 4).

    With f = s / temperature and the baseline a = e^{log_baseline}:
    tightness = -mean_same (f - log_baseline)
    contrast = mean_different e^{f - log_baseline}

    1 - total is the bound, for every baseline; it is tightest where log_baseline is the log of the
    mean of e^f over different pairs. Here the baseline is one number, which may be learned; the
    paper also has a network of the anchor. Beyond 50 nats as NWJ.

    temperature    1 for similarities that are logits already; on cosines 0.1 or less, or learned
    log_baseline   what f is measured from, in nats

    Use it as NWJ, with a baseline that learns: then f need not be calibrated.

    Equals NWJ at log_baseline 1, and Donsker-Varadhan at the tightest baseline of the batch.

    Memory O(A·R). Raises ValueError for a temperature that is not above 0, and for a baseline of
    several numbers.
    """
    _one(log_baseline=log_baseline)
    near, far = _means(c, temperature)
    there = c.positives.count.any()
    return Terms(
        tightness=torch.where(there, log_baseline - near, 0.0), contrast=_exp(far - log_baseline)
    )


@home("in_batch", "cosine")
def interpolated(
    c: Comparison,
    *,
    alpha: float = 0.01,
    temperature: float | Tensor = 1.0,
    log_baseline: float | Tensor = 0.0,
) -> Terms:
    """Bound between TUBA and InfoNCE, its bias against its variance (Poole et al. 2019, eq. 9).

    With f = s / temperature, n_i the different rows of anchor i, m_i their mean of e^f, and of a
    positive pair (i, j) the baseline
    a_ij = (alpha / n_i) e^{f_ij} + alpha (1 - 1/n_i) m_i + (1 - alpha) e^{log_baseline}:
    tightness = -mean_same f_ij
    contrast = mean_same log a_ij + mean_different e^{f_ik} / (alpha m_i + (1 - alpha)
    e^{log_baseline})

    1 - total is the bound, at most 1 + log(n / alpha), and log n at alpha 1. Both baselines are
    over n rows, as they must be for a bound: with the positive one different row is left out. The
    paper takes the mean of log a over which one that is; here the mean is inside the log, which is
    less and so a bound too.

    alpha          from 0 (TUBA: no ceiling, much variance) to 1 (InfoNCE: a ceiling, little
                   variance)
    temperature    1 for similarities that are logits already; on cosines 0.1 or less, or learned
    log_baseline   what f is measured from where the batch does not say it, in nats

    Use it where InfoNCE is at its ceiling and NWJ is too noisy.

    Equals TUBA at alpha 0; at alpha 1, but for the row that is left out, InfoNCE's bound.

    Memory O(A·R). Raises ValueError for an alpha beyond 0 and 1, for a temperature that is not
    above 0, and for a baseline of several numbers.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be from 0 (TUBA) to 1 (InfoNCE), not {alpha}")
    positive(temperature=temperature)
    _one(log_baseline=log_baseline)
    positives, each = c.positives, c.negatives
    own, rows = split_log_sum_exp(c.similarity, positives, c.keep_different, 1 / temperature)
    n = each.clamp_min(1).to(own.dtype)
    some = each > 0
    far = torch.where(some, rows - n.log(), _NOTHING)  # log m_i
    outside = torch.as_tensor(log_baseline, dtype=own.dtype, device=own.device) + _log(1 - alpha)
    others = far + torch.where(n > 1, torch.log1p(-1 / n), _NOTHING) + _log(alpha)
    rest = torch.logaddexp(others, outside)[:, None]
    own_part = own + (_log(alpha) - n.log())[:, None]
    baseline = positives.fill(torch.logaddexp(own_part, rest), 0.0)
    share = far - torch.logaddexp(far + _log(alpha), outside)
    pairs = positives.pairs
    penalty = ratio((_exp(torch.where(some, share, -torch.inf)) * each).sum(), each.sum())
    return Terms(
        tightness=-ratio(positives.fill(own, 0.0).sum(), pairs),
        contrast=ratio(baseline.sum(), pairs) + penalty,
    )


@home("in_batch", "cosine")
def smile(c: Comparison, *, clip: float = 5.0, temperature: float | Tensor = 1.0) -> Terms:
    """Smoothed mutual information lower-bound estimator, so called (Song & Ermon 2020, eq. 12).

    With f = s / temperature, clipped to [-clip, clip] in the contrast:
    tightness = -mean_same f          contrast = log mean_different e^f

    -total estimates the mutual information: its variance is small, and it is no bound; with the
    best f it is above the truth. Its gradient is that of the Jensen-Shannon bound jsd of f, as in
    the authors' code: that of the clipped mean alone would raise f of same pairs without end.

    clip          in nats; the smaller, the less variance and the more bias
    temperature   1 for similarities that are logits already; on cosines 0.1 or less, or learned

    Use it where a steady figure counts more than that it is a bound, for more than 5 nats.

    Equals, in its gradient, jsd; in its value Donsker-Varadhan's where nothing is clipped.

    Memory O(A·R). Raises ValueError for a clip or a temperature that is not above 0.
    """
    positive(clip=clip)

    def value(f: Tensor) -> Tensor:
        far = _log_mean(f.clamp(-clip, clip), c.different)
        return torch.where(far != -torch.inf, far, 0.0)

    return _by_jsd(c, temperature, value)


@home("in_batch", "cosine")
def js_kl(c: Comparison, *, temperature: float | Tensor = 1.0) -> Terms:
    """Kullback-Leibler bound of a critic that learns by the Jensen-Shannon one (Hjelm et al. 2019;
    Poole et al. 2019, section 2.4).

    With f = s / temperature:
    tightness = -mean_same f          contrast = mean_different e^f

    1 - total is the bound, NWJ's of 1 + f: the Jensen-Shannon bound is at best with f = log r,
    where this one is tight. Its gradient is that of jsd of f, which is steady where NWJ's is not;
    its value has all of NWJ's variance. Beyond 50 nats as NWJ.

    temperature   1 for similarities that are logits already; on cosines 0.1 or less, or learned

    Use it to train by the steady bound and read off the one of mutual information.

    Equals, in its gradient, jsd; in its value TUBA at log_baseline 0.

    Memory O(A·R). Raises ValueError for a temperature that is not above 0.
    """
    return _by_jsd(c, temperature, lambda f: _exp(_log_mean(f, c.different)))


def _means(c: Comparison, temperature: float | Tensor) -> tuple[Tensor, Tensor]:
    """The mean of f over same pairs, and the log of the mean of e^f over different ones: -inf, with
    gradient 0, where there are none."""
    positive(temperature=temperature)
    positives = c.positives
    own, rows = split_log_sum_exp(c.similarity, positives, c.keep_different, 1 / temperature)
    near = positives.fill(own, 0.0)
    pairs = c.negatives.sum().to(rows.dtype)  # the log of an int64 is float32
    far = logsumexp(rows, rows != -torch.inf, 0) - pairs.clamp_min(1).log()
    return ratio(near.sum(), positives.pairs), far


def _by_jsd(c: Comparison, temperature: float | Tensor, far: Callable[[Tensor], Tensor]) -> Terms:
    """-mean_same f and the contrast that `far` makes of f (A, R), with the gradients of jsd."""
    positive(temperature=temperature)
    f = c.similarity / temperature
    with torch.no_grad():
        value = Terms(tightness=-mean(f, c.same), contrast=far(f))
    pull, push = mean(softplus(-f), c.same), mean(softplus(f), c.different)
    return Terms(
        tightness=value.tightness + (pull - pull.detach()),
        contrast=value.contrast + (push - push.detach()),
    )


def _log_mean(f: Tensor, mask: Tensor) -> Tensor:
    """0-dim: log mean e^f over the mask; -inf where it is empty."""
    rows = logsumexp(f, mask)
    pairs = torch.count_nonzero(mask).to(f.dtype)
    return logsumexp(rows, rows != -torch.inf, 0) - pairs.clamp_min(1).log()


def _exp(x: Tensor) -> Tensor:
    """e^x; beyond 50 its tangent's own logarithm, so that value and slope stay finite."""
    beyond = (x - STEEPEST).clamp_min(0)
    return x.clamp_max(STEEPEST).exp() * (1 + beyond.log1p())


def _log(x: float) -> float:
    return math.log(x) if x > 0 else _NOTHING


def _one(**settings: float | Tensor) -> None:
    """Raise ValueError for a setting that holds several numbers."""
    for name, value in settings.items():
        if isinstance(value, Tensor) and value.ndim:
            raise ValueError(f"{name} must be one number, not of shape {tuple(value.shape)}")
