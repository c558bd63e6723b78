"""RankMI against its formulas, its oracles, its algorithm box, and what it reduces to."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from quad4 import LABEL4, LABELS, QUAD4, in_batch, random_batch
from torch import nn
from torch.testing import assert_close

import nearkin as nk
from nearkin.catalog import RecipeError
from nearkin.compare import AcrossViews, InBatch, Memory, Proxies
from nearkin.config import build
from nearkin.core import Batch, Comparison
from nearkin.loop import TrainingError
from nearkin.losses.hinges import binomial_deviance
from nearkin.objectives.rankmi import LOG_2, RankMI, loss_of, newton, zero_of

BATCH = Batch(None, label=LABEL4)
EVERY = {"margin": None, "cutoff": None}  # all pairs count

pytestmark = pytest.mark.usefixtures("one_thread")


class Fixed(nn.Module):
    """A statistics network that is written down and learns nothing."""

    def __init__(self, v):
        super().__init__()
        self.v = v

    def forward(self, d):
        return self.v(d)


def rankmi(v=None, seed=0, **said) -> RankMI:
    torch.manual_seed(seed)
    objective = RankMI(**{"width": 16, **said}).double()
    if v is not None:
        objective.statistics = Fixed(v)
        objective.beta.fill_(said.get("beta", 1.0))
        objective.lost.zero_()
    return objective


def double(*values):
    return torch.tensor(values, dtype=torch.float64)


def encoder_and_optimizers(objective, dim=6, rate=0.05, make=torch.optim.Adam):
    torch.manual_seed(7)
    encoder = nn.Linear(dim, 4).double()
    learners = {"encoder": encoder, **objective.learners()}
    return encoder, {
        name: make(m.parameters(), lr=rate) for name, m in learners.items() if list(m.parameters())
    }


def copied(module):
    return {key: value.clone() for key, value in module.state_dict().items()}


def is_unmoved(before, module):
    return all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


# --- the loss and its numbers


def test_the_loss_is_the_balanced_logistic_loss_less_two_log_two():
    generator = torch.Generator().manual_seed(0)
    same, different = (
        4 * torch.randn(n, generator=generator, dtype=torch.float64) for n in (40, 90)
    )
    told = F.binary_cross_entropy_with_logits(same, torch.ones_like(same))
    told = told + F.binary_cross_entropy_with_logits(different, torch.zeros_like(different))
    assert loss_of(same, different).total.item() == pytest.approx(
        told.item() - 2 * LOG_2, abs=1e-14
    )


@pytest.mark.parametrize("v", [-30.0, -2.5, -1e-3, 0.0, 0.7, 3.0, 12.0])
def test_its_parts_are_the_means_of_t_and_of_log_two_less_exp_t(v):
    t = math.log(2) - math.log1p(math.exp(-v))
    other = math.log(2) - math.log1p(math.exp(v))
    terms = loss_of(double(v), double(v))
    assert terms.tightness.item() == pytest.approx(-t, abs=1e-12)
    assert terms.contrast.item() == pytest.approx(-other, abs=1e-12)
    if abs(v) < 13:  # beyond, 2 - e^T has lost its digits
        assert other == pytest.approx(math.log(2 - math.exp(t)), abs=1e-9)


@pytest.mark.parametrize("v", [-1e4, -100.0, -17.0, 10.0, 17.0, 40.0, 100.0, 1e4])
def test_value_and_slope_are_right_in_float32_where_two_less_exp_t_is_lost(v):
    same, different = (torch.tensor([v], requires_grad=True) for _ in range(2))
    total = loss_of(same, different).total
    total.backward()
    expected = loss_of(double(v), double(v)).total.item()
    assert total.item() == pytest.approx(expected, rel=1e-6, abs=1e-6)
    assert same.grad.item() == pytest.approx(-1 / (1 + math.exp(min(v, 700))), abs=1e-7)
    assert different.grad.item() == pytest.approx(1 / (1 + math.exp(min(-v, 700))), abs=1e-7)


def test_the_slopes_of_the_card():
    d = double(0.3, 0.7, 1.1, 1.5)
    for side, expected in (
        (0, double(0.0818226159, 0.2167878730, 0.4308318876, 0.6131808571)),
        (1, -double(0.6681773841, 0.5332121270, 0.3191681124, 0.1368191429)),
    ):
        distances = [d.clone().requires_grad_(), d.clone().requires_grad_()]
        rankmi(lambda d: 3 * (1 - d)).scored(*distances).total.backward()
        assert_close(distances[side].grad, expected, atol=1e-10, rtol=0)


@given(st.floats(-20, 20))
@settings(max_examples=30, deadline=None)
def test_a_constant_costs_at_least_nothing_and_nothing_at_zero(c):
    value = loss_of(double(c), double(c)).total.item()
    expected = math.log1p(math.exp(-c)) + math.log1p(math.exp(c)) - 2 * math.log(2)
    assert value == pytest.approx(expected, abs=1e-12)
    assert value >= -1e-15
    assert loss_of(double(0.0), double(0.0)).total.item() == pytest.approx(0, abs=1e-15)


@given(
    st.lists(st.floats(-50, 50), min_size=1, max_size=9),
    st.lists(st.floats(-50, 50), min_size=1, max_size=9),
)
@settings(max_examples=40, deadline=None)
def test_the_loss_stays_above_minus_two_log_two(same, different):
    assert loss_of(double(*same), double(*different)).total.item() >= -1.386294362


def gaussians(count=4000):
    """Distances of same and of different pairs, by quantile: N(.6, .15) and N(1.2, .2)."""
    quantile = torch.special.ndtri((torch.arange(count, dtype=torch.float64) + 0.5) / count)
    return 0.6 + 0.15 * quantile, 1.2 + 0.2 * quantile


def log_ratio(d):
    near, far = ((d - 0.6) / 0.15), ((d - 1.2) / 0.2)
    return math.log(0.2 / 0.15) - near.square() / 2 + far.square() / 2


def test_the_best_statistics_network_reaches_twice_the_divergence_and_no_other_more():
    same, different = gaussians()
    best = loss_of(log_ratio(same), log_ratio(different)).total.item()
    assert -best / 2 == pytest.approx(0.581621, abs=2e-4)
    for v in (
        lambda d: 8 * (0.87 - d),
        lambda d: 30 * (0.87 - d),
        lambda d: 1 - d,
        lambda d: log_ratio(d) + 0.5,
        lambda d: 0.5 * log_ratio(d),
    ):
        assert loss_of(v(same), v(different)).total.item() > best + 1e-3
    assert rankmi(log_ratio).beta.item() == 1.0
    objective = rankmi(log_ratio)
    objective.estimate_beta()
    assert objective.beta.item() == pytest.approx(0.8714, abs=1e-4)


def test_a_network_that_learns_the_two_gaussians():
    same, different = (d.float() for d in gaussians(250))
    torch.manual_seed(0)
    objective = RankMI()
    adam = torch.optim.Adam(objective.statistics.parameters(), 1e-3)
    for _ in range(400):
        loss = objective.scored(same, different).total
        adam.zero_grad()
        loss.backward()
        adam.step()
    objective.estimate_beta()
    assert loss.item() == pytest.approx(-1.1632, abs=0.05)
    assert objective.beta.item() == pytest.approx(0.8714, abs=0.03)
    with torch.no_grad():
        assert (objective.statistics(torch.linspace(0.3, 1.7, 2000)).diff() < 0).all()


# --- beta


class Counted:
    """How often a function was asked, and where."""

    def __init__(self, v):
        self.v, self.asked = v, []

    def __call__(self, d):
        self.asked.append(d.detach().tolist())
        return self.v(d)


@pytest.mark.parametrize(("a", "b"), [(3.0, 0.37), (0.01, 1.62), (200.0, 1e-3)])
def test_a_line_has_its_zero_in_one_step(a, b):
    line = Counted(lambda d: a * (b - d))
    assert newton(line, double(1.0)[0], 0.0, 2.0) == pytest.approx(b, abs=1e-12)
    # Both ends, the start, and where the step led.
    assert len(line.asked) <= 4
    assert zero_of(lambda d: a * (b - d), double(1.9)[0]) == pytest.approx(b, abs=1e-9)


def s_shaped(d):
    """Decreasing and piecewise linear: Newton's steps from 0.2 go 2.4, -0.3, 2.4, -0.3 for ever."""
    middle = 20 * (0.9 - d)
    return torch.where(
        d < 0.85, 1 + (0.85 - d) * 1.5, torch.where(d > 0.95, -1 - (d - 0.95), middle)
    )


