"""Graded relevance by levels of labels: an item gains by the finest level that it shares.

Gains g_0 > g_1 > ... > 0 of the class and of the levels above it. Classes lie within one another,
so the items that share level l hold those that share a finer one, and a sum over items by their
gain is a sum over levels by the steps between gains:

    DCG@K = Σ_l (g_l - g_{l+1}) DCG_l@K          DCG_l@K: binary, relevant is who shares level l

The ideal list, the items by descending gain and cut at K, falls apart in the same way. Of a tie the
items of lower gain come first, since in every DCG_l those that do not share level l do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from torch import Tensor

from nearkin.evaluation.relevance import Relevance
from nearkin.information.given import Labels, labels_together


@dataclass(frozen=True, eq=False)
class Level:
    """Labels of queries and of the gallery on one code, and the step of gain that sharing gives."""

    query: Labels
    gallery: Labels
    step: float

    def of(self, relevance: Relevance) -> Relevance:
        """Who is relevant on this level."""
        whole = replace(relevance, query=self.query, gallery=self.gallery)
        return whole.to(relevance.query.codes.device)


def levels_of(
    relevance: Relevance, super_labels: Any, gallery_super_labels: Any, gains: Any
) -> list[Level]:
    """The class itself and every level above it.

    super_labels          (N,) of the queries, or (N, L), the finer first: integers or texts
    gallery_super_labels  the same of the gallery, where there is one
    gains                 (L + 1,) > 0, descending; None: L + 1, ..., 1

    Raises ValueError for another form, for multi-hot labels, for gains that do not descend and for
    a class (or level) that lies in two of the level above; TypeError for labels of another kind.
    """
    if relevance.query.hot is not None:
        raise ValueError("super_labels need one class a row, but the labels are multi-hot")
    if relevance.leave_one_out and gallery_super_labels is not None:
        raise ValueError("gallery_super_labels are given without a gallery; leave them out")
    if not relevance.leave_one_out and gallery_super_labels is None:
        raise ValueError("a gallery needs gallery_super_labels too, one for each of its rows")
    queries = _columns(super_labels, "super_labels")
    items = queries
    if gallery_super_labels is not None:
        items = _columns(gallery_super_labels, "gallery_super_labels")
        if len(items) != len(queries):
            raise ValueError(
                f"super_labels have {len(queries)} levels but gallery_super_labels {len(items)}"
            )
    said = _gains(gains, len(queries) + 1)
    pairs = [(relevance.query, relevance.gallery)]
    for query, item in zip(queries, items, strict=True):
        above = _level(relevance, query, item)
        _require_within(pairs[-1], above)
        pairs.append(above)
    steps = [high - low for high, low in zip(said, [*said[1:], 0.0], strict=True)]
    return [Level(*pair, step) for pair, step in zip(pairs, steps, strict=True)]


def _level(relevance: Relevance, query: Any, item: Any) -> tuple[Labels, Labels]:
    if relevance.leave_one_out:
        (one,) = labels_together([(query, len(relevance.query), "super_labels", "z")])
        return one, one
    first, second = labels_together(
        [
            (query, len(relevance.query), "super_labels", "z"),
            (item, len(relevance.gallery), "gallery_super_labels", "gallery"),
        ]
    )
    return first, second


def _columns(labels: Any, name: str) -> list[Any]:
    """One sequence a level."""
    if isinstance(labels, Tensor):
        labels = labels.detach().cpu().numpy()
    if isinstance(labels, list | tuple) and labels and isinstance(labels[0], list | tuple):
        wide = {len(row) if isinstance(row, list | tuple) else 0 for row in labels}
        if len(wide) > 1 or not min(wide):
            raise ValueError(f"{name} must have as many levels in every row")
        return [list(column) for column in zip(*labels, strict=True)]
    array: Any = labels
    if getattr(labels, "ndim", 1) == 1:
        return [labels]
    if array.ndim != 2 or not array.shape[1]:
        raise ValueError(
            f"{name} must be (N,), or (N, L) with the finer level first; their shape is "
            f"{tuple(array.shape)}"
        )
    # A column by itself: labels of two columns of 0 and 1 would be taken for multi-hot ones.
    return [np.asarray(array)[:, level] for level in range(array.shape[1])]


def _gains(gains: Any, count: int) -> list[float]:
    if gains is None:
        return [float(count - level) for level in range(count)]
    good = isinstance(gains, Sequence | np.ndarray | Tensor) and not isinstance(gains, str | bytes)
    try:
        said = [float(gain) for gain in gains] if good else []
    except (TypeError, ValueError):
        said = []
    falling = all(high > low for high, low in pairwise(said))
    if len(said) != count or not falling or not (said[-1] > 0 and np.isfinite(said[0])):
        example = ", ".join(str(count - level) for level in range(count))
        raise ValueError(
            f"gains must be {count} numbers above 0 that descend, for the class and each level "
            f"above it, such as {example}; not {gains!r:.60}"
        )
    return said


def _require_within(finer: tuple[Labels, Labels], coarser: tuple[Labels, Labels]) -> None:
    codes = np.concatenate([side.codes.cpu().numpy() for side in finer])
    above = np.concatenate([side.codes.cpu().numpy() for side in coarser])
    held = np.zeros(len(finer[0].names), np.int64)
    held[codes] = above
    broken = np.flatnonzero(held[codes] != above)
    if len(broken):
        names, here = coarser[0].names, broken[0]
        raise ValueError(
            f"class {finer[0].names[codes[here]]!r} lies in {names[above[here]]!r} and in "
            f"{names[held[codes[here]]]!r}; every class needs one super-label"
        )
