"""Proxy losses, against slow loops and pytorch-metric-learning."""

import math

import pytest
import torch
from pytorch_metric_learning import losses as pml
from quad4 import LABEL4, LABELS, QUAD4, dot, random_batch, unit_rows

from nearkin.compare import Proxies
from nearkin.core import Batch
from nearkin.losses.proxies import proxy_anchor


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


@pytest.mark.parametrize("labels", LABELS)
def test_proxy_anchor_equals_pytorch_metric_learning(labels):
    z, label = random_batch(LABELS[labels])
    vectors = vectors_for(label)
    mine, other = z.clone().requires_grad_(), z.clone().requires_grad_()
    proxies = against(vectors)
    value = proxy_anchor(proxies(mine, Batch(None, label=label))).total
    peer = pml.ProxyAnchorLoss(len(vectors), 5, margin=0.1, alpha=32).double()
    with torch.no_grad():
        peer.proxies.copy_(vectors)
    expected = peer(other, label)
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-9)
    seen = torch.autograd.grad(value, [mine, proxies.vectors])
    theirs = torch.autograd.grad(expected, [other, peer.proxies])
    for a, b in zip(seen, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


def test_an_absent_class_pushes_and_does_not_pull():
    z, label = random_batch([0, 0, 1, 1])
    proxies = against(vectors_for(label, more=1))
    terms = proxy_anchor(proxies(z, Batch(None, label=label)))
    (pull,) = torch.autograd.grad(terms.tightness, proxies.vectors, retain_graph=True)
    (push,) = torch.autograd.grad(terms.contrast, proxies.vectors)
    assert pull[2].norm() == 0
    assert push[2].norm() > 0