def test_newtons_plain_steps_go_round_in_circles_and_the_safeguarded_ones_do_not():
    x, seen = 0.2, []
    for _ in range(40):
        d = double(x).requires_grad_()
        value = s_shaped(d)
        (slope,) = torch.autograd.grad(value.sum(), d)
        x = x - (value / slope).item()
        seen.append(round(x, 9))
    assert len(set(seen[4:])) == 2
    assert 0.9 not in seen
    counted = Counted(s_shaped)
    assert newton(counted, double(0.2)[0], 0.0, 2.0) == pytest.approx(0.9, abs=1e-9)
    assert len(counted.asked) < 10
    assert zero_of(s_shaped, double(0.2)[0]) == pytest.approx(0.9, abs=1e-9)


def test_of_several_zeros_the_nearest_to_the_last_beta_is_taken():
    def waves(d):
        return torch.cos(math.pi * (d + 0.2))  # zero at 0.3 and 1.3

    for start, expected in ((0.0, 0.3), (0.75, 0.3), (0.85, 1.3), (2.0, 1.3), (1.29, 1.3)):
        assert zero_of(waves, double(start)[0]) == pytest.approx(expected, abs=1e-6)


@given(
    st.lists(st.floats(0.01, 5), min_size=12, max_size=12),
    st.floats(0.01, 1.99),
    st.floats(0, 2),
)
@example([1.5, 1, 1, 4, 5, 4.5, 1, 1, 3, 5, 5, 1.5], 1.0, 0.0)  # 1.889, 0.167, 1.889, 0.167, ...
@settings(max_examples=60, deadline=None)
def test_every_falling_piecewise_linear_network_has_its_zero_found(slopes, zero, start):
    places = torch.linspace(0, 2, 13, dtype=torch.float64)
    heights = torch.cat([double(0.0), -(double(*slopes) * places.diff()).cumsum(0)])

    def broken(d):
        at = torch.bucketize(d.detach(), places).clamp(1, 12)
        low, high = places[at - 1], places[at]
        share = (d - low) / (high - low)
        return heights[at - 1] + share * (heights[at] - heights[at - 1])

    def shifted(d):
        return broken(d) - broken(double(zero))[0]

    assert zero_of(shifted, double(start)[0]) == pytest.approx(zero, abs=2e-6)
    assert newton(shifted, double(start)[0], 0.0, 2.0) == pytest.approx(zero, abs=1e-4)


