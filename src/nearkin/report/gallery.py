"""Which queries and classes of the test rows fared worst, found in blocks of bounded memory.

The numbers of the report come from metrics.json, not from here; this only chooses what to show.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from nearkin.report.view import RunView

MOST_QUERIES = 4_000
MOST_WORK = 100_000_000_000  # products of two numbers: some ten seconds on one core
TIE = 1e-12
_BLOCK = 2_000_000  # entries of one block of similarities: 16 MB in float64
_ROWS = 4_096  # gallery rows at a time where the queries are few


@dataclass(frozen=True, eq=False)
class Ranked:
    """How the queries that were looked at fared: Q, each with a relevant item in the gallery.

    query           (Q,) int64 test rows
    best            (Q,) int64: the test row of the nearest relevant item
    rank            (Q,) int64 >= 1: its rank; 1 is a hit of recall@1
    mistaken        (Q,) int64: the nearest item that is not relevant, -1 where there is none
    lead            (Q,) float64: by how much more cosine `best` is nearer than `mistaken`
    considered      how many queries were looked at, those without a relevant item included
    queries         how many queries there are
    """

    query: np.ndarray
    best: np.ndarray
    rank: np.ndarray
    mistaken: np.ndarray
    lead: np.ndarray
    considered: int
    queries: int

    def worst(self, count: int) -> np.ndarray:
        """Positions of the queries whose best relevant item is ranked lowest, the worst first."""
        return np.argsort(-self.rank, kind="stable")[:count]

    def best_led(self, count: int, classes: np.ndarray) -> np.ndarray:
        """Positions of the hits that lead most, the first of each class (`classes` (Q,)) alone."""
        order = np.argsort(-np.where(self.rank == 1, self.lead, -np.inf), kind="stable")
        order = order[self.rank[order] == 1]
        first = np.unique(classes[order], return_index=True)[1]
        return order[np.sort(first)][:count]

    def random(self, count: int, seed: int = 0, without: np.ndarray | None = None) -> np.ndarray:
        """Positions of queries drawn at random, none of `without` among them."""
        left = np.setdiff1d(np.arange(len(self.query)), [] if without is None else without)
        return np.random.default_rng(seed).permutation(left)[:count]


def rank_queries(view: RunView, limit: int = MOST_QUERIES, seed: int = 0) -> Ranked:
    """The rank of each query's best relevant item by cosine; at most `limit` queries, by `seed`.

    There are fewer where gallery and dimensions are so many that they would take minutes. As in the
    evaluation, an irrelevant item within 1e-12 of a relevant one stands before it, and no row finds
    itself. Memory beside the embeddings: about 100 MB.
    """
    queries, gallery = np.flatnonzero(view.is_query), np.flatnonzero(view.is_gallery)
    chosen = drawn_queries(view, limit, seed)
    anchors = _unit(view.embeddings[chosen])  # (Q, D)
    best, top = _best_relevant(view, chosen, gallery, anchors)
    ahead, mistaken, nearest = _irrelevant(view, chosen, gallery, anchors, top)
    found = best >= 0
    return Ranked(
        query=chosen[found],
        best=best[found],
        rank=1 + ahead[found],
        mistaken=mistaken[found],
        lead=top[found] - nearest[found],
        considered=len(chosen),
        queries=len(queries),
    )


def drawn_queries(view: RunView, limit: int = MOST_QUERIES, seed: int = 0) -> np.ndarray:
    """(Q,) int64: the test rows of all queries, or of those drawn where there are too many."""
    queries = np.flatnonzero(view.is_query)
    each = max(1, int(view.is_gallery.sum()) * view.embeddings.shape[1])
    limit = min(limit, max(100, MOST_WORK // each))
    if len(queries) <= limit:
        return queries
    drawn = np.random.default_rng(seed).choice(len(queries), limit, replace=False)
    return queries[np.sort(drawn)]


def _best_relevant(
    view: RunView, chosen: np.ndarray, gallery: np.ndarray, anchors: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(Q,) int64, (Q,) float64: each query's nearest relevant row and its cosine; -1 where none is.

    The gallery is taken in the order of what is relevant, so that each block meets few queries.
    """
    best, top = np.full(len(chosen), -1), np.full(len(chosen), -np.inf)
    wanted = view.relevant[chosen]
    ordered = gallery[np.argsort(view.relevant[gallery], kind="stable")]
    for rows in _blocks(ordered, len(chosen)):
        there = view.relevant[rows]
        mine = np.flatnonzero((wanted >= there[0]) & (wanted <= there[-1]))
        if not len(mine):
            continue
        right = anchors[mine] @ _unit(view.embeddings[rows]).T  # (at most Q, B)
        right[wanted[mine][:, None] != there[None]] = -np.inf
        right[_excluded(view, chosen[mine], rows)] = -np.inf
        nearest = right.max(1)
        closer = nearest > top[mine]
        best[mine[closer]] = rows[right.argmax(1)[closer]]
        top[mine] = np.maximum(top[mine], nearest)
    return best, top


