"""Tasks: their exact values, their samples, that maps change no information."""

import math

import numpy as np
import pytest
from scipy import integrate, stats

from nearkin.information import tasks

EXACT = {
    "normal 1 x 1": 0.4133,
    "normal CDF 1 x 1": 0.4133,
    "bimodal 1 x 1": 0.4133,
    "wiggly 1 x 1": 0.4133,
    "half-cube 1 x 1": 0.4133,
    "swiss roll 2 x 1": 0.4133,
    "additive 0.1": 1.7094,
    "additive 0.75": 0.3333,
    "dense 2 x 2": 0.2939,
    "dense 3 x 3": 0.4133,
    "dense 5 x 5": 0.5928,
    "dense 25 x 25": 1.2922,
    "dense 50 x 50": 1.6243,
    "2-pair 2 x 2": 1.0217,
    "2-pair 25 x 25": 1.0217,
    "2-pair spiral 3 x 3": 1.0217,
    "2-pair CDF 5 x 5": 1.0217,
    "2-pair half-cube 5 x 5": 1.0217,
    "student 1 x 1, 1 df": 0.2242,
    "student 2 x 2, 1 df": 0.4319,
    "student 2 x 2, 2 df": 0.1931,
    "student 3 x 3, 2 df": 0.2909,
    "student 3 x 3, 3 df": 0.1787,
    "student 5 x 5, 2 df": 0.4482,
    "student 5 x 5, 3 df": 0.2985,
    "asinh student 5 x 5, 2 df": 0.4482,
}
BENCHMARK = {task.name: task for task in tasks.benchmark()}


@pytest.mark.parametrize("name", EXACT)
def test_exact_values(name):
    assert BENCHMARK[name].nats == pytest.approx(EXACT[name], abs=5e-5)


@pytest.mark.parametrize("task", BENCHMARK.values(), ids=list(BENCHMARK))
def test_samples_are_paired_numbers_by_a_seed(task):
    x, y = task.sample(50, 1)
    assert x.ndim == y.ndim == 2
    assert len(x) == len(y) == 50
    assert np.isfinite(x).all()
    assert np.isfinite(y).all()
    again, other = task.sample(50, 1), task.sample(50, 2)
    assert (again[0] == x).all()
    assert (again[1] == y).all()
    assert (other[0] != x).any()


@pytest.mark.parametrize("way", [tasks.half_cube, tasks.wiggly, tasks.bimodal, tasks.normal_cdf])
def test_maps_of_one_number_rise(way):
    assert (np.diff(way(np.linspace(-4, 4, 4001))) > 0).all()


def test_a_spiral_can_be_turned_back():
    x = np.random.default_rng(0).standard_normal((100, 3))
    there, back = tasks.spiral(0, 1), tasks.spiral(0, 1, -1 / 3)
    np.testing.assert_allclose(back(there(x)), x, atol=1e-12)


def test_a_roll_keeps_its_order():
    x = np.linspace(-2, 2, 50)[:, None]
    turn = 21 * np.hypot(*tasks.swiss_roll(x).T)
    np.testing.assert_allclose(turn, 1.5 * np.pi * (1 + 2 * stats.norm.cdf(x[:, 0])))


@pytest.mark.parametrize("nats", [2.0, 6.0])
def test_the_best_critic_is_the_log_of_the_ratio(nats):
    x, y = tasks.gaussian(nats, 3).sample(4, 0)
    rho = math.sqrt(-math.expm1(-2 * nats / 3))
    joint = stats.multivariate_normal([0, 0], [[1, rho], [rho, 1]])
    seen = tasks.log_ratio(nats, 3)(x, y)
    for i, j in ((0, 0), (1, 3)):
        each = [
            joint.logpdf([x[i, d], y[j, d]]) - stats.norm.logpdf([x[i, d], y[j, d]]).sum()
            for d in range(3)
        ]
        assert seen[i, j] == pytest.approx(sum(each))


def test_two_classes_are_the_known_integral():
    for apart in (0.5, 2.0, 4.0):
        half = apart / 2
        inside = integrate.quad(
            lambda z, m=half: stats.norm.pdf(z, m) * np.logaddexp(0, -2 * m * z), -12, 14
        )[0]
        assert tasks.classes(apart).nats == pytest.approx(math.log(2) - inside, abs=1e-7)


def test_classes_far_apart_tell_all_and_dimensions_nothing_more():
    assert tasks.classes(30.0, 4).nats == pytest.approx(math.log(4), abs=1e-6)
    assert tasks.classes(2.0, 3, 6).nats == tasks.classes(2.0, 3).nats
    z, y = tasks.classes(8.0, 3, 6).sample(3000)
    assert z.shape == (3000, 6)
    means = np.stack([z[y == c].mean(0) for c in range(3)])
    np.testing.assert_allclose(np.linalg.norm(np.diff(means, axis=0), axis=1), 8, rtol=0.03)


def test_overlapping_uniforms_are_the_known_value():
    assert tasks.overlapping(5).nats == pytest.approx(math.log(5) - 4 * math.log(2) / 5)


def test_processing_loses_and_two_copies_have_twice():
    base = tasks.gaussian(1.0, 5)
    left = tasks.processed(1.0, 5)
    rho2 = -math.expm1(-2 / 5)
    assert left.nats == pytest.approx(-2.5 * math.log(1 - rho2 / 2))
    assert left.nats < base.nats
    assert base.doubled().nats == 2
    assert base.doubled().sample(20)[0].shape == (20, 10)
    covariance = np.corrcoef(np.hstack(left.sample(40_000)).T)
    assert tasks.covariance_information(covariance, 5) == pytest.approx(left.nats, abs=0.02)
