"""The set halves: counts, disjoint pictures, and halves that make the picture again."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from nearkin.data.halves import halves


def test_every_picture_stands_in_one_split_with_both_halves():
    splits = halves()
    counts = {name: len(table) for name, table in splits.tables().items()}
    assert counts == {"train": 2 * 1000, "validation": 2 * 300, "test": 2 * 497}
    pairs = torch.cat([table["pair"] for table in splits.tables().values()])
    assert torch.equal(pairs.bincount(), torch.full((1797,), 2))


def test_two_halves_make_the_picture():
    pictures = np.rint(load_digits().images * (255 / 16)).astype(np.uint8)
    for table in halves().tables().values():
        for row in (0, 2, len(table) - 2):
            left, right = table.inputs[row], table.inputs[row + 1]
            whole = torch.cat([left[0, :, ::2], right[0, :, ::2]], 1).numpy()
            assert table["view"][row] == 0
            assert table["view"][row + 1] == 1
            assert np.array_equal(whole, pictures[int(table["pair"][row])])


def test_a_class_is_a_picture_and_right_halves_are_searched_by_left_ones():
    splits = halves()
    for table in (splits.validation, splits.test):
        assert table is not None
        assert torch.equal(table["is_query"], table["view"] == 0)
        assert torch.equal(table["is_gallery"], table["view"] == 1)
        assert torch.equal(table.label.bincount(), torch.full((len(table) // 2,), 2))
        assert torch.equal(table.label[0::2], table.label[1::2])


def test_the_split_hangs_on_the_seed_alone():
    assert torch.equal(halves(seed=1).test["pair"], halves(seed=1).test["pair"])
    assert not torch.equal(halves(seed=1).test["pair"], halves(seed=2).test["pair"])


def test_too_few_pictures_left_to_train_is_an_error():
    with pytest.raises(ValueError, match=r"1797 pictures.* leave 0 to train"):
        halves(validation=797, test=1000)