def _irrelevant(
    view: RunView, chosen: np.ndarray, gallery: np.ndarray, anchors: np.ndarray, top: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(Q,) each: how many irrelevant rows are as near as `top`, the nearest of all, its cosine."""
    ahead, mistaken = np.zeros(len(chosen), np.int64), np.full(len(chosen), -1)
    nearest = np.full(len(chosen), -np.inf)
    for rows in _blocks(gallery, len(chosen)):
        wrong = anchors @ _unit(view.embeddings[rows]).T  # (Q, B)
        wrong[view.relevant[chosen][:, None] == view.relevant[rows][None]] = -np.inf
        wrong[_excluded(view, chosen, rows)] = -np.inf
        ahead += (wrong >= (top - TIE)[:, None]).sum(1)
        here = wrong.max(1)
        closer = here > nearest
        mistaken[closer] = rows[wrong.argmax(1)[closer]]
        nearest = np.maximum(nearest, here)
    return ahead, mistaken, nearest


def _excluded(view: RunView, queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """(Q, B) bool: no row finds itself, nor one of its own group."""
    apart = queries[:, None] == rows[None]
    if view.group is not None:
        apart |= view.group[queries][:, None] == view.group[rows][None]
    return apart


def _blocks(rows: np.ndarray, queries: int) -> Iterator[np.ndarray]:
    """The rows in pieces, so many at a time that a block of similarities stays within bounds."""
    size = max(1, _BLOCK // max(1, queries))
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def neighbors(
    view: RunView, queries: np.ndarray, count: int = 8
) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each query (K,) int64 and (K,) float64: the nearest test rows and their cosine, in order.

    One pass over the gallery for all queries, which should be few.
    """
    gallery = np.flatnonzero(view.is_gallery)
    anchors = _unit(view.embeddings[queries])
    found = [(np.zeros(0, np.int64), np.zeros(0)) for _ in queries]
    for start in range(0, len(gallery), _ROWS):
        rows = gallery[start : start + _ROWS]
        similarity = anchors @ _unit(view.embeddings[rows]).T  # (Q, B)
        allowed = ~_excluded(view, queries, rows)
        for place, query in enumerate(queries):
            here = allowed[place]
            near = np.concatenate([found[place][0], rows[here]])
            cosine = np.concatenate([found[place][1], similarity[place, here]])
            same = view.relevant[near] == view.relevant[query]
            order = np.lexsort((same, -cosine.round(12)))[:count]
            found[place] = near[order], cosine[order]
    return found


@dataclass(frozen=True)
class ClassScore:
    """How the queries of one class fared: `hits` of `queries` found a relevant item first.

    `mistaken` is the class that most of the others found instead, None where every query hit.
    """

    label: int
    queries: int
    hits: int
    mistaken: int | None


def worst_classes(view: RunView, ranked: Ranked, count: int = 20) -> list[ClassScore]:
    """The classes of lowest recall@1 that missed at least once; of equals, larger ones first."""
    labels = view.labels[ranked.query]
    scores = []
    for label in np.unique(labels):
        mine = labels == label
        missed = ranked.mistaken[mine & (ranked.rank > 1)]
        if not len(missed):
            continue
        instead, often = np.unique(view.labels[missed], return_counts=True)
        queries = int(mine.sum())
        score = ClassScore(int(label), queries, queries - len(missed), int(instead[often.argmax()]))
        scores.append(score)
    scores.sort(key=lambda score: (score.hits / score.queries, -score.queries, score.label))
    return scores[:count]


def _unit(rows: np.ndarray) -> np.ndarray:
    """Rows of length one in float64; a zero row stays zero. Scaled first: no square overflows."""
    rows = rows.astype(np.float64)
    largest = np.abs(rows).max(1, keepdims=True, initial=0.0)
    rows /= np.where(largest > 0, largest, 1.0)
    length = np.sqrt(np.square(rows).sum(1, keepdims=True))
    return rows / np.where(length > 0, length, 1.0)
