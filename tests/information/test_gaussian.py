"""Canonical correlations: exact values, the bias and its correction, the table."""

import math

import numpy as np
import pytest

from nearkin.information import tasks
from nearkin.information.gaussian import cca
from nearkin.information.samples import samples

# Uncorrected, 2,000 pairs, mean of three seeds: as measured with another implementation.
TABLE = [
    (tasks.pair(), 0.420),
    (tasks.additive(0.75), 0.189),
    (tasks.pair().mapped("half-cube", tasks.half_cube), 0.388),
    (tasks.asinh_student(1, 1), 0.001),
    (tasks.dense(5), 0.614),
    (tasks.dense(25), 1.433),
    (tasks.two_pair(3), 1.009),
    (tasks.two_pair(5), 1.039),
    (tasks.two_pair(25), 1.178),
    (tasks.two_pair(3).mapped("spiral", tasks.spiral(0, 1), tasks.spiral(1, 2)), 0.237),
    (tasks.asinh_student(5, 2), 0.014),
    (tasks.independent(5), 0.006),
]


@pytest.mark.parametrize(("task", "nats"), TABLE, ids=[task.name for task, _ in TABLE])
def test_the_table(task, nats):
    found = [cca(samples(*task.sample(2000, s)), corrected=False).nats for s in range(3)]
    assert np.mean(found) == pytest.approx(nats, abs=0.05)


@pytest.mark.parametrize("task", [tasks.dense(25), tasks.two_pair(25), tasks.gaussian(6.0)])
def test_corrected_it_is_right_for_normal_data(task):
    found = [cca(samples(*task.sample(1500, seed))) for seed in range(12)]
    error = np.std([each.nats for each in found], ddof=1) / math.sqrt(12)
    assert abs(np.mean([each.nats for each in found]) - task.nats) < 3 * error + 1e-3
    assert np.std([f.bits for f in found], ddof=1) / found[0].error == pytest.approx(1, abs=0.6)


def test_the_bias_is_about_dx_dy_over_two_n():
    s = samples(*tasks.independent(25).sample(2000))
    assert cca(s, corrected=False).nats - cca(s).nats == pytest.approx(0.156, abs=0.01)


def test_it_agrees_with_the_determinants():
    x, y = tasks.dense(4).sample(300)
    covariance = np.cov(np.hstack((x, y)).T)
    expected = tasks.covariance_information(covariance, 4)
    assert cca(samples(x, y), corrected=False).nats == pytest.approx(expected, abs=1e-10)


def test_columns_that_say_the_same_twice_change_nothing():
    x, y = tasks.dense(3).sample(300)
    twice = np.hstack((x, x[:, :1] + x[:, 1:2]))
    one, two = (cca(samples(side, y)).nats for side in (x, twice))
    assert one == pytest.approx(two, abs=1e-9)


def test_what_both_sides_hold_is_infinite_information():
    x, y = tasks.dense(3).sample(100)
    with pytest.raises(ValueError, match="a combination of columns of x equals one of y"):
        cca(samples(x, np.hstack((y, x[:, :1]))))


def test_too_few_rows_are_told():
    x, y = tasks.dense(5).sample(11)
    with pytest.raises(ValueError, match="5 and 5 columns need more than 11 rows, not 11"):
        cca(samples(x, y))
