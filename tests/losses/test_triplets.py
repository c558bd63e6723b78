"""Triplet and quadruplet losses, against known values, loops over every tuple, plain autograd and
pytorch-metric-learning."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given as examples
from hypothesis import settings
from hypothesis import strategies as st
from pytorch_metric_learning import distances as pml_distances
from pytorch_metric_learning import losses as pml
from pytorch_metric_learning import miners as pml_miners
from pytorch_metric_learning import reducers as pml_reducers
from quad4 import LABEL4, LABELS, QUAD4, given, in_batch, random_batch
from sorts import assert_equals, value_and_slope
from torch import Tensor

from nearkin import mining
from nearkin.core import Comparison
from nearkin.losses.triplets import (
    by_passes,
    by_search,
    easy_positive_hard_negative,
    easy_positive_semi_hard_negative,
    over_quadruplets,
    quadruplet,
    quadruplets,
    triplet,
    triplet_hard,
    triplet_semi_hard,
    triplet_soft_margin,
)

# Unit vectors at 0, 60, 90, 180, 200, 300 degrees.
QUAD6 = torch.tensor(
    [[math.cos(math.radians(a)), math.sin(math.radians(a))] for a in (0, 60, 90, 180, 200, 300)],
    dtype=torch.float64,
)
LABEL6 = torch.tensor([0, 0, 1, 1, 2, 2])
SHAPES = {**LABELS, "one of another class": [0, 0, 0, 0, 0, 1], "no negatives": [1, 1, 1]}


# --- slow ones: every tuple by itself, with plain autograd


def zero(c):
    return c.similarity.sum() * 0


def average(values, c):
    return torch.stack(values).mean() if values else zero(c)


def positives(c, a):
    return c.same[a].nonzero()[:, 0].tolist()


def negatives(c, a):
    return c.different[a].nonzero()[:, 0].tolist()


def every(c):
    return [(a, p, n) for a in range(c.shape[0]) for p in positives(c, a) for n in negatives(c, a)]


def slow_triplet(c, margin=0.2):
    d = c.distance
    hinges = [(d[a, p] - d[a, n] + margin).relu() for a, p, n in every(c)]
    return average([hinge for hinge in hinges if hinge > 0], c)


def slow_soft_margin(c):
    d = c.distance
    return average([(1 + (d[a, p] - d[a, n]).exp()).log() for a, p, n in every(c)], c)


def slow_hard(c, margin=0.2):
    d, hinges = c.distance, []
    for a in range(c.shape[0]):
        if positives(c, a) and negatives(c, a):
            far = max((d[a, p] for p in positives(c, a)), key=Tensor.item)
            near = min((d[a, n] for n in negatives(c, a)), key=Tensor.item)
            hinges.append((far - near + margin).relu())
    return average(hinges, c)


def slow_semi_hard(c, margin=0.2):
    d, hinges = 2 - 2 * c.similarity, []
    for a in range(c.shape[0]):
        others = [d[a, n] for n in negatives(c, a)]
        for p in positives(c, a) if others else []:
            beyond = [far for far in others if far > d[a, p]]
            chosen = min(beyond, key=Tensor.item) if beyond else max(others, key=Tensor.item)
            hinges.append((d[a, p] - chosen + margin).relu())
    return average(hinges, c)


def slow_easy_positive(c, temperature=0.1, semi=False):
    s, values = c.similarity, []
    for a in range(c.shape[0]):
        near = max(
            (s[a, p] for p in positives(c, a) if s[a, p] < 0.9999), key=Tensor.item, default=None
        )
        if near is None or near <= 0:
            continue
        others = [s[a, n] for n in negatives(c, a) if not semi or s[a, n] <= near]
        far = max(others, key=Tensor.item, default=None)
        if far is not None and far > 0:
            values.append(-torch.stack([near, far]).div(temperature).log_softmax(0)[0])
    return average(values, c)


def slow_easy_positive_semi(c, temperature=0.1):
    return slow_easy_positive(c, temperature, semi=True)


def slow_quadruplet(c, margin=1.0, second_margin=0.5):
    g, label = 2 - 2 * c.similarity, c.anchor_label.tolist()
    first = [(g[a, p] - g[a, n] + margin).relu() for a, p, n in every(c)]
    second = [
        (g[i, j] - g[one, other] + second_margin).relu()
        for i in range(len(label))
        for j in positives(c, i)
        for one in range(len(label))
        for other in negatives(c, one)
        if label[i] not in (label[one], label[other])
    ]
    return average(first, c) + average(second, c)


SLOW = {
    triplet: slow_triplet,
    triplet_soft_margin: slow_soft_margin,
    triplet_semi_hard: slow_semi_hard,
    triplet_hard: slow_hard,
    easy_positive_hard_negative: slow_easy_positive,
    easy_positive_semi_hard_negative: slow_easy_positive_semi,
    quadruplet: slow_quadruplet,
}
every_loss = pytest.mark.parametrize("loss", SLOW, ids=lambda loss: loss.__name__)
every_loss_of_anchors = pytest.mark.parametrize(
    "loss", [loss for loss in SLOW if loss is not quadruplet], ids=lambda loss: loss.__name__
)


def assert_equals_the_slow_one(loss, c_of, z, **chosen):
    return assert_equals(loss, SLOW[loss], c_of, z, **chosen)


# --- known values


def test_triplet_of_quad4_is_the_mean_over_violating_triplets():
    terms = triplet(in_batch(QUAD4, LABEL4))
    assert terms.total.item() == pytest.approx(0.6596457940, abs=1e-9)
    assert list(terms.other) == ["joint"]
    assert terms.tightness.item() == terms.contrast.item() == 0


def test_semi_hard_of_quad4():
    c = in_batch(QUAD4, LABEL4)
    assert triplet_semi_hard(c).total.item() == pytest.approx(0.05, abs=1e-12)
    assert triplet_semi_hard(c, margin=1.0).total.item() == pytest.approx(0.25, abs=1e-12)


def test_batch_hard_of_quad4_by_hand():
    # Farthest positive and nearest negative: 1 and √2, 1 and .5176, √2 and .5176, √2 and √3.
    near = 2 * math.sin(math.radians(15))
    expected = (1 - near + 0.2 + math.sqrt(2) - near + 0.2) / 4
    assert triplet_hard(in_batch(QUAD4, LABEL4)).total.item() == pytest.approx(expected, abs=1e-12)


def test_easy_positive_of_quad4():
    c = in_batch(QUAD4, LABEL4)
    of_hard, of_semi = easy_positive_hard_negative(c), easy_positive_semi_hard_negative(c)
    # Rows 2 and 3 have their positive at 90 degrees: cos 90 is 6e-17 here, and counts as above 0.
    assert of_hard.total.item() == pytest.approx(4.1175991270, abs=1e-9)
    assert of_semi.total.item() == pytest.approx(0.3499312645, abs=1e-9)


def test_quadruplet_of_quad6_in_its_two_means():
    c = in_batch(QUAD6, LABEL6)
    first, second = 0.6913030542, 0.5255023967
    assert quadruplet(c).total.item() == pytest.approx(first + second, abs=1e-9)
    total = over_quadruplets(c, 0.5, torch.zeros_like(c.similarity), torch.ones(()))
    assert (total / quadruplets(c)).item() == pytest.approx(second, abs=1e-9)


# --- every tuple by itself


@every_loss
@pytest.mark.parametrize("labels", SHAPES)
@pytest.mark.parametrize("closeness", ["cosine", "euclidean"])
def test_value_and_gradient_equal_a_loop_over_every_tuple(loss, labels, closeness):
    z, label = random_batch(SHAPES[labels], 3)
    assert_equals_the_slow_one(loss, lambda z: in_batch(z, label, closeness), z)


@pytest.mark.parametrize("margin", [0.0, 0.05, 1.0])
@pytest.mark.parametrize("loss", [triplet, triplet_semi_hard, triplet_hard, quadruplet])
def test_margins_are_margins(loss, margin):
    z, label = random_batch(LABELS["shuffled"], seed=1)
    assert_equals_the_slow_one(loss, lambda z: in_batch(z, label), z, margin=margin)


@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_a_temperature_divides_similarities(temperature):
    z, label = random_batch(LABELS["shuffled"], seed=1)
    for loss in (easy_positive_hard_negative, easy_positive_semi_hard_negative):
        chosen = {"temperature": temperature}
        assert_equals_the_slow_one(loss, lambda z: in_batch(z, label), z, **chosen)
        with pytest.raises(ValueError, match="temperature must be above 0, not 0"):
            loss(in_batch(z, label), temperature=0.0)


@every_loss
@pytest.mark.parametrize("mine", [mining.hard, mining.multi_similarity])
def test_mined_pairs_are_the_only_ones(loss, mine):
    z, label = random_batch(LABELS["shuffled"], seed=2)
    assert_equals_the_slow_one(loss, lambda z: mine(in_batch(z, label)), z)


@every_loss_of_anchors
def test_anchors_against_other_rows_by_a_similarity_that_is_given(loss):
    random = torch.Generator().manual_seed(0)
    s = torch.rand(5, 9, generator=random, dtype=torch.float64) * 1.9 - 0.9
    labels = [0, 1, 2, 3, 4], [0, 0, 0, 1, 2, 2, 3, 3, 3]
    allowed = torch.rand(5, 9, generator=random) < 0.8

    def c_of(s):
        return Comparison(*map(torch.tensor, labels), allowed=allowed, given=s)

    assert_equals_the_slow_one(loss, c_of, s)


@settings(deadline=None, max_examples=60)
@examples(st.data())
def test_triplet_equals_the_loop_also_on_ties_and_where_columns_are_left_out(data):
    anchors, columns = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 6))

    def draw(low, high, n):
        return torch.tensor(data.draw(st.lists(st.integers(low, high), min_size=n, max_size=n)))

    s = draw(0, 4, anchors * columns).view(anchors, columns) / 4
    labels = draw(0, 2, anchors), draw(0, 2, columns)
    allowed = draw(0, 1, anchors * columns).view(anchors, columns).bool()

    def c_of(s):
        return given(s, *labels, allowed=allowed, closeness="cosine")

    assert_equals_the_slow_one(triplet, c_of, s.double(), margin=0.3)


@settings(deadline=None, max_examples=60)
@examples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9), st.integers(0, 99))
def test_many_positives_are_searched_with_the_counts_that_passes_give(rows, most, columns, seed):
    random = torch.Generator().manual_seed(seed)
    near = torch.randint(4, (rows, most), generator=random).float()
    near[torch.rand(near.shape, generator=random) < 0.3] = torch.finfo(near.dtype).min
    far = torch.randint(4, (rows, columns), generator=random).float()
    far[torch.rand(far.shape, generator=random) < 0.3] = torch.finfo(far.dtype).max
    of_near, of_far = by_passes(near, far)
    beaten = near[:, :, None] > far[:, None]
    assert torch.equal(of_near, beaten.sum(2).float())
    assert torch.equal(of_far, beaten.sum(1).float())
    for one, two in zip(by_search(near, far), (of_near, of_far), strict=True):
        assert torch.equal(one, two)


def test_a_class_of_more_than_64_rows():
    z, label = random_batch([0] * 70 + [1] * 3 + [2])
    d = in_batch(z, label).distance
    same, different = label[:, None] == label, label[:, None] != label
    same.fill_diagonal_(False)
    hinges = (d[:, :, None] - d[:, None] + 0.2).relu()
    hinges *= same[:, :, None] & different[:, None]
    expected = hinges.sum() / (hinges > 0).sum()
    value = triplet(in_batch(z, label)).total
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("loss", [triplet, quadruplet])
def test_float32_keeps_the_small_remainder_of_large_sums(loss):
    random = torch.Generator().manual_seed(0)
    label = torch.arange(200) // 4
    z = torch.randn(50, 32, generator=random)[label] + torch.randn(200, 32, generator=random) * 0.6
    low, high = loss(in_batch(z, label)).total, loss(in_batch(z.double(), label)).total
    assert low.dtype == torch.float32
    assert low.item() == pytest.approx(high.item(), rel=2e-6)


# --- borders


def test_triplets_far_apart_cost_nothing():
    z = torch.tensor([[1.0, 0], [1, 0], [-1, 0], [-1, 0]]).double()
    for loss in (triplet, triplet_semi_hard, triplet_hard, quadruplet):
        value, slope = value_and_slope(loss, lambda z: in_batch(z, LABEL4), z)
        assert value.item() == 0
        assert torch.equal(slope, torch.zeros_like(z))


def test_a_copy_of_the_anchor_is_no_easy_positive():
    # Rows 0 and 1 are one picture; the other positive of both is at 45 degrees, the negative at 60.
    angles = torch.tensor([0.0, 0, 45, 60]).double().deg2rad()
    c = in_batch(torch.stack([angles.cos(), angles.sin()], 1), torch.tensor([0, 0, 0, 1]))
    across, beside = math.cos(math.radians(60)), math.cos(math.radians(15))
    near = math.cos(math.radians(45))
    expected = [2 * math.log1p(math.exp((across - near) / 0.1)), 0.0]
    expected[1] = math.log1p(math.exp((beside - near) / 0.1))
    value = easy_positive_hard_negative(c).total.item()
    assert value == pytest.approx(sum(expected) / 3, rel=1e-12)
    # The third anchor's only negative is nearer than its positives.
    value = easy_positive_semi_hard_negative(c).total.item()
    assert value == pytest.approx(expected[0] / 2, rel=1e-12)


def test_quadruplet_refuses_rows_of_several_labels_and_other_references():
    z, _ = random_batch([0, 0, 1, 1])
    hot = torch.tensor([[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 1]]).bool()
    with pytest.raises(ValueError, match="several labels; use triplet"):
        quadruplet(in_batch(z, hot))
    with pytest.raises(ValueError, match="both ends of a pair"):
        quadruplet(mining.semi_hard(in_batch(z, LABEL4)))


def test_a_row_without_a_label_is_a_class_of_its_own_to_quadruplet():
    z, _ = random_batch([0] * 6)
    hot = torch.tensor([[1, 0], [1, 0], [0, 1], [0, 1], [0, 0], [0, 0]]).bool()
    one = quadruplet(in_batch(z, hot)).total
    two = quadruplet(in_batch(z, torch.tensor([0, 0, 1, 1, 2, 3]))).total
    torch.testing.assert_close(one, two, rtol=1e-12, atol=0.0)


# --- what they reduce to


@pytest.mark.parametrize("labels", LABELS)
def test_the_hardest_triplet_with_a_soft_margin_is_hermans_soft_batch_hard(labels):
    z, label = random_batch(LABELS[labels])
    c = in_batch(z, label)
    d, values = c.distance, []
    for a in range(len(label)):
        if positives(c, a) and negatives(c, a):
            gap = d[a][c.same[a]].max() - d[a][c.different[a]].min()
            values.append(math.log1p(math.exp(gap)))
    value = triplet_soft_margin(mining.hard(c)).total.item()
    assert value == pytest.approx(sum(values) / max(len(values), 1), rel=1e-12)


@pytest.mark.parametrize("labels", ["balanced", "pairs"])
def test_batch_hard_is_the_triplet_loss_on_hard_pairs_where_every_anchor_violates(labels):
    z, label = random_batch(LABELS[labels])
    c = in_batch(z, label)
    one, two = triplet_hard(c, margin=4.0).total, triplet(mining.hard(c), margin=4.0).total
    torch.testing.assert_close(one, two, rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("margin", [0.2, 1.0])
def test_semi_hard_is_the_mean_squared_hinge_on_mined_rows(labels, margin):
    z, label = random_batch(LABELS[labels])
    c = in_batch(z, label)
    d = mining.semi_hard(c).distance.square()
    expected = (d[:, 0] - d[:, 1] + margin).relu().sum() / max(len(d), 1)
    value = triplet_semi_hard(c, margin=margin).total
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-15)


def test_an_easy_positive_with_one_negative_is_the_n_pair_loss_of_two_classes():
    s = torch.tensor([[0.8, 0.3], [0.4, 0.6]]).double() / 0.1
    expected = F.cross_entropy(s, torch.arange(2))
    c = given(s * 0.1, [0, 1], [0, 1])
    value = easy_positive_hard_negative(c).total
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0.0)


def test_quadruplet_of_two_classes_is_the_mean_squared_triplet_hinge():
    z, label = random_batch([0, 0, 0, 1, 1])
    c = in_batch(z, label)
    g = c.distance.square()
    hinges = [(g[a, p] - g[a, n] + 1).relu() for a, p, n in every(c)]
    value = quadruplet(c).total
    torch.testing.assert_close(value, torch.stack(hinges).mean(), rtol=1e-12, atol=0.0)


def test_mined_triplets_are_scored_one_a_row():
    z, label = random_batch(LABELS["balanced"])
    c = mining.semi_hard(in_batch(z, label))
    hinges = [max(p - n + 0.5, 0) for p, n in c.distance.tolist()]
    expected = sum(hinges) / sum(h > 0 for h in hinges)
    assert triplet(c, margin=0.5).total.item() == pytest.approx(expected, rel=1e-10)


# --- pytorch-metric-learning


def of_peers(loss, miner, label):
    return lambda z: loss(z, label, miner(z, label)) if miner else loss(z, label)


PEERS = {
    triplet: lambda: (pml.TripletMarginLoss(margin=0.2), None),
    triplet_soft_margin: lambda: (
        pml.TripletMarginLoss(margin=0, smooth_loss=True, reducer=pml_reducers.MeanReducer()),
        None,
    ),
    triplet_hard: lambda: (
        pml.TripletMarginLoss(margin=0.2, reducer=pml_reducers.MeanReducer()),
        pml_miners.BatchHardMiner(distance=pml_distances.LpDistance()),
    ),
}


@pytest.mark.parametrize("loss", PEERS, ids=lambda loss: loss.__name__)
@pytest.mark.parametrize("labels", LABELS)
def test_value_and_gradient_equal_pytorch_metric_learning(loss, labels):
    z, label = random_batch(LABELS[labels])
    value, slope = value_and_slope(loss, lambda z: in_batch(z, label), z)
    peer = of_peers(*PEERS[loss](), label)
    expected, its_slope = value_and_slope(peer, lambda z: z, z)
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(slope, its_slope, rtol=1e-7, atol=1e-9)
    assert slope.norm() > 0.01


def test_triplet_learns_even_if_nobody_read_the_distance_before():
    _, slope = value_and_slope(triplet, lambda z: in_batch(z, LABEL4), QUAD4)
    assert slope.norm() > 0.1


def test_with_two_classes_the_quadruplets_second_mean_leaves_float32_gradients_alone():
    z, label = random_batch([0, 1] * 128, 32)
    low = z.float().requires_grad_()
    high = low.detach().double().requires_grad_()
    slopes = [
        torch.autograd.grad(quadruplet(in_batch(x, label)).total, x)[0].double()
        for x in (low, high)
    ]
    assert (slopes[0] - slopes[1]).norm() < 1e-5 * slopes[1].norm()
