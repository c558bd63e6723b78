"""What a loop of one's own hands in and gets back, checked at the border: wrong input raises here.
What is allowed and yet probably a mistake stands in guards."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from nearkin.core import Terms, warn_once


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
    check_rows(z, what)
    row = broken_row(z)
    if row is not None:
        raise ValueError(
            f"{what} hold NaN or infinity (first in row {row}); look at the step before: learning "
            "rate, inputs"
        )


def check_rows(z: Any, what: str) -> None:
    """Raise ValueError unless `z` is a floating tensor (N, D)."""
    if not isinstance(z, Tensor) or z.ndim != 2 or not z.is_floating_point():
        seen = f"{tuple(z.shape)} {z.dtype}" if isinstance(z, Tensor) else type(z).__name__
        raise ValueError(f"{what} must be a floating tensor (N, D), not {seen}")


def broken_row(z: Tensor) -> int | None:
    """The first row of `z` (N, D) that holds NaN or infinity."""
    # NaN and infinity stay in a sum: one pass over the rows, and no mask where all is well. A sum
    # may be too large as well, and then each entry is asked.
    if math.isfinite(float(z.detach().sum())):
        return None
    broken = (~torch.isfinite(z.detach())).any(1)
    return int(broken.nonzero()[0, 0]) if bool(broken.any()) else None


def check_place(module: nn.Module, z: Tensor) -> None:
    """What a module keeps must lie where the embeddings lie, and learn in float64 if they do."""
    for kept in _kept(module):
        learns = isinstance(kept, nn.Parameter)
        if kept.device != z.device or (learns and _is_double(kept) != _is_double(z)):
            raise ValueError(
                f"embeddings of {z.dtype} on {z.device} meet parameters of {kept.dtype} on "
                f"{kept.device}; bring them together with .to({str(z.device)!r}, {z.dtype})"
            )


def _kept(module: nn.Module) -> Iterator[Tensor]:
    """Parameters and buffers, some perhaps twice: torch's own way takes as long as a small loss."""
    waiting = [module]
    while waiting:
        one = waiting.pop()
        waiting += (inner for inner in one._modules.values() if inner is not None)
        for tensors in (one._parameters, one._buffers):
            yield from (tensor for tensor in tensors.values() if tensor is not None)


def _is_double(x: Tensor) -> bool:
    return x.dtype == torch.float64


def check_references(references: Any, z: Tensor) -> None:
    """Raise ValueError unless `references` (R, D) can be compared with the embeddings `z` (N, D),
    and are other rows than these; a copy of them is warned of once."""
    check_embeddings(references, "references")
    if _share_a_row(references, z):
        whole = references.shape == z.shape
        raise ValueError(
            f"references {'are' if whole else 'contain'} the embeddings themselves, so every row "
            f"would be its own positive; {'leave references out' if whole else 'take them out'}"
        )
    kinds = [(x.shape[1], x.device, _is_double(x)) for x in (references, z)]
    if kinds[0] != kinds[1]:
        said = [f"{x.shape[1]} dimensions, {x.dtype} on {x.device}" for x in (references, z)]
        raise ValueError(f"references ({said[0]}) do not go with embeddings ({said[1]})")
    alike = references.shape == z.shape and references.dtype == z.dtype and len(z) > 0
    if alike and torch.equal(references, z):
        warn_once(
            "references equal the embeddings row by row, so every row is its own positive; if they "
            "are a copy of the batch, leave references out"
        )


def _share_a_row(a: Tensor, b: Tensor) -> bool:
    """Whether a row of one is a row of the other in memory, as in views of one tensor."""
    if not (a.numel() and b.numel()):
        return False
    if a.untyped_storage().data_ptr() != b.untyped_storage().data_ptr():
        return False
    return not _begins(a).isdisjoint(_begins(b))


def _begins(x: Tensor) -> set[int]:
    """Where the rows begin in memory."""
    first, step = int(x.storage_offset()), int(x.stride(0))
    return {first + step * i for i in range(len(x))}


def check_said(z: Tensor, label: Tensor, classes: int | None, dim: int | None) -> None:
    """Raise ValueError where embeddings (N, D) and labels (N,) or (N, L) are not what `classes` and
    `dim` say, if they say anything."""
    if dim is not None and z.shape[1] != dim:
        raise ValueError(
            f"embeddings of {z.shape[1]} dimensions, but dim={dim}; set dim to {z.shape[1]}"
        )
    if classes is None or not len(label):
        return
    if label.ndim > 1 and label.shape[1] != classes:
        raise ValueError(
            f"multi-hot labels of width {label.shape[1]} meet {classes} classes; make them equal"
        )
    if label.ndim == 1 and int(label.max()) >= classes:
        raise ValueError(
            f"label {int(label.max())} is out of range of the classes 0..{classes - 1}; give "
            "`classes` the number of training classes and number the labels from 0"
        )


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