@pytest.mark.parametrize("sign", [1, -1])
def test_where_v_has_one_sign_beta_stays_and_it_is_counted_and_said(sign):
    objective = rankmi(lambda d: sign * (1 + d), beta=0.7)
    for count in range(1, 20):
        objective.estimate_beta()
        assert (objective.beta.item(), objective.lost.item()) == (0.7, count)
    with pytest.warns(UserWarning, match=r"for 20 estimates in a row .* beta stays at 0.7"):
        objective.estimate_beta()
    objective.statistics = Fixed(lambda d: 1 - d)
    objective.estimate_beta()
    assert objective.beta.item() == pytest.approx(1)
    assert objective.lost.item() == 0


def test_adding_a_constant_moves_beta_and_scaling_leaves_it():
    def zero(scale, shift):
        objective = rankmi(lambda d: scale * log_ratio(d) + shift)
        objective.estimate_beta()
        return objective.beta.item()

    assert zero(3, 0) == pytest.approx(zero(1, 0), abs=1e-6)
    assert zero(1, 0.5) > zero(1, 0) + 0.01 > zero(1, -0.5) + 0.02


def test_without_biases_line_two_returns_zero():
    torch.manual_seed(0)
    objective = RankMI()
    for name, parameter in objective.statistics.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
    objective.beta.fill_(1.0)
    objective.estimate_beta()
    assert objective.beta.item() == 0


# --- algorithm 1


def run(objective, batches, rate=0.05):
    """Whose turn it was, batch by batch, with what moved checked at each."""
    encoder, optimizers = encoder_and_optimizers(objective, rate=rate)
    parts = {"E": encoder, "S": objective.statistics}
    who = {("encoder",): "E", ("statistics",): "S"}
    pattern = ""
    for seed in range(batches):
        x, label = random_batch(LABELS["balanced"], 6, seed=seed)
        before = {name: copied(part) for name, part in parts.items()}
        beta, mine = objective.beta.clone(), ""
        for turn in objective.turns(encoder(x), Batch(None, label=label)):
            mine += who[turn.learns]
            assert nk.update(turn, optimizers)
        for name, part in parts.items():
            assert is_unmoved(before[name], part) == (name != mine), f"batch {seed}"
        assert mine == "S" or torch.equal(objective.beta, beta)
        assert objective.lost.item() or mine == "E" or not torch.equal(objective.beta, beta)
        pattern += mine
    return pattern


@pytest.mark.parametrize(
    ("said", "pattern"),
    [
        ({}, "ESESES"),
        ({"k": 2}, "ESSESS"),
        ({"k": 3}, "ESSSES"),
        ({"warmup": 3}, "SSSESESE"),
        ({"warmup": 2, "k": 2}, "SSESSE"),
        ({"warmup": 2, "k": 0}, "SSEEE"),
    ],
)
def test_one_player_a_batch_in_the_order_of_the_paper_and_the_other_stays_to_the_bit(said, pattern):
    assert run(rankmi(**said), len(pattern)) == pattern


