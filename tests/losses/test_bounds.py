"""Bounds as losses."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given as drawn
from hypothesis import strategies as st
from quad4 import LABELS, cosines, given, in_batch, random_batch

import nearkin as nk
from nearkin.compare import AcrossViews
from nearkin.core import Batch
from nearkin.losses.bounds import (
    donsker_varadhan,
    interpolated,
    js_kl,
    jsd,
    nwj,
    smile,
    tuba,
)

# What is added to -total to have the bound.
BOUNDS = {donsker_varadhan: 0, nwj: 0, tuba: 1, interpolated: 1, smile: 0, js_kl: 1}
every = pytest.mark.parametrize("bound", BOUNDS, ids=lambda bound: bound.__name__)


@pytest.mark.parametrize("labels", LABELS)
def test_jsd_is_a_class_balanced_logistic_loss(labels):
    z, label = random_batch(LABELS[labels])
    c = in_batch(z, label)
    terms = jsd(c)
    near, far = c.similarity[c.same], c.similarity[c.different]
    one, zero = torch.ones_like(near), torch.zeros_like(far)
    torch.testing.assert_close(terms.tightness, F.binary_cross_entropy_with_logits(near, one))
    torch.testing.assert_close(terms.contrast, F.binary_cross_entropy_with_logits(far, zero))


def test_jsd_equals_a_slow_loop():
    z, label = random_batch(LABELS["unbalanced"])
    s, y = cosines(z), label.tolist()
    pairs = [(i, j) for i in range(len(y)) for j in range(len(y)) if i != j]
    near = [math.log1p(math.exp(-s[i][j])) for i, j in pairs if y[i] == y[j]]
    far = [math.log1p(math.exp(s[i][j])) for i, j in pairs if y[i] != y[j]]
    terms = jsd(in_batch(z, label))
    assert terms.tightness.item() == pytest.approx(math.fsum(near) / len(near), rel=1e-10)
    assert terms.contrast.item() == pytest.approx(math.fsum(far) / len(far), rel=1e-10)


@pytest.mark.parametrize("constant", [-3.0, 0.0, 2.0])
def test_a_constant_judge_bounds_nothing(constant):
    c = given(torch.full((4, 4), constant), [0, 0, 1, 1], [0, 0, 1, 1])
    value = jsd(c).total.item() - 2 * math.log(2)
    expected = math.log1p(math.exp(-constant)) + math.log1p(math.exp(constant)) - 2 * math.log(2)
    assert value == pytest.approx(expected, abs=1e-12)
    assert value >= -1e-15


def test_known_slopes_along_the_distance():
    d = torch.tensor([0.3, 0.7, 1.1, 1.5], dtype=torch.float64, requires_grad=True)
    judged = 3 * (1 - d)
    s = torch.stack([judged, judged], 1)  # each row: one same pair and one different pair
    c = replace(given(s.detach(), [0, 0, 0, 0], [0, 1]), given=s)
    (to_same,) = torch.autograd.grad(jsd(c).tightness, d, retain_graph=True)
    (to_other,) = torch.autograd.grad(jsd(c).contrast, d)
    expected = [0.0818226159, 0.2167878730, 0.4308318876, 0.6131808571]
    torch.testing.assert_close(to_same, torch.tensor(expected).double(), atol=1e-7, rtol=0)
    expected = [-0.6681773841, -0.5332121270, -0.3191681124, -0.1368191429]
    torch.testing.assert_close(to_other, torch.tensor(expected).double(), atol=1e-7, rtol=0)


def test_at_the_log_ratio_of_densities_it_is_twice_the_divergence():
    # Same pairs have similarity 0 or 1 with odds 1:3, different ones with odds 3:1.
    v = math.log(3)
    s = torch.tensor([[-v, v, v, v, -v, -v, -v, v]])
    c = given(s, [0], [0, 0, 0, 0, 1, 1, 1, 1])
    p, q = (0.25, 0.75), (0.75, 0.25)
    divergence = sum(
        x * math.log(2 * x / (x + y)) / 2 + y * math.log(2 * y / (x + y)) / 2
        for x, y in zip(p, q, strict=True)
    )
    assert 2 * math.log(2) - jsd(c).total.item() == pytest.approx(2 * divergence, abs=1e-12)


def test_extreme_judgments_stay_finite():
    s = torch.tensor([[-1e4, 1e4]], dtype=torch.float32, requires_grad=True)
    c = given(s, [0], [0, 1])
    value = jsd(c).total
    (gradient,) = torch.autograd.grad(value, s)
    assert value.item() == pytest.approx(2e4)
    assert gradient.tolist() == [[-1.0, 1.0]]


# --- bounds of mutual information


def read(bound, c, **settings):
    return BOUNDS[bound] - bound(c, **settings).total.item()


def paired(s):
    """Each row's partner is the column of its own number."""
    return given(s, range(len(s)), range(len(s)))


