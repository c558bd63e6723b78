"""Boxes in pictures: what is cut out, upright and within the picture."""

import numpy as np
import pytest
from PIL import Image

from nearkin.boxes import Boxed, upright_size
from nearkin.pixels import read_images


@pytest.fixture
def picture(tmp_path):
    """A picture of 6 x 4 whose gray level at (x, y) is 10 y + x."""
    levels = (10 * np.arange(4)[:, None] + np.arange(6)[None]).astype(np.uint8)
    path = tmp_path / "a.png"
    Image.fromarray(levels).save(path)
    return str(path)


def test_the_part_inside_is_opened(picture):
    part = np.array(Boxed(picture, (1, 2, 4, 4)).open())
    assert part.tolist() == [[21, 22, 23], [31, 32, 33]]


def test_what_reaches_out_is_cut_off(picture):
    part = np.array(Boxed(picture, (-3, 3, 2, 99)).open())
    assert part.tolist() == [[30, 31]]


def test_a_box_outside_is_refused(picture):
    with pytest.raises(ValueError, match=r"\(6, 0, 9, 2\) lies outside .*a.png of 6 x 4 pixels"):
        Boxed(picture, (6, 0, 9, 2)).open()


def test_boxes_are_of_the_upright_picture(tmp_path):
    levels = np.repeat(np.arange(0, 240, 10, dtype=np.uint8)[None], 8, 0)  # 24 x 8
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter: stored columns are rows of what is seen
    path = str(tmp_path / "a.jpg")
    Image.fromarray(levels).save(path, exif=exif, quality=100)
    assert upright_size(path) == (8, 24)
    part = np.array(Boxed(path, (0, 16, 8, 24)).open())
    assert part.shape == (8, 8)
    np.testing.assert_allclose(part[:, 0], levels[0, 16:], atol=3)


def test_a_box_is_named_after_its_file(picture):
    assert str(Boxed("a.png", (1, 2, 3, 4))) == "a.png[1,2,3,4]"


def test_an_encoder_sees_the_part_inside(picture):
    both = read_images([Boxed(picture, (2, 1, 4, 3)), picture], 2, channels=1)
    assert both[0, 0].tolist() == [[12, 13], [22, 23]]
    assert both[1, 0].tolist() != both[0, 0].tolist()


def test_kept_pixels_are_of_the_box(picture, cache):
    parts = [Boxed(picture, (x % 5, 0, x % 5 + 2, 2)) for x in range(80)]
    for _ in range(2):
        assert read_images(parts, 2, channels=1)[:6, 0, 0, 0].tolist() == [0, 1, 2, 3, 4, 0]
    others = [Boxed(picture, (x % 5, 1, x % 5 + 2, 3)) for x in range(80)]
    assert read_images(others, 2, channels=1)[:6, 0, 0, 0].tolist() == [10, 11, 12, 13, 14, 10]
