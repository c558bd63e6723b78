"""Paired samples as they are given: what is checked, left out and standardized."""

import numpy as np
import pytest
import torch

from nearkin.information.samples import samples


def drawn(n=50, d=3, seed=0):
    return np.random.default_rng(seed).normal(3.0, 5.0, (n, d))


@pytest.mark.parametrize("make", [np.asarray, torch.as_tensor, lambda v: np.asarray(v, np.float32)])
def test_columns_are_standardized(make):
    s = samples(make(drawn()), make(drawn(d=2, seed=1)))
    for side in (s.x, s.y):
        torch.testing.assert_close(
            side.mean(0), torch.zeros(side.shape[1]).double(), atol=1e-6, rtol=0
        )
        torch.testing.assert_close(side.var(0, correction=0), torch.ones(side.shape[1]).double())
    expected = torch.as_tensor(drawn(d=2, seed=1).std(0))
    torch.testing.assert_close(s.scales, expected, rtol=1e-5, atol=0)


def test_one_column_may_be_flat_and_huge_numbers_stay_finite():
    s = samples(1e300 * drawn(d=1)[:, 0], drawn(d=1)[:, 0].tolist())
    assert s.x.shape == s.y.shape == (50, 1)
    torch.testing.assert_close(s.x, s.y)


@pytest.mark.parametrize("y", [np.arange(50) % 3, ["a", "b"] * 25, [True, False] * 25])
def test_classes_stay_classes(y):
    s = samples(drawn(), y)
    assert s.y is None
    assert s.classes.dtype == torch.int64
    with pytest.raises(TypeError, match="y holds classes, but ksg is between numbers"):
        s.numbers("ksg")


def test_numbers_are_no_classes():
    with pytest.raises(TypeError, match="floating-point numbers, but mixed needs classes"):
        samples(drawn(), drawn()[:, 0]).labelled("mixed")


def test_constant_columns_are_left_out_and_told_of():
    x = drawn()
    x[:, 1] = 7.0
    with pytest.warns(UserWarning, match=r"x has 1 constant columns \(first: column 1\)"):
        s = samples(x, drawn())
    assert s.x.shape == (50, 2)


@pytest.mark.parametrize("y", [drawn(d=2, seed=1), np.arange(50) % 3], ids=["numbers", "classes"])
def test_copies_of_pairs_are_told_of(y):
    x, again = drawn(), [0, 0, 7]
    with pytest.warns(UserWarning, match="3 of 53 pairs are copies of others"):
        samples(np.r_[x, x[again]], np.r_[y, y[again]])
    # Rows that occur twice with another partner are no copies.
    samples(np.r_[x, x[:1]], np.r_[y, y[1:2]])


@pytest.mark.parametrize(
    ("x", "y", "error", "said"),
    [
        (drawn(), drawn(49), ValueError, "x has 50 rows but y has 49; they are paired"),
        (drawn(), np.arange(49), ValueError, "x has 50 rows but y has 49"),
        (np.full((5, 2), 1.5), drawn(5), ValueError, "x is constant"),
        (np.array([[1.0], [np.nan]]), drawn(2), ValueError, "x has NaN .* first in row 1"),
        (drawn(2), np.array([0.0, np.inf]), ValueError, "y has NaN or infinite .* first in row 1"),
        (np.arange(50), drawn(), TypeError, "x must hold floating-point numbers"),
        (drawn(4), np.eye(4, dtype=bool), ValueError, "y must be one class a row"),
        (np.zeros((0, 2)), np.zeros((0, 2)), ValueError, "x is empty"),
    ],
)
def test_wrong_input_is_told(x, y, error, said):
    with pytest.raises(error, match=said):
        samples(x, y)
