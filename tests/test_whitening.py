"""Scatter, standardizing and whitening, against slow loops and values by hand."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nearkin import whitening as module
from nearkin.inputs import Taken
from nearkin.whitening import (
    DEFAULT,
    SHRINKAGES,
    choose_shrinkage,
    scatter,
    standardizing,
    whitening,
)


def rows_of(sizes, dim=3, seed=0, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    label = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    centers = 3 * torch.randn(len(sizes), dim, generator=generator)
    mixed = torch.randn(dim, dim, generator=generator)
    x = centers[label] + torch.randn(len(label), dim, generator=generator) @ mixed
    return x + shift, label


def by_hand(x, label):
    mean = x.double().mean(0)
    within = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64)
    between = within.clone()
    for code in label.unique():
        own = x[label == code].double()
        for row in own:
            within += torch.outer(row - own.mean(0), row - own.mean(0))
        between += len(own) * torch.outer(own.mean(0) - mean, own.mean(0) - mean)
    return mean, within, between


class Lazy(Taken):
    """Rows that are made when they are taken."""

    def __init__(self, x):
        self.x, self.shape, self.dtype = x, tuple(x.shape), x.dtype

    def take(self, rows, keys=None):
        return self.x[rows]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=6), st.integers(0, 9))
def test_a_scatter_is_the_sum_over_rows(sizes, seed):
    x, label = rows_of(sizes, seed=seed, shift=100.0)
    found = scatter(x, label)
    assert (found.rows, found.classes) == (sum(sizes), len(sizes))
    for value, wanted in zip(
        (found.mean, found.within, found.between), by_hand(x, label), strict=True
    ):
        assert torch.allclose(value, wanted, atol=1e-9)


@pytest.mark.parametrize("make", [torch.clone, Lazy, lambda x: x.double()])
def test_blocks_order_and_the_kind_of_rows_change_nothing(make, monkeypatch):
    x, label = rows_of([5, 3, 9])
    whole = scatter(x, label)
    monkeypatch.setattr(module, "BLOCK", 4)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))
    again = scatter(make(x[order]), 7 * label[order])
    for name in ("mean", "within", "between"):
        assert torch.allclose(getattr(again, name), getattr(whole, name), atol=1e-12)
    assert torch.equal(standardizing(whole)(make(x)), standardizing(whole)(x))


def test_scatters_of_other_classes_add_up():
    x, label = rows_of([5, 3, 9, 2], shift=4.0)
    first = label < 2
    both = scatter(x[first], label[first]) + scatter(x[~first], label[~first])
    whole = scatter(x, label)
    assert (both.rows, both.classes) == (whole.rows, whole.classes)
    for name in ("mean", "within", "between"):
        assert torch.allclose(getattr(both, name), getattr(whole, name), atol=1e-10)


def test_whitening_by_hand():
    # Two classes that vary by (4, 0) and (0, 1) about their means: Sw = diag(8, 2) / 2.
    x = torch.tensor([[8.0, 0], [4, 0], [-5, 2], [-5, 0]])
    found = scatter(x, torch.tensor([0, 0, 1, 1]))
    assert torch.allclose(found.covariance, torch.diag(torch.tensor([4.0, 1.0]).double()))
    wanted = torch.diag(torch.tensor([0.5, 1.0], dtype=torch.float64))
    assert torch.allclose(whitening(found, 0.0).matrix, wanted)
    # Halfway to 2.5 I: diag(3.25, 1.75).
    half = torch.diag(torch.tensor([3.25, 1.75]).double().rsqrt())
    assert torch.allclose(whitening(found, 0.5).matrix, half)
    z = whitening(found, 0.0)(x)
    assert z.dtype == torch.float32
    assert torch.allclose(z[0], torch.tensor([0.5 * 7.5, -0.5]))


def test_whitened_rows_vary_alike_within_their_classes():
    x, label = rows_of([9, 7, 12, 8], dim=4)
    z = whitening(scatter(x, label), 0.0)(x)
    assert torch.allclose(scatter(z, label).covariance, torch.eye(4).double(), atol=1e-5)


def test_a_shift_of_all_features_changes_nothing_and_a_rotation_no_cosine():
    x, label = rows_of([9, 7, 12], dim=4)
    z = whitening(scatter(x, label), 0.2)(x)
    moved = x + torch.tensor([3.0, -1, 0, 9])
    assert torch.allclose(whitening(scatter(moved, label), 0.2)(moved), z, atol=1e-4)
    turn = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(3)))[0]
    turned = whitening(scatter(x @ turn, label), 0.2)(x @ turn)
    assert torch.allclose(turned @ turned.T, z @ z.T, atol=1e-3)


def test_standardized_rows_have_mean_zero_and_deviation_one():
    x, label = rows_of([9, 7], dim=3)
    x[:, 1] = 1e6 + 0.3  # constant, and not exact in sums
    z = standardizing(scatter(x, label))(x)
    assert torch.allclose(z.mean(0), torch.zeros(3), atol=1e-6)
    assert torch.allclose(z.std(0, correction=0), torch.tensor([1.0, 0, 1]), atol=1e-6)


@pytest.mark.parametrize("sizes", [[1, 1, 1, 1], [1]])
def test_without_scatter_within_classes_whitening_only_centers(sizes):
    x, label = rows_of(sizes)
    for shrinkage in (0.0, 0.3):
        z = whitening(scatter(x, label), shrinkage)(x)
        assert torch.allclose(z, x - x.mean(0), atol=1e-5)


def test_rows_that_repeat_in_their_class_are_no_scatter():
    x, label = rows_of([1, 1, 1], shift=1e4)
    x, label = x.repeat(3, 1), label.repeat(3)
    assert torch.equal(whitening(scatter(x, label)).matrix, torch.eye(3).double())


def test_fewer_rows_than_dimensions_need_a_shrinkage():
    x, label = rows_of([3, 3], dim=20)
    found = scatter(x, label)
    for shrinkage in SHRINKAGES:
        assert whitening(found, shrinkage)(x).isfinite().all()
    with pytest.raises(ValueError, match=r"no inverse .* take a shrinkage above 0"):
        whitening(found, 0.0)


def test_a_constant_dimension_does_not_blow_up():
    x, label = rows_of([30, 30], dim=3)
    x[:, 2] = 5
    matrix = whitening(scatter(x, label), 0.01).matrix
    assert float(matrix.abs().max()) < 20
    with pytest.raises(ValueError, match="no inverse"):
        whitening(scatter(x, label), 0.0)


def test_fewer_dimensions_are_those_of_greatest_variance():
    x, label = rows_of([20, 20, 20], dim=5)
    found = scatter(x, label)
    whole, part = whitening(found, 0.1)(x), whitening(found, 0.1, 2)(x)
    assert part.shape == (60, 2)
    held = (whole - whole.mean(0)).square().sum()
    values = torch.linalg.svdvals(whole - whole.mean(0)).square()
    assert part.square().sum() == pytest.approx(float(values[:2].sum()), rel=1e-4)
    assert float(part.square().sum()) < float(held)
    variance = part.var(0)
    assert variance[0] >= variance[1]
    assert torch.equal(whitening(found, 0.1, 5).matrix, whitening(found, 0.1).matrix)


@pytest.mark.parametrize(
    ("settings_", "says"),
    [
        ({"shrinkage": -0.1}, r"shrinkage must be in 0\.\.1, not -0\.1"),
        ({"shrinkage": math.nan}, "shrinkage must be in"),
        ({"dim": 0}, "keeps 1 to 3 dimensions, not 0"),
        ({"dim": 4}, "keeps 1 to 3 dimensions, not 4"),
    ],
)
def test_wrong_settings_are_told(settings_, says):
    with pytest.raises(ValueError, match=says):
        whitening(scatter(*rows_of([4, 4])), **settings_)


@pytest.mark.parametrize(
    ("x", "says"),
    [
        (torch.ones(4, 2, 2), r"rows of 1 to 8192 numbers, not inputs of shape \(2, 2\)"),
        (torch.ones(4, 8193), r"not inputs of shape \(8193,\)"),
        (torch.tensor([[1.0], [math.nan], [0], [2]]), "NaN or infinite"),
        (torch.tensor([[1.0], [math.inf], [0], [2]]), "NaN or infinite"),
    ],
)
def test_rows_without_a_covariance_are_told(x, says):
    with pytest.raises(ValueError, match=says):
        scatter(x, torch.tensor([0, 0, 1, 1]))


def test_the_shrinkage_with_the_best_score_is_chosen():
    x, label = rows_of([9, 9, 9])
    found = scatter(x, label)
    z = {s: whitening(found, s)(x) for s in SHRINKAGES}

    def score(rows):
        """0.4 and 0.2 alike."""
        best = torch.equal(rows, z[0.4]) or torch.equal(rows, z[0.2])
        return (float(best), 0.5)

    assert choose_shrinkage(found, x, score) == (0.4, "validation")
    assert choose_shrinkage(found, x, lambda rows: (0.0, 0.0)) == (0.9, "validation")


def test_without_something_to_score_the_shrinkage_is_the_default():
    x, label = rows_of([9, 9])
    found = scatter(x, label)

    def nothing(rows):
        """As the evaluator does where no row has a relevant one."""
        raise ValueError("none of the queries has a relevant item")

    assert choose_shrinkage(found, None, None) == (DEFAULT, "default")
    assert choose_shrinkage(found, x, nothing) == (DEFAULT, "default")
