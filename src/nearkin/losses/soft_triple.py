"""SoftTriple: a softmax over classes that have several centers each. The centers live in `compare`;
nothing here has state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from nearkin.closed import distance_slope, distances, known, once
from nearkin.core import Comparison, Terms, at_least_float32, home
from nearkin.reduce import by_class, class_softmax, not_negative, positive


@home("proxies", "cosine", per_class=10)
def soft_triple(
    c: Comparison,
    *,
    scale: float = 20.0,
    gamma: float = 0.1,
    margin: float = 0.01,
    spread: float = 0.2,
) -> Terms:
    """SoftTriple loss: a softmax over classes that have several centers each (Qian et al. 2019).

    With S_ik = Σ_m q_m s_ikm, q = softmax over the centers m of class k of s_ikm / γ, and
    l_ik = scale (S_ik - margin [k = y_i]):
    tightness = -mean_i l_iy          contrast = mean_i log Σ_k e^{l_ik}
    spread = τ / (K M (M-1)) Σ_k Σ_{m<n} √(2 - 2 w_km·w_kn)

    scale     λ of the paper: inverse temperature over classes
    gamma     γ: temperature over the centers of a class
    margin    δ
    spread    τ: how strongly the M centers of a class are drawn together, so that a class uses as
              many as it needs; 0 leaves them alone

    The third part stands in `other`. pytorch-metric-learning's SoftTripleLoss is the same without
    it; with weight_regularizer=SparseCentersRegularizer(K, M) and weight_reg_weight=τ it is the
    whole, but for a tiny number that it adds under the root.

    Use it where a class has several looks (colors, poses, sub-types) and one proxy would pull them
    together.

    Equals cosface, scaled alike, with one center a class.

    Memory O(A·R).

    Raises ValueError unless scale and gamma are above 0 and margin and spread at least 0, for a
    comparison that is not by cosine, and for classes that have not as many centers each.
    """
    positive(scale=scale, gamma=gamma)
    not_negative(margin=margin, spread=spread)
    if c.closeness in ("inner", "euclidean"):
        raise ValueError(
            f"soft_triple needs angles, but the rows compare by {c.closeness!r}; use cosine"
        )
    similarity, label = by_class(c)
    relaxed: Tensor = _Relaxed.apply(similarity, gamma)  # type: ignore[assignment]
    of_classes = replace(c, reference_label=label, given=relaxed, anchors=None, references=None)
    found = class_softmax(of_classes, scale)
    target, everyone = found.means(found.own - scale * margin)
    return Terms(
        tightness=-target,
        contrast=everyone,
        other=_spread(c, len(label), spread),
    )


class _Relaxed(torch.autograd.Function):
    """(A, C, M) similarities -> (A, C): Σ_m softmax_m(s / γ) s. Only its slope is kept."""

    @staticmethod
    def forward(ctx: Any, similarity: Tensor, gamma: float) -> Tensor:
        share = (similarity / gamma).softmax(2)
        relaxed = (share * similarity).sum(2)
        # ∂S/∂s_m = q_m (1 + (s_m - S) / γ)
        slope = (similarity - relaxed[:, :, None]).div_(gamma).add_(1).mul_(share)
        ctx.save_for_backward(slope)
        return relaxed

    @staticmethod
    @once
    def backward(ctx: Any, to_relaxed: Tensor) -> tuple[Tensor, None]:
        (slope,) = ctx.saved_tensors
        return slope * to_relaxed[:, :, None], None


def _spread(c: Comparison, classes: int, weight: float) -> Mapping[str, Tensor]:
    """What draws the centers of a class together, where the centers are known."""
    if c.references is None or not weight:
        return {}
    with torch.autocast(c.references.device.type, enabled=False):
        centers = at_least_float32(c.references).unflatten(0, (classes, -1))
        among = torch.bmm(centers, centers.transpose(1, 2))
    each = centers.shape[1]

    def apart(s: Tensor) -> tuple[Tensor, Tensor]:
        d = distances(s)
        return d.triu(1).sum(), distance_slope(d).triu_(1)

    pairs = max(classes * each * (each - 1), 1)
    return {"spread": weight * known(among, apart) / pairs}
