"""The published counts of the sets and the classes between which they are split, as printed."""

import importlib

import layouts
import pytest

from nearkin.data.cars import cars
from nearkin.data.cub import cub
from nearkin.data.official import OtherCounts

PRINTED = {
    "cub": {"train": (5864, 100), "test": (5924, 100)},
    "cars": {"train": (8054, 98), "test": (8131, 98)},
    "sop": {"train": (59551, 11318), "test": (60502, 11316)},
    "inshop": {"train": (25882, 3997), "query": (14218, 3985), "gallery": (12612, 3985)},
    "omniglot": {"train": (19280, 964), "test": (13180, 659)},
}


@pytest.mark.parametrize("name", PRINTED)
def test_official_counts_are_the_printed_ones(name):
    assert PRINTED[name] == importlib.import_module(f"nearkin.data.{name}").OFFICIAL


def test_class_100_of_cub_trains_and_class_101_tests(tmp_path):
    with pytest.warns(OtherCounts, match="train has 4 images of 2 classes instead of 5864 of 100"):
        splits = cub(layouts.cub(tmp_path, classes=(1, 100, 101, 200)))
    assert splits.train.names == ("001.Bird_1", "100.Bird_100")
    assert splits.test.names == ("101.Bird_101", "200.Bird_200")


@pytest.mark.parametrize("layout", [layouts.cars, layouts.cars_in_parts])
def test_class_98_of_cars_trains_and_class_99_tests(tmp_path, layout):
    with pytest.warns(OtherCounts, match="of 2 classes instead of 8054 of 98"):
        splits = cars(layout(tmp_path / "cars", classes=(1, 98, 99, 196)))
    assert splits.train.names == ("Acura 001", "Acura 098")
    assert splits.test.names == ("Ram C/V 099", "Ram C/V 196")


def test_every_reading_of_other_counts_warns(tmp_path):
    root = layouts.cub(tmp_path)
    for _ in range(2):
        with pytest.warns(OtherCounts, match="not the official cub"):
            cub(root)
