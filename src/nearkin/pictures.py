"""Pictures: N pictures kept as bytes at one size, cut to squares when they are taken.

Decoding of one file stands in pixels, random crops in crops.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from nearkin.crops import DRAWS, Crop, center_crop
from nearkin.inputs import Taken
from nearkin.pixels import Size, read_resized
from nearkin.runtime import uniform


class Pictures(Taken):
    """(N, C, S, S) uint8 that are cut out when they are taken (nearkin.inputs.Taken).

    Evaluation takes the middle; training, which gives a key for each row, takes what `crop` cuts.
    """

    dtype = torch.uint8

    def __init__(self, pictures: Sequence[Tensor], side: int, crop: Crop | None, workers: int = 1):
        self.pictures, self.side, self.crop, self.workers = pictures, side, crop, workers
        channels = pictures[0].shape[0] if len(pictures) else 3
        self.shape = (len(pictures), channels, side, side)

    def take(self, rows: Tensor, keys: Tensor | None = None) -> Tensor:
        """(B, C, S, S) uint8 of the rows with these numbers."""
        numbers = rows.tolist()
        if keys is None or self.crop is None:
            return torch.stack([center_crop(self.pictures[i], self.side) for i in numbers])
        draws = uniform(keys, DRAWS, stream=103).tolist()
        return torch.stack(
            [self.crop(self.pictures[i], d, self.side) for i, d in zip(numbers, draws, strict=True)]
        )

    def select(self, rows: Tensor) -> Pictures:
        """The rows with these numbers alone."""
        chosen = [self.pictures[i] for i in rows.tolist()]
        return Pictures(chosen, self.side, self.crop, self.workers)


def read_pictures(
    sources: Sequence[Any],
    size: Size,
    side: int,
    crop: Crop | None = None,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    keep: bool = True,
) -> Pictures:
    """N files or Pillow images as Pictures."""
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        pictures = list(pool.map(lambda source: read_resized(source, size), sources))
    if progress:
        progress(len(pictures), len(sources))
    return Pictures(pictures, side, crop, workers or 1)
