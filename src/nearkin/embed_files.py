"""`nearkin embed`: a folder, a list, a table or an .npz through a trained run into .npz or
.parquet."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nearkin import model as models
from nearkin.boxes import Boxed, upright_size
from nearkin.data.images import fault, find_classes
from nearkin.data.listing import SUFFIXES, exact, read_listing
from nearkin.data.npz import read_arrays
from nearkin.run_folder import write_npz

ARRAYS = ("inputs", "images", "embeddings")


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
    precision: str | None = None,
    trust_code: bool = False,
    say: Callable[[str], None] = lambda text: None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Write embeddings (N, D) float32, ids (N,) and labels (N,) text where they are known.

    source     a folder of images, an image, a list of paths (.txt), a table with a column path
               and perhaps label and box (.csv, .parquet), or arrays (.npz); paths in a list or
               table start at its folder
    precision  float32 or bfloat16; default: as the run trained
    progress   told of (done, total) items that are embedded

    Returns {"file", "rows", "dim", "left_out"}. Raises ValueError or OSError, before anything is
    written, for an unknown form of `out`, a file that exists (without force), and a source that
    cannot be read.
    """
    if precision not in (None, *models.PRECISIONS):
        known = " or ".join(models.PRECISIONS)
        raise ValueError(f"--precision is {known}, not {precision!r}")
    _check_place(out, force)
    if out.suffix.lower() == ".parquet":
        _pyarrow()
    model = models.load(run, trust_code=trust_code)
    if precision is not None:
        model.precision = precision
    items, left_out = readable(items_of(source))
    if not items.ids:
        first = ": ".join(left_out[0]) if left_out else "it is empty"
        raise ValueError(f"nothing in {source} can be embedded ({first})")
    for path, reason in left_out:
        say(f"left out {path}: {reason}")
    z = model.embed(items.inputs, progress=progress)
    write = _write_npz if out.suffix.lower() == ".npz" else _write_parquet
    write(out, z, items)
    return {"file": str(out), "rows": len(z), "dim": z.shape[1], "left_out": len(left_out)}


def _check_place(out: Path, force: bool) -> None:
    """Raise where `out` could not be written: long work must not end there."""
    if out.suffix.lower() not in (".npz", ".parquet"):
        raise ValueError(f"--out must end in .npz or .parquet, not {out.name!r}")
    if out.is_dir():
        raise IsADirectoryError(f"{out} is a folder; give a file with --out")
    if out.exists() and not force:
        raise ValueError(f"{out} exists; replace it with --force, or give another file")
    parent = next(folder for folder in out.absolute().parents if folder.exists())
    if not parent.is_dir():
        raise NotADirectoryError(f"{out} cannot be written: {parent} is a file; give another --out")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise PermissionError(f"{out} cannot be written: no permission in {parent}; give --out")


def items_of(source: Path) -> Items:
    """What a folder, an image, a list, a table or an .npz holds; see `embed`."""
    suffix = source.suffix.lower()
    if suffix == ".npz":
        return _of_arrays(source)
    if suffix == ".txt":
        return _of_list(source)
    if suffix in SUFFIXES:
        listing = read_listing(source)
        images, ids = listing.images()
        return Items(images, ids, listing.read("label", exact) if "label" in listing else None)
    files = models.image_files(source)
    if source.is_file():
        return Items(files, [source.name])
    ids = [Path(file).relative_to(source).as_posix() for file in files]
    classes: dict[str, str] = {}
    with contextlib.suppress(ValueError):  # images that lie beside each other have no classes
        classes = {file.id: file.name for file in find_classes(source).files}
    labels = [classes[name] for name in ids] if all(name in classes for name in ids) else None
    return Items(files, ids, labels)


def _of_arrays(source: Path) -> Items:
    held = read_arrays(source)
    name = next((n for n in ARRAYS if n in held), None)
    if name is None:
        raise ValueError(
            f"{source} has no array 'inputs'; it has {', '.join(sorted(held)) or 'none'}"
        )
    x = held[name]
    if x.dtype.kind not in "biuf" or x.ndim < 2:
        raise ValueError(
            f"{name} in {source} must be numbers, one row or picture an item, not {x.dtype} of "
            f"shape {x.shape}"
        )
    if name == "images" and x.ndim == 3:
        x = x[:, None]
    if x.ndim == 4 and x.shape[3] in (1, 3) and x.shape[1] not in (1, 3):
        x = np.moveaxis(x, 3, 1)
    for key in ("ids", "labels"):
        if key in held and held[key].shape != x.shape[:1]:
            raise ValueError(
                f"{key} in {source} are of shape {held[key].shape}; {len(x)} items need one each"
            )
    ids = held["ids"].astype(str).tolist() if "ids" in held else [str(i) for i in range(len(x))]
    labels = held["labels"].astype(str).tolist() if "labels" in held else None
    return Items(torch.from_numpy(np.ascontiguousarray(x)), ids, labels)


def _of_list(source: Path) -> Items:
    """A text file with a path a line."""
    try:
        text = source.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{source} is no text in UTF-8 ({error.reason}); save it as UTF-8"
        ) from None
    ids = [line.strip() for line in text.splitlines() if line.strip()]
    if not ids:
        raise ValueError(f"{source} lists no paths")
    return Items([str(source.parent / name) for name in ids], ids)


def readable(items: Items) -> tuple[Items, list[tuple[str, str]]]:
    """The items that can be read, and (id, reason) of the others."""
    if isinstance(items.inputs, torch.Tensor):
        return items, []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        faults = list(pool.map(_fault, items.inputs))
    keep = [i for i, reason in enumerate(faults) if reason is None]
    left_out = [(items.ids[i], reason) for i, reason in enumerate(faults) if reason is not None]
    labels = None if items.labels is None else [items.labels[i] for i in keep]
    return Items([items.inputs[i] for i in keep], [items.ids[i] for i in keep], labels), left_out


def _fault(item: str | Boxed) -> str | None:
    path = item.path if isinstance(item, Boxed) else item
    if not os.path.exists(path):
        return "there is no such file"
    reason = fault(path)
    if reason is None and isinstance(item, Boxed):
        try:
            item.within(upright_size(path))
        except ValueError as error:
            return str(error)
    return reason


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
