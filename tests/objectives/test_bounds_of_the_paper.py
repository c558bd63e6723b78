"""What holds between the losses of Boudiaf et al. 2020, table 2: proposition 1 as far as it is
true, lemma 1 and its companions with their constants."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from quad4 import in_batch

from nearkin.compare import Centers, Classifier
from nearkin.core import Batch
from nearkin.losses.classification import cross_entropy, spce
from nearkin.losses.pairwise import contrastive, multi_similarity, snca
from nearkin.objectives.center import Center
from nearkin.objectives.pce import (
    PairwiseCrossEntropy,
    pairwise_cross_entropy,
    smallest_curvature,
)

SEEDS = range(12)
ROUNDING = 1e-11


def problem(seed, rows=40, dim=3, classes=4):
    """Rows that no linear classifier tells apart, their classes, weights of a classifier."""
    random = torch.Generator().manual_seed(seed)
    z = torch.randn(rows, dim, generator=random, dtype=torch.float64)
    label = torch.cat([torch.arange(classes), torch.randint(classes, (rows,), generator=random)])
    label = label[:rows]
    z = z + 0.7 * torch.randn(classes, dim, generator=random, dtype=torch.float64)[label]
    return z, label, torch.randn(classes, dim, generator=random, dtype=torch.float64)


def ce(z, label, weight) -> torch.Tensor:
    head = Classifier(len(weight), z.shape[1], bias=False, closeness="inner").double()
    c = head(z, Batch(None, label=label))
    return cross_entropy(replace(c, references=weight)).total


def pce_at(z, label, weight, lam) -> torch.Tensor:
    objective = PairwiseCrossEntropy(len(weight), z.shape[1], lam).double()
    with torch.no_grad():
        objective.classifier.weight.copy_(weight)
    return objective(z, Batch(None, label=label)).total.detach()


def hard_sums(z, label, classes):
    return torch.stack([z[label == k].sum(0) for k in range(classes)]) / len(z)


def soft_sums(z, weight):
    return (z @ weight.T).softmax(1).T @ z / len(z)


def second_moment(z):
    return torch.linalg.eigvalsh(z.T @ z / len(z))


def spread_of_sums(z, label, classes):
    """Σ_k |m_k - z̄/K|²."""
    return (hard_sums(z, label, classes) - z.mean(0) / classes).square().sum().item()


def best_weights(z, label, classes):
    """The minimizer of cross-entropy, by Newton's method on the weights that add up to 0."""
    size = classes * z.shape[1]
    weight = torch.zeros(size, dtype=torch.float64)

    def value(flat):
        return F.cross_entropy(z @ flat.view(classes, -1).T, label)

    for _ in range(60):
        slope = torch.autograd.functional.jacobian(value, weight)
        if slope.norm() < 1e-13:
            break
        hessian = torch.autograd.functional.hessian(value, weight)
        step = torch.linalg.pinv(hessian, rtol=1e-10, hermitian=True) @ slope
        size = 1.0
        while value(weight - size * step) > value(weight) and size > 1e-6:
            size /= 2
        weight = weight - size * step
    assert slope.norm() < 1e-10
    return weight.view(classes, -1)


# --- proposition 1: what is true of it


@pytest.mark.parametrize("lam", [0.01, 0.3, 5.0])
@pytest.mark.parametrize("seed", SEEDS)
def test_pce_and_ce_differ_by_at_least_the_gap_of_their_two_gradients(seed, lam):
    z, label, weight = problem(seed)
    to_first = lam * weight - hard_sums(z, label, 4)
    to_second = soft_sums(z, weight) - lam * weight
    low = (to_second.square().sum() - to_first.square().sum()) / (2 * lam)
    gap = pce_at(z, label, weight, lam) - ce(z, label, weight)
    scale = max(1.0, abs(low.item()))
    assert gap.item() >= low.item() - ROUNDING * scale


@pytest.mark.parametrize("lam", [0.01, 0.3, 5.0])
@pytest.mark.parametrize("seed", SEEDS)
def test_the_first_part_has_its_minimum_at_the_tightness(seed, lam):
    z, label, weight = problem(seed)
    hard = hard_sums(z, label, 4)

    def first(w):
        return -(z * w[label]).sum(1).mean() + lam / 2 * w.square().sum()

    tightness = pairwise_cross_entropy(z, label, torch.full((len(z), 4), 0.25), lam).tightness
    torch.testing.assert_close(first(hard / lam), tightness)
    above = (lam * weight - hard).square().sum() / (2 * lam)
    torch.testing.assert_close(first(weight) - tightness, above)


