"""Crops: the parts, the pixels and the shares of torchvision's, given the same random choices."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import transforms
from torchvision.transforms import functional

from nearkin import crops
from nearkin.crops import (
    DRAWS,
    center_crop,
    jittered,
    jittered_crop,
    part_of,
    random_resized_crop,
)
from nearkin.pixels import resized
from nearkin.runtime import uniform

pytestmark = pytest.mark.usefixtures("one_thread")


def draws_of(count, seed=0):
    return uniform(torch.arange(count) + 1000 * seed, DRAWS, stream=103).tolist()


def smooth(high, wide, seed=0):
    """A picture of soft colors, (3, H, W) uint8."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(1, 3, high // 12 + 2, wide // 12 + 2, generator=generator)
    grown = torch.nn.functional.interpolate(noise, (high, wide), mode="bilinear")
    return grown[0].mul(255).to(torch.uint8)


def pillow(picture):
    return Image.fromarray(picture.permute(1, 2, 0).numpy())


def pixels(picture):
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def torchvision_part(high, wide, draws, smallest, narrowest, widest):
    """What RandomResizedCrop.get_params gives where its generator draws these numbers."""
    sizes = iter(draws[:20])
    places = iter(draws[20:22])

    class Empty:
        def uniform_(self, low, up):
            low, up = float(low), float(up)
            return torch.tensor(low + (up - low) * next(sizes), dtype=torch.float64)

    def tensor(values):
        return torch.tensor(values, dtype=torch.float64)

    def randint(low, up, size):
        return torch.tensor(low + int(next(places) * (up - low)))

    stub = SimpleNamespace(
        empty=lambda n: Empty(), randint=randint, log=torch.log, exp=torch.exp, tensor=tensor
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transforms.transforms, "torch", stub)
        picture = SimpleNamespace(shape=(3, high, wide), ndim=3)
        patch.setattr(functional, "get_dimensions", lambda x: [3, *x.shape[1:]])
        return transforms.RandomResizedCrop.get_params(
            picture, [smallest, 1.0], [narrowest, widest]
        )


@given(
    high=st.integers(1, 400),
    wide=st.integers(1, 400),
    smallest=st.floats(0.01, 1),
    ratio=st.sampled_from([(3 / 4, 4 / 3), (1.0, 1.0), (0.2, 0.5), (2.0, 5.0)]),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=150, deadline=None)
def test_parts_are_torchvisions_given_the_same_choices(high, wide, smallest, ratio, seed):
    (draws,) = draws_of(1, seed)
    mine = part_of(high, wide, draws, smallest, *ratio)
    assert mine == torchvision_part(high, wide, draws, smallest, *ratio)
    top, left, height, width = mine
    assert 0 <= top <= top + height <= high
    assert 0 <= left <= left + width <= wide


@pytest.mark.parametrize(
    ("size", "part"), [((10, 1000), (0, 493, 10, 13)), ((1000, 10), (493, 0, 13, 10))]
)
def test_what_never_fits_is_cut_from_the_middle(size, part):
    assert part_of(*size, [0.999] * DRAWS, 0.9, 3 / 4, 4 / 3) == part


def test_shares_ratios_places_and_mirrors_are_spread_as_asked():
    parts, mirrored = [], 0
    picture = torch.arange(40, dtype=torch.uint8).expand(3, 40, 40)
    for draws in draws_of(4000):
        parts.append(part_of(300, 300, draws, 0.16, 3 / 4, 4 / 3))
    for draws in draws_of(500):
        row = random_resized_crop(picture, draws, 8, smallest=0.16)[0, 0]
        mirrored += int(row[0] > row[-1])
    top, left, height, width = torch.tensor(parts, dtype=torch.float64).unbind(1)
    share, ratio = height * width / 300**2, (width / height).log()
    # Large shares of stretched parts do not fit and are drawn again, so that the mean is below .58.
    fits = share < 0.7
    assert share.min() == pytest.approx(0.16, abs=0.01)
    assert share[fits].mean() == pytest.approx((0.16 + 0.7) / 2, abs=0.015)
    assert ratio[fits].mean() == pytest.approx(0, abs=0.01)
    assert ratio[fits].std() == pytest.approx(2 * np.log(4 / 3) / 12**0.5, abs=0.01)
    small = share < 0.5
    for start, length in ((top, height), (left, width)):
        place = (start / (300 - length))[small]
        assert place.mean() == pytest.approx(0.5, abs=0.03)
        assert place.std() == pytest.approx(12**-0.5, abs=0.02)
    assert mirrored == pytest.approx(250, abs=35)


@pytest.mark.parametrize("size", [(256, 341), (341, 256), (60, 50), (224, 224)])
def test_pixels_are_those_of_pillow_and_torchvision(size):
    picture = smooth(*size)
    for i, draws in enumerate(draws_of(12)):
        part = part_of(*size, draws, 0.08, 3 / 4, 4 / 3)
        wanted = functional.resized_crop(pillow(picture), *part, [224, 224])
        if draws[22] < 0.5:
            wanted = functional.hflip(wanted)
        cut = random_resized_crop(picture, draws, 224)
        assert cut.shape == (3, 224, 224)
        assert (cut.int() - pixels(wanted).int()).abs().max() <= 1, i


