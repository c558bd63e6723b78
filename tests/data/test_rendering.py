"""Rendering of characters: styles, clean and distorted pictures."""

import unicodedata

import numpy as np

from nearkin.data.rendering import (
    STYLES,
    Distortion,
    clean,
    distorted,
    font_path,
    shared_characters,
)

_STILL = Distortion(
    rotation=0,
    shear=0,
    stretch=0,
    smallest=0.75,
    largest=0.75,
    shift=0,
    thinnest=0,
    thickest=0,
    blur=0,
    faintest=1,
    noise=0,
)


def _generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_the_twelve_styles_are_twelve_fonts():
    files = {font_path(style).read_bytes() for style in STYLES}
    assert len(files) == 12


def test_the_styles_share_1560_letters_and_digits():
    characters = shared_characters()
    assert len(characters) == len(set(characters)) == 1560
    assert {unicodedata.category(character)[0] for character in characters} == {"L", "N"}
    assert {"A", "z", "7", "Ω", "Ж", "Ա", "ა"} <= set(characters)


def test_clean_pictures_fill_the_square_whatever_the_size_of_the_letter():
    for picture in clean(["C", "c", "W", "l"], "Sans"):
        rows, columns = np.nonzero(picture > 60)
        assert max(np.ptp(rows), np.ptp(columns)) in (19, 20)


def test_without_distortion_all_samples_are_one_picture():
    pictures = distorted(["A", "B"], ["Sans"], 3, 32, _STILL, _generator())
    assert pictures.shape == (6, 32, 32)
    assert pictures.dtype == np.uint8
    assert (pictures[0] == pictures[2]).all()
    assert (pictures[0] != pictures[3]).any()
    rows, columns = np.nonzero(pictures[0] > 127)
    assert np.ptp(rows) + 1 in (23, 24, 25)  # 0.75 of 32
    assert abs(rows.mean() - 15.5) < 3
    assert abs(columns.mean() - 15.5) < 1


def test_strokes_get_thinner_and_thicker():
    thin = Distortion(**{**vars(_STILL), "thinnest": 1.0})
    thick = Distortion(**{**vars(_STILL), "thickest": 1.0})
    ink = [
        distorted(["H"], ["Sans"], 20, 32, each, _generator()).mean((1, 2))
        for each in (_STILL, thin, thick)
    ]
    assert (ink[1] <= ink[0]).all()
    assert (ink[2] >= ink[0]).all()
    assert ink[1].min() < 0.8 * ink[0][0]
    assert ink[2].max() > 1.2 * ink[0][0]


def test_a_thick_letter_is_filled_and_not_an_outline():
    thick = Distortion(**{**vars(_STILL), "thickest": 1.0})
    middle = distorted(["l"], ["Sans-Bold"], 20, 32, thick, _generator())[:, 16, 16]
    assert (middle > 250).all()


def test_the_generator_decides_the_pixels():
    draws = [distorted(["A"], ["Serif"], 2, 16, Distortion(), _generator(s)) for s in (0, 0, 1)]
    assert (draws[0] == draws[1]).all()
    assert (draws[0] != draws[2]).any()
