"""Mistakes: for queries that find another class first, which item that is."""

from __future__ import annotations

from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from nearkin.evaluation.counting import Retrieval
from nearkin.rows import Rows
from nearkin.search.nearest import LAST, nearest
from nearkin.search.products import precisions
from nearkin.search.side import Side

SMALL = 1 << 27  # products of entries below which float64 takes no longer
QUERIES = 8192  # searched at a time
PLACES = 1 << 21  # entries (queries of a block) x (neighbors looked at), at most
FEW = 4  # neighbors looked at first
PAIRS = 4096  # compared in float64 at a time


class Wrong(NamedTuple):
    """A query that finds an item of another class first.

    query, neighbor  the rows, in z and in the gallery (without one: in z)
    label, neighbor_label  their classes
    similarity       cosine; -|q - g| under euclidean; q·g under inner
    rank             of the first relevant item: 2 or more
    """

    query: int
    neighbor: int
    label: Any
    neighbor_label: Any
    similarity: float
    rank: int


class Mistakes:
    """What stands before the first relevant item of the queries of a task, found on demand.

    first  (Q,) float64: the rank of the first relevant item; NaN where there is none
    """

    def __init__(self, task: Retrieval, first: np.ndarray):
        self.task, self.first = task, first

    @property
    def queries(self) -> np.ndarray:
        """(L,) int64: the queries that find an item of another class first."""
        return np.flatnonzero(self.first > 1)

    @cached_property
    def found(self) -> np.ndarray:
        """(L,) int64: that item, the nearest of another class; of a tie the lowest row."""
        task, wrong = self.task, torch.from_numpy(self.queries)
        found = torch.empty(len(wrong), dtype=torch.int64)
        if len(wrong) * len(task.gallery) * task.gallery.dim < SMALL:
            for block in torch.arange(len(wrong)).split(max(1, PLACES // len(task.gallery))):
                found[block] = self._in_float64(wrong[block]).cpu()
            return found.numpy()
        gallery = Side(task.gallery, task.space)
        gallery.round_to(precisions(task.gallery.dim, task.gallery.device)[0])
        for block in torch.arange(len(wrong)).split(QUERIES):
            found[block] = self._of(wrong[block], gallery)
        return found.numpy()

    def _in_float64(self, rows: Tensor) -> Tensor:
        """(B,) int64 for queries (B,), compared with the whole gallery at once."""
        task, count = self.task, len(self.task.gallery)
        rows = rows.to(task.gallery.device)
        items = torch.arange(count, device=rows.device)
        q, g = task.queries.block(rows), task.gallery.block(slice(None))
        similarity = task.space.query(q) @ task.space.gallery(g, 0.0).T  # (B, G)
        fits = task.relevance.different(rows.repeat_interleave(count), items.repeat(len(rows)))
        similarity.masked_fill_(~fits.view(similarity.shape), -torch.inf)
        best, norms = similarity.amax(1, keepdim=True), [task.space.norms(x)[0] for x in (q, g)]
        tie = 2 * task.space.slack(norms[0][:, None], norms[1][None])
        return (similarity >= best - tie).int().argmax(1)

    def _of(self, rows: Tensor, gallery: Side) -> Tensor:
        """(B,) int64 for queries (B,): looks at few neighbors, at more where none would do."""
        found = torch.full((len(rows),), -1, dtype=torch.int64)
        open_, k = torch.arange(len(rows)), min(FEW, len(gallery))
        while len(open_):
            left = open_
            for part in left.split(max(1, PLACES // k)):
                at = rows[part].to(gallery.norm.device)
                found[part] = self._first_other(at, gallery, k).cpu()
            open_ = left[found[left] < 0]
            if len(open_) and k == len(gallery):
                raise AssertionError("a query with a rank above 1 has no item of another class")
            k = min(8 * k, len(gallery))
        return found

    def _first_other(self, rows: Tensor, gallery: Side, k: int) -> Tensor:
        """(B,) int64: the first of the K nearest that is compared and of another class; or -1."""
        task = self.task
        queries = Side(_rows(task.queries, rows), task.space)
        queries.round_to(gallery.dtype)
        skipped = rows if task.relevance.leave_one_out else None
        _, item = nearest(queries, gallery, k, skipped=skipped)
        there = (item != LAST).reshape(-1)
        item = item.masked_fill(item == LAST, 0).reshape(-1)
        fits = task.relevance.different(rows.repeat_interleave(k), item) & there
        fits, item = fits.view(-1, k), item.view(-1, k)
        first = item.gather(1, fits.int().argmax(1, keepdim=True))[:, 0]
        return first.masked_fill(~fits.any(1), -1)

    @cached_property
    def similarity(self) -> np.ndarray:
        """(L,) float64 of each wrong query and the item it found; see `Wrong`."""
        found = torch.empty(len(self.queries), dtype=torch.float64)
        wrong, items = torch.from_numpy(self.queries), torch.from_numpy(self.found)
        space = self.task.space
        for at in torch.arange(len(wrong)).split(PAIRS):
            q, g = self.task.queries.block(wrong[at]), self.task.gallery.block(items[at])
            if space.name == "euclidean":
                value = -(q / space.scale - g / space.scale).norm(dim=1) * space.scale
            else:
                value = (space.exact(q) * space.exact(g)).sum(1)
                value = value * space.scale * space.scale if space.name == "inner" else value
            found[at] = value.cpu()
        return found.numpy()

    def codes(self) -> tuple[np.ndarray, np.ndarray]:
        """(L,) codes of the classes of the wrong queries, and of what they found."""
        relevance = self.task.relevance
        wrong, items = torch.from_numpy(self.queries), torch.from_numpy(self.found)
        query, gallery = relevance.query.codes.cpu(), relevance.gallery.codes.cpu()
        return query[wrong].numpy(), gallery[items].numpy()

    def listed(self, count: int, by: str) -> list[Wrong]:
        """The `count` worst, by "similarity" (highest first) or by "rank" (highest first)."""
        rank = self.first[self.queries]
        keys = (-rank, -self.similarity) if by == "rank" else (-self.similarity, -rank)
        names = self.task.relevance.gallery.names
        label, other = self.codes()
        return [
            Wrong(
                int(self.queries[i]),
                int(self.found[i]),
                names[label[i]],
                names[other[i]],
                float(self.similarity[i]),
                int(rank[i]),
            )
            for i in np.lexsort((self.queries, *reversed(keys)))[:count]
        ]


def _rows(rows: Rows, index: Tensor) -> Rows:
    """Some of the rows, in the dtype that they have."""
    values = rows.values
    if isinstance(values, Tensor):
        return Rows(values[index.to(values.device)])
    return Rows(values[index.cpu().numpy()])
