"""Losses that take class proxies for neighbors: Proxy Anchor and Proxy-NCA. The proxies live in
`compare`; nothing here has state."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from nearkin.closed import IN_CACHE, known, split
from nearkin.core import Comparison, Terms, home
from nearkin.positives import Positives
from nearkin.reduce import (
    ClassSoftmax,
    alone,
    class_softmax,
    mean,
    not_negative,
    own_column,
    positive,
)


@home("proxies", "cosine")
def proxy_anchor(c: Comparison, *, margin: float = 0.1, alpha: float = 32.0) -> Terms:
    """Proxy Anchor loss: each proxy is an anchor over the batch (Kim et al. 2020, eq. 4).

    tightness = mean over proxies present  log(1 + Σ_{same rows} e^{-α(s - margin)})
    contrast = mean over all proxies  log(1 + Σ_{different rows} e^{α(s + margin)})

    Present is a proxy whose class is in the batch. Of several proxies a class, each stands for
    itself. pytorch-metric-learning's ProxyAnchorLoss is the same.

    margin   how far beyond 0 the similarities aim: the same above margin, the different below
             -margin
    alpha    sharpness: how much the hardest rows of a proxy outweigh its others; above 0

    Use it to train fast: rows of a class meet in one sum, so batches of many rows converge in few
    epochs. Give the proxies a learning rate 100 times that of the encoder, as the authors do.

    Memory O(A·R): the similarities and one slope.

    Raises ValueError unless alpha is above 0.
    """
    positive(alpha=alpha)
    not_negative(margin=margin)
    if c.mined:
        raise ValueError(
            "proxy_anchor gathers rows by proxy, so no columns may be chosen row by row; leave the "
            "mining out, or take one that narrows (hard, multi_similarity)"
        )
    positives, hidden, columns = _own_and_others(c)

    def pull(own: Tensor) -> tuple[Tensor, Tensor]:
        place = positives.columns.view(-1)
        x = positives.fill((own - margin).mul_(-alpha), -torch.inf).view(-1)
        top = x.new_zeros(columns).scatter_reduce_(0, place, x, "amax")
        e = (x - top[place]).exp_()
        summed = (-top).exp_().index_add_(0, place, e)
        filled = place if positives.valid is None else place[positives.valid.view(-1)]
        present = x.new_zeros(columns).index_fill_(0, filled, 1.0).sum().clamp_min_(1)
        slope = e.div_(summed[place] * present).mul_(-alpha)
        return (top + summed.log_()).sum() / present, slope.view_as(own)

    def push(s: Tensor) -> tuple[Tensor, Tensor]:
        slope = hidden(s)
        total, wide = s.new_zeros(()), max(IN_CACHE // max(len(s), 1), 1)
        for e in slope.split(wide, 1) if len(s) else ():
            e.add_(margin).mul_(alpha)
            top = e.amax(0).clamp_min_(0)
            summed = e.sub_(top).exp_().sum(0).add_((-top).exp())
            e.mul_((alpha / columns) / summed)
            total += summed.log_().add_(top).sum()
        return total / columns, slope

    own, contrast = split(c.similarity, positives, push)
    return Terms(tightness=known(own, pull), contrast=contrast)


def _own_and_others(c: Comparison) -> tuple[Positives, Callable[[Tensor], Tensor], int]:
    """The own columns, what puts -inf in place of all but the different ones, and how many columns
    there are (at least 1)."""
    column, columns = own_column(c), max(c.shape[1], 1)
    if column is None:
        return c.positives, lambda s: torch.where(c.different, s, -torch.inf), columns
    return alone(column), lambda s: s.scatter(1, column[:, None], -torch.inf), columns


@home("proxies", "cosine")
def proxy_nca(c: Comparison, *, scale: float = 1.0) -> Terms:
    """Proxy-NCA, the own proxy not in its sum (Movshovitz-Attias et al. 2017).

    With d²_ik = scale² |x_i - p_k|² for unit rows and proxies:
    tightness = mean_i d²_iy          contrast = mean_i log Σ_{k≠y} e^{-d²_ik}

    As the sum leaves the own proxy out, the value can be negative and has no floor but that of the
    distances. scale stretches rows and proxies alike: many codes use 3. Rows without another class
    to meet are left out; of several own proxies the mean of their d² counts.
    pytorch-metric-learning's ProxyNCALoss has the own proxy in the sum: it is proxy_nca_plus_plus.

    scale   how far the sphere is stretched; the temperature is 1 / scale²

    Use it to reproduce the paper; otherwise take proxy_nca_plus_plus, whose value is at least 0.

    Equals log(e^L - 1) for each row, with L its proxy_nca_plus_plus at the same scale.

    Memory O(A·R) with several proxies a class; with one each, up to 256 MiB of logits are kept, and
    beyond O(A·8192).

    Raises ValueError unless scale is above 0, and for a comparison by inner products.
    """
    found, steep = _softmax_of_distances("proxy_nca", c, scale)
    rest, own = found.rest(), found.own_mean(found.own)
    scored = rest.detach() != -torch.inf
    scored = scored if found.scored is None else scored & found.scored
    return Terms(tightness=mean(steep - own, scored), contrast=mean(rest - steep, scored))


@home("proxies", "cosine")
def proxy_nca_plus_plus(c: Comparison, *, scale: float = 3.0) -> Terms:
    """ProxyNCA++: Proxy-NCA with the own proxy in its sum and a low temperature (Teh et al. 2020).

    With d²_ik = scale² |x_i - p_k|² for unit rows and proxies:
    tightness = mean_i d²_iy          contrast = mean_i log Σ_k e^{-d²_ik}

    The paper's temperature is 1 / scale² = 1/9. Of several own proxies the mean of their d² counts.
    pytorch-metric-learning's ProxyNCALoss is the same with softmax_scale = scale². The paper's
    other changes (max pooling, a higher learning rate of the proxies) are the trainer's.

    scale   how far the sphere is stretched: the higher, the more the nearest proxies count

    Use it as a proxy loss that is tuned by one number, given as a stretch of the sphere.

    Equals norm_softmax with temperature = 1 / (2 scale²).

    Memory O(A·R) with several proxies a class; with one each, up to 256 MiB of logits are kept, and
    beyond O(A·8192).

    Raises ValueError unless scale is above 0, and for a comparison by inner products.
    """
    found, steep = _softmax_of_distances("proxy_nca_plus_plus", c, scale)
    own, everyone = found.means(found.own)
    if not (c.shape[0] if found.scored is None else bool(found.scored.any())):
        steep = 0.0  # there is no distance
    return Terms(tightness=steep - own, contrast=everyone - steep)


def _softmax_of_distances(name: str, c: Comparison, scale: float) -> tuple[ClassSoftmax, float]:
    """A softmax over 2 scale² s, and 2 scale², by which -scale² d² lies below each logit."""
    positive(scale=scale)
    if c.closeness not in ("cosine", "euclidean"):
        raise ValueError(
            f"{name} needs distances, but the rows compare by {c.closeness!r}; use cosine or "
            "euclidean"
        )
    steep = 2 * scale**2
    return class_softmax(c, steep), steep
