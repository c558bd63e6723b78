"""The triplet loss, against known values, a loop over all triplets and pytorch-metric-learning."""

import pytest
import torch
from hypothesis import given as examples
from hypothesis import settings
from hypothesis import strategies as st
from pytorch_metric_learning import losses as pml
from quad4 import LABEL4, LABELS, QUAD4, given, in_batch, random_batch

from nearkin import mining
from nearkin.losses.triplets import triplet, violations


def test_triplet_of_quad4_is_the_mean_over_violating_triplets():
    terms = triplet(in_batch(QUAD4, LABEL4))
    assert terms.total.item() == pytest.approx(0.6596457940, abs=1e-9)
    assert list(terms.other) == ["joint"]
    assert terms.tightness.item() == terms.contrast.item() == 0


def every_triplet(c, margin):
    """The violating hinges of all triplets, and in how many of them each pair is."""
    d, hinges = c.distance.tolist(), []
    positive, negative = torch.zeros(c.shape), torch.zeros(c.shape)
    for a, p in c.same.nonzero().tolist():
        for n in c.different[a].nonzero()[:, 0].tolist():
            hinge = d[a][p] - d[a][n] + margin
            if hinge > 0:
                hinges.append(hinge)
                positive[a, p] += 1
                negative[a, n] += 1
    return hinges, positive, negative


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("margin", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("closeness", ["cosine", "euclidean"])
def test_triplet_equals_a_loop_over_all_triplets(labels, margin, closeness):
    z, label = random_batch(LABELS[labels])
    c = in_batch(z, label, closeness)
    hinges, positive, negative = every_triplet(c, margin)
    expected = sum(hinges) / max(len(hinges), 1)
    assert triplet(c, margin=margin).total.item() == pytest.approx(expected, rel=1e-10)
    of_positive, of_negative = violations(c, margin)
    assert torch.equal(of_positive, positive.double())
    assert torch.equal(of_negative, negative.double())


@settings(deadline=None, max_examples=40)
@examples(st.data())
def test_triplet_equals_the_loop_also_on_ties_and_where_columns_are_left_out(data):
    anchors, columns = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 6))

    def draw(low, high, n):
        return data.draw(st.lists(st.integers(low, high), min_size=n, max_size=n))

    s = torch.tensor(draw(0, 4, anchors * columns)).view(anchors, columns) / 4
    c = given(
        s,
        draw(0, 2, anchors),
        draw(0, 2, columns),
        allowed=torch.tensor(draw(0, 1, anchors * columns)).view(anchors, columns).bool(),
        closeness="cosine",
    )
    hinges, positive, negative = every_triplet(c, 0.3)
    of_positive, of_negative = violations(c, 0.3)
    assert torch.equal(of_positive, positive.double())
    assert torch.equal(of_negative, negative.double())
    expected = sum(hinges) / max(len(hinges), 1)
    assert triplet(c, margin=0.3).total.item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("labels", LABELS)
def test_triplet_equals_pytorch_metric_learning_in_value_and_gradient(labels):
    z, label = random_batch(LABELS[labels])
    mine, other = z.clone().requires_grad_(), z.clone().requires_grad_()
    value = triplet(in_batch(mine, label)).total
    expected = pml.TripletMarginLoss(margin=0.2)(other, label)
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-9)
    gradients = [torch.autograd.grad(v, x)[0] for v, x in ((value, mine), (expected, other))]
    torch.testing.assert_close(*gradients, rtol=1e-7, atol=1e-9)
    assert gradients[0].norm() > 0.01


def test_triplet_learns_even_if_nobody_read_the_distance_before():
    z = QUAD4.clone().requires_grad_()
    value = triplet(in_batch(z, LABEL4)).total
    (gradient,) = torch.autograd.grad(value, z)
    assert gradient.norm() > 0.1


def test_triplets_far_apart_cost_nothing():
    z = torch.tensor([[1.0, 0], [1, 0], [-1, 0], [-1, 0]]).double().requires_grad_()
    value = triplet(in_batch(z, LABEL4)).total
    assert value.item() == 0
    assert torch.equal(torch.autograd.grad(value, z)[0], torch.zeros_like(z))


def test_mined_triplets_are_scored_one_a_row():
    z, label = random_batch(LABELS["balanced"])
    c = mining.semi_hard(in_batch(z, label))
    hinges = [max(p - n + 0.5, 0) for p, n in c.distance.tolist()]
    expected = sum(hinges) / sum(h > 0 for h in hinges)
    assert triplet(c, margin=0.5).total.item() == pytest.approx(expected, rel=1e-10)
