"""mutual_information by name: each estimator end to end, its kind and ceiling, what it refuses."""

import inspect
import math
import re
import warnings
from itertools import chain

import numpy as np
import pytest
import torch

import nearkin as nk
from nearkin import catalog
from nearkin.information import tasks
from nearkin.information.conditional import Normal
from nearkin.information.critical import Corrected
from nearkin.information.critics import CRITICS
from nearkin.information.estimate import ESTIMATORS
from nearkin.information.readout import paired
from nearkin.information.training import batches, seeded, split, train
from nearkin.losses.bounds import donsker_varadhan

LEARNED = [
    name for name, make in ESTIMATORS.items() if "steps" in inspect.signature(make).parameters
]
KINDS = {
    **dict.fromkeys(("infonce", "interpolated", "nwj", "tuba", "js_kl"), "lower"),
    **dict.fromkeys(("club", "l1out"), "upper"),
}


@pytest.fixture(autouse=True)
def _one(one_thread):
    return


def found(name, task=None, rows=1200, seed=0, **settings):
    x, y = (task or tasks.gaussian(1.0, 2)).sample(rows, 3)
    if name in LEARNED:
        settings = {"steps": 200, "batch": 64, "rate": 1e-3, **settings}
    return nk.mutual_information(x, y, name, seed=seed, **settings)


@pytest.mark.parametrize("name", sorted(set(ESTIMATORS) - {"mixed"}))
def test_each_finds_most_of_one_nat(name):
    seen = found(name, steps=300) if name == "mine" else found(name)  # its running mean lags
    assert seen.kind == KINDS.get(name, "neither")
    # Of these pairs CLUB is 2(e - 1) nats with the best model.
    low, high = (0.75, 1.3) if name != "club" else (2.0, 5.0)
    assert low < seen.nats < high
    assert seen.low < seen.bits < seen.high
    assert 0 < seen.error < 0.1 * high
    expected = {"infonce": math.log2(64), "interpolated": math.log2(math.e * 63 / 0.01)}
    assert seen.ceiling == pytest.approx(expected.get(name, math.inf))


@pytest.mark.filterwarnings("ignore:.*has learned nothing")
@pytest.mark.parametrize("name", sorted(ESTIMATORS))
def test_independent_pairs_tell_nothing(name):
    x, y = tasks.independent(2).sample(1200, 3)
    if name == "mixed":
        y = np.random.default_rng(0).integers(0, 4, 1200)
    settings = {"steps": 60, "batch": 64, "rate": 1e-3} if name in LEARNED else {}
    seen = nk.mutual_information(x, y, name, **settings)
    assert seen.bits < 3 * seen.error
    # What a critic has learned of the training part by heart, the held-out part takes off again.
    assert seen.bits > -max(3 * seen.error, 0.02 if name in LEARNED else 0)
    assert 0 < seen.error < 0.1


@pytest.mark.filterwarnings("ignore:.*has learned nothing")
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", LEARNED)
def test_few_pairs_are_not_learned_by_heart(name, seed):
    x, y = np.random.default_rng(seed).standard_normal((2, 100, 4))
    seen = nk.mutual_information(x, y, name, steps=300, rate=3e-3, seed=seed)
    assert -0.5 < seen.bits < 3 * seen.error
    assert seen.error > 1 / 57  # 1 / (√2 · 40) nats: 40 pairs, however alike, say no more


def test_what_learns_nothing_says_so():
    x, y = np.random.default_rng(1).standard_normal((2, 400, 3))
    for name in ("infonce", "club"):
        with pytest.warns(UserWarning, match=f"{name} has learned nothing that holds on the 48"):
            nk.mutual_information(x, y, name, steps=50, rate=0.3)


@pytest.mark.parametrize("critic", CRITICS)
def test_every_critic_gives_a_lower_bound(critic):
    task = tasks.gaussian(1.0, 2)
    seen = found("infonce", task, critic=critic, steps=250, rate=5e-3)
    assert seen.nats < task.nats + 3 * seen.error * math.log(2)
    # A bilinear one has no squares, and the distance alone does not say how far out a row is.
    assert seen.nats > {"bilinear": 0.4, "on_distance": 0.3}.get(critic, 0.8)