@pytest.mark.parametrize("lam", ["curvature", 0.05, 1.0, 20.0])
@pytest.mark.parametrize("seed", range(6))
def test_at_the_minimum_of_ce_pce_lies_above_it_for_every_lam(seed, lam):
    z, label, _ = problem(seed)
    best = best_weights(z, label, 4)
    if lam == "curvature":
        lam = smallest_curvature(z, z @ best.T)
    hard = hard_sums(z, label, 4)
    torch.testing.assert_close(soft_sums(z, best), hard, rtol=0, atol=1e-9)
    found = pce_at(z, label, best, lam)
    torch.testing.assert_close(found, ce(z, label, hard / lam), rtol=1e-7, atol=1e-9)
    assert found.item() > ce(z, label, best).item()


@pytest.mark.parametrize("lam", [1e-3, 0.1, 1.0, 100.0])
@pytest.mark.parametrize("seed", range(6))
def test_at_a_zero_classifier_pce_is_at_most_ce_for_every_lam(seed, lam):
    z, label, weight = problem(seed)
    for longer in (1.0, 10.0):
        expected = math.log(4) - longer**2 * spread_of_sums(z, label, 4) / (2 * lam)
        found = pce_at(longer * z, label, 0 * weight, lam).item()
        assert found == pytest.approx(expected, rel=1e-9, abs=1e-9)
        assert found <= ce(longer * z, label, 0 * weight).item() == pytest.approx(math.log(4))


@pytest.mark.parametrize("seed", SEEDS)
def test_even_probabilities_are_a_stationary_point_of_the_second_part(seed):
    z, _, _ = problem(seed)
    for lam in (0.05, 1.0):
        still = (z.mean(0) / (4 * lam)).expand(4, -1)
        torch.testing.assert_close(soft_sums(z, still) / lam, still)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_bound_from_below_holds_where_the_curvature_does(seed):
    z, label, weight = problem(seed)
    weight = weight - weight.mean(0)
    lowest = min(restricted_curvature(z, t / 20 * weight) for t in range(21))
    # Between the points of the segment the curvature is a little lower at most.
    lam = 0.98 * lowest
    low = math.log(4) - spread_of_sums(z, label, 4) / (2 * lam)
    assert ce(z, label, weight).item() >= low
    assert lowest <= second_moment(z)[0].item() / 4 * (1 + 1e-9)


def restricted_curvature(z, weight):
    """The smallest eigenvalue of the Hessian of cross-entropy on the weights that add up to 0."""
    classes, dim = weight.shape

    def partition(flat):
        return (z @ flat.view(classes, dim).T).logsumexp(1).mean()

    hessian = torch.autograd.functional.hessian(partition, weight.flatten())
    values = torch.linalg.eigvalsh(hessian)
    # A common shift of all weights changes nothing: exactly one zero for each dimension.
    torch.testing.assert_close(values[:dim], torch.zeros(dim).double(), rtol=0, atol=1e-12)
    assert values[dim].item() > 1e-9
    return values[dim].item()


@pytest.mark.parametrize("seed", SEEDS)
def test_the_minimum_of_ce_is_bounded_from_above(seed):
    z, label, _ = problem(seed)
    high = math.log(4) - spread_of_sums(z, label, 4) / second_moment(z)[-1].item()
    assert ce(z, label, best_weights(z, label, 4)).item() < high


@pytest.mark.parametrize("seed", SEEDS)
def test_spce_is_ce_at_the_hard_sums_and_lies_above_its_minimum(seed):
    z, label, _ = problem(seed)
    found = spce(Centers("sums", "inner")(z, Batch(None, label=label))).total
    torch.testing.assert_close(found, ce(z, label, hard_sums(z, label, 4)))
    assert found.item() > ce(z, label, best_weights(z, label, 4)).item()


def test_the_second_part_has_no_minimum():
    z, _, weight = problem(0)
    lam = smallest_curvature(z, 0 * z @ weight.T)

    def second(w):
        return (z @ w.T).logsumexp(1).mean() - lam / 2 * w.square().sum()

    values = [second(t * weight).item() for t in (10, 100, 1000, 10_000)]
    assert values == sorted(values, reverse=True)
    assert values[-1] < -1e4


# --- lemma 1 and its companions


def drawn(seed, classes=4, per_class=5, dim=3, unit=True):
    """Balanced classes: rows, labels and the center tightness."""
    random = torch.Generator().manual_seed(seed)
    label = torch.arange(classes).repeat_interleave(per_class)
    z = torch.randn(len(label), dim, generator=random, dtype=torch.float64)
    z = z * 10 ** (2 * torch.rand(1, generator=random).double() - 1.5)
    z = z + torch.randn(classes, dim, generator=random, dtype=torch.float64)[label]
    z = F.normalize(z) if unit else z
    tightness = Center(classes, dim, weight=1.0).double()(z, Batch(None, label=label)).tightness
    return z, label, tightness.item()


