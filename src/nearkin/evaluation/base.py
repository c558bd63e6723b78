"""Ranking and Embedded: what metrics read. How they come about stands elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nearkin.information.given import Labels, Rows
from nearkin.search.space import unit

NOWHERE = torch.iinfo(torch.int64).max  # the rank of a relevant item that there is not


@dataclass(frozen=True, eq=False)
class Ranking:
    """Where the relevant items stand, of Q queries with at most P relevant items each.

    ranks       (Q, P) int64, ascending, 1 is the nearest candidate; behind the last: `NOWHERE`
    relevant    (Q,) int64: how many relevant items a query has; may be 0
    candidates  (Q,) int64: how many items it was compared with (neither itself nor excluded)
    """

    ranks: Tensor
    relevant: Tensor
    candidates: Tensor


@dataclass(frozen=True, eq=False)
class Embedded:
    """The rows that are evaluated and their classes: what metrics of a whole embedding read.

    z          (N, D) as given
    labels     the coded labels
    closeness  "cosine", "euclidean" or "inner"
    seed       of everything random in a metric
    """

    z: Rows
    labels: Labels
    closeness: str
    seed: int

    @property
    def classes(self) -> int:
        """How many classes the rows have. Raises ValueError for multi-hot labels."""
        return len(np.unique(self.codes))

    @cached_property
    def codes(self) -> np.ndarray:
        """(N,) int64. Raises ValueError for multi-hot labels: clusters need one class a row."""
        if self.labels.hot is not None:
            raise ValueError(
                "nmi, ami and information need one class a row, but the labels are multi-hot; "
                "leave these metrics out"
            )
        return self.labels.codes.numpy()

    def matrix(self, dtype: Any) -> np.ndarray:
        """(N, D) of `dtype`: the rows as compared, scaled to length 1 under cosine."""
        out = np.empty((len(self.z), self.z.dim), dtype=dtype)
        start = 0
        for block in self.z.blocks():
            rows = unit(block) if self.closeness == "cosine" else block / (self.z.largest or 1.0)
            out[start : start + len(rows)] = rows.cpu().numpy()
            start += len(rows)
        return out

    @cached_property
    def clusters(self) -> np.ndarray:
        """(N,) the k-means cluster of each row; see `clustering.clusters`."""
        from nearkin.evaluation.clustering import clusters

        return clusters(self)
