"""write_report: the pieces put together as one HTML file. How it looks stands in templates/."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nearkin.report import figures, scores, words
from nearkin.report.gallery import ClassScore, Ranked, neighbors, rank_queries, worst_classes
from nearkin.report.thumbnails import Thumbnail, thumbnails
from nearkin.report.view import RunView

WORST, RANDOM, NEIGHBORS = 12, 6, 8
MOST_LEFT_OUT = 50


def write_report(views: list[RunView], path: str | os.PathLike[str]) -> Path:
    """One HTML page about one or several runs, written to a temporary name and renamed to `path`.

    Raises ValueError without a run, FileNotFoundError where the folder of `path` does not exist.
    """
    path = Path(path)
    if not views:
        raise ValueError("a report needs at least one run; none was given")
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"there is no folder {path.parent} to write {path.name} to; make it first"
        )
    text = _render(views)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.write_text(text, encoding="utf-8")
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def _render(views: list[RunView]) -> str:
    import jinja2
    from plotly.offline import get_plotlyjs

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("nearkin.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["plot_data"] = _plot_data
    environment.globals["definition"] = scores.definition
    runs = [_run(view, shared_with=len(views)) for view in views]
    rows = [row for run in runs for row in run["rows"]]
    page = environment.get_template("report.html.j2")
    return page.render(
        title=", ".join(view.name for view in views),
        runs=runs,
        several=len(runs) > 1,
        tables=[scores.table(rows, closeness) for closeness in scores.closenesses(rows)],
        information=scores.information(rows),
        plotlyjs=get_plotlyjs() if any(run["plots"] or run["distances"] for run in runs) else "",
    )


def _run(view: RunView, shared_with: int) -> dict[str, Any]:
    """All that the templates say of one run. With many runs each shows fewer queries."""
    ranked = rank_queries(view)
    chosen = (view.metrics.get("selected") or {}).get("epoch")
    warnings = Counter(str(line.get("message", "")) for line in view.events("warning"))
    rows = scores.rows_of(view)
    return {
        "view": view,
        "facts": _facts(view),
        "headline": words.headline(view),
        "metric": words.leading_metric(view),
        "bars": words.bars(view),
        "selection": words.selection(view),
        "selected_on_test": words.selected_on_test(view),
        "rows": rows,
        "best_on_test": any(row.role == "best" for row in rows),
        "counts": scores.counts(rows[0].block) if rows else "",
        "plots": figures.training_plots(view.log, chosen),
        "distances": figures.distance_plots(view.log),
        "ranked": ranked,
        "galleries": _galleries(view, ranked, shared_with),
        "worst_classes": [_class_line(view, score) for score in worst_classes(view, ranked)],
        "environment": list(_flat(view.environment)),
        "warnings": warnings.most_common(),
        "left_out": view.left_out[:MOST_LEFT_OUT],
        "left_out_count": len(view.left_out),
    }


@dataclass(frozen=True)
class Item:
    """One picture of a gallery with what stands under it; `right` is None for the query itself."""

    name: str
    id: str
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


def _galleries(view: RunView, ranked: Ranked, shared_with: int) -> list[tuple[str, list[Shown]]]:
    worst = ranked.worst(max(3, WORST // shared_with))
    random = ranked.random(max(2, RANDOM // shared_with), seed=0, without=worst)
    picture = thumbnails(view.picture)
    galleries = [
        (title, [_shown(view, ranked, int(place), picture) for place in places])
        for title, places in (("Worst queries", worst), ("Queries drawn at random", random))
    ]
    return [(title, shown) for title, shown in galleries if shown]


def _shown(
    view: RunView, ranked: Ranked, place: int, picture: Callable[[int], Thumbnail | None]
) -> Shown:
    query, rank = int(ranked.query[place]), int(ranked.rank[place])
    found, cosine = neighbors(view, query, NEIGHBORS)

    def item(row: int, **said: Any) -> Item:
        return Item(view.names[view.labels[row]], view.ids[row], picture(row), **said)

    near = [
        item(row, right=bool(view.relevant[row] == view.relevant[query]), rank=k, cosine=near)
        for k, (row, near) in enumerate(zip(found.tolist(), cosine.tolist(), strict=True), start=1)
    ]
    outside = not np.isin(ranked.best[place], found)
    best = item(int(ranked.best[place]), right=True, rank=rank) if outside else None
    return Shown(item(query), near, rank, best)


def _class_line(view: RunView, score: ClassScore) -> dict[str, Any]:
    return {
        "name": view.names[score.label],
        "queries": score.queries,
        "hits": score.hits,
        "recall": f"{100 * score.hits / score.queries:.1f}{scores.SPACE}%",
        "mistaken": "" if score.mistaken is None else view.names[score.mistaken],
    }


def _facts(view: RunView) -> list[tuple[str, str]]:
    """What was trained, from the recipe and the first line of the log: (name, value) pairs."""
    start = (view.events("start") or [{}])[-1]
    recipe = view.recipe
    seconds = view.metrics.get("seconds")
    facts = [
        ("data", _call(recipe.get("data"))),
        ("encoder", _call(recipe.get("encoder"))),
        ("objective", _objective(recipe.get("objective"))),
        ("trained on", _amount(start)),
        ("an epoch", str(start.get("coverage", ""))),
        ("training time", _duration(seconds) if isinstance(seconds, int | float) else ""),
    ]
    return [(name, value) for name, value in facts if value]


def _call(node: Any) -> str:
    """`small_cnn (dim 64)` for {small_cnn: {dim: 64}}; only plain settings are said."""
    if isinstance(node, str):
        return node
    if not isinstance(node, Mapping) or len(node) != 1:
        return ""
    name, settings = next(iter(node.items()))
    if not isinstance(settings, Mapping):
        return str(name)
    said = [
        f"{key} {value}" for key, value in settings.items() if isinstance(value, int | float | str)
    ]
    return f"{name} ({', '.join(said)})" if said else str(name)


def _objective(node: Any) -> str:
    """`cross_entropy against classifier` for a compared objective; a sum by its parts."""
    if not isinstance(node, Mapping) or len(node) != 1:
        return _call(node)
    name, settings = next(iter(node.items()))
    settings = settings if isinstance(settings, Mapping) else {}
    if name == "compared" and {"loss", "compare"} <= set(settings):
        return f"{_call(settings['loss'])} against {_call(settings['compare'])}"
    if name == "sum" and isinstance(settings.get("parts"), Mapping):
        return " + ".join(_objective(part) for part in settings["parts"].values())
    return _call(node)


def _amount(start: Mapping[str, Any]) -> str:
    said = [
        f"{start[key]:,} {key}"
        for key in ("rows", "classes", "epochs", "steps")
        if isinstance(start.get(key), int)
    ]
    return ", ".join(said)


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Any:
    """The leaves of a tree as (dotted name, text)."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
            yield f"{prefix}{key}", text


def _plot_data(plot: figures.Plot) -> Any:
    """The figure as JSON that may stand inside a script element, whatever names are in it."""
    from markupsafe import Markup

    text = str(plot.figure.to_json())
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return Markup(text)
