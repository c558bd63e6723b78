"""write_report: the pieces put together as one HTML file. How it looks stands in templates/."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nearkin.report import comparison, confusions, course, embedding, found, scores, words
from nearkin.report.facts import facts, flat
from nearkin.report.gallery import Ranked, rank_queries, worst_classes
from nearkin.report.paper import read_paper
from nearkin.report.projection import Map, class_colors, embedding_map
from nearkin.report.rankmi import rankmi_plots
from nearkin.report.scores import Row
from nearkin.report.thumbnails import sheet, thumbnails
from nearkin.report.view import RunView

if TYPE_CHECKING:
    from markupsafe import Markup

MOST_BYTES = 10_000_000
MOST_LEFT_OUT = 50
_MOST_LETTERS = 200_000  # of a recipe's text


@dataclass(frozen=True)
class Detail:
    """How much of a run is shown: thumbnails and squares of the map in pixels a side (0: none)."""

    thumbnail: int
    square: int
    runs: bool = True
    note: str = ""


_DETAILS = (
    Detail(112, 64),
    Detail(72, 28, note="Pictures are smaller than usual, to keep this page under 10 MB."),
    Detail(0, 0, note="Pictures are left out, to keep this page under 10 MB."),
    Detail(0, 0, False, "The parts on single runs are left out, to keep this page under 10 MB."),
)


def write_report(views: list[RunView], path: str | os.PathLike[str]) -> Path:
    """One HTML page about one or several runs, written to a temporary name and renamed to `path`.

    The page stays under 10 MB: where it would not, it is written with smaller pictures or without
    them, and says so. Raises ValueError without a run, FileNotFoundError where the folder of `path`
    does not exist, IsADirectoryError where it is a folder itself.
    """
    path = Path(path)
    if not views:
        raise ValueError("a report needs at least one run; none was given")
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; give a file, such as {path / 'report.html'}")
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"there is no folder {path.parent} to write {path.name} to; make it first"
        )
    text = _within_bounds(views)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.write_text(text, encoding="utf-8")
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


@dataclass(frozen=True, eq=False)
class Seen:
    """What was computed of a run's embeddings, once for every level of detail."""

    view: RunView
    name: str
    ranked: Ranked
    galleries: list[tuple[str, str, list[found.Chosen]]]
    pairs: list[confusions.Confusion]
    map: Map | None


def _within_bounds(views: Sequence[RunView]) -> str:
    seen = [_see(view, name, len(views)) for view, name in zip(views, _names(views), strict=True)]
    between = _between(seen) if len(seen) > 1 else None
    text = ""
    for detail in _DETAILS:
        text = _render(seen, between, detail)
        if len(text.encode()) < MOST_BYTES:
            break
    return text


def _names(views: Sequence[RunView]) -> list[str]:
    """The runs' names; with the folder above where two are called alike, then with a number."""
    names = [view.name for view in views]
    told = [
        f"{view.folder.resolve().parent.name}/{view.name}"
        if names.count(view.name) > 1
        else view.name
        for view in views
    ]
    return [
        f"{name} ({told[: place + 1].count(name)})" if name in told[:place] else name
        for place, name in enumerate(told)
    ]


def _see(view: RunView, name: str, shared_with: int) -> Seen:
    ranked = rank_queries(view)
    return Seen(
        view=view,
        name=name,
        ranked=ranked,
        galleries=found.choose(view, ranked, shared_with),
        pairs=confusions.confusions(view, ranked),
        map=embedding_map(view),
    )


def _between(seen: Sequence[Seen]) -> dict[str, Any]:
    """What the page says of several runs together."""
    views, names = [one.view for one in seen], [one.name for one in seen]
    logs = {one.name: one.view.log for one in seen}
    return {
        "paired": comparison.paired(views, names),
        "differences": comparison.recipe_differences(views),
        "curves": course.overlaid(logs),
        "headline": words.headline_of_several(views, names),
        "bars": words.bars_of_several(views, names),
        "metric": next(filter(None, map(words.leading_metric, views)), ""),
    }


