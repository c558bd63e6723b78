"""Hinges around a boundary, hard and soft, against known values, slow formulas and
pytorch-metric-learning."""

import math
from functools import partial

import pytest
import torch
from pytorch_metric_learning import losses as pml
from pytorch_metric_learning import reducers
from quad4 import LABEL4, LABELS, QUAD4, given, in_batch, random_batch
from sorts import SORTS, Z, assert_agrees, assert_equals_peer, mean_of, sides, total_of

from nearkin.core import Terms
from nearkin.losses.hinges import binomial_deviance, circle, margin, sigmoid

DOUBLE = partial(torch.tensor, dtype=torch.float64)
PER_CLASS = DOUBLE([1.2, 0.9, 1.1, 1.4, 1.0])

# --- known values on QUAD4


def test_margin_of_quad4():
    terms = margin(in_batch(QUAD4, LABEL4))
    assert terms.total.item() == pytest.approx(0.6482877361, abs=1e-9)
    # Two terms are open on each side: the farther positives, the nearer negatives.
    assert terms.total.item() * 4 == pytest.approx(2.5931509443, abs=1e-9)
    assert terms.tightness.item() * 4 == pytest.approx(2 * (math.sqrt(2) - 1.0), abs=1e-9)


@pytest.mark.parametrize(
    ("cost", "value"), [(25.0, 5.5785219842), (10.0, 2.8335082049), (1.0, 1.4065775646)]
)
def test_binomial_deviance_of_quad4(cost, value):
    terms = binomial_deviance(in_batch(QUAD4, LABEL4), cost=cost)
    assert terms.total.item() == pytest.approx(value, abs=1e-9)


def test_sigmoid_of_quad4_by_hand():
    terms = sigmoid(in_batch(QUAD4, LABEL4), log_scale=math.log(3), bias=-1.0)
    near, far = [0.5, 0.0], [0.0, -1.0, math.sqrt(0.75), -0.5]  # of unordered pairs
    tight = math.fsum(math.log1p(math.exp(-(3 * s - 1))) for s in near) * 2 / 4
    apart = math.fsum(math.log1p(math.exp(3 * s - 1)) for s in far) * 2 / 4
    assert terms.tightness.item() == pytest.approx(tight, abs=1e-12)
    assert terms.contrast.item() == pytest.approx(apart, abs=1e-12)


def test_circle_of_quad4_by_hand():
    def anchor(near, *far):
        pull = math.exp(-2 * (1.4 - near) * (near - 0.6))
        push = math.fsum(math.exp(2 * max(s + 0.4, 0) * (s - 0.4)) for s in far)
        return math.log1p(pull * push)

    high = math.sqrt(0.75)
    rows = [anchor(0.5, 0, -1), anchor(0.5, high, -0.5), anchor(0, 0, high), anchor(0, -1, -0.5)]
    terms = circle(in_batch(QUAD4, LABEL4), scale=2.0)
    assert terms.other["joint"].item() == pytest.approx(math.fsum(rows) / 4, abs=1e-12)
    assert terms.total.item() == terms.other["joint"].item()


# --- what they reduce to


@pytest.mark.parametrize("labels", LABELS)
def test_margin_is_the_contrastive_hinge_between_two_margins(labels):
    z, label = random_batch(LABELS[labels])
    c = in_batch(z, label)
    hinges = pml.ContrastiveLoss(pos_margin=1.0, neg_margin=1.4, reducer=reducers.SumReducer())
    open_near, open_far = c.same & (c.distance > 1.0), c.different & (c.distance < 1.4)
    terms = int(open_near.sum() + open_far.sum())
    assert_equals_peer(
        lambda z: margin(in_batch(z, label)).total * terms, lambda z: hinges(z, label), z
    )


def test_sigmoid_is_the_binomial_deviance_at_cost_one_but_for_the_divisors():
    c = in_batch(Z, SORTS["in batch"](Z).anchor_label)
    pairwise = sigmoid(c, log_scale=math.log(2), bias=-1.0)
    deviance = binomial_deviance(c, alpha=2.0, beta=0.5, cost=1.0)
    torch.testing.assert_close(pairwise.tightness * 11, deviance.tightness * c.same.sum())
    torch.testing.assert_close(pairwise.contrast * 11, deviance.contrast * c.different.sum())


def test_one_tensor_or_one_number_is_the_same_boundary_for_all():
    c = SORTS["in batch"](Z)
    wanted = margin(c, beta=1.1, nu=0.5).floats()
    for beta in (DOUBLE(1.1), DOUBLE([1.1] * 5), torch.full((5,), 1.1, dtype=torch.float64)):
        assert margin(c, beta=beta, nu=0.5).floats() == pytest.approx(wanted, rel=1e-12)


