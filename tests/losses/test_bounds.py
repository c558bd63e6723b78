"""Bounds as losses."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from quad4 import LABELS, cosines, given, in_batch, random_batch

from nearkin.losses.bounds import jsd


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
