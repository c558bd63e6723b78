"""Encoders: what they prepare, what they refuse, and modules of one's own."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from nearkin.catalog import RecipeError
from nearkin.config import build
from nearkin.crops import random_resized_crop
from nearkin.encoders.base import Encoder, Given, ImageEncoder, feature_norm, scaled
from nearkin.pictures import Pictures
from nearkin.pixels import Size, read_resized


def test_tensors_pass_through_an_encoder_as_they_are():
    x = torch.randn(3, 4)
    assert Encoder().prepare(x) is x
    assert Encoder().augment(x, torch.arange(3)) is x


@pytest.mark.parametrize(("files", "seen"), [(["a.png"], "str"), ([], "nothing")])
def test_files_need_an_image_encoder(files, seen):
    with pytest.raises(ValueError, match=f"takes arrays of numbers, not {seen}.*small_cnn"):
        Encoder().prepare(files)


@pytest.mark.parametrize("channels", [1, 3])
def test_files_and_pillow_images_become_squares_of_pixels(photo, tmp_path, channels):
    paths = [str(photo(tmp_path / f"{i}.png", i, 20)) for i in range(3)]
    encoder = ImageEncoder(12, channels)
    pixels = encoder.prepare(paths)
    assert pixels.shape == (3, channels, 12, 12)
    assert pixels.dtype == torch.uint8
    opened = [Image.open(path) for path in paths]
    assert torch.equal(encoder.prepare(opened), pixels)


def test_many_pillow_images_are_prepared_like_few():
    pictures = [Image.fromarray(np.full((9, 9), i, np.uint8)) for i in range(70)]
    pixels = ImageEncoder(8, 1).prepare(pictures)
    assert pixels[:, 0, 4, 4].tolist() == list(range(70))


def test_progress_is_told_of_files(photo, tmp_path):
    told = []
    paths = [photo(tmp_path / f"{i}.png", i) for i in range(5)]
    ImageEncoder(8, 1).prepare(paths, progress=lambda done, total: told.append((done, total)))
    assert told == [(5, 5)]


@pytest.mark.usefixtures("cache")
def test_with_a_size_pictures_are_kept_larger_and_cut_when_taken(photo, tmp_path):
    paths = [str(photo(tmp_path / f"{i}.png", i, 20)) for i in range(3)]
    encoder = ImageEncoder(8, 3, size=Size(12), crop=random_resized_crop)
    held = encoder.prepare(paths, workers=2)
    rows = torch.tensor([2, 0])
    assert isinstance(held, Pictures)
    assert held.shape == (3, 3, 8, 8)
    kept = torch.stack([read_resized(paths[i], Size(12)) for i in rows.tolist()])
    assert torch.equal(held.take(rows), kept[:, :, 2:10, 2:10])
    assert not torch.equal(held.take(rows, torch.tensor([5, 6])), held.take(rows))
    assert encoder.prepare(held) is held
    with pytest.raises(ValueError, match="resized to 7 pixels cannot be cut to 8"):
        ImageEncoder(8, 3, size=Size(7))


@pytest.mark.parametrize("keep_aspect", [True, False])
@pytest.mark.parametrize("shape", [(12, 12), (12, 15), (30, 20), (9, 11)])
def test_uint8_pictures_in_a_tensor_are_resized_and_cut_like_files(shape, keep_aspect, tmp_path):
    size = Size(12, keep_aspect)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (3, 3, *shape), generator=generator, dtype=torch.uint8)
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for path, picture in zip(paths, pixels, strict=True):
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(path)
    encoder = ImageEncoder(8, 3, size=size, crop=random_resized_crop)
    held, files = encoder.prepare(pixels, workers=2), encoder.prepare(paths, keep=False)
    assert isinstance(held, Pictures)
    rows, keys = torch.tensor([2, 0]), torch.tensor([5, 6])
    assert held.shape == (3, 3, 8, 8)
    assert torch.equal(held.take(rows), files.take(rows))
    assert torch.equal(held.take(rows, keys), files.take(rows, keys))
    assert not torch.equal(held.take(rows, keys), held.take(rows))


@pytest.mark.parametrize("shape", [(2, 1, 12, 12), (2, 12, 12), (2, 12, 12, 3), (2, 3, 0, 12)])
def test_uint8_pictures_that_cannot_be_cut_are_refused(shape):
    encoder = ImageEncoder(8, 3, size=Size(12))
    with pytest.raises(ValueError, match="do not fit an encoder of 3 channels"):
        encoder.prepare(torch.zeros(shape, dtype=torch.uint8))


def test_pictures_of_floats_stay_as_they_are_and_a_crop_that_they_cannot_have_is_told():
    x = torch.full((2, 3, 8, 8), 100.0)
    assert ImageEncoder(8, 3, size=Size(12)).prepare(x) is x
    encoder = ImageEncoder(8, 3, size=Size(12), crop=random_resized_crop)
    with pytest.warns(UserWarning, match="no crops out of pictures that come as float32; give"):
        assert encoder.prepare(x) is x
    with pytest.raises(ValueError, match=r"do not fit an encoder of \(3, 8, 8\)"):
        ImageEncoder(8, 3, size=Size(12)).prepare(torch.zeros(2, 3, 12, 12))


def test_a_crop_that_cannot_be_is_told_when_the_encoder_is_built():
    with pytest.raises(RecipeError, match=r"resnet50_paper.*narrowest 2 is more than widest 1\.5"):
        build(
            {
                "resnet50_paper": {
                    "weights": None,
                    "crop": {"random_resized_crop": {"narrowest": 2.0, "widest": 1.5}},
                }
            },
            *("encoder", {}, "encoder"),
        )


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (2, 1, 8, 9), (2, 8, 8), (2, 8, 8, 1), (8,)])
def test_pictures_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"do not fit an encoder of \(1, 8, 8\)"):
        ImageEncoder(8, 1).prepare(torch.zeros(shape, dtype=torch.uint8))


def test_what_is_no_image_is_named():
    with pytest.raises(ValueError, match="a path or a Pillow image, not int"):
        ImageEncoder(8, 1).prepare([3])
    with pytest.raises(FileNotFoundError, match=r"there is no image lost\.png"):
        ImageEncoder(8, 1).prepare(["lost.png"])


def test_pictures_up_to_one_are_warned_of():
    encoder = ImageEncoder(8, 1)
    with pytest.warns(UserWarning, match="pixels go from 0 to 255"):
        encoder.prepare(torch.rand(2, 1, 8, 8))
    encoder.prepare(torch.rand(2, 1, 8, 8) * 255)
    encoder.prepare(torch.zeros(2, 1, 8, 8))


@pytest.mark.parametrize(("size", "channels"), [(3, 1), (8, 2), (8, 4), (0, 3)])
def test_sizes_and_channels_have_their_limits(size, channels):
    with pytest.raises(ValueError, match="must be"):
        ImageEncoder(size, channels)


def test_augmentation_sees_pictures_and_keys():
    encoder = ImageEncoder(8, 1, lambda x, keys: x + keys[:, None, None, None])
    x = encoder.augment(torch.zeros(2, 1, 8, 8), torch.tensor([5, 7]))
    assert x.amax((1, 2, 3)).tolist() == [5, 7]
    plain = torch.zeros(2, 1, 8, 8)
    assert ImageEncoder(8, 1).augment(plain, torch.arange(2)) is plain


def test_pixels_are_scaled_to_about_minus_two_to_two():
    for dtype in (torch.uint8, torch.int64, torch.float32, torch.float64):
        x = scaled(torch.tensor([0, 255], dtype=dtype))
        assert x.tolist() == [-2, 2]
        assert x.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_given_wraps_a_module_of_ones_own():
    encoder = Given(nn.Linear(4, 3), 3)
    assert encoder.dim == 3
    assert encoder(torch.ones(2, 4)).shape == (2, 3)


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (nn.Linear(4, 5), r"shape \(2, 5\); expected \(N, 3\)"),
        (nn.Unflatten(1, (2, 2)), r"shape \(2, 2, 2\)"),
        (nn.LSTM(4, 3), "gave tuple; expected a tensor"),
    ],
)
def test_given_checks_what_the_module_gives(module, said):
    with pytest.raises(ValueError, match=said):
        Given(module, 3)(torch.ones(2, 4))


def test_the_feature_norm_has_no_scale_and_can_be_left_out():
    assert list(feature_norm(4, True).parameters()) == []
    assert isinstance(feature_norm(4, False), nn.Identity)