@pytest.mark.parametrize(
    ("bound", "settings", "expected"),
    [
        (donsker_varadhan, {}, 1.8798854930417224),
        (nwj, {}, 1.8160602794142788),
        (tuba, {"log_baseline": 1.0}, 1.8160602794142788),
        (smile, {"clip": 0.5}, 2.2190701963798385),
    ],
)
def test_values_of_two_pairs(bound, settings, expected):
    c = paired(torch.tensor([[2.0, 0.0], [1.0, 3.0]]))
    assert read(bound, c, **settings) == pytest.approx(expected, abs=1e-12)
    assert 2 * math.log(2) - jsd(c).total.item() == pytest.approx(0.2953322457724492, abs=1e-12)


def test_the_parts_of_two_pairs_by_hand():
    c = paired(torch.tensor([[2.0, 0.0], [1.0, 3.0]]))
    far = (1 + math.e) / 2
    for bound, contrast in (
        (donsker_varadhan, math.log(far)),
        (nwj, far / math.e),
        (tuba, far),
        (js_kl, far),
    ):
        terms = bound(c)
        assert terms.tightness.item() == pytest.approx(-2.5, abs=1e-12)
        assert terms.contrast.item() == pytest.approx(contrast, abs=1e-12)


@pytest.mark.parametrize("constant", [-2.0, 0.0, 1.0, 3.0])
def test_a_constant_critic_tells_nothing(constant):
    c = paired(torch.full((3, 3), constant))
    assert read(donsker_varadhan, c) == pytest.approx(0, abs=1e-12)
    assert read(interpolated, c, alpha=1.0) == pytest.approx(0, abs=1e-12)
    assert read(nwj, c) == pytest.approx(constant - math.exp(constant - 1), abs=1e-12)
    assert read(js_kl, c) == pytest.approx(1 + constant - math.exp(constant), abs=1e-12)
    assert read(smile, c, clip=5.0) == pytest.approx(0, abs=1e-12)


@drawn(st.lists(st.floats(-8, 8), min_size=9, max_size=9), st.floats(-5, 5))
def test_donsker_varadhan_is_tuba_at_its_best_baseline(entries, baseline):
    c = paired(torch.tensor(entries).double().view(3, 3))
    best = donsker_varadhan(c).contrast.item()
    assert read(tuba, c, log_baseline=best) == pytest.approx(read(donsker_varadhan, c), abs=1e-9)
    for bound in (nwj(c).total.item(), tuba(c, log_baseline=baseline).total.item() - 1):
        assert -bound <= read(donsker_varadhan, c) + 1e-9


