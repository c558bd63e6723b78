"""Soft ranks of the positives of each anchor, and their gradient. Imports closed only."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from nearkin.closed import in_blocks, once
from nearkin.positives import Positives


def soft_ranks(
    similarity: Tensor, positives: Positives, mask: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """(A, P) the positives' similarities, and (A, P) how many columns of the mask (A, R) are more
    similar than each positive p, softly: Σ_mask σ((s_j - s_p) / temperature).

    A positive that is in the mask counts ½ for itself. Places that a row of positives does not fill
    hold the count of column 0. Time O(A·R·P), memory O(A·R): the backward pass computes the
    sigmoids once more.
    """
    return _SoftRanks.apply(similarity, positives.columns, mask, temperature)  # type: ignore[return-value]


class _SoftRanks(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, similarity: Tensor, columns: Tensor, mask: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor]:
        own = similarity.gather(1, columns)
        ranks = torch.empty_like(own)
        for part in in_blocks((*columns.shape, similarity.shape[1])):
            ranks[part] = _ahead(similarity[part], own[part], mask[part], temperature).sum(2)
        ctx.save_for_backward(similarity, columns, mask)
        ctx.temperature = temperature  # type: ignore[attr-defined]
        return own, ranks

    @staticmethod
    @once
    def backward(ctx: FunctionCtx, to_own: Tensor, to_ranks: Tensor) -> tuple[Tensor | None, ...]:
        similarity, columns, mask = ctx.saved_tensors  # type: ignore[attr-defined]
        temperature = ctx.temperature  # type: ignore[attr-defined]
        own = similarity.gather(1, columns)
        to_ranks = to_ranks / temperature
        to_own = to_own.clone()
        slope = torch.empty_like(similarity)
        for part in in_blocks((*columns.shape, similarity.shape[1])):
            ahead = _ahead(similarity[part], own[part], mask[part], temperature)
            weight = torch.ops.aten.sigmoid_backward(to_ranks[part].unsqueeze(2), ahead)
            to_own[part] -= weight.sum(2)
            torch.sum(weight, 1, out=slope[part])
        return slope.scatter_add_(1, columns, to_own), None, None, None


def _ahead(similarity: Tensor, own: Tensor, mask: Tensor, temperature: float) -> Tensor:
    """(A, P, R): σ((s_j - s_p) / temperature), 0 outside the mask."""
    seen = torch.where(mask, similarity, -torch.inf)
    return (seen[:, None] - own[:, :, None]).div_(temperature).sigmoid_()
