"""Boxed: one box in the picture of a file, as an input of an image encoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Boxed:
    """The part of the picture in `path` inside `box` (x0, y0, x1, y1).

    Pixels of the picture turned upright, x to the right, y down; x1 and y1 are the first column and
    row beyond it. What reaches out of the picture is cut off.
    """

    path: str
    box: tuple[int, int, int, int]

    def open(self) -> Any:
        """The part as a Pillow image, upright.

        Raises ValueError where the box lies outside the picture; else as Pillow's open does.
        """
        from PIL import Image, ImageOps

        with Image.open(self.path) as picture:
            upright = ImageOps.exif_transpose(picture)
            return upright.crop(self.within(upright.size))

    def within(self, size: tuple[int, int]) -> tuple[int, int, int, int]:
        """The box cut to a picture of this (width, height); ValueError where nothing is left."""
        x0, y0, x1, y1 = self.box
        wide, high = size
        cut = max(x0, 0), max(y0, 0), min(x1, wide), min(y1, high)
        if cut[0] >= cut[2] or cut[1] >= cut[3]:
            raise ValueError(
                f"the box {self.box} lies outside the picture {self.path} of {wide} x {high} pixels"
            )
        return cut

    def __str__(self) -> str:
        return f"{self.path}[{','.join(map(str, self.box))}]"


def upright_size(path: str) -> tuple[int, int]:
    """(width, height) of the picture in a file once the camera's orientation is applied."""
    from PIL import Image

    with Image.open(path) as picture:
        turned = picture.getexif().get(0x0112, 1) >= 5
        return (picture.height, picture.width) if turned else picture.size
