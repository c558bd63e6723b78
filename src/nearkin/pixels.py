"""Image files to uint8 pixels, one at a time or a whole list kept on disk.
Normalization and augmentation are the encoder's.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nearkin.boxes import Boxed
from nearkin.cache import cache_folder, fingerprint, versions
from nearkin.cache import keep as keep_file

WORTH_KEEPING = 64  # fewer pictures are decoded faster than a file is worth
CHUNK = 256  # pictures that may wait for the disk
_DECODING = 1  # goes up whenever the same file gives other pixels
_ORIENTATION = 0x0112  # the tag of EXIF; 1 is upright

Interpolation = Literal["bilinear", "bicubic"]


@dataclass(frozen=True)
class Size:
    """The size at which pictures are kept, and how they come to it.

    resize        pixels of the shorter side; of both sides where the aspect is not kept
    keep_aspect   whether width : height stays as it is
    channels      3 (RGB) or 1 (gray)
    """

    resize: int
    keep_aspect: bool = True
    channels: int = 3
    interpolation: Interpolation = "bilinear"


def read_image(source: Any, image_size: int, channels: int = 3) -> Tensor:
    """(channels, image_size, image_size) uint8 of a path or a Pillow image.

    The whole picture is resized to the square (bicubic, antialiased): nothing is cut off, the
    aspect is not kept. The camera's orientation is applied; transparency lies on white; 16 bits
    become 8; of several frames the first counts. `channels` is 3 (RGB) or 1 (gray). Raises
    ValueError where the source cannot be decoded.
    """
    from PIL import Image

    check_size(image_size, channels)
    # JPEG decodes at 1/2, 1/4 or 1/8 for less; twice the side keeps the resize clean.
    least = 2 * image_size
    target, resample = (image_size, image_size), Image.Resampling.BICUBIC

    def fit(picture: Any) -> Tensor:
        """Resized by Pillow, channels first."""
        return channels_first(picture.resize(target, resample)).contiguous()

    return _opened(source, channels, least, fit)


def read_resized(source: Any, size: Size) -> Tensor:
    """(channels, H, W) uint8 of a path or a Pillow image, at the size asked for.

    As `read_image`, but the shorter side is `size.resize` long where the aspect is kept, torch
    resizes (four times as fast as Pillow, and within one level of it), and the channels are last in
    memory. Raises ValueError where the source cannot be decoded.
    """

    def fit(picture: Any) -> Tensor:
        """Resized by torch, channels last in memory."""
        wide, high = picture.size
        height = width = size.resize
        if size.keep_aspect:
            # The longer side is rounded down, as torchvision's Resize does it.
            short = min(wide, high)
            height, width = size.resize * high // short, size.resize * wide // short
        return resized(channels_first(picture), height, width, size.interpolation)

    check_size(size.resize, size.channels)
    # Twice the size, as above; a picture one pixel smaller is decoded whole.
    return _opened(source, size.channels, 2 * size.resize, fit)


def resized(pixels: Tensor, height: int, width: int, mode: Interpolation = "bilinear") -> Tensor:
    """(C, H, W) uint8 -> (C, height, width) uint8, antialiased, within one level of Pillow."""
    if pixels.shape[1:] == (height, width):
        return pixels
    # torch has a fast way for channels last, which it knows by the strides of a batch.
    batch = pixels.permute(1, 2, 0).contiguous()[None].permute(0, 3, 1, 2)
    return F.interpolate(batch, (height, width), mode=mode, antialias=True)[0]


def channels_first(picture: Any) -> Tensor:
    """(C, H, W) uint8 of a Pillow image in RGB or gray; the channels are last in memory."""
    pixels = torch.from_numpy(np.array(picture))
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)


def _opened(source: Any, channels: int, least: int, fit: Callable[[Any], Tensor]) -> Tensor:
    """The pixels of a source; a JPEG is decoded at the smallest scale with sides of `least`."""
    from PIL import Image

    if isinstance(source, Image.Image):
        return _pixels(source, channels, fit)
    if not stands_in_a_file(source):
        raise ValueError(f"an image is a path or a Pillow image, not {type(source).__name__}")
    try:
        with source.open() if isinstance(source, Boxed) else Image.open(source) as picture:
            picture.draft("RGB" if channels == 3 else "L", (least, least))
            return _pixels(picture, channels, fit)
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no image {source}") from None
    except Exception as error:  # Decoders answer broken bytes with whatever went wrong inside.
        raise ValueError(
            f"the image {source} cannot be read ({' '.join(str(error).split())}); repair or "
            "remove it"
        ) from error


def read_images(
    paths: Sequence[Any],
    image_size: int,
    channels: int = 3,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    keep: bool = True,
) -> Tensor:
    """(N, channels, image_size, image_size) uint8 of N files, each as `read_image` gives it.

    Decoded by `workers` threads (default: one a core) into a file in the cache folder, which is
    named by the paths, sizes and times of the files; a second call maps it and decodes nothing, and
    the pictures need no memory. Without a cache folder to write to, for a few pictures and for
    Pillow images, and where `keep` is False, the result is in memory. The tensor may be written to:
    the file never changes. `progress(done, total)` is told of decoded pictures.
    """
    check_size(image_size, channels)
    shape = (len(paths), channels, image_size, image_size)

    def pictures() -> Iterator[np.ndarray]:
        return _decoded(paths, image_size, channels, workers, progress)

    files = all(map(stands_in_a_file, paths))
    if keep and files and len(paths) >= WORTH_KEEPING:
        stamps = [stamp(path) for path in paths]
        what = fingerprint(stamps, image_size, channels, decoding())
        store = cache_folder() / f"pixels-{what}.npy"
        pixels = _mapped(store, shape)
        if pixels is None and keep_file(store, lambda file: _write(file, shape, pictures())):
            pixels = _mapped(store, shape)
        if pixels is not None:
            return torch.from_numpy(pixels)
    pixels = np.empty(shape, np.uint8)
    for i, picture in enumerate(pictures()):
        pixels[i] = picture
    return torch.from_numpy(pixels)


def check_size(image_size: int, channels: int) -> None:
    """Raise ValueError for a size or a number of channels that pictures cannot have."""
    if image_size < 1:
        raise ValueError(f"image_size must be at least 1, but {image_size} was given")
    if channels not in (1, 3):
        raise ValueError(f"channels must be 1 (gray) or 3 (RGB), but {channels} was given")


def _pixels(picture: Any, channels: int, fit: Callable[[Any], Tensor]) -> Tensor:
    mode = "RGB" if channels == 3 else "L"
    flat = _opaque(_eight_bits(_upright(picture)))
    return fit(flat if flat.mode == mode else flat.convert(mode))


def _upright(picture: Any) -> Any:
    from PIL import ImageOps

    # Pillow copies where there is nothing to turn, and memory is what decoding waits for.
    turned = picture.getexif().get(_ORIENTATION, 1) != 1
    return ImageOps.exif_transpose(picture) if turned else picture


def _eight_bits(picture: Any) -> Any:
    """Gray levels of 16 bits or floats as 8 bits; Pillow's own conversion would clip at 255."""
    from PIL import Image

    if picture.mode[0] not in "IF":
        return picture
    levels = np.asarray(picture, np.float64)
    if picture.mode == "F":
        # Floating pictures are made in 0..1 or in 0..255.
        levels = levels * 255 if np.nanmax(levels, initial=0) <= 1 else levels
        levels = np.nan_to_num(levels)
    else:
        levels = levels / 257
    return Image.fromarray(np.clip(np.rint(levels), 0, 255).astype(np.uint8))


