"""Inputs: tensors and what is made when it is taken."""

import pytest
import torch

from nearkin.data.base import Table
from nearkin.inputs import Taken, take


class Squares(Taken):
    """Row i is i * i; with a key, plus the key."""

    def __init__(self, numbers):
        self.numbers = numbers
        self.shape, self.dtype = (len(numbers), 1), torch.int64

    def take(self, rows, keys=None):
        x = self.numbers[rows, None] ** 2
        return x if keys is None else x + keys[:, None]

    def select(self, rows):
        return Squares(self.numbers[rows])


def test_rows_of_a_tensor_are_taken_as_they_are():
    x = torch.arange(12.0).view(4, 3)
    rows = torch.tensor([2, 0, 2])
    assert torch.equal(take(x, rows), x[rows])
    assert torch.equal(take(x, rows, torch.tensor([7, 8, 9])), x[rows])


def test_rows_that_are_made_hear_of_their_keys():
    rows, keys = torch.tensor([3, 1]), torch.tensor([100, 200])
    assert take(Squares(torch.arange(5)), rows).tolist() == [[9], [1]]
    assert take(Squares(torch.arange(5)), rows, keys).tolist() == [[109], [201]]


def test_a_table_selects_rows_that_are_not_made_yet():
    label = torch.tensor([0, 0, 1, 1, 1])
    table = Table(Squares(torch.arange(5)), label, ("a", "b"), tuple("vwxyz"))
    chosen = table.select(label == 1)
    assert isinstance(chosen.inputs, Squares)
    assert len(chosen) == len(chosen.inputs) == 3
    assert take(chosen.inputs, torch.tensor([0, 2])).tolist() == [[4], [16]]
    assert chosen.ids == ("x", "y", "z")


def test_what_does_not_say_how_it_is_taken_is_named():
    class Empty(Taken):
        shape, dtype = (0,), torch.uint8

    with pytest.raises(TypeError, match="Empty says no take"):
        Empty().take(torch.arange(0))
    with pytest.raises(TypeError, match="Empty says no select"):
        Empty().select(torch.arange(0))
