"""Crops: how training cuts a square out of one picture. What is random comes in as numbers, so that
the same numbers give the same crop anywhere."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor

DRAWS = 32  # numbers in [0, 1) that a crop may use for one picture

Crop = Callable[[Tensor, Sequence[float], int], Tensor]


def random_resized_crop(
    picture: Tensor,
    draws: Sequence[float],
    side: int,
    *,
    smallest: float = 0.08,
    narrowest: float = 3 / 4,
    widest: float = 4 / 3,
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
    top, left, height, width = _part(high, wide, draws, smallest, narrowest, widest)
    part = picture[:, top : top + height, left : left + width]
    part = resized(part, side, side)
    return part.flip(2) if flip and draws[22] < 0.5 else part


def _part(
    high: int,
    wide: int,
    draws: Sequence[float],
    smallest: float,
    narrowest: float,
    widest: float,
) -> tuple[int, int, int, int]:
    """top, left, height, width; after ten parts that do not fit, the middle of the picture."""
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


def center_crop(picture: Tensor, side: int) -> Tensor:
    """(C, H, W) -> (C, side, side): the middle, as evaluation sees it; both sides must reach
    `side`."""
    high, wide = picture.shape[1:]
    # torchvision's CenterCrop rounds a half down.
    top, left = round((high - side) / 2), round((wide - side) / 2)
    return picture[:, top : top + side, left : left + side]


def resized(picture: Tensor, height: int, width: int, mode: str = "bilinear") -> Tensor:
    """(C, H, W) uint8 -> (C, height, width) uint8, antialiased as Pillow does it."""
    if picture.shape[1:] == (height, width):
        return picture
    return F.interpolate(picture[None], (height, width), mode=mode, antialias=True)[0]