def _opaque(picture: Any) -> Any:
    from PIL import Image

    if not picture.has_transparency_data:
        return picture
    layer = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)


def _decoded(
    paths: Sequence[Any],
    image_size: int,
    channels: int,
    workers: int | None,
    progress: Callable[[int, int], None] | None,
) -> Iterator[np.ndarray]:
    def decode(path: Any) -> np.ndarray:
        return read_image(path, image_size, channels).numpy()

    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        # In chunks, so that decoded pictures never pile up before a slow disk.
        for start in range(0, len(paths), CHUNK):
            yield from pool.map(decode, paths[start : start + CHUNK])
            if progress:
                progress(min(start + CHUNK, len(paths)), len(paths))


def _write(file: IO[bytes], shape: tuple[int, ...], pictures: Iterator[np.ndarray]) -> None:
    # Written, not mapped: a full disk is then an error, and not the end of the process.
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    for picture in pictures:
        file.write(picture.tobytes())


def _mapped(store: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    try:
        pixels = np.load(store, mmap_mode="c", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return pixels if pixels.shape == shape and pixels.dtype == np.uint8 else None


def stands_in_a_file(source: Any) -> bool:
    """Whether a source is a path, or a box in the picture of a path."""
    return isinstance(source, (str, os.PathLike, Boxed))


def decoding() -> list[Any]:
    """What tells that the pixels of an unchanged file are still the same: the number of this way to
    decode, and the versions of Pillow and torch."""
    return [_DECODING, *versions("pillow"), torch.__version__]


def stamp(source: str | os.PathLike[str] | Boxed) -> list[Any]:
    """Path, size and time of a file, and the box in it: what tells that its pixels are still the
    same. Raises FileNotFoundError."""
    if isinstance(source, Boxed):
        return [*stamp(source.path), *source.box]
    path = os.fspath(source)
    try:
        status = os.stat(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no image {path}") from None
    return [os.path.abspath(path), status.st_size, status.st_mtime_ns]
