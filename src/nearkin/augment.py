"""Augmentations of picture tensors in training, keyed by row: the same key gives the same picture
anywhere."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from nearkin.runtime import uniform

Augmentation = Callable[[Tensor, Tensor], Tensor]


def affine(
    pictures: Tensor,
    keys: Tensor,
    *,
    rotation: float = 10.0,
    scale: float = 0.15,
    shear: float = 0.15,
    shift: float = 0.14,
) -> Tensor:
    """Light random affine maps: rotation in degrees, scale and shear as shares, shift in half
    widths.

    (N, C, H, W) pixels 0..255 and keys (N,) -> float32 of the same shape; borders repeat their
    edge.
    """
    around = uniform(keys, 5, stream=101).mul(2).sub(1).unbind(1)  # five draws in [-1, 1)
    angle, size, slant = (
        around[0] * math.radians(rotation),
        1 + scale * around[1],
        shear * around[2],
    )
    across, down = shift * around[3], shift * around[4]
    cos, sin = size * angle.cos(), size * angle.sin()
    maps = torch.stack([cos, slant - sin, across, sin, cos, down], 1).view(-1, 2, 3)
    return _sampled(pictures, maps)


def photo(
    pictures: Tensor,
    keys: Tensor,
    *,
    smallest: float = 0.36,
    stretch: float = 1.33,
    flip: bool = True,
    light: float = 0.25,
) -> Tensor:
    """Random resized crop, mirror and light of photos, as is usual for retrieval.

    smallest   least share of the area that a crop keeps
    stretch    most that width and height are scaled against each other
    flip       mirror half of the pictures left to right
    light      brightness and contrast vary by this share

    (N, C, H, W) pixels 0..255 and keys (N,) -> float32 of the same shape.
    """
    draw = uniform(keys, 7, stream=102).unbind(1)
    area = smallest + (1 - smallest) * draw[0]
    aspect = torch.exp(math.log(stretch) * (2 * draw[1] - 1)).sqrt()
    wide, high = (area.sqrt() * aspect).clamp_max(1), (area.sqrt() / aspect).clamp_max(1)
    across, down = (1 - wide) * (2 * draw[2] - 1), (1 - high) * (2 * draw[3] - 1)
    mirror = torch.where(draw[4] < 0.5, -1.0, 1.0) if flip else torch.ones_like(wide)
    nothing = torch.zeros_like(wide)
    maps = torch.stack([wide * mirror, nothing, across, nothing, high, down], 1).view(-1, 2, 3)
    x = _sampled(pictures, maps)
    gain, offset = 1 + light * (2 * draw[5] - 1), 255 * light / 2 * (2 * draw[6] - 1)
    return (x * gain[:, None, None, None] + offset[:, None, None, None]).clamp(0, 255)


def _sampled(pictures: Tensor, maps: Tensor) -> Tensor:
    x = pictures.float()
    grid = F.affine_grid(maps, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)
