"""What the pages of galleries and classes show of a run: rows chosen once, then given pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from nearkin.report import scores
from nearkin.report.confusions import Confusion
from nearkin.report.gallery import ClassScore, Ranked, neighbors
from nearkin.report.thumbnails import Thumbnail
from nearkin.report.view import RunView

WORST, BEST, RANDOM, NEIGHBORS = 10, 6, 6, 8

Pictured = Callable[[int], Thumbnail | None]


@dataclass(frozen=True)
class Chosen:
    """A query (a test row), its nearest rows with their cosine, and its best relevant row."""

    query: int
    near: list[int]
    cosine: list[float]
    best: int
    rank: int


@dataclass(frozen=True)
class Item:
    """One picture with what stands under it; `right` is None for the query itself."""

    name: str
    id: str
    label: int
    thumbnail: Thumbnail | None
    right: bool | None = None
    rank: int = 0
    cosine: float = 0.0


@dataclass(frozen=True)
class Shown:
    """A query, its neighbors in order, and its best relevant item where that is not among them."""

    query: Item
    neighbors: list[Item]
    rank: int
    best: Item | None


def choose(
    view: RunView, ranked: Ranked, shared_with: int = 1
) -> list[tuple[str, str, list[Chosen]]]:
    """(title, how they were chosen, queries): the worst, the best and some drawn at random.

    With many runs on a page each shows fewer.
    """
    worst = ranked.worst(max(3, WORST // shared_with))
    best = ranked.best_led(max(2, BEST // shared_with), view.labels[ranked.query])
    best = best[~np.isin(best, worst)]
    shown = np.concatenate([worst, best])
    random = ranked.random(max(2, RANDOM // shared_with), seed=0, without=shown)
    places = np.concatenate([shown, random])
    found = neighbors(view, ranked.query[places], NEIGHBORS)
    lines = [
        Chosen(
            int(ranked.query[place]),
            near.tolist(),
            cosine.tolist(),
            int(ranked.best[place]),
            int(ranked.rank[place]),
        )
        for place, (near, cosine) in zip(places, found, strict=True)
    ]
    ends = np.cumsum([len(worst), len(best)])
    groups = [
        (
            "Worst queries",
            "Those whose first relevant item comes latest: look here for wrong labels, and for "
            "what the encoder cannot see.",
            lines[: ends[0]],
        ),
        (
            "Best queries",
            "Those whose relevant item leads by most, one of a class: what the encoder has "
            "learned well.",
            lines[ends[0] : ends[1]],
        ),
        ("Queries drawn at random", "What a user meets on an ordinary day.", lines[ends[1] :]),
    ]
    return [group for group in groups if group[2]]


def shown(view: RunView, chosen: Chosen, picture: Pictured) -> Shown:
    """A chosen query with names and pictures."""

    def of(row: int, **said: Any) -> Item:
        return item(view, row, picture, **said)

    near = [
        of(row, right=bool(view.relevant[row] == view.relevant[chosen.query]), rank=k, cosine=near)
        for k, (row, near) in enumerate(zip(chosen.near, chosen.cosine, strict=True), start=1)
    ]
    outside = chosen.best not in chosen.near
    best = of(chosen.best, right=True, rank=chosen.rank) if outside else None
    return Shown(of(chosen.query), near, chosen.rank, best)


def item(view: RunView, row: int, picture: Pictured, **said: Any) -> Item:
    """A test row with its class, id and picture."""
    label = int(view.labels[row])
    return Item(view.names[label], view.ids[row], label, picture(row), **said)


def class_line(view: RunView, score: ClassScore) -> dict[str, Any]:
    """The cells of a class in the table of the worst."""
    share = score.hits / score.queries
    return {
        "label": score.label,
        "name": view.names[score.label],
        "queries": score.queries,
        "hits": score.hits,
        "share": round(share, 6),
        "recall": f"{100 * share:.1f}{scores.SPACE}%",
        "mistaken": "" if score.mistaken is None else view.names[score.mistaken],
    }


def confusion_line(view: RunView, pair: Confusion, picture: Pictured) -> dict[str, Any]:
    """The cells of a pair of classes, its examples as (query, found) items."""
    share = pair.times / pair.queries
    return {
        "wanted": pair.wanted,
        "found": pair.found,
        "wanted_name": view.names[pair.wanted],
        "found_name": view.names[pair.found],
        "times": pair.times,
        "queries": pair.queries,
        "share": round(share, 6),
        "percent": f"{100 * share:.1f}{scores.SPACE}%",
        "examples": [
            (item(view, query, picture), item(view, found, picture, right=False))
            for query, found in pair.examples
        ],
    }
