"""Mutual information read off nearest neighbors: between numbers, between numbers and classes."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from nearkin.information.base import Information, unseen_error
from nearkin.information.neighbors import joint_neighbors
from nearkin.information.samples import Samples, check_count

ANCHORS = 10_000  # rows whose neighbors are counted; more would only make the interval narrower
_ENTRIES = 1 << 22  # distances held at a time


def ksg(s: Samples, *, k: int = 5, jitter: float = 0.0) -> Information:
    """Nearest-neighbor estimate between numbers (Kraskov et al. 2004, eq. 8: KSG-1).

    I = ψ(k) + ψ(N) - mean_i [ψ(nx_i + 1) + ψ(ny_i + 1)]

    nx_i and ny_i count the others strictly nearer in x and in y than the k-th neighbor in the joint
    space, all by the maximum norm of standardized columns. No bound. Nearly unbiased in a few
    dimensions; in many, and where much is known, far too small: 25 + 25 dimensions lose most of it.
    The standard error is that of the mean over rows.

    k        neighbors: fewer for less bias, more for less variance
    jitter   deviation of seeded normal noise, in deviations of the columns: for data with ties

    Time N²·D above 6 dimensions, memory O(N). Raises ValueError where k rows or more coincide, and
    for a k that N is too small for or a jitter below 0. Warns of rows that occur twice.
    """
    x, y = s.numbers("ksg")
    count = len(x)
    _check_k(k, count, "rows")
    generator = s.generator()
    if not 0 <= jitter < math.inf:
        raise ValueError(f"jitter is a deviation of noise, 0 or more and finite, not {jitter}")
    if jitter:
        x, y = (side + jitter * _noise(side, generator) for side in (x, y))
    _check_ties(torch.cat((x, y), 1), k)
    seen = joint_neighbors(x, y, k)
    each = torch.digamma(torch.tensor([k, count], dtype=torch.float64)).sum()
    near_x, near_y = (torch.digamma(side.double() + 1) for side in (seen.in_x, seen.in_y))
    each = each - near_x - near_y
    return Information.from_nats(float(each.mean()), _error(each), "neither")


def mixed(s: Samples, *, k: int = 3) -> Information:
    """Nearest-neighbor estimate between numbers and classes (Ross 2014).

    I = ψ(N) + mean_i [ψ(k_i) - ψ(N_{y_i}) - ψ(m_i)]

    m_i counts the rows within the distance, euclidean on standardized columns, to the k_i-th
    neighbor of the class, k_i = min(k, N_{y_i} - 1). Where rows tie at that distance or coincide,
    k_i counts all of the class within it (Gao et al. 2017). No bound; the ceiling is H(Y). Above
    10,000 rows the mean is over 10,000 of them, drawn by the seed, with all rows as neighbors.
    Classes of one row are left out.

    k   neighbors of the class

    Time N·min(N, 10,000)·D, memory O(N). Raises ValueError for fewer than two classes of two rows.
    """
    x, classes = s.labelled("mixed")
    return by_class_neighbors(x, classes, k=k, seed=s.seed)


def by_class_neighbors(
    z: Tensor,
    classes: Tensor,
    *,
    k: int = 3,
    seed: int = 0,
    error: Callable[[Tensor, Tensor], float] | None = None,
) -> Information:
    """What `mixed` computes, of rows z (N, D) as they are compared and classes (N,) int64; `error`
    the standard error of values (A,) of rows of the classes (A,), default: over rows."""
    check_count("k", k, 1, "neighbors")
    sizes = torch.bincount(classes)
    used = (sizes[classes] > 1).nonzero()[:, 0]
    left_out = len(z) - len(used)
    _, y = classes[used].unique(return_inverse=True)
    sizes = torch.bincount(y)
    if len(sizes) < 2:
        raise ValueError(
            f"the information of labels needs at least two classes of two rows or more, but there "
            f"are {len(sizes)} such classes among {len(z)} rows"
        )
    z = z if not left_out else z[used]
    count = len(y)
    chosen = torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:ANCHORS]
    chosen = chosen.sort().values
    nearest = torch.minimum(sizes - 1, torch.tensor(k))[y[chosen]]
    within, nearest = _within(z, y, chosen, nearest)
    each = torch.digamma(nearest.double()) - torch.digamma(sizes[y[chosen]].double())
    each = math.log(count) + _less_log(count) + each - torch.digamma(within.double())
    share = sizes.double() / count
    ceiling = -float((share * share.log()).sum())
    spread = _error(each) if error is None else error(each, y[chosen])
    spread = max(spread, unseen_error(ceiling, len(each)))
    return Information.from_nats(float(each.mean()), spread, "neither", ceiling, left_out)


def _less_log(count: int) -> float:
    """ψ(N) - log N."""
    return float(torch.digamma(torch.tensor(float(count), dtype=torch.float64))) - math.log(count)


def _within(z: Tensor, y: Tensor, chosen: Tensor, nearest: Tensor) -> tuple[Tensor, Tensor]:
    """(A,) rows within the distance to the `nearest`-th neighbor of the class, and (A,) how many of
    them are of the class, both without oneself.

    The second is `nearest` but where rows tie at that distance: all of them count, in both (Gao et
    al. 2017), so that where z is discrete the estimate is that of counts.
    """
    z = z.float() if len(z) > 4096 else z.double()
    z = z - z.mean(0)
    squares = z.square().sum(1)
    within, mates = torch.empty_like(nearest), torch.empty_like(nearest)
    copies = 0
    for part in torch.arange(len(chosen)).split(max(1, _ENTRIES // len(z))):
        rows = chosen[part]
        far = torch.addmm(squares, z[rows], z.T, alpha=-2).add_(squares[rows, None])
        far[torch.arange(len(part)), rows] = torch.inf
        own = torch.where(y[rows, None] == y, far, torch.inf)
        most = int(nearest[part].max())
        ends = own.topk(most, 1, largest=False, sorted=True).values
        radius = ends.gather(1, nearest[part, None] - 1)
        # Rounding leaves a little of the distance of equal rows.
        same = 8 * torch.finfo(z.dtype).eps * squares[rows, None]
        copies += int((radius <= same).sum())
        edge = torch.maximum(radius, same)
        within[part], mates[part] = (far <= edge).sum(1), (own <= edge).sum(1)
    if copies:
        warnings.warn(
            f"{copies} of {len(chosen)} rows coincide with rows of their class, or nearly: all "
            "that do count as neighbors. Remove copies if they are no data",
            UserWarning,
            stacklevel=4,
        )
    return within, mates


def _check_k(k: int, count: int, what: str) -> None:
    check_count("k", k, 1, "neighbors")
    if count <= k:
        raise ValueError(f"k = {k} neighbors need more than {k} {what}, but there are {count}")


def _check_ties(joint: Tensor, k: int) -> None:
    """Raise where more than k rows coincide, warn where any do."""
    _, copies = np.unique(joint.numpy(), axis=0, return_counts=True)
    most, repeated = int(copies.max()), int((copies - 1).sum())
    if most > k:
        raise ValueError(
            f"{most} pairs coincide, but the distance to the {k}-th neighbor must not be 0; remove "
            "copies, or add tiny seeded noise with jitter=1e-8 if the data are discrete"
        )
    if repeated:
        warnings.warn(
            f"{repeated} pairs occur more than once; a neighbor estimate takes copies for "
            "closeness and is too large. Remove them, or add tiny seeded noise with jitter=1e-8 if "
            "the data are discrete",
            UserWarning,
            stacklevel=4,
        )


def _noise(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator, dtype=like.dtype)


def _error(each: Tensor) -> float:
    """Standard error of a mean over rows."""
    return float(each.std()) / math.sqrt(len(each)) if len(each) > 1 else 0.0
