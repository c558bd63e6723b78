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
from nearkin.multiply import times

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
    bias = None if bias is None else bias.to(anchors.dtype)
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
            share, top, total, here = _exponentials(
                anchors, references, bias, lengths, part, places
            )
            own.index_copy_(0, rows, here[:, None])
            value = total.log_().add_(top)
            rest = value if rest is None else torch.logaddexp(rest, value)
            if keeps:
                kept += [share, top]
        length = length if lengths is None else lengths
        ctx.save_for_backward(anchors, references, length, bias, own, rest, column, *kept)
        ctx.blocks, ctx.raw = blocks, raw
        ctx.set_materialize_grads(False)
        return own, rest  # type: ignore[return-value]

    @staticmethod
    @once
    def backward(ctx: Any, to_own: Tensor | None, to_rest: Tensor | None) -> tuple[Any, ...]:
        anchors, references, length, bias, _, rest, _, *kept = ctx.saved_tensors
        raw = length if ctx.raw else None
        to_anchors = torch.zeros_like(anchors) if ctx.needs_input_grad[0] else None
        to_source = torch.empty_like(references) if ctx.needs_input_grad[1] else None
        to_bias = torch.empty_like(bias) if ctx.needs_input_grad[4] else None
        to_rest = torch.zeros_like(rest) if to_rest is None else to_rest
        for i, (part, _, places) in enumerate(ctx.blocks):
            if kept:
                share, top = kept[2 * i : 2 * i + 2]
            else:
                share, top, *_ = _exponentials(anchors, references, bias, raw, part, places)
            # The slope is share times this weight of each anchor, which goes to the (A, D) matrices
            # beside it. Without a rest the exponentials are 0, and so must be their weight.
            weight = to_rest * (top - rest).exp().nan_to_num_(0.0, 0.0)
            rows, lengths = references[part], None if raw is None else raw[part]
            if to_bias is not None:
                whole = torch.mv(share, weight, out=to_bias[part])
                if lengths is not None:
                    whole.mul_(lengths[:, 0])
            if to_anchors is not None:
                to_anchors.addcmul_(times(share.T, rows), weight[:, None])
            if to_source is None:
                continue
            slope = times(share, weight[:, None] * anchors, out=to_source[part])
            if lengths is not None:
                _off_ray(slope, rows, lengths)
            elif length is not None:
                along_sphere(slope, rows, length[part], slope)
        if to_own is not None:
            _add_own(ctx, to_own, to_anchors, to_source, to_bias)
        return to_anchors, to_source, None, None, to_bias, None, None


def _add_own(
    ctx: Any,
    to_own: Tensor,
    to_anchors: Tensor | None,
    to_source: Tensor | None,
    to_bias: Tensor | None,
) -> None:
    """What the slope of the own logits (A, 1) adds to those of anchors, source and bias."""
    anchors, references, length, _, _, _, column, *_ = ctx.saved_tensors
    rows = references[column]
    if ctx.raw:
        rows /= length[column]
    if to_anchors is not None:
        to_anchors.addcmul_(to_own, rows)
    if to_bias is not None:
        to_bias.index_add_(0, column, to_own[:, 0])
    if to_source is None:
        return
    if length is None:
        slope = anchors
    else:
        along = (anchors * rows).sum(1, keepdim=True)
        slope = torch.addcmul(anchors, along, rows, value=-1).div_(length[column])
    to_source.index_add_(0, column, to_own * slope)


def _blocks(column: Tensor, references: int, dim: int) -> list[tuple[slice, Tensor, Tensor]]:
    """Slices of the references, with the anchors whose own column lies in each, and where it lies
    in the block (block, A), flat."""
    anchors = len(column)
    size = max(ENTRIES // max(anchors, dim, 1), 1)
    flat = torch.arange(anchors, device=column.device).add_(column, alpha=anchors)
    if references <= size:
        return [(slice(0, references), torch.arange(anchors, device=column.device), flat)]
    starts = torch.arange(0, references, size)
    flat, rows = flat.sort()
    edges = torch.searchsorted(flat, (starts * anchors).to(flat.device)).tolist()
    return [
        (slice(start, start + size), rows[i:j], flat[i:j] - start * anchors)
        for start, i, j in zip(starts.tolist(), edges, [*edges[1:], anchors], strict=True)
    ]


def _exponentials(
    anchors: Tensor,
    references: Tensor,
    bias: Tensor | None,
    length: Tensor | None,
    part: slice,
    places: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """share (block, A) = e^{logit - top}, 0 at the flat `places`, over the lengths (R, 1) of the
    references where these are given; top (A,), Σ e^{logit - top} (A,) and the logits at
    `places`."""
    # Classes lie along the rows: their gradient is then a product of matrices as they stand.
    logits = times(references[part], anchors.T)
    lengths = None if length is None else length[part]
    shift = None if bias is None else bias[part, None]
    if passes := compiled(logits):
        top, total = logits.new_empty(2, logits.shape[1])
        own = logits.new_empty(len(places))
        given = [_entries(x, logits) for x in (lengths, shift)]
        out = own.numpy(), top.numpy(), total.numpy()
        passes.exponentials(logits.numpy(), places.numpy(), *given, *out)
        return logits, top, total, own
    if lengths is not None:
        logits.div_(lengths)
    if shift is not None:
        logits.add_(shift)
    own = logits.view(-1)[places]
    logits.view(-1).index_fill_(0, places, -torch.inf)
    top = logits.amax(0).clamp_min_(torch.finfo(logits.dtype).min)
    total = logits.sub_(top).exp_().sum(0)
    return logits if lengths is None else logits.div_(lengths), top, total, own


def _entries(x: Tensor | None, like: Tensor) -> Any:
    """What a compiled pass reads of a column (block, 1); no entries for None."""
    x = like.new_empty(0) if x is None else x.detach()[:, 0]
    return x.contiguous().numpy()


def _off_ray(slope: Tensor, rows: Tensor, length: Tensor) -> None:
    """Take from the slope (block, D), in place, its part along each of the rows, of these lengths
    (block, 1): rows whose length does not count have none."""
    if passes := compiled(slope):
        passes.off_ray(slope.numpy(), rows.numpy(), length.numpy())
        return
    along = (slope * rows).sum(1, keepdim=True).div_(length).div_(length)
    slope.addcmul_(along, rows, value=-1)
