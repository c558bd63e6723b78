"""Batch samplers by name in a loop of one's own: what they take, give and refuse."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import nearkin as nk


def labels(n=12, classes=4):
    return torch.arange(n) % classes


def test_a_sampler_feeds_a_data_loader():
    y = labels(60, 5)
    sampler = nk.sampler("balanced", y, classes=3, per_class=4, seed=0)
    loader = DataLoader(TensorDataset(torch.arange(60), y), batch_sampler=sampler)
    assert len(loader) == len(sampler) == 5
    for index, label in loader:
        assert torch.equal(y[index], label)
        assert label.unique(return_counts=True)[1].tolist() == [4, 4, 4]


def test_each_epoch_has_other_batches_and_set_epoch_brings_them_back():
    sampler = nk.sampler("uniform", labels(40), batch=8, seed=3)
    first, second = list(sampler), list(sampler)
    assert first != second
    sampler.set_epoch(0)
    assert list(sampler) == first
    again = nk.sampler("uniform", labels(40), batch=8, seed=3)
    again.set_epoch(1)
    assert list(again) == second
    assert list(nk.sampler("uniform", labels(40), batch=8, seed=4)) != first
    assert all(isinstance(row, int) for batch in first for row in batch)


def test_strings_make_the_batches_of_their_numbers():
    y = labels(40)
    texts = [["ant", "bee", "cat", "dog"][i] for i in y.tolist()]
    settings = {"classes": 2, "per_class": 3, "seed": 1}
    by_number = list(nk.sampler("balanced", y, **settings))
    for form in (list, np.array, lambda x: np.array(x, dtype=object)):
        assert list(nk.sampler("balanced", form(texts), **settings)) == by_number
    assert list(nk.sampler("balanced", y.numpy(), **settings)) == by_number
    assert list(nk.sampler("balanced", y + 2**62, **settings)) == by_number


def test_paired_reads_a_dict_of_columns():
    pair = [f"item {i}" for i in range(10)] * 2
    sampler = nk.sampler("paired", {"pair": pair, "view": [0] * 10 + [1] * 10}, pairs=4)
    for batch in sampler:
        assert sorted(batch)[4:] == [row + 10 for row in sorted(batch)[:4]]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: nk.sampler("balancd", labels()), "did you mean 'balanced'"),
        (lambda: nk.sampler("balanced", labels(), perclass=3), "did you mean 'per_class'"),
        (lambda: nk.sampler("balanced", labels(), classes=9), "the table has 4"),
        (lambda: nk.sampler("uniform", labels(), batch=1), "at least 2 rows, not 1"),
        (lambda: nk.sampler("uniform", labels(), seed=-1), "seed must be at least 0, not -1"),
        (lambda: nk.sampler("uniform", labels(), seed=0.5), "whole number, not 0.5"),
        (lambda: nk.sampler("uniform", []), "one entry a row"),
        (lambda: nk.sampler("uniform", None), "one entry a row, or a dict of columns, not None"),
        (lambda: nk.sampler("uniform", torch.zeros(5)), "never floats"),
        (lambda: nk.sampler("balanced", torch.ones(5, 3).bool(), classes=1), "use uniform"),
        (
            lambda: nk.sampler("paired", labels()),
            r"reads the column 'pair'.*\(\{'label': labels, 'pair': \.\.\.\}\)",
        ),
        (lambda: nk.sampler("paired", {"pairs": [0, 0, 1, 1]}), "did you mean 'pairs'"),
        (lambda: nk.sampler("paired", {"pair": [0, 0, 1], "view": [0, 1]}), "pair 3, view 2"),
        (lambda: nk.sampler("uniform", labels()).set_epoch(-1), "epoch must be at least 0"),
    ],
)
def test_wrong_samplers_are_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()