def test_beta_after_a_turn_of_the_statistics_network_is_the_zero_of_the_new_one():
    objective = rankmi(k=3)
    run(objective, 4)
    assert objective.lost.item() == 0
    with torch.no_grad():
        at = objective.statistics(objective.beta[None]).item()
    assert at == pytest.approx(0, abs=1e-6)


def test_the_statistics_network_sees_all_pairs_and_the_encoder_those_near_beta():
    z, label = random_batch(LABELS["shuffled"])
    v = Fixed(lambda d: 2 * (1.1 - d))
    objective = rankmi(v, margin=0.3, beta=1.1, cutoff=None)
    u = F.normalize(z)
    same, different, near, far = [], [], [], []
    for i, j in itertools.product(range(len(z)), repeat=2):
        d = (u[i] - u[j]).norm().item()
        if i == j:
            continue
        mine = label[i] == label[j]
        (same if mine else different).append(d)
        if mine and d > 1.1 - 0.3:
            near.append(d)
        if not mine and d < 1.1 + 0.3:
            far.append(d)
    assert 0 < len(near) < len(same)
    assert 0 < len(far) < len(different)

    def total(positives, negatives):
        cost = [math.log1p(math.exp(-2 * (1.1 - d))) for d in positives]
        other = [math.log1p(math.exp(2 * (1.1 - d))) for d in negatives]
        return sum(cost) / len(cost) + sum(other) / len(other) - 2 * math.log(2)

    batch = Batch(None, label=label)
    terms = objective(z, batch)
    assert terms.total.item() == pytest.approx(total(near, far), abs=1e-9)
    bound = objective.bound(objective.comparison(z, batch))
    assert bound.total.item() == pytest.approx(total(same, different), abs=1e-9)
    said = objective.diagnosis(z, batch)
    assert said["jsd_bound"] == pytest.approx(-total(same, different) / 2, abs=1e-9)
    assert said["kept_same"] == pytest.approx(len(near) / len(same))
    assert said["kept_different"] == pytest.approx(len(far) / len(different))


def test_the_margins_are_strict():
    objective = rankmi(lambda d: 1 - d, margin=0.0, beta=1.0, cutoff=None)
    same, different = objective.near(in_batch(QUAD4, LABEL4))
    d = in_batch(QUAD4, LABEL4).distance
    assert (d[same] > 1).all()
    assert (d[different] < 1).all()
    objective.beta.fill_(d[0, 1].item())  # the positive pair at 60 degrees
    assert not objective.near(in_batch(QUAD4, LABEL4))[0][0, 1]


def test_without_margin_and_cutoff_both_players_see_the_same_loss():
    z, label = random_batch(LABELS["unbalanced"])
    objective = rankmi(**EVERY)
    c = objective.comparison(z, Batch(None, label=label))
    assert_close(objective.scored(*objective.chosen(c)).total, objective.bound(c).total)


def test_the_encoders_slope_is_that_of_finite_differences():
    z, label = random_batch([0, 0, 1, 1, 2, 2, 2], 3)
    smooth = rankmi(lambda d: 3 * torch.cos(d), **EVERY)
    batch = Batch(None, label=label)
    assert torch.autograd.gradcheck(lambda z: smooth(z, batch).total, z.requires_grad_())


@pytest.mark.parametrize("seed", range(3))
def test_order_of_rows_and_names_of_classes_do_not_matter(seed):
    z, label = random_batch(LABELS["unbalanced"], seed=seed)
    objective = rankmi(cutoff=None)
    order = torch.randperm(len(z), generator=torch.Generator().manual_seed(seed))
    one = objective(z, Batch(None, label=label)).total
    two = objective(z[order], Batch(None, label=(7 - 3 * label)[order])).total
    assert_close(one, two)


# --- negatives


def at(*distances):
    """Unit rows of the plane at these distances from the first axis, in 3 dimensions."""
    angle = 2 * torch.asin(double(*distances) / 2)
    return torch.stack([angle.cos(), angle.sin(), torch.zeros_like(angle)], 1)


def test_negatives_are_drawn_as_the_card_says():
    draws = 400
    rows = torch.cat([at(0.1).expand(draws, 3), at(0.4, 0.8, 1.2, 1.5)])
    c = Comparison(
        anchor_label=torch.tensor([0]),
        reference_label=torch.tensor([0] * draws + [1, 2, 3, 4]),
        anchors=at(0.0),
        references=rows,
    )
    objective = rankmi(lambda d: 1 - d, margin=0.2, beta=1.25)  # a negative counts up to 1.45
    torch.manual_seed(0)
    drawn = torch.cat([objective.chosen(c)[1] for _ in range(50)])
    assert len(drawn) == 50 * draws  # as many as the anchor has positives, near beta or not
    shares = [((drawn - d).abs() < 1e-6).double().mean().item() for d in (0.4, 0.8, 1.2, 1.5)]
    assert shares[:3] == pytest.approx([0.489796, 0.306122, 0.204082], abs=0.012)
    assert shares[3] == 0
    capped = rankmi(lambda d: 1 - d, margin=2.0, beta=2.0, farthest=1.4)
    assert capped.chosen(c)[1].max() < 1.21
    assert rankmi(lambda d: 1 - d, margin=None).chosen(c)[1].max() > 1.49


