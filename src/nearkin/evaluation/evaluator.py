"""The one evaluator: embeddings and labels in, Result out.

Counting, metrics and intervals stand beside it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from nearkin.evaluation.base import Embedded
from nearkin.evaluation.catalog import OfRanking, chosen
from nearkin.evaluation.closeness import space_of
from nearkin.evaluation.counting import Retrieval, rankings
from nearkin.evaluation.relevance import Relevance, groups_of
from nearkin.evaluation.result import Result
from nearkin.information.given import Labels, Rows, labels_together

METRICS = ("recall@1", "map@r")


class Gather(Protocol):
    """How several processes share the queries: each scores a slice, all get all values."""

    def slice(self, n: int) -> slice:
        """Which of n queries this process scores; the slices of all processes follow each other."""
        ...

    def concatenate(self, values: Tensor) -> Tensor:
        """The values (q,) float64 of all processes in the order of their slices: (n,)."""
        ...


@dataclass(frozen=True)
class OneProcess:
    """All queries in this process."""

    def slice(self, n: int) -> slice:
        """All n queries."""
        return slice(0, n)

    def concatenate(self, values: Tensor) -> Tensor:
        """The values themselves."""
        return values


def evaluate(
    z: Any,
    labels: Any,
    gallery: Any = None,
    gallery_labels: Any = None,
    metrics: str | Iterable[str] = METRICS,
    closeness: str = "cosine",
    exclude: Any = None,
    seed: int = 0,
    gather: Gather | None = None,
) -> Result:
    """Exact metrics of any embeddings, in bounded memory (below 512 MiB beside them).

    z               (N, D) the queries, numpy or torch, any float dtype; ranked by float64
                    similarity
    labels          (N,) integers, texts or categories, compared exactly; or (N, L) multi-hot, bool
                    or 0/1 integers: an item is relevant that shares a label
    gallery         (G, D) what is searched, with gallery_labels; without it z, each row without
                    itself
    metrics         names as `metric_names` lists them; nmi, ami and information read z and labels
                    alone
    closeness       "cosine" (a row of zeros has similarity 0), "euclidean" or "inner"
    exclude         group ids (N,), or (query ids, gallery ids); pairs of an equal id are skipped
    seed            of k-means, of the probe's folds and of the resampling
    gather          shares the queries among processes; None: one process

    Two similarities within 1e-12·|q||g| are a tie (euclidean: 1e-12·(|q|² + |g|²)/2 of the rows
    shifted by the gallery's mean, which is never smaller; where the two items differ in |g|, the
    mean of both), and a different item in a tie comes before a same one. Queries without a relevant
    item are left out and counted (with metrics of rankings; nmi, ami and information read every
    row).

    Raises ValueError or TypeError for anything else than this, and where no query has a relevant
    item.
    """
    ranked, whole = chosen(metrics)
    task = _retrieval(z, labels, gallery, gallery_labels, closeness, exclude)
    gather = gather or OneProcess()
    values: dict[str, Tensor] = {}
    if ranked:
        mine = _per_query(task, ranked, gather.slice(len(task.queries)))
        values = {name: gather.concatenate(value) for name, value in mine.items()}
        _require_relevant(values, task)
    embedded = Embedded(task.queries, _on_cpu(task.relevance.query), closeness, seed)
    found = {key: v for metric in whole.values() for key, v in metric(embedded).items()}
    return Result(values, found, embedded.labels, closeness, seed)


def per_query_values(
    z: Any,
    labels: Any,
    gallery: Any = None,
    gallery_labels: Any = None,
    metrics: str | Iterable[str] = METRICS,
    closeness: str = "cosine",
    exclude: Any = None,
    queries: slice | None = None,
) -> dict[str, Tensor]:
    """The values (q,) float64 of each ranking metric for a slice of the queries.

    NaN where a query has no relevant item. Arguments as of `evaluate`. Concatenated over slices
    that follow each other they are the values of all queries.
    """
    ranked, _ = chosen(metrics)
    task = _retrieval(z, labels, gallery, gallery_labels, closeness, exclude)
    return _per_query(task, ranked, queries or slice(None))


def _per_query(task: Retrieval, metrics: dict[str, OfRanking], queries: slice) -> dict[str, Tensor]:
    rows = torch.arange(len(task.queries), device=task.gallery.device)[queries]
    values = {name: torch.empty(len(rows), dtype=torch.float64) for name in metrics}
    for places, ranking in rankings(task, rows):
        none = ranking.relevant == 0
        for name, metric in metrics.items():
            values[name][places.cpu()] = metric(ranking).masked_fill(none, torch.nan).cpu()
    return values


def _retrieval(
    z: Any, labels: Any, gallery: Any, gallery_labels: Any, closeness: str, exclude: Any
) -> Retrieval:
    """The task, checked."""
    queries = Rows(z)
    if gallery is None:
        if gallery_labels is not None:
            raise ValueError("gallery_labels are given without a gallery; give both or neither")
        (coded,) = labels_together([(labels, len(queries), "labels", "z")])
        items, pair = queries, (coded, coded)
    else:
        if gallery_labels is None:
            raise ValueError("a gallery needs gallery_labels, one for each of its rows")
        items = Rows(gallery, "gallery")
        pair = labels_together(
            [
                (labels, len(queries), "labels", "z"),
                (gallery_labels, len(items), "gallery_labels", "gallery"),
            ]
        )
    if items.dim != queries.dim:
        raise ValueError(
            f"z has {queries.dim} dimensions but gallery has {items.dim}; "
            f"embed both with one encoder"
        )
    if items.device != queries.device:
        raise ValueError(
            f"z lies on {queries.device} but gallery on {items.device}; move one of them"
        )
    groups = groups_of(exclude, len(queries), None if gallery is None else len(items))
    relevance = Relevance(pair[0], pair[1], groups, leave_one_out=gallery is None)
    space = space_of(closeness, queries, items)
    return Retrieval(queries, items, space, relevance.to(items.device))


def _require_relevant(values: dict[str, Tensor], task: Retrieval) -> None:
    if not bool(next(iter(values.values())).isnan().all()):
        return
    where = "z without itself" if task.relevance.leave_one_out else "the gallery"
    raise ValueError(
        f"none of the {len(task.queries)} queries has a relevant item in {where}; "
        f"check that the labels match, and what exclude skips"
    )


def _on_cpu(labels: Labels) -> Labels:
    hot = None if labels.hot is None else labels.hot.cpu()
    return Labels(labels.codes.cpu(), labels.names, hot)
