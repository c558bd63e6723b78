"""Store: pictures of their own sizes in one file, read row by row. Who makes the pictures, and
where the file stands, is decided elsewhere."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from nearkin.cache import UnwritableError

# Heights and widths, then these four numbers, stand after the pixels: nothing need be known before
# the last picture is written.
_MAGIC, _FORMAT = int.from_bytes(b"nearkin", "little"), 1
_SIZE, _END = np.dtype("<i4"), np.dtype("<i8")
_SAMPLE = 256  # pictures after which the size of the whole file is foretold


class Store:
    """N pictures (C, H, W) uint8 in a file that `write` wrote; only those asked for are read.

    Raises OSError where there is no such file, and ValueError where it is damaged.
    """

    def __init__(self, path: str | os.PathLike[str]):
        whole = np.memmap(path, np.uint8, mode="r").view(np.ndarray)
        last = whole[-4 * _END.itemsize :]
        magic, kind, self.channels, count = (
            last.view(_END).tolist() if len(last) == 4 * _END.itemsize else (0, 0, 0, 0)
        )
        footer = 2 * count * _SIZE.itemsize + len(last)
        if (magic, kind) != (_MAGIC, _FORMAT) or not 0 <= footer <= len(whole):
            raise ValueError(f"{path} is no whole store of pictures; remove it")
        sizes = whole[len(whole) - footer : -len(last)].view(_SIZE).reshape(-1, 2).astype(np.int64)
        ends = np.cumsum(sizes.prod(1) * self.channels)
        if int(ends[-1]) + footer != len(whole):
            raise ValueError(f"{path} is no whole store of pictures; remove it")
        self._bytes, self._sizes, self._ends = whole, sizes.tolist(), ends.tolist()

    def __len__(self) -> int:
        return len(self._sizes)

    def __getitem__(self, row: int) -> Tensor:
        """(C, H, W) uint8, channels last in memory."""
        (high, wide), end = self._sizes[row], self._ends[row]
        # A copy: torch takes no memory that must not be written to.
        pixels = np.array(self._bytes[end - high * wide * self.channels : end])
        return torch.from_numpy(pixels).view(high, wide, self.channels).permute(2, 0, 1)


def write(file: IO[bytes], pictures: Iterable[Tensor], count: int, channels: int) -> None:
    """Write `count` pictures (channels, H, W) uint8 as a Store.

    Raises UnwritableError (an OSError) as soon as the first of them tell that the disk has no room
    for all.
    """
    # Written, not mapped: a full disk is then an error, and not the end of the process.
    sizes = []
    made = iter(pictures)
    for picture in itertools.islice(made, _SAMPLE):
        sizes.append(_append(file, picture))
    _check_room(file, count)
    sizes.extend(_append(file, picture) for picture in made)
    file.write(np.array(sizes, _SIZE).tobytes())
    file.write(np.array([_MAGIC, _FORMAT, channels, count], _END).tobytes())


def _append(file: IO[bytes], picture: Tensor) -> tuple[int, int]:
    file.write(picture.permute(1, 2, 0).contiguous().numpy().tobytes())
    return picture.shape[1], picture.shape[2]


def _check_room(file: IO[bytes], count: int) -> None:
    needed = file.tell() / min(_SAMPLE, count) * count
    free = shutil.disk_usage(Path(file.name).parent).free + file.tell()
    if needed > 0.95 * free:  # pictures differ in size, and a disk that is full helps nobody
        said = f"{count} pictures need {_size(needed)}, and {_size(free)} are free"
        raise UnwritableError(errno.ENOSPC, said)


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
