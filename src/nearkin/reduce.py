"""Reductions that losses share: masked means and log-sum-exps, means over pairs, and the parts of a
softmax over classes. No losses; the softmax over very many classes stands in blocked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from nearkin.blocked import blocked_softmax
from nearkin.closed import masked, once, split_log_sum_exp
from nearkin.core import Comparison, at_least_float32
from nearkin.positives import Positives

FEW = 1 << 16  # logits; up to so many, few operations count for more than few passes


def positive(**settings: float | Tensor) -> None:
    """Raise ValueError for a setting of a loss that is not above 0, naming it and its value."""
    for name, value in settings.items():
        if not value > 0:
            seen = value.item() if isinstance(value, Tensor) else value
            raise ValueError(f"{name} must be above 0, not {seen}")


def not_negative(**settings: float) -> None:
    """Raise ValueError for a setting of a loss that is below 0, naming it and its value."""
    for name, value in settings.items():
        if not value >= 0:
            raise ValueError(f"{name} must be at least 0, not {value}")


def mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of `x` where `mask` (bool, same shape); 0 with gradient 0 where the mask is empty."""
    return torch.where(mask, x, 0.0).sum() / mask.sum().clamp_min(1)


def ratio(total: Tensor, count: Tensor | int) -> Tensor:
    """total / count, and 0 where the count is 0."""
    return total / (max(count, 1) if isinstance(count, int) else count.clamp_min(1))


def logsumexp(x: Tensor, mask: Tensor, dim: int = 1) -> Tensor:
    """log Σ exp x over the entries of `mask`; -inf, with gradient 0, where there are none."""
    hidden = torch.where(mask, x, -torch.inf)
    empty = ~mask.any(dim, keepdim=True)
    # logsumexp of nothing but -inf has a NaN gradient, so an empty row is reduced over zeros and
    # hidden after.
    value = torch.where(empty, 0.0, hidden).logsumexp(dim)
    return torch.where(empty.squeeze(dim), -torch.inf, value)


def logsumexp_over(positives: Positives, x: Tensor) -> Tensor:
    """(A,): log Σ exp x over the positives of each anchor, x (A, P); -inf, with gradient 0, where
    there are none."""
    if x.shape[1] == 1:
        alone = x[:, 0]
        return alone if positives.valid is None else alone.where(positives.count > 0, -torch.inf)
    if positives.valid is None and x.shape[1]:
        return x.logsumexp(1)
    valid = torch.zeros_like(x, dtype=torch.bool) if positives.valid is None else positives.valid
    return logsumexp(x, valid)


def mean_over(positives: Positives, x: Tensor) -> Tensor:
    """(A,): mean over the positives of each anchor, x (A, P); 0, with gradient 0, where there are
    none."""
    if x.shape[1] == 1:
        return positives.fill(x, 0.0)[:, 0]
    return ratio(positives.fill(x, 0.0).sum(1), positives.count)


def mean_of_means(positives: Positives, x: Tensor) -> Tensor:
    """0-dim: over the anchors that have a positive, the mean of the mean of x (A, P) over their
    positives; 0 where there are none."""
    if positives.valid is None and positives.columns.shape[1]:
        return x.mean()  # all have as many
    return mean_over_scored(positives, mean_over(positives, x))


def mean_over_scored(positives: Positives, x: Tensor) -> Tensor:
    """0-dim: the mean of x (A,) over the anchors that have a positive; 0 where there are none."""
    if positives.valid is None and positives.columns.shape[1]:
        return x.mean()  # all have one, and a small batch feels each operation
    return mean(x, positives.count > 0)


def softplus(x: Tensor) -> Tensor:
    """log(1 + e^x), exact in float64: torch's own turns into x at 20, where 2e-9 is missing."""
    return F.softplus(x, threshold=40)


