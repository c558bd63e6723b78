"""Reductions that losses share: masked means and log-sum-exps, and a softmax over many classes in
blocks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from nearkin.closed import Positives

BLOCK = 8192  # classes at a time: (128, 8192) float32 logits are 4 MiB and stay in cache


def positive(**settings: float | Tensor) -> None:
    """Raise ValueError for a setting of a loss that is not above 0, naming it and its value."""
    for name, value in settings.items():
        if not value > 0:
            raise ValueError(f"{name} must be above 0, not {value}")


def mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of `x` where `mask` (bool, same shape); 0 with gradient 0 where the mask is empty."""
    return torch.where(mask, x, 0.0).sum() / mask.sum().clamp_min(1)


def ratio(total: Tensor, count: Tensor) -> Tensor:
    """total / count, and 0 where the count is 0."""
    return total / count.clamp_min(1)


def logsumexp(x: Tensor, mask: Tensor, dim: int = 1) -> Tensor:
    """log Σ exp x over the entries of `mask`; -inf, with gradient 0, where there are none."""
    hidden = torch.where(mask, x, -torch.inf)
    empty = ~mask.any(dim, keepdim=True)
    # logsumexp of nothing but -inf has a NaN gradient, so an empty row is reduced over zeros and
    # hidden after.
    value = torch.where(empty, 0.0, hidden).logsumexp(dim)
    return torch.where(empty.squeeze(dim), -torch.inf, value)


def log1p_sum_exp(x: Tensor, mask: Tensor, dim: int = 1) -> Tensor:
    """log(1 + Σ exp x) over the entries of `mask`; 0, with gradient 0, where there are none."""
    hidden = torch.where(mask, x, -torch.inf)
    shape = list(x.shape)
    shape[dim] = 1
    return torch.cat([hidden, x.new_zeros(shape)], dim).logsumexp(dim)


def logsumexp_over(positives: Positives, x: Tensor) -> Tensor:
    """(A,): log Σ exp x over the positives of each anchor, x (A, P); -inf, with gradient 0, where
    there are none."""
    if positives.valid is None and x.shape[1]:
        return x.logsumexp(1)
    valid = torch.zeros_like(x, dtype=torch.bool) if positives.valid is None else positives.valid
    return logsumexp(x, valid)


def softplus(x: Tensor) -> Tensor:
    """log(1 + e^x), exact in float64: torch's own turns into x at 20, where 2e-9 is missing."""
    return F.softplus(x, threshold=40)


def blocked_logsumexp(
    anchors: Tensor, references: Tensor, bias: Tensor | None = None, block: int = BLOCK
) -> Tensor:
    """(A,): log Σ_r exp(anchors·r + bias_r) without ever holding (A, R); memory O(A·block).

    The backward pass computes each block of logits once more.
    """
    bias = references.new_zeros(len(references)) if bias is None else bias
    return _BlockedLogSumExp.apply(anchors, references, bias, block)  # type: ignore[return-value]


class _BlockedLogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, anchors: Tensor, references: Tensor, bias: Tensor, block: int
    ) -> Tensor:
        total = anchors.new_full((len(anchors),), -torch.inf)
        for r, b in zip(references.split(block), bias.split(block), strict=True):
            total = torch.logaddexp(total, torch.addmm(b, anchors, r.T).logsumexp(1))
        ctx.save_for_backward(anchors, references, bias, total)
        ctx.block = block  # type: ignore[attr-defined]
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, slope: Tensor) -> tuple[Tensor | None, ...]:
        anchors, references, bias, total = ctx.saved_tensors  # type: ignore[attr-defined]
        to_anchors = torch.zeros_like(anchors)
        to_references, to_bias = torch.empty_like(references), torch.empty_like(bias)
        for start in range(0, len(references), ctx.block):  # type: ignore[attr-defined]
            part = slice(start, start + ctx.block)  # type: ignore[attr-defined]
            share = torch.addmm(bias[part], anchors, references[part].T).sub_(total[:, None]).exp_()
            share *= slope[:, None]
            to_anchors.addmm_(share, references[part])
            torch.mm(share.T, anchors, out=to_references[part])
            to_bias[part] = share.sum(0)
        return to_anchors, to_references, to_bias, None
