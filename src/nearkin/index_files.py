"""`nearkin index` and `nearkin search`: items through a trained run into an index, and its hits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from nearkin import model as models
from nearkin.embed_files import Items, items_of, readable
from nearkin.search import Index
from nearkin.search.index import CARD

KINDS = ("exact",)
CHUNK = 4096  # items that are embedded and added at a time

Say = Callable[[str], None]
Progress = Callable[[int, int], None]


def build(
    run: Path,
    source: Path,
    out: Path,
    *,
    kind: str = "exact",
    closeness: str = "cosine",
    force: bool = False,
    trust_code: bool = False,
    say: Say = lambda text: None,
    progress: Progress = lambda done, total: None,
) -> dict[str, Any]:
    """Embed what is in `source`, as `nearkin embed` reads it, and write an index of it.

    Returns {"index", "rows", "dim", "kind", "left_out"}. Raises ValueError or OSError, before
    anything is written, for an unknown kind or closeness, a place that is taken (without force),
    and a source that cannot be read.
    """
    if kind not in KINDS:
        raise ValueError(f"--kind is {' or '.join(KINDS)}, not {kind!r}")
    index = Index(closeness, about={"run": str(run.absolute())})
    if out.exists() and not (out / CARD).is_file():
        raise ValueError(f"{out} exists and is no index; give another folder with --out")
    if out.exists() and not force:
        raise ValueError(f"{out} exists; replace it with --force, or give another folder")
    model = models.load(run, trust_code=trust_code)
    items, left_out = _read(source, say)
    for start in range(0, len(items.ids), CHUNK):
        part = slice(start, start + CHUNK)
        z = model.embed(items.inputs[part])
        index.add(z, items.ids[part], None if items.labels is None else items.labels[part])
        progress(len(index), len(items.ids))
    index.save(out, force=force)
    return {
        "index": str(out),
        "rows": len(index),
        "dim": index.dim,
        "kind": kind,
        "left_out": left_out,
    }


def find(
    index: Path,
    queries: Sequence[Path],
    k: int,
    *,
    run: Path | None = None,
    trust_code: bool = False,
    say: Say = lambda text: None,
) -> dict[str, Any]:
    """{"queries": [id, ...], "hits": [[{"id", "distance", "label"}, ...], ...]}, a list a query.

    queries  each an image, a folder, a list (.txt), a table (.csv, .parquet) or arrays (.npz)
    run      embeds them; None: the run that made the index

    Raises ValueError or OSError for whatever cannot be read, and for k outside of 1..items.
    """
    held = Index.load(index)
    made_by = run or held.about.get("run")
    if made_by is None:
        raise ValueError(f"{index} does not say which run embedded it; name it with --run")
    if not Path(made_by).is_dir():
        raise FileNotFoundError(
            f"the run {made_by}, which embedded {index}, is not there; name it with --run"
        )
    model = models.load(made_by, trust_code=trust_code)
    asked: list[str] = []
    hits: list[list[dict[str, Any]]] = []
    for query in queries:
        items, _ = _read(query, say)
        asked += items.ids
        hits += held.search(model.embed(items.inputs), k)
    return {"queries": asked, "hits": hits}


def _read(source: Path, say: Say) -> tuple[Items, int]:
    """The items that can be read, and how many cannot; raises where none can."""
    items, left_out = readable(items_of(source))
    if not items.ids:
        first = ": ".join(left_out[0]) if left_out else "it is empty"
        raise ValueError(f"nothing in {source} can be embedded ({first})")
    for path, reason in left_out:
        say(f"left out {path}: {reason}")
    return items, len(left_out)
