"""Bounds read off scores: values by hand, the best critic's table, standard errors."""

import math

import numpy as np
import pytest
import torch

from nearkin.information import tasks
from nearkin.information.conditional import read_club, read_l1out
from nearkin.information.readout import (
    capped,
    paired,
    read_exponential,
    read_infonce,
    read_interpolated,
    read_log_mean,
    scaled,
)
from nearkin.losses import bounds
from nearkin.losses.pairwise import infonce

TWO = torch.tensor([[[2.0, 0.0], [1.0, 3.0]]])
NATS = (2, 4, 6, 8, 10)
BATCHES, K = 400, 64


@pytest.mark.parametrize(
    ("read", "nats"),
    [
        (read_infonce, 0.5662191695169726),
        (lambda s: read_infonce(s, "columns"), 0.5122226610139627),
        (lambda s: read_infonce(s, "both"), (0.5662191695169726 + 0.5122226610139627) / 2),
        (read_log_mean, 1.8798854930417224),
        (lambda s: read_exponential(s, 1.0), 1.8160602794142788),
        (lambda s: read_log_mean(s, 0.5), 2.2190701963798385),
    ],
)
def test_values_of_two_pairs(read, nats):
    assert read(TWO).value == pytest.approx(nats, abs=1e-12)


def test_they_are_minus_the_losses():
    s = torch.randn(1, 9, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    c = paired(s[0])
    for seen, expected in (
        (read_infonce(s), math.log(9) - infonce(c, temperature=1.0).total),
        (read_log_mean(s), -bounds.donsker_varadhan(c).total),
        (read_log_mean(s, 0.7), -bounds.smile(c, clip=0.7).total),
        (read_exponential(s, 1.0), -bounds.nwj(c).total),
        (read_exponential(s, 0.0), 1 - bounds.js_kl(c).total),
        (read_exponential(s, 0.4), 1 - bounds.tuba(c, log_baseline=0.4).total),
        *(
            (read_interpolated(s, alpha), 1 - bounds.interpolated(c, alpha=alpha).total)
            for alpha in (0.0, 0.01, 0.5, 1.0)
        ),
    ):
        assert seen.value == pytest.approx(float(expected), abs=1e-10)


@pytest.fixture(scope="module")
def best():
    """Of each level of information the scores of the best critic, log r, on 400 batches of 64."""
    found = {}
    for nats in NATS:
        x, y = tasks.gaussian(nats).sample(BATCHES * K, seed=nats)
        score = tasks.log_ratio(nats)
        parts = (np.split(side, BATCHES) for side in (x, y))
        found[nats] = torch.from_numpy(np.stack([score(a, b) for a, b in zip(*parts, strict=True)]))
    return found


def each_batch(read, scores):
    return np.array([read(batch[None]).value for batch in scores])


# Means of the best critic over 400 batches of 64, as measured with another implementation.
BEST = {
    "infonce": (1.82, 3.07, 3.74, 4.02, 4.12),
    "donsker_varadhan": (2.01, 4.06, 6.18, 8.67, 11.20),
    "nwj": (2.01, 4.01, 5.96, 8.20, 10.18),
    "smile 1": (2.37, 4.67, 6.83, 8.92, 10.96),
    "smile 5": (2.03, 4.28, 6.71, 9.33, 12.02),
}
READS = {
    "infonce": read_infonce,
    "donsker_varadhan": read_log_mean,
    "nwj": lambda s: read_exponential(s, 0.0),  # of f = 1 + log r
    "smile 1": lambda s: read_log_mean(s, 1.0),
    "smile 5": lambda s: read_log_mean(s, 5.0),
}


@pytest.mark.parametrize("name", BEST)
def test_the_best_critic_gives_the_table(best, name):
    for nats, expected in zip(NATS, BEST[name], strict=True):
        found = each_batch(READS[name], best[nats])
        # Both are means of 400 batches: their difference has √2 standard errors.
        error = math.sqrt(2) * found.std(ddof=1) / math.sqrt(BATCHES)
        assert abs(found.mean() - expected) < 3 * error + 0.01, (nats, found.mean())


def test_what_the_best_critic_must_obey(best):
    for nats in NATS:
        nce, nwj = (each_batch(READS[name], best[nats]) for name in ("infonce", "nwj"))
        assert nce.max() <= math.log(K) + 0.01
        assert abs(nwj.mean() - nats) <= 3 * nwj.std(ddof=1) / math.sqrt(BATCHES)
        if nats >= 6:
            assert nwj.std() > 5 * nce.std()


def test_the_best_critic_through_the_interpolated_bound(best):
    for nats in (2, 4, 6):
        for alpha in (0.01, 0.5, 1.0):
            found = each_batch(lambda s, a=alpha: read_interpolated(s, a), best[nats])
            error = found.std(ddof=1) / math.sqrt(BATCHES)
            assert found.mean() <= nats + 3 * error
            assert found.max() <= math.log((K - 1) / alpha) + (alpha < 1) + 1e-9
    # Its bias lies between theirs.
    means = [
        each_batch(lambda s, a=a: read_interpolated(s, a), best[6]).mean() for a in (1, 0.1, 0)
    ]
    assert means == sorted(means)


@pytest.mark.parametrize("name", ["infonce", "donsker_varadhan", "nwj", "smile 1"])
def test_the_standard_error_is_that_of_repetition(best, name):
    scores = best[2]
    spread = each_batch(READS[name], scores).std(ddof=1)
    told = np.mean([READS[name](batch[None]).error for batch in scores])
    assert spread / told == pytest.approx(1, abs=0.25)


@pytest.mark.parametrize(("nats", "expected"), [(2, 4.428), (6, 16.44), (10, 34.37)])
def test_club_of_the_true_conditional(nats, expected):
    x, y = (torch.from_numpy(side) for side in tasks.gaussian(nats).sample(2000))
    rho2 = -math.expm1(-2 * nats / 20)
    far = torch.cdist(math.sqrt(rho2) * x, y).square()
    log_q = -far / (2 * (1 - rho2)) - 10 * math.log(2 * math.pi * (1 - rho2))
    each = read_club(log_q)
    error = float(each.std()) / math.sqrt(2000)
    assert float(each.mean()) == pytest.approx(expected, abs=4 * error)
    assert 20 * rho2 / (1 - rho2) == pytest.approx(expected, rel=1e-3)
    others = log_q[~torch.eye(2000, dtype=torch.bool)]
    assert float(each.mean()) == pytest.approx(float(log_q.diagonal().mean() - others.mean()))
    assert float(read_l1out(log_q).mean()) > nats - 0.1


def test_l1out_by_hand():
    scores = torch.tensor([[1.0, 0.0, -1.0], [0.5, 2.0, 0.0], [0.0, 0.0, 3.0]]).double()
    e = math.exp
    expected = [
        1 - math.log((e(0.5) + e(0)) / 2),
        2 - math.log((e(0) + e(0)) / 2),
        3 - math.log((e(-1) + e(0)) / 2),
    ]
    assert read_l1out(scores).tolist() == pytest.approx(expected)


# --- scale, level and cap


def of_exponential(scores):
    return -read_exponential(scores, 1.0).value


def test_scale_and_level_make_the_best_critic_of_a_wrong_one(best):
    wrong = 1.6 * best[4] + 3
    chosen = scaled(wrong, of_exponential, 1.0)
    assert chosen.scale == pytest.approx(1 / 1.6, abs=0.08)
    right = chosen(wrong)
    assert read_exponential(right, 1.0).value == pytest.approx(-chosen.loss)
    far = ~torch.eye(K, dtype=torch.bool)
    assert right[:, far].exp().mean().item() == pytest.approx(math.e, rel=1e-9)
    # No scale on a grid is better, and of the best critic nothing is taken.
    assert chosen.loss <= min(of_exponential(t * wrong + c) for t in (0.4, 0.6, 1) for c in (0, -1))
    assert scaled(best[2], of_exponential, 1.0).scale > 0.9


def test_a_cap_is_the_best_where_one_pair_in_all_is_still_to_come(best):
    wrong = 1.3 * best[8][:40] - 2
    far = ~torch.eye(K, dtype=torch.bool)
    pairs = 40 * K * (K - 1)

    def value(scale, cap):
        s = (scale * wrong).clamp_max(cap)
        unseen = math.exp(cap) / pairs
        return float(s.diagonal(dim1=1, dim2=2).mean() - (s[:, far].exp().mean() + unseen).log())

    chosen = capped(wrong, 1.0)
    assert 0.5 < chosen.scale < 0.95
    assert 5 < chosen.most < 15
    found = value(chosen.scale, chosen.most)
    assert max(value(chosen.scale, m) for m in np.linspace(4, 25, 64)) < found + 1e-3
    seen = chosen(wrong)
    assert seen.max().item() == pytest.approx(chosen.most + chosen.level)
    expected = math.exp(1.0) * (1 - math.exp(seen.max().item() - 1) / pairs)
    assert seen[:, far].exp().mean().item() == pytest.approx(expected, rel=1e-9)


def test_a_score_far_beyond_all_seen_moves_a_bound_by_little(best):
    chosen = capped(best[6][:60], 0.0)
    held_out = best[6][60:160].clone()
    before = read_exponential(chosen(held_out), 0.0).value
    assert before == pytest.approx(6, abs=0.6)
    held_out[3, 4, 5] = 40.0
    assert before - 1 < read_exponential(chosen(held_out), 0.0).value < before
    assert read_exponential(held_out, 0.0).value < -1e9


CHOOSE = {
    "nwj": lambda s: capped(s, 1.0),
    "infonce": lambda s: scaled(s, lambda t: -read_infonce(t).value),
    "interpolated": lambda s: scaled(s, lambda t: -read_interpolated(t, 0.01).value, 0.0),
}


@pytest.mark.parametrize("name", CHOOSE)
def test_scores_that_hold_for_nothing_become_a_constant(name):
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(8, 16, 16, generator=generator, dtype=torch.float64)
    noise.diagonal(dim1=1, dim2=2).sub_(1.0)
    chosen = CHOOSE[name](noise)
    assert chosen.scale == 0
    assert chosen.loss == pytest.approx(0, abs=1e-3)
    assert chosen(noise).unique().numel() == 1


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", CHOOSE)
def test_scores_that_are_not_finite_have_an_infinite_loss(name, value):
    s = torch.zeros(2, 4, 4)
    s[1, 2, 3] = value
    assert CHOOSE[name](s).loss == math.inf
