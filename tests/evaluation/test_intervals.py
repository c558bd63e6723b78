"""Resampling classes: intervals and paired differences."""

import itertools

import numpy as np
import pytest

from nearkin.evaluation.intervals import difference, interval, resampled_means, units_of


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
    assert found.p == 1e-4
    by_resampling = difference(values + 0.1, values, classes, seed=0, test="bootstrap")
    assert by_resampling.p == pytest.approx(2 / 1001)
    assert (by_resampling.low, by_resampling.high) == (found.low, found.high)


@pytest.mark.parametrize("test", ["sign_flip", "bootstrap"])
@pytest.mark.parametrize("over", ["classes", "queries"])
def test_p_is_near_uniform_without_a_difference(over, test):
    generator = np.random.default_rng(0)
    classes = np.arange(120) % 40
    found = [
        difference(generator.random(120), generator.random(120), classes, i, over, test).p
        for i in range(150)
    ]
    assert np.mean(np.array(found) < 0.05) < 0.1
    assert np.mean(np.array(found) < 0.5) == pytest.approx(0.5, abs=0.12)


def test_few_classes_do_not_make_the_permutation_test_bold():
    # With six classes the bootstrap finds a difference where there is none; random signs do not.
    generator = np.random.default_rng(1)
    classes = np.arange(60) % 6
    pairs = [(generator.standard_normal(6)[classes], np.zeros(60)) for _ in range(300)]
    share = {
        test: np.mean(
            [difference(*pair, classes, i, test=test).p < 0.05 for i, pair in enumerate(pairs)]
        )
        for test in ("sign_flip", "bootstrap")
    }
    assert share["sign_flip"] <= 0.08 < share["bootstrap"]


def test_few_classes_have_every_choice_of_signs_tried():
    generator = np.random.default_rng(3)
    sums = generator.standard_normal(7)
    choices = np.array(list(itertools.product([-1, 1], repeat=7))) @ sums
    expected = (np.abs(choices) >= abs(sums.sum()) - 1e-12).mean()
    assert difference(sums, np.zeros(7), np.arange(7), seed=0).p == expected


def test_drawn_signs_agree_with_all_of_them(monkeypatch):
    generator = np.random.default_rng(4)
    gain = generator.standard_normal(12) + 0.3
    exact = difference(gain, np.zeros(12), np.arange(12), seed=0).p
    monkeypatch.setattr("nearkin.evaluation.intervals._ALL_SIGNS", 0)
    drawn = difference(gain, np.zeros(12), np.arange(12), seed=0).p
    assert drawn == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / 9999))
    monkeypatch.setattr("nearkin.evaluation.intervals._AT_ONCE", 64)
    assert difference(gain, np.zeros(12), np.arange(12), seed=0).p == pytest.approx(
        exact, abs=4 * np.sqrt(exact * (1 - exact) / 9999)
    )


def test_signs_over_queries_are_the_binomial_test_of_mcnemar():
    from scipy.stats import binomtest

    # 30 queries changed sides, 21 of them for the better; the others are alike.
    first, second = np.zeros(200), np.zeros(200)
    first[:21], second[21:30] = 1, 1
    found = difference(first, second, np.arange(200) % 10, seed=0, over="queries")
    expected = binomtest(21, 30).pvalue
    assert found.p == pytest.approx(expected, abs=4 * np.sqrt(expected / 9999))
    assert (found.queries, found.classes, found.over, found.test) == (
        200,
        10,
        "queries",
        "sign_flip",
    )
    assert "200 queries)" in repr(found)


def test_queries_are_resampled_by_themselves():
    # Queries of a class are equal: by themselves they count 4 times, and give half the width.
    per_class = np.random.default_rng(0).standard_normal(100)
    values, classes = np.repeat(per_class, 4), np.repeat(np.arange(100), 4)
    (a, b), (c, d) = (
        interval(values, units_of(classes, over), 0) for over in ("classes", "queries")
    )
    assert (d - c) / (b - a) == pytest.approx(0.5, rel=0.1)


def test_what_cannot_be_tested_is_told():
    values = np.arange(4.0)
    with pytest.raises(ValueError, match="at least two, but there is one; compare over queries"):
        difference(values, values, np.zeros(4, int), seed=0)
    difference(values, values, np.zeros(4, int), seed=0, over="queries")
    with pytest.raises(ValueError, match="over cannot be 'class'; did you mean 'classes'"):
        difference(values, values, np.arange(4), seed=0, over="class")
    with pytest.raises(ValueError, match="test cannot be 't'; expected one of sign_flip"):
        difference(values, values, np.arange(4), seed=0, test="t")
