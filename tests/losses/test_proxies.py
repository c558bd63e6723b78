"""Proxy Anchor and Proxy-NCA, against slow loops and pytorch-metric-learning; the proxies' own
limits."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from pytorch_metric_learning import losses as pml
from quad4 import LABEL4, LABELS, QUAD4, dot, random_batch, unit_rows

from nearkin.compare import Classifier, Proxies
from nearkin.core import Batch
from nearkin.losses.classification import norm_softmax
from nearkin.losses.proxies import proxy_anchor, proxy_nca, proxy_nca_plus_plus


def against(vectors, per_class=1):
    proxies = Proxies(len(vectors) // per_class, vectors.shape[1], per_class, "cosine").double()
    with torch.no_grad():
        proxies.vectors.copy_(vectors)
    return proxies


def vectors_for(label, dim=5, more=2):
    random = torch.Generator().manual_seed(7)
    rows = int(label.max()) + 1 + more
    return torch.randn(rows, dim, dtype=torch.float64, generator=random)


def test_proxy_anchor_of_quad4_by_hand():
    c = against(torch.eye(2, dtype=torch.float64))(QUAD4, Batch(None, label=LABEL4))
    terms = proxy_anchor(c, margin=0.1, alpha=2.0)
    # Cosines to (1, 0): 1, .5, 0, -1; to (0, 1): 0, .866, 1, 0.
    high = math.cos(math.pi / 6)
    pull = [1 + math.exp(-1.8) + math.exp(-0.8), 1 + math.exp(-1.8) + math.exp(0.2)]
    push = [1 + math.exp(0.2) + math.exp(-1.8), 1 + math.exp(0.2) + math.exp(2 * high + 0.2)]
    assert terms.tightness.item() == pytest.approx(sum(map(math.log, pull)) / 2, abs=1e-12)
    assert terms.contrast.item() == pytest.approx(sum(map(math.log, push)) / 2, abs=1e-12)


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("per_class", [1, 3])
def test_proxy_anchor_equals_a_slow_loop(labels, per_class):
    z, label = random_batch(LABELS[labels])
    vectors = vectors_for(label).repeat_interleave(per_class, 0)
    vectors = vectors + torch.arange(len(vectors))[:, None] / 10
    terms = proxy_anchor(against(vectors, per_class)(z, Batch(None, label=label)))
    rows, proxies = unit_rows(z), unit_rows(vectors)
    pull, push = [], []
    for k, proxy in enumerate(proxies):
        near = [dot(x, proxy) for x, y in zip(rows, label, strict=True) if y == k // per_class]
        far = [dot(x, proxy) for x, y in zip(rows, label, strict=True) if y != k // per_class]
        if near:
            pull.append(math.log1p(math.fsum(math.exp(-32 * (s - 0.1)) for s in near)))
        push.append(math.log1p(math.fsum(math.exp(32 * (s + 0.1)) for s in far)))
    assert terms.tightness.item() == pytest.approx(math.fsum(pull) / len(pull), rel=1e-10)
    assert terms.contrast.item() == pytest.approx(math.fsum(push) / len(push), rel=1e-10)


def assert_equals_peer(loss, peer, vectors, z, label):
    """Value and gradients, to rows and proxies, are those of another library's loss."""
    mine, other = z.clone().requires_grad_(), z.clone().requires_grad_()
    proxies, peer = against(vectors), peer.double()
    with torch.no_grad():
        peer.proxies.copy_(vectors)
    value, expected = loss(proxies(mine, Batch(None, label=label))).total, peer(other, label)
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-9)
    seen = torch.autograd.grad(value, [mine, proxies.vectors])
    theirs = torch.autograd.grad(expected, [other, peer.proxies])
    for a, b in zip(seen, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("labels", LABELS)
def test_proxy_anchor_equals_pytorch_metric_learning(labels):
    z, label = random_batch(LABELS[labels])
    vectors = vectors_for(label)
    peer = pml.ProxyAnchorLoss(len(vectors), 5, margin=0.1, alpha=32)
    assert_equals_peer(proxy_anchor, peer, vectors, z, label)


def test_an_absent_class_pushes_and_does_not_pull():
    z, label = random_batch([0, 0, 1, 1])
    proxies = against(vectors_for(label, more=1))
    terms = proxy_anchor(proxies(z, Batch(None, label=label)))
    (pull,) = torch.autograd.grad(terms.tightness, proxies.vectors, retain_graph=True)
    (push,) = torch.autograd.grad(terms.contrast, proxies.vectors)
    assert pull[2].norm() == 0
    assert push[2].norm() > 0


def test_proxy_anchor_scores_a_given_similarity_alike():
    z, label = random_batch(LABELS["shuffled"])
    proxies = against(vectors_for(label))
    c = proxies(z, Batch(None, label=label))
    leaf = c.similarity.detach().clone().requires_grad_()
    expected = torch.autograd.grad(proxy_anchor(c).total, proxies.vectors, retain_graph=True)[0]
    value = proxy_anchor(replace(c, given=leaf)).total
    (slope,) = torch.autograd.grad(value, leaf)
    again = torch.autograd.grad((c.similarity * slope).sum(), proxies.vectors)[0]
    torch.testing.assert_close(again, expected)


@pytest.mark.parametrize("labels", [[0, 0, 1], [3]])
def test_proxy_anchor_leaves_out_what_is_not_allowed(labels):
    z, label = random_batch(labels)
    c = against(vectors_for(label))(z, Batch(None, label=label))
    allowed = torch.rand(c.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    terms = proxy_anchor(replace(c, allowed=allowed))
    pull, push = [], []
    for k in range(c.shape[1]):
        seen = [(c.similarity[i, k].item(), y == k) for i, y in enumerate(labels) if allowed[i, k]]
        near = [math.exp(-32 * (s - 0.1)) for s, same in seen if same]
        far = [math.exp(32 * (s + 0.1)) for s, same in seen if not same]
        pull += [math.log(1 + sum(near))] if near else []
        push.append(math.log(1 + sum(far)))
    assert terms.tightness.item() == pytest.approx(sum(pull) / max(len(pull), 1), rel=1e-10)
    assert terms.contrast.item() == pytest.approx(sum(push) / len(push), rel=1e-10)


# --- Proxy-NCA

MEANS = F.normalize(torch.stack([QUAD4[:2].mean(0), QUAD4[2:].mean(0)]))


@pytest.mark.parametrize(
    ("loss", "scale", "value"),
    [
        (proxy_nca, 1.0, -1.9802887549),
        (proxy_nca, 3.0, -17.8225987941),
        (proxy_nca_plus_plus, 1.0, 0.2128816157),
        (proxy_nca_plus_plus, 3.0, 0.0059440462),
    ],
)
def test_proxy_nca_of_quad4_around_its_class_means(loss, scale, value):
    c = against(MEANS)(QUAD4, Batch(None, label=LABEL4))
    assert loss(c, scale=scale).total.item() == pytest.approx(value, abs=1e-9)


@pytest.mark.parametrize("loss", [proxy_nca, proxy_nca_plus_plus])
@pytest.mark.parametrize("per_class", [1, 2])
@pytest.mark.parametrize("closeness", ["cosine", "euclidean"])
def test_proxy_nca_equals_a_slow_loop_by_its_parts(loss, per_class, closeness):
    z, label = random_batch(LABELS["shuffled"])
    vectors = vectors_for(label).repeat_interleave(per_class, 0)
    vectors = vectors + torch.arange(len(vectors))[:, None] / 10
    proxies = Proxies(len(vectors) // per_class, 5, per_class, closeness).double()
    proxies.vectors.data.copy_(vectors)
    terms = loss(proxies(z, Batch(None, label=label)), scale=0.7)
    rows, columns = (z, vectors) if closeness == "euclidean" else (unit_rows(z), unit_rows(vectors))
    tight, apart = [], []
    for row, y in zip(list(rows), label.tolist(), strict=True):
        d = [0.49 * math.dist(row, column) ** 2 for column in list(columns)]
        own = d[y * per_class : (y + 1) * per_class]
        others = d[: y * per_class] + d[(y + 1) * per_class :]
        tight.append(sum(own) / per_class)
        summed = others if loss is proxy_nca else d
        apart.append(math.log(math.fsum(math.exp(-x) for x in summed)))
    assert terms.tightness.item() == pytest.approx(sum(tight) / len(tight), rel=1e-9)
    assert terms.contrast.item() == pytest.approx(sum(apart) / len(apart), rel=1e-9)


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_proxy_nca_plus_plus_is_the_normalized_softmax(scale):
    z, label = random_batch(LABELS["shuffled"])
    proxies = against(vectors_for(label))
    c = proxies(z.requires_grad_(), Batch(None, label=label))
    value = proxy_nca_plus_plus(c, scale=scale).total
    expected = norm_softmax(c, temperature=1 / (2 * scale**2)).total
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)
    leaves = [z, proxies.vectors]
    slopes = [torch.autograd.grad(x, leaves, retain_graph=True) for x in (value, expected)]
    for one, two in zip(*slopes, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-12)


def test_without_its_own_proxy_it_is_the_log_of_the_odds():
    z, label = random_batch(LABELS["shuffled"])
    proxies = against(vectors_for(label))
    odds = []
    for row, y in zip(z, label, strict=True):
        c = proxies(row[None], Batch(None, label=y[None]))
        odds.append(math.log(math.expm1(proxy_nca_plus_plus(c, scale=1.0).total.item())))
    value = proxy_nca(proxies(z, Batch(None, label=label))).total.item()
    assert value == pytest.approx(sum(odds) / len(odds), rel=1e-10)


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_proxy_nca_plus_plus_equals_pytorch_metric_learning(labels, scale):
    z, label = random_batch(LABELS[labels])
    vectors = vectors_for(label)
    peer = pml.ProxyNCALoss(len(vectors), 5, softmax_scale=scale**2)
    assert_equals_peer(partial(proxy_nca_plus_plus, scale=scale), peer, vectors, z, label)


def test_a_row_without_another_class_is_left_out_of_proxy_nca():
    z, label = random_batch([0, 0])
    proxies = against(vectors_for(label, more=0))
    terms = proxy_nca(proxies(z.requires_grad_(), Batch(None, label=label)))
    assert terms.total.item() == 0
    for slope in torch.autograd.grad(terms.total, [z, proxies.vectors]):
        assert not slope.any()


@pytest.mark.parametrize("loss", [proxy_nca, proxy_nca_plus_plus])
def test_proxy_nca_needs_distances_and_a_scale(loss):
    proxies = Proxies(2, 2, closeness="inner").double()
    c = proxies(QUAD4, Batch(None, label=LABEL4))
    with pytest.raises(ValueError, match=f"{loss.__name__} needs distances, .* 'inner'; use cosi"):
        loss(c)
    with pytest.raises(ValueError, match="scale must be above 0, not 0"):
        loss(replace(c, closeness="cosine"), scale=0.0)


# --- what proxies and a classifier refuse


@pytest.mark.parametrize("made", [Proxies, Classifier])
@pytest.mark.parametrize(("key", "value"), [("classes", 0), ("classes", -3), ("dim", 0)])
def test_a_home_of_classes_needs_classes_and_dimensions(made, key, value):
    said = f"{made.__name__} needs {key} of at least 1, not {value}"
    with pytest.raises(ValueError, match=said):
        made(**{"classes": 2, "dim": 3, key: value})


def test_proxies_need_at_least_one_a_class():
    with pytest.raises(ValueError, match="Proxies needs per_class of at least 1, not 0"):
        Proxies(2, 3, per_class=0)
