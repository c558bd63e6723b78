"""Features: what a module that does not learn makes of every row, once, kept in the cache folder.
Which module and which rows, others decide."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor, nn

from nearkin.cache import cache_folder, fingerprint
from nearkin.cache import keep as keep_file
from nearkin.extraction import extracted
from nearkin.identities import contents, identity_of
from nearkin.inputs import Inputs, take
from nearkin.pixels import stamp
from nearkin.runtime import autocast

CHUNK = 2048  # rows that are in memory at a time while they are told apart
Progress = Callable[[int, int], None]


def kept_features(
    module: nn.Module,
    dim: int,
    items: Inputs | Sequence[Any],
    prepare: Callable[[], Inputs],
    precision: str = "float32",
    progress: Progress | None = None,
) -> Tensor:
    """(N, dim) float32: `module` of the N prepared rows, in evaluation mode, on its own device.

    Written batch by batch into a file of the cache folder, which is mapped: neither the rows nor
    the features need memory. The file is named by the weights, settings and code of the module (see
    identities), by what tells the items apart (paths, sizes and times of files; the numbers of a
    tensor) and by the precision; where it is there already nothing is prepared. For items (pictures
    in memory) and modules without such a name, and without a folder to write to, the result is in
    memory.

    items      what `prepare` prepares, for the name of the file
    progress   told of (done, N) rows

    Raises ValueError where a feature is NaN or infinite, FileNotFoundError for a file that is
    missing.
    """
    shape = (len(items), dim)
    named, made_by = identity(items), identity_of(module)
    if named is None or made_by is None:
        return features(module, dim, prepare(), precision, progress)
    device = str(next((p.device.type for p in module.parameters()), "cpu"))
    what = fingerprint(made_by, named, dim, precision, device)
    place = cache_folder() / f"features-{what}.npy"
    held = _mapped(place, shape)
    if held is not None:
        return held
    inputs = prepare()

    def fill(file: IO[bytes]) -> None:
        """The header of an .npy, then the rows as they come."""
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        with contextlib.closing(_made(module, dim, inputs, precision, progress)) as parts:
            for part in parts:
                file.write(part.numpy().tobytes())

    if keep_file(place, fill) and (held := _mapped(place, shape)) is not None:
        return held
    return features(module, dim, inputs, precision, progress)


def features(
    module: nn.Module,
    dim: int,
    inputs: Inputs,
    precision: str = "float32",
    progress: Progress | None = None,
) -> Tensor:
    """As `kept_features`, of rows that are prepared already; the result is in memory."""
    found = torch.empty(len(inputs), dim)
    done = 0
    for part in _made(module, dim, inputs, precision, progress):
        found[done : done + len(part)] = part
        done += len(part)
    return found


def _made(
    module: nn.Module, dim: int, inputs: Inputs, precision: str, progress: Progress | None
) -> Generator[Tensor]:
    """(B, dim) after (B, dim), in the order of the rows."""
    device = next((p.device for p in module.parameters()), torch.device("cpu"))

    def embed(x: Tensor) -> Tensor:
        """float32 outputs."""
        with autocast(device, precision):
            return module(x).float()

    done = 0
    with contextlib.closing(extracted(module, embed, inputs, device, precision)) as parts:
        for part in parts:
            _check(part, dim, done)
            done += len(part)
            if progress is not None:
                progress(done, len(inputs))
            yield part.cpu()


def _check(z: Tensor, dim: int, start: int) -> None:
    if z.ndim != 2 or z.shape[1] != dim:
        raise ValueError(f"the trunk gave shape {tuple(z.shape)}; expected (N, {dim})")
    broken = (~z.isfinite()).any(1).nonzero()[:, 0]
    if len(broken):
        row = start + int(broken[0])
        raise ValueError(
            f"the trunk's features of row {row} are NaN or infinite; look at its input"
        )


def identity(items: Inputs | Sequence[Any]) -> list[Any] | None:
    """What tells whether items are still the same; None where nothing does."""
    if isinstance(items, Tensor):
        digest = hashlib.sha256()
        for rows in torch.arange(len(items)).split(CHUNK):
            digest.update(contents(take(items, rows)))
        return [str(items.dtype), list(items.shape), digest.hexdigest()]
    if not isinstance(items, Sequence):
        return None
    named = [_identity_of_item(item) for item in items]
    return None if any(name is None for name in named) else named


def _identity_of_item(item: Any) -> list[Any] | None:
    if isinstance(item, (str, os.PathLike)):
        return stamp(item)  # type: ignore[arg-type]
    path = getattr(item, "path", None)
    # A part of a picture says which part in its text.
    return [*stamp(path), str(item)] if isinstance(path, str) else None


def _mapped(place: Path, shape: tuple[int, int]) -> Tensor | None:
    try:
        held = np.load(place, mmap_mode="c", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return torch.from_numpy(held) if held.shape == shape and held.dtype == np.float32 else None