@pytest.mark.parametrize("seed", SEEDS)
def test_contrastive_tightness_is_that_of_centers_where_classes_are_balanced(seed):
    for unit in (True, False):
        z, label, center = drawn(seed, unit=unit)
        found = contrastive(in_batch(z, label, "euclidean")).tightness
        assert found.item() == pytest.approx(4 / 4 * center, rel=1e-9)


@pytest.mark.parametrize("seed", SEEDS)
def test_unbalanced_classes_weigh_their_spread_by_their_size(seed):
    z, label, _ = problem(seed)
    found = contrastive(in_batch(z, label, "euclidean")).tightness.item()
    counts = label.bincount()
    spread = [(z[label == k] - z[label == k].mean(0)).square().sum().item() for k in range(4)]
    expected = 2 / len(z) * sum(n * s for n, s in zip(counts.tolist(), spread, strict=True))
    assert found == pytest.approx(expected, rel=1e-9)
    ratio = found / (sum(spread) / 2)
    assert 4 * counts.min() / len(z) <= ratio <= 4 * counts.max() / len(z)


@pytest.mark.parametrize("sigma", [0.05, 1.0])
@pytest.mark.parametrize("seed", SEEDS)
def test_snca_tightness_is_bounded_by_that_of_centers(seed, sigma):
    z, label, center = drawn(seed)
    n, m = len(z), 5
    c = in_batch(z, label)
    found = snca(c, temperature=sigma).tightness.item()
    slope = 2 * m / (n * sigma * (m - 1))
    assert found <= slope * center - 1 / sigma - math.log(m - 1) + ROUNDING / sigma
    printed = snca(replace(c, oneself=None), temperature=sigma).tightness.item()
    assert printed <= 2 / (n * sigma) * center - 1 / sigma - math.log(m) + ROUNDING / sigma


def test_snca_tightness_meets_its_bound_where_classes_have_collapsed():
    z, label, _ = drawn(0)
    found = snca(in_batch(z[label * 5], label), temperature=0.1).tightness.item()
    assert found == pytest.approx(-10 - math.log(4), abs=1e-9)


@pytest.mark.parametrize("seed", SEEDS)
def test_multi_similarity_tightness_bounds_that_of_centers(seed):
    z, label, center = drawn(seed)
    n, m = len(z), 5
    for alpha, base in ((2.0, 0.5), (2.0, 1.0), (30.0, 0.2)):
        found = multi_similarity(in_batch(z, label), alpha=alpha, base=base).tightness.item()
        low = 2 * m / (n * (m - 1)) * center + math.log(m - 1) / alpha + base - 1
        assert found >= low - ROUNDING
        # With the row itself among its positives, as the paper prints it.
        own = replace(in_batch(z, label), oneself=None)
        printed = multi_similarity(own, alpha=alpha, base=base).tightness.item()
        assert printed >= 2 / n * center + math.log(m) / alpha + base - 1 - ROUNDING
        sharper = math.log(m + 1) / alpha + m / (m + 1) * (base - 1 + 2 / n * center)
        assert printed >= sharper - ROUNDING


@pytest.mark.parametrize("lam", [0.1, 3.0])
@pytest.mark.parametrize("seed", SEEDS)
def test_pce_tightness_is_that_of_centers_up_to_a_constant(seed, lam):
    z, label, center = drawn(seed)
    p = torch.full((len(z), 4), 0.25, dtype=torch.float64)
    found = pairwise_cross_entropy(z, label, p, lam).tightness.item()
    expected = center / (lam * len(z) * 4) - 1 / (2 * lam * 4)
    assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("sigma", [0.05, 1.0])
@pytest.mark.parametrize("seed", SEEDS)
def test_contrasts_are_bounded_by_the_spread_of_all_rows(seed, sigma):
    z, label, _ = drawn(seed)
    n, m = len(z), 5
    squared = torch.cdist(z, z).square()
    total = squared.sum().item()
    assert total == pytest.approx(2 * n**2 * (1 - z.mean(0).square().sum().item()), rel=1e-9)
    low = math.log(n - 1) + 1 / sigma - total / (2 * sigma * n * (n - 1))
    assert snca(in_batch(z, label), temperature=sigma).contrast.item() >= low - ROUNDING / sigma
    far = squared[label[:, None] != label[None]].sum().item()
    for beta, base in ((50.0, 0.5), (2.0, 1.0)):
        found = multi_similarity(in_batch(z, label), beta=beta, base=base).contrast.item()
        assert found >= math.log(n - m) / beta + 1 - base - far / (2 * n * (n - m)) - ROUNDING
