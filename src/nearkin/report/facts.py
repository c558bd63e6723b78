"""What was trained, in a few words and figures: the card under the headline."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from nearkin.report.view import RunView


def facts(view: RunView) -> list[tuple[str, str]]:
    """What was trained, from the recipe and the first line of the log: (name, value) pairs."""
    start = (view.events("start") or [{}])[-1]
    recipe = view.recipe
    seconds = view.metrics.get("seconds")
    said = [
        ("data", _call(recipe.get("data"))),
        ("encoder", _call(recipe.get("encoder"))),
        ("objective", _objective(recipe.get("objective"))),
        ("trained on", _amount(start)),
        ("an epoch", str(start.get("coverage", ""))),
        ("training time", _duration(seconds) if isinstance(seconds, int | float) else ""),
    ]
    return [(name, value) for name, value in said if value]


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


_SINGULAR = {"rows": "row", "classes": "class", "epochs": "epoch", "steps": "step"}


def _amount(start: Mapping[str, Any]) -> str:
    said = [
        f"{start[key]:,} {_SINGULAR[key] if start[key] == 1 else key}"
        for key in _SINGULAR
        if isinstance(start.get(key), int)
    ]
    return ", ".join(said)


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """The leaves of a tree as (dotted name, text)."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
            yield f"{prefix}{key}", text
