"""Closeness: rows prepared so that a product is their similarity, ties included."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from nearkin.rows import Rows

# Two similarities that differ by less than this part of |q||g| are a tie. Rounding of a float64
# product stays below it, so that no order depends on block edges, threads or hardware.
TIE = 1e-12


@dataclass(frozen=True)
class Space:
    """How rows are compared: `query(x) @ gallery(x, slack).T` is the similarity plus its slack.

    A tie is allowed for by half on each side: relevant items are taken with slack -TIE/2, different
    ones with +TIE/2. The slack counts in units of the pair's scale: |q||g| for cosine (where it is
    1) and inner; (|q|² + |g|²)/2 for euclidean, which is never smaller than |q||g|.

    name      "cosine", "euclidean" or "inner"
    scale     a power of two near the largest entry, so that dividing by it rounds nothing
    middle    (D,) what euclidean rows are shifted by; None elsewhere
    """

    name: str
    scale: float
    middle: Tensor | None

    def query(self, x: Tensor) -> Tensor:
        """(B, E) float64 from (B, D): the left side of the product."""
        return _SIDES[self.name][0](self._placed(x))

    def gallery(self, x: Tensor, slack: float) -> Tensor:
        """(B, E) float64 from (B, D): the right side, similarities raised by `slack` of scale."""
        return _SIDES[self.name][1](self._placed(x), slack)

    def exact(self, x: Tensor) -> Tensor:
        """(B, D) float64 from (B, D): rows whose product, less `half` of the right one, is the
        similarity."""
        return unit(x) if self.name == "cosine" else self._placed(x)

    def norms(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Norms (B,) and halves (B,) of float64 rows (B, D), so that

        similarity(q, g) = |q| |g| (unit of q · unit of g) - half of g.

        Under cosine every norm counts as 1; halves are |g|²/2 under euclidean and 0 elsewhere.
        """
        norm = x.new_ones(len(x)) if self.name == "cosine" else self._placed(x).norm(dim=1)
        return norm, norm.square() / 2 if self.name == "euclidean" else torch.zeros_like(norm)

    def slack(self, query: Tensor, gallery: Tensor) -> Tensor:
        """Half a tie of pairs whose norms (as `norms` gives them) are `query` and `gallery`."""
        if self.name == "euclidean":
            return (TIE / 4) * (query.square() + gallery.square())
        return (TIE / 2) * query * gallery

    def _placed(self, x: Tensor) -> Tensor:
        x = x / self.scale
        return x if self.middle is None else x - self.middle


def space_of(name: str, queries: Rows, gallery: Rows) -> Space:
    """The space in which `queries` meet `gallery`. Raises ValueError for an unknown closeness."""
    if name not in _SIDES:
        near = difflib.get_close_matches(str(name), _SIDES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(_SIDES)}"
        raise ValueError(f"{name!r} is no closeness; {hint}")
    if name == "cosine":
        return Space(name, 1.0, None)  # `unit` scales each row by itself
    scale = _power_of_two(max(queries.largest, gallery.largest))
    if name != "euclidean":
        return Space(name, scale, None)
    total = torch.zeros(gallery.dim, dtype=torch.float64, device=gallery.device)
    for block in gallery.blocks():
        total += (block / scale).sum(0)
    # Distances do not see a common shift, but the expansion of d² cancels without it. A middle of
    # few digits makes the subtraction exact, so that rows on a grid keep their ties.
    middle = (total / len(gallery)).float().double()
    return Space(name, scale, middle)


def unit(x: Tensor) -> Tensor:
    """(B, D) rows scaled to length 1; a row of zeros stays: its similarity to all is 0."""
    x = x / x.abs().amax(1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
    return x / x.norm(dim=1, keepdim=True).clamp_min(0.5)


def _power_of_two(largest: float) -> float:
    # Bounded, so that neither the scale nor its inverse leaves the normal numbers.
    return 2.0 ** min(max(math.frexp(largest)[1], -1000), 1000) if largest > 0 else 1.0


def _cosine_query(x: Tensor) -> Tensor:
    return torch.cat([unit(x), x.new_ones(len(x), 1)], 1)


def _cosine_gallery(x: Tensor, slack: float) -> Tensor:
    return torch.cat([unit(x), x.new_full((len(x), 1), slack)], 1)


def _euclidean_query(x: Tensor) -> Tensor:
    # -d²/2 = q·g - |g|²/2 - |q|²/2; the last is the same for the whole gallery and left out.
    return torch.cat([x, x.square().sum(1, keepdim=True), x.new_ones(len(x), 1)], 1)


def _euclidean_gallery(x: Tensor, slack: float) -> Tensor:
    norm = x.square().sum(1, keepdim=True)
    return torch.cat([x, torch.full_like(norm, slack / 2), norm * (slack / 2) - norm / 2], 1)


def _inner_query(x: Tensor) -> Tensor:
    return torch.cat([x, x.norm(dim=1, keepdim=True)], 1)


def _inner_gallery(x: Tensor, slack: float) -> Tensor:
    return torch.cat([x, slack * x.norm(dim=1, keepdim=True)], 1)


_SIDES: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor, float], Tensor]]] = {
    "cosine": (_cosine_query, _cosine_gallery),
    "euclidean": (_euclidean_query, _euclidean_gallery),
    "inner": (_inner_query, _inner_gallery),
}
