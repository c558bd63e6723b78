"""SoftTriple, against a slow loop, pytorch-metric-learning and its relatives."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from pytorch_metric_learning import losses as pml
from pytorch_metric_learning import regularizers
from quad4 import LABEL4, LABELS, QUAD4, dot, random_batch, unit_rows

from nearkin.compare import Proxies
from nearkin.core import Batch
from nearkin.losses.classification import cosface
from nearkin.losses.soft_triple import soft_triple


def centers_for(classes, per_class, dim=5):
    random = torch.Generator().manual_seed(7)
    return torch.randn(classes * per_class, dim, dtype=torch.float64, generator=random)


def against(vectors, per_class, closeness="cosine"):
    proxies = Proxies(len(vectors) // per_class, vectors.shape[1], per_class, closeness).double()
    with torch.no_grad():
        proxies.vectors.copy_(vectors)
    return proxies


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("per_class", [1, 3])
def test_it_equals_a_slow_loop_by_its_parts(labels, per_class):
    z, label = random_batch(LABELS[labels])
    vectors = centers_for(6, per_class)
    terms = soft_triple(
        against(vectors, per_class)(z, Batch(None, label=label)), scale=5.0, margin=0.2
    )
    rows, centers = unit_rows(z), unit_rows(vectors)
    classes = [centers[k * per_class : (k + 1) * per_class] for k in range(6)]
    tight, apart, spread = [], [], 0.0
    for row, y in zip(rows, label.tolist(), strict=True):
        logits = []
        for k, some in enumerate(classes):
            s = [dot(row, center) for center in some]
            share = [math.exp(x / 0.1) for x in s]
            relaxed = dot(share, s) / math.fsum(share)
            logits.append(5 * (relaxed - 0.2 * (k == y)))
        tight.append(-logits[y])
        apart.append(math.log(math.fsum(map(math.exp, logits))))
    for some in classes:
        for m, one in enumerate(some):
            spread += sum(math.dist(one, two) for two in some[:m])
    assert terms.tightness.item() == pytest.approx(sum(tight) / len(tight), rel=1e-9)
    assert terms.contrast.item() == pytest.approx(sum(apart) / len(apart), rel=1e-9)
    expected = 0.2 * spread / max(6 * per_class * (per_class - 1), 1)
    assert terms.other["spread"].item() == pytest.approx(expected, rel=1e-9)


def test_centers_of_quad4_by_hand():
    # Centers at 0 and 90 degrees for class 0, at 180 twice for class 1.
    vectors = torch.tensor([[1.0, 0], [0, 1], [-1, 0], [-1, 0]], dtype=torch.float64)
    c = against(vectors, 2)(QUAD4[:1], Batch(None, label=LABEL4[:1]))
    terms = soft_triple(c, scale=2.0, gamma=0.5, margin=0.0, spread=0.3)
    relaxed = math.e**2 / (math.e**2 + 1)
    assert terms.tightness.item() == pytest.approx(-2 * relaxed, abs=1e-12)
    lse = math.log(math.exp(2 * relaxed) + math.exp(-2))
    assert terms.contrast.item() == pytest.approx(lse, abs=1e-12)
    assert terms.other["spread"].item() == pytest.approx(0.3 * math.sqrt(2) / 4, abs=1e-9)


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("spread", [0.0, 0.2])
def test_it_equals_pytorch_metric_learning(labels, spread):
    z, label = random_batch(LABELS[labels])
    vectors = centers_for(6, 10)
    mine, other = z.clone().requires_grad_(), z.clone().requires_grad_()
    proxies = against(vectors, 10)
    value = soft_triple(proxies(mine, Batch(None, label=label)), spread=spread).total
    peer = pml.SoftTripleLoss(
        6,
        5,
        centers_per_class=10,
        la=20,
        gamma=0.1,
        margin=0.01,
        weight_regularizer=regularizers.SparseCentersRegularizer(6, 10) if spread else None,
        weight_reg_weight=spread,
    ).double()
    with torch.no_grad():
        peer.fc.copy_(vectors.T)
    expected = peer(other, label)
    # The peer adds a little under its roots.
    close = {"rtol": 1e-5, "atol": 1e-6} if spread else {"rtol": 1e-9, "atol": 1e-10}
    torch.testing.assert_close(value, expected, **close)
    seen = torch.autograd.grad(value, [mine, proxies.vectors])
    theirs = torch.autograd.grad(expected, [other, peer.fc])
    for a, b in zip(seen, (theirs[0], theirs[1].T), strict=True):
        torch.testing.assert_close(a, b, **close)


def test_with_one_center_a_class_it_is_cosface():
    z, label = random_batch(LABELS["shuffled"])
    c = against(centers_for(6, 1), 1)(z, Batch(None, label=label))
    value = soft_triple(c, scale=20.0, margin=0.1)
    torch.testing.assert_close(value.total, cosface(c, scale=20.0, margin=0.1).total)
    assert value.other["spread"].item() == 0


def test_the_spread_draws_the_centers_of_a_class_together():
    z, label = random_batch([0, 1])
    proxies = against(centers_for(3, 4), 4)
    (slope,) = torch.autograd.grad(
        soft_triple(proxies(z, Batch(None, label=label))).other["spread"], proxies.vectors
    )
    # The mean length of the gaps by plain autograd.
    vectors = proxies.vectors.detach().requires_grad_()
    unit = F.normalize(vectors).view(3, 4, 5)
    gaps = (unit[:, :, None] - unit[:, None]).square().sum(3)[:, *torch.triu_indices(4, 4, 1)]
    (expected,) = torch.autograd.grad(0.2 * gaps.sqrt().sum() / (3 * 4 * 3), vectors)
    torch.testing.assert_close(slope, expected)


def test_equal_centers_have_no_slope_between_them():
    z, label = random_batch([0, 1])
    proxies = against(centers_for(3, 1).repeat_interleave(2, 0), 2)
    terms = soft_triple(proxies(z, Batch(None, label=label)))
    (slope,) = torch.autograd.grad(terms.other["spread"], proxies.vectors)
    assert terms.other["spread"].item() < 1e-7
    assert slope.norm() < 1e-6


def test_a_given_similarity_has_the_spread_of_the_centers_that_are_known():
    z, label = random_batch(LABELS["pairs"])
    c = against(centers_for(3, 2), 2)(z, Batch(None, label=label))
    expected, seen = soft_triple(c), soft_triple(replace(c, given=c.similarity))
    torch.testing.assert_close(seen.total, expected.total)
    unknown = soft_triple(replace(c, given=c.similarity, references=None, anchors=None))
    assert unknown.other == {}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"scale": 0.0}, "scale must be above 0, not 0"),
        ({"gamma": -1.0}, "gamma must be above 0, not -1"),
        ({"margin": -0.1}, "margin must be at least 0, not -0.1"),
        ({"spread": -0.2}, "spread must be at least 0, not -0.2"),
    ],
)
def test_settings_out_of_range_are_refused(settings, said):
    c = against(centers_for(2, 2, 2), 2)(QUAD4, Batch(None, label=LABEL4))
    with pytest.raises(ValueError, match=said):
        soft_triple(c, **settings)


@pytest.mark.parametrize("closeness", ["inner", "euclidean"])
def test_it_needs_angles(closeness):
    c = against(centers_for(2, 2, 2), 2, closeness)(QUAD4, Batch(None, label=LABEL4))
    with pytest.raises(ValueError, match=f"soft_triple needs angles, but .* '{closeness}'"):
        soft_triple(c)