def test_the_few_negatives_below_the_cutoff_are_drawn_too():
    objective = rankmi(lambda d: 0.2 - d, margin=0.2, beta=0.2)
    c = in_batch(at(0.0, 0.1, 0.3, 1.9), torch.tensor([0, 0, 1, 1]))
    near = set(objective.chosen(c)[1].mul(1000).round().tolist())
    assert near <= {300, round(1000 * c.distance[1, 2].item())}
    assert near


def test_an_anchor_without_a_negative_near_enough_draws_none():
    objective = rankmi(lambda d: 0.5 - d, margin=0.1, beta=0.4)
    c = in_batch(at(0.0, 0.2, 1.2, 1.8), torch.tensor([0, 0, 1, 1]))
    same, different = objective.chosen(c)
    assert len(different) == 0
    assert len(same) == 1  # the pair of class 1


# --- missing sides


def turns_of(objective, z, label):
    return list(objective.turns(z, Batch(None, label=label)))


def test_a_side_that_the_filters_empty_is_dropped():
    z = at(0.0, 0.2, 1.2, 1.8).requires_grad_()
    only_same = rankmi(lambda d: 0.5 - d, margin=0.1, beta=0.4, cutoff=None)
    (turn,) = turns_of(only_same, z, LABEL4)
    assert turn.terms.contrast.item() == 0
    assert turn.terms.tightness.item() != 0
    turn.terms.total.backward()
    assert z.grad.isfinite().all()
    only_different = rankmi(lambda d: 1.9 - d, margin=0.0, beta=1.9, cutoff=None)
    (turn,) = turns_of(only_different, z, LABEL4)
    assert turn.terms.tightness.item() == 0
    assert turn.terms.contrast.item() != 0


def test_where_both_sides_are_empty_the_step_is_skipped_and_nothing_moves():
    objective = rankmi(lambda d: 1.0 - d, margin=0.0, beta=1.0, cutoff=None)
    z = nn.Parameter(at(0.0, 0.2, 1.5, 1.7))
    momentum = torch.optim.Adam([z], lr=0.1, weight_decay=0.1)
    momentum.state[z] = {
        "step": torch.tensor(3.0),
        "exp_avg": torch.ones_like(z),
        "exp_avg_sq": torch.ones_like(z),
    }
    before = z.detach().clone()
    (turn,) = turns_of(objective, z, LABEL4)
    with pytest.warns(UserWarning, match="nothing to learn from"):
        assert not nk.update(turn, {"encoder": momentum})
    assert torch.equal(z, before)


@pytest.mark.parametrize(
    ("label", "says"),
    [([0, 1, 2, 3], "no positive pair"), ([5, 5, 5, 5], "one class only")],
)
def test_a_batch_with_one_side_alone_is_told_and_teaches_the_network_nothing(label, says):
    objective = rankmi(warmup=5)
    before = copied(objective.statistics)
    adam = {"statistics": torch.optim.Adam(objective.statistics.parameters(), 0.1)}
    with pytest.warns(UserWarning, match=says):
        (turn,) = turns_of(objective, QUAD4, torch.tensor(label))
    with pytest.warns(UserWarning, match="its turn was skipped"):
        assert not nk.update(turn, adam)
    assert is_unmoved(before, objective.statistics)
    assert "jsd_bound" not in objective.diagnosis(QUAD4, Batch(None, label=torch.tensor(label)))


def test_an_encoder_that_never_meets_a_negative_is_told_of():
    objective = rankmi(lambda d: 0.1 - d, margin=0.1, beta=0.05, k=1)
    z = QUAD4.clone().requires_grad_()
    for _ in range(19 * 2):
        turns_of(objective, z, LABEL4)
    assert objective.alone.item() == 19
    with pytest.warns(UserWarning, match="20 turns of the encoder in a row had no negative"):
        turns_of(objective, z, LABEL4)
    objective.beta.fill_(1.0)
    objective.time.zero_()
    turns_of(objective, z, LABEL4)
    assert objective.alone.item() == 0


