"""Thumbnails as data addresses, that travel inside the page; which are shown stands elsewhere."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image

    from nearkin.report.view import Picture

SIDE = 112
_SMALL = 64


@dataclass(frozen=True)
class Thumbnail:
    """A picture as a `data:` address; `pixelated` where it is small and must be enlarged."""

    address: str
    pixelated: bool


@dataclass(frozen=True)
class Sheet:
    """Many pictures as one `data:` address, in squares of `side` pixels, `columns` in a line."""

    address: str
    side: int
    columns: int
    lines: int
    pixelated: bool


def thumbnail(picture: Image, side: int = SIDE) -> Thumbnail:
    """At most `side` pixels a side; up to 64 pixels as it is (PNG), larger ones as WEBP."""
    from PIL import Image

    picture = _on_white(picture)
    if max(picture.size) <= min(_SMALL, side):
        return Thumbnail(_address(picture, "PNG", optimize=True), pixelated=True)
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    return Thumbnail(_address(picture, "WEBP", quality=75), pixelated=False)


def thumbnails(picture: Picture | None, side: int = SIDE) -> Callable[[int], Thumbnail | None]:
    """Test row -> its thumbnail, each made once; None where there is no picture any more."""

    @cache
    def of_row(row: int) -> Thumbnail | None:
        """Made once a row; None where there is no picture."""
        found = _found(picture, row)
        return None if found is None else thumbnail(found, side)

    return of_row


def sheet(picture: Picture | None, rows: Sequence[int], side: int) -> Sheet | None:
    """The pictures of test rows, in order, on one sheet; a missing one is an empty square.

    None where there is no picture at all. Small pictures make small squares.
    """
    from PIL import Image

    small: list[Any] = []
    for row in rows:
        found = _found(picture, row)
        if found is not None:
            found = _on_white(found)
            found.thumbnail((side, side), Image.Resampling.BILINEAR)
        small.append(found)
    there = [found for found in small if found is not None]
    if not there:
        return None
    largest = max(max(found.size) for found in there)
    columns = min(len(small), max(1, math.isqrt(len(small) - 1) + 1))
    lines = -(-len(small) // columns)
    mode = "L" if all(found.mode == "L" for found in there) else "RGB"
    whole = Image.new(mode, (columns * largest, lines * largest), "white")
    for place, found in enumerate(small):
        if found is not None:
            line, column = divmod(place, columns)
            left, top = ((largest - length) // 2 for length in found.size)
            whole.paste(found.convert(mode), (column * largest + left, line * largest + top))
    address = _address(whole.convert("RGB"), "WEBP", quality=60)
    return Sheet(address, largest, columns, lines, pixelated=largest < min(side, _SMALL))


def _found(picture: Picture | None, row: int) -> Image | None:
    try:
        return picture(row) if picture is not None else None
    except OSError:  # a photo moved or deleted since the run must not cost the report
        return None


def _on_white(picture: Image) -> Image:
    """RGB or gray, a copy; what is transparent becomes white."""
    from PIL import Image

    if picture.mode in ("1", "L"):
        return picture.convert("L")
    if picture.mode.startswith("I;16") or picture.mode in ("I", "F"):
        return _stretched(picture)
    if picture.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        ground = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(ground, picture).convert("RGB")
    return picture.convert("RGB")


def _stretched(picture: Image) -> Image:
    """Deep gray values, the darkest as 0 and the brightest as 255: their scale is unknown."""
    import numpy as np
    from PIL import Image

    values = np.asarray(picture, dtype=np.float64)
    low, high = values.min(), values.max()
    scaled = (values - low) * (255.0 / (high - low) if high > low else 1.0)
    return Image.fromarray(scaled.clip(0, 255).astype(np.uint8))


def _address(picture: Image, kind: str, **settings: int | bool) -> str:
    stored = io.BytesIO()
    picture.save(stored, kind, **settings)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(stored.getvalue()).decode('ascii')}"
