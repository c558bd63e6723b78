"""The one evaluator: embeddings and labels in, Result out.

Counting, metrics and intervals stand beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from nearkin.evaluation.base import Embedded, Ranking
from nearkin.evaluation.catalog import OfRanking, chosen, depth_of
from nearkin.evaluation.counting import Retrieval, rankings
from nearkin.evaluation.graded import Level, levels_of
from nearkin.evaluation.mistakes import Mistakes
from nearkin.evaluation.plan import Plan, plan_of
from nearkin.evaluation.relevance import Relevance, named_groups
from nearkin.evaluation.result import Result
from nearkin.evaluation.retrieval import gain, ideal_gain, reciprocal_rank
from nearkin.evaluation.screened import Sides, screened
from nearkin.information.given import Labels, Rows, labels_together
from nearkin.search.space import space_of

METRICS = ("recall@1", "map@r")
FIRST = "mrr"  # its inverse is the rank of the first relevant item


class Gather(Protocol):
    """How several processes share the work: each does a slice of it, all get all values."""

    def slice(self, n: int) -> slice:
        """Which of n parts this process does; the slices of all processes follow each other."""
        ...

    def concatenate(self, values: Tensor) -> Tensor:
        """The values (q,) of all processes in the order of their slices: (n,)."""
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
    planned: Callable[[Plan], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
    super_labels: Any = None,
    gallery_super_labels: Any = None,
    gains: Any = None,
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
    gather          shares the work among processes; None: one process
    planned         told what the metrics of rankings will take, before they are computed
    progress        told of (done, total) blocks of similarities
    super_labels    (N,) what stands above the classes (makes, families), or (N, L) of several
                    levels, the finer first; ndcg@K is then graded, see `nearkin.evaluation.graded`;
                    with gallery_super_labels where there is a gallery
    gains           (L + 1,) what an item of the query's class gains, and of its super-label, of the
                    level above it ...: above 0, descending; default L + 1, ..., 2, 1

    The result keeps the rows by reference, to name wrong neighbors when it is asked for them
    (`Result.forget_rows` lets them go). K may exceed the gallery: then all of it is looked at
    (recall@K is 1; precision@K still divides by K).

    Two similarities within 1e-12·|q||g| are a tie (euclidean: 1e-12·(|q|² + |g|²)/2 of the rows
    shifted by the gallery's mean, which is never smaller; where the two items differ in |g|, the
    mean of both), and a different item in a tie comes before a same one. Queries without a relevant
    item are left out and counted (with metrics of rankings; nmi, ami and information read every
    row).

    Raises ValueError or TypeError for anything else than this, and where no query has a relevant
    item; MemoryError where not even one block fits into the memory that is free.
    """
    ranked, whole = chosen(metrics)
    task = _retrieval(z, labels, gallery, gallery_labels, closeness, exclude)
    levels = _levels(task, ranked, super_labels, gallery_super_labels, gains)
    work = partial(_all, gather=gather or OneProcess(), planned=planned, progress=progress)
    values, mistakes = _ranked_values(task, ranked, levels, work) if ranked else ({}, None)
    embedded = Embedded(task.queries, _on_cpu(task.relevance.query), closeness, seed)
    found = {key: v for metric in whole.values() for key, v in metric(embedded).items()}
    return Result(values, found, embedded.labels, closeness, seed, mistakes=mistakes)


Work = Callable[[Retrieval, dict[str, OfRanking], int], dict[str, Tensor]]


def _ranked_values(
    task: Retrieval, ranked: dict[str, OfRanking], levels: list[Level], work: Work
) -> tuple[dict[str, Tensor], Mistakes]:
    """The values (Q,) of each metric, and what finds the items that stand before the relevant."""
    deep = _discounted(ranked) if levels else {}
    every = {**ranked, **deep, FIRST: ranked.get(FIRST, reciprocal_rank)}
    values = work(task, every, _depth(task, ranked))
    _require_relevant(values, task)
    first = values[FIRST] if FIRST in ranked else values.pop(FIRST)
    sums = [{name: values.pop(name) for name in deep}]
    for level in levels[1:]:
        above = replace(task, relevance=level.of(task.relevance))
        sums.append(work(above, deep, _depth(above, {name.partition(":")[0] for name in deep})))
    values.update(_graded(ranked, levels, sums))
    return values, Mistakes(task, np.rint(1 / first.numpy()))


