"""Entropies by distances: values by hand, limits, what makes them infinite."""

import math

import numpy as np
import pytest
import torch

from nearkin.information.entropy import (
    contraction,
    kozachenko_leonenko,
    log_ball,
    log_distances,
    mean_neighbors,
)


def gaussian(n, d, seed=0):
    return np.random.default_rng(seed).standard_normal((n, d))


def test_kozachenko_leonenko_of_three_rows_by_hand():
    assert kozachenko_leonenko(np.array([0.0, 1, 3]), k=1) == pytest.approx(2.424196240746594)


@pytest.mark.parametrize(("d", "nats"), [(1, 1.42), (5, 7.03), (20, 29.4)])
def test_kozachenko_leonenko_of_normal_rows(d, nats):
    assert kozachenko_leonenko(gaussian(2000, d)) == pytest.approx(nats, abs=0.1)


def test_two_rows_at_distance_e():
    # The bare sum is 1, and ψ(2) - ψ(1) is 1 too.
    assert mean_neighbors(np.array([0.0, math.e])) == pytest.approx(1 + log_ball(1) + 1)


@pytest.mark.parametrize(("d", "bias"), [(1, -0.0144), (2, 0.116), (5, 0.790), (10, 2.21)])
def test_mean_neighbors_has_its_known_bias(d, bias):
    limit = d / 2 * math.log(2 * math.pi * math.e) + bias
    exact = d * math.log(2) + d / 2 * float(torch.digamma(torch.tensor(d / 2.0).double()))
    assert exact + log_ball(d) + 1 == pytest.approx(limit, abs=6e-3)
    assert mean_neighbors(gaussian(1400, d)) == pytest.approx(limit, abs=0.12)


@pytest.mark.parametrize("entropy", [kozachenko_leonenko, mean_neighbors])
def test_scaling_by_three_adds_d_log_three(entropy):
    z = gaussian(200, 4)
    assert entropy(3 * z) - entropy(z) == pytest.approx(4 * math.log(3), abs=1e-9)


def test_it_is_the_mean_over_all_k_of_kozachenko_leonenko():
    z = gaussian(25, 3)
    every = [kozachenko_leonenko(z, k=k) for k in range(1, 25)]
    assert mean_neighbors(z) == pytest.approx(np.mean(every), abs=1e-9)


@pytest.mark.parametrize("count", [2, 3, 50, 1000])
def test_its_last_term_is_one_for_every_number_of_rows(count):
    psi = torch.digamma(torch.arange(1, count + 1).double())
    assert float(psi[-1] - psi[:-1].mean()) == pytest.approx(1, abs=1e-9)
    z = gaussian(count, 2)
    bare = 2 * float(log_distances(torch.from_numpy(z)).mean()) + log_ball(2)
    assert mean_neighbors(z) - bare == pytest.approx(1, abs=1e-9)


def test_many_pairs_are_drawn():
    z = torch.from_numpy(gaussian(300, 3))
    every, some = log_distances(z), log_distances(z, seed=1, most=10_000)
    assert len(every) == 300 * 299 // 2
    assert len(some) == 10_000
    assert float(some.mean()) == pytest.approx(float(every.mean()), abs=0.03)


@pytest.mark.parametrize("entropy", [kozachenko_leonenko, mean_neighbors])
def test_copies_make_it_infinite_which_is_said(entropy):
    with pytest.raises(ValueError, match=r"coincide, so the entropy is -∞"):
        entropy(np.repeat(gaussian(3, 2), 5, 0))


@pytest.mark.parametrize(("k", "n"), [(0, 5), (5, 5)])
def test_a_wrong_k_is_told(k, n):
    with pytest.raises(ValueError, match="k must be from 1"):
        kozachenko_leonenko(gaussian(n, 1), k=k)


def test_contraction_is_the_difference_of_two_entropies():
    z, y = torch.from_numpy(gaussian(400, 3)), torch.arange(400) % 2
    z = z * (1 + y[:, None])
    each, classes = contraction(z, y)
    inside = sum(mean_neighbors(z[y == c].numpy()) / 2 for c in (0, 1))
    assert float(each.mean()) == pytest.approx(mean_neighbors(z.numpy()) - inside, abs=0.1)
    assert torch.equal(classes, y)


def test_partners_are_of_the_class_and_never_oneself():
    # Pairs of a class at distance 1, classes far apart.
    y = torch.arange(40) // 2
    z = torch.stack([100.0 * y, torch.arange(40) % 2], 1).double()
    each, _ = contraction(z, y)
    everyone = torch.cdist(z, z)[torch.arange(40) != torch.arange(40)[:, None]].log().mean()
    assert float(each.mean()) == pytest.approx(2 * float(everyone), rel=0.02)


def test_rows_that_coincide_are_left_out_of_it_and_told_of():
    z, y = torch.from_numpy(gaussian(60, 2)), torch.arange(60) % 3
    z[3] = z[0]
    with pytest.warns(UserWarning, match="pairs coincide; the generative view leaves them out"):
        each, _ = contraction(z, y)
    assert each.isfinite().all()
    with pytest.raises(ValueError, match="all rows of each class coincide"):
        contraction(y[:, None].double(), y)
