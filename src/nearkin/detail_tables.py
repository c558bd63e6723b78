"""What `nearkin.detail` found, as text: tables in percent."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

WIDEST = 60  # letters of a name
PARTS = 10  # lines of a table by class, where no number was asked for


def lines(found: Mapping[str, Any], width: int = 100) -> list[str]:
    """The tables of the blocks "details" and "against", where there are any."""
    said = []
    details = found.get("details", {})
    if "parts" in details:
        said.append(_parts(details, width))
    if "thieves" in details:
        said.append(_thieves(details["thieves"], width))
    if "wrong" in details:
        said.append(_wrong(details["wrong"], details["closeness"], width))
    against = found.get("against", {})
    said += [_against(against, name, width) for name, v in against.items() if isinstance(v, dict)]
    return said


def _parts(details: Mapping[str, Any], width: int) -> str:
    parts = details["parts"]
    shown = parts if details.get("limited") else parts[:PARTS]
    metrics = [name for name in parts[0] if name not in ("name", "queries")]
    rows = [
        [_short(part["name"]), f"{part['queries']:,}", *(_percent(part[name]) for name in metrics)]
        for part in shown
    ]
    kind = {"class": "class", "group": "group", "super": "super-label"}[details["by"]]
    title = f"by {kind} ({details['closeness']}, %), the lowest {metrics[0]} first"
    more = (
        "" if len(shown) == len(parts) else f"\n{len(parts) - len(shown):,} more: --worst, --json"
    )
    return _text(title, [kind, "queries", *metrics], rows, width) + more


def _thieves(thieves: Sequence[Mapping[str, Any]], width: int) -> str:
    rows = [
        [
            _short(t["label"]),
            _short(t["thief"]),
            f"{t['queries']:,}",
            f"{t['of']:,}",
            _percent(t["queries"] / t["of"]),
        ]
        for t in thieves
    ]
    if not rows:
        return "no query has a nearest neighbor of another class"
    title = "queries whose nearest neighbor is of another class, by both classes"
    return _text(title, ["class", "finds", "queries", "of", "%"], rows, width, texts=2)


def _wrong(wrong: Sequence[Mapping[str, Any]], closeness: str, width: int) -> str:
    if not wrong:
        return "no nearest neighbor is of another class"
    rows = [
        [
            _short(w["query_id"]),
            _short(w["label"]),
            _short(w["neighbor_id"]),
            _short(w["neighbor_label"]),
            f"{w['similarity']:.4f}",
            f"{w['rank']:,}",
        ]
        for w in wrong
    ]
    said = {"cosine": "cosine", "euclidean": "-distance", "inner": "product"}[closeness]
    head = ["query", "class", "finds", "of class", said, "own class at"]
    return _text("wrong nearest neighbors, the most similar first", head, rows, width, texts=4)


def _against(against: Mapping[str, Any], closeness: str, width: int) -> str:
    rows = [
        [
            name,
            _percent(one["value"]),
            _percent(one["other"]),
            _signed(one["difference"]),
            f"{_signed(one['low'])} to {_signed(one['high'])}",
            f"{one['p']:.3g}",
        ]
        for name, one in against[closeness].items()
    ]
    title = (
        f"against {against['source']} ({closeness}, %): paired, 95 % over {against['over']}, p by "
        "random signs"
    )
    return _text(title, ["", "this", "other", "difference", "95 %", "p"], rows, width)


def _text(
    title: str, head: Sequence[str], rows: Sequence[Sequence[str]], width: int, texts: int = 1
) -> str:
    """A table with `texts` columns of names at its left."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for place, name in enumerate(head):
        justify = "left" if place < texts else "right"
        table.add_column(Text(name), justify=justify, overflow="fold", no_wrap=place >= texts)
    for row in rows:
        table.add_row(*map(Text, row))
    console = Console(width=width, file=io.StringIO(), record=True)
    console.print(table)
    shown = [line.rstrip() for line in console.export_text().rstrip().splitlines()]
    return "\n".join([title, *shown])


def _short(name: Any) -> str:
    text = ", ".join(map(str, name)) if isinstance(name, list) else str(name)
    # The end of a path says more than its beginning.
    return text if len(text) <= WIDEST else f"…{text[1 - WIDEST :]}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def _signed(value: float | None) -> str:
    return "" if value is None else f"{100 * value:+.2f}"
