"""Lifted structure and angular losses, against known values, loops over every tuple, plain autograd
and pytorch-metric-learning."""

import math

import pytest
import torch
import torch.nn.functional as F
from pytorch_metric_learning import losses as pml
from pytorch_metric_learning import reducers as pml_reducers
from quad4 import LABEL4, LABELS, QUAD4, in_batch, random_batch
from sorts import assert_equals, value_and_slope

from nearkin import mining
from nearkin.core import Comparison
from nearkin.losses.structured import angular, angular_hinge, generalized_lifted, lifted_structure
from nearkin.losses.triplets import triplet_hard

SHAPES = {**LABELS, "one of another class": [0, 0, 0, 0, 0, 1], "no negatives": [1, 1, 1]}


# --- slow ones: every tuple by itself, with plain autograd


def average(values, c):
    return torch.stack(values).mean() if values else c.similarity.sum() * 0


def positives(c, a):
    return c.same[a].nonzero()[:, 0].tolist()


def negatives(c, a):
    return c.different[a].nonzero()[:, 0].tolist()


def slow_lifted(c, margin=1.0):
    d, values = c.distance, []
    for i in range(c.shape[0]):
        for j in positives(c, i):
            terms = [(margin - d[i, k]).exp() for k in negatives(c, i)]
            terms += [(margin - d[j, k]).exp() for k in negatives(c, j)]
            hinge = (sum(terms).log() + d[i, j]).relu() if terms else c.similarity.sum() * 0
            values.append(hinge.square() / 2)
    return average(values, c)


def slow_generalized(c, margin=1.0):
    d, values = c.distance, []
    for i in range(c.shape[0]):
        near = [(margin - d[i, k]).exp() for k in negatives(c, i)]
        far = [d[i, j].exp() for j in positives(c, i)]
        if near and far:
            values.append((sum(far).log() + sum(near).log()).relu())
    return average(values, c)


def slow_angular(c, angle=45.0):
    s, t, values = c.similarity, math.tan(math.radians(angle)) ** 2, []
    for a in range(c.shape[0]):
        for p in positives(c, a):
            f = [4 * t * (s[a, n] + s[p, n]) - 2 * (1 + t) * s[a, p] for n in negatives(c, a)]
            values.append((1 + sum(x.exp() for x in f)).log() if f else c.similarity.sum() * 0)
    return average(values, c)


def slow_angular_hinge(c, angle=45.0):
    x, t, values = c.anchors, math.tan(math.radians(angle)) ** 2, []
    for a in range(c.shape[0]):
        for p in positives(c, a):
            base = (x[a] - x[p]).square().sum()
            for n in negatives(c, a):
                height = (x[n] - (x[a] + x[p]) / 2).square().sum()
                values.append((base - 4 * t * height).relu())
    return average(values, c)


SLOW = {
    lifted_structure: slow_lifted,
    generalized_lifted: slow_generalized,
    angular: slow_angular,
    angular_hinge: slow_angular_hinge,
}
every_loss = pytest.mark.parametrize("loss", SLOW, ids=lambda loss: loss.__name__)


def assert_equals_the_slow_one(loss, c_of, z, **chosen):
    return assert_equals(loss, SLOW[loss], c_of, z, **chosen)


# --- known values


def test_lifted_structure_of_quad4():
    terms = lifted_structure(in_batch(QUAD4, LABEL4))
    assert terms.total.item() == pytest.approx(2.7779943907, abs=1e-9)
    assert list(terms.other) == ["joint"]
    assert terms.tightness.item() == terms.contrast.item() == 0


@pytest.mark.parametrize(
    ("angle", "value"), [(45.0, 1.6739092738), (40.0, 1.2395261301), (36.0, 1.0243073884)]
)
def test_angular_of_quad4(angle, value):
    terms = angular(in_batch(QUAD4, LABEL4), angle=angle)
    assert terms.total.item() == pytest.approx(value, abs=1e-9)


def test_generalized_lifted_of_three_rows_by_hand():
    # On a line, 0 and 1 of one class, 3 of the other, which has no positive and is left out.
    c = in_batch(torch.tensor([[0.0], [1.0], [3.0]]).double(), torch.tensor([0, 0, 1]), "euclidean")
    # d_ap + margin - d_an: 1 + 1 - 3 is below 0, 1 + 1 - 2 is 0.
    assert generalized_lifted(c).total.item() == pytest.approx(0.0, abs=1e-7)
    assert generalized_lifted(c, margin=2.0).total.item() == pytest.approx(0.5, abs=1e-7)


def test_angular_hinge_of_a_triangle_by_hand():
    # The base is 2 long, the negative 0.5 above its middle: 4 - 4 tan² · 0.25.
    z = torch.tensor([[-1.0, 0], [1, 0], [0, 0.5]]).double()
    c = in_batch(z, torch.tensor([0, 0, 1]), "euclidean")
    assert angular_hinge(c).total.item() == pytest.approx(3.0, abs=1e-12)
    steep = math.tan(math.radians(60)) ** 2
    value = angular_hinge(c, angle=60.0).total.item()
    assert value == pytest.approx(4 - steep, abs=1e-12)
    # At the apex of a triangle whose half angle is the angle, it ends.
    z[2, 1] = 1 / math.tan(math.radians(30))
    c = in_batch(z, torch.tensor([0, 0, 1]), "euclidean")
    assert angular_hinge(c, angle=29.9).total.item() > 0
    assert angular_hinge(c, angle=30.1).total.item() == 0


# --- every tuple by itself


@every_loss
@pytest.mark.parametrize("labels", SHAPES)
@pytest.mark.parametrize("closeness", ["cosine", "euclidean"])
def test_value_and_gradient_equal_a_loop_over_every_tuple(loss, labels, closeness):
    z, label = random_batch(SHAPES[labels], 3)
    assert_equals_the_slow_one(loss, lambda z: in_batch(z, label, closeness), z)


