"""A softmax over very many classes whose logits are never held together, in value and gradient.
Imports closed only."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nearkin.closed import (
    UnitRows,
    along_sphere,
    have_directions,
    made_of,
    once,
)
from nearkin.fast import compiled

ENTRIES = 1 << 20  # logits of a block, or numbers of its references: 4 MiB stay in cache
KEPT = 1 << 28  # bytes of exponentials that a gradient keeps; where they are more, it keeps none


class _NoDirections(ValueError):
    """Rows are so short or so long that their lengths must be found with care."""


def blocked_softmax(
    anchors: Tensor,
    references: Tensor | UnitRows,
    column: Tensor,
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """A softmax over many columns whose logits anchors·r + bias_r are never held together.

    references  (R, D); unit rows that nobody has read are not made: the logits of the rows that
                they come from are divided by their lengths
    column      (A,) int64: the column of each anchor that is kept apart

    Returns (A, 1) the logit of that column and (A,) log Σ e^logit over the others (-inf where there
    are none). Exact in value and gradient, in three matrix products where all (R, A) exponentials
    together take up to 256 MiB, which are kept for the gradient; in four above, where each block is
    computed once more. Memory O(A·block) beside them.
    """
    if isinstance(references, UnitRows):
        source = references.source
        try:
            return _BlockedSoftmax.apply(  # type: ignore[return-value]
                anchors, source, source.detach(), None, bias, column, True
            )
        except _NoDirections:
            references = references.made()
    source, length = made_of(references)
    rows = references.detach()
    return _BlockedSoftmax.apply(  # type: ignore[return-value]
        anchors, source, rows, length, bias, column, False
    )


class _BlockedSoftmax(torch.autograd.Function):
    """The logits of `references`, divided by their lengths where they are `raw`; the slope goes to
    `source`, which is what unit rows were made of, so that none to the unit rows is held."""

    @staticmethod
    def forward(
        ctx: Any,
        anchors: Tensor,
        source: Tensor,
        references: Tensor,
        length: Tensor | None,
        bias: Tensor | None,
        column: Tensor,
        raw: bool,
    ) -> tuple[Tensor, Tensor]:
        size = references.element_size() * anchors.shape[0] * references.shape[0]
        keeps = any(ctx.needs_input_grad) and size <= KEPT
        rest = None
        own, kept = anchors.new_empty(anchors.shape[0], 1), []
        blocks = _blocks(column, *references.shape)
        lengths = references.new_empty(references.shape[0], 1) if raw else None
        for part, rows, places in blocks:
            if lengths is not None:
                torch.linalg.vector_norm(references[part], dim=1, keepdim=True, out=lengths[part])
                if not have_directions(lengths[part], references.shape[1]):
                    raise _NoDirections
            logits = _logits(anchors, references, bias, part, lengths)
            own[rows, 0] = logits.view(-1)[places]
            top, total = _exponentials(logits, places)
            value = total.log_().add_(top)
            rest = value if rest is None else torch.logaddexp(rest, value)
            if keeps:
                kept += [logits, top]
        length = length if lengths is None else lengths
        ctx.save_for_backward(anchors, references, length, bias, own, rest, *kept)
        ctx.blocks, ctx.raw = blocks, raw
        ctx.set_materialize_grads(False)
        return own, rest  # type: ignore[return-value]

    @staticmethod
    @once
    def backward(ctx: Any, to_own: Tensor | None, to_rest: Tensor | None) -> tuple[Any, ...]:
        anchors, references, length, bias, own, rest, *kept = ctx.saved_tensors
        own = own[:, 0]
        raw = length if ctx.raw else None
        nothing = torch.zeros_like(rest)
        to_rest = nothing if to_rest is None else to_rest
        to_own = nothing if to_own is None else to_own[:, 0]
        to_anchors = torch.zeros_like(anchors) if ctx.needs_input_grad[0] else None
        to_source = torch.empty_like(references) if ctx.needs_input_grad[1] else None
        to_bias = torch.empty_like(bias) if ctx.needs_input_grad[4] else None
        least = torch.finfo(rest.dtype).tiny  # whose log is finite
        for i, (part, rows, places) in enumerate(ctx.blocks):
            if kept:
                share, top = kept[2 * i : 2 * i + 2]
            else:
                share = _logits(anchors, references, bias, part, raw)
                top, _ = _exponentials(share, places)
            # Without a rest the exponentials are 0, and so must be their weight.
            weight = to_rest * (top - rest).exp().nan_to_num_(0.0, 0.0)
            along, passes = None, compiled(share)
            if raw is not None and to_source is not None and not passes:
                along = share.clamp_min(least).log_().mul_(share) @ weight
            share = share * weight
            if along is not None:
                along.add_(share @ top).index_add_(0, places // len(rest), to_own[rows] * own[rows])
            share.view(-1).index_copy_(0, places, to_own[rows])
            if bias is not None:
                whole = share.sum(1)
                if to_bias is not None:
                    to_bias[part] = whole
                if along is not None:
                    along.addcmul_(whole, bias[part], value=-1)  # the logit less its bias
            if raw is not None:
                share.div_(raw[part])
            if to_anchors is not None:
                to_anchors.addmm_(share.T, references[part])
            if to_source is not None:
                slope = torch.mm(share, anchors, out=to_source[part])
                if along is not None and raw is not None:
                    # (g - (g·u) u) / |w| with u = w / |w|, where g·u is Σ share·logit of the row.
                    slope.addcmul_(along[:, None] / raw[part].square(), references[part], value=-1)
                elif raw is not None and passes:
                    passes.off_ray(slope.numpy(), references[part].numpy())
                elif length is not None:
                    along_sphere(slope, references[part], length[part], slope)
        return to_anchors, to_source, None, None, to_bias, None, None


def _blocks(
    column: Tensor, references: int, dim: int
) -> list[tuple[slice, Tensor | slice, Tensor]]:
    """Slices of the references, with the anchors whose own column lies in each, and where it lies
    in the block (block, A), flat."""
    anchors = len(column)
    size = max(ENTRIES // max(anchors, dim, 1), 1)
    flat = torch.arange(anchors, device=column.device).add_(column, alpha=anchors)
    if references <= size:
        return [(slice(0, references), slice(None), flat)]
    starts = torch.arange(0, references, size)
    flat, rows = flat.sort()
    edges = torch.searchsorted(flat, (starts * anchors).to(flat.device)).tolist()
    return [
        (slice(start, start + size), rows[i:j], flat[i:j] - start * anchors)
        for start, i, j in zip(starts.tolist(), edges, [*edges[1:], anchors], strict=True)
    ]


def _logits(
    anchors: Tensor,
    references: Tensor,
    bias: Tensor | None,
    part: slice,
    length: Tensor | None,
) -> Tensor:
    """(block, A), divided by the lengths (R, 1) where these are given."""
    # Classes lie along the rows: their gradient is then a product of matrices as they stand.
    logits = references[part] @ anchors.T
    if length is not None:
        logits.div_(length[part])
    return logits if bias is None else logits.add_(bias[part, None])


def _exponentials(logits: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """Turn (block, A) logits into e^{logit - top} in place, 0 at the flat `places`; top (A,) and
    their sums (A,)."""
    if passes := compiled(logits):
        top, total = logits.new_empty(2, logits.shape[1])
        passes.exponentials(logits.numpy(), places.numpy(), top.numpy(), total.numpy())
        return top, total
    logits.view(-1).index_fill_(0, places, -torch.inf)
    top = logits.amax(0).clamp_min_(torch.finfo(logits.dtype).min)
    logits.sub_(top).exp_()
    return top, logits.sum(0)
