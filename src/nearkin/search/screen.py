"""Similarities in lower precision, and a proven bound of how far they are off; used to screen."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

ROUND = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8}  # of one rounding, and of a cut


@dataclass(frozen=True)
class Bound:
    """|s - s'| <= flat + steep·|s'| for the product s of two unit rows and s', as it was computed.

    The proof stands in docs/evaluation.md.
    """

    flat: float
    steep: float


def bound_of(dtype: torch.dtype, dim: int, query: float, gallery: float) -> Bound:
    """The bound of a product of D = `dim` terms that is summed in float32, in any order.

    query, gallery  the largest distance of a unit row from its rounded one, on either side
    """
    terms = (dim + 4) * 2.0**-24
    sums = math.expm1(terms)  # at least (1 + 2^-24)^(D + 4) - 1, and finite
    # Rounded rows are no longer than 1 + their distance; 1e-30 covers what underflows.
    size = (1 + query) * (1 + gallery)
    flat = query + gallery * (1 + query) + sums * size + 1e-30
    # A result in float32 is rounded within the sum; one in bfloat16 is rounded once more.
    steep = ROUND[torch.bfloat16] * 1.01 if dtype == torch.bfloat16 else 0.0
    return Bound(flat * (1 + 1e-6) + 1e-14, steep)