# --- slow formulas, anchor by anchor


def slow_margin(c, margin=0.2, beta=1.2, nu=0.0):
    tight, apart, boundaries = [], [], []
    for label, near, far in sides(c):
        b = beta[label] if isinstance(beta, torch.Tensor) and beta.ndim else beta
        tight += [h for h in (2 - 2 * near).sqrt() - b + margin if h > 0]
        apart += [h for h in b - (2 - 2 * far).sqrt() + margin if h > 0]
        boundaries.append(torch.as_tensor(b))
    terms = len(tight) + len(apart)
    spread = nu * total_of(boundaries) / terms if terms else torch.zeros(())
    other = {"beta": spread} if nu else {}
    return Terms(total_of(tight) / max(terms, 1), total_of(apart) / max(terms, 1), other)


def slow_binomial_deviance(c, alpha=2.0, beta=0.5, cost=25.0):
    near = [x for _, near, _ in sides(c) for x in near]
    far = [x for *_, far in sides(c) for x in far]
    return Terms(
        mean_of([(1 + (-alpha * (s - beta)).exp()).log() for s in near]),
        mean_of([(1 + (alpha * cost * (s - beta)).exp()).log() for s in far]),
    )


def slow_sigmoid(c, log_scale, bias):
    scale = torch.as_tensor(log_scale, dtype=torch.float64).exp()
    near = [(1 + (-(scale * s + bias)).exp()).log() for _, near, _ in sides(c) for s in near]
    far = [(1 + (scale * s + bias).exp()).log() for *_, far in sides(c) for s in far]
    return Terms(total_of(near) / c.shape[0], total_of(far) / c.shape[0])


def slow_circle(c, margin, scale):
    values = []
    for _, near, far in sides(c):
        if len(near) and len(far):
            pull = (1 + margin - near.detach()).clamp_min(0)
            push = (far.detach() + margin).clamp_min(0)
            positives = (-scale * pull * (near - 1 + margin)).exp().sum()
            negatives = (scale * push * (far - margin)).exp().sum()
            values.append((1 + positives * negatives).log())
    return Terms(other={"joint": mean_of(values)})


SLOW = [
    (margin, slow_margin, {}),
    (margin, slow_margin, {"margin": 0.3, "beta": DOUBLE(1.1), "nu": 0.7}),
    (margin, slow_margin, {"beta": PER_CLASS}),
    (margin, slow_margin, {"beta": PER_CLASS, "nu": 0.2}),
    (binomial_deviance, slow_binomial_deviance, {}),
    (binomial_deviance, slow_binomial_deviance, {"alpha": 3.0, "beta": 0.2, "cost": 0.5}),
    (sigmoid, slow_sigmoid, {"log_scale": 1.0, "bias": -2.0}),
    (sigmoid, slow_sigmoid, {"log_scale": DOUBLE(1.0), "bias": DOUBLE(-2.0)}),
    (sigmoid, slow_sigmoid, {"log_scale": 1.0, "bias": DOUBLE(0.5)}),
    (sigmoid, slow_sigmoid, {"log_scale": DOUBLE(0.5), "bias": -1.0}),
    (circle, slow_circle, {"margin": 0.4, "scale": 80.0}),
    (circle, slow_circle, {"margin": 0.25, "scale": 5.0}),
]


@pytest.mark.parametrize("sort", SORTS)
@pytest.mark.parametrize(("loss", "slow", "settings"), SLOW)
def test_it_equals_a_slow_formula_with_its_gradient(loss, slow, settings, sort):
    beta = settings.get("beta")
    if sort == "multi-hot" and isinstance(beta, torch.Tensor) and beta.ndim:
        with pytest.raises(ValueError, match="these labels are multi-hot"):
            loss(SORTS[sort](Z), **settings)
        return
    assert_agrees(loss, slow, SORTS[sort], settings)


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize(("loss", "slow", "settings"), SLOW)
def test_it_equals_a_slow_formula_by_its_parts(loss, slow, settings, labels):
    z, label = random_batch(LABELS[labels], seed=2)
    terms, expected = (f(in_batch(z, label), **settings) for f in (loss, slow))
    assert terms.floats() == pytest.approx(expected.floats(), rel=1e-10)


def test_more_blocks_than_one_change_nothing(monkeypatch):
    every = [margin, binomial_deviance, sigmoid, circle]
    whole = [loss(SORTS["in batch"](Z)).total.item() for loss in every]
    monkeypatch.setattr("nearkin.closed.IN_CACHE", 40)  # three rows at a time
    parts = [loss(SORTS["in batch"](Z)).total.item() for loss in every]
    assert parts == pytest.approx(whole, rel=1e-12)


# --- what is particular to each


