"""Closed forms: values whose gradient is written down instead of recorded. They keep a loss within
a few passes over its similarities and a few matrices of memory. Imports torch only."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from nearkin.fast import compiled
from nearkin.multiply import onednn_is_faster, times
from nearkin.positives import Positives

_AS_IS = nullcontext()
_NO_SKIP = torch.empty(1, 0, dtype=torch.int64, device="cpu")
SPARSE = 16  # entries of a row up to which their products are made one by one
IN_CACHE = 1 << 18  # entries of a block of rows: 1 MiB of float32 stays in the second-level cache

# (A, R) similarities -> a value, 0-dim or (A,), and (A, R) its slope: row i of the slope is the
# derivative of entry i of the value, or of the one value. Called without gradients.
Rest = Callable[[Tensor], tuple[Tensor, Tensor]]


class Keep(NamedTuple):
    """Which entries of a matrix (A, R) count.

    fill   (B, R), the rows named, is changed in place: the number given stands in all places but
           those that count
    skip   (A, K) int64: where these are all but a few of each row, the columns of the few
    """

    fill: Callable[[Tensor, slice, float], Tensor]
    skip: Tensor | None = None

    def __call__(self, x: Tensor, part: slice, by: float) -> Tensor:
        """x (B, R), the rows `part`, after `fill`."""
        return self.fill(x, part, by)


def once(backward: Callable[..., Any]) -> Callable[..., Any]:
    """For the backward pass of a closed form: outside autocast, and differentiable once.

    torch's `once_differentiable` misses slopes without a graph, such as the 1 at the end of a loss:
    a gradient penalty would be silently 0. Here it raises.
    """
    inner = once_differentiable(backward)

    def guarded(ctx: Any, *slopes: Tensor | None) -> Any:
        devices = {slope.device.type for slope in slopes if slope is not None}
        if torch.is_grad_enabled():
            slopes = tuple(s if s is None or s.requires_grad else _leaf(s) for s in slopes)
        with without_autocast(devices.pop()) if devices else _AS_IS:
            return inner(ctx, *slopes)

    return guarded


def _leaf(slope: Tensor) -> Tensor:
    return slope.detach().requires_grad_()


def without_autocast(device: str) -> AbstractContextManager[Any]:
    """Full precision. Leaving autocast costs as much as a small product, and most steps are not
    under it."""
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else _AS_IS


def split(
    similarity: Tensor, positives: Positives, rest: Rest, scale: float = 1.0
) -> tuple[Tensor, Tensor]:
    """(A, P) scale times the positives' similarities, and the value of `rest` over all of them.

    One (A, R) matrix, the slope, is kept for the gradient, which is found in one pass. Of the
    products of rows with themselves it goes to the rows at once.
    """
    return _split(similarity, positives.columns, rest, scale)


def square_of(similarity: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """What `gram` made a matrix of: the source, the rows and their lengths. The matrix itself and
    twice None where it is none, where it or the rows were changed in place since, and where
    somebody looks at its own gradient."""
    found, state = getattr(similarity, "square_of", (None, None))
    itself = similarity, None, None
    if found is None or similarity.is_leaf or similarity.retains_grad:
        return itself
    changed = (similarity._version, found[1]._version) != state
    return itself if changed or similarity._backward_hooks else found


def gathered(similarity: Tensor, columns: Tensor) -> Tensor:
    """(A, K) the entries at `columns` (A, K). Of the products of rows with themselves the gradient
    goes to the rows at once, in time O(A·K·D): no matrix (A, R) of zeros is made for it."""
    source, rows, length = square_of(similarity)
    if rows is None or columns.shape[1] > SPARSE:
        return similarity.gather(1, columns)
    return _Gathered.apply(source, similarity.detach(), rows, length, columns)  # type: ignore[return-value]


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx,
        source: Tensor,
        similarity: Tensor,
        rows: Tensor,
        length: Tensor | None,
        columns: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(columns, rows, length)  # type: ignore[arg-type]
        return similarity.gather(1, columns)

    @staticmethod
    @once
    def backward(ctx: FunctionCtx, slope: Tensor) -> tuple[Tensor | None, ...]:
        columns, rows, length = ctx.saved_tensors  # type: ignore[attr-defined]
        to_rows = torch.zeros_like(rows)
        if passes := compiled(rows):
            given = slope.contiguous().numpy(), columns.contiguous().numpy(), rows.numpy()
            passes.sparse_products(*given, to_rows.numpy())
        else:
            for column, weight in zip(columns.unbind(1), slope[:, :, None].unbind(1), strict=True):
                to_rows.addcmul_(rows.index_select(0, column), weight)
                to_rows.index_add_(0, column, rows * weight)
        if length is not None:
            along_sphere(to_rows, rows, length, to_rows)
        return to_rows, None, None, None, None


def known(similarity: Tensor, rest: Rest) -> Tensor:
    """The value of `rest`, its gradient the slope that `rest` gives with it."""
    return _split(similarity, None, rest, 1.0)[1]


def _split(s: Tensor, columns: Tensor | None, rest: Rest, scale: float) -> tuple[Tensor, Tensor]:
    source, rows, length = square_of(s)
    return _Split.apply(  # type: ignore[return-value]
        source, s.detach(), rows, length, columns, rest, scale
    )


class _Split(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx,
        source: Tensor,
        similarity: Tensor,
        rows: Tensor | None,
        length: Tensor | None,
        columns: Tensor | None,
        rest: Rest,
        scale: float,
    ) -> tuple[Tensor, Tensor]:
        value, slope = rest(similarity)
        ctx.save_for_backward(columns, slope, rows, length)  # type: ignore[arg-type]
        ctx.scale = scale  # type: ignore[attr-defined]
        if columns is None:
            return similarity.new_zeros(()), value
        own = similarity.gather(1, columns)
        return own if scale == 1 else own.mul_(scale), value

    @staticmethod
    @once
    def backward(ctx: FunctionCtx, to_own: Tensor, to_value: Tensor) -> tuple[Tensor | None, ...]:
        columns, slope, rows, length = ctx.saved_tensors  # type: ignore[attr-defined]
        scale = ctx.scale  # type: ignore[attr-defined]
        to_own = to_own if scale == 1 else to_own * scale
        nothing = (None,) * 6
        if rows is None:
            return weighted(slope, to_value, columns, to_own), *nothing
        if passes := compiled(slope):
            both = torch.empty_like(slope)
            few, own = (_NO_SKIP, slope[:1, :0]) if columns is None else (columns, to_own)
            passes.both_ways(
                slope.numpy(),
                to_value.reshape(-1).contiguous().numpy(),
                few.numpy(),
                own.contiguous().numpy(),
                both.numpy(),
            )
        else:
            both = both_ways(weighted(slope, to_value, columns, to_own))
        return to_source(both, rows, length), *nothing


def weighted(slope: Tensor, to_value: Tensor, columns: Tensor | None, to_own: Tensor) -> Tensor:
    """(A, R): the slope, each row times that of its value, and what goes to `columns` (A, P)."""
    slope = slope * (to_value[:, None] if to_value.ndim else to_value)
    return slope if columns is None else slope.scatter_add_(1, columns, to_own)


def in_blocks(shape: tuple[int, ...]) -> Iterator[slice]:
    """Slices of rows that stay in cache while several passes go over them."""
    rows = max(IN_CACHE // max(math.prod(shape[1:]), 1), 1)
    for start in range(0, shape[0], rows):
        yield slice(start, start + rows)


def masked(mask: Tensor) -> Keep:
    """The places of a mask (A, R) count."""

    return Keep(partial(_keep_masked, mask))


def _keep_masked(mask: Tensor, x: Tensor, part: slice, by: float) -> Tensor:
    return torch.where(mask[part], x, x.new_full((), by), out=x)


def all_but(columns: Tensor) -> Keep:
    """All places count but a few of each row, (A, K) int64."""
    return Keep(partial(_keep_but, columns), columns)


def _keep_but(columns: Tensor, x: Tensor, part: slice, by: float) -> Tensor:
    return x.scatter_(1, columns[part], by)


def nearest_below(s: Tensor, keep: Keep, limit: Tensor, strictly: bool) -> Tensor:
    """(A, P) int64: the kept column that is most similar among those at most (`strictly`: below)
    each limit (A, P), the first of equal ones; -1 where there is none. No gradient."""
    columns = torch.empty(limit.shape, dtype=torch.int64, device=s.device)
    if passes := compiled(s):
        source, skip, _ = for_passes(s, keep)
        passes.nearest_below(source, skip, limit.contiguous().numpy(), strictly, columns.numpy())
        return columns
    if not s.shape[1]:
        return columns.fill_(-1)
    for part in in_blocks(s.shape):
        x = keep(s[part].clone(), part, -torch.inf)
        for p in range(limit.shape[1]):
            most = limit[part, p : p + 1]
            # NaN is kept, and is the largest.
            top, column = torch.where(x >= most if strictly else x > most, -torch.inf, x).max(1)
            columns[part, p] = torch.where(top == -torch.inf, -1, column)
    return columns


def for_passes(s: Tensor, keep: Keep) -> tuple[Any, Any, Tensor]:
    """What compiled passes read, and the slope (A, R) that they fill: see `passes`."""
    slope = torch.empty_like(s, memory_format=torch.contiguous_format)
    if keep.skip is not None:
        return s.contiguous().numpy(), keep.skip.numpy(), slope
    for part in in_blocks(s.shape):
        keep(slope[part].copy_(s[part]), part, -torch.inf)
    return slope.numpy(), _NO_SKIP.expand(len(s), 0).numpy(), slope


def split_log_sum_exp(
    similarity: Tensor, positives: Positives, keep: Keep, scale: float | Tensor
) -> tuple[Tensor, Tensor]:
    """(A, P) scale·s of the positives, and (A,) log Σ_kept exp(scale·s): -inf where nothing is kept
    of a row. A scale that is a tensor gets its gradient."""
    if isinstance(scale, Tensor):
        return split(scale * similarity, positives, log_sum_exp(keep))
    return split(similarity, positives, log_sum_exp(keep, scale), scale)


def log_sum_exp(keep: Keep, scale: float = 1.0) -> Rest:
    """(A,): log Σ_kept exp(scale·s), -inf with slope 0 where nothing is kept of a row."""

    def rest(s: Tensor) -> tuple[Tensor, Tensor]:
        value = s.new_empty(len(s))
        if (passes := compiled(s)) and scale > 0:
            source, skip, slope = for_passes(s, keep)
            passes.log_sum_exp(source, skip, slope.numpy(), float(scale), value.numpy())
            return value, slope
        slope = torch.empty_like(s)
        for part in in_blocks(s.shape):
            e = keep(slope[part].copy_(s[part]), part, -torch.inf)
            value[part] = log_sum_exp_(e, scale)
        return value, slope

    return rest


def log_sum_exp_(x: Tensor, scale: float = 1.0) -> Tensor:
    """(B,): log Σ exp(scale·x) of the rows (B, R), which turn into their slopes in place; -inf with
    slope 0 for rows of -inf alone."""
    top = x.amax(1, keepdim=True).clamp_min_(torch.finfo(x.dtype).min) if x.numel() else 0
    x.sub_(top).mul_(scale).exp_()
    total = x.sum(1, keepdim=True)
    value = (total.log() + scale * top)[:, 0]
    x.mul_(scale / total.clamp_min(1))  # a sum that is not empty holds e⁰
    return value


def distances(similarity: Tensor) -> Tensor:
    """Any shape: √(2 - 2s), at least about 3e-10 in float32, so that nothing divides by 0."""
    squared = 2 - 2 * similarity
    # The root has an infinite slope at 0; identical rows must get gradient 0, not NaN.
    return squared.clamp_min(torch.finfo(squared.dtype).tiny ** 0.5).sqrt()


def distance_slope(distance: Tensor) -> Tensor:
    """∂d/∂s = -1/d; 0 for identical rows."""
    least = torch.finfo(distance.dtype).tiny ** 0.25
    # 1/inf is 0; torch.where is slower by a factor of three.
    return F.threshold(distance, least * 1.001, torch.inf).reciprocal_().neg_()


class _Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, source: Tensor, rows: Tensor, length: Tensor | None) -> Tensor:
        ctx.save_for_backward(rows, length)  # type: ignore[arg-type]
        return _with_itself(rows)

    @staticmethod
    @once
    def backward(ctx: FunctionCtx, slope: Tensor) -> tuple[Tensor, None, None]:
        rows, length = ctx.saved_tensors  # type: ignore[attr-defined]
        return to_source(both_ways(slope), rows, length), None, None


def both_ways(slope: Tensor) -> Tensor:
    """(N, N) slope + slopeᵀ."""
    # Copied first: adding a transposed matrix takes twice as long as turning it and adding it.
    return slope.T.contiguous().add_(slope)


def to_source(slope: Tensor, rows: Tensor, length: Tensor | None) -> Tensor:
    """(N, D): the slope to what rows were made of, by that to their products (N, N), both ways."""
    to_rows = times(slope, rows)
    return to_rows if length is None else along_sphere(to_rows, rows, length, to_rows)


def _with_itself(rows: Tensor) -> Tensor:
    """(N, N) rows·rowsᵀ: on a CPU only the blocks on and below the diagonal are multiplied, where
    that is faster."""
    n = len(rows)
    if rows.device.type != "cpu" or torch.compiler.is_compiling():
        return times(rows, rows.T)
    # Rows and dimensions from which on half is faster than all, and in how many parts.
    halved, parts = (512, 4) if onednn_is_faster() else (256, 8)
    if min(rows.shape) < halved:
        return times(rows, rows.T)
    found, step = rows.new_empty(n, n), max(n // parts, 128)
    for start in range(0, n, step):
        stop = min(start + step, n)
        times(rows[start:stop], rows[:stop].T, out=found[start:stop, :stop])
        if start:
            found[:start, start:stop].copy_(found[start:stop, :start].T)
    return found


def gram(rows: Tensor) -> Tensor:
    """(N, N) rows·rowsᵀ; two matrix products in all, where autograd takes three."""
    (source, length), rows = made_of(rows), rows.detach()
    square = _Square.apply(source, rows, length)
    if square.requires_grad:  # type: ignore[union-attr]
        state = square._version, rows._version  # type: ignore[union-attr]
        square.square_of = (source, rows, length), state  # type: ignore[union-attr]
    return square  # type: ignore[return-value]


def picked(similarity: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """(P, K) entries `columns` (P, K) of the rows `rows` (P,)."""
    # One flat gather: the gradient of indexing by two tensors is slower by an order of magnitude.
    place = rows[:, None] * similarity.shape[1] + columns
    return similarity.reshape(-1).gather(0, place.reshape(-1)).view(columns.shape)


def unit_rows(x: Tensor) -> tuple[Tensor, Tensor | None]:
    """(N, D) rows of length 1. Rows too short to have a direction become 0, with gradient 0; the
    second value says which they are (N, 1), and is None where all is well."""
    directions, length, empty = _directions(x.detach())
    rows = _Unit.apply(x, directions, length)
    rows.made_of = x, length  # type: ignore[attr-defined]
    return rows, empty  # type: ignore[return-value]


class UnitRows:
    """Rows of length 1 that are made when somebody reads them.

    source   (N, D) what they are made of, with its graph
    make     makes them; once
    """

    def __init__(self, source: Tensor, make: Callable[[Tensor], Tensor]):
        self.source, self._make = source, make
        self._learns, self._rows = torch.is_grad_enabled(), None

    def made(self) -> Tensor:
        """(N, D) the rows; whether they have a graph was decided when they were given, not by who
        happens to read them first."""
        if self._rows is None:
            with torch.set_grad_enabled(self._learns):
                self._rows = self._make(self.source)
        return self._rows


def made_of(rows: Tensor) -> tuple[Tensor, Tensor | None]:
    """What unit rows were made of, and its lengths (N, 1); other rows themselves, and None.

    Who has a slope to many unit rows can turn it with `along_sphere` where it is made, and save a
    matrix of their size and a step of the backward pass. The unit rows themselves then have no
    gradient of their own to look at.
    """
    return getattr(rows, "made_of", (rows, None))


def along_sphere(slope: Tensor, rows: Tensor, length: Tensor, out: Tensor) -> Tensor:
    """(N, D) into `out`, which may be `slope`: the slope to what unit rows were made of."""
    passes = compiled(out)
    if passes and out is slope and rows.is_contiguous() and out.is_contiguous():
        passes.along_sphere(out.numpy(), rows.numpy(), length.numpy())
        return out
    for part in in_blocks(slope.shape):
        s, r = slope[part], rows[part]
        along = (s * r).sum(1, keepdim=True)
        torch.addcmul(s, along, r, value=-1, out=out[part]).div_(length[part])
    return out


def have_directions(length: Tensor, dim: int) -> bool:
    """Whether rows of these lengths (N, 1) are far from where squares under- or overflow."""
    if not len(length):
        return True
    shortest, longest = length.aminmax()
    return _far_from_limits(float(shortest), float(longest), dim, length.dtype)


def _far_from_limits(shortest: float, longest: float, dim: int, dtype: torch.dtype) -> bool:
    limits = torch.finfo(dtype)
    return limits.tiny**0.5 / limits.eps < shortest <= longest < limits.max**0.5 / dim


def _directions(x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    if (passes := compiled(x)) and len(x) and x.is_contiguous():
        rows, length = torch.empty_like(x), x.new_empty(len(x), 1)
        shortest, longest = passes.unit(x.numpy(), rows.numpy(), length.numpy())
        if _far_from_limits(shortest, longest, x.shape[1], x.dtype):
            return rows, length, None
    length = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    limits = torch.finfo(x.dtype)
    if have_directions(length, x.shape[1]):
        return x / length, length, None
    # Squares under- or overflow; the direction does not see the scale.
    largest = x.abs().amax(1, keepdim=True)
    # The gradient grows as 1/length: under about 1e-34 in float32 it is infinite.
    empty = largest < 1e4 * limits.tiny
    scaled = x / torch.where(empty, 1.0, largest)
    inner = torch.linalg.vector_norm(scaled, dim=1, keepdim=True)
    rows = torch.where(empty, 0.0, scaled / torch.where(empty, 1.0, inner))
    # An infinite length lets no gradient through.
    return rows, torch.where(empty, torch.inf, inner * largest), empty


class _Unit(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, directions: Tensor, length: Tensor) -> Tensor:
        rows = directions.view_as(directions)  # an output of its own
        ctx.save_for_backward(rows, length)
        return rows

    @staticmethod
    @once
    def backward(ctx: FunctionCtx, slope: Tensor) -> tuple[Tensor, None, None]:
        rows, length = ctx.saved_tensors  # type: ignore[attr-defined]
        return along_sphere(slope, rows, length, torch.empty_like(rows)), None, None
