"""The quick bound: below the truth and near it, nothing for random labels, honest when rows are
few."""

import numpy as np
import pytest
import torch
from scipy.optimize import least_squares

from nearkin.information.class_means import (
    _Means,
    class_mean_information,
    class_mean_log_likelihoods,
)
from nearkin.information.given import Rows
from nearkin.information.labels import label_information


def mixture(apart, rows=1000, classes=8, dim=6, seed=0):
    """Gaussian classes of unit variance, and the information that a large sample tells exactly."""
    generator = np.random.default_rng(seed)
    centers = apart * generator.normal(size=(classes, dim))

    def log_posterior(count):
        y = generator.integers(classes, size=count)
        z = centers[y] + generator.normal(size=(count, dim))
        logits = -((z[:, None] - centers) ** 2).sum(2) / 2
        log_q = logits - np.logaddexp.reduce(logits, 1, keepdims=True)
        return z, y, log_q[np.arange(count), y]

    truth = (np.log(classes) + log_posterior(100_000)[2].mean()) / np.log(2)
    z, y, _ = log_posterior(rows)
    return z, y, truth


@pytest.mark.parametrize("apart", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("seed", range(3))
def test_it_is_near_the_truth_of_gaussian_classes(apart, seed):
    z, y, truth = mixture(apart, seed=seed)
    found = class_mean_information(z, y)
    error = (found.bits - found.low) / 1.96
    assert found.bits < truth + 3 * error
    assert found.bits > truth - 3 * error - 0.1
    assert found.kind == "lower"


def test_random_labels_tell_nothing_and_few_rows_do_not_frighten():
    generator = np.random.default_rng(0)
    for rows, classes in ((600, 10), (60, 10), (8, 2), (400, 2)):
        z = generator.normal(size=(rows, 5))
        found = class_mean_information(z, np.arange(rows) % classes)
        assert -0.5 < found.bits < 0.1
        assert found.low <= 0 <= found.high or found.bits <= 0


def test_classes_that_are_points_reach_all_but_the_price_of_few_rows():
    y = np.repeat(np.arange(4), 100)
    found = class_mean_information(np.eye(4)[y], y)
    assert found.ceiling == pytest.approx(2)
    assert 1.95 < found.bits <= 2


def test_the_careful_bound_is_of_the_same_size():
    z, y, _ = mixture(1.0, rows=2000)
    quick, careful = class_mean_information(z, y), label_information(z, y)
    assert quick.bits == pytest.approx(careful.bits, abs=0.15)
    assert quick.ceiling == careful.ceiling


def test_scale_shift_and_rotation_change_nothing():
    z, y, _ = mixture(1.0, rows=300)
    rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(6, 6)))[0]
    moved = class_mean_information(1e-3 * z @ rotation + 7, y)
    assert moved.bits == pytest.approx(class_mean_information(z, y).bits, abs=1e-4)


def distances_by_a_loop(z, label):
    """(N, C) squared distances to the means without the row itself."""
    found = np.empty((len(z), label.max() + 1))
    for row in range(len(z)):
        for k in range(found.shape[1]):
            others = [i for i in range(len(z)) if label[i] == k and i != row]
            found[row, k] = ((z[row] - z[others].mean(0)) ** 2).sum()
    return found


def test_distances_are_to_the_means_without_the_row_itself():
    generator = np.random.default_rng(0)
    z, label = generator.normal(size=(12, 3)), np.arange(12) % 3
    used = np.arange(3, 12)
    means = _Means(Rows(z), torch.from_numpy(used), torch.from_numpy(label[used]))
    found = means.squared(torch.arange(9)) * means.scale**2
    np.testing.assert_allclose(found, distances_by_a_loop(z[used], label[used]), rtol=1e-10)


def test_a_row_is_scored_by_numbers_of_the_other_half():
    generator = np.random.default_rng(0)
    y = np.arange(40) % 2
    z = 3.0 * np.eye(2)[y] + 2 * generator.normal(size=(40, 2))
    log_q = class_mean_log_likelihoods(Rows(z), np.arange(40), y, seed=0)
    distance = distances_by_a_loop(z, y)
    halves = torch.randperm(40, generator=torch.Generator().manual_seed(0)).tensor_split(2)
    found = []
    for half in halves:
        rows = half.numpy()
        apart = (distance[rows, 1 - y[rows]] - distance[rows, y[rows]]) / distance.mean()

        def q(numbers, apart=apart):
            share = 1 / (1 + np.exp(-numbers[1]))
            return np.log((1 - share) / (1 + np.exp(-np.exp(numbers[0]) * apart)) + share / 2)

        # Two numbers say what twenty rows are given.
        fit = least_squares(lambda n, q=q, rows=rows: q(n) - log_q[rows], [0.0, -2.0])
        assert np.abs(fit.fun).max() < 1e-6
        found.append(fit.x)
    assert not np.allclose(*found, rtol=1e-3)


@pytest.mark.parametrize(
    ("z", "y", "said"),
    [
        (np.ones((4, 2)), [0, 0, 1, 2], "at least two classes of two rows"),
        (np.full((4, 2), np.nan), [0, 0, 1, 1], "NaN"),
        (np.ones((4, 2)), np.eye(4, dtype=bool), "multi-hot"),
    ],
)
def test_wrong_input_is_told(z, y, said):
    with pytest.raises(ValueError, match=said):
        class_mean_information(z, y)


def test_rows_that_are_all_alike_tell_nothing():
    found = class_mean_information(np.ones((40, 3)), np.arange(40) % 4)
    assert found.bits == pytest.approx(0, abs=0.02)
