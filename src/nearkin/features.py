"""Features: what a module that does not learn makes of every row, once, kept in the cache folder.
Which module and which rows, others decide."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor, nn

from nearkin import __version__
from nearkin.cache import cache_folder, fingerprint
from nearkin.cache import keep as keep_file
from nearkin.extraction import extract
from nearkin.inputs import Inputs, take
from nearkin.pixels import stamp
from nearkin.runtime import autocast

CHUNK = 2048  # rows whose features are in memory at a time
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
    the features need memory. The file is named by the weights and settings of the module, by what
    tells the items apart (paths, sizes and times of files; the numbers of a tensor) and by the
    precision; where it is there already nothing is prepared. For items without such a name
    (pictures in memory) and without a folder to write to, the result is in memory.

    items      what `prepare` prepares, for the name of the file
    progress   told of (done, N) rows

    Raises ValueError where a feature is NaN or infinite, FileNotFoundError for a file that is
    missing.
    """
    shape = (len(items), dim)
    named = identity(items)
    if named is None:
        return features(module, dim, prepare(), precision, progress)
    device = str(next((p.device.type for p in module.parameters()), "cpu"))
    what = fingerprint(identity_of(module), named, dim, precision, device)
    place = cache_folder() / f"features-{what}.npy"
    held = _mapped(place, shape)
    if held is not None:
        return held
    inputs = prepare()

    def fill(file: IO[bytes]) -> None:
        """The header of an .npy, then the rows as they come."""
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for part in _made(module, dim, inputs, precision, progress):
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
) -> Iterator[Tensor]:
    """(B, dim) after (B, dim), CHUNK rows at most."""
    device = next((p.device for p in module.parameters()), torch.device("cpu"))

    def embed(x: Tensor) -> Tensor:
        """float32 outputs."""
        with autocast(device, precision):
            return module(x).float()

    for start in range(0, len(inputs), CHUNK):
        rows = torch.arange(start, min(start + CHUNK, len(inputs)))
        # A slice is no copy, as a selection of rows would be.
        view = inputs[start : start + CHUNK] if isinstance(inputs, Tensor) else inputs.select(rows)
        told = None if progress is None else partial(_tell, progress, start, len(inputs))
        z = extract(module, embed, view, device, precision, told)
        _check(z, dim, start)
        yield z


def _tell(progress: Progress, before: int, count: int, done: int, _: int) -> None:
    progress(before + done, count)


def _check(z: Tensor, dim: int, start: int) -> None:
    if z.ndim != 2 or z.shape[1] != dim:
        raise ValueError(f"the trunk gave shape {tuple(z.shape)}; expected (N, {dim})")
    broken = (~z.isfinite()).any(1).nonzero()[:, 0]
    if len(broken):
        row = start + int(broken[0])
        raise ValueError(
            f"the trunk's features of row {row} are NaN or infinite; look at its input"
        )


def identity_of(module: nn.Module) -> str:
    """A digest of the weights of a module and of every plain setting of its parts, and of the
    versions that compute with them."""
    digest = hashlib.sha256(f"{__version__} {torch.__version__}\n{module}".encode())
    for name, part in module.named_modules():
        digest.update(f"{name} {type(part).__qualname__} {_settings(part)}".encode())
    for name, value in module.state_dict().items():
        if isinstance(value, Tensor):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(_bytes(value))
    return digest.hexdigest()


def _settings(part: nn.Module) -> str:
    """What may change an output and is neither weight nor part: strides, sizes, means."""
    skipped = {"training", "call_super_init", "dump_patches"}
    plain = {k: v for k, v in vars(part).items() if k[0] != "_" and k not in skipped}
    return repr(sorted((k, repr(v)) for k, v in plain.items() if _is_plain(v)))


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    if dataclasses.is_dataclass(value):
        return True
    return value is None or isinstance(value, (bool, int, float, str))


def identity(items: Inputs | Sequence[Any]) -> list[Any] | None:
    """What tells whether items are still the same; None where nothing does."""
    if isinstance(items, Tensor):
        digest = hashlib.sha256()
        for rows in torch.arange(len(items)).split(CHUNK):
            digest.update(_bytes(take(items, rows)))
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


def _bytes(value: Tensor) -> bytes:
    flat = value.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes()


def _mapped(place: Path, shape: tuple[int, int]) -> Tensor | None:
    try:
        held = np.load(place, mmap_mode="c", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return torch.from_numpy(held) if held.shape == shape and held.dtype == np.float32 else None
