"""The set digits: counts and columns."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from nearkin.data.digits import digits


def test_digits_are_split_by_class():
    splits = digits()
    assert {name: table.names for name, table in splits.tables().items()} == {
        "train": ("0", "1", "2", "3", "4"),
        "validation": ("5", "6"),
        "test": ("7", "8", "9"),
    }
    assert [len(table) for table in splits.tables().values()] == [901, 363, 533]
    assert splits.facts == {"image_size": 8, "channels": 1}


def test_digits_keep_the_pixels_of_the_source():
    test = digits().test
    row = int(test.ids[5].split("/")[1])
    image = load_digits().images[row]  # type: ignore[attr-defined]
    assert test.inputs.dtype == torch.uint8  # type: ignore[union-attr]
    np.testing.assert_array_equal(np.rint(test.inputs[5, 0].float().numpy() * 16 / 255), image)  # type: ignore
    assert int(test.inputs.max()) == 255  # type: ignore[union-attr]


def test_other_digits_can_be_chosen():
    splits = digits(validation=[0, 1], test=[2, 3])
    assert splits.train.names == ("4", "5", "6", "7", "8", "9")


@pytest.mark.parametrize("chosen", [[1], [], [8, 10], [3, 3], [0, 1, 2, 3, 4, 7, 8]])
def test_impossible_choices_of_digits_are_refused(chosen):
    with pytest.raises(ValueError, match="at least two of the digits"):
        digits(test=chosen)


def test_a_digit_in_two_splits_is_refused():
    with pytest.raises(ValueError, match="stands in validation and in test"):
        digits(validation=[5, 6], test=[6, 7])
