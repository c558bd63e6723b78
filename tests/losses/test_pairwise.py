"""Losses over pairs of rows, against known values, slow loops and pytorch-metric-learning."""

import math
from dataclasses import replace

import pytest
import torch
from pytorch_metric_learning import distances
from pytorch_metric_learning import losses as pml
from quad4 import LABEL4, LABELS, QUAD4, cosines, in_batch, random_batch
from torch.nn.functional import normalize

from nearkin.losses.pairwise import contrastive, infonce, multi_similarity, snca, supcon


def simplex(classes, dtype=torch.float64):
    """The corners of a regular simplex as unit rows."""
    corners = torch.eye(classes, dtype=dtype) - 1 / classes
    return normalize(corners)


# --- known values on QUAD4


@pytest.mark.parametrize(("margin", "contrast"), [(1.0, 0.1163365060), (2.0, 1.3061696759)])
def test_contrastive_of_quad4(margin, contrast):
    terms = contrastive(in_batch(QUAD4, LABEL4), margin=margin)
    assert terms.tightness.item() == pytest.approx(1.5, abs=1e-9)
    assert terms.contrast.item() == pytest.approx(contrast, abs=1e-9)


@pytest.mark.parametrize(("base", "value"), [(0.5, 0.6846149190), (1.0, 0.8600597418)])
def test_multi_similarity_of_quad4(base, value):
    terms = multi_similarity(in_batch(QUAD4, LABEL4), base=base)
    assert terms.total.item() == pytest.approx(value, abs=1e-9)


def test_snca_of_quad4():
    c = in_batch(QUAD4, LABEL4)
    terms = snca(c, temperature=0.1)
    assert terms.tightness.item() == pytest.approx(-2.5, abs=1e-12)
    assert terms.contrast.item() == pytest.approx(5.5899331406, abs=1e-9)
    assert terms.total.item() == pytest.approx(3.0899331406, abs=1e-9)
    # As the paper's table prints it, each row is its own positive.
    printed = snca(replace(c, oneself=None), temperature=0.1).tightness
    assert printed.item() == pytest.approx(-10.0033803737, abs=1e-9)


def test_contrastive_tightness_is_four_times_the_center_tightness_over_classes():
    z, label = random_batch(LABELS["balanced"])
    rows = normalize(z)
    spread = sum((rows[label == k] - rows[label == k].mean(0)).square().sum() / 2 for k in range(4))
    terms = contrastive(in_batch(z, label))
    torch.testing.assert_close(terms.tightness, 4 / 4 * spread)


@pytest.mark.parametrize(
    ("counts", "temperature", "value"),
    [
        ([2, 2], 1.0, 0.9581790648875382 / 4),
        ([3, 3, 3], 1.0, 10.8504518274 / 9),
        ([4, 4, 4, 4], 0.5, 21.5017095588 / 16),
        ([25] * 10, 0.1, 3.1781939331),
    ],
)
def test_supcon_of_collapsed_classes_on_a_simplex(counts, temperature, value):
    label = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    c = in_batch(simplex(len(counts))[label], label)
    assert supcon(c, temperature=temperature).total.item() == pytest.approx(value, abs=1e-9)


def test_supcon_of_an_unbalanced_batch_on_a_simplex():
    label = torch.tensor([0, 0, 0, 0, 1, 1, 1, 2, 2])
    c = in_batch(simplex(3)[label], label)
    assert supcon(c, temperature=1.0).total.item() * 9 == pytest.approx(11.157512, abs=1e-6)


def test_supcon_reaches_its_floor_by_descent():
    label = torch.tensor([0, 0, 1, 1, 2, 2])
    floor = math.log(1 + 4 * math.exp(-1.5))
    z = torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    z.requires_grad_()
    descent = torch.optim.LBFGS([z], max_iter=300, line_search_fn="strong_wolfe")

    def closure():
        descent.zero_grad()
        value = supcon(in_batch(z, label), temperature=1.0).total
        value.backward()
        return value

    descent.step(closure)
    assert closure().item() == pytest.approx(floor, abs=1e-6)


@pytest.mark.parametrize("rows", [3, 8])
def test_supcon_of_equal_rows_is_the_log_of_the_others(rows):
    label = torch.arange(rows) // 2 if rows == 8 else torch.zeros(rows, dtype=torch.int64)
    value = supcon(in_batch(torch.ones(rows, 3, dtype=torch.float64), label)).total
    assert value.item() == pytest.approx(math.log(rows - 1), abs=1e-12)


def test_supcon_is_infonce_where_every_label_has_two_rows_in_two_views():
    z, label = random_batch(LABELS["pairs"])
    c = in_batch(z, label)
    torch.testing.assert_close(supcon(c).total, infonce(c).total)


def test_supcon_does_not_see_an_orthogonal_map():
    z, label = random_batch(LABELS["unbalanced"])
    turn, _ = torch.linalg.qr(random_batch([0] * 5, seed=9)[0])
    torch.testing.assert_close(
        supcon(in_batch(z @ turn, label)).total, supcon(in_batch(z, label)).total
    )


def test_infonce_pull_equals_push():
    z, label = random_batch(LABELS["unbalanced"])
    c = in_batch(z, label)
    s = c.similarity.requires_grad_()
    (g,) = torch.autograd.grad(infonce(c).total, s)
    torch.testing.assert_close(-(g * c.same).sum(), (g * c.different).sum())


# --- slow loops


def loop_contrastive(z, label, margin):
    s, n = cosines(z), len(label)
    distance = [[math.sqrt(max(2 - 2 * x, 0)) for x in row] for row in s]
    pairs = [(i, j) for i in range(n) for j in range(n) if i != j]
    tight = sum(distance[i][j] ** 2 for i, j in pairs if label[i] == label[j])
    apart = sum(max(margin - distance[i][j], 0) ** 2 for i, j in pairs if label[i] != label[j])
    return tight / n, apart / n


