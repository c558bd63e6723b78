"""What each loss reduces to: the equalities between losses, their limits and their exact floors, in
float64. What holds between the parts of Boudiaf et al.'s table stands with the objectives."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from quad4 import given, in_batch, random_batch
from torch.testing import assert_close

from nearkin.compare import Centers, Classifier, InBatch, Proxies
from nearkin.core import Batch
from nearkin.losses.bounds import jsd
from nearkin.losses.classification import (
    arcface,
    cosface,
    cross_entropy,
    norm_softmax,
    spce,
    sub_center_arcface,
)
from nearkin.losses.hinges import binomial_deviance, margin, sigmoid
from nearkin.losses.histograms import histogram
from nearkin.losses.neighbors import n_pairs, nca, tuplet_margin
from nearkin.losses.pairwise import contrastive, infonce, multi_similarity, snca, supcon
from nearkin.losses.proxies import proxy_nca, proxy_nca_plus_plus
from nearkin.losses.soft_triple import soft_triple
from nearkin.losses.structured import (
    angular,
    angular_hinge,
    generalized_lifted,
    lifted_structure,
)
from nearkin.losses.triplets import (
    easy_positive_hard_negative,
    quadruplet,
    triplet_hard,
    triplet_soft_margin,
)
from nearkin.mining import hard
from nearkin.objectives.pce import pairwise_cross_entropy

SEEDS = range(5)
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:n_pairs takes the first two rows:UserWarning"),
]


def rows_and_labels(seed, counts=(5, 4, 3, 3), dim=4, unit=False):
    """Rows around class directions, shuffled, and their labels."""
    random = torch.Generator().manual_seed(seed)
    label = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    label = label[torch.randperm(len(label), generator=random)]
    z, _ = random_batch(label.tolist(), dim, seed)
    return (F.normalize(z) if unit else z), label


def simplex(classes, dim=None):
    """The corners of a regular simplex as unit rows, in `dim` dimensions (default: classes)."""
    corners = F.normalize(torch.eye(classes, dtype=torch.float64) - 1 / classes)
    if dim is None or dim >= classes:
        return F.pad(corners, (0, (dim or classes) - classes))
    # The corners span classes - 1 dimensions, the first singular directions.
    _, _, directions = torch.linalg.svd(corners)
    return corners @ directions[:dim].T


def around(vectors, z, label, per_class=1, closeness="cosine"):
    proxies = Proxies(len(vectors) // per_class, z.shape[1], per_class, closeness).double()
    with torch.no_grad():
        proxies.vectors.copy_(vectors)
    return proxies(z, Batch(None, label=label))


def logits_ce(logits, label):
    """Cross-entropy of logits that are written down."""
    return cross_entropy(given(logits, label, torch.arange(logits.shape[1]))).total


def same_and_different(label):
    same = label[:, None] == label
    return same & ~torch.eye(len(label), dtype=torch.bool), ~same


def vectors_for(classes, dim, seed=9):
    random = torch.Generator().manual_seed(seed)
    return torch.randn(classes, dim, generator=random, dtype=torch.float64)


# --- proxies and classes


@pytest.mark.parametrize("temperature", [0.05, 1 / 18, 0.5])
@pytest.mark.parametrize("seed", SEEDS)
def test_norm_softmax_is_cross_entropy_with_unit_weights_over_the_temperature(seed, temperature):
    z, label = rows_and_labels(seed)
    vectors = vectors_for(6, 4)
    head = Classifier(6, 4, bias=False).double()
    with torch.no_grad():
        head.weight.copy_(F.normalize(vectors) / temperature)
    head.settle("inner")
    expected = cross_entropy(head(F.normalize(z), Batch(None, label=label))).total
    found = norm_softmax(around(vectors, z, label), temperature=temperature).total
    assert_close(found, expected)


@pytest.mark.parametrize("seed", SEEDS)
def test_spce_is_cross_entropy_with_the_class_sums_as_weights(seed):
    z, label = rows_and_labels(seed)
    sums = torch.stack([z[label == k].sum(0) for k in range(4)]) / len(z)
    found = spce(Centers("sums", "inner")(z, Batch(None, label=label))).total
    assert_close(found, logits_ce(z @ sums.T, label))


@pytest.mark.parametrize(
    ("classes", "value"),
    [(2, 0.3132616875), (3, 0.7943767694), (4, 1.1472735340), (100, 4.5951706927)],
)
def test_spce_of_collapsed_classes_on_a_simplex(classes, value):
    label = torch.arange(classes).repeat_interleave(3)
    c = Centers("sums", "inner")(simplex(classes)[label], Batch(None, label=label))
    assert spce(c).total.item() == pytest.approx(value, abs=1e-9)
    one = torch.ones(len(label), 3, dtype=torch.float64)
    together = Centers("sums", "inner")(one, Batch(None, label=label))
    assert spce(together).total.item() == pytest.approx(math.log(classes), abs=1e-12)


@pytest.mark.parametrize("lam", [0.05, 0.7, 4.0])
@pytest.mark.parametrize("seed", SEEDS)
def test_pce_is_the_two_halves_of_cross_entropy_each_at_sums_over_lam(seed, lam):
    z, label = rows_and_labels(seed)
    p = (z @ vectors_for(4, 4).T).softmax(1)
    hard_sums = torch.stack([z[label == k].sum(0) for k in range(4)]) / len(z)
    soft_sums = p.T @ z / len(z)

    def first(w):
        return -(z * w[label]).sum(1).mean() + lam / 2 * w.square().sum()

    def second(w):
        return (z @ w.T).logsumexp(1).mean() - lam / 2 * w.square().sum()

    terms = pairwise_cross_entropy(z, label, p, lam)
    assert_close(terms.tightness, first(hard_sums / lam))
    assert_close(terms.contrast, second(soft_sums / lam))


@pytest.mark.parametrize("seed", SEEDS)
def test_without_a_margin_cosface_and_arcface_are_norm_softmax(seed):
    z, label = rows_and_labels(seed)
    c = around(vectors_for(5, 4), z, label)
    expected = norm_softmax(c, temperature=1 / 64).total
    assert_close(cosface(c, margin=0.0).total, expected)
    assert_close(arcface(c, margin=0.0).total, expected)


@pytest.mark.parametrize("seed", SEEDS)
def test_with_one_center_a_class_sub_center_arcface_is_arcface_and_soft_triple_cosface(seed):
    z, label = rows_and_labels(seed)
    c = around(vectors_for(5, 4), z, label)
    assert_close(sub_center_arcface(c).total, arcface(c).total)
    one = soft_triple(c, scale=30.0, margin=0.2).total
    assert_close(one, cosface(c, scale=30.0, margin=0.2).total)


@pytest.mark.parametrize("scale", [0.7, 1.0, 3.0])
@pytest.mark.parametrize("seed", SEEDS)
def test_proxy_nca_with_the_own_proxy_is_norm_softmax_at_half_the_inverse_square(seed, scale):
    z, label = rows_and_labels(seed)
    vectors = vectors_for(6, 4)
    c = around(vectors, z, label)
    temperature = 1 / (2 * scale**2)
    found = proxy_nca_plus_plus(c, scale=scale).total
    assert_close(found, norm_softmax(c, temperature=temperature).total)
    weight = F.normalize(vectors) / temperature
    assert_close(found, logits_ce(F.normalize(z) @ weight.T, label))


@pytest.mark.parametrize("scale", [0.7, 1.0, 3.0])
@pytest.mark.parametrize("seed", SEEDS)
def test_proxy_nca_without_the_own_proxy_is_its_log_expm1_row_by_row(seed, scale):
    z, label = rows_and_labels(seed)
    vectors = vectors_for(6, 4)
    each = [around(vectors, z[i : i + 1], label[i : i + 1]) for i in range(len(z))]
    included = torch.stack([proxy_nca_plus_plus(c, scale=scale).total for c in each])
    expected = included.expm1().log()
    found = torch.stack([proxy_nca(c, scale=scale).total for c in each])
    assert_close(found, expected, rtol=1e-6, atol=1e-7)  # expm1 of 1e-8 keeps half its digits
    assert_close(proxy_nca(around(vectors, z, label), scale=scale).total, found.mean())


# --- N-pairs


@pytest.mark.parametrize("seed", SEEDS)
def test_n_pairs_is_cross_entropy_with_the_positives_of_the_batch_as_weights(seed):
    z, label = rows_and_labels(seed)
    pairs = torch.stack([(label == k).nonzero()[:2, 0] for k in range(4)])
    f, g = z[pairs].unbind(1)
    found = n_pairs(in_batch(z, label, "inner"), norm_weight=0.0).total
    assert_close(found, logits_ce(f @ g.T, torch.arange(4)))


@pytest.mark.parametrize("seed", SEEDS)
def test_n_pairs_of_two_classes_is_a_soft_triplet(seed):
    z, _ = rows_and_labels(seed)
    c = in_batch(z[:4], torch.tensor([0, 0, 1, 1]), "inner")
    s = c.similarity
    expected = (F.softplus(s[0, 3] - s[0, 1]) + F.softplus(s[2, 1] - s[2, 3])) / 2
    assert_close(n_pairs(c, norm_weight=0.0).total, expected)


@pytest.mark.parametrize("seed", range(20))
def test_easy_positive_hard_negative_is_n_pairs_of_two_classes(seed):
    random = torch.Generator().manual_seed(seed)
    s = torch.rand(1, 2, generator=random, dtype=torch.float64)
    one = {"anchor_label": [0], "reference_label": [[0, 1]]}
    found = easy_positive_hard_negative(given(s, **one), temperature=0.1).total
    assert_close(found, n_pairs(given(s / 0.1, **one)).total)


# --- hinges and soft hinges of pairs


@pytest.mark.parametrize("seed", SEEDS)
def test_margin_is_the_contrastive_hinges_at_the_boundary_less_and_plus_the_margin(seed):
    z, label = rows_and_labels(seed)
    c = in_batch(z, label)
    same, different = same_and_different(label)
    for beta, alpha in ((1.2, 0.2), (0.9, 0.4)):
        near = (c.distance[same] - (beta - alpha)).relu()
        far = ((beta + alpha) - c.distance[different]).relu()
        terms = (near > 0).sum() + (far > 0).sum()
        expected = (near.sum() + far.sum()) / terms
        assert_close(margin(c, margin=alpha, beta=beta).total, expected)


def one_of_each(seed, anchors=9):
    """Each anchor has one positive and one negative."""
    random = torch.Generator().manual_seed(seed)
    s = 2 * torch.rand(anchors, 2, generator=random, dtype=torch.float64) - 1
    label = torch.arange(anchors)
    references = torch.stack([label, label + anchors], 1)
    return given(s, label, references)


@pytest.mark.parametrize("seed", SEEDS)
def test_multi_similarity_of_one_positive_and_one_negative_is_binomial_deviance(seed):
    c = one_of_each(seed)
    for alpha, cost, base in ((1.0, 1.0, 0.5), (2.0, 25.0, 0.5), (3.0, 4.0, 0.1)):
        ours = multi_similarity(c, alpha=alpha, beta=alpha * cost, base=base)
        deviance = binomial_deviance(c, alpha=alpha, beta=base, cost=cost)
        assert_close(ours.tightness, deviance.tightness / alpha)
        assert_close(ours.contrast, deviance.contrast / (alpha * cost))


@pytest.mark.parametrize("sharp", [1e2, 1e4, 1e6])
@pytest.mark.parametrize("seed", SEEDS)
def test_multi_similarity_tends_to_hinges_on_the_hardest_pairs(seed, sharp):
    z, label = rows_and_labels(seed)
    c = in_batch(z, label)
    same, different = same_and_different(label)
    lowest = torch.where(same, c.similarity, torch.inf).amin(1)
    highest = torch.where(different, c.similarity, -torch.inf).amax(1)
    expected = (0.5 - lowest).relu().mean(), (highest - 0.5).relu().mean()
    terms = multi_similarity(c, alpha=sharp, beta=sharp)
    for found, limit in zip((terms.tightness, terms.contrast), expected, strict=True):
        # A log-sum-exp of n terms lies between the largest and log n above it.
        assert -1e-12 <= (found - limit).item() <= math.log(len(z)) / sharp


@pytest.mark.parametrize("seed", SEEDS)
def test_a_linear_critic_of_similarities_makes_the_jensen_shannon_bound_binomial_deviance(seed):
    z, label = rows_and_labels(seed)
    c = in_batch(z, label)
    for a, b in ((2.0, 0.5), (7.0, -0.1)):
        critic = replace(c, given=a * (c.similarity - b), closeness="given")
        deviance = binomial_deviance(c, alpha=a, beta=b, cost=1.0)
        assert_close(jsd(critic).tightness, deviance.tightness)
        assert_close(jsd(critic).contrast, deviance.contrast)
        # As Kemertas et al. write it, from T = log 2 - log(1 + e^-V).
        same, different = same_and_different(label)
        t = math.log(2) - F.softplus(-critic.given)
        theirs = -t[same].mean() - (2 - t.exp())[different].log().mean()
        assert_close(theirs, deviance.total - 2 * math.log(2))


@pytest.mark.parametrize("steep", [1e2, 1e4, 1e6])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_steep_critic_of_distances_tends_to_margin_without_a_margin(seed, steep):
    z, label = rows_and_labels(seed)
    c = in_batch(z, label)
    same, different = same_and_different(label)
    beta = 1.1
    hinges = margin(c, margin=0.0, beta=beta)
    open_ = (same & (c.distance > beta)).sum() + (different & (c.distance < beta)).sum()
    expected = hinges.tightness * open_ / same.sum() + hinges.contrast * open_ / different.sum()
    found = jsd(replace(c, given=steep * (beta - c.distance), closeness="given")).total / steep
    assert -1e-12 <= (found - expected).item() <= 2 * math.log(2) / steep


@pytest.mark.parametrize("seed", SEEDS)
def test_a_fixed_critic_on_violating_pairs_is_the_quadruplet_term_over_independent_pairs(seed):
    z, label = rows_and_labels(seed)
    c = in_batch(z, label)
    same, different = same_and_different(label)
    tau = c.distance[same].median()
    kept = (same & (c.distance > tau)) | (different & (c.distance < tau))
    x = c.distance - tau
    # Kemertas et al., eq. 13, by its two branches.
    critic = torch.where(x > 0, -torch.expm1(x.abs()).log(), torch.expm1(x.abs()).log())
    critic = torch.where(kept, critic, 0.0)
    found = jsd(replace(c, given=critic, closeness="given", allowed=kept)).total
    near, far = c.distance[same & kept], c.distance[different & kept]
    assert_close(found, near.mean() - far.mean())
    gamma = (far.max() - near.min()).relu() + 0.3
    hinges = (near[:, None] - far + gamma).relu().mean()
    assert_close(found, hinges - gamma)


@pytest.mark.parametrize("seed", SEEDS)
def test_sigmoid_is_binomial_deviance_at_cost_one_but_for_the_divisors(seed):
    z, label = rows_and_labels(seed)
    c = in_batch(z, label)
    same, different = same_and_different(label)
    terms = sigmoid(c, log_scale=math.log(4.0), bias=-1.0)
    deviance = binomial_deviance(c, alpha=4.0, beta=0.25, cost=1.0)
    assert_close(terms.tightness, deviance.tightness * same.sum() / len(z))
    assert_close(terms.contrast, deviance.contrast * different.sum() / len(z))


@pytest.mark.parametrize("seed", SEEDS)
def test_contrastive_with_a_wide_margin_is_a_sum_of_distances_and_their_squares(seed):
    z, label = rows_and_labels(seed)
    c = in_batch(z, label)
    same, different = same_and_different(label)
    far, n = c.distance[different], len(z)
    for m in (2.0, 2.5):  # no distance of unit rows is beyond
        linear = (c.distance[same].square().sum() - 2 * m * far.sum()) / n
        expected = linear + m**2 * len(far) / n + far.square().sum() / n
        assert_close(contrastive(c, margin=m).total, expected)


# --- softmax over neighbors


@pytest.mark.parametrize("seed", SEEDS)
def test_with_one_positive_a_row_supcon_snca_and_infonce_are_one(seed):
    z, label = rows_and_labels(seed, (2, 2, 2, 2))
    c = in_batch(z, label)
    expected = infonce(c, temperature=0.2).total
    assert_close(supcon(c, temperature=0.2).total, expected)
    assert_close(snca(c, temperature=0.2).total, expected)
    assert_close(nca(c, temperature=0.4).total, expected)


@pytest.mark.parametrize("seed", SEEDS)
def test_nca_is_snca_at_half_the_temperature(seed):
    c = in_batch(*rows_and_labels(seed))
    assert_close(nca(c, temperature=0.3).total, snca(c, temperature=0.15).total)


@pytest.mark.parametrize("seed", SEEDS)
def test_tuplet_margin_without_a_margin_is_infonce(seed):
    c = in_batch(*rows_and_labels(seed))
    found = tuplet_margin(c, margin=0.0, scale=20.0).total
    assert_close(found, infonce(c, temperature=0.05).total)


@pytest.mark.parametrize("seed", SEEDS)
def test_supcon_lies_above_snca_by_at_least_the_mean_log_of_the_positives(seed):
    z, label = rows_and_labels(seed)
    c = in_batch(z, label)
    gap = supcon(c, temperature=0.1).total - snca(c, temperature=0.1).total
    least = (label.bincount()[label] - 1).double().log().mean()
    assert gap.item() >= least.item() - 1e-12
    collapsed = in_batch(simplex(4)[label], label)
    gap = supcon(collapsed).total - snca(collapsed, temperature=0.1).total
    assert_close(gap, least)


# --- triplets and quadruplets


def squared_hinges(d, label, m):
    """All triplets' [d_ap² - d_an² + m]₊, one by one."""
    n = range(len(label))
    return [
        max((d[a, p] ** 2 - d[a, k] ** 2 + m).item(), 0.0)
        for a, p, k in itertools.product(n, n, n)
        if p != a and label[p] == label[a] != label[k]
    ]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_quadruplet_whose_pairs_share_their_anchor_is_a_triplet(seed):
    # Of two classes there is no pair of negatives that has nothing to do with the anchor.
    z, label = rows_and_labels(seed, (3, 4))
    c = in_batch(z, label)
    hinges = squared_hinges(c.distance, label, 1.0)
    assert quadruplet(c).total.item() == pytest.approx(math.fsum(hinges) / len(hinges), rel=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
def test_lifted_structure_over_one_dominant_term_is_a_squared_triplet_hinge(seed):
    z, label = rows_and_labels(seed, (4, 3, 3))
    size = 1e4
    c = in_batch(size * z, label, "euclidean")
    same, different = same_and_different(label)
    nearest = torch.where(different, c.distance, torch.inf).amin(1)
    either = torch.minimum(nearest[:, None], nearest[None])
    hinges = (c.distance - either + 1).relu().square()
    expected = hinges[same].mean() / 2
    assert lifted_structure(c).total.item() == pytest.approx(expected.item(), rel=1e-2)


@pytest.mark.parametrize("seed", SEEDS)
def test_on_one_positive_and_one_negative_an_anchor_the_triplet_losses_are_one(seed):
    z, label = rows_and_labels(seed)
    c = in_batch(z, label)
    same, different = same_and_different(label)
    far = torch.where(same, c.distance, -torch.inf).amax(1)
    near = torch.where(different, c.distance, torch.inf).amin(1)
    assert_close(triplet_hard(c, margin=0.3).total, (far - near + 0.3).relu().mean())
    assert_close(generalized_lifted(hard(c), margin=0.3).total, triplet_hard(c, margin=0.3).total)
    assert_close(triplet_soft_margin(hard(c)).total, F.softplus(far - near).mean())


# --- angles


@pytest.mark.parametrize("angle", [36.0, 40.0, 45.0, 55.0])
def test_the_exponent_of_angular_is_the_argument_of_its_hinge_but_for_a_constant(angle):
    t = math.tan(math.radians(angle))
    seen = 0
    for seed in range(20):
        random = torch.Generator().manual_seed(seed)
        z = torch.randn(3, 3, generator=random, dtype=torch.float64)
        c = in_batch(z, torch.tensor([0, 0, 1]))
        exponent = math.log(math.expm1(angular(c, angle=angle).total.item()))
        argument = exponent + 2 - 6 * t**2
        hinge = angular_hinge(c, angle=angle).total.item()
        assert hinge == pytest.approx(max(argument, 0.0), abs=1e-9)
        seen += argument > 0
    assert seen > 0


# --- ranks


@pytest.mark.parametrize("seed", SEEDS)
def test_histogram_is_how_often_a_negative_is_as_near_as_a_positive(seed):
    random = torch.Generator().manual_seed(seed)
    label = torch.arange(3).repeat_interleave(4)
    # Similarities that stand on the nodes: nothing is split, and there are ties.
    s = torch.randint(-10, 11, (12, 12), generator=random).double() / 10
    c = given(s, label, label, closeness="cosine", oneself=torch.arange(12))
    same, different = same_and_different(label)
    beaten = (s[same][:, None] <= s[different]).double().mean()
    assert_close(histogram(c, bins=20).total, beaten, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
def test_histogram_tends_to_that_share_as_bins_grow(seed):
    z, label = rows_and_labels(seed)
    c = in_batch(z, label)
    same, different = same_and_different(label)
    beaten = (c.similarity[same][:, None] <= c.similarity[different]).double().mean()
    # A unit of the share is at stake for each pair of similarities within a bin, none beyond.
    gaps = (c.similarity[same][:, None] - c.similarity[different]).abs()
    for bins in (100, 1000, 10_000):
        within = (gaps <= 2 * 2 / bins).double().mean().item()
        assert abs(histogram(c, bins=bins).total - beaten).item() <= within + 1e-9


# --- floors at the regular simplex


def supcon_floor(counts, temperature):
    """Summed over the rows of a batch: the value at collapsed classes on a simplex (Graf et al.
    2021)."""
    classes, rows = len(counts), sum(counts)
    far = math.exp(-classes / ((classes - 1) * temperature))
    return math.fsum(n * math.log(n - 1 + (rows - n) * far) for n in counts if n > 1)


def cross_entropy_floor(classes, radius=1.0, norm=1.0):
    """With rows of this length at most, and weights of this norm each."""
    return math.log1p((classes - 1) * math.exp(-classes * radius * norm / (classes - 1)))


SUPCON_FLOORS = [
    ([2, 2], 1.0, 0.9581790648875382),
    ([3, 3, 3], 1.0, 10.8504518274),
    ([4] * 4, 0.5, 21.5017095588),
    ([25] * 10, 0.1, 250 * 3.1781939331),
]


@pytest.mark.parametrize(("counts", "temperature", "value"), SUPCON_FLOORS)
def test_supcon_of_collapsed_classes_on_a_simplex_is_its_floor(counts, temperature, value):
    label = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    for dim in (len(counts) - 1, len(counts) + 4):
        c = in_batch(simplex(len(counts), dim)[label], label)
        found = supcon(c, temperature=temperature).total.item()
        assert found * len(label) == pytest.approx(value, abs=1e-7)
        assert found * len(label) == pytest.approx(supcon_floor(counts, temperature), rel=1e-10)


@pytest.mark.parametrize(("counts", "temperature", "value"), SUPCON_FLOORS[:3])
def test_no_balanced_batch_is_below_the_floor_of_supcon(counts, temperature, value):
    label = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    corners = simplex(len(counts))[label]
    for seed in range(30):
        random = torch.Generator().manual_seed(seed)
        noise = torch.randn(corners.shape, generator=random, dtype=torch.float64)
        z = corners + 10 ** (-3 + seed / 8) * noise
        found = supcon(in_batch(z, label), temperature=temperature).total.item()
        assert found * len(label) > value - 1e-9


def descended(value, *leaves):
    """The smallest value that LBFGS finds from these leaves."""
    for leaf in leaves:
        leaf.requires_grad_()
    descent = torch.optim.LBFGS(
        leaves,
        max_iter=400,
        tolerance_grad=1e-12,
        tolerance_change=1e-16,
        line_search_fn="strong_wolfe",
    )

    def closure():
        descent.zero_grad()
        found = value()
        found.backward()
        return found

    descent.step(closure)
    return value().item()


def test_supcon_reaches_its_floor_from_anywhere_and_its_classes_stand_on_a_simplex():
    label = torch.arange(3).repeat_interleave(3)
    z = vectors_for(9, 2, seed=1)
    found = descended(lambda: supcon(in_batch(z, label), temperature=1.0).total, z)
    assert found * 9 == pytest.approx(10.8504518274, abs=1e-9)
    cosines = F.normalize(z.detach()) @ F.normalize(z.detach()).T
    same, different = same_and_different(label)
    assert_close(cosines[different], torch.full((54,), -0.5).double(), rtol=0, atol=1e-4)
    assert_close(cosines[same], torch.ones(18).double(), rtol=0, atol=1e-4)


def test_an_unbalanced_batch_goes_below_the_simplex():
    label = torch.tensor([0, 0, 0, 0, 1, 1, 1, 2, 2])
    on_it = supcon(in_batch(simplex(3)[label], label), temperature=1.0).total.item() * 9
    assert on_it == pytest.approx(11.157512, abs=1e-6)
    assert on_it == pytest.approx(supcon_floor([4, 3, 2], 1.0), rel=1e-10)
    z = vectors_for(9, 2, seed=1)
    found = descended(lambda: supcon(in_batch(z, label), temperature=1.0).total, z)
    assert found * 9 == pytest.approx(11.118907, abs=1e-6)


@pytest.mark.parametrize(
    ("classes", "value"), [(2, 0.1269280110), (3, 0.3689811354), (10, 1.3769349205)]
)
def test_cross_entropy_on_a_simplex_is_its_floor(classes, value):
    assert cross_entropy_floor(classes) == pytest.approx(value, abs=1e-10)
    label = torch.arange(classes).repeat_interleave(4)
    corners = simplex(classes)
    z = corners[label]
    found = norm_softmax(around(corners, z, label), temperature=1.0).total.item()
    assert found == pytest.approx(value, abs=1e-10)
    for radius, norm in ((2.0, 3.0), (0.5, 1.0)):
        found = logits_ce(radius * z @ (norm * corners).T, label).item()
        assert found == pytest.approx(cross_entropy_floor(classes, radius, norm), rel=1e-10)


@pytest.mark.parametrize("seed", range(20))
def test_no_balanced_batch_is_below_the_floor_of_cross_entropy(seed):
    label = torch.arange(5).repeat_interleave(3)
    random = torch.Generator().manual_seed(seed)
    corners, near = simplex(5), 10 ** (seed / 8 - 2)
    z = corners[label] + near * torch.randn(15, 5, generator=random, dtype=torch.float64)
    weight = 3 * corners + near * torch.randn(5, 5, generator=random, dtype=torch.float64)
    z = F.normalize(z)
    steep = math.sqrt(5) / 4 * weight.norm().item()
    low = math.log1p(4 * math.exp(-steep))
    assert logits_ce(z @ weight.T, label).item() >= low - 1e-12


def test_normalized_softmax_reaches_its_floor_from_anywhere():
    label = torch.arange(3).repeat_interleave(3)
    z, vectors = vectors_for(9, 2, seed=2), vectors_for(3, 2, seed=3)

    def value():
        proxies = replace(around(vectors.detach(), z, label), references=F.normalize(vectors))
        return norm_softmax(proxies, temperature=1.0).total

    assert descended(value, z, vectors) == pytest.approx(0.3689811354, abs=1e-9)


@pytest.mark.parametrize(
    ("classes", "decay", "norm", "value"),
    [(3, 0.01, 2.0665688, 0.2144013), (10, 5e-4, 4.7711504, 0.1577089)],
)
def test_cross_entropy_with_weight_decay_has_its_floor_at_a_finite_norm(
    classes, decay, norm, value
):
    slope = 1 / (math.exp(classes * norm / (classes - 1)) + classes - 1)
    assert 2 * decay * norm == pytest.approx(slope, rel=1e-6)
    corners = simplex(classes)
    label = torch.arange(classes)

    def penalized(weight):
        return logits_ce(corners @ weight.T, label) + decay * weight.square().sum()

    assert penalized(norm * corners).item() == pytest.approx(value, abs=1e-7)
    weight = norm * corners
    weight.requires_grad_()
    (gradient,) = torch.autograd.grad(penalized(weight), weight)
    assert gradient.abs().max() < 1e-7


@pytest.mark.parametrize("rows", [3, 10])
def test_where_all_rows_are_one_point_supcon_is_the_log_of_the_others(rows):
    z = torch.ones(rows, 3, dtype=torch.float64)
    c = in_batch(z, torch.zeros(rows, dtype=torch.int64))
    assert supcon(c).total.item() == pytest.approx(math.log(rows - 1), abs=1e-12)


# --- lemma 1 without balance


@pytest.mark.parametrize("seed", range(12))
def test_the_bounds_of_lemma_one_need_no_balance_once_the_sizes_are_averaged(seed):
    counts = [2, 3, 5, 7]
    z, label = rows_and_labels(seed, counts, unit=True)
    n = len(z)
    size = label.bincount()[label].double()
    middle = torch.stack([z[label == k].mean(0) for k in range(4)])
    spread = (z - middle[label]).square().sum(1)
    center = spread.sum().item() / 2
    itself = replace(in_batch(z, label), oneself=None)
    for sigma in (0.1, 1.0):
        high = 2 * center / (n * sigma) - 1 / sigma - size.log().mean().item()
        assert snca(itself, temperature=sigma).tightness.item() <= high + 1e-10
    for alpha, base in ((2.0, 0.5), (10.0, 1.0)):
        low = 2 * center / n + size.log().mean().item() / alpha + base - 1
        found = multi_similarity(itself, alpha=alpha, base=base).tightness.item()
        assert found >= low - 1e-10


def test_the_bounds_of_lemma_one_need_unit_rows():
    label = torch.arange(4).repeat_interleave(5)
    failed = 0
    for seed in range(40):
        z = 0.1 * vectors_for(20, 3, seed)
        middle = torch.stack([z[label == k].mean(0) for k in range(4)])
        center = (z - middle[label]).square().sum().item() / 2
        itself = replace(InBatch("cosine")(z, Batch(None, label=label)), oneself=None)
        found = snca(itself, temperature=0.5).tightness.item()
        failed += found > 2 * center / (20 * 0.5) - 1 / 0.5 - math.log(5)
    assert failed > 0