class ClassSoftmax(NamedTuple):
    """What a softmax over columns of classes needs: the own columns by hand, the others summed.

    positives   the columns of each anchor's own class
    own         (A, P) their logits
    rest        makes (A,) log Σ_different e^logit, -inf where nothing is different
    others      makes (A,) the mean logit of the different columns
    scored      (A,) bool: the row has a column of its own; None where all have just one
    logits      (A, R) where there are few and all have just one; None: they are not held
    """

    positives: Positives
    own: Tensor
    rest: Callable[[], Tensor]
    others: Callable[[], Tensor]
    scored: Tensor | None
    logits: Tensor | None = None

    def mean(self, x: Tensor) -> Tensor:
        """Mean of x (A,) over the rows that have a column of their own."""
        if self.scored is None:
            return x.sum() / max(x.shape[0], 1)
        return mean(x, self.scored)

    def own_mean(self, own: Tensor) -> Tensor:
        """(A,) mean of (A, P) logits of the own columns."""
        return own[:, 0] if self.scored is None else mean_over(self.positives, own)

    def everyone(self, own: Tensor) -> Tensor:
        """(A,) log Σ e^logit over all columns, with (A, P) logits of the own ones."""
        mine = logsumexp_over(self.positives, own)
        if self.scored is not None:
            mine = torch.where(self.scored, mine, 0.0)
        return torch.logaddexp(self.rest(), mine)

    def means(self, own: Tensor) -> tuple[Tensor, Tensor]:
        """Over the rows that have a column of their own: the mean of their own logits (A, P), and
        the mean log Σ e^logit over all columns."""
        if self.logits is not None:
            return _FewMeans.apply(  # type: ignore[return-value]
                self.logits, own, self.positives.columns
            )
        if self.scored is None:
            return pair_means(self.positives, own, self.rest())
        return self.mean(self.own_mean(own)), self.mean(self.everyone(own))


def pair_means(positives: Positives, own: Tensor, rest: Tensor) -> tuple[Tensor, Tensor]:
    """Over positive pairs with logits `own` (A, P), and `rest` (A,) the log of what the others of
    the anchor sum to: the mean of own, and the mean log(e^own + e^rest). 0 where there are none."""
    return _PairMeans.apply(own, rest, positives.valid, positives.pairs)  # type: ignore[return-value]


class _PairMeans(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, own: Tensor, rest: Tensor, valid: Tensor | None, pairs: int
    ) -> tuple[Tensor, Tensor]:
        each, rest = 1 / max(pairs, 1), rest[:, None]
        everyone = torch.logaddexp(rest, own)
        of_own = (own - everyone).exp_().mul_(each)
        of_rest = torch.sub(rest, everyone).exp_().mul_(each)
        if valid is not None:
            own, everyone, of_own, of_rest = (
                torch.where(valid, x, 0.0) for x in (own, everyone, of_own, of_rest)
            )
        ctx.save_for_backward(of_own, of_rest.sum(1), valid)
        ctx.each = each
        return own.sum().mul_(each), everyone.sum().mul_(each)

    @staticmethod
    @once
    def backward(ctx: Any, to_own: Tensor, to_everyone: Tensor) -> tuple[Tensor | None, ...]:
        of_own, of_rest, valid = ctx.saved_tensors
        to_own = to_own * ctx.each
        to_own = to_own if valid is None else valid * to_own
        return torch.addcmul(to_own, of_own, to_everyone), of_rest * to_everyone, None, None