@pytest.mark.parametrize("critic", CRITICS)
def test_a_critic_scores_each_pair_as_if_it_were_alone(critic):
    made = seeded(lambda: CRITICS[critic](3, 3), torch.Generator().manual_seed(0))
    x, y = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        scores = made(x, y)
        assert scores.shape == (5, 5)
        for i, j in ((0, 3), (4, 1)):
            alone = made(x[i : i + 1], y[j : j + 1])[0, 0]
            assert scores[i, j].item() == pytest.approx(alone.item(), abs=1e-5)


@pytest.mark.parametrize("over", ["rows", "columns", "both"])
def test_infonce_by_rows_columns_or_both(over):
    assert found("infonce", over=over).nats == pytest.approx(0.95, abs=0.15)


def test_the_same_seed_gives_the_same_figure_and_leaves_the_global_one_alone():
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    one, two, other = (found("nwj", seed=seed, steps=20) for seed in (1, 1, 2))
    assert one == two
    assert one.bits != other.bits
    assert torch.equal(torch.random.get_rng_state(), before)


def test_units_do_not_matter():
    x, y = tasks.gaussian(1.0, 2).sample(400, 3)
    one, two = (
        nk.mutual_information(a, b, "ksg") for a, b in ((x, y), (1e6 * x + 5, 1e-6 * y - 2))
    )
    assert one.bits == pytest.approx(two.bits, abs=1e-9)


def test_ba_with_the_entropy_given_is_a_lower_bound_in_its_units():
    entropy = math.log(2 * math.pi * math.e) + 2 * math.log(7.0)
    x, y = tasks.gaussian(1.0, 2).sample(1200, 3)
    settings = {"steps": 150, "batch": 64, "rate": 2e-3}
    seen = nk.mutual_information(x, 7 * y, "ba", entropy=entropy, **settings)
    assert seen.kind == "lower"
    assert seen.nats == pytest.approx(1, abs=0.2)


def test_near_its_ceiling_it_warns():
    with pytest.warns(UserWarning, match=r"infonce gives .* bits of the 3.00 that it can give"):
        seen = found("infonce", tasks.gaussian(6.0, 2), batch=8)
    assert seen.at_ceiling
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not found("infonce", steps=20).at_ceiling


