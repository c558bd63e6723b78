"""The nearest items of chosen queries, exact and on demand, as the metrics of rankings see them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nearkin.evaluation.relevance import groups_of
from nearkin.rows import Rows
from nearkin.search.nearest import LAST, nearest
from nearkin.search.products import precisions
from nearkin.search.side import Side
from nearkin.search.space import space_of


@dataclass(frozen=True, eq=False)
class Neighbors:
    """The K nearest items of B queries, nearest first.

    index       (B, K) int64: places in the gallery, or in z; -1 behind the last one there is
    similarity  (B, K) float64 by the closeness: cosine, -|q - g|²/2 or q·g; NaN there
    """

    index: np.ndarray
    similarity: np.ndarray


def neighbors(
    z: Any,
    queries: Any,
    k: int = 10,
    gallery: Any = None,
    closeness: str = "cosine",
    exclude: Any = None,
) -> Neighbors:
    """The K nearest items of `queries`, without themselves and without what `exclude` skips.

    z          (N, D) as given to `evaluate`, with gallery, closeness and exclude as there
    queries    (B,) int64: the rows of z that are asked about, such as those a metric went wrong on
    k          at least 1

    Items that tie come in the order of their places: here no labels are known.
    Raises as `evaluate` does, and ValueError for queries that are no rows of z.
    """
    rows = Rows(z)
    items = rows if gallery is None else Rows(gallery, "gallery")
    if items.dim != rows.dim:
        raise ValueError(f"z has {rows.dim} dimensions but gallery has {items.dim}")
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise ValueError(f"k must be 1 or more, not {k!r}")
    chosen = torch.as_tensor(np.asarray(queries))
    if chosen.ndim != 1 or chosen.is_floating_point() or chosen.dtype == torch.bool:
        raise ValueError("queries must be (B,) integers: the rows of z that are asked about")
    chosen = chosen.long()
    if len(chosen) and not 0 <= int(chosen.min()) <= int(chosen.max()) < len(rows):
        raise ValueError(f"queries must be 0..{len(rows) - 1}, the rows of z")
    groups = groups_of(exclude, len(rows), None if gallery is None else len(items))
    if not len(chosen):
        return Neighbors(np.zeros((0, k), np.int64), np.zeros((0, k)))
    space = space_of(closeness, rows, items)
    left, right = Side(Rows(rows.block(chosen)), space), Side(items, space)
    for side in (left, right):
        side.round_to(precisions(rows.dim, rows.device)[0])
    skipped = chosen.to(rows.device) if gallery is None else None
    wanted = min(k, len(items))
    while True:
        value, place = nearest(left, right, wanted, skipped=skipped)
        kept = place != LAST
        if groups is not None:
            there = groups[1].to(place.device)[place.masked_fill(~kept, 0)]
            kept &= there != groups[0].to(place.device)[chosen][:, None]
        if wanted == len(items) or bool((kept.sum(1) >= k).all()):
            return _first(value, place, kept, k, left)
        wanted = min(2 * wanted, len(items))  # groups were skipped: look further


def _first(value: Tensor, place: Tensor, kept: Tensor, k: int, queries: Side) -> Neighbors:
    """The first K kept ones of every row."""
    order = torch.argsort((~kept).long(), dim=1, stable=True)[:, :k]
    kept, value, place = (x.gather(1, order) for x in (kept, value, place))
    space = queries.space
    if space.name == "euclidean":
        value = value - queries.norm.square()[:, None] / 2
    if space.name != "cosine":
        value = value * space.scale * space.scale
    value = value.masked_fill(~kept, torch.nan)
    place = place.masked_fill(~kept, -1)
    if value.shape[1] < k:
        more = (0, k - value.shape[1])
        value = torch.nn.functional.pad(value, more, value=torch.nan)
        place = torch.nn.functional.pad(place, more, value=-1)
    return Neighbors(place.cpu().numpy(), value.cpu().numpy())
