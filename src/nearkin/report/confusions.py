"""Which class was found in place of which: counts of pairs, and their matrix as a plot."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

import numpy as np

from nearkin.report.figures import PERCENT, Plot, dress
from nearkin.report.gallery import Ranked
from nearkin.report.view import RunView

MOST_PAIRS, MOST_CLASSES, EXAMPLES = 18, 20, 3
_LABEL = 18  # letters of a class name that an axis has room for


@dataclass(frozen=True)
class Confusion:
    """Queries of class `wanted` that found class `found` first: `times` of `queries`.

    examples: up to three (query row, found row), test rows.
    """

    wanted: int
    found: int
    times: int
    queries: int
    examples: list[tuple[int, int]]


@dataclass(frozen=True, eq=False)
class Matrix:
    """Shares of the queries of class i (row) that found class j (column) first.

    classes (K,) codes; shares (K, K) float64, the diagonal being what was found rightly.
    """

    classes: list[int]
    shares: np.ndarray


def confusions(view: RunView, ranked: Ranked, count: int = MOST_PAIRS) -> list[Confusion]:
    """The pairs of classes confused most often; of equals, the larger share of its class first."""
    labels = view.labels[ranked.query]
    queries = np.bincount(labels, minlength=len(view.names))
    missed = np.flatnonzero(ranked.rank > 1)
    found = view.labels[ranked.mistaken[missed]]
    apart = found != labels[missed]  # one instance for another of its class is no confusion
    missed, found = missed[apart], found[apart]
    pairs, inverse, times = np.unique(
        np.stack([labels[missed], found], 1), axis=0, return_inverse=True, return_counts=True
    )
    order = np.lexsort((-times / np.maximum(queries[pairs[:, 0]], 1), -times))[:count]
    said = []
    for pair in order:
        places = missed[np.flatnonzero(inverse.ravel() == pair)[:EXAMPLES]]
        examples = [(int(ranked.query[p]), int(ranked.mistaken[p])) for p in places]
        wanted, instead = (int(code) for code in pairs[pair])
        said.append(Confusion(wanted, instead, int(times[pair]), int(queries[wanted]), examples))
    return said


def matrix(view: RunView, ranked: Ranked, pairs: list[Confusion]) -> Matrix | None:
    """The classes of the pairs, neighbors beside each other; None where no pair came up twice."""
    if not pairs or pairs[0].times < 2:
        return None
    classes = _in_chains(pairs)[:MOST_CLASSES]
    place = {code: at for at, code in enumerate(classes)}
    labels = view.labels[ranked.query]
    first = np.where(ranked.rank > 1, view.labels[ranked.mistaken], labels)
    counts = np.zeros((len(classes), len(classes)))
    for row in np.flatnonzero(np.isin(labels, classes) & np.isin(first, classes)):
        counts[place[int(labels[row])], place[int(first[row])]] += 1
    queries = np.bincount(labels, minlength=len(view.names))[classes]
    return Matrix(classes, counts / np.maximum(queries, 1)[:, None])


def _in_chains(pairs: list[Confusion]) -> list[int]:
    """The classes of the pairs, each beside the one it is most confused with where it can be."""
    kept = {code: None for pair in pairs for code in (pair.wanted, pair.found)}
    kept = list(kept)[:MOST_CLASSES]
    partners: dict[int, list[int]] = {code: [] for code in kept}
    for pair in pairs:
        if pair.wanted in partners and pair.found in partners:
            partners[pair.wanted].append(pair.found)
            partners[pair.found].append(pair.wanted)
    order: list[int] = []
    for start in kept:
        waiting = [start]
        while waiting:
            code = waiting.pop(0)
            if code not in order:
                order.append(code)
                waiting = [*partners[code], *waiting]
    return order


def matrix_plot(view: RunView, shown: Matrix, target: str) -> Plot:
    """The matrix as a heat map; what was found rightly is left out of the colors."""
    from plotly.graph_objects import Figure, Heatmap

    names = [view.names[code] for code in shown.classes]
    shares = (100 * shown.shares).round(2)
    values: list[list[float | None]] = [
        [None if i == j or not share else float(share) for j, share in enumerate(line)]
        for i, line in enumerate(shares)
    ]
    words = [
        [_hover(wanted, found, shares[i, j]) for j, found in enumerate(names)]
        for i, wanted in enumerate(names)
    ]
    figure = Figure(
        Heatmap(
            z=values,
            text=words,
            hovertemplate="%{text}<extra></extra>",
            hoverongaps=False,
            xgap=1,
            ygap=1,
            zmin=0,
            colorscale=[[0, "rgba(61,133,198,0.08)"], [1, "rgb(61,133,198)"]],
            colorbar={"ticksuffix": PERCENT, "thickness": 8, "outlinewidth": 0, "len": 0.6},
        )
    )
    dress(figure)
    short = [escape(name if len(name) <= _LABEL else f"{name[: _LABEL - 1]}…") for name in names]
    axis = {"tickvals": list(range(len(names))), "ticktext": short, "tickfont": {"size": 10}}
    figure.update_layout(hovermode="closest", plot_bgcolor="rgba(128,128,128,0.06)")
    figure.update_layout(margin={"l": 10, "r": 6, "t": 6, "b": 10})
    figure.update_xaxes(
        **axis, showgrid=False, tickangle=-60, title={"text": "found first", "standoff": 8}
    )
    figure.update_yaxes(
        **axis, showgrid=False, autorange="reversed", title={"text": "class of the query"}
    )
    note = (
        "A row is the class of the query, a column the class that its nearest neighbor had: the "
        "darker, the larger the share of its queries. What was found rightly is left blank."
    )
    return Plot("The classes confused most", note, (), figure, shape="square", target=target)


def _hover(wanted: str, found: str, percent: float) -> str:
    return f"{escape(wanted)}<br>found {escape(found)}<br>in {percent:.1f}{PERCENT} of its queries"
