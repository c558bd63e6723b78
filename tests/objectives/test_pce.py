"""Pairwise cross-entropy: its parts, its curvature, its turns. What holds of it beside
cross-entropy stands in test_bounds_of_the_paper."""

import math

import pytest
import torch
import torch.nn.functional as F
from quad4 import LABEL4, LABELS, QUAD4, random_batch
from torch.autograd import gradcheck

import nearkin as nk
from nearkin.compare import Centers
from nearkin.core import Batch
from nearkin.losses.classification import spce
from nearkin.objectives.pce import (
    PairwiseCrossEntropy,
    pairwise_cross_entropy,
    smallest_curvature,
)

BATCH = Batch(None, label=LABEL4)
EVEN = torch.full((4, 2), 0.5, dtype=torch.float64)


def pce(lam=0.1, classes=2, dim=2, **settings) -> PairwiseCrossEntropy:
    return PairwiseCrossEntropy(classes, dim, lam, **settings).double()


def with_weight(objective, weight):
    with torch.no_grad():
        objective.classifier.weight.copy_(weight)
    return objective


def drawn(classes, dim=5, seed=1):
    random = torch.Generator().manual_seed(seed)
    return torch.randn(classes, dim, dtype=torch.float64, generator=random)


# --- known values


def test_of_quad4_at_a_zero_classifier():
    terms = pce(0.1)(QUAD4, BATCH)
    soft = 0.1166265877
    assert terms.tightness.item() == pytest.approx(-1.5625, abs=1e-12)
    assert terms.contrast.item() == pytest.approx(1.8594130579 - soft / 0.2, abs=1e-9)
    assert terms.total.item() == pytest.approx(-0.2862198808, abs=1e-9)
    assert (EVEN.T @ QUAD4 / 4).square().sum().item() == pytest.approx(soft, abs=1e-9)


@pytest.mark.parametrize(("lam", "value"), [(0.1, -0.1504315455), (1.0, 0.5818503967)])
def test_of_quad4_with_the_identity_as_weights(lam, value):
    objective = with_weight(pce(lam), torch.eye(2))
    assert objective(QUAD4, BATCH).total.item() == pytest.approx(value, abs=1e-9)


@pytest.mark.parametrize(
    ("weight", "ends"),
    [(torch.zeros(2, 2), (0.09375, 0.15625)), (torch.eye(2), (0.07612095, 0.13179052))],
)
def test_the_curvature_of_quad4(weight, ends):
    logits = QUAD4 @ weight.double().T
    p = logits.softmax(1)[:, 0]
    block = (QUAD4 * (p * (1 - p))[:, None]).T @ QUAD4 / 4
    assert torch.linalg.eigvalsh(block).tolist() == pytest.approx(ends, abs=1e-8)
    assert smallest_curvature(QUAD4, logits) == pytest.approx(ends[0], abs=1e-8)


def test_the_second_moment_of_quad4():
    ends = torch.linalg.eigvalsh(QUAD4.T @ QUAD4 / 4)
    assert ends.tolist() == pytest.approx([0.375, 0.625], abs=1e-12)


def test_of_equal_rows_at_a_zero_classifier_is_the_log_of_the_classes():
    z = torch.ones(6, 3, dtype=torch.float64)
    terms = pce(0.5, 3, 3)(z, Batch(None, label=torch.tensor([0, 0, 1, 1, 2, 2])))
    assert terms.total.item() == pytest.approx(math.log(3), abs=1e-12)


# --- slow loops, identities


def pair_sums(z, label, p, lam):
    """Equation 12 by its sums over pairs of rows."""
    rows, n, classes = z.tolist(), len(z), p.shape[1]
    p = p.tolist()

    def dot(i, j):
        return math.fsum(a * b for a, b in zip(rows[i], rows[j], strict=True))

    tight = -math.fsum(dot(i, j) for i in range(n) for j in range(n) if label[i] == label[j]) / (
        2 * lam * n * n
    )
    apart = 0.0
    for i in range(n):
        sums = [math.fsum(p[j][k] * dot(i, j) for j in range(n)) for k in range(classes)]
        apart += math.log(math.fsum(math.exp(s / (lam * n)) for s in sums)) / n
    soft = math.fsum(
        p[i][k] * p[j][k] * dot(i, j) for i in range(n) for j in range(n) for k in range(classes)
    )
    return tight, apart - soft / (2 * lam * n * n)


@pytest.mark.parametrize("lam", [0.1, 2.0])
@pytest.mark.parametrize("labels", LABELS)
def test_it_equals_the_printed_sums_over_pairs(labels, lam):
    z, label = random_batch(LABELS[labels])
    objective = with_weight(pce(lam, 6, 5), drawn(6))
    p = (z @ drawn(6).T).softmax(1)
    tightness, contrast = pair_sums(z, label.tolist(), p, lam)
    terms = objective(z, Batch(None, label=label))
    assert terms.tightness.item() == pytest.approx(tightness, rel=1e-10)
    assert terms.contrast.item() == pytest.approx(contrast, rel=1e-10)