def test_a_step_along_the_gradient_closes_hinges_of_the_margin_loss():
    z, label = random_batch(LABELS["unbalanced"])

    def hinges(z):
        c = in_batch(z, label)
        near, far = c.same & (c.distance > 1.0), c.different & (c.distance < 1.4)
        return margin(c).total * int(near.sum() + far.sum())

    moving = z.clone().requires_grad_()
    for _ in range(20):
        (slope,) = torch.autograd.grad(hinges(moving), moving)
        moving.data -= 0.02 * slope / (1 + slope.norm())
    assert hinges(moving).item() < hinges(z).item()


def test_without_open_hinges_the_margin_loss_is_zero_and_so_is_its_regularizer():
    c = given([[1.0, -1.0]], [0], [0, 1], closeness="cosine")
    terms = margin(c, beta=DOUBLE(1.2), nu=0.5)
    assert terms.floats() == {"total": 0.0, "tightness": 0.0, "contrast": 0.0, "beta": 0.0}


def test_a_weight_of_circle_is_zero_beyond_its_optimum():
    leaf = torch.tensor([[0.5, -0.6, 0.1]], dtype=torch.float64, requires_grad=True)
    terms = circle(given(leaf, [0], [0, 1, 2], closeness="cosine"))
    (slope,) = torch.autograd.grad(terms.total, leaf)
    assert slope[0, 0] < 0
    assert slope[0, 1] == 0
    assert slope[0, 2] > 0


# --- pytorch-metric-learning


@pytest.mark.parametrize("labels", LABELS)
def test_circle_equals_pytorch_metric_learning(labels):
    z, label = random_batch(LABELS[labels])
    peer = pml.CircleLoss(m=0.4, gamma=80)
    assert_equals_peer(lambda z: circle(in_batch(z, label)).total, lambda z: peer(z, label), z)


TRIPLETS = torch.tensor([[1, 1, 0, 2, 8, 5], [3, 8, 4, 7, 10, 0], [0, 2, 9, 6, 5, 3]])


def mined(z, label):
    return in_batch(z, label).columns(TRIPLETS[0], TRIPLETS[1:].T)


def test_margin_of_triplets_equals_pytorch_metric_learning():
    z, label = random_batch(LABELS["shuffled"])
    peer = pml.MarginLoss(margin=0.2, nu=0, beta=1.25)  # they keep it in float32: 1.25 is exact
    assert_equals_peer(
        lambda z: margin(mined(z, label), beta=1.25).total,
        lambda z: peer(z, label, tuple(TRIPLETS)),
        z,
    )


def test_margin_with_a_boundary_per_class_equals_pytorch_metric_learning():
    z, label = random_batch(LABELS["shuffled"])
    peer = pml.MarginLoss(margin=0.2, nu=0.3, beta=1.2, learn_beta=True, num_classes=5).double()
    peer.beta.data.copy_(PER_CLASS)
    beta = PER_CLASS.clone().requires_grad_()
    value = margin(mined(z, label), beta=beta, nu=0.3).total
    expected = peer(z, label, tuple(TRIPLETS))
    torch.testing.assert_close(value, expected)
    value.backward()
    expected.backward()
    torch.testing.assert_close(beta.grad, peer.beta.grad)


# --- wrong settings


@pytest.mark.parametrize(
    ("loss", "name"),
    [(binomial_deviance, "alpha"), (binomial_deviance, "cost"), (circle, "scale")],
)
def test_a_setting_must_be_above_zero(loss, name):
    with pytest.raises(ValueError, match=f"{name} must be above 0, not 0"):
        loss(in_batch(QUAD4, LABEL4), **{name: 0.0})


def test_the_margin_loss_names_what_is_wrong_with_its_boundaries():
    c = SORTS["in batch"](Z)
    with pytest.raises(ValueError, match=r"label 4 is out of range: .* classes 0..3"):
        margin(c, beta=PER_CLASS[:4])
    with pytest.raises(ValueError, match=r"label -1 is out of range"):
        margin(in_batch(QUAD4, LABEL4 - 1), beta=PER_CLASS)
    with pytest.raises(ValueError, match=r"one for each class .* not \(5, 1\)"):
        margin(c, beta=PER_CLASS[:, None])
    with pytest.raises(ValueError, match="nu must be at least 0, not -1"):
        margin(c, nu=-1.0)
    with pytest.raises(ValueError, match="'inner' has no distance"):
        margin(in_batch(QUAD4, LABEL4, "inner"))


@pytest.mark.parametrize("closeness", ["inner", "euclidean"])
def test_circle_refuses_what_is_no_angle(closeness):
    with pytest.raises(ValueError, match=f"circle needs angles, but .* {closeness!r}; use cosine"):
        circle(in_batch(QUAD4, LABEL4, closeness))
