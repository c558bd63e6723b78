"""Ranks among thresholds: how many of a few ascending numbers are at most each of very many.
Imports torch only."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

BUCKETS = 1 << 16  # so that the table of counts stays in the second-level cache


class Ladder(NamedTuple):
    """Ascending thresholds, and for equal steps of their range the count where it is known.

    value   (T,) ascending, floating, at least one
    low     where the first bucket begins
    steep   buckets for each unit
    count   (BUCKETS + 1,) int32: how many thresholds are at most any number in the bucket; -1 where
            a threshold lies within
    """

    value: Tensor
    low: Tensor
    steep: Tensor
    count: Tensor

    def ranks(self, x: Tensor) -> Tensor:
        """Of the shape of x, int32: how many thresholds are at most each number, exactly. For NaN:
        all of them.

        A bucket is a rising function of a number, also after rounding, so a threshold in an earlier
        bucket is less and one in a later bucket is more. Only where a threshold is in the same
        bucket it is searched for.
        """
        found = self.count.index_select(0, _bucket(x.reshape(-1), self.low, self.steep))
        open_ = (found < 0).nonzero()[:, 0]
        exact = torch.searchsorted(
            self.value, x.reshape(-1).index_select(0, open_), right=True, out_int32=True
        )
        return found.index_copy_(0, open_, exact).view(x.shape)


def ladder(value: Tensor) -> Ladder:
    """The Ladder of ascending thresholds (T,), at least one."""
    low, high = value[0], value[-1]
    steep = torch.where(high > low, BUCKETS / (high - low), 1.0).to(value.dtype)
    steep = steep.clamp_max_(torch.finfo(value.dtype).max)  # of thresholds that are next to equal
    held = torch.bincount(_bucket(value, low, steep), minlength=BUCKETS + 1)
    count = held.cumsum(0).masked_fill_(held > 0, -1).int()
    return Ladder(value, low, steep, count)


def _bucket(x: Tensor, low: Tensor, steep: Tensor) -> Tensor:
    """int32; NaN is in the last one."""
    place = (x - low).mul_(steep).nan_to_num_(BUCKETS, BUCKETS, 0)
    return place.clamp_(0, BUCKETS).int()


def ranks_by_class(own: Tensor, classes: int, entries: int) -> Callable[[Tensor, Tensor], Tensor]:
    """Makes of classes and ranks r, which are broadcast, how many of the first r thresholds are of
    the class: int32.

    own       (T,) int64 the classes of the thresholds, in their order
    entries   how many numbers a table of all answers may hold; where it would be larger, they are
              searched for. Memory O(entries + T)
    """
    width = len(own) + 1
    if classes * width <= min(entries, 1 << 30):
        first = own.new_zeros(classes, width, dtype=torch.int32)
        first[own, torch.arange(1, width, device=own.device)] = 1
        flat = first.cumsum(1, dtype=torch.int32).view(-1)

        def looked_up(class_: Tensor, rank: Tensor) -> Tensor:
            at = class_.int() * width + rank
            return flat.index_select(0, at.view(-1)).view_as(at)

        return looked_up
    grouped = own.argsort(stable=True)
    key = own[grouped] * width + grouped
    size = torch.bincount(own, minlength=classes)
    begin = size.cumsum(0) - size

    def searched(class_: Tensor, rank: Tensor) -> Tensor:
        return (torch.searchsorted(key, class_ * width + rank) - begin[class_]).int()

    return searched