def test_the_last_factor_is_that_of_the_equation_and_not_of_the_table():
    z, label = random_batch(LABELS["balanced"])
    p, lam = (z @ drawn(4).T).softmax(1), 0.3
    hard = torch.stack([z[label == k].sum(0) for k in range(4)]) / len(z)
    soft = p.T @ z / len(z)
    # Cross-entropy less a ridge and the ridge, each minimized or made stationary by its own
    # weights.
    one = -(hard[label] * z / lam).sum(1).mean() + (hard / lam).square().sum() * lam / 2
    two = (z @ soft.T / lam).logsumexp(1).mean() - (soft / lam).square().sum() * lam / 2
    terms = pairwise_cross_entropy(z, label, p, lam)
    torch.testing.assert_close(terms.tightness, one)
    torch.testing.assert_close(terms.contrast, two)
    table = terms.total + soft.square().sum() * (1 / (2 * lam) - 1 / (2 * 16 * lam**2))
    assert abs((table - one - two).item()) > 0.1


@pytest.mark.parametrize("lam", [0.2, 1.0])
def test_where_the_probabilities_are_the_labels_it_is_the_simplified_one(lam):
    z, label = random_batch(LABELS["unbalanced"])
    terms = pairwise_cross_entropy(z, label, F.one_hot(label).double(), lam)
    sums = Centers("sums", "inner")(z, Batch(None, label=label))
    torch.testing.assert_close(terms.total, spce(sums, scale=1 / lam).total)


def test_a_class_that_the_batch_lacks_has_no_hard_sum():
    z, label = random_batch(LABELS["pairs"])
    hard = torch.stack([z[label == k].sum(0) for k in range(3)]) / 6
    terms = pce(0.5, 9, 5)(z, Batch(None, label=label))
    torch.testing.assert_close(terms.tightness, -hard.square().sum())
    # Nine soft sums, each a ninth of the mean.
    expected = math.log(9) + z.mean(0).square().sum().item() / 9
    assert terms.contrast.item() == pytest.approx(expected, rel=1e-12)


def test_the_order_of_rows_does_not_matter():
    z, label = random_batch(LABELS["shuffled"])
    order = torch.randperm(len(label), generator=torch.Generator().manual_seed(0))
    objective = with_weight(pce("block_min_eig", 5, 5), drawn(5))
    one = objective(z, Batch(None, label=label))
    two = objective(z[order], Batch(None, label=label[order]))
    torch.testing.assert_close(one.total, two.total)


# --- the gradient


def test_the_probabilities_are_constants_unless_asked():
    z, label = random_batch(LABELS["unbalanced"])
    z.requires_grad_()
    weight, batch = drawn(4), Batch(None, label=label)
    p = (z @ weight.T).softmax(1)
    slopes = []
    for detach, given in ((True, p.detach()), (False, p)):
        seen = with_weight(pce(0.3, 4, 5, detach=detach), weight)(z, batch).total
        expected = pairwise_cross_entropy(z, label, given, 0.3).total
        slopes.append(torch.autograd.grad(seen, z)[0])
        wanted = torch.autograd.grad(expected, z, retain_graph=True)[0]
        torch.testing.assert_close(slopes[-1], wanted)
    assert (slopes[0] - slopes[1]).norm() > 1e-3


@pytest.mark.parametrize("detach", [True, False])
def test_gradcheck(detach):
    z, label = random_batch(LABELS["pairs"])
    objective = with_weight(pce(0.5, 3, 5, detach=False), drawn(3))
    fixed = (z @ drawn(3).T).softmax(1)

    def value(z):
        if detach:
            return pairwise_cross_entropy(z, label, fixed, 0.5).total
        return objective(z, Batch(None, label=label)).total

    assert gradcheck(value, [z.requires_grad_()], eps=1e-6, atol=1e-6)


def test_lam_is_a_constant_for_the_gradient():
    z, label = random_batch(LABELS["shuffled"])
    z.requires_grad_()
    by_rule = with_weight(pce("block_min_eig", 5, 5), drawn(5))
    batch = Batch(None, label=label)
    lam = smallest_curvature(z, z @ drawn(5).T)
    assert by_rule.diagnosis(z, batch)["lam"] == lam
    by_number = with_weight(pce(lam, 5, 5), drawn(5))
    slopes = [torch.autograd.grad(o(z, batch).total, z)[0] for o in (by_rule, by_number)]
    assert torch.equal(*slopes)


# --- the curvature


@pytest.mark.parametrize("seed", range(5))
def test_it_is_the_smallest_of_the_hessians_own_blocks(seed):
    z, _ = random_batch([0] * 12, dim=3, seed=seed)
    weight = drawn(4, 3, seed)

    def partition(flat):
        return (z @ flat.view(4, 3).T).logsumexp(1).mean()

    hessian = torch.autograd.functional.hessian(partition, weight.flatten())
    blocks = [hessian[3 * k : 3 * k + 3, 3 * k : 3 * k + 3] for k in range(4)]
    expected = min(torch.linalg.eigvalsh(block)[0].item() for block in blocks)
    assert smallest_curvature(z, z @ weight.T) == pytest.approx(expected, rel=1e-9)