class _FewMeans(torch.autograd.Function):
    """The same of (A, R) logits in which the (A, 1) `own` take the place of those at `columns`."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, own: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        rows = max(own.shape[0], 1)
        shares = logits.scatter(1, columns, own).log_softmax(1)
        everyone = own - shares.gather(1, columns)
        ctx.save_for_backward(shares, columns)
        return own.sum() / rows, everyone.sum() / rows

    @staticmethod
    @once
    def backward(ctx: Any, to_own: Tensor, to_everyone: Tensor) -> tuple[Tensor, Tensor, None]:
        shares, columns = ctx.saved_tensors
        rows = max(shares.shape[0], 1)
        slope = shares.exp().mul_(to_everyone / rows)
        own = slope.gather(1, columns).add_(to_own / rows)
        return slope.scatter_(1, columns, 0.0), own, None


def moved(x: Tensor, to: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Tensor:
    """What `to` makes of each entry of x; it gives the values and their slopes, without
    gradients."""
    return _Moved.apply(x, to)  # type: ignore[return-value]


class _Moved(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, to: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Tensor:
        value, slope = to(x)
        ctx.save_for_backward(slope)
        return value

    @staticmethod
    @once
    def backward(ctx: Any, to_value: Tensor) -> tuple[Tensor, None]:
        (slope,) = ctx.saved_tensors
        return slope * to_value, None


def class_softmax(c: Comparison, scale: float | Tensor | None = None) -> ClassSoftmax:
    """The parts of a softmax over the columns of a comparison: logits are similarities, times
    `scale` if there is one.

    With one column a class, the classes in rising order, nothing mined and no similarity given, the
    logits are never held (but if they are few): memory O(A·8192), beside what `blocked_softmax`
    keeps for the gradient. Otherwise O(A·R).
    """
    column = own_column(c)
    if column is None:
        return _dense(c, scale, c.positives, c.different, c.positives.count > 0)
    if c.shape[0] * c.shape[1] <= FEW:
        return _few(c, scale, alone(column))
    if c.given is None and c.closeness != "euclidean":
        return _blocked(c, scale, alone(column))
    different = torch.ones(c.shape, dtype=torch.bool, device=column.device)
    return _dense(c, scale, alone(column), different.scatter_(1, column[:, None], False), None)


def _dense(
    c: Comparison,
    scale: float | Tensor | None,
    positives: Positives,
    different: Tensor,
    scored: Tensor | None,
) -> ClassSoftmax:
    def others() -> Tensor:
        total = torch.where(different, c.similarity, 0.0).sum(1)
        return _times(ratio(total, different.sum(1)), scale)

    factor = 1.0 if scale is None else scale
    own, rest = split_log_sum_exp(c.similarity, positives, masked(different), factor)
    return ClassSoftmax(positives, own, lambda: rest, others, scored)


def _few(c: Comparison, scale: float | Tensor | None, positives: Positives) -> ClassSoftmax:
    logits = _times(c.similarity, scale)
    own = logits.gather(1, positives.columns)

    def rest() -> Tensor:
        if c.shape[1] == 1:  # log Σ over nothing has a NaN slope
            return torch.full_like(own[:, 0], -torch.inf)
        return logits.scatter(1, positives.columns, -torch.inf).logsumexp(1)

    def others() -> Tensor:
        return (logits.sum(1) - own[:, 0]) / max(c.shape[1] - 1, 1)

    return ClassSoftmax(positives, own, rest, others, None, logits)


def alone(column: Tensor) -> Positives:
    """The positives of anchors that have one each, in `column` (A,)."""
    return Positives(column[:, None], None, torch.ones_like(column), len(column))


def _blocked(c: Comparison, scale: float | Tensor | None, positives: Positives) -> ClassSoftmax:
    assert c.anchors is not None
    with torch.autocast(c.anchors.device.type, enabled=False):
        # The rows bear the scale, so that the similarities need not be held.
        rows = _times(at_least_float32(c.anchors), scale)
        bias = None if c.bias is None else _times(c.bias, scale)
        columns = c.unmade or at_least_float32(c.references)  # type: ignore[arg-type]
        own, rest = blocked_softmax(rows, columns, positives.columns[:, 0], bias)

    def others() -> Tensor:
        columns = at_least_float32(c.references)  # type: ignore[arg-type]
        total = rows @ columns.sum(0) + (0.0 if bias is None else bias.sum())
        return (total - own[:, 0]) / max(c.shape[1] - 1, 1)

    return ClassSoftmax(positives, own, lambda: rest, others, None)


def _times(x: Tensor, scale: float | Tensor | None) -> Tensor:
    return x if scale is None else scale * x


def own_column(c: Comparison) -> Tensor | None:
    """(A,) int64: the column of each anchor's class. None where classes do not have one column
    each, in rising order, where an anchor has none, and where mining left some out."""
    label, columns = c.anchor_label, c.reference_label
    if label.ndim > 1 or columns.ndim > 1 or not columns.shape[0]:
        return None
    if c.allowed is not None or c.oneself is not None:
        return None
    if not bool((columns[1:] > columns[:-1]).all()):
        return None
    place = torch.searchsorted(columns.contiguous(), label.contiguous()).clamp_max_(
        columns.shape[0] - 1
    )
    return place if bool((columns[place] == label).all()) else None


def by_class(c: Comparison) -> tuple[Tensor, Tensor]:
    """(A, C, M) similarities to the M columns of each class, and the labels (C,) or (C, L) of the
    classes.

    Raises ValueError unless the columns of a class stand side by side, as many for each.
    """
    label, anchors = c.reference_label, c.shape[0]
    if c.mined or c.allowed is not None:
        raise ValueError("this loss takes the columns of a class together, so nothing may be mined")
    starts = (label[1:] != label[:-1]).reshape(max(label.shape[0] - 1, 0), -1).any(1)
    classes = 1 + int(starts.sum())
    grouped = label.unflatten(0, (classes, -1)) if label.shape[0] % classes == 0 else None
    if grouped is None or bool((grouped != grouped[:, :1]).any()):
        raise ValueError(
            "this loss takes the columns of a class together, so each class needs as many, side by "
            "side; use proxies with per_class"
        )
    return c.similarity.reshape(anchors, classes, grouped.shape[1]), grouped[:, 0]