@pytest.mark.filterwarnings("ignore:an embedding row is all zeros:UserWarning")
@pytest.mark.filterwarnings("ignore:a batch holds no positive pair:UserWarning")
@pytest.mark.parametrize("said", [{}, EVERY, {"warmup": 3}, {"warmup": 3, "monotone": 1.0}])
@pytest.mark.parametrize("case", ["identical", "zero", "one", "opposite"])
def test_degenerate_rows_give_finite_slopes(case, said):
    ones = torch.ones(6, 3, dtype=torch.float64)
    signs = double(1, -1, 1, -1, 1, -1)[:, None]
    z = {"identical": ones, "zero": 0 * ones, "one": ones[:1], "opposite": signs * ones}[case]
    z = z.clone().requires_grad_()
    objective = rankmi(**said)
    for turn in turns_of(objective, z, torch.arange(len(z)) // 2):
        total = turn.terms.total
        assert total.isfinite()
        if total.requires_grad:
            parameters = [z] if "encoder" in turn.learns else list(objective.parameters())
            slopes = torch.autograd.grad(total, parameters, allow_unused=True)
            assert all(slope is None or slope.isfinite().all() for slope in slopes)


# --- the penalty


def test_the_penalty_is_that_of_the_slopes_and_stands_apart():
    def bent(d):
        return torch.where(d < 1.2, 2 * (1 - d), 3 * (d - 1.2) - 0.4)

    z, label = random_batch(LABELS["shuffled"])
    objective = rankmi(bent, monotone=0.5, slope=0.25)
    c = objective.comparison(z, Batch(None, label=label))
    d = torch.cat(objective.all_pairs(c))
    rising = (d >= 1.2).double()
    expected = 0.5 * (3.25**2 * rising).mean()
    terms = objective.bound(c)
    assert 0 < rising.mean() < 1
    assert_close(terms.other["monotone"], expected)
    assert_close(terms.total - expected, rankmi(bent).bound(c).total)
    assert objective(z, Batch(None, label=label)).other == {}


def test_the_penalty_makes_a_network_fall_that_the_data_make_rise():
    # Rows of a circle; classes of every other row, so that the nearest pairs are different ones.
    z = at(*torch.linspace(0, 1.9, 12).tolist())
    label = torch.arange(12) % 2

    def fitted(weight):
        objective = rankmi(monotone=weight, slope=0.1 if weight else 0.0, seed=3)
        c = in_batch(z, label)
        adam = torch.optim.Adam(objective.statistics.parameters(), 1e-2)
        for _ in range(150):
            adam.zero_grad()
            objective.bound(c).total.backward()
            adam.step()
        d = torch.cat(objective.all_pairs(c)).requires_grad_()
        (slope,) = torch.autograd.grad(objective.statistics(d).sum(), d)
        return (slope > 0).double().mean().item()

    assert fitted(0.0) > 0.1
    assert fitted(100.0) < 0.02


# --- what it reduces to (section 3.4 of the paper)


def quadruplet_network(x):
    """The fixed V of equation 13."""
    return torch.where(x > 0, -torch.expm1(x.abs()).log(), torch.expm1(x.abs()).log())


def test_the_values_of_equation_13():
    for x, t, other in (
        (0.5, 0.193147, -0.239605),
        (-0.5, -0.239605, 0.193147),
        (3.0, -2.306853, 0.642078),
    ):
        v = quadruplet_network(double(x))
        terms = loss_of(v, v)
        assert -terms.tightness.item() == pytest.approx(t, abs=1e-6)
        assert -terms.contrast.item() == pytest.approx(other, abs=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_on_violating_pairs_the_fixed_network_gives_the_quadruplet_term(seed):
    z, label = random_batch(LABELS["balanced"], seed=seed)
    tau = 1.15
    objective = rankmi(lambda d: quadruplet_network(d - tau), margin=0.0, beta=tau, cutoff=None)
    c = in_batch(z, label)
    positives, negatives = (d.tolist() for d in objective.chosen(c))
    assert min(positives) > tau > max(negatives)
    # Independent pairs: at this gamma no hinge is closed.
    gamma = max(negatives) - min(positives) + 2.0
    every = [max(p - n + gamma, 0) for p in positives for n in negatives]
    found = objective(z, Batch(None, label=label)).total.item()
    assert found + 2 * LOG_2 + gamma == pytest.approx(sum(every) / len(every), abs=1e-9)


def test_read_literally_the_fixed_network_is_not_the_quadruplet_term():
    z, label = random_batch(LABELS["balanced"])
    same, different = rankmi(**EVERY).all_pairs(in_batch(z, label))
    found = loss_of(quadruplet_network(same), quadruplet_network(different)).total
    expected = same.mean() - torch.log(-torch.expm1(-different)).mean() - 2 * LOG_2
    assert_close(found, expected)
    assert abs(found - (same.mean() - different.mean() - 2 * LOG_2)) > 0.1


@pytest.mark.parametrize(("alpha", "beta"), [(2.0, 0.5), (7.0, -0.2)])
def test_a_network_linear_in_the_similarity_gives_binomial_deviance_at_cost_1(alpha, beta):
    z, label = random_batch(LABELS["unbalanced"])
    objective = rankmi(lambda d: alpha * (1 - d.square() / 2 - beta), **EVERY)
    found = objective(z, Batch(None, label=label))
    expected = binomial_deviance(in_batch(z, label), alpha=alpha, beta=beta, cost=1.0)
    assert_close(found.tightness + LOG_2, expected.tightness)
    assert_close(found.contrast + LOG_2, expected.contrast)


def test_a_steep_line_over_its_steepness_is_the_margin_loss_without_margin():
    z, label = random_batch(LABELS["shuffled"])
    beta, steep = 1.05, 1e5
    objective = rankmi(lambda d: steep * (beta - d), **EVERY)
    c = in_batch(z, label)
    same, different = objective.all_pairs(c)
    expected = (same - beta).clamp_min(0).mean() + (beta - different).clamp_min(0).mean()
    found = (objective(z, Batch(None, label=label)).total + 2 * LOG_2) / steep
    assert_close(found, expected, atol=1e-5, rtol=0)


# --- precision, other comparisons, state


def test_under_autocast_it_is_float32():
    z, label = random_batch(LABELS["balanced"], dtype=torch.float32)
    torch.manual_seed(0)
    objective, batch = RankMI(width=16, cutoff=None), Batch(None, label=label)
    expected = objective(z, batch).total
    with torch.autocast("cpu", torch.bfloat16):
        found = objective(z, batch).total
        objective.estimate_beta()
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


def test_rows_of_several_labels_are_same_where_they_share_one():
    z, label = random_batch(LABELS["pairs"])
    hot = F.one_hot(label, 3).bool()
    objective = rankmi(**EVERY)
    one, two = (objective(z, Batch(None, label=each)).total for each in (label, hot))
    assert_close(one, two)


def test_two_views_and_a_memory_are_compared_as_a_batch_is():
    z, label = random_batch(LABELS["pairs"])
    views = Batch(None, label=label, view=torch.arange(6) % 2, pair=torch.arange(6) // 2)
    objective = rankmi(compare=AcrossViews(), **EVERY)
    assert objective.needs == ("view", "pair")
    u = F.normalize(z)
    d = torch.cdist(u[0::2], u[1::2])
    v = objective.statistics(d)
    expected = loss_of(v.diagonal(), v[~torch.eye(3, dtype=torch.bool)])
    assert_close(objective(z, views).total, expected.total)

    remembered = rankmi(compare=Memory(5, 6), **EVERY)
    (first,) = remembered.turns(z.requires_grad_(), Batch(None, label=label))
    assert_close(first.terms.total, rankmi(**EVERY)(z, Batch(None, label=label)).total)
    (second,) = remembered.turns(z, Batch(None, label=label))
    # Each row meets its own copy now: as many references again.
    c = remembered.comparison(z, Batch(None, label=label))
    assert c.shape == (6, 12)
    assert second.learns == ("statistics",)


@pytest.mark.parametrize("batches", range(4))
def test_whose_turn_it_is_and_beta_survive_saving_and_loading(batches):
    one, two = rankmi(k=2, warmup=1), rankmi(k=2, warmup=1, seed=5)
    run(one, batches)
    two.load_state_dict(one.state_dict())
    assert torch.equal(two.beta, one.beta)
    torch.manual_seed(1)
    (a,) = turns_of(one, QUAD4.clone().requires_grad_(), LABEL4)
    torch.manual_seed(1)
    (b,) = turns_of(two, QUAD4.clone().requires_grad_(), LABEL4)
    assert a.learns == b.learns == (("encoder" if batches == 1 else "statistics"),)
    assert torch.equal(a.terms.total, b.terms.total)


def test_what_it_records_is_v_on_all_distances():
    objective = rankmi(lambda d: 2 * (1.2 - d), beta=1.2)
    said = objective.recorded()["rankmi"]
    assert said["distance"][0] == 0
    assert said["distance"][-1] == 2
    assert said["V"] == pytest.approx([2 * (1.2 - d) for d in said["distance"]], abs=1e-5)
    assert (said["beta"], said["margin"]) == (pytest.approx(1.2), 0.2)


def test_pull_and_push_are_the_slopes_of_the_encoders_turn():
    z, label = random_batch(LABELS["balanced"])
    objective = rankmi(lambda d: 2 * (1.2 - d), cutoff=None, beta=1.2)
    batch = Batch(None, label=label)
    c = objective.comparison(z, batch)
    leaf = c.similarity.detach().clone().requires_grad_()
    total = objective.scored(*objective.chosen(replace(c, given=leaf))).total
    (slope,) = torch.autograd.grad(total, leaf)
    said = objective.diagnosis(z, batch)
    assert said["pull"] == pytest.approx(-(slope * c.same).sum().item())
    assert said["push"] == pytest.approx((slope * c.different).sum().item())
    assert said["pull"] > 0 < said["push"]


# --- a loop of one's own


def test_a_loop_of_ones_own_raises_the_bound():
    torch.manual_seed(0)
    centers = torch.randn(8, 12)
    encoder = nn.Linear(12, 4)
    objective = nk.objective("rankmi", warmup=40, width=32)
    optimizers = {
        "encoder": torch.optim.Adam(encoder.parameters(), 1e-2),
        "statistics": torch.optim.Adam(objective.learners()["statistics"].parameters(), 1e-2),
    }

    def batch(step):
        noise = torch.randn(48, 12, generator=torch.Generator().manual_seed(step))
        label = torch.arange(48) % 8
        return centers[label] + noise, label

    def bound():
        x, label = batch(10_000)
        return objective.inner.diagnosis(encoder(x).detach(), Batch(None, label=label))["jsd_bound"]

    for step in range(40):
        x, label = batch(step)
        [nk.update(turn, optimizers) for turn in objective.turns(encoder(x), label)]
    before = bound()
    for step in range(40, 240):
        x, label = batch(step)
        [nk.update(turn, optimizers) for turn in objective.turns(encoder(x), label)]
    assert 0 < before < bound() < LOG_2
    assert list(objective.learners()) == ["statistics"]


def test_a_statistics_network_without_an_optimizer_is_told():
    encoder, optimizers = encoder_and_optimizers(rankmi())
    objective = nk.objective("rankmi", width=8).double()
    x, label = random_batch(LABELS["balanced"], 6)
    for turn in objective.turns(encoder(x), label):
        nk.update(turn, {"encoder": optimizers["encoder"]})
    (turn,) = objective.turns(encoder(x), label)
    with pytest.raises(TrainingError, match="trains statistics, but no optimizer"):
        nk.update(turn, {"encoder": optimizers["encoder"]})


# --- wrong settings


@pytest.mark.parametrize(
    ("said", "says"),
    [
        ({"k": -1}, "k of rankmi is a number of batches, at least 0, not -1"),
        ({"warmup": -5}, "warmup of rankmi is a number of batches, at least 0, not -5"),
        ({"k": 0}, "learns in the warm-up alone; set warmup"),
        ({"margin": 2.5}, "margin of rankmi is a distance of unit rows, from 0 to 2, not 2.5"),
        ({"margin": -0.1}, "margin of rankmi is a distance of unit rows, from 0 to 2, not -0.1"),
        ({"margin": math.nan}, "margin of rankmi is a distance"),
        ({"beta": 3.0}, "beta of rankmi is a distance of unit rows, from 0 to 2, not 3.0"),
        ({"cutoff": 0.0}, "cutoff of rankmi is a distance above 0 and below 2, not 0.0"),
        ({"cutoff": 2.0}, "cutoff of rankmi is a distance above 0 and below 2, not 2.0"),
        ({"farthest": 0.4}, r"farthest of rankmi is a distance above the cutoff \(0.5\)"),
        ({"farthest": 2.1}, "up to 2, not 2.1"),
        ({"monotone": -1.0}, "monotone of rankmi must be at least 0, not -1.0"),
        ({"monotone": 1.0, "slope": math.inf}, "slope of rankmi must be at least 0, not inf"),
        ({"slope": 0.2}, "slope=0.2 .* weight monotone is 0"),
        ({"width": 0}, "width of at least 1, not 0"),
        ({"compare": InBatch("inner")}, "in_batch compares by 'inner'; leave closeness out"),
        ({"compare": InBatch("euclidean")}, "in_batch compares by 'euclidean'"),
        ({"compare": Proxies(3, 4)}, "proxies gives classes; use in_batch"),
    ],
)
def test_wrong_settings_are_told_with_what_was_seen(said, says):
    with pytest.raises(ValueError, match=says):
        RankMI(**said)


@pytest.mark.parametrize(
    ("node", "says"),
    [
        ({"rankmi": {"k": 1.5}}, "objective.rankmi.k: expected an integer, got 1.5"),
        ({"rankmi": {"alpha": 0.2}}, "takes no 'alpha'"),
        ({"rankmi": {"compare": {"in_batch": {"closeness": "inner"}}}}, "compares by 'inner'"),
    ],
)
def test_in_a_recipe_the_place_is_told(node, says):
    with pytest.raises(RecipeError, match=says):
        build(node, "objective", {}, "objective")