def _render(seen: Sequence[Seen], between: Mapping[str, Any] | None, detail: Detail) -> str:
    import jinja2
    from plotly.offline import get_plotlyjs

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("nearkin.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["plot_data"] = lambda plot: for_script(str(plot.figure.to_json()))
    environment.filters["as_json"] = lambda tree: for_script(json.dumps(tree))
    environment.globals["definition"] = scores.definition
    runs = [_run(one, number, detail) for number, one in enumerate(seen, start=1)]
    rows = _each_paper_once([row for run in runs for row in run["rows"]])
    names = [_row_name(row, len(seen)) for row in rows]
    curved = [
        (row, name)
        for row, name in zip(rows, names, strict=True)
        if len(seen) == 1 or row.role in ("trained", "paper")
    ]
    recall = comparison.recall_plots([row for row, _ in curved], [name for _, name in curved])
    parts = ("plots", "panel", "distances", "map")
    drawn = bool(recall) or any(run[part] for run in runs for part in parts)
    return environment.get_template("report.html.j2").render(
        title=", ".join(one.name for one in seen),
        runs=runs,
        several=len(seen) > 1,
        between=between,
        detail=detail,
        tables=[scores.table(rows, closeness) for closeness in scores.closenesses(rows)],
        noted=_noted(rows),
        recall=recall,
        information=scores.information(rows),
        plotlyjs=get_plotlyjs() if drawn else "",
    )


def _row_name(row: Row, runs: int) -> str:
    return row.name if runs == 1 or row.role == "paper" else f"{row.run} {row.name}"


def _each_paper_once(rows: Sequence[Row]) -> list[Row]:
    """Runs of one recipe tell the same paper; its row stands once."""
    kept: list[Row] = []
    for row in rows:
        told = any(
            row.role == other.role == "paper" and (row.note, row.block) == (other.note, other.block)
            for other in kept
        )
        if not told:
            kept.append(row)
    return kept


def _noted(rows: Sequence[Row]) -> list[tuple[Row, str]]:
    """What to know of the rows of a table, each note once."""
    notes = {(row.name, row.note): row for row in rows if row.note}
    return [(row, note) for (_, note), row in notes.items()]


def _run(one: Seen, number: int, detail: Detail) -> dict[str, Any]:
    """All that the templates say of one run."""
    view, ranked = one.view, one.ranked
    chosen = (view.metrics.get("selected") or {}).get("epoch")
    rows = [Row(one.name, row.name, row.role, row.block, row.note) for row in scores.rows_of(view)]
    warnings = Counter(str(line.get("message", "")) for line in view.events("warning"))
    warnings.update(read_paper(view.recipe)[1])
    picture = thumbnails(view.picture if detail.thumbnail else None, detail.thumbnail or 1)
    told = confusions.matrix(view, ranked, one.pairs)
    return {
        "view": view,
        "name": one.name,
        "number": number,
        "facts": facts(view),
        "headline": words.headline(view),
        "metric": words.leading_metric(view),
        "bars": words.bars(view),
        "selection": words.selection(view),
        "selected_on_test": words.selected_on_test(view),
        "rows": rows,
        "counts": scores.counts(rows[0].block) if rows else "",
        "plots": course.training_plots(view.log, chosen),
        "panel": embedding.panel_plots(view.log),
        "panel_rows": embedding.rows_of_panel(view.log),
        "distances": course.distance_plots(view.log),
        "rankmi": rankmi_plots(view.log, chosen),
        "ranked": ranked,
        "galleries": [
            (title, note, [found.shown(view, line, picture) for line in lines])
            for title, note, lines in one.galleries
        ],
        "worst_classes": [found.class_line(view, score) for score in worst_classes(view, ranked)],
        "confusions": [found.confusion_line(view, pair, picture) for pair in one.pairs],
        "matrix": confusions.matrix_plot(view, told, f"pair-{number}") if told else None,
        "matrix_classes": told.classes if told else [],
        "map": _map(one, detail),
        "environment": list(flat(view.environment)),
        "recipe_text": view.recipe_text[:_MOST_LETTERS],
        "warnings": warnings.most_common(),
        "left_out": view.left_out[:MOST_LEFT_OUT],
        "left_out_count": len(view.left_out),
    }


def _map(one: Seen, detail: Detail) -> dict[str, Any] | None:
    """The map's points as the page's script reads them."""
    if one.map is None:
        return None
    view, rows = one.view, one.map.rows
    labels = view.labels[rows]
    classes = sorted(set(labels.tolist()))
    place = {code: at for at, code in enumerate(classes)}
    pictures = sheet(view.picture, rows.tolist(), detail.square) if detail.square else None
    return {
        "shown": len(rows),
        "of": one.map.of,
        "classes": len(classes),
        "all_classes": len(set(view.labels[view.is_query | view.is_gallery].tolist())),
        "layouts": [(layout.name, layout.note) for layout in one.map.layouts],
        "names": [view.names[code] for code in classes],
        "data": {
            "codes": classes,
            "names": [view.names[code] for code in classes],
            "colors": class_colors(len(classes)),
            "label": [place[code] for code in labels.tolist()],
            "ids": [view.ids[row] for row in rows],
            "layouts": [
                {"x": _short(layout.x), "y": _short(layout.y)} for layout in one.map.layouts
            ],
            "sheet": None if pictures is None else vars(pictures),
        },
    }


def _short(values: Any) -> list[float]:
    return [float(f"{value:.4g}") for value in values]


def for_script(text: str) -> Markup:
    """JSON that may stand inside a script element, whatever names are in it."""
    from markupsafe import Markup

    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return Markup(text)
