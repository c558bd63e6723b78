"""`nearkin embed`: a folder, a list, a table or an .npz through a trained run into .npz or
.parquet."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nearkin import model as models
from nearkin.data.images import fault
from nearkin.measured import arrays
from nearkin.run_folder import write_npz


@dataclass(frozen=True)
class Items:
    """What is embedded: inputs of an encoder, an id for each, and labels where they are known."""

    inputs: Any
    ids: list[str]
    labels: list[str] | None = None


def embed(
    run: Path,
    source: Path,
    out: Path,
    *,
    force: bool = False,
    trust_code: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Write embeddings (N, D) float32, ids (N,) and labels (N,) text where they are known.

    Returns {"file", "rows", "dim", "left_out"}. Raises ValueError or OSError, before anything is
    written, for an unknown form of `out`, a file that exists (without force), and a source that
    cannot be read.
    """
    if out.suffix not in (".npz", ".parquet"):
        raise ValueError(f"--out must end in .npz or .parquet, not {out.name!r}")
    if out.exists() and not force:
        raise ValueError(f"{out} exists; replace it with --force, or give another file")
    if out.suffix == ".parquet":
        _pyarrow()
    model = models.load(run, trust_code=trust_code)
    items = _items(source)
    items, left_out = _readable(items)
    for path, reason in left_out:
        say(f"left out {path}: {reason}")
    if not items.ids:
        raise ValueError(f"nothing in {source} can be read, so there is nothing to embed")
    z = model.embed(items.inputs)
    write = _write_npz if out.suffix == ".npz" else _write_parquet
    write(out, z, items)
    return {"file": str(out), "rows": len(z), "dim": z.shape[1], "left_out": len(left_out)}


def _items(source: Path) -> Items:
    if source.suffix == ".npz":
        return _of_arrays(source)
    if source.suffix in (".txt", ".csv"):
        return _of_list(source)
    files = models.image_files(source)
    if source.is_file():
        return Items(files, [source.name])
    ids = [str(Path(file).relative_to(source)) for file in files]
    parts = [Path(name).parts for name in ids]
    labels = [part[0] for part in parts] if all(len(part) > 1 for part in parts) else None
    return Items(files, ids, labels)


def _of_arrays(source: Path) -> Items:
    held = arrays(source)
    name = next((n for n in ("inputs", "images", "embeddings") if n in held), None)
    if name is None:
        raise ValueError(
            f"{source} has no array 'inputs'; it has {', '.join(sorted(held)) or 'none'}"
        )
    x = held[name]
    if name == "images" and x.ndim == 3:
        x = x[:, None]
    if x.ndim == 4 and x.shape[3] in (1, 3) and x.shape[1] not in (1, 3):
        x = np.moveaxis(x, 3, 1)
    ids = held["ids"].astype(str).tolist() if "ids" in held else [str(i) for i in range(len(x))]
    labels = held["labels"].astype(str).tolist() if "labels" in held else None
    return Items(torch.from_numpy(np.ascontiguousarray(x)), ids, labels)


def _of_list(source: Path) -> Items:
    """A text file with a path a line, or a table with a column `path` and perhaps `label`."""
    labels = None
    with open(source, newline="", encoding="utf-8") as file:
        if source.suffix == ".txt":
            ids = [line.strip() for line in file if line.strip()]
        else:
            rows = list(csv.DictReader(file))
            if not rows or "path" not in rows[0]:
                raise ValueError(f"{source} needs a header with a column 'path', and rows below it")
            ids = [row["path"] for row in rows]
            labels = [row["label"] for row in rows] if "label" in rows[0] else None
    if not ids:
        raise ValueError(f"{source} lists no paths")
    return Items([str(source.parent / name) for name in ids], ids, labels)


def _readable(items: Items) -> tuple[Items, list[tuple[str, str]]]:
    if isinstance(items.inputs, torch.Tensor):
        return items, []
    faults = [fault(path) for path in items.inputs]
    keep = [i for i, reason in enumerate(faults) if reason is None]
    left_out = [(items.ids[i], reason) for i, reason in enumerate(faults) if reason is not None]
    labels = None if items.labels is None else [items.labels[i] for i in keep]
    return Items([items.inputs[i] for i in keep], [items.ids[i] for i in keep], labels), left_out


def _write_npz(out: Path, z: np.ndarray, items: Items) -> None:
    named = {} if items.labels is None else {"labels": np.array(items.labels)}
    write_npz(out, embeddings=z, ids=np.array(items.ids), **named)


def _write_parquet(out: Path, z: np.ndarray, items: Items) -> None:
    pyarrow, parquet = _pyarrow()
    rows = pyarrow.FixedSizeListArray.from_arrays(z.ravel(), z.shape[1])
    columns = {"id": items.ids, "embedding": rows}
    if items.labels is not None:
        columns["label"] = items.labels
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        parquet.write_table(pyarrow.table(columns), temporary)
        os.replace(temporary, out)
    finally:
        temporary.unlink(missing_ok=True)


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ImportError(
            "writing .parquet needs pyarrow: pip install 'nearkin[tables]', or give --out FILE.npz"
        ) from None
    return pyarrow, pyarrow.parquet