def loop_multi_similarity(z, label, alpha, beta, base):
    s, n = cosines(z), len(label)
    tight = apart = 0.0
    for i in range(n):
        near = [s[i][j] for j in range(n) if j != i and label[j] == label[i]]
        far = [s[i][j] for j in range(n) if label[j] != label[i]]
        tight += math.log1p(math.fsum(math.exp(-alpha * (x - base)) for x in near)) / alpha
        apart += math.log1p(math.fsum(math.exp(beta * (x - base)) for x in far)) / beta
    return tight / n, apart / n


def loop_infonce(z, label, temperature):
    s, n = cosines(z), len(label)
    tight, apart = [], []
    for i in range(n):
        far = [math.exp(s[i][k] / temperature) for k in range(n) if label[k] != label[i]]
        for j in range(n):
            if j != i and label[j] == label[i]:
                tight.append(-s[i][j] / temperature)
                apart.append(math.log(math.exp(s[i][j] / temperature) + math.fsum(far)))
    return math.fsum(tight) / len(tight), math.fsum(apart) / len(apart)


def loop_supcon(z, label, temperature):
    s, n = cosines(z), len(label)
    tight, apart = [], []
    for i in range(n):
        near = [s[i][j] / temperature for j in range(n) if j != i and label[j] == label[i]]
        if near:
            tight.append(-math.fsum(near) / len(near))
            every = [math.exp(s[i][k] / temperature) for k in range(n) if k != i]
            apart.append(math.log(math.fsum(every)))
    return math.fsum(tight) / len(tight), math.fsum(apart) / len(apart)


def loop_snca(z, label, temperature):
    s, n = cosines(z), len(label)
    tight, apart = [], []
    for i in range(n):
        near = [
            math.exp(s[i][j] / temperature) for j in range(n) if j != i and label[j] == label[i]
        ]
        if near:
            tight.append(-math.log(math.fsum(near)))
            every = [math.exp(s[i][k] / temperature) for k in range(n) if k != i]
            apart.append(math.log(math.fsum(every)))
    return math.fsum(tight) / len(tight), math.fsum(apart) / len(apart)


LOOPS = [
    (contrastive, loop_contrastive, {"margin": 1.2}),
    (multi_similarity, loop_multi_similarity, {"alpha": 3.0, "beta": 20.0, "base": 0.4}),
    (infonce, loop_infonce, {"temperature": 0.2}),
    (supcon, loop_supcon, {"temperature": 0.2}),
    (snca, loop_snca, {"temperature": 0.2}),
]


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize(("loss", "loop", "settings"), LOOPS)
def test_it_equals_a_slow_loop_by_its_parts(loss, loop, settings, labels):
    z, label = random_batch(LABELS[labels])
    terms = loss(in_batch(z, label), **settings)
    tightness, contrast = loop(z, label.tolist(), **settings)
    assert terms.tightness.item() == pytest.approx(tightness, rel=1e-10)
    assert terms.contrast.item() == pytest.approx(contrast, rel=1e-10)


# --- pytorch-metric-learning


def theirs(loss, z, label):
    value = loss(z, label)
    return value, torch.autograd.grad(value, z)[0]


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize(
    ("loss", "peer"),
    [
        (multi_similarity, pml.MultiSimilarityLoss(alpha=2, beta=50, base=0.5)),
        (infonce, pml.NTXentLoss(temperature=0.1)),
        (supcon, pml.SupConLoss(temperature=0.1)),
        (snca, pml.NCALoss(softmax_scale=20, distance=distances.CosineSimilarity())),
    ],
)
def test_it_equals_pytorch_metric_learning(loss, peer, labels):
    # Their SupCon averages the losses over 0; here every anchor with a positive is one.
    z, label = random_batch(LABELS[labels])
    mine, other = z.clone().requires_grad_(), z.clone().requires_grad_()
    value = loss(in_batch(mine, label)).total
    expected, gradient = theirs(peer, other, label)
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(torch.autograd.grad(value, mine)[0], gradient, rtol=1e-8, atol=1e-9)


# --- what a temperature or a class of two does


def test_snca_is_infonce_and_supcon_where_every_row_has_one_positive():
    z, label = random_batch(LABELS["pairs"])
    c = in_batch(z, label)
    for other in (infonce, supcon):
        torch.testing.assert_close(snca(c, temperature=0.3).total, other(c, temperature=0.3).total)


def test_snca_is_at_most_supcon():
    # log of a mean against a mean of logs: snca counts the positives on top of it.
    z, label = random_batch(LABELS["balanced"])
    c = in_batch(z, label)
    gap = supcon(c, temperature=0.3).total - snca(c, temperature=0.3).total
    assert gap.item() >= math.log(2)


def test_snca_sees_only_what_is_compared_and_leaves_out_rows_without_a_positive():
    z, label = random_batch(LABELS["balanced"])
    kept = torch.arange(12) < 9  # no row of the last class
    c = replace(in_batch(z, label), allowed=kept[None].expand(12, -1))
    s = c.similarity[:, :9] / 0.05
    expected = []
    for i in range(9):
        others = kept[:9] & (torch.arange(9) != i)
        own = others & (label[:9] == label[i])
        expected.append(s[i][others].logsumexp(0) - s[i][own].logsumexp(0))
    torch.testing.assert_close(snca(c).total, torch.stack(expected).mean())


@pytest.mark.parametrize("loss", [infonce, supcon, snca])
def test_a_temperature_must_be_above_zero(loss):
    with pytest.raises(ValueError, match="temperature must be above 0, not 0"):
        loss(in_batch(QUAD4, LABEL4), temperature=0.0)
