"""The few columns of each anchor that are its positives, side by side. Imports torch only."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from nearkin.fast import passes


class Positives(NamedTuple):
    """The few columns of each anchor that are its positives, side by side.

    columns  (A, P) int64, P the most positives of an anchor; places that a row does not fill are 0
    valid    (A, P) bool; None where every row fills all its places
    count    (A,) int64: how many each anchor has
    pairs    how many there are in all
    """

    columns: Tensor
    valid: Tensor | None
    count: Tensor
    pairs: int

    def fill(self, values: Tensor, by: float) -> Tensor:
        """(A, P) values, with `by` in the places that a row does not fill."""
        return values if self.valid is None else torch.where(self.valid, values, by)


def positives_of(same: Tensor) -> Positives:
    """The positives of a comparison by their mask (A, R); memory O(A·P)."""
    rows, columns = same.nonzero(as_tuple=True)
    count = torch.bincount(rows, minlength=len(same))
    most = int(count.max()) if len(same) else 0
    if len(columns) == len(same) * most:
        return Positives(columns.view(len(same), most), None, count, len(columns))
    start = count.cumsum(0) - count
    place = torch.arange(len(rows), device=rows.device) - start[rows]
    filled = columns.new_zeros(len(same), most)
    filled[rows, place] = columns
    valid = torch.arange(most, device=rows.device) < count[:, None]
    return Positives(filled, valid, count, len(columns))


def mates_of(label: Tensor) -> Positives:
    """The positives of rows that meet each other, by their labels (N,): those of the same label but
    itself. Without a mask (N, N); memory O(N·P)."""
    if not len(label):
        return positives_of(label.new_empty(0, 0, dtype=torch.bool))
    if label.device.type == "cpu" and passes() and not torch.compiler.is_compiling():
        return _mates(label)
    ordered, order = label.sort(stable=True)
    first = int(torch.count_nonzero(ordered == ordered[0]))  # of one class
    # Balanced batches are the usual ones, and take a few operations.
    if len(label) % first == 0:
        classes = ordered.view(-1, first)
        distinct = len(classes) == 1 or bool((classes[1:, 0] != classes[:-1, 0]).all())
        if distinct and bool((classes[:, 0] == classes[:, -1]).all()):
            place = torch.arange(first, device=order.device)
            other = place[: first - 1] + (place[: first - 1] >= place[:, None])  # all but itself
            others = order.view(-1, first).index_select(1, other.view(-1))
            columns = order.new_empty(len(label), first - 1)
            columns.index_copy_(0, order, others.view(len(label), first - 1))
            count = order.new_full((len(label),), first - 1)
            return Positives(columns, None, count, columns.numel())
    _, group, size = torch.unique_consecutive(ordered, return_inverse=True, return_counts=True)
    most = int(size.max()) - 1
    place = torch.arange(most, device=label.device)
    start = (size.cumsum(0) - size)[group][:, None]
    here = torch.arange(len(label), device=label.device)[:, None] - start
    filled, count = order.new_zeros(len(label), most), size.new_empty(len(label))
    count[order] = size[group] - 1
    valid = place < count[:, None]
    at = (start + place + (place >= here)).clamp_max_(len(label) - 1)
    filled[order] = order[at]
    return Positives(filled.mul_(valid), valid, count, int(count.sum()))


def _mates(label: Tensor) -> Positives:
    """As `mates_of`, compiled."""
    own = label.detach().numpy()
    order = own.argsort(kind="stable")
    most, pairs, full = passes().classes_of(own, order)
    columns = np.zeros((len(own), max(most - 1, 0)), np.int64)
    valid = np.zeros((0 if full else len(own), columns.shape[1]), np.bool_)
    count = np.empty(len(own), np.int64)
    passes().mates(own, order, columns, valid, count)
    made = torch.from_numpy(columns), None if full else torch.from_numpy(valid)
    return Positives(*made, torch.from_numpy(count), pairs)