@drawn(st.lists(st.floats(-8, 8), min_size=9, max_size=9), st.floats(-3, 3))
def test_a_number_added_to_the_critic_changes_only_what_it_must(entries, by):
    s = torch.tensor(entries).double().view(3, 3)
    one, two = paired(s), paired(s + by)
    assert read(donsker_varadhan, two) == pytest.approx(read(donsker_varadhan, one), abs=1e-9)
    assert read(interpolated, two, alpha=1.0) == pytest.approx(
        read(interpolated, one, alpha=1.0), abs=1e-9
    )
    assert read(tuba, two, log_baseline=by) == pytest.approx(read(tuba, one), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("temperature", [1.0, 0.2])
def test_bounds_equal_slow_loops(labels, temperature):
    z, label = random_batch(LABELS[labels])
    s, y, n = cosines(z), label.tolist(), len(label)
    pairs = [(i, j) for i in range(n) for j in range(n) if i != j]
    near = [s[i][j] / temperature for i, j in pairs if y[i] == y[j]]
    far = [s[i][j] / temperature for i, j in pairs if y[i] != y[j]]
    c = in_batch(z, label)
    joint, product = math.fsum(near) / len(near), sum(map(math.exp, far)) / len(far)
    clipped = [min(max(f, -0.3), 0.3) for f in far]
    expected = {
        donsker_varadhan: joint - math.log(product),
        nwj: joint - product / math.e,
        tuba: 1 + joint - product,
        js_kl: 1 + joint - product,
    }
    for bound, value in expected.items():
        assert read(bound, c, temperature=temperature) == pytest.approx(value, rel=1e-10)
    value = joint - math.log(sum(map(math.exp, clipped)) / len(clipped))
    assert read(smile, c, temperature=temperature, clip=0.3) == pytest.approx(value, rel=1e-10)


def slow_interpolated(s, y, alpha, q, outside=False):
    """The paper's bound by its definition; `outside`: the mean over what is left out is outside of
    the log, as in the paper."""
    n, joint, product = len(y), [], []
    for i in range(n):
        far = [math.exp(s[i][k]) for k in range(n) if y[k] != y[i]]
        m = sum(far) / len(far)
        product += [e / (alpha * m + (1 - alpha) * q) for e in far]
        for j in range(n):
            if j == i or y[j] != y[i]:
                continue
            each = [(math.exp(s[i][j]) + sum(far) - left) / len(far) for left in far]
            each = each if outside else [sum(each) / len(each)]
            logs = [math.log(alpha * mean + (1 - alpha) * q) for mean in each]
            joint.append(s[i][j] - sum(logs) / len(logs))
    return 1 + sum(joint) / len(joint) - sum(product) / len(product)


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("alpha", [0.0, 0.01, 0.5, 1.0])
def test_interpolated_equals_its_definition(labels, alpha):
    z, label = random_batch(LABELS[labels])
    c, s, y = in_batch(3 * z, label, "inner"), (9 * z @ z.T).tolist(), label.tolist()
    c = replace(c, given=torch.tensor(s, dtype=torch.float64).clamp(-6, 6))
    s, q = c.similarity.tolist(), math.exp(0.7)
    seen = read(interpolated, c, alpha=alpha, log_baseline=0.7)
    assert seen == pytest.approx(slow_interpolated(s, y, alpha, q), rel=1e-9)
    assert seen <= slow_interpolated(s, y, alpha, q, outside=True) + 1e-9


def test_interpolated_ends_at_tuba_and_under_the_ceiling_of_infonce():
    z, label = random_batch(LABELS["pairs"])
    c = in_batch(z, label)
    assert read(interpolated, c, alpha=0.0, log_baseline=0.3) == pytest.approx(
        read(tuba, c, log_baseline=0.3), abs=1e-12
    )
    # A critic that is sure: each anchor has four different rows.
    sure = replace(c, given=100.0 * c.same.double())
    for alpha in (0.01, 0.5, 1.0):
        ceiling = math.log(4 / alpha)
        assert read(interpolated, sure, alpha=alpha) == pytest.approx(ceiling, abs=1e-6)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("labels", [[0, 1, 2], [1, 1, 1], [0], [0, 0, 1], [0, 1, 1, 1]])
def test_interpolated_is_finite_at_its_borders(alpha, labels):
    z, label = random_batch(labels, dtype=torch.float32)
    z.requires_grad_()
    total = interpolated(in_batch(1e4 * z, label, "inner"), alpha=alpha).total
    (gradient,) = torch.autograd.grad(total, z)
    assert total.isfinite()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("bound", [smile, js_kl])
def test_what_is_read_off_learns_by_the_jensen_shannon_bound(bound):
    z, label = random_batch(LABELS["unbalanced"])
    z.requires_grad_()
    (seen,) = torch.autograd.grad(bound(in_batch(z, label)).total, z)
    (expected,) = torch.autograd.grad(jsd(in_batch(z, label)).total, z)
    torch.testing.assert_close(seen, expected)


@every
def test_a_bound_is_finite_where_the_exponential_is_not(bound):
    s = torch.tensor([[0.0, 1e4, 0.0], [200.0, 0.0, 1.0], [1.0, 0.0, -1e4]], dtype=torch.float32)
    c = replace(paired(s), given=s.requires_grad_())
    total = bound(c).total
    (gradient,) = torch.autograd.grad(total, s)
    assert total.isfinite()
    assert gradient.isfinite().all()
    assert gradient[0, 1] > 0


@every
def test_a_bound_learns_its_temperature_and_baseline(bound):
    able = {"tuba", "interpolated"} & {bound.__name__}
    learn = {key: {"start": 0.5} for key in ("temperature", *["log_baseline"] * len(able))}
    criterion = nk.criterion(bound.__name__, learn=learn)
    z, label = random_batch(LABELS["unbalanced"], dtype=torch.float32)
    criterion(z, label).backward()
    for value in criterion.parameters():
        assert value.grad is not None
        assert value.grad.item() != 0


@every
def test_a_bound_between_two_views_is_over_their_pairs(bound):
    z, _ = random_batch([0, 1, 2, 3] * 2)
    batch = Batch(None, view=torch.tensor([0] * 4 + [1] * 4), pair=torch.arange(4).repeat(2))
    unit = F.normalize(z)
    expected = bound(paired(unit[:4] @ unit[4:].T))
    seen = bound(AcrossViews("cosine")(z, batch))
    assert seen.tightness.item() == pytest.approx(expected.tightness.item(), abs=1e-12)
    assert seen.contrast.item() == pytest.approx(expected.contrast.item(), abs=1e-12)


@every
def test_a_bound_takes_a_memory_and_its_place_in_a_sum(bound):
    z, label = random_batch(LABELS["balanced"], dim=8, dtype=torch.float32)
    criterion = nk.criterion(bound.__name__, memory=24, dim=8)
    first, second = criterion(z, label), criterion(z, label)
    assert first.isfinite()
    assert second.item() != first.item()
    parts = {
        "loss": {"compared": {"compare": {"in_batch": {}}, "loss": {"supcon": {}}}},
        "bound": {"compared": {"compare": {"in_batch": {}}, "loss": {bound.__name__: {}}}},
    }
    objective = nk.objective({"sum": {"parts": parts, "weights": {"bound": 0.1}}})
    (turn,) = objective.turns(z.requires_grad_(), label)
    alone = nk.criterion("supcon")(z, label) + 0.1 * nk.criterion(bound.__name__)(z, label)
    assert turn.terms.total.item() == pytest.approx(alone.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("bound", "settings", "said"),
    [
        (nwj, {"temperature": 0.0}, "temperature must be above 0, not 0.0"),
        (smile, {"clip": 0.0}, "clip must be above 0"),
        (interpolated, {"alpha": 1.5}, r"alpha must be from 0 \(TUBA\) to 1 \(InfoNCE\), not 1.5"),
        (tuba, {"log_baseline": torch.zeros(3)}, r"log_baseline must be one number, .*\(3,\)"),
    ],
)
def test_wrong_settings_of_a_bound_are_named(bound, settings, said):
    with pytest.raises(ValueError, match=said):
        bound(paired(torch.eye(2)), **settings)
