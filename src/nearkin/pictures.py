"""Pictures: N pictures kept at one size, cut to squares when they are taken.

Decoding of one file stands in pixels, random crops in crops, the file they are kept in in store.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from nearkin.ahead import each, threads
from nearkin.cache import cache_folder, fingerprint
from nearkin.cache import keep as keep_file
from nearkin.crops import DRAWS, Crop, center_crop
from nearkin.inputs import Taken
from nearkin.pixels import (
    CHUNK,
    WORTH_KEEPING,
    Size,
    check_size,
    decoding,
    read_resized,
    stamp,
    stands_in_a_file,
)
from nearkin.runtime import uniform
from nearkin.store import Store, write


class Pictures(Taken):
    """(N, C, S, S) uint8 that are cut out when they are taken (nearkin.inputs.Taken).

    Evaluation takes the middle; training, which gives a key for each row, takes what `crop` cuts.
    The batches lie in memory channels last, as convolutions like it.

    picture    number -> (C, H, W) uint8, both sides at least S
    numbers    (N,) int64: those of the pictures that stand in the rows
    crop       how training cuts; None: as evaluation
    workers    threads that cut; how many there are changes no bit
    """

    dtype = torch.uint8

    def __init__(
        self,
        picture: Callable[[int], Tensor],
        numbers: Tensor,
        channels: int,
        side: int,
        crop: Crop | None,
        workers: int = 1,
    ):
        self.picture, self.numbers, self.side = picture, numbers, side
        self.crop, self.workers = crop, workers
        self.shape = (len(numbers), channels, side, side)

    def take(self, rows: Tensor, keys: Tensor | None = None) -> Tensor:
        """(B, C, S, S) uint8 of the rows with these numbers."""
        numbers = self.numbers[rows].tolist()
        side, crop = self.side, self.crop
        batch = torch.empty(len(numbers), side, side, self.shape[1], dtype=torch.uint8)
        if keys is None or crop is None:

            def cut(i: int) -> Tensor:
                """The middle of the picture in place i."""
                return center_crop(self.picture(numbers[i]), side)
        else:
            draws = uniform(keys, DRAWS, stream=103).tolist()

            def cut(i: int) -> Tensor:
                """What the key in place i cuts out of its picture."""
                return crop(self.picture(numbers[i]), draws[i], side)

        def fill(i: int) -> None:
            batch[i] = cut(i).permute(1, 2, 0)

        each(fill, len(numbers), self.workers)
        return batch.permute(0, 3, 1, 2)

    def select(self, rows: Tensor) -> Pictures:
        """The rows with these numbers alone."""
        channels = self.shape[1]
        return Pictures(
            self.picture, self.numbers[rows], channels, self.side, self.crop, self.workers
        )


def read_pictures(
    sources: Sequence[Any],
    size: Size,
    side: int,
    crop: Crop | None = None,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    keep: bool = True,
) -> Pictures:
    """N files or Pillow images as Pictures of `side`.

    Files are decoded by `workers` threads (default: one a core) into a file in the cache folder,
    which is named by their paths, sizes and times and by `size`; a second call decodes nothing, and
    the pictures need no memory. Where that file cannot be written (the warning says why), for a few
    files, and where `keep` is False, a file is decoded whenever it is taken. Pillow images are
    resized at once and stay in memory. `progress(done, total)` is told of decoded pictures.

    Raises FileNotFoundError for a file that is missing, ValueError for what cannot be decoded.
    """
    check_size(size.resize, size.channels)
    count = workers or os.cpu_count() or 1
    if all(map(stands_in_a_file, sources)):
        picture = _of_files(sources, size, count, progress, keep)
    else:
        picture = list(_resized(sources, size, count, progress)).__getitem__
    return Pictures(picture, torch.arange(len(sources)), size.channels, side, crop, count)


def _of_files(
    paths: Sequence[Any],
    size: Size,
    workers: int,
    progress: Callable[[int, int], None] | None,
    keep: bool,
) -> Callable[[int], Tensor]:
    stamps = [stamp(path) for path in paths]
    if keep and len(paths) >= WORTH_KEEPING:
        what = fingerprint(stamps, asdict(size), decoding())
        place = cache_folder() / f"pictures-{what}.bin"
        store = _opened(place, len(paths))
        if store is None and keep_file(
            place,
            lambda file: write(
                file, _resized(paths, size, workers, progress), len(paths), size.channels
            ),
        ):
            store = _opened(place, len(paths))
        if store is not None:
            return store.__getitem__
    return lambda number: read_resized(paths[number], size)


def _opened(place: os.PathLike[str], count: int) -> Store | None:
    try:
        store = Store(place)
    except (OSError, ValueError):
        return None
    return store if len(store) == count else None


def _resized(
    sources: Sequence[Any],
    size: Size,
    workers: int,
    progress: Callable[[int, int], None] | None,
) -> Iterator[Tensor]:
    if progress:
        progress(0, len(sources))
    # In chunks, so that decoded pictures never pile up before a slow disk.
    for start in range(0, len(sources), CHUNK):
        part = sources[start : start + CHUNK]
        yield from threads(workers).map(lambda source: read_resized(source, size), part)
        if progress:
            progress(start + len(part), len(sources))
