"""Image files to pixels: modes, orientation, resizing, the mapped file."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nearkin import pixels
from nearkin.boxes import Boxed
from nearkin.pixels import Size, read_image, read_images, read_resized, stamp

pytestmark = pytest.mark.usefixtures("cache")


def _one(mode: str, color) -> Image.Image:
    return Image.new(mode, (40, 24), color)


@pytest.mark.parametrize(
    ("picture", "color"),
    [
        (_one("RGB", (10, 20, 30)), (10, 20, 30)),
        (_one("L", 77), (77, 77, 77)),
        (_one("1", 1), (255, 255, 255)),
        (_one("RGBA", (10, 20, 30, 255)), (10, 20, 30)),
        (_one("RGBA", (10, 20, 30, 0)), (255, 255, 255)),
        (_one("LA", (50, 0)), (255, 255, 255)),
        (_one("CMYK", (0, 0, 0, 255)), (0, 0, 0)),
        (_one("CMYK", (0, 255, 255, 0)), (255, 0, 0)),
        (_one("I;16", 65535), (255, 255, 255)),
        (_one("I;16", 25700), (100, 100, 100)),
        (_one("I", 25700), (100, 100, 100)),
        (_one("F", 0.2), (51, 51, 51)),
        (_one("F", 51.0), (51, 51, 51)),
    ],
)
def test_every_mode_becomes_rgb(picture, color):
    read = read_image(picture, 8)
    assert read.shape == (3, 8, 8)
    assert read.dtype == torch.uint8
    assert read.flatten(1).unique(dim=1).tolist() == [[c] for c in color]


def test_a_transparent_palette_lies_on_white(tmp_path: Path):
    picture = Image.new("P", (10, 10), 0)
    picture.putpalette([200, 0, 0, 0, 0, 200])
    picture.paste(1, (0, 0, 10, 5))
    picture.save(tmp_path / "p.png", transparency=0)
    read = read_image(tmp_path / "p.png", 10)
    assert read[:, 0, 0].tolist() == [0, 0, 200]
    assert read[:, 9, 9].tolist() == [255, 255, 255]


def test_one_channel_is_gray():
    read = read_image(_one("RGB", (255, 0, 0)), 8, 1)
    assert read.shape == (1, 8, 8)
    assert read.unique().tolist() == [76]  # 0.299 * 255


def test_the_orientation_of_the_camera_is_applied(tmp_path: Path):
    upright = Image.new("L", (16, 16))
    upright.paste(255, (0, 0, 16, 8))
    exif = Image.Exif()
    exif[0x0112] = 3  # Upside down.
    upright.rotate(180).save(tmp_path / "turned.png", exif=exif)
    read = read_image(tmp_path / "turned.png", 16, 1)
    assert torch.equal(read, read_image(upright, 16, 1))
    assert read[0, 0, 0] == 255


def test_the_whole_picture_is_kept_and_squeezed():
    wide = Image.new("L", (80, 20))
    wide.paste(255, (40, 0, 80, 20))
    read = read_image(wide, 20, 1)[0]
    assert (read[:, :9] == 0).all()
    assert (read[:, 11:] == 255).all()


def test_fine_stripes_become_gray_and_not_stripes():
    stripes = np.tile(np.array([0, 255], np.uint8), (160, 80))
    inside = read_image(Image.fromarray(stripes), 16, 1)[0, 2:-2, 2:-2].int()
    assert (inside - 127).abs().max() <= 8


def test_a_large_jpeg_reads_like_its_full_decoding(tmp_path: Path):
    ramp = np.linspace(0, 255, 400).astype(np.uint8)
    picture = Image.fromarray(np.stack([np.tile(ramp, (400, 1))] * 3, -1))
    picture.save(tmp_path / "ramp.jpg", quality=95)
    drafted = read_image(tmp_path / "ramp.jpg", 24).int()
    assert (drafted - read_image(picture, 24).int()).abs().max() <= 3


@pytest.mark.parametrize(
    ("source", "size", "shape"),
    [
        ((500, 375), Size(256), (3, 256, 341)),  # torchvision's Resize rounds down
        ((375, 500), Size(256), (3, 341, 256)),
        ((30, 20), Size(40), (3, 40, 60)),
        ((500, 375), Size(64, keep_aspect=False), (3, 64, 64)),
        ((50, 50), Size(10, channels=1), (1, 10, 10)),
    ],
)
def test_the_shorter_side_has_the_size(source, size, shape):
    read = read_resized(Image.new("RGB", source, (10, 20, 30)), size)
    assert read.shape == shape
    assert read.stride(0) == 1 or size.channels == 1  # channels last
    assert (read.flatten(1) == read.flatten(1)[:, :1]).all()


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("keep_aspect", [True, False])
def test_resized_pictures_are_pillows_to_a_level(tmp_path: Path, interpolation, keep_aspect):
    noise = np.random.default_rng(0).integers(0, 256, (20, 15, 3), dtype=np.uint8)
    picture = Image.fromarray(noise).resize((200, 160), Image.Resampling.BICUBIC)
    picture.save(tmp_path / "p.png")
    size = Size(64, keep_aspect, 3, interpolation)
    wanted = picture.resize(
        (80, 64) if keep_aspect else (64, 64), Image.Resampling[interpolation.upper()]
    )
    read = read_resized(tmp_path / "p.png", size).permute(1, 2, 0).int()
    assert (read - torch.from_numpy(np.array(wanted)).int()).abs().max() <= 1


def test_a_picture_of_its_size_is_not_touched(tmp_path: Path, photo):
    path = photo(tmp_path / "p.png", side=32)
    pixels = torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)
    assert torch.equal(read_resized(path, Size(32)), pixels)


@pytest.mark.parametrize(("side", "halved"), [(511, False), (512, True), (1030, True)])
def test_a_jpeg_is_decoded_smaller_only_where_twice_the_size_is_left(
    tmp_path: Path, monkeypatch, side, halved
):
    Image.new("RGB", (600, side), (9, 9, 9)).save(tmp_path / "p.jpg")
    seen = []
    upright = pixels._upright
    monkeypatch.setattr(pixels, "_upright", lambda p: (seen.append(p.size), upright(p))[1])
    read_resized(tmp_path / "p.jpg", Size(128))
    assert seen == [(300, -(-side // 2)) if halved else (600, side)]


def test_a_box_is_a_picture_of_its_own(tmp_path: Path, photo):
    path = photo(tmp_path / "p.png", side=20)
    whole = torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)
    box = Boxed(str(path), (3, 5, 13, 15))
    assert torch.equal(read_resized(box, Size(10)), whole[:, 5:15, 3:13])
    assert torch.equal(read_image(box, 10), whole[:, 5:15, 3:13])
    assert stamp(box) == [*stamp(path), 3, 5, 13, 15]
    with pytest.raises(ValueError, match=r"p\.png\[30,5,40,15\] cannot be read .*outside"):
        read_resized(Boxed(str(path), (30, 5, 40, 15)), Size(10))


def test_reading_leaves_a_pillow_image_as_it_is():
    picture = _one("RGB", (10, 20, 30))
    read_resized(picture, Size(24)).zero_()
    read_image(picture, 8).zero_()
    assert picture.getpixel((0, 0)) == (10, 20, 30)


def test_wrong_arguments_and_files_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="channels must be 1"):
        read_image(_one("L", 0), 8, 4)
    with pytest.raises(ValueError, match="image_size must be at least 1, but 0"):
        read_images([], 0)
    with pytest.raises(FileNotFoundError, match=r"there is no image .*lost\.png"):
        read_image(tmp_path / "lost.png", 8)
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(ValueError, match=r"text\.png cannot be read"):
        read_image(tmp_path / "text.png", 8)


@pytest.fixture
def many(tmp_path: Path, photo) -> list[Path]:
    return [photo(tmp_path / "many" / f"{i}.png", i, 12) for i in range(70)]


def test_many_images_are_read_in_order_and_once(many, cache: Path, monkeypatch):
    told: list[tuple[int, int]] = []
    first = read_images(many, 8, progress=lambda done, total: told.append((done, total)))
    assert torch.equal(first, torch.stack([read_image(path, 8) for path in many]))
    assert told == [(70, 70)]
    monkeypatch.setattr(pixels, "read_image", None)
    assert torch.equal(read_images(many, 8), first)
    assert [path.suffix for path in cache.iterdir()] == [".npy"]


def test_a_changed_image_is_read_again(many, photo):
    first = read_images(many, 8)
    photo(many[3], 99, 14)
    second = read_images(many, 8)
    assert [i for i in range(70) if not torch.equal(first[i], second[i])] == [3]


def test_other_sizes_and_channels_have_files_of_their_own(many):
    assert read_images(many, 8, 3).shape == (70, 3, 8, 8)
    assert read_images(many, 8, 1).shape == (70, 1, 8, 8)
    assert read_images(many, 6, 3).shape == (70, 3, 6, 6)


def test_writing_to_the_pixels_leaves_the_file_alone(many):
    first = read_images(many, 8)
    kept = first.clone()
    first.zero_()
    assert torch.equal(read_images(many, 8), kept)


@pytest.mark.parametrize("content", [b"", b"broken", None])
def test_a_damaged_file_of_pixels_is_made_again(many, cache: Path, content):
    first = read_images(many, 8).clone()
    (store,) = cache.glob("pixels-*.npy")
    store.write_bytes(store.read_bytes()[:1000] if content is None else content)
    assert torch.equal(read_images(many, 8), first)


def test_without_a_cache_folder_the_pixels_are_in_memory(
    many, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("NEARKIN_HOME", str(tmp_path / "file" / "below"))
    with pytest.warns(UserWarning, match="cannot be written"):
        read = read_images(many, 8)
    assert torch.equal(read[5], read_image(many[5], 8))


def test_a_few_images_leave_no_file(many, cache: Path):
    assert read_images(many[:5], 8).shape == (5, 3, 8, 8)
    assert read_images([], 8).shape == (0, 3, 8, 8)
    assert not cache.exists()


def test_a_broken_image_among_many_is_named_and_leaves_nothing(many, cache: Path):
    many[40].write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"40\.png cannot be read"):
        read_images(many, 8)
    assert list(cache.glob("*")) + list(cache.glob(".*")) == []
