"""Who is compared and who is relevant: labels, groups, the item itself. No similarities here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from nearkin.information.given import Labels, labels_together

_PAIRS = 1 << 16  # pairs of multi-hot labels compared at a time


@dataclass(frozen=True, eq=False)
class Relevance:
    """Queries (Q) against a gallery (G): an item is relevant that shares a label with the query.

    query, gallery  labels on one code
    groups          (Q,) and (G,) int64 codes; pairs of an equal code are skipped; None: no pair is
    leave_one_out   the gallery is the queries themselves, and no item is compared with itself
    group_names     the groups by their codes
    """

    query: Labels
    gallery: Labels
    groups: tuple[Tensor, Tensor] | None
    leave_one_out: bool
    group_names: tuple[Any, ...] = ()

    def same(self, rows: Tensor, columns: Tensor) -> Tensor:
        """(B, T) bool of queries (B,) and gallery items (T,): compared, and their labels meet."""
        if self.query.hot is None or self.gallery.hot is None:
            same = self.query.codes[rows][:, None] == self.gallery.codes[columns][None]
        else:
            # Counts of shared labels are small integers, exact in float32.
            same = self.query.hot[rows].float() @ self.gallery.hot[columns].float().T > 0
        if self.groups is not None:
            same &= self.groups[0][rows][:, None] != self.groups[1][columns][None]
        if self.leave_one_out:
            same &= rows[:, None] != columns[None]
        return same

    def different(self, rows: Tensor, columns: Tensor) -> Tensor:
        """(L,) bool of pairs (rows (L,), columns (L,)): compared, and their labels do not meet."""
        if self.query.hot is None or self.gallery.hot is None:
            kept = (
                self.query.codes[rows] != self.gallery.codes[columns]
            )  # an item has its own label
        else:
            pairs = zip(rows.split(_PAIRS), columns.split(_PAIRS), strict=True)
            shared = [(self.query.hot[q] & self.gallery.hot[g]).any(1) for q, g in pairs]
            kept = ~torch.cat(shared)
            if self.leave_one_out:
                kept &= rows != columns
        if self.groups is not None:
            kept &= self.groups[0][rows] != self.groups[1][columns]
        return kept

    def columns(self, rows: Tensor) -> Tensor:
        """(U,) int64: the gallery items that may be relevant to any of the queries (B,)."""
        if self.query.hot is None or self.gallery.hot is None:
            wanted = torch.zeros(len(self.query.names), dtype=torch.bool, device=rows.device)
            wanted[self.query.codes[rows]] = True
            return wanted[self.gallery.codes].nonzero()[:, 0]
        wanted = self.query.hot[rows].any(0)
        return self.gallery.hot[:, wanted].any(1).nonzero()[:, 0]

    def most_relevant(self) -> Tensor:
        """(Q,) int64: an upper bound of the number of relevant items of each query."""
        if self.query.hot is None or self.gallery.hot is None:
            sizes = torch.bincount(self.gallery.codes, minlength=len(self.query.names))
            return sizes[self.query.codes]
        sizes = self.gallery.hot.sum(0).double()
        return (self.query.hot.double() @ sizes).long().clamp_max(len(self.gallery))

    @cached_property
    def candidates(self) -> Tensor:
        """(Q,) int64: how many gallery items each query is compared with."""
        left = torch.full((len(self.query),), len(self.gallery), device=self.query.codes.device)
        if self.groups is None:
            return left - int(self.leave_one_out)
        query, gallery = self.groups
        sizes = torch.bincount(gallery, minlength=int(torch.cat([query, gallery]).max()) + 1)
        left = left - sizes[query]
        return left - (query != gallery).long() if self.leave_one_out else left

    def to(self, device: torch.device) -> Relevance:
        """The same on another device."""

        def moved(labels: Labels) -> Labels:
            hot = None if labels.hot is None else labels.hot.to(device)
            return Labels(labels.codes.to(device), labels.names, hot)

        groups = self.groups and (self.groups[0].to(device), self.groups[1].to(device))
        query, gallery = moved(self.query), moved(self.gallery)
        return Relevance(query, gallery, groups, self.leave_one_out, self.group_names)


def groups_of(exclude: Any, queries: int, gallery: int | None) -> tuple[Tensor, Tensor] | None:
    """The codes of `named_groups`, which says what it takes and raises."""
    groups = named_groups(exclude, queries, gallery)
    return groups and (groups[0].codes, groups[1].codes)


def named_groups(exclude: Any, queries: int, gallery: int | None) -> tuple[Labels, Labels] | None:
    """Group ids from (N,), or from (query ids, gallery ids); lengths checked.

    Raises ValueError for another form or length, TypeError for ids that are no integers or texts.
    """
    if exclude is None:
        return None
    pair = isinstance(exclude, tuple | list) and len(exclude) == 2 and all(map(_many, exclude))
    if gallery is not None and not pair:
        raise ValueError("with a gallery, exclude must be a pair (query ids, gallery ids)")
    ids: Sequence[Any] = exclude if pair else (exclude, exclude)
    names = ("exclude[0]", "exclude[1]") if pair else ("exclude", "exclude")
    rows = "gallery" if gallery is not None else "z"
    first, second = labels_together(
        [
            (ids[0], queries, names[0], "z"),
            (ids[1], queries if gallery is None else gallery, names[1], rows),
        ]
    )
    if first.hot is not None:
        raise ValueError("exclude must be group ids (N,), or a pair (query ids, gallery ids)")
    return first, second


def _many(ids: Any) -> bool:
    return (
        hasattr(ids, "__len__") and not isinstance(ids, str | bytes) and getattr(ids, "ndim", 1) > 0
    )