@pytest.mark.parametrize("margin", [0.0, 0.5])
@pytest.mark.parametrize("loss", [lifted_structure, generalized_lifted])
def test_margins_are_margins(loss, margin):
    z, label = random_batch(LABELS["shuffled"], seed=1)
    assert_equals_the_slow_one(loss, lambda z: in_batch(z, label), z, margin=margin)


@pytest.mark.parametrize("angle", [15.0, 36.0, 55.0])
@pytest.mark.parametrize("loss", [angular, angular_hinge])
def test_angles_are_in_degrees(loss, angle):
    z, label = random_batch(LABELS["shuffled"], 2, seed=1)
    value = assert_equals_the_slow_one(loss, lambda z: in_batch(z, label), z, angle=angle)
    assert value > 0
    for wrong in (0.0, 90.0, -45.0):
        with pytest.raises(ValueError, match=f"between 0 and 90 degrees, not {wrong}"):
            loss(in_batch(z, label), angle=wrong)


@every_loss
@pytest.mark.parametrize("mine", [mining.hard, mining.multi_similarity])
def test_mined_pairs_are_the_only_ones(loss, mine):
    z, label = random_batch(LABELS["shuffled"], 2, seed=2)
    chosen = {"angle": 30.0} if loss in (angular, angular_hinge) else {}
    value = assert_equals_the_slow_one(loss, lambda z: mine(in_batch(z, label)), z, **chosen)
    assert value > 0


@every_loss
def test_rows_that_share_a_label_are_the_same(loss):
    z, _ = random_batch([0] * 6, 3)
    hot = torch.tensor([[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]]).bool()
    assert_equals_the_slow_one(loss, lambda z: in_batch(z, hot), z)


def test_generalized_lifted_reads_other_references_and_the_others_refuse_them():
    random = torch.Generator().manual_seed(0)
    s = torch.rand(3, 6, generator=random, dtype=torch.float64) * 1.9 - 0.9
    labels = torch.tensor([0, 1, 2]), torch.tensor([0, 0, 1, 2, 2, 2])
    assert_equals_the_slow_one(generalized_lifted, lambda s: Comparison(*labels, given=s), s)
    for loss in (lifted_structure, angular, angular_hinge):
        with pytest.raises(ValueError, match="both ends of a pair"):
            loss(Comparison(*labels, given=s))


# --- what they reduce to


def test_far_apart_lifted_structure_is_a_squared_hinge_on_the_nearest_negative_of_either_end():
    z, label = random_batch(LABELS["shuffled"])
    c = in_batch(1e4 * z, label, "euclidean")
    d, values = c.distance, []
    for i in range(len(label)):
        for j in positives(c, i):
            nearest = min(d[i][c.different[i]].min(), d[j][c.different[j]].min())
            values.append((d[i, j] + 1 - nearest).relu().square() / 2)
    value = lifted_structure(c).total
    assert value > 1e5
    torch.testing.assert_close(value, torch.stack(values).mean(), rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("labels", LABELS)
def test_generalized_lifted_on_hard_pairs_is_batch_hard(labels):
    z, label = random_batch(LABELS[labels])
    c = in_batch(z, label)
    one = generalized_lifted(mining.hard(c), margin=0.3).total
    torch.testing.assert_close(one, triplet_hard(c, margin=0.3).total, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("angle", [20.0, 36.0, 45.0, 55.0])
def test_the_hinge_and_the_exponent_differ_by_a_constant_on_unit_rows(angle):
    t = math.tan(math.radians(angle)) ** 2
    z, label = random_batch([0, 0, 1], seed=4)
    x = F.normalize(z)
    shift = 2 - 6 * t
    arguments = []
    for a, p in ((0, 1), (1, 0)):
        base = (x[a] - x[p]).square().sum()
        arguments.append(base - 4 * t * (x[2] - (x[a] + x[p]) / 2).square().sum())
        f = 4 * t * (x[a] + x[p]) @ x[2] - 2 * (1 + t) * x[a] @ x[p]
        assert arguments[-1].item() == pytest.approx(f.item() + shift, abs=1e-12)
    arguments = torch.stack(arguments)
    c = in_batch(z, label)
    torch.testing.assert_close(angular(c, angle=angle).total, F.softplus(arguments - shift).mean())
    torch.testing.assert_close(angular_hinge(c, angle=angle).total, arguments.relu().mean())
    if angle == 45.0:
        assert shift == pytest.approx(-4)


# --- pytorch-metric-learning

PEERS = {
    lifted_structure: lambda: pml.LiftedStructureLoss(
        neg_margin=1, pos_margin=0, reducer=pml_reducers.MeanReducer()
    ),
    generalized_lifted: lambda: pml.GeneralizedLiftedStructureLoss(
        neg_margin=1, pos_margin=0, reducer=pml_reducers.MeanReducer()
    ),
    angular: lambda: pml.AngularLoss(alpha=45),
}


@pytest.mark.parametrize("loss", PEERS, ids=lambda loss: loss.__name__)
@pytest.mark.parametrize("labels", ["balanced", "pairs"])
def test_value_and_gradient_equal_pytorch_metric_learning(loss, labels):
    z, label = random_batch(LABELS[labels])
    value, slope = value_and_slope(loss, lambda z: in_batch(z, label), z)
    peer = PEERS[loss]()
    # Its angular loss scales anchors and positives, not negatives: unit rows are given to it.
    expected, its_slope = value_and_slope(lambda z: peer(F.normalize(z), label), lambda z: z, z)
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(slope, its_slope, rtol=1e-7, atol=1e-9)
    assert slope.norm() > 0.01