DEGENERATE = {
    "fewer rows than dimensions": lambda x: x[:4],
    "a dead dimension": lambda x: x * (torch.arange(6) != 2),
    "rows that add up to nothing": lambda x: x - x.mean(1, keepdim=True),
    "equal rows": torch.ones_like,
    "rows of zeros": torch.zeros_like,
    "a classifier that is certain": lambda x: 100 * x,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", DEGENERATE)
def test_without_curvature_it_says_what_to_do(case, dtype):
    z = DEGENERATE[case](drawn(40, 6).to(dtype))
    logits = z @ (10 * drawn(3, 6, seed=2)).T.to(dtype)
    said = rf"no curvature in {len(z)} rows of 6 dimensions.*project.*larger batch.*lam a number"
    with pytest.raises(ValueError, match=said):
        smallest_curvature(z, logits)


def test_rows_of_uneven_scales_still_have_their_curvature():
    random = torch.Generator().manual_seed(0)
    z = torch.randn(64, 4, generator=random) * torch.tensor([1.0, 0.1, 0.01, 0.001])
    found = smallest_curvature(z, torch.zeros(64, 3))
    expected = torch.linalg.eigvalsh(z.double().T @ z.double() / 64)[0].item() * 2 / 9
    assert found == pytest.approx(expected, rel=1e-6)


# --- turns


def test_the_classifier_learns_by_cross_entropy_before_the_encoder():
    z = QUAD4.clone().requires_grad_()
    objective = with_weight(pce(0.1), torch.eye(2))
    turns = objective.turns(z, BATCH)
    first = next(turns)
    assert first.learns == ("classifier",)
    assert first.terms.total.item() == pytest.approx(0.4581497777, abs=1e-9)
    first.terms.total.backward()
    assert z.grad is None
    with_weight(objective, torch.zeros(2, 2))
    second = next(turns)
    assert second.learns == ("encoder",)
    # It sees the classifier as the turn before left it.
    assert second.terms.total.item() == pytest.approx(-0.2862198808, abs=1e-9)
    assert next(turns, None) is None
    assert list(objective.learners()) == ["classifier"]


@pytest.mark.parametrize("lam", [0.05, "block_min_eig"])
def test_by_descent_classes_part(lam):
    random = torch.Generator().manual_seed(0)
    x = torch.randn(30, 8, generator=random, dtype=torch.float64)
    label = torch.arange(30) % 3
    x = x + F.one_hot(label, 8)
    encoder = torch.nn.Linear(8, 4, bias=False).double()
    with torch.no_grad():
        encoder.weight.copy_(torch.randn(4, 8, generator=random) / 3)
    objective = nk.objective("pce", classes=3, dim=4, lam=lam).double()
    descent = {
        "encoder": torch.optim.SGD(encoder.parameters(), 0.005),
        "classifier": torch.optim.SGD(objective.learners()["classifier"].parameters(), 0.05),
    }

    def ratio():
        z = encoder(x).detach()
        means = torch.stack([z[label == k].mean(0) for k in range(3)])
        within = (z - means[label]).square().sum()
        return (within / (means[label] - z.mean(0)).square().sum()).item()

    before = ratio()
    for _ in range(60):
        for turn in objective.turns(encoder(x), label):
            nk.update(turn, descent)
    assert ratio() < 0.7 * before


# --- the border


@pytest.mark.parametrize(
    ("lam", "said"),
    [
        (0.0, "lam must be above 0, not 0"),
        (-1.0, "lam must be above 0, not -1"),
        ("block_max", "lam must be a number above 0 or block_min_eig, not 'block_max'"),
    ],
)
def test_a_lam_out_of_range_is_refused(lam, said):
    with pytest.raises(ValueError, match=said):
        PairwiseCrossEntropy(2, 2, lam)


def test_lam_must_be_given():
    with pytest.raises(ValueError, match="pce needs 'lam'"):
        nk.objective("pce", classes=2, dim=2)


def test_labels_without_a_class_and_rows_of_several_are_refused():
    with pytest.raises(ValueError, match="label 2 is out of range"):
        pce()(QUAD4, Batch(None, label=torch.tensor([0, 0, 1, 2])))
    with pytest.raises(ValueError, match="pce needs rows of one class each"):
        pce()(QUAD4, Batch(None, label=F.one_hot(LABEL4).bool()))


def test_under_bfloat16_autocast_it_computes_in_float32():
    objective = PairwiseCrossEntropy(2, 2, "block_min_eig")
    expected = objective(QUAD4.float(), BATCH).total
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(objective(QUAD4.float(), BATCH).total, expected)
        assert objective(QUAD4.bfloat16(), BATCH).total.dtype == torch.float32