def test_classes_by_mixed():
    task = tasks.classes(3.0, 4)
    x, y = task.sample(1000)
    seen = nk.mutual_information(x, [f"class {c}" for c in y], "mixed")
    assert seen.nats == pytest.approx(task.nats, abs=0.1)
    assert seen.ceiling == pytest.approx(2, abs=0.01)


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("kgs", {}, "there is no estimator 'kgs'; did you mean 'ksg'?"),
        ("ksg", {"kk": 3}, "ksg takes no 'kk'; did you mean 'k'?"),
        ("infonce", {"over": "all"}, "over must be rows, columns or both, not 'all'"),
        ("infonce", {"critic": "deep"}, "'deep' is no critic; expected one of separable"),
        ("infonce", {"batch": 1}, "batch counts pairs that are told apart, so it must be an"),
        ("infonce", {"steps": 0}, "steps counts updates, so it must be an integer of 1 or"),
        ("infonce", {"held_out": 1.0}, "held_out is a share, between 0 and 1, not 1.0"),
        ("interpolated", {"alpha": 2.0}, "alpha must be from 0"),
        ("smile", {"clip": 0.0}, "clip must be above 0"),
        ("mine", {"memory": 1.0}, "memory is the weight of the past, from 0 to under 1"),
        ("infonce", {"held_out": 0.9}, "held_out = 0.9 leaves 2 of 100 pairs to train on, but 8"),
        ("ba", {"held_out": 0.95}, "held_out = 0.95 leaves 0 of 100 pairs to train on, but 8"),
        ("infonce", {"rate": 0.0}, "rate, the step of Adam, must be above 0 and finite, not 0.0"),
        ("club", {"rate": math.nan}, "rate, the step of Adam, must be above 0 and finite, not nan"),
        ("infonce", {"steps": 2.5}, "steps counts updates, so it must be an integer of 1 or more"),
        ("ba", {"steps": "10"}, "must be an integer of 1 or more, not '10'"),
        ("infonce", {"batch": 64.0}, "must be an integer of 2 or more, not 64.0"),
        ("ba", {"batch": 0}, "batch counts pairs, so it must be an integer of 1 or more, not 0"),
        ("club", {"batch": True}, "must be an integer of 1 or more, not True"),
        ("l1out", {"batch": -1}, "must be an integer of 1 or more, not -1"),
        ("ba", {"entropy": math.nan}, "entropy is H(Y) in nats and must be finite, not nan"),
        ("ksg", {"k": True}, "k counts neighbors, so it must be an integer of 1 or more, not True"),
        ("ksg", {"jitter": -1.0}, "jitter is a deviation of noise, 0 or more and finite, not -1.0"),
        ("ksg", {"jitter": math.nan}, "jitter is a deviation of noise, 0 or more and finite"),
        ("infonce", {"rate": "fast"}, "rate of infonce must be a number, not 'fast'"),
        ("ba", {"entropy": "1"}, "entropy of ba must be a number, not '1'"),
        ("interpolated", {"alpha": None}, "alpha of interpolated must be a number, not None"),
        ("infonce", {"seed": 1.5}, "seed must be an integer of 0 or more, not 1.5"),
        ("ksg", {"seed": -1}, "seed must be an integer of 0 or more, not -1"),
        ("ksg", {"k": 5000}, "k = 5000 neighbors need more than 5000 rows"),
    ],
)
def test_wrong_wishes_are_named(name, settings, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        found(name, rows=100, **settings)


def test_one_pair_is_too_few():
    with pytest.raises(ValueError, match="x has 1 row, but pairs are compared; give two or more"):
        nk.mutual_information([1.0], [2.0])


def test_a_critic_on_the_distance_needs_one_space():
    x, y = np.random.default_rng(0).standard_normal((2, 60, 3))
    with pytest.raises(ValueError, match="x and y in one space, but they have 3 and 2 columns"):
        nk.mutual_information(x, y[:, :2], "infonce", critic="on_distance")


@pytest.mark.parametrize("name", LEARNED)
def test_too_few_pairs_to_learn_are_told(name):
    with pytest.raises(ValueError, match="needs 40 pairs or more, not 39"):
        found(name, rows=39)


def test_what_diverges_is_an_error_and_not_a_nan():
    with pytest.raises(ValueError, match=r"training diverged: its loss .* was never finite"):
        found("nwj", rate=1e30, steps=30)


def test_the_catalog_lists_all_of_them():
    assert {entry.name for entry in catalog.members("estimator")} == set(ESTIMATORS)
    for entry in catalog.members("estimator"):
        assert " = " in entry.doc or " >= " in entry.doc or " <= " in entry.doc
        assert "bound" in entry.doc
        assert entry.source != entry.module


# --- training


def test_the_three_parts_share_no_pair():
    x = torch.arange(100.0)[:, None]
    parts = split(x, x, torch.Generator().manual_seed(0))
    rows = [side[0][:, 0].tolist() for side in (parts.train, parts.validation, parts.held_out)]
    assert sorted(chain(*rows)) == x[:, 0].tolist()
    assert [len(part) for part in rows] == [48, 12, 40]
    assert all(torch.equal(a, b) for a, b in (parts.train, parts.held_out))


def test_copies_of_a_pair_fall_into_one_part():
    x = torch.arange(100.0).repeat(20)[:, None]
    parts = split(x, x, torch.Generator().manual_seed(0))
    rows = [side[0][:, 0].tolist() for side in (parts.train, parts.validation, parts.held_out)]
    assert [len(part) for part in rows] == [960, 240, 800]
    assert [len(set(part)) for part in rows] == [48, 12, 40]
    assert sorted(chain(*rows)) == sorted(x[:, 0].tolist())
    assert len(set(chain(*map(set, rows)))) == 100


@pytest.mark.filterwarnings("ignore:.*pairs are copies", "ignore:.*has learned nothing")
@pytest.mark.parametrize("name", ["infonce", "nwj"])
def test_what_is_learned_by_heart_is_no_information(name):
    x, y = np.random.default_rng(0).standard_normal((2, 100, 4)).repeat(20, 1)
    seen = nk.mutual_information(x, y, name, batch=64, steps=300, rate=5e-3)
    assert seen.bits < 3 * seen.error + 0.02


def test_too_few_different_pairs_are_told():
    x = torch.arange(39.0).repeat(2)[:, None]
    with pytest.raises(ValueError, match="40 pairs or more, not 39 different ones among 78"):
        split(x, x, torch.Generator())


def test_batches_pass_over_all_pairs():
    x = torch.arange(10.0)[:, None]
    drawn = batches((x, -x), 4, torch.Generator().manual_seed(0))
    first, second = next(drawn), next(drawn)
    assert len({*first[0][:, 0].tolist(), *second[0][:, 0].tolist()}) == 8
    assert torch.equal(first[0], -first[1])
    assert len(next(batches((x, x), 50, torch.Generator().manual_seed(0)))[0]) == 10


def test_the_best_state_is_kept_and_training_ends_when_nothing_improves():
    module = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(module.weight, 1.0)
    seen = []

    def check():
        seen.append(float(module.weight.detach()))
        return abs(seen[-1] - 0.6)  # best on the way to -∞

    x = torch.ones(1, 1)
    endless = iter(lambda: (x, x), None)
    train(module, lambda a, b: module(a).sum(), endless, steps=1000, rate=0.01, check=check)
    assert abs(float(module.weight.detach()) - 0.6) == min(abs(w - 0.6) for w in seen)
    assert len(seen) < 25


def test_checks_are_dense_at_first_and_the_untouched_state_is_a_candidate():
    module, asked = torch.nn.Linear(1, 1, bias=False), []
    steps = iter(range(1000))
    one = torch.ones(1, 1)

    def drawn():
        for step in steps:
            module.step = step
            yield one, one

    def check():
        asked.append(getattr(module, "step", -1) + 1)
        return float(len(asked) > 1)  # everything that is learned is worse

    before = module.weight.detach().clone()
    kept = train(module, lambda a, b: module(a).sum(), drawn(), steps=500, rate=0.1, check=check)
    # Those before the twentieth do not count for the six that end it.
    assert asked == [0, 1, 2, 4, 8, 16, 20, 40, 60, 80, 100, 120, 140]
    assert kept == 0
    assert torch.equal(module.weight, before)


def test_a_finite_look_at_the_untouched_state_hides_no_divergence():
    module, values = torch.nn.Linear(1, 1), iter([0.0, 0.0, 0.0, *[math.nan] * 100])
    x = torch.ones(2, 1)
    endless = iter(lambda: (x, x), None)
    with pytest.raises(ValueError, match="training diverged"):
        train(
            module,
            lambda a, b: module(a).sum(),
            endless,
            steps=200,
            rate=0.1,
            check=lambda: next(values),
        )


def test_the_model_of_club_begins_as_the_marginal():
    x, y = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    said = Normal(3, 3).log_density(x, y)
    expected = torch.distributions.Normal(0.0, 1.0).log_prob(y).sum(1)
    torch.testing.assert_close(said, expected)


def test_the_gradient_of_mine_is_over_a_running_mean():
    generator = torch.Generator().manual_seed(0)
    loss, memory = Corrected(0.9), None
    for _ in range(3):
        s = torch.randn(4, 4, generator=generator, dtype=torch.float64, requires_grad=True)
        value = loss(s)
        assert value.item() == pytest.approx(donsker_varadhan(paired(s)).total.item())
        (slope,) = torch.autograd.grad(value, s)
        far = s.detach().exp() * (1 - torch.eye(4))
        mean = far.sum() / 12
        memory = mean if memory is None else 0.9 * memory + 0.1 * mean
        expected = far / 12 / memory - torch.eye(4) / 4
        torch.testing.assert_close(slope, expected)
    with torch.no_grad():
        loss(s)
    assert loss.log_running.exp().item() == pytest.approx(memory.item())