def _all(
    task: Retrieval,
    metrics: dict[str, OfRanking],
    depth: int,
    *,
    gather: Gather,
    planned: Callable[[Plan], None] | None,
    progress: Callable[[int, int], None] | None,
) -> dict[str, Tensor]:
    """The values (Q,) of each metric for all queries."""
    plan, few = plan_of(task, depth)
    if planned is not None:
        planned(plan)
    span = slice(0, len(task.queries))
    return _per_query(task, metrics, depth, span, few, plan, gather, progress)


def _levels(
    task: Retrieval, metrics: Iterable[str], super_labels: Any, of_gallery: Any, gains: Any
) -> list[Level]:
    """The levels of graded relevance; none without super_labels."""
    if super_labels is None:
        given = [("gallery_super_labels", of_gallery), ("gains", gains)]
        for name in [name for name, value in given if value is not None]:
            raise ValueError(f"{name} are given without super_labels; give both or neither")
        return []
    if not any(name.startswith("ndcg@") for name in metrics):
        raise ValueError("super_labels grade ndcg@K alone, which is not among the metrics; add it")
    return levels_of(task.relevance, super_labels, of_gallery, gains)


def _discounted(metrics: Iterable[str]) -> dict[str, OfRanking]:
    """The two sums behind every ndcg@K."""
    return {
        name + part: partial(function, k=int(name.partition("@")[2]))
        for name in metrics
        if name.startswith("ndcg@")
        for part, function in ((":gain", gain), (":ideal", ideal_gain))
    }


def _graded(
    metrics: Iterable[str], levels: list[Level], found: list[dict[str, Tensor]]
) -> dict[str, Tensor]:
    """ndcg@K (Q,) of the sums found on each level; nothing without levels."""
    names = [name for name in metrics if name.startswith("ndcg@")] if levels else []

    def total(name: str) -> Tensor:
        parts = [level.step * sums[name] for level, sums in zip(levels, found, strict=True)]
        return torch.stack(parts).sum(0)

    return {name: total(name + ":gain") / total(name + ":ideal") for name in names}


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
    start, stop, step = (queries or slice(None)).indices(len(task.queries))
    if step != 1:
        raise ValueError(f"queries must be a slice without a step, not {queries}")
    depth, span = _depth(task, ranked), slice(start, max(start, stop))
    plan, few = plan_of(task, depth, span.stop - start)
    return _per_query(task, ranked, depth, span, few, plan, OneProcess(), None)


def _depth(task: Retrieval, metrics: Iterable[str]) -> int:
    return depth_of(metrics, max(1, int(task.relevance.most_relevant().max())))


def _per_query(
    task: Retrieval,
    metrics: dict[str, OfRanking],
    depth: int,
    span: slice,
    few: Tensor,
    plan: Plan,
    gather: Gather,
    progress: Callable[[int, int], None] | None,
) -> dict[str, Tensor]:
    """(q,) float64 of each metric for the queries of a span.

    few     (Q,) bool: queries that are screened; the others are compared in float64, each process
            a share of them
    """
    values = {
        name: torch.full((span.stop - span.start,), torch.nan, dtype=torch.float64)
        for name in metrics
    }
    if bool(few[span].any()):
        work = screened(task, Sides.of(task), span, depth, few, plan, gather, progress)
        for rows, ranking in work:
            for name, value in _scored(metrics, ranking).items():
                values[name][(rows - span.start).cpu()] = value
    many = (~few[span]).nonzero()[:, 0] + span.start
    if len(many):
        mine = many[gather.slice(len(many))]
        parts = {name: torch.empty(len(mine), dtype=torch.float64) for name in metrics}
        for places, ranking in rankings(task, mine):
            for name, value in _scored(metrics, ranking).items():
                parts[name][places.cpu()] = value
        for name, part in parts.items():
            values[name][(many - span.start).cpu()] = gather.concatenate(part)
    return values


def _scored(metrics: dict[str, OfRanking], ranking: Ranking) -> dict[str, Tensor]:
    """The values (B,) of every metric; NaN where nothing is relevant."""
    none = ranking.relevant == 0
    return {
        name: metric(ranking).masked_fill(none, torch.nan).cpu() for name, metric in metrics.items()
    }


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
    groups = named_groups(exclude, len(queries), None if gallery is None else len(items))
    codes, names = groups and (groups[0].codes, groups[1].codes), groups[0].names if groups else ()
    relevance = Relevance(pair[0], pair[1], codes, gallery is None, names)
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
