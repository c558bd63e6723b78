"""Resampling classes: intervals and paired differences."""

import numpy as np
import pytest

from nearkin.evaluation.intervals import difference, interval, resampled_means


def test_an_interval_has_the_width_that_classes_give():
    # 100 classes of 4 equal queries: the standard error is that of 100 values, not of 400.
    generator = np.random.default_rng(0)
    per_class = generator.standard_normal(100)
    values, classes = np.repeat(per_class, 4), np.repeat(np.arange(100), 4)
    low, high = interval(values, classes, seed=0)
    assert low < values.mean() < high
    assert (high - low) / 2 == pytest.approx(1.96 * per_class.std() / 10, rel=0.1)


def test_means_weigh_classes_by_their_queries():
    # Drawn twice the same or one of each: the means of (1, 1, 0), (1, 1) and (0).
    means = resampled_means(np.array([1.0, 1.0, 0.0]), np.array([7, 7, 3]), seed=0)
    assert len(means) == 1000
    assert set(np.round(means, 6)) == {0.0, round(2 / 3, 6), 1.0}


def test_intervals_do_not_depend_on_how_many_resamples_are_held(monkeypatch):
    values, classes = np.random.default_rng(0).random(60), np.arange(60) % 20
    whole = interval(values, classes, seed=3)
    monkeypatch.setattr("nearkin.evaluation.intervals._AT_ONCE", 100)
    assert interval(values, classes, seed=3) == whole


def test_one_class_has_no_interval():
    assert all(map(np.isnan, interval(np.array([0.0, 1.0]), np.array([5, 5]), seed=0)))


def test_equal_values_differ_by_nothing():
    values, classes = np.random.default_rng(0).random(60), np.arange(60) % 20
    found = difference(values, values, classes, seed=0)
    assert (found.value, found.low, found.high, found.p, found.classes) == (0, 0, 0, 1.0, 20)


def test_a_constant_gain_is_certain():
    values, classes = np.random.default_rng(0).random(60), np.arange(60) % 20
    found = difference(values + 0.1, values, classes, seed=0)
    assert (found.low, found.high) == pytest.approx((0.1, 0.1))
    assert found.p == pytest.approx(2 / 1001)


def test_p_is_near_uniform_without_a_difference():
    generator = np.random.default_rng(0)
    classes = np.arange(200) % 40
    found = [
        difference(generator.random(200), generator.random(200), classes, seed=i).p
        for i in range(150)
    ]
    assert np.mean(np.array(found) < 0.05) < 0.12
    assert np.mean(np.array(found) < 0.5) == pytest.approx(0.5, abs=0.15)
