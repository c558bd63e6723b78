"""k-means by exact assignment: the nearest center of every row, from screened tiles."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nearkin.rows import Rows
from nearkin.search.nearest import nearest
from nearkin.search.products import precisions
from nearkin.search.side import Side
from nearkin.search.space import Space, space_of


@dataclass(frozen=True, eq=False)
class Clusters:
    """What k-means found.

    assigned  (N,) int64: the nearest center of each row, of equally near ones the first
    centers   (K, D) float64: the means of the rows assigned in the last pass
    inertia   sum of squared distances of rows to their centers
    passes    assignments that were made
    """

    assigned: np.ndarray
    centers: np.ndarray
    inertia: float
    passes: int


def kmeans(
    rows: np.ndarray, centers: np.ndarray, *, passes: int = 300, tolerance: float = 0.0
) -> Clusters:
    """Lloyd's algorithm (1982) from given centers, exact in every pass.

    rows       (N, D) floating
    centers    (K, D) floating, K <= N
    passes     at most so many; it ends sooner once no row changes its center
    tolerance  ends, too, where a pass lowers the inertia by no more than this part of it

    A center without rows moves to the row that is farthest from its own (of equally far ones the
    first). The same rows and centers give the same clusters, whatever the number of threads.
    Raises ValueError for more centers than rows and for other shapes.
    """
    if centers.ndim != 2 or rows.ndim != 2 or centers.shape[1] != rows.shape[1]:
        raise ValueError(
            f"centers must be (K, D) like rows (N, D), but are {centers.shape} and {rows.shape}"
        )
    if not 1 <= len(centers) <= len(rows):
        raise ValueError(f"{len(rows)} rows can have 1..{len(rows)} centers, not {len(centers)}")
    given = Rows(rows, "rows")
    space = space_of("euclidean", given, given)
    points = Side(given, space)
    points.round_to(precisions(given.dim, given.device)[0])
    middle = torch.from_numpy(np.array(centers, dtype=np.float64))
    assigned: Tensor | None = None
    inertia, taken = float("inf"), 0
    for taken in range(1, passes + 1):
        similarity, now = _assign(points, space, middle, assigned)
        far = (2 * (points.norm.square() / 2 - similarity)).clamp_min(0) * space.scale**2
        before, inertia = inertia, float(far.sum())
        same = assigned is not None and bool((now == assigned).all())
        assigned = now
        if same or (taken > 1 and before - inertia <= tolerance * before):
            break
        middle = _means(given, now, middle, far)
    assert assigned is not None
    return Clusters(assigned.numpy(), middle.numpy(), inertia, taken)


def _assign(
    points: Side, space: Space, centers: Tensor, before: Tensor | None
) -> tuple[Tensor, Tensor]:
    """(N,) float64 similarities to the nearest centers, and (N,) int64 which they are."""
    side = Side(Rows(centers, "centers"), space)
    side.round_to(points.dtype)
    known, similarity = None, points.half
    if before is not None:
        # Nearly always still the nearest: then few others must be looked at.
        similarity = torch.cat(
            [
                (points.exact(at) * side.exact(own)).sum(1) - side.half[own]
                for at, own in zip(
                    torch.arange(len(before)).split(2048), before.split(2048), strict=True
                )
            ]
        )
        # Some ties less, so that the center itself is found again.
        slack = 8 * space.slack(points.norm, side.norm[before])
        known = (similarity - slack)[:, None], torch.full((len(before), 1), -1)
    values, index = (found[:, 0] for found in nearest(points, side, 1, known=known))
    if before is not None:
        # Where a tie is of no width, nothing is nearer than the center that was nearest before.
        same = index < 0
        values, index = torch.where(same, similarity, values), torch.where(same, before, index)
    return values, index


def _means(rows: Rows, assigned: Tensor, before: Tensor, far: Tensor) -> Tensor:
    """(K, D) float64 means of the rows of each center; empty ones move to the farthest rows."""
    sums, start = torch.zeros_like(before), 0
    for block in rows.blocks():
        sums.index_add_(0, assigned[start : start + len(block)], block)
        start += len(block)
    sizes = torch.bincount(assigned, minlength=len(before))
    empty = (sizes == 0).nonzero()[:, 0]
    means = sums / sizes.clamp_min(1)[:, None]
    if len(empty):
        farthest = torch.argsort(far, descending=True, stable=True)[: len(empty)]
        means[empty] = rows.block(farthest)
    return means


def random_centers(rows: np.ndarray, count: int, seed: int) -> np.ndarray:
    """(K, D): `count` different rows, drawn by seed."""
    chosen = np.random.default_rng(seed).choice(len(rows), count, replace=False)
    return np.asarray(rows[np.sort(chosen)], dtype=np.float64)


def spread_centers(rows: np.ndarray, count: int, seed: int) -> np.ndarray:
    """(K, D): k-means++ (Arthur and Vassilvitskii 2007), scikit-learn's, drawn by seed."""
    from sklearn.cluster import kmeans_plusplus

    with np.errstate(all="ignore"):  # fewer different rows than centers: the value itself tells
        return np.asarray(kmeans_plusplus(rows, count, random_state=seed)[0], dtype=np.float64)
