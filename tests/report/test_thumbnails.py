"""Pictures of every mode and size become small data addresses."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from nearkin.report.thumbnails import sheet, thumbnail, thumbnails


def opened(address):
    return Image.open(io.BytesIO(base64.b64decode(address.partition("base64,")[2])))


def test_a_small_picture_travels_unchanged_and_is_enlarged_sharply():
    values = np.arange(64, dtype=np.uint8).reshape(8, 8)
    small = thumbnail(Image.fromarray(values))
    assert small.pixelated
    assert small.address.startswith("data:image/png;base64,")
    np.testing.assert_array_equal(np.asarray(opened(small.address)), values)


def test_a_photo_is_made_small_and_the_original_is_left_alone():
    photo = Image.new("RGB", (1200, 800), "teal")
    small = thumbnail(photo)
    assert not small.pixelated
    assert small.address.startswith("data:image/webp;base64,")
    assert opened(small.address).size == (112, 75)
    assert photo.size == (1200, 800)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I", "I;16", "F"])
@pytest.mark.parametrize("side", [8, 200])
def test_every_mode_is_shown(mode, side):
    assert opened(thumbnail(Image.new(mode, (side, side))).address).width == min(side, 112)


def test_what_is_transparent_is_white():
    assert opened(thumbnail(Image.new("RGBA", (4, 4), (0, 0, 0, 0))).address).getpixel((0, 0)) == (
        255,
        255,
        255,
    )


def test_deep_gray_is_stretched():
    picture = Image.fromarray(np.array([[100, 1100], [600, 100]], dtype=np.uint16))
    shown = np.asarray(opened(thumbnail(picture).address))
    np.testing.assert_array_equal(shown, [[0, 255], [127, 0]])


def test_each_picture_is_made_once_and_missing_ones_are_none():
    asked = []

    def picture(row):
        asked.append(row)
        if row == 1:
            raise FileNotFoundError("the photo was moved")
        return Image.new("L", (8, 8)) if row == 0 else None

    of_row = thumbnails(picture)
    assert of_row(0) is of_row(0) is not None
    assert of_row(1) is of_row(2) is None
    assert asked == [0, 1, 2]
    assert thumbnails(None)(0) is None


def test_a_sheet_holds_every_picture_in_its_square():
    def picture(row):
        if row == 2:
            raise FileNotFoundError("the photo was moved")
        return Image.new("RGB", (200, 100), (40 * row, 0, 0)) if row != 3 else None

    made = sheet(picture, [0, 1, 2, 3, 4], 48)
    assert (made.side, made.columns, made.lines, made.pixelated) == (48, 3, 2, False)
    whole = opened(made.address).convert("RGB")
    assert whole.size == (144, 96)
    middles = [(24, 24), (72, 24), (120, 24), (24, 72), (72, 72)]
    seen = [whole.getpixel(middle)[1] < 50 for middle in middles]
    assert seen == [True, True, False, False, True]
    reds = [whole.getpixel(middle)[0] for middle in ((24, 24), (72, 24), (72, 72))]
    np.testing.assert_allclose(reds, [0, 40, 160], atol=12)


def test_small_pictures_make_a_small_sheet_and_none_make_none():
    made = sheet(lambda row: Image.new("L", (8, 8)), [0], 48)
    assert (made.side, made.columns, made.lines, made.pixelated) == (8, 1, 1, True)
    assert sheet(None, [0, 1], 48) is None
    assert sheet(lambda row: None, [0, 1], 48) is None
