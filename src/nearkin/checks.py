"""What a loop of one's own hands in and gets back, checked at the border: wrong input raises here.
What is allowed and yet probably a mistake stands in guards."""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
from torch import Tensor, nn

from nearkin.core import Terms


def count(value: Any, what: str, least: int = 1) -> int | None:
    """A whole number of at least `least`, or None; raises ValueError that names `what`."""
    if value is None:
        return None
    try:
        whole = operator.index(value)
    except TypeError:
        whole = None
    if whole is None or isinstance(value, bool):
        raise ValueError(f"{what} must be a whole number, not {value!r:.60}")
    if whole < least:
        raise ValueError(f"{what} must be at least {least}, not {whole}")
    return whole


def check_embeddings(z: Any, what: str) -> None:
    """Raise ValueError unless `z` is a floating tensor (N, D) of finite numbers."""
    if not isinstance(z, Tensor) or z.ndim != 2 or not z.is_floating_point():
        seen = f"{tuple(z.shape)} {z.dtype}" if isinstance(z, Tensor) else type(z).__name__
        raise ValueError(f"{what} must be a floating tensor (N, D), not {seen}")
    # NaN passes through both ends: one pass over the rows, and no mask where all is well.
    if z.numel() and not all(map(math.isfinite, map(float, z.detach().aminmax()))):
        finite = torch.isfinite(z.detach())
        row = int((~finite).any(1).nonzero()[0, 0])
        raise ValueError(
            f"{what} hold NaN or infinity (first in row {row}); look at the step before: learning "
            "rate, inputs"
        )


def check_place(module: nn.Module, z: Tensor) -> None:
    """What a module keeps must lie where the embeddings lie, and learn in float64 if they do."""
    for kept in (*module.parameters(), *module.buffers()):
        learns = isinstance(kept, nn.Parameter)
        if kept.device != z.device or (learns and _is_double(kept) != _is_double(z)):
            raise ValueError(
                f"embeddings of {z.dtype} on {z.device} meet parameters of {kept.dtype} on "
                f"{kept.device}; bring them together with .to({str(z.device)!r}, {z.dtype})"
            )


def _is_double(x: Tensor) -> bool:
    return x.dtype == torch.float64


def check_references(references: Any, z: Tensor) -> None:
    """Raise ValueError unless `references` (R, D) can be compared with the embeddings `z` (N, D),
    and are other rows than these."""
    check_embeddings(references, "references")
    if len(z) and references.data_ptr() == z.data_ptr() and references.shape == z.shape:
        raise ValueError(
            "references are the embeddings themselves, so every row would be its own positive; "
            "leave references out"
        )
    kinds = [(x.shape[1], x.device, _is_double(x)) for x in (references, z)]
    if kinds[0] != kinds[1]:
        said = [f"{x.shape[1]} dimensions, {x.dtype} on {x.device}" for x in (references, z)]
        raise ValueError(f"references ({said[0]}) do not go with embeddings ({said[1]})")


def check_widths(labels: Tensor, reference_labels: Tensor) -> None:
    """Raise ValueError unless both are classes, or both multi-hot of one width."""
    if labels.shape[1:] != reference_labels.shape[1:]:
        raise ValueError(
            f"labels of shape {tuple(labels.shape)} meet reference_labels of "
            f"{tuple(reference_labels.shape)}; both must be classes, or multi-hot of one width"
        )


def checked_terms(terms: Any, name: str) -> Terms:
    """What the loss `name` returned, if it is Terms of 0-dim finite tensors; else ValueError."""
    if not isinstance(terms, Terms):
        raise ValueError(
            f"{name} returned {type(terms).__name__}; a loss returns nearkin.Terms, for example "
            "Terms(other={'joint': value})"
        )
    total = terms.total.detach()
    if total.ndim:
        raise ValueError(
            f"{name} returned terms of shape {tuple(total.shape)}; each part of Terms is a 0-dim "
            "tensor: take the mean"
        )
    if not math.isfinite(float(total)):
        raise ValueError(
            f"{name} is {float(total)} though the embeddings are finite; look at its settings"
        )
    return terms
