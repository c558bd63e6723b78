"""Crops: how training cuts a square out of one picture. What is random comes in as numbers, so that
the same numbers give the same crop anywhere."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any

from pydantic import Field
from torch import Tensor

from nearkin.pixels import channels_first, resized

# Numbers in [0, 1) that a crop may use for one picture: 20 for the size of ten parts, two for the
# place, one for the mirror, five for the colors.
DRAWS = 28

Crop = Callable[[Tensor, Sequence[float], int], Tensor]
Share = Annotated[float, Field(gt=0, le=1)]
Ratio = Annotated[float, Field(gt=0)]
Spread = Annotated[float, Field(ge=0)]

_ORDERS = tuple(itertools.permutations(range(4)))


def random_resized_crop(
    picture: Tensor,
    draws: Sequence[float],
    side: int,
    *,
    smallest: Share = 0.08,
    narrowest: Ratio = 3 / 4,
    widest: Ratio = 4 / 3,
    flip: bool = True,
) -> Tensor:
    """A random part of the picture, resized to the square: torchvision's RandomResizedCrop and
    RandomHorizontalFlip (Szegedy et al. 2015).

    smallest            least share of the area that a crop keeps
    narrowest, widest   bounds of width / height of the part before it is resized
    flip                mirror half of the pictures left to right

    (C, H, W) uint8 and DRAWS numbers -> (C, side, side) uint8, bilinear and antialiased.
    """
    high, wide = picture.shape[1:]
    top, left, height, width = part_of(high, wide, draws, smallest, narrowest, widest)
    part = resized(picture[:, top : top + height, left : left + width], side, side)
    return part.flip(2) if flip and draws[22] < 0.5 else part


def jittered_crop(
    picture: Tensor,
    draws: Sequence[float],
    side: int,
    *,
    brightness: Spread = 0.25,
    contrast: Spread = 0.25,
    saturation: Spread = 0.25,
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0,
    smallest: Share = 0.16,
    narrowest: Ratio = 3 / 4,
    widest: Ratio = 4 / 3,
    flip: bool = True,
) -> Tensor:
    """The colors of the whole picture changed, then `random_resized_crop`: torchvision's
    ColorJitter before RandomResizedCrop, as for CUB and Cars (Boudiaf et al. 2020, code).

    brightness, contrast, saturation   each is scaled by 1 - x to 1 + x, at least by 0
    hue                                is turned by -x to x; 0.5 is half a turn

    In random order. The other settings are those of `random_resized_crop`; the defaults are those
    for CUB.

    (C, H, W) uint8 and DRAWS numbers -> (C, side, side) uint8.
    """
    spreads = (brightness, contrast, saturation, hue)
    colored = jittered(picture, draws[23:28], spreads)
    return random_resized_crop(
        colored, draws, side, smallest=smallest, narrowest=narrowest, widest=widest, flip=flip
    )


def jittered(pixels: Tensor, draws: Sequence[float], spreads: Sequence[float]) -> Tensor:
    """(C, H, W) uint8 with brightness, contrast, saturation and hue changed, each within its
    spread, to the bit as torchvision's ColorJitter changes a Pillow image.

    draws   one number for each of them, and one for their order
    """
    from PIL import Image

    if not any(spreads):
        return pixels
    rows = pixels.permute(1, 2, 0).squeeze(2).contiguous().numpy()
    picture = Image.fromarray(rows)
    for i in _ORDERS[int(draws[4] * len(_ORDERS))]:
        spread = spreads[i]
        if spread:
            low, up = (-spread, spread) if i == 3 else (max(0.0, 1 - spread), 1 + spread)
            picture = _changed(picture, i, low + (up - low) * draws[i])
    return channels_first(picture)


def _changed(picture: Any, what: int, factor: float) -> Any:
    from PIL import ImageEnhance

    if what == 3:
        return _turned(picture, factor)
    enhance = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)[what]
    return enhance(picture).enhance(factor)


def _turned(picture: Any, share: float) -> Any:
    """Hue turned by a share of the circle, in Pillow's 256 steps; gray has none."""
    from PIL import Image

    if picture.mode == "L":
        return picture
    hue, saturation, value = picture.convert("HSV").split()
    step = int(share * 255)
    hue = hue.point([(old + step) % 256 for old in range(256)])
    return Image.merge("HSV", (hue, saturation, value)).convert(picture.mode)


def part_of(
    high: int,
    wide: int,
    draws: Sequence[float],
    smallest: float,
    narrowest: float,
    widest: float,
) -> tuple[int, int, int, int]:
    """top, left, height, width of a random part of a picture; after ten sizes that do not fit, of
    its middle. Raises ValueError for bounds of width / height that leave nothing between them."""
    if narrowest > widest:
        raise ValueError(
            f"narrowest {narrowest:g} is more than widest {widest:g}; both bound width / height, "
            "so "
            "exchange them"
        )
    low, up = math.log(narrowest), math.log(widest)
    for i in range(10):
        area = high * wide * (smallest + (1 - smallest) * draws[2 * i])
        aspect = math.exp(low + (up - low) * draws[2 * i + 1])
        width, height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < width <= wide and 0 < height <= high:
            top = int(draws[20] * (high - height + 1))
            return top, int(draws[21] * (wide - width + 1)), height, width
    width = min(wide, round(high * widest)) if wide / high > widest else wide
    height = min(high, round(wide / narrowest)) if wide / high < narrowest else high
    return (high - height) // 2, (wide - width) // 2, height, width


def center_crop(pixels: Tensor, side: int) -> Tensor:
    """(C, H, W) -> (C, side, side): the middle, as evaluation sees it; both sides must reach
    `side`."""
    high, wide = pixels.shape[1:]
    # torchvision's CenterCrop rounds a half to the even number, and so does this.
    top, left = round((high - side) / 2), round((wide - side) / 2)
    return pixels[:, top : top + side, left : left + side]
