"""Softmax over directions of classes: normalized, and with margins."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from pytorch_metric_learning import losses as pml
from quad4 import LABEL4, LABELS, QUAD4, random_batch

from nearkin import blocked, reduce
from nearkin.compare import Classifier, Proxies
from nearkin.core import Batch
from nearkin.losses.classification import arcface, cosface, norm_softmax, sub_center_arcface

MEANS = F.normalize(torch.stack([QUAD4[:2].mean(0), QUAD4[2:].mean(0)]))


def vectors_for(rows, dim=5):
    random = torch.Generator().manual_seed(1)
    return torch.randn(rows, dim, dtype=torch.float64, generator=random)


def around(vectors, z, label, per_class=1, closeness="cosine"):
    """The proxies as given, and what they make of the rows."""
    classes = len(vectors) // per_class
    proxies = Proxies(classes, vectors.shape[1], per_class, closeness).double()
    with torch.no_grad():
        proxies.vectors.copy_(vectors)
    return proxies, proxies(z, Batch(None, label=label))


def at_angles(*degrees):
    """Rows at these angles to (1, 0), class 0; a second class stands opposite."""
    angle = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    z = torch.stack([angle.cos(), angle.sin()], 1)
    return z, torch.zeros(len(degrees), dtype=torch.int64)


OPPOSITE = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)


def test_norm_softmax_of_quad4():
    # The proxies are the directions of the class means.
    _, c = around(MEANS, QUAD4, LABEL4)
    assert norm_softmax(c).total.item() == pytest.approx(0.0039423238, abs=1e-9)


def test_margins_of_quad4_by_hand():
    # The means stand at 30 and 135 degrees, the rows at 0, 60, 90 and 180.
    _, c = around(MEANS, QUAD4, LABEL4)
    own, far = (30, 30, 45, 45), (135, 75, 60, 150)
    own_cos = [math.cos(math.radians(a)) for a in own]
    far_cos = [math.cos(math.radians(a)) for a in far]
    with_margin = {
        cosface: [x - 0.35 for x in own_cos],
        arcface: [math.cos(math.radians(a) + 0.5) for a in own],
    }
    for loss, moved in with_margin.items():
        terms = loss(c, scale=4.0)
        tight = -math.fsum(4 * x for x in moved) / 4
        apart = math.fsum(
            math.log(math.exp(4 * x) + math.exp(4 * y)) for x, y in zip(moved, far_cos, strict=True)
        )
        assert terms.tightness.item() == pytest.approx(tight, abs=1e-12)
        assert terms.contrast.item() == pytest.approx(apart / 4, abs=1e-12)


@pytest.mark.parametrize("labels", LABELS)
def test_without_a_margin_they_are_the_normalized_softmax(labels):
    z, label = random_batch(LABELS[labels])
    proxies, c = around(vectors_for(6), z.requires_grad_(), label)
    expected = norm_softmax(c, temperature=1 / 64).total
    wanted = torch.autograd.grad(expected, [z, proxies.vectors], retain_graph=True)
    for loss in (cosface, arcface):
        value = loss(c, margin=0.0).total
        torch.testing.assert_close(value, expected)
        slopes = torch.autograd.grad(value, [z, proxies.vectors], retain_graph=True)
        for a, b in zip(slopes, wanted, strict=True):
            torch.testing.assert_close(a, b)


PEERS = {
    "norm_softmax": (norm_softmax, {"temperature": 0.05}, pml.NormalizedSoftmaxLoss, 0.05),
    "cosface": (cosface, {"margin": 0.35}, pml.CosFaceLoss, 0.35),
    "arcface": (arcface, {"margin": 0.5}, pml.ArcFaceLoss, math.degrees(0.5)),
    "arcface, wide": (arcface, {"margin": 1.4}, pml.ArcFaceLoss, math.degrees(1.4)),
}


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("peer", PEERS)
def test_it_equals_pytorch_metric_learning_in_value_and_gradient(peer, labels):
    loss, settings, theirs, setting = PEERS[peer]
    z, label = random_batch(LABELS[labels])
    vectors = vectors_for(7)
    mine, other = z.clone().requires_grad_(), z.clone().requires_grad_()
    proxies, c = around(vectors, mine, label)
    word = "temperature" if loss is norm_softmax else "margin"
    reference = theirs(7, 5, **{word: setting}).double()
    with torch.no_grad():
        reference.W.copy_(vectors.T)
    value, expected = loss(c, **settings).total, reference(other, label)
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-10)
    slopes = torch.autograd.grad(value, [mine, proxies.vectors])
    wanted = torch.autograd.grad(expected, [other, reference.W])
    for a, b in zip(slopes, (wanted[0], wanted[1].T), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("margin", [0.1, 0.5, 1.0, math.pi / 2])
def test_the_own_logit_of_arcface_falls_all_the_way_round(margin):
    before = math.inf
    for degrees in torch.arange(0.25, 180, 1.0).tolist():
        _, c = around(OPPOSITE, *at_angles(degrees))
        own = -arcface(c, margin=margin, scale=1.0).tightness.item()
        angle = math.radians(degrees)
        rising = angle > math.pi - margin
        line = math.cos(angle) - margin * math.sin(margin)
        assert own == pytest.approx(line if rising else math.cos(angle + margin), abs=1e-12)
        assert own < before
        before = own


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seed", range(5))
def test_arcface_on_its_proxies_and_opposite_to_them_has_finite_right_slopes(dtype, seed):
    random = torch.Generator().manual_seed(seed)
    vectors = torch.randn(4, 6, generator=random, dtype=torch.float64).to(dtype)
    label = torch.arange(4)
    for z in (vectors, -3 * vectors, vectors + 1e-4):
        proxies = Proxies(4, 6, closeness="cosine").to(dtype)
        proxies.vectors.data.copy_(vectors)
        z = z.clone().requires_grad_()
        value = arcface(proxies(z, Batch(None, label=label)), scale=8.0).total
        for slope, of in zip(
            torch.autograd.grad(value, [z, proxies.vectors]), (z, proxies.vectors), strict=True
        ):
            # A row of length r turns by at most 1/r, and no logit is steeper than its scale; each
            # row has a logit of its own and three more, each proxy four rows.
            steepest = 8 * 2 / of.detach().norm(dim=1)
            assert (slope.norm(dim=1) <= steepest).all()
    corner = math.cos(0.5)
    _, c = around(OPPOSITE, *at_angles(0, 180))
    assert -arcface(c, scale=1.0).tightness.item() == pytest.approx(
        (corner - 1 - 0.5 * math.sin(0.5)) / 2, abs=1e-12
    )


def test_close_to_its_proxy_arcface_pulls_with_the_sine_of_the_margin():
    angle = torch.tensor([0.01, 0.1, 1.0], dtype=torch.float64, requires_grad=True)
    z = torch.stack([angle.cos(), angle.sin()], 1)
    _, c = around(OPPOSITE, z, torch.zeros(3, dtype=torch.int64))
    (slope,) = torch.autograd.grad(3 * arcface(c, margin=0.5, scale=1.0).tightness, angle)
    torch.testing.assert_close(slope, (angle + 0.5).sin().detach())


@pytest.mark.parametrize("loss", [norm_softmax, cosface, arcface])
@pytest.mark.parametrize("per_class", [1, 2])
def test_it_equals_a_slow_loop_over_several_proxies(loss, per_class):
    z, label = random_batch(LABELS["shuffled"])
    vectors = vectors_for(5 * per_class)
    _, c = around(vectors, z, label, per_class)
    terms = loss(c)
    cosine = F.normalize(z) @ F.normalize(vectors).T
    tight = apart = 0.0
    for i, y in enumerate(label.tolist()):
        logit = []
        for k, x in enumerate(cosine[i].tolist()):
            own = k // per_class == y
            if loss is norm_softmax:
                logit.append(x / 0.05)
            elif loss is cosface:
                logit.append(64 * (x - 0.35 * own))
            else:
                # No row here is so far from its proxies that the line begins.
                assert not own or math.acos(x) < math.pi - 0.5
                logit.append(64 * math.cos(math.acos(x) + 0.5 * own))
        mine = [v for k, v in enumerate(logit) if k // per_class == y]
        tight -= math.fsum(mine) / per_class
        high = max(logit)
        apart += high + math.log(math.fsum(math.exp(v - high) for v in logit))
    assert terms.tightness.item() == pytest.approx(tight / len(label), rel=1e-9)
    assert terms.contrast.item() == pytest.approx(apart / len(label), rel=1e-9)


@pytest.mark.parametrize("loss", [norm_softmax, cosface, arcface])
@pytest.mark.parametrize("entries", [1 << 20, 40])
def test_the_similarity_is_never_held_and_the_gradient_is_exact(loss, entries, monkeypatch):
    monkeypatch.setattr(reduce, "FEW", 0)
    monkeypatch.setattr(blocked, "ENTRIES", entries)
    z, label = random_batch(LABELS["shuffled"])
    z.requires_grad_()
    proxies, c = around(vectors_for(9), z, label)
    value = loss(c).total
    assert "similarity" not in c.__dict__
    expected = loss(replace(c, given=c.similarity)).total
    torch.testing.assert_close(value, expected)
    leaves = [z, proxies.vectors]
    seen, wanted = (torch.autograd.grad(x, leaves, retain_graph=True) for x in (value, expected))
    for a, b in zip(seen, wanted, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("per_class", [1, 2])
def test_a_learned_temperature_gets_its_exact_gradient(per_class):
    z, label = random_batch(LABELS["shuffled"])
    _, c = around(vectors_for(5 * per_class), z, label, per_class)
    temperature = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(norm_softmax(c, temperature=temperature).total, temperature)
    values = [norm_softmax(c, temperature=0.3 + e).total.item() for e in (1e-6, -1e-6)]
    assert slope.item() == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-6)


# --- several proxies a class, of which the nearest counts


def test_sub_center_arcface_of_one_proxy_a_class_is_arcface():
    z, label = random_batch(LABELS["shuffled"])
    _, c = around(vectors_for(6), z, label)
    torch.testing.assert_close(sub_center_arcface(c).total, arcface(c).total)


@pytest.mark.parametrize("labels", LABELS)
def test_sub_center_arcface_equals_pytorch_metric_learning(labels):
    z, label = random_batch(LABELS[labels])
    vectors = vectors_for(7 * 3)
    mine, other = z.clone().requires_grad_(), z.clone().requires_grad_()
    proxies, c = around(vectors, mine, label, 3)
    peer = pml.SubCenterArcFaceLoss(
        num_classes=7, embedding_size=5, margin=math.degrees(0.5), sub_centers=3
    ).double()
    with torch.no_grad():
        peer.W.copy_(vectors.T)
    value, expected = sub_center_arcface(c).total, peer(other, label)
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-10)
    slopes = torch.autograd.grad(value, [mine, proxies.vectors])
    wanted = torch.autograd.grad(expected, [other, peer.W])
    for a, b in zip(slopes, (wanted[0], wanted[1].T), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


def test_only_the_nearest_proxies_of_a_class_learn():
    z, label = at_angles(10, 20, 350)
    vectors = torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]], dtype=torch.float64)
    proxies, c = around(vectors, z, label, 2)
    terms = sub_center_arcface(c, scale=1.0)
    own = [math.cos(math.radians(a) + 0.5) for a in (10, 20, 10)]
    assert terms.tightness.item() == pytest.approx(-sum(own) / 3, abs=1e-12)
    (slope,) = torch.autograd.grad(terms.tightness, proxies.vectors)
    assert slope[0].norm() > 0
    assert not slope[1:].any()


def test_norm_softmax_of_a_classifier_divides_its_bias_too():
    z, label = random_batch(LABELS["pairs"])
    head = Classifier(4, 5, closeness="inner").double()
    with torch.no_grad():
        head.weight.copy_(vectors_for(4))
        head.bias.copy_(torch.arange(4))
    value = norm_softmax(head(z, Batch(None, label=label)), temperature=0.5).total
    torch.testing.assert_close(value, F.cross_entropy((z @ head.weight.T + head.bias) / 0.5, label))


def test_norm_softmax_by_distance_is_a_softmax_of_distances():
    z, label = random_batch(LABELS["pairs"])
    proxies, c = around(vectors_for(4), z, label, closeness="euclidean")
    logits = (1 - torch.cdist(z, proxies.vectors).square() / 2) / 0.5
    torch.testing.assert_close(
        norm_softmax(c, temperature=0.5).total, F.cross_entropy(logits, label)
    )


@pytest.mark.parametrize(
    ("loss", "settings", "said"),
    [
        (norm_softmax, {"temperature": 0.0}, "temperature must be above 0, not 0"),
        (cosface, {"scale": -1.0}, "scale must be above 0, not -1"),
        (cosface, {"margin": -0.1}, "margin must be at least 0, not -0.1"),
        (arcface, {"scale": 0.0}, "scale must be above 0, not 0"),
        (arcface, {"margin": 28.6}, "radians from 0 to 1.5708, not 28.6; .* degrees are 0.4992"),
        (arcface, {"margin": -0.1}, "margin must be in radians from 0"),
        (sub_center_arcface, {"margin": 28.6}, "radians from 0 to 1.5708, not 28.6"),
    ],
)
def test_settings_out_of_range_are_refused(loss, settings, said):
    _, c = around(MEANS, QUAD4, LABEL4)
    with pytest.raises(ValueError, match=said):
        loss(c, **settings)


@pytest.mark.parametrize("closeness", ["inner", "euclidean"])
@pytest.mark.parametrize("loss", [arcface, sub_center_arcface])
def test_arcface_needs_angles(loss, closeness):
    _, c = around(MEANS, QUAD4, LABEL4, closeness=closeness)
    said = f"{loss.__name__} needs angles, but .* '{closeness}'; use cosine"
    with pytest.raises(ValueError, match=said):
        loss(c)
