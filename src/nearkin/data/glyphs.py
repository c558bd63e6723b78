"""The set `glyphs`: letters in twelve styles, whole scripts unseen in training.
How a letter is drawn stands in rendering.
"""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Mapping

import numpy as np
import torch

from nearkin.cache import cached_arrays, fingerprint
from nearkin.data.base import Splits, Table
from nearkin.data.rendering import (
    STYLES,
    Distortion,
    clean,
    distorted,
    identity,
    shared_characters,
)

# Part of the cache's name: raise it with every change that moves a pixel or a class.
_VERSION = 1

_SPLITS = ("train", "validation", "test")
_SCRIPTS = {
    "LATIN": "train",
    "DIGIT": "train",
    "GREEK": "validation",
    "CYRILLIC": "test",
    "ARMENIAN": "test",
    "GEORGIAN": "test",
}
# É and È (0.98), C and c (0.90) count as one shape; ш and щ (0.59), É and E (0.48) do not.
_LOOK_ALIKE = 0.85
_DISTORTION = Distortion()


def glyphs(
    samples: int = 4,
    evaluation_samples: int = 2,
    image_size: int = 32,
    seed: int = 0,
    styles: list[str] | None = None,
) -> Splits:
    """Letters and digits in twelve typefaces: train on Latin, test on scripts never seen.

    Source: rendered with Pillow from the DejaVu fonts that matplotlib brings (Sans, Sans Mono and
    Serif, each upright, bold, slanted and both). License of the fonts: Bitstream Vera, with the
    changes of DejaVu in the public domain. A class is a character, `U+0416 Ж CYRILLIC CAPITAL
    LETTER ZHE`; its pictures differ by style, rotation, shear, scale, stroke, blur, contrast and
    noise.

    The styles share 1,560 letters and digits. Modifier letters and signs are left out; Latin and
    the ten digits train, Greek validates, Cyrillic, Armenian and Georgian test. Of characters that
    look alike once they fill the same square (A and Alpha, C and c, most accents) one is kept. Test
    keeps its letters before validation and validation before train, so that unseen scripts stay
    whole and nothing like them is trained on; within a script the first code point stays.

    samples             pictures per training class and style; 13,872 rows by default
    evaluation_samples  pictures per validation or test class and style; 2,784 and 5,472 rows by
                        default
    image_size          side in pixels, at least 8
    styles              some of the twelve, such as ["Sans", "Serif-Italic"]; all by default

    Inputs are (N, 1, image_size, image_size) uint8; the column `style` is an index into the styles.
    Cached.
    """
    chosen = _checked(samples, evaluation_samples, image_size, styles)
    key = fingerprint(
        _VERSION, samples, evaluation_samples, image_size, seed, chosen, identity(chosen)
    )
    counts = {"train": samples, "validation": evaluation_samples, "test": evaluation_samples}
    arrays = cached_arrays(
        f"glyphs-{key}", lambda: _render(_classes(chosen), counts, image_size, seed, chosen)
    )
    train, validation, test = (_table(arrays, name, counts[name], chosen) for name in _SPLITS)
    return Splits(train, validation, test, facts={"image_size": image_size, "channels": 1})


def _checked(
    samples: int, evaluation_samples: int, image_size: int, styles: list[str] | None
) -> list[str]:
    for name, value, least in (
        ("samples", samples, 1),
        ("evaluation_samples", evaluation_samples, 1),
        ("image_size", image_size, 8),
    ):
        if value < least:
            raise ValueError(f"glyphs needs {name} of at least {least}, but {value} was given")
    chosen: list[str] = list(STYLES if styles is None else styles)
    for style in chosen:
        if style not in STYLES:
            near = difflib.get_close_matches(style, STYLES, 1) or [STYLES[0]]
            raise ValueError(f"{style!r} is no style of glyphs; did you mean {near[0]!r}?")
    if not chosen or len(set(chosen)) < len(chosen):
        raise ValueError(f"glyphs needs at least one style and each once, but {chosen} was given")
    return chosen


def _classes(styles: list[str]) -> dict[str, list[str]]:
    """The characters of each split, by code point, without look-alikes."""
    candidates = [
        character
        for character in shared_characters()
        if unicodedata.category(character) != "Lm" and _script(character) in _SCRIPTS
    ]
    # The last split chooses first; sorting is stable, so code points stay in order within a split.
    candidates.sort(key=lambda character: -_SPLITS.index(_SCRIPTS[_script(character)]))
    alike = _similarity(candidates, styles) > _LOOK_ALIKE
    kept: list[int] = []
    for i in range(len(candidates)):
        if not alike[i, kept].any():
            kept.append(i)
    chosen = sorted(candidates[i] for i in kept)
    return {
        split: [character for character in chosen if _SCRIPTS[_script(character)] == split]
        for split in _SPLITS
    }


def _similarity(characters: list[str], styles: list[str]) -> np.ndarray:
    """(N, N) correlation of clean renderings, the mean over styles."""
    total = np.zeros((len(characters), len(characters)))
    for style in styles:
        flat = clean(characters, style).reshape(len(characters), -1).astype(np.float64)
        flat -= flat.mean(1, keepdims=True)
        flat /= np.linalg.norm(flat, axis=1, keepdims=True)
        total += flat @ flat.T
    return total / len(styles)


def _render(
    classes: Mapping[str, list[str]],
    counts: Mapping[str, int],
    image_size: int,
    seed: int,
    styles: list[str],
) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    for i, split in enumerate(_SPLITS):
        generator = np.random.default_rng([seed, i])
        arrays[split] = distorted(
            classes[split], styles, counts[split], image_size, _DISTORTION, generator
        )
        arrays[f"{split}_points"] = np.array([ord(character) for character in classes[split]])
    return arrays


def _table(arrays: Mapping[str, np.ndarray], split: str, samples: int, styles: list[str]) -> Table:
    points = [int(point) for point in arrays[f"{split}_points"]]
    shape = (len(points), len(styles), samples)
    code, style, _ = torch.meshgrid(*(torch.arange(n) for n in shape), indexing="ij")
    return Table(
        inputs=torch.from_numpy(arrays[split])[:, None],
        label=code.flatten(),
        names=tuple(f"U+{p:04X} {chr(p)} {unicodedata.name(chr(p))}" for p in points),
        ids=tuple(f"U+{p:04X}/{s}/{k}" for p in points for s in styles for k in range(samples)),
        columns={"style": style.flatten()},
    )


def _script(character: str) -> str:
    return unicodedata.name(character, "?").split()[0]
