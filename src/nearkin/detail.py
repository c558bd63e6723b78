"""What `nearkin evaluate` finds beside values: tables by class, wrong neighbors, the comparison
with another run or file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from nearkin.evaluation import Result, compare_results
from nearkin.evaluation.intervals import UNITS
from nearkin.evaluation.result import DifferentQueriesError
from nearkin.measure import Asked
from nearkin.measured import measure

KINDS = ("class", "group", "super")


@dataclass(frozen=True)
class Wish:
    """What a person asked for: see the options of `nearkin evaluate`."""

    by: str | None = None
    worst: int | None = None
    thieves: int | None = None
    wrong: int | None = None
    against: str | None = None

    @classmethod
    def of(cls, **given: Any) -> Wish:
        """Checked; --worst alone means by class. Raises ValueError."""
        wish = cls(**given)
        if wish.by not in (None, *KINDS):
            raise ValueError(f"--by takes class, group or super, not {wish.by!r}")
        for name in ("worst", "thieves", "wrong"):
            count = getattr(wish, name)
            if count is not None and count < 1:
                raise ValueError(f"--{name} takes a number of 1 or more, not {count}")
        if wish.worst is not None and wish.by is None:
            return cls(**{**given, "by": "class"})
        return wish


def known_over(over: str) -> str:
    """Checked. Raises ValueError for anything else than classes and queries."""
    if over not in UNITS:
        raise ValueError(f"--over takes classes or queries, not {over!r}")
    return over


def given_gains(text: str | None) -> tuple[float, ...] | None:
    """The numbers of "2,1". Raises ValueError for anything else."""
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"--gains takes numbers that descend, such as 2,1, not {text!r}") from None


def of(
    wish: Wish,
    asked: Asked,
    source: str,
    data: str | None,
    trust_code: bool,
    told: Mapping[str, Any],
) -> dict[str, Any]:
    """{"details": ..., "against": ...}, as far as they were asked for.

    Details are those of the first closeness measured. Raises ValueError for what the source does
    not hold, and as `measure` does for the other source.
    """
    found: dict[str, Any] = {}
    closeness = next(iter(asked.results))
    result = asked.results[closeness]
    said: dict[str, Any] = {}
    if wish.by is not None:
        said["by"] = wish.by
        said["parts"] = _parts(wish, asked, result)
        said["limited"] = wish.worst is not None
    if wish.thieves is not None:
        named = [theft._asdict() for theft in result.thieves(wish.thieves)]
        said["thieves"] = [{**one, **_named(asked, one, "label", "thief")} for one in named]
    if wish.wrong is not None:
        said["wrong"] = [_wrong(asked, one._asdict()) for one in result.wrong(wish.wrong)]
    if said:
        found["details"] = {"closeness": closeness, **said}
    if wish.against is not None:
        found["against"] = _against(wish.against, asked, source, data, trust_code, told)
    return found


def _parts(wish: Wish, asked: Asked, result: Result) -> list[dict[str, Any]]:
    """A line a class or group, that of the lowest first metric first."""
    names = _ranked(result)
    if not names:
        raise ValueError("a table needs a metric of rankings, such as recall@1; add one")
    if wish.by == "super" and asked.above is None:
        raise ValueError(
            "--by super needs the array super_labels of an .npz, or the column super_label of a "
            "table"
        )

    def table(name: str) -> list[Any]:
        """The parts by one metric."""
        if wish.by == "class":
            return result.by_class(name)
        try:
            return result.by_group(name, _first_level(asked.above) if wish.by == "super" else None)
        except (ValueError, TypeError) as error:
            if wish.by == "super":
                raise ValueError(f"--by super: {error}") from None
            raise ValueError(
                "--by group needs groups: the array groups of an .npz, or the column "
                "group of a table"
            ) from error

    columns = {name: table(name) for name in names}
    rows = [
        {
            "name": _name(asked, part.name) if wish.by == "class" else _plain(part.name),
            "queries": part.queries,
            **{name: _number(columns[name][place].value) for name in names},
        }
        for place, part in enumerate(columns[names[0]])
    ]
    rows.sort(key=lambda row: (_last_if_none(row[names[0]]), -row["queries"]))
    return rows[: wish.worst]


def _first_level(above: Any) -> Any:
    """(N,) super-labels of (N,) or (N, L): the finest, as the levels of gains stand."""
    return above[:, 0] if getattr(above, "ndim", 1) == 2 else above


def _against(
    other: str,
    asked: Asked,
    source: str,
    data: str | None,
    trust_code: bool,
    told: Mapping[str, Any],
) -> dict[str, Any]:
    """{"source", "over", "test", closeness: {metric: {value, other, difference, low, high, p}}}."""
    theirs = Asked(asked.over, asked.gains)
    first = next(iter(asked.results.values()))
    names = _ranked(first)
    if not names:
        raise ValueError("--against pairs queries and needs a metric of rankings, such as recall@1")
    is_file = Path(other).suffix.lower() == ".npz"
    said: dict[str, Any] = {"source": other, "over": asked.over, "test": "sign_flip"}
    for closeness, mine in asked.results.items():
        measure(
            other,
            data=None if is_file else data,
            metrics=names,
            closeness=closeness,
            trust_code=trust_code,
            asked=theirs,
            **told,
        )
        second = theirs.results[closeness]
        try:
            said[closeness] = _compared(asked, theirs, mine, second, names)
        except ValueError as error:
            kind = type(error)
            raise kind(f"{data or source} against {other}: {error}") from None
    return said


def _compared(
    asked: Asked, theirs: Asked, mine: Result, second: Result, names: Sequence[str]
) -> dict[str, Any]:
    ours, others = asked.ids[0], theirs.ids[0]
    named = not any(isinstance(part, range) for part in (ours, others))  # a range: rows alone
    if named and list(map(_text, ours)) != list(map(_text, others)):
        raise DifferentQueriesError(
            "paired results need the same queries in the same order, but their ids differ"
        )
    found = {}
    for name in names:
        one = compare_results(mine, second, name, over=asked.over)
        found[name] = {
            "value": _number(mine[name]),
            "other": _number(second[name]),
            "difference": _number(one.value),
            "low": _number(one.low),
            "high": _number(one.high),
            "p": one.p,
        }
    return found


def _wrong(asked: Asked, one: dict[str, Any]) -> dict[str, Any]:
    query, item = one["query"], one["neighbor"]
    ids = {"query_id": _plain(asked.ids[0][query]), "neighbor_id": _plain(asked.ids[1][item])}
    return {**one, **_named(asked, one, "label", "neighbor_label"), **ids}


def _named(asked: Asked, one: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {key: _name(asked, one[key]) for key in keys}


def _name(asked: Asked, label: Any) -> Any:
    """The name of a class, where labels are codes of names."""
    return _plain(asked.names[label] if asked.names is not None else label)


def _plain(value: Any) -> Any:
    """What JSON has: text of whatever it has not, such as dates and NaN."""
    if isinstance(value, (np.generic, Tensor)):
        value = value.item()
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, (tuple, list)):
        return [_plain(part) for part in value]
    fine = value is None or isinstance(value, (str, int))
    if isinstance(value, float):
        fine = math.isfinite(value)
    return value if fine else str(value)


def _text(value: Any) -> str:
    return str(_plain(value))


def _ranked(result: Result) -> list[str]:
    return [name for name, entry in result.to_dict().items() if "low" in entry]


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def _last_if_none(value: float | None) -> float:
    return math.inf if value is None else value
