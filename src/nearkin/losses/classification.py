"""Softmax losses over columns of classes: cross-entropy, its relative over class sums, normalized
and with margins. No proxies as neighbors: these stand in proxies."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from nearkin.core import Comparison, Terms, home
from nearkin.reduce import by_class, class_softmax, moved, not_negative, positive


@home("classifier", "inner")
def cross_entropy(c: Comparison, *, label_smoothing: float = 0.0) -> Terms:
    """Cross-entropy over the logits of a classifier, with the paper's label smoothing (Boudiaf et
    al. 2020, table 2).

    tightness = -mean_i [(1-ε) l_iy + ε/(K-1) Σ_{k≠y} l_ik]
    contrast = mean_i log Σ_k e^{l_ik}

    ε is label_smoothing and l the logits. ε/(K-1) falls on each other class, where torch's
    `label_smoothing` puts ε/K on every class: torch's e = ε K/(K-1) is the same. The value is
    without the constant -H(q) of the paper's code. Rows without a column of their own are left out;
    of several own columns (several proxies a class, multi-hot labels) the mean of their l counts.

    label_smoothing   how much of a row's target the other classes share, in [0, 1)

    Use it first: with a few hundred or thousand classes and no tuning, a classifier's features are
    as good an embedding as most pair losses give. Label smoothing 0.1 is the paper's choice.

    Equals at a regular simplex of K unit rows and unit weights its least value under these norms,
    log(1 + (K-1) e^{-K/(K-1)}).

    Memory O(A·R) where several columns are one class's; with one each, up to 256 MiB of logits are
    kept, and beyond O(A·8192).

    Raises ValueError for a label_smoothing outside [0, 1).
    """
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing must be in [0, 1), not {label_smoothing}")
    found = class_softmax(c)
    target, everyone = found.means(found.own)
    if label_smoothing and c.shape[1] > 1:
        others = found.mean(found.others())
        target = (1 - label_smoothing) * target + label_smoothing * others
    return Terms(tightness=-target, contrast=everyone)


@home("centers", "inner", kind="sums")
def spce(c: Comparison, *, scale: float = 1.0) -> Terms:
    """Simplified pairwise cross-entropy: the class sums of the batch are the weights (Boudiaf et
    al. 2020, eq. 15).

    tightness = -scale Σ_k |m_k|²          contrast = (1/n) Σ_i log Σ_k e^{scale z_i·m_k}

    m_k = (1/n) Σ_{i in k} z_i over the batch; classes that are not in it have no m. Nearly flat for
    many classes of unit rows, as m_k is about 1/K long: raise scale then.

    scale   sharpness, 1 / temperature

    Use it where a classifier's weights cannot be kept, with rows that are not normalized.

    Equals cross-entropy with the weights m_k and no bias.

    Memory O(A·R), at most 256 MiB of it for the gradient.

    Raises ValueError unless scale is above 0.
    """
    positive(scale=scale)
    return _softmax(c, scale)


@home("proxies", "cosine")
def norm_softmax(c: Comparison, *, temperature: float | Tensor = 0.05) -> Terms:
    """Normalized softmax: cross-entropy over cosines to class proxies (Zhai & Wu 2019).

    tightness = -mean_i s_iy / temperature          contrast = mean_i log Σ_k e^{s_ik / temperature}

    Of several proxies a class, the mean of the own s counts. The temperature may be learned.
    pytorch-metric-learning's NormalizedSoftmaxLoss is the same.

    temperature   the lower, the more the nearest other classes count; above 0

    Use it as the strong and simple proxy loss: one number to set, stable from the first step.

    Equals proxy_nca_plus_plus with scale = √(1 / (2 temperature)), and cosface and arcface without
    a margin at scale = 1 / temperature.

    Memory O(A·R) with several proxies a class; with one each, up to 256 MiB of cosines are kept,
    and beyond O(A·8192).

    Raises ValueError unless the temperature is above 0.
    """
    positive(temperature=temperature)
    return _softmax(c, 1 / temperature)


@home("proxies", "cosine")
def cosface(c: Comparison, *, margin: float = 0.35, scale: float = 64.0) -> Terms:
    """Large-margin cosine loss (Wang et al. 2018, eq. 4).

    With l_ik = scale (cos_ik - margin [k = y_i]):
    tightness = -mean_i l_iy          contrast = mean_i log Σ_k e^{l_ik}

    Of several proxies a class, each bears the margin and the mean of the own l counts.
    pytorch-metric-learning's CosFaceLoss is the same.

    margin   how much nearer, in cosine, the own proxy must be than the others; at least 0
    scale    sharpness, 1 / temperature: the higher, the more the nearest other classes count

    Use it for very many classes (faces, products) and long trainings; start with a lower scale
    (about 20) if the loss does not fall in the first epochs.

    Equals norm_softmax with temperature = 1 / scale at margin 0.

    Memory O(A·R) with several proxies a class; with one each, up to 256 MiB of cosines are kept,
    and beyond O(A·8192).

    Raises ValueError unless scale is above 0 and margin at least 0.
    """
    positive(scale=scale)
    not_negative(margin=margin)
    return _softmax(c, scale, lambda own: own - scale * margin)


@home("proxies", "cosine")
def arcface(c: Comparison, *, margin: float = 0.5, scale: float = 64.0) -> Terms:
    """Additive angular margin loss, margin in radians (Deng et al. 2019, eq. 3).

    With θ the angle to a proxy, l_ik = scale cos θ_ik, but l_iy = scale ψ(θ_iy):
    tightness = -mean_i l_iy          contrast = mean_i log Σ_k e^{l_ik}

    ψ(θ) = cos(θ + margin), and beyond θ = π - margin, where that would rise again, the line
    cos θ - margin sin(margin) of the authors' code (without its easy_margin). At θ = 0, where ψ has
    a corner, the gradient is that of cos(θ) cos(margin). Of several proxies a class, each bears the
    margin and the mean of the own l counts. pytorch-metric-learning's ArcFaceLoss is the same with
    its margin in degrees.

    margin   how much wider, in radians, the angle to the own proxy is made; from 0 to π/2
    scale    sharpness, 1 / temperature: the higher, the more the nearest other classes count

    Use it like cosface; the margin in the angle is the same at all distances from the proxy.

    Equals norm_softmax with temperature = 1 / scale at margin 0.

    Memory O(A·R) with several proxies a class; with one each, up to 256 MiB of cosines are kept,
    and beyond O(A·8192).

    Raises ValueError for a comparison by inner products or by euclidean distance, unless scale is
    above 0 and unless the margin is between 0 and π/2.
    """
    _check_angles("arcface", c, margin, scale)
    return _softmax(c, scale, lambda own: moved(own, _wider(margin, scale)))


@home("proxies", "cosine", per_class=3)
def sub_center_arcface(c: Comparison, *, margin: float = 0.5, scale: float = 64.0) -> Terms:
    """ArcFace with several proxies a class, of which the nearest counts (Deng et al. 2020).

    With cos θ_ik = max_m cos_ikm over the proxies of class k, l_ik = scale cos θ_ik, but
    l_iy = scale ψ(θ_iy) with the ψ of arcface:
    tightness = -mean_i l_iy          contrast = mean_i log Σ_k e^{l_ik}

    Only the nearest proxy of each class gets a gradient; two equally near ones share it.
    pytorch-metric-learning's SubCenterArcFaceLoss is the same with its margin in degrees; the
    paper's second step, to drop rows far from their class's main proxy and train again, is not
    here.

    margin   how much wider, in radians, the angle to the own class is made; from 0 to π/2
    scale    sharpness, 1 / temperature: the higher, the more the nearest other classes count

    Use it instead of arcface where labels are noisy or classes have several looks: rows that do not
    fit gather at a proxy of their own.

    Equals arcface with one proxy a class.

    Memory O(A·R).

    Raises ValueError as arcface does, and for classes that have not as many proxies each.
    """
    _check_angles("sub_center_arcface", c, margin, scale)
    similarity, label = by_class(c)
    # Many times faster than a maximum over a short last axis.
    nearest, *others = similarity.unbind(2)
    for other in others:
        nearest = torch.maximum(nearest, other)
    of_classes = replace(c, reference_label=label, given=nearest, anchors=None, references=None)
    return _softmax(of_classes, scale, lambda own: moved(own, _wider(margin, scale)))


def _as_they_are(own: Tensor) -> Tensor:
    return own


def _softmax(
    c: Comparison,
    scale: float | Tensor,
    with_margin: Callable[[Tensor], Tensor] = _as_they_are,
) -> Terms:
    """A softmax over scale·s, the own logits with their margin."""
    found = class_softmax(c, scale)
    target, everyone = found.means(with_margin(found.own))
    return Terms(tightness=-target, contrast=everyone)


def _check_angles(name: str, c: Comparison, margin: float, scale: float) -> None:
    positive(scale=scale)
    if not 0 <= margin <= math.pi / 2:
        raise ValueError(
            f"margin must be in radians from 0 to {math.pi / 2:.4f}, not {margin}; that many "
            f"degrees are {math.radians(margin):.4f}"
        )
    if c.closeness in ("inner", "euclidean"):
        raise ValueError(
            f"{name} needs angles, but the rows compare by {c.closeness!r}; use cosine"
        )


def _wider(margin: float, scale: float) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """scale ψ of logits scale cos θ, and its slope: ψ is the cosine of an angle that is wider by
    the margin, made to fall up to π."""
    along, across = math.cos(margin), math.sin(margin)

    def wider(logits: Tensor) -> tuple[Tensor, Tensor]:
        cos = logits / scale
        # Rounding can put a cosine beyond ±1.
        sin = ((1 - cos) * (1 + cos)).clamp_min_(0).sqrt_()
        line = cos < -along
        value = torch.where(line, cos - margin * across, along * cos - across * sin)
        # The root has an infinite slope at ±1; there it is left out.
        turn = torch.where(sin > 0, cos / sin, 0.0)
        slope = torch.where(line, 1.0, turn.mul_(across).add_(along))
        return value.mul_(scale), slope

    return wider