def test_the_layout_in_memory_changes_no_bit():
    first = smooth(80, 90)
    last = first.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    for draws in draws_of(8):
        one, two = (random_resized_crop(p, draws, 32) for p in (first, last))
        assert torch.equal(one, two)
    assert torch.equal(first, smooth(80, 90))


def test_gray_pictures_are_cut_like_one_channel_of_color():
    picture = smooth(70, 50)
    (draws,) = draws_of(1)
    whole = random_resized_crop(picture, draws, 16)
    assert torch.equal(random_resized_crop(picture[:1], draws, 16), whole[:1])


def test_without_flip_nothing_is_mirrored():
    picture = smooth(40, 40)
    (draws,) = draws_of(1)
    draws[22] = 0.0
    plain = random_resized_crop(picture, draws, 16, flip=False)
    assert torch.equal(random_resized_crop(picture, draws, 16), plain.flip(2))


@pytest.mark.parametrize("size", [(7, 8), (8, 7), (9, 13), (6, 6)])
def test_the_middle_is_torchvisions(size):
    picture = smooth(*size)
    assert torch.equal(center_crop(picture, 6), functional.center_crop(picture, [6, 6]))


# --- colors

CHANGES = (
    functional.adjust_brightness,
    functional.adjust_contrast,
    functional.adjust_saturation,
    functional.adjust_hue,
)
CARS = (0.3, 0.3, 0.3, 0.1)


@pytest.mark.parametrize("channels", [1, 3])
def test_colors_are_torchvisions_with_the_same_factors_in_the_same_order(channels):
    picture = smooth(64, 80)[:channels]
    orders = set()
    for draws in draws_of(40):
        five = draws[23:28]
        wanted = functional.to_pil_image(picture)
        factors = [1 - s + 2 * s * d for s, d in zip(CARS[:3], five[:3], strict=True)]
        factors.append(-CARS[3] + 2 * CARS[3] * five[3])
        order = crops._ORDERS[int(five[4] * 24)]
        orders.add(order)
        for i in order:
            wanted = CHANGES[i](wanted, factors[i])
        changed = jittered(picture, five, CARS)
        assert torch.equal(changed, functional.pil_to_tensor(wanted))
    assert len(orders) > 15


@pytest.mark.parametrize("hue", [-0.5, -0.1, -0.001, 0.0, 0.3, 0.5])
def test_hue_turns_by_the_same_steps_both_ways(hue):
    picture = smooth(30, 30)
    wanted = functional.adjust_hue(pillow(picture), hue)
    assert torch.equal(pixels(crops._turned(pillow(picture), hue)), pixels(wanted))


def test_every_order_of_the_colors_is_as_likely():
    places = [int(draws[27] * 24) for draws in draws_of(6000)]
    counts = np.bincount(places, minlength=24)
    assert counts.sum() == 6000
    assert counts.min() > 180
    assert counts.max() < 330


def test_no_spread_changes_no_color():
    picture = smooth(20, 30)
    assert jittered(picture, [0.9] * 5, (0, 0, 0, 0)) is picture
    (draws,) = draws_of(1)
    plain = random_resized_crop(picture, draws, 16, smallest=0.16)
    none = jittered_crop(picture, draws, 16, brightness=0, contrast=0, saturation=0)
    assert torch.equal(none, plain)


def test_colors_change_before_the_part_is_cut():
    picture = torch.cat([torch.zeros(3, 40, 20), torch.full((3, 40, 20), 200.0)], 2).to(torch.uint8)
    draws = [0.0, 0.5] * 10 + [
        0.0,
        0.0,
        0.9,
        0.5,
        0.0,
        0.5,
        0.5,
        0.0,
    ]  # a dark part, least contrast
    cut = jittered_crop(picture, draws, 8, brightness=0, contrast=0.5, saturation=0)
    # The mean of the whole picture is 100, half of which comes in; that of the part is 0.
    assert cut[:, :, :6].unique().tolist() == [50]


def test_brightness_never_falls_below_nothing():
    picture = smooth(20, 20)
    dark = jittered(picture, [0.0, 0.5, 0.5, 0.5, 0.0], (3.0, 0, 0, 0))
    assert dark.max() == 0


def test_a_recipe_names_crops_and_their_ranges_are_checked():
    from nearkin.catalog import KINDS, scan
    from nearkin.config import build

    assert set(scan(KINDS["crop"])) == {"random_resized_crop", "jittered_crop"}
    cut = build({"jittered_crop": {"hue": 0.1, "narrowest": 1, "widest": 1}}, "crop", {}, "crop")
    assert cut(smooth(30, 40), [0.5] * DRAWS, 12).shape == (3, 12, 12)
    with pytest.raises(ValueError, match="smallest"):
        build({"random_resized_crop": {"smallest": 0}}, "crop", {}, "crop")


def test_resized_keeps_what_has_its_size():
    picture = smooth(20, 30)
    assert resized(picture, 20, 30) is picture


@pytest.mark.parametrize("crop", [random_resized_crop, jittered_crop])
def test_bounds_that_are_exchanged_are_refused_and_equal_ones_are_not(crop):
    picture = smooth(30, 30)
    with pytest.raises(ValueError, match=r"narrowest 1\.2 is more than widest 0\.8"):
        crop(picture, draws_of(1)[0], 8, narrowest=1.2, widest=0.8)
    assert crop(picture, draws_of(1)[0], 8, narrowest=1.0, widest=1.0).shape == (3, 8, 8)
