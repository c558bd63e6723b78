"""Exact nearest neighbors and counts within a radius, for the estimators that read information off
them. Trees where dimensions are few, blocks of distances elsewhere: memory never O(N²)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

BLOCK = 64  # rows of distances held at a time
FEW_DIMENSIONS = 6  # up to so many a tree leaves out more than it costs
WORTH_COMPILING = 1e9  # N²·D below which numba's start takes longer than the work
# A radius below this share of the largest coordinate has lost digits to float32.
COARSE = 1e3 * torch.finfo(torch.float32).eps
MANY_COARSE = 0.05  # share of such rows above which all are taken in float64


class Counted(NamedTuple):
    """Of each of N pairs: the max-norm distance to its k-th neighbor in the joint space, and how
    many others are nearer than that in x alone and in y alone."""

    radius: Tensor
    in_x: Tensor
    in_y: Tensor


def joint_neighbors(x: Tensor, y: Tensor, k: int) -> Counted:
    """x (N, Dx), y (N, Dy) float64. Up to 6 dimensions by trees in float64; above, all distances
    block by block in float32, by numba where it is installed and the work is worth its start. In
    float64 where float32 makes values of a column equal, as tiny noise and heavy tails have them,
    and again for rows whose radius is too small for float32."""
    if x.shape[1] + y.shape[1] <= FEW_DIMENSIONS:
        return _by_trees(x.numpy(), y.numpy(), k)
    if any(_loses_digits(side) for side in (x, y)):
        return by_blocks(x, y, k, dtype=torch.float64)
    work = float(len(x)) ** 2 * (x.shape[1] + y.shape[1])
    compiled = _compiled() if work > WORTH_COMPILING else None
    seen = _by_numba(x, y, k, compiled) if compiled else by_blocks(x, y, k)
    largest = max(float(side.abs().max()) for side in (x, y))
    coarse = (seen.radius <= COARSE * largest).nonzero()[:, 0]
    if len(coarse) > MANY_COARSE * len(x):
        return by_blocks(x, y, k, dtype=torch.float64)
    if len(coarse):
        again = by_blocks(x, y, k, rows=coarse, dtype=torch.float64)
        for kept, exact in zip(seen, again, strict=True):
            kept[coarse] = exact
    return seen


def _loses_digits(side: Tensor) -> bool:
    """Whether float32 makes a tenth of the values of a column equal to others of it."""
    ends = side.sort(0).values
    there, left = ((at.diff(dim=0) > 0).sum(0) for at in (ends, ends.float()))
    return bool((left < 0.9 * there).any())


def _by_trees(x: np.ndarray, y: np.ndarray, k: int) -> Counted:
    from sklearn.neighbors import KDTree

    joint = np.hstack((x, y))
    radius = KDTree(joint, metric="chebyshev").query(joint, k + 1)[0][:, -1]
    within = np.nextafter(radius, -1)  # strictly nearer
    counts = [
        KDTree(side, metric="chebyshev").query_radius(side, within.clip(0), count_only=True) - 1
        for side in (x, y)
    ]
    # A radius of 0 has nobody nearer, but the tree counts those at distance 0.
    in_x, in_y = (torch.from_numpy(np.where(radius > 0, count, 0)) for count in counts)
    return Counted(torch.from_numpy(radius), in_x, in_y)


def by_blocks(
    x: Tensor,
    y: Tensor,
    k: int,
    rows: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> Counted:
    """The same by plain torch, of all or of some rows (M,): time M·N·D, memory O(N)."""
    count = len(x)
    rows = torch.arange(count) if rows is None else rows
    columns = [list(side.T.to(dtype).contiguous()) for side in (x, y)]
    far_x, far_y, spare = (torch.empty(BLOCK, count, dtype=dtype) for _ in range(3))
    radius = torch.empty(len(rows), dtype=dtype)
    in_x, in_y = torch.empty_like(rows), torch.empty_like(rows)
    for part in torch.arange(len(rows)).split(BLOCK):
        at, held = rows[part], len(part)
        dx = _chebyshev(columns[0], at, far_x[:held], spare[:held])
        dy = _chebyshev(columns[1], at, far_y[:held], spare[:held])
        both = torch.maximum(dx, dy, out=spare[:held])
        both[torch.arange(held), at] = torch.inf
        ends = both.topk(k, 1, largest=False, sorted=True).values[:, -1:]
        radius[part] = ends[:, 0]
        # Oneself is at distance 0, which is nearer than every radius but 0.
        oneself = (ends[:, 0] > 0).long()
        in_x[part] = (dx < ends).sum(1) - oneself
        in_y[part] = (dy < ends).sum(1) - oneself
    return Counted(radius.double(), in_x, in_y)


def _chebyshev(columns: list[Tensor], rows: Tensor, out: Tensor, spare: Tensor) -> Tensor:
    """(B, N) into `out`: the largest difference of a coordinate of the rows (B,) to all."""
    torch.sub(columns[0][rows, None], columns[0][None], out=out).abs_()
    for column in columns[1:]:
        torch.sub(column[rows, None], column[None], out=spare).abs_()
        torch.maximum(out, spare, out=out)
    return out


def _by_numba(x: Tensor, y: Tensor, k: int, compiled: Callable[..., None]) -> Counted:
    count = len(x)
    columns = [np.ascontiguousarray(side.numpy().T, dtype=np.float32) for side in (x, y)]
    radius = np.empty(count, dtype=np.float32)
    in_x, in_y = np.empty(count, dtype=np.int64), np.empty(count, dtype=np.int64)
    threads = torch.get_num_threads()
    edges = np.linspace(0, count, 4 * threads + 1).astype(int).tolist()

    def part(place: int) -> None:
        compiled(*columns, k, edges[place], edges[place + 1], radius, in_x, in_y)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(part, range(4 * threads)))
    return Counted(*map(torch.from_numpy, (radius.astype(np.float64), in_x, in_y)))


@functools.cache
def _compiled() -> Callable[..., None] | None:
    """The loop over rows as machine code; None where numba is not installed."""
    try:
        import numba
    except ImportError:
        return None
    compiled = numba.njit(fastmath=True, nogil=True, cache=True)
    return compiled(_count_rows)


def _count_rows(x, y, k, first, last, radius, in_x, in_y):  # type: ignore[no-untyped-def]
    """Fill radius and counts of the rows first..last; x (Dx, N), y (Dy, N) float32."""
    # Written so that the compiler makes vectors of it: plain slices, no max(), limits in variables.
    count, block = x.shape[1], 1024
    dx, dy = np.empty(count, np.float32), np.empty(count, np.float32)
    both, best = np.empty(block, np.float32), np.empty(k, np.float32)
    for i in range(first, last):
        best[:] = np.inf
        for start in range(0, count, block):
            stop = min(start + block, count)
            a, b = dx[start:stop], dy[start:stop]
            a[:], b[:] = 0, 0
            for d in range(x.shape[0]):
                at, row = x[d, i], x[d, start:stop]
                for j in range(stop - start):
                    far = abs(row[j] - at)
                    a[j] = far if far > a[j] else a[j]
            for d in range(y.shape[0]):
                at, row = y[d, i], y[d, start:stop]
                for j in range(stop - start):
                    far = abs(row[j] - at)
                    b[j] = far if far > b[j] else b[j]
            if start <= i < stop:
                a[i - start] = b[i - start] = 3e38  # oneself; fastmath knows no infinity
            limit, nearer = best[k - 1], 0
            for j in range(stop - start):
                far = a[j] if a[j] > b[j] else b[j]
                both[j] = far
                nearer += far < limit
            if nearer:
                for j in range(stop - start):
                    if both[j] < best[k - 1]:
                        place = k - 1
                        while place > 0 and best[place - 1] > both[j]:
                            best[place] = best[place - 1]
                            place -= 1
                        best[place] = both[j]
        limit, near_x, near_y = best[k - 1], 0, 0
        for j in range(count):
            near_x += dx[j] < limit
        for j in range(count):
            near_y += dy[j] < limit
        radius[i], in_x[i], in_y[i] = limit, near_x, near_y


def nearest_distances(z: Tensor, k: int) -> Tensor:
    """(N,) euclidean distance of each row of z (N, D) float64 to its k-th nearest other row."""
    from sklearn.neighbors import KDTree

    if z.shape[1] <= FEW_DIMENSIONS:
        return torch.from_numpy(KDTree(z.numpy()).query(z.numpy(), k + 1)[0][:, -1])
    ends = []
    for rows in torch.arange(len(z)).split(BLOCK):
        far = torch.cdist(z[rows], z)
        far[torch.arange(len(rows)), rows] = torch.inf
        ends.append(far.topk(k, 1, largest=False, sorted=True).values[:, -1])
    return torch.cat(ends)
