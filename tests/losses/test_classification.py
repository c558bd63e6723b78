"""Cross-entropy with the paper's smoothing, in blocks and whole; its relative over class sums."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from quad4 import LABEL4, LABELS, QUAD4, given, random_batch

from nearkin import blocked, reduce
from nearkin.compare import Centers, Classifier, Proxies
from nearkin.core import Batch
from nearkin.losses.classification import cross_entropy, spce


def classified(z, label, weight, bias=None):
    head = Classifier(len(weight), weight.shape[1], closeness="inner").double()
    with torch.no_grad():
        head.weight.copy_(weight)
        head.bias.copy_(torch.zeros(len(weight)) if bias is None else bias)
    return head, head(z, Batch(None, label=label))


def summed(z, label, closeness="inner"):
    return Centers("sums", closeness)(z, Batch(None, label=label))


def head_for(classes, dim=5, seed=1):
    random = torch.Generator().manual_seed(seed)
    drawn = torch.randn(classes, dim + 1, dtype=torch.float64, generator=random)
    return drawn[:, :dim], drawn[:, dim]


# --- known values


def test_cross_entropy_of_quad4_with_the_identity_as_weights():
    _, c = classified(QUAD4, LABEL4, torch.eye(2, dtype=torch.float64))
    assert cross_entropy(c).total.item() == pytest.approx(0.4581497777, abs=1e-9)


def test_a_zero_classifier_gives_log_k():
    _, c = classified(QUAD4, LABEL4, torch.zeros(7, 2).double())
    for smoothing in (0.0, 0.1):
        terms = cross_entropy(c, label_smoothing=smoothing)
        assert terms.total.item() == pytest.approx(math.log(7), abs=1e-12)
        assert terms.tightness.item() == 0


@pytest.mark.parametrize(
    ("classes", "floor"), [(2, 0.1269280110), (3, 0.3689811354), (10, 1.3769349205)]
)
def test_cross_entropy_on_a_simplex_reaches_its_floor(classes, floor):
    corners = F.normalize(torch.eye(classes, dtype=torch.float64) - 1 / classes)
    _, c = classified(corners, torch.arange(classes), corners)
    assert cross_entropy(c).total.item() == pytest.approx(floor, abs=1e-9)


def test_spce_of_quad4():
    assert spce(summed(QUAD4, LABEL4)).total.item() == pytest.approx(0.5238387273, abs=1e-9)


@pytest.mark.parametrize(
    ("classes", "value"),
    [(2, 0.3132616875), (3, 0.7943767694), (4, 1.1472735340), (100, 4.5951706927)],
)
def test_spce_of_collapsed_classes_on_a_simplex(classes, value):
    corners = F.normalize(torch.eye(classes, dtype=torch.float64) - 1 / classes)
    label = torch.arange(classes).repeat_interleave(3)
    assert spce(summed(corners[label], label)).total.item() == pytest.approx(value, abs=1e-9)


def test_spce_of_equal_rows_is_log_k():
    z = torch.ones(6, 3, dtype=torch.float64)
    value = spce(summed(z, torch.tensor([0, 0, 1, 1, 2, 2]))).total
    assert value.item() == pytest.approx(math.log(3), abs=1e-12)


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_spce_by_its_parts(scale):
    z, label = random_batch(LABELS["unbalanced"])
    sums = torch.stack([z[label == k].sum(0) for k in range(4)]) / len(z)
    terms = spce(summed(z, label), scale=scale)
    torch.testing.assert_close(terms.tightness, -scale * sums.square().sum())
    torch.testing.assert_close(terms.contrast, (scale * z @ sums.T).logsumexp(1).mean())


def test_spce_is_cross_entropy_with_the_class_sums_as_weights():
    z, label = random_batch(LABELS["shuffled"])
    sums = torch.stack([z[label == k].sum(0) for k in range(5)]) / len(z)
    torch.testing.assert_close(spce(summed(z, label)).total, F.cross_entropy(z @ sums.T, label))


# --- label smoothing


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.3])
@pytest.mark.parametrize("classes", [5, 9])
def test_it_equals_torch_at_its_smoothing_in_value_and_gradient(smoothing, classes):
    z, label = random_batch(LABELS["shuffled"])
    z.requires_grad_()
    weight, bias = head_for(classes)
    head, c = classified(z, label, weight, bias)
    value = cross_entropy(c, label_smoothing=smoothing).total
    logits = z @ head.weight.T + head.bias
    torchs = smoothing * classes / (classes - 1)
    expected = F.cross_entropy(logits, label, label_smoothing=torchs)
    torch.testing.assert_close(value, expected)
    leaves = [z, head.weight, head.bias]
    for a, b in zip(
        torch.autograd.grad(value, leaves), torch.autograd.grad(expected, leaves), strict=True
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("classes", "entropy", "at_zero"),
    [
        (100, 0.784595, 3.820575),
        (98, 0.782554, 3.802413),
        (11318, 1.258489, 8.075661),
        (3997, 1.154388, 7.138911),
    ],
)
def test_the_papers_divergence_is_the_value_without_the_constant_entropy(classes, entropy, at_zero):
    smoothing = 0.1
    target = torch.full((4, classes), smoothing / (classes - 1), dtype=torch.float64)
    label = torch.tensor([0, 3, 1, 3])
    target[torch.arange(4), label] = 1 - smoothing
    weight, bias = head_for(classes)
    z, _ = random_batch([0, 0, 0, 0])
    _, c = classified(z, label, weight, bias)
    log_p = (z @ weight.T + bias).log_softmax(1)
    divergence = F.kl_div(log_p, target, reduction="batchmean")
    value = cross_entropy(c, label_smoothing=smoothing).total
    assert (value - divergence).item() == pytest.approx(entropy, abs=1e-6)
    _, zero = classified(z, label, 0 * weight)
    at_start = cross_entropy(zero, label_smoothing=smoothing).total.item() - entropy
    assert at_start == pytest.approx(at_zero, abs=1e-6)


@pytest.mark.parametrize("classes", [100, 11318])
def test_the_optimal_gap_of_logits(classes):
    gap = {100: 6.7923, 11318: 11.5313}[classes]
    assert math.log(0.9 * (classes - 1) / 0.1) == pytest.approx(gap, abs=1e-4)
    s = torch.zeros(1, classes, dtype=torch.float64)
    s[0, 0] = gap
    s.requires_grad_()
    c = given(s, [0], torch.arange(classes), columns_are="classes")
    (gradient,) = torch.autograd.grad(cross_entropy(c, label_smoothing=0.1).total, s)
    assert gradient.abs().max().item() < 1e-5


@pytest.mark.parametrize("smoothing", [-0.1, 1.0])
def test_a_smoothing_out_of_range_is_refused(smoothing):
    _, c = classified(QUAD4, LABEL4, torch.eye(2).double())
    with pytest.raises(ValueError, match=rf"label_smoothing must be in \[0, 1\), not {smoothing}"):
        cross_entropy(c, label_smoothing=smoothing)


# --- slow loop, absent columns, blocks


@pytest.mark.parametrize("labels", LABELS)
def test_it_equals_a_slow_loop_by_its_parts(labels):
    z, label = random_batch(LABELS[labels])
    weight, bias = head_for(6)
    _, c = classified(z, label, weight, bias)
    terms = cross_entropy(c, label_smoothing=0.2)
    tight = apart = 0.0
    for row, y in zip(z.tolist(), label.tolist(), strict=True):
        logit = [
            math.fsum(a * b for a, b in zip(row, w, strict=True)) + x
            for w, x in zip(weight.tolist(), bias.tolist(), strict=True)
        ]
        others = [v for k, v in enumerate(logit) if k != y]
        tight -= 0.8 * logit[y] + 0.2 / 5 * math.fsum(others)
        apart += math.log(math.fsum(map(math.exp, logit)))
    assert terms.tightness.item() == pytest.approx(tight / len(label), rel=1e-10)
    assert terms.contrast.item() == pytest.approx(apart / len(label), rel=1e-10)


def test_rows_without_a_column_are_left_out():
    s = torch.tensor([[1.0, 0.0], [5.0, 5.0]])
    c = given(s, [0, 9], [0, 1], columns_are="classes")
    terms = cross_entropy(c)
    assert terms.tightness.item() == -1
    assert terms.contrast.item() == pytest.approx(math.log(1 + math.e))


def whole(c):
    """The same comparison by its similarity, which is held."""
    return replace(c, given=c.similarity)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("entries", [1 << 20, 88])
def test_in_blocks_value_and_gradient_are_those_of_the_dense_path(
    smoothing, bias, entries, monkeypatch
):
    monkeypatch.setattr(reduce, "FEW", 0)
    monkeypatch.setattr(blocked, "ENTRIES", entries)
    z, label = random_batch(LABELS["shuffled"])
    z.requires_grad_()
    head = Classifier(30, 5, bias=bias, closeness="inner").double()
    head.weight.data.normal_(generator=torch.Generator().manual_seed(2))
    leaves, found = [z, *head.parameters()], []
    for way in (whole, lambda c: c):
        c = way(head(z, Batch(None, label=label)))
        terms = cross_entropy(c, label_smoothing=smoothing)
        found.append([terms.tightness, terms.contrast, *torch.autograd.grad(terms.total, leaves)])
    assert "similarity" not in c.__dict__
    for dense, in_blocks in zip(*found, strict=True):
        torch.testing.assert_close(in_blocks, dense)


def test_nine_thousand_classes_never_make_the_logits(monkeypatch):
    monkeypatch.setattr(reduce, "FEW", 4 * 9000 - 1)
    z, label = random_batch([0, 1, 2, 8999], dim=3)
    z.requires_grad_()
    head, c = classified(z, label, *head_for(9000, 3))
    value = cross_entropy(c, label_smoothing=0.1).total
    assert "similarity" not in c.__dict__
    expected = F.cross_entropy(
        z @ head.weight.T + head.bias, label, label_smoothing=0.1 * 9000 / 8999
    )
    torch.testing.assert_close(value, expected)
    leaves = [z, head.weight, head.bias]
    seen, wanted = (torch.autograd.grad(x, leaves) for x in (value, expected))
    for a, b in zip(seen, wanted, strict=True):
        torch.testing.assert_close(a, b)


def test_labels_without_a_column_are_left_out_of_a_classifier_too():
    weight, _ = head_for(4)
    z, _ = random_batch([0, 0, 0])
    _, c = classified(z[:2], torch.tensor([2, 0]), weight)
    more = replace(c, anchor_label=torch.tensor([2, 0, 99]), anchors=z)
    torch.testing.assert_close(cross_entropy(more).total, cross_entropy(c).total)


def test_several_proxies_a_class_count_by_the_mean_of_their_logits():
    z, label = random_batch(LABELS["pairs"])
    proxies = Proxies(3, 5, per_class=2, closeness="inner").double()
    logits = z @ proxies.vectors.T
    own = logits.view(6, 3, 2)[torch.arange(6), label].mean(1)
    others = (logits.sum(1) - 2 * own) / 4
    terms = cross_entropy(proxies(z, Batch(None, label=label)), label_smoothing=0.1)
    torch.testing.assert_close(terms.tightness, -(0.9 * own + 0.1 * others).mean())
    torch.testing.assert_close(terms.contrast, logits.logsumexp(1).mean())


def test_by_cosine_the_blocks_see_unit_rows():
    z, label = random_batch(LABELS["pairs"])
    proxies = Proxies(3, 5, closeness="cosine").double()
    c = proxies(z, Batch(None, label=label))
    torch.testing.assert_close(cross_entropy(c).total, cross_entropy(whole(c)).total)


def test_euclidean_classes_are_compared_by_distance():
    z, label = random_batch(LABELS["pairs"])
    proxies = Proxies(3, 5, closeness="euclidean").double()
    value = cross_entropy(proxies(z, Batch(None, label=label))).total
    logits = 1 - torch.cdist(z, proxies.vectors).square() / 2
    torch.testing.assert_close(value, F.cross_entropy(logits, label))


def test_columns_in_any_order_are_found():
    z, label = random_batch(LABELS["pairs"])
    weight, bias = head_for(3)
    _, c = classified(z, label, weight, bias)
    order = torch.tensor([2, 0, 1])
    turned = replace(
        c, references=weight[order], bias=bias[order], reference_label=c.reference_label[order]
    )
    torch.testing.assert_close(cross_entropy(turned).total, cross_entropy(c).total)


def test_multi_hot_rows_count_by_the_mean_of_their_own_logits():
    z, _ = random_batch([0, 0, 0])
    weight, bias = head_for(4)
    hot = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 0], [1, 1, 1, 1]]).bool()
    _, c = classified(z, hot, weight, bias)
    logits = z @ weight.T + bias
    terms = cross_entropy(c)
    torch.testing.assert_close(terms.tightness, -((logits * hot).sum(1) / hot.sum(1)).mean())
    torch.testing.assert_close(terms.contrast, logits.logsumexp(1).mean())


@pytest.mark.parametrize(
    ("classes", "decay", "norm", "loss"),
    [(3, 0.01, 2.0665688, 0.2144013), (10, 5e-4, 4.7711504, 0.1577089)],
)
def test_weight_decay_ends_at_a_simplex_of_its_norm(classes, decay, norm, loss):
    corners = F.normalize(torch.eye(classes, dtype=torch.float64) - 1 / classes)
    head, c = classified(corners, torch.arange(classes), norm * corners)
    value = cross_entropy(c).total + decay * head.weight.square().sum()
    assert value.item() == pytest.approx(loss, abs=1e-7)
    (slope,) = torch.autograd.grad(value, head.weight)
    assert slope.abs().max().item() < 1e-8


def test_with_one_class_label_smoothing_has_nobody_to_fall_on():
    c = given([[3.0], [-2.0]], [0, 0], [0], columns_are="classes")
    assert cross_entropy(c, label_smoothing=0.1).total.item() == 0
