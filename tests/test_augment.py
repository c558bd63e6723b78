"""Augmentations: keyed by row, nothing else; and what each setting does."""

import math

import pytest
import torch

from nearkin import catalog
from nearkin.augment import affine, photo
from nearkin.runtime import row_keys

AUGMENTATIONS = catalog.scan(catalog.kind_named("augmentation"))
NOTHING = {
    "affine": {"rotation": 0.0, "scale": 0.0, "shear": 0.0, "shift": 0.0},
    "photo": {"smallest": 1.0, "stretch": 1.0, "flip": False, "light": 0.0},
}


def pictures(count=6, channels=3, high=12, wide=10, seed=0):
    random = torch.Generator().manual_seed(seed)
    shape = (count, channels, high, wide)
    return torch.randint(0, 256, shape, generator=random, dtype=torch.uint8)


def keys(count=6, epoch=0):
    return row_keys(7, epoch, torch.arange(count))


@pytest.mark.parametrize("name", AUGMENTATIONS)
class TestEvery:
    def test_the_same_key_gives_the_same_picture(self, name):
        x = pictures()
        assert torch.equal(AUGMENTATIONS[name](x, keys()), AUGMENTATIONS[name](x, keys()))

    def test_another_epoch_gives_another_picture(self, name):
        x = pictures()
        one, two = (AUGMENTATIONS[name](x, keys(epoch=e)) for e in (0, 1))
        assert ((one - two).abs().amax((1, 2, 3)) > 1).all()

    def test_rows_of_equal_pictures_differ(self, name):
        x = pictures(1).expand(6, -1, -1, -1)
        seen = AUGMENTATIONS[name](x, keys())
        assert len({tuple(row.flatten().tolist()) for row in seen}) == 6

    @pytest.mark.parametrize("order", [[5, 4, 3, 2, 1, 0], [2, 0], [3]])
    def test_order_and_split_of_the_batch_do_not_matter(self, name, order):
        x, k = pictures(), keys()
        whole = AUGMENTATIONS[name](x, k)
        assert torch.equal(AUGMENTATIONS[name](x[order], k[order]), whole[order])

    def test_the_global_generator_is_left_alone(self, name):
        torch.manual_seed(1)
        before = torch.get_rng_state()
        first = AUGMENTATIONS[name](pictures(), keys())
        assert torch.equal(torch.get_rng_state(), before)
        torch.manual_seed(2)
        assert torch.equal(AUGMENTATIONS[name](pictures(), keys()), first)

    def test_pixels_stay_pixels_of_the_same_shape(self, name):
        x = pictures()
        seen = AUGMENTATIONS[name](x, keys())
        assert seen.dtype == torch.float32
        assert seen.shape == x.shape
        assert seen.min() >= 0
        assert seen.max() <= 255.01
        torch.testing.assert_close(AUGMENTATIONS[name](x.float(), keys()), seen)

    def test_all_settings_at_nothing_return_the_picture(self, name):
        x = pictures()
        seen = AUGMENTATIONS[name](x, keys(), **NOTHING[name])
        torch.testing.assert_close(seen, x.float(), atol=0.01, rtol=0)


def one_only(name, **settings):
    return AUGMENTATIONS[name](pictures(200), keys(200), **{**NOTHING[name], **settings})


def test_a_flat_picture_stays_flat_whatever_the_map():
    x = torch.full((5, 1, 8, 8), 77, dtype=torch.uint8)
    torch.testing.assert_close(affine(x, keys(5)), x.float(), atol=0.01, rtol=0)


def center_of(x):
    """Where the mass of each (H, W) picture lies, in half widths from the middle."""
    places = (torch.arange(x.shape[-1]) * 2 + 1) / x.shape[-1] - 1
    mass = x.sum((1, 2, 3))
    across, down = (x.sum((1, axis)) @ places / mass for axis in (2, 3))
    return across, down


def dot_at(place, count=300, size=65):
    row, column = place
    x = torch.zeros(count, 1, size, size)
    x[:, :, row - 1 : row + 2, column - 1 : column + 2] = 255
    return x


def test_shift_moves_by_up_to_its_share_of_half_a_width():
    quiet = {**NOTHING["affine"], "shift": 0.2}
    across, down = center_of(affine(dot_at((32, 32)), keys(300), **quiet))
    for moved in (across, down):
        assert moved.abs().max() <= 0.2 + 0.01
        assert moved.min() < -0.15
        assert moved.max() > 0.15


def test_rotation_turns_by_up_to_its_degrees_and_keeps_the_radius():
    quiet = {**NOTHING["affine"], "rotation": 30.0}
    across, down = center_of(affine(dot_at((32, 52)), keys(300), **quiet))
    angle = torch.atan2(down, across) * 180 / math.pi
    assert angle.abs().max() <= 30.5
    assert angle.min() < -25
    assert angle.max() > 25
    radius = torch.hypot(across, down)
    torch.testing.assert_close(radius, radius.mean().expand(300), atol=0.02, rtol=0)


def test_scale_moves_along_the_ray():
    quiet = {**NOTHING["affine"], "scale": 0.2}
    across, down = center_of(affine(dot_at((32, 48)), keys(300), **quiet))
    start = (48 * 2 + 1) / 65 - 1
    assert down.abs().max() < 0.01
    assert across.min() == pytest.approx(start / 1.2, abs=0.02)
    assert across.max() == pytest.approx(start / 0.8, abs=0.02)


def test_shear_moves_across_by_the_height():
    quiet = {**NOTHING["affine"], "shear": 0.3}
    across, down = center_of(affine(dot_at((48, 32)), keys(300), **quiet))
    height = (48 * 2 + 1) / 65 - 1
    torch.testing.assert_close(down, torch.full((300,), height), atol=0.01, rtol=0)
    assert across.abs().max() <= 0.3 * height + 0.01
    assert across.max() > 0.25 * height


def test_flip_mirrors_half_of_the_pictures():
    x, seen = pictures(200).float(), one_only("photo", flip=True)
    kept = (seen - x).abs().amax((1, 2, 3)) < 0.05
    mirrored = (seen - x.flip(3)).abs().amax((1, 2, 3)) < 0.05
    assert (kept ^ mirrored).all()
    assert 70 < kept.sum() < 130


def test_light_changes_gain_and_offset_within_its_share():
    x = torch.full((200, 1, 4, 4), 100.0)
    flat = photo(x, keys(200), **{**NOTHING["photo"], "light": 0.2})[:, 0, 0, 0]
    assert flat.min() >= 100 * 0.8 - 25.5 - 0.01
    assert flat.max() <= 100 * 1.2 + 25.5 + 0.01
    assert flat.max() - flat.min() > 50


def test_a_crop_keeps_at_least_the_smallest_share():
    high = wide = 64
    ramp = torch.arange(wide).float().expand(300, 1, high, wide)
    quiet = {**NOTHING["photo"], "smallest": 0.25}
    seen = photo(ramp, keys(300), **quiet)
    width = (seen[:, 0, 0, -1] - seen[:, 0, 0, 0]) / (wide - 1)
    assert width.min() >= 0.5 - 0.03
    assert width.min() < 0.6
    assert width.max() > 0.95
