"""Characters drawn with Pillow in the twelve DejaVu styles of matplotlib, clean or distorted.
Knows no classes or splits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

STYLES = (
    "Sans",
    "Sans-Bold",
    "Sans-Oblique",
    "Sans-BoldOblique",
    "SansMono",
    "SansMono-Bold",
    "SansMono-Oblique",
    "SansMono-BoldOblique",
    "Serif",
    "Serif-Bold",
    "Serif-Italic",
    "Serif-BoldItalic",
)


@dataclass(frozen=True)
class Distortion:
    """How far a picture may stray from its letter.

    Each number bounds a uniform draw; lengths are shares of the side.

    rotation    degrees to either side
    shear       horizontal, tangent to either side
    stretch     logarithm of the ratio of width to height, to either side
    smallest, largest   the longer side of the letter
    shift       to either side, in both directions
    thinnest    share of an erosion by one pixel at an em of 1.25 sides, the far end of thin strokes
    thickest    share of a dilation by one pixel, the far end of thick strokes
    blur        radius of the Gaussian
    faintest    the weakest ink, 1 being the strongest
    noise       standard deviation of the Gaussian noise, 1 being the strongest ink
    """

    rotation: float = 15.0
    shear: float = 0.25
    stretch: float = 0.2
    smallest: float = 0.6
    largest: float = 0.85
    shift: float = 0.06
    thinnest: float = 0.8
    thickest: float = 1.0
    blur: float = 0.035
    faintest: float = 0.5
    noise: float = 0.15


def font_path(style: str) -> Path:
    """The file of one of `STYLES`."""
    import matplotlib

    return Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"DejaVu{style}.ttf"


def identity(styles: Sequence[str]) -> list[str]:
    """What decides the pixels besides settings: digests of fonts, versions of the renderer."""
    import PIL
    from PIL import features

    digests = [hashlib.sha256(font_path(style).read_bytes()).hexdigest() for style in styles]
    return [PIL.__version__, str(features.version("freetype2")), *digests]


def shared_characters() -> list[str]:
    """The letters and digits (categories L* and N*) that all twelve styles have, by code point."""
    from matplotlib.ft2font import FT2Font

    points = [set(FT2Font(str(font_path(style))).get_charmap()) for style in STYLES]
    return [chr(point) for point in sorted(set.intersection(*points)) if chr(point).isalnum()]


def clean(characters: Sequence[str], style: str, side: int = 24) -> np.ndarray:
    """(N, side, side) uint8: each character filling a square, however large the font draws it."""
    from PIL import Image, ImageFilter

    font, pictures = _font(style, 2 * side), []
    for character in characters:
        ink = _ink(font, character)
        scale = (side - 4) / max(ink.size)
        size = (max(1, round(ink.width * scale)), max(1, round(ink.height * scale)))
        picture = Image.new("L", (side, side))
        picture.paste(
            ink.resize(size, Image.Resampling.BOX), ((side - size[0]) // 2, (side - size[1]) // 2)
        )
        pictures.append(np.asarray(picture.filter(ImageFilter.GaussianBlur(0.6))))
    return np.stack(pictures)


def distorted(
    characters: Sequence[str],
    styles: Sequence[str],
    samples: int,
    side: int,
    distortion: Distortion,
    generator: np.random.Generator,
) -> np.ndarray:
    """(N, side, side) uint8, N = characters × styles × samples: light ink on a dark ground."""
    shape = (len(characters), len(styles), samples)
    draws = generator.uniform(-1, 1, (*shape, 8))
    ink = np.empty((*shape, side, side), np.uint8)
    for s, style in enumerate(styles):
        font = _font(style, round(1.25 * side))
        for c, character in enumerate(characters):
            weights = _weights(_ink(font, character))
            for k in range(samples):
                ink[c, s, k] = _distort(weights, draws[c, s, k], side, distortion)
    return _develop(ink.reshape(-1, side, side), distortion, generator)


def _font(style: str, size: int) -> Any:
    from PIL import ImageFont

    # The basic layout engine is in every build of Pillow; the other one may or may not be.
    return ImageFont.truetype(str(font_path(style)), size, layout_engine=ImageFont.Layout.BASIC)


def _ink(font: Any, character: str) -> Any:
    """The smallest picture that holds the character's ink."""
    from PIL import Image

    mask = font.getmask(character, mode="L")
    picture = Image.frombytes("L", mask.size, bytes(mask))
    return picture.crop(picture.getbbox())


def _weights(ink: Any) -> tuple[Any, Any, Any]:
    """The ink with a margin: strokes a pixel thinner on each side, as they are, thicker."""
    from PIL import ImageFilter, ImageOps

    plain = ImageOps.expand(ink, 2)
    return plain.filter(ImageFilter.MinFilter(3)), plain, plain.filter(ImageFilter.MaxFilter(3))


def _distort(weights: Any, draw: np.ndarray, side: int, distortion: Distortion) -> Any:
    """One picture of a letter; `draw` holds eight numbers in -1..1."""
    from PIL import Image, ImageFilter

    weight, turn, shear, stretch, size, right, down, blur = draw.tolist()
    thin, plain, thick = weights
    if weight < 0:
        ink = Image.blend(plain, thin, -weight * distortion.thinnest)
    else:
        ink = Image.blend(plain, thick, weight * distortion.thickest)
    share = _between(size, distortion.smallest, distortion.largest)
    scale = share * side / (max(ink.size) - 4)
    ratio = np.exp(distortion.stretch * stretch / 2)
    angle = np.deg2rad(distortion.rotation * turn)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    slant = np.array([[1.0, distortion.shear * shear], [0.0, 1.0]])
    # Pillow asks where in the letter each pixel of the picture comes from.
    back = np.linalg.inv(rotation @ slant @ np.diag([scale * ratio, scale / ratio]))
    middle = side / 2 + distortion.shift * side * np.array([right, down])
    offset = np.array(ink.size) / 2 - back @ middle
    rows = (*back[0], offset[0], *back[1], offset[1])
    picture = ink.transform((side, side), Image.Transform.AFFINE, rows, Image.Resampling.BICUBIC)
    radius = _between(blur, 0, distortion.blur) * side
    return picture.filter(ImageFilter.GaussianBlur(radius))


def _develop(ink: np.ndarray, distortion: Distortion, generator: np.random.Generator) -> np.ndarray:
    """Weaken the ink and add noise, a thousand pictures at a time."""
    pictures = np.empty_like(ink)
    for start in range(0, len(ink), 1024):
        block = ink[start : start + 1024].astype(np.float32)
        strength = generator.uniform(distortion.faintest, 1, (len(block), 1, 1)).astype(np.float32)
        noise = generator.standard_normal(block.shape, np.float32)
        noise *= generator.uniform(0, 255 * distortion.noise, strength.shape).astype(np.float32)
        pictures[start : start + 1024] = np.clip(np.rint(strength * block + noise), 0, 255)
    return pictures


def _between(draw: float, low: float, high: float) -> float:
    """A draw in -1..1, moved to low..high."""
    return low + (high - low) * (draw + 1) / 2
