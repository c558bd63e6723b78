"""Mining, against what it keeps on QUAD4, slow loops and pytorch-metric-learning's miners."""

import math
from dataclasses import replace

import pytest
import torch
from pytorch_metric_learning import miners as pml
from quad4 import LABEL4, LABELS, QUAD4, given, in_batch, random_batch

from nearkin import catalog, core, mining
from nearkin.compare import Memory
from nearkin.core import Batch

MININGS = catalog.scan(catalog.kind_named("mining"))


def test_hard_keeps_the_hardest_of_each_side_on_quad4():
    c = mining.hard(in_batch(QUAD4, LABEL4))
    assert c.same.nonzero().tolist() == [[0, 1], [1, 0], [2, 3], [3, 2]]
    assert c.different.nonzero().tolist() == [[0, 2], [1, 2], [2, 1], [3, 1]]


@pytest.mark.parametrize("labels", LABELS)
def test_hard_equals_a_slow_loop(labels):
    z, label = random_batch(LABELS[labels])
    whole = in_batch(z, label)
    c, s = mining.hard(whole), whole.similarity.tolist()
    for i in range(len(z)):
        near, far = (x[i].nonzero()[:, 0].tolist() for x in (whole.same, whole.different))
        assert c.same[i].nonzero()[:, 0].tolist() == sorted(near, key=lambda j: s[i][j])[:1]
        assert c.different[i].nonzero()[:, 0].tolist() == sorted(far, key=lambda j: -s[i][j])[:1]


@pytest.mark.parametrize("labels", LABELS)
def test_hard_is_batch_hard_of_pytorch_metric_learning(labels):
    z, label = random_batch(LABELS[labels])
    c = mining.hard(in_batch(z, label))
    anchor, positive, negative = pml.BatchHardMiner()(z, label)
    assert torch.equal(c.same[anchor].nonzero()[:, 1], positive)
    assert torch.equal(c.different[anchor].nonzero()[:, 1], negative)


def hinge_of_squares(c, margin):
    d = c.distance.square()
    return (d[:, 0] - d[:, 1] + margin).clamp_min(0).mean().item()


@pytest.mark.parametrize(("margin", "value"), [(0.2, 0.05), (1.0, 0.25)])
def test_semi_hard_triplets_of_quad4_by_squared_distances(margin, value):
    c = mining.semi_hard(in_batch(QUAD4, LABEL4))
    assert hinge_of_squares(c, margin) == pytest.approx(value, abs=1e-9)


@pytest.mark.parametrize("labels", LABELS)
def test_semi_hard_equals_a_slow_loop(labels):
    z, label = random_batch(LABELS[labels])
    whole = in_batch(z, label)
    d, y = whole.distance.tolist(), label.tolist()
    expected = []
    for a in range(len(y)):
        for p in range(len(y)):
            far = [n for n in range(len(y)) if y[n] != y[a]]
            if p == a or y[p] != y[a] or not far:
                continue
            beyond = [n for n in far if d[a][n] > d[a][p]]
            n = min(beyond, key=lambda n: d[a][n]) if beyond else max(far, key=lambda n: d[a][n])
            expected.append((y[a], [y[p], y[n]], [d[a][p], d[a][n]]))
    c = mining.semi_hard(whole)
    assert c.mined
    assert c.shape == (len(whole.pairs()[0]), 2)
    assert c.anchor_label.tolist() == [x[0] for x in expected]
    assert c.reference_label.tolist() == [x[1] for x in expected]
    torch.testing.assert_close(c.distance, torch.tensor([x[2] for x in expected]).double())
    assert c.same.tolist() == [[True, False]] * len(expected)


def test_semi_hard_takes_the_farthest_negative_where_none_is_farther():
    s = torch.tensor([[1.0, 0.1, 0.9, 0.5, 0.7]])
    c = mining.semi_hard(given(s, [0], [0, 0, 1, 1, 1], oneself=torch.tensor([0])))
    assert c.similarity.tolist() == [[pytest.approx(0.1), 0.5]]


def test_semi_hard_leaves_out_anchors_without_a_negative():
    c = mining.semi_hard(given(torch.rand(2, 3), [0, 1], [0, 0, 0]))
    assert c.shape == (0, 2)
    allowed = torch.tensor([[True, True, False], [True, True, True]])
    c = mining.semi_hard(given(torch.rand(2, 3), [0, 0], [0, 0, 1], allowed=allowed))
    assert c.shape == (2, 2)
    assert c.reference_label.tolist() == [[0, 1], [0, 1]]


def test_semi_hard_needs_no_matrix_for_each_pair(monkeypatch):
    z, label = random_batch([0] * 60 + [1] * 60)
    c, sizes = in_batch(z, label), []
    expected = mining.semi_hard(c).similarity
    monkeypatch.setattr("nearkin.closed.IN_CACHE", 500)
    real = torch.where
    monkeypatch.setattr(
        torch,
        "where",
        lambda *a, **k: sizes.append(real(*a, **k).numel()) or real(*a, **k),
        raising=True,
    )
    assert torch.equal(mining.semi_hard(c).similarity, expected)
    assert max(sizes) <= 500


def test_all_changes_nothing():
    c = in_batch(QUAD4, LABEL4)
    assert mining.all(c) is c


# --- easy positive


@pytest.mark.parametrize("labels", LABELS)
def test_easy_positive_equals_a_slow_loop(labels):
    z, label = random_batch(LABELS[labels])
    whole = in_batch(z, label)
    c, s = mining.easy_positive(whole), whole.similarity.tolist()
    for i in range(len(z)):
        near = whole.same[i].nonzero()[:, 0].tolist()
        assert c.same[i].nonzero()[:, 0].tolist() == sorted(near, key=lambda j: -s[i][j])[:1]
    assert torch.equal(c.different, whole.different)


def test_easy_positive_passes_over_copies():
    s = [[0.99995, 0.7, 0.9, 0.95], [0.9999, 1.0, 0.99991, -0.5]]
    c = given(s, [0, 0], [0, 0, 0, 1])
    assert mining.easy_positive(c).same.tolist() == [[False, False, True, False], [False] * 4]
    assert mining.easy_positive(c).different.tolist() == [[False, False, False, True]] * 2
    kept = mining.easy_positive(c, copy=None).same
    assert kept.nonzero().tolist() == [[0, 0], [1, 1]]
    assert mining.easy_positive(c, copy=0.8).same.nonzero().tolist() == [[0, 1]]


# --- distance weighted


def density(d, dim):
    """q(d) by Python's numbers of any size."""
    return d ** (dim - 2) * (1 - d * d / 4) ** ((dim - 3) / 2)


def at_distances(d, dim, dtype=torch.float64):
    """An anchor and a positive of class 0, and negatives at these distances of the anchor."""
    c = torch.tensor([1 - x * x / 2 for x in d])
    z = torch.zeros(2 + len(d), dim)
    z[:2, 0] = 1
    z[1, :2] = torch.tensor([0.6, 0.8])
    z[2:, 0], z[2:, 2] = c, (1 - c * c).sqrt()
    label = torch.tensor([0, 0, *range(1, len(d) + 1)])
    c = in_batch(z.to(dtype), label)
    return replace(c, anchor_label=torch.tensor([0, *[-1] * (len(d) + 1)]))


def shares(c, draws, **settings):
    """How often each negative of the first anchor was drawn, by its label."""
    torch.manual_seed(0)
    seen = torch.zeros(int(c.reference_label.max()) + 1)
    whole = replace(
        c,
        anchor_label=c.anchor_label[:1].repeat(draws),
        anchors=c.anchors[:1].repeat(draws, 1),
        oneself=c.oneself[:1].repeat(draws),
    )
    drawn = mining.distance_weighted(whole, **settings)
    assert drawn.shape == (draws, 2)
    assert drawn.same.tolist() == [[True, False]] * draws
    seen += torch.bincount(drawn.reference_label[:, 1], minlength=len(seen))
    return seen[1:] / draws


def test_distance_weighted_draws_with_the_probabilities_of_the_card():
    # w ~ 1 / max(d, 0.5) in three dimensions.
    found = shares(at_distances([0.4, 0.8, 1.2, 1.5], 3), 40_000)
    expected = torch.tensor([0.489796, 0.306122, 0.204082, 0.0])
    assert found[3] == 0
    chi = (40_000 * (found - expected)[:3].square() / expected[:3]).sum()
    assert chi < 16, "three kinds: exceeded once in 3,000 draws"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dim", [4, 128, 512])
def test_distance_weighted_follows_the_density_where_floats_end(dim, dtype):
    d = [0.52, 0.5201, 0.5203, 0.1, 1.0, 1.39, 1.41]
    c = at_distances(d, dim, dtype)
    weights = [1 / density(max(x, 0.5), dim) if x < 1.4 else 0.0 for x in d]
    if dim == 512:
        largest = torch.tensor(max(weights), dtype=torch.float32)
        assert largest.isinf(), "the weights themselves overflow"
    expected = torch.tensor(weights, dtype=torch.float64) / math.fsum(weights)
    found = shares(c, 40_000)
    likely = expected > 1e-3
    # Cosines of float32 move the weights of near rows of 512 dimensions by some thousandths.
    deviation = (expected * (1 - expected) / 40_000).sqrt() * 4.5 + 2e-3
    assert ((found - expected).abs()[likely] < deviation[likely]).all()
    assert found[-1] == 0
    assert found[~likely].sum() < 2e-3


def test_distant_negatives_are_drawn_where_another_anchor_has_near_ones():
    # What a maximum over the batch would leave of the weights of the first anchor is 0.
    z = torch.zeros(6, 512)
    z[0, 0] = z[1, 0] = 1
    z[2, :2] = torch.tensor([0.1, 0.99498744])
    z[3, :3] = torch.tensor([0.1, 0.98, 0.17])
    z[4, 400] = 1
    z[4, 401], z[5, 401], z[5, 400] = 0.2, 1, 0.2
    label = torch.tensor([0, 0, 1, 2, 3, 3])
    c = mining.distance_weighted(in_batch(z, label))
    assert (c.anchor_label == 0).sum() == 2
    near = 1 / density(0.5, 512)
    far = 1 / density(float(in_batch(z, label).distance[0, 2]), 512)
    assert far / near < torch.finfo(torch.float32).tiny


def test_anchors_without_a_near_negative_are_left_out():
    z = torch.eye(5, 16, dtype=torch.float64)
    z[1] = z[0] + z[1] / 2
    z[4] = z[3] + 0.5 * z[4]
    c = mining.distance_weighted(in_batch(z, torch.tensor([0, 0, 1, 2, 3])))
    assert c.shape == (0, 2), "the negatives of class 0 are at √2"
    c = mining.distance_weighted(in_batch(z, torch.tensor([0, 0, 1, 2, 3])), farthest=1.5)
    assert c.anchor_label.tolist() == [0, 0]


def test_the_same_seed_draws_the_same_negatives():
    z, label = random_batch(LABELS["balanced"])
    c = in_batch(z, label)

    def drawn(seed):
        torch.manual_seed(seed)
        return mining.distance_weighted(c, farthest=2).reference_label.tolist()

    assert drawn(3) == drawn(3)
    assert len({str(drawn(seed)) for seed in range(5)}) > 1


def test_distance_weighted_needs_distances_of_rows():
    with pytest.raises(ValueError, match="by a given similarity; compare rows by 'cosine'"):
        mining.distance_weighted(given(torch.rand(2, 3), [0, 1], [0, 1, 1]))
    z, label = random_batch(LABELS["pairs"])
    with pytest.raises(ValueError, match="compared by inner products"):
        mining.distance_weighted(in_batch(z, label, "inner"))
    for settings in ({"cutoff": 0.0}, {"cutoff": 1.5}, {"farthest": 2.1}):
        with pytest.raises(ValueError, match="0 < cutoff < farthest <= 2"):
            mining.distance_weighted(in_batch(z, label), **settings)


# --- multi-similarity


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("epsilon", [0.1, 0.0, -0.2])
def test_multi_similarity_keeps_the_pairs_of_pytorch_metric_learning(labels, epsilon):
    z, label = random_batch(LABELS[labels])
    c = mining.multi_similarity(in_batch(z, label), epsilon=epsilon)
    anchor, positive, other, negative = pml.MultiSimilarityMiner(epsilon)(z, label)
    assert set(map(tuple, c.same.nonzero().tolist())) == set(
        zip(anchor.tolist(), positive.tolist(), strict=True)
    )
    assert set(map(tuple, c.different.nonzero().tolist())) == set(
        zip(other.tolist(), negative.tolist(), strict=True)
    )


def test_multi_similarity_drops_an_anchor_that_lacks_a_side():
    c = mining.multi_similarity(given([[0.9, -0.9], [0.9, -0.9]], [0, 1], [0, 0]))
    assert not c.same.any()
    assert not c.different.any()


@pytest.mark.parametrize("name", MININGS)
class TestEvery:
    def test_it_narrows_and_never_adds(self, name):
        z, label = random_batch(LABELS["unbalanced"])
        whole = in_batch(z, label)
        c = MININGS[name](whole)
        if c.mined:
            assert set(c.similarity[c.same].tolist()) <= set(whole.similarity[whole.same].tolist())
            assert set(c.similarity[c.different].tolist()) <= set(
                whole.similarity[whole.different].tolist()
            )
        else:
            assert not (c.same & ~whole.same).any()
            assert not (c.different & ~whole.different).any()

    def test_it_leaves_the_similarity_its_gradient(self, name):
        z, label = random_batch(LABELS["balanced"])
        z.requires_grad_()
        c = MININGS[name](in_batch(z, label))
        (gradient,) = torch.autograd.grad(c.similarity[c.same].sum(), z)
        assert gradient.isfinite().all()
        assert gradient.norm() > 0

    def test_the_similarity_is_computed_once_and_its_choices_have_no_graph(self, name, monkeypatch):
        z, label = random_batch(LABELS["balanced"])
        z.requires_grad_()
        products, real = [], core.gram
        monkeypatch.setattr(core, "gram", lambda rows: products.append(1) or real(rows))
        whole = in_batch(z, label)
        distance = whole.distance
        c = MININGS[name](whole)
        assert c.similarity.requires_grad
        assert c.similarity.isfinite().all()
        assert len(products) == 1
        assert whole.similarity.requires_grad
        if not c.mined:
            assert c.similarity is whole.similarity
            assert c.distance is distance

    def test_mining_without_gradients_leaves_the_comparison_usable(self, name):
        z, label = random_batch(LABELS["pairs"])
        with torch.no_grad():
            c = MININGS[name](in_batch(z, label))
        leaf = c.similarity.clone().requires_grad_()
        other = replace(c, given=leaf)
        assert other.similarity is leaf
        assert torch.equal(other.same, c.same)
        assert torch.equal(other.different, c.different)

    @pytest.mark.parametrize("closeness", ["cosine", "euclidean"])
    def test_multi_hot_labels_of_one_class_each_are_as_classes(self, name, closeness):
        z, label = random_batch(LABELS["shuffled"])
        hot = torch.nn.functional.one_hot(label).bool()
        found = []
        for either in (label, hot):
            torch.manual_seed(0)
            c = MININGS[name](in_batch(z, either, closeness))
            found.append((c.similarity, c.same, c.different))
        for one, two in zip(*found, strict=True):
            assert torch.equal(one, two)

    def test_rows_may_share_one_label_of_several(self, name):
        z, _ = random_batch([0] * 6)
        hot = torch.tensor([[1, 1, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 1, 1], [0, 0, 0]])
        whole = in_batch(z, hot.bool())
        c = MININGS[name](whole)
        assert c.same.any()
        assert c.same.sum() <= whole.same.sum()
        assert set(c.similarity[c.different].tolist()) <= set(
            whole.similarity[whole.different].tolist()
        )

    @pytest.mark.parametrize("label", [[0], [0, 0, 0], [0, 1, 2]])
    def test_a_side_may_be_missing(self, name, label):
        z = torch.eye(3, dtype=torch.float64)[: len(label)]
        whole = in_batch(z, torch.tensor(label))
        c = MININGS[name](whole)
        assert c.same.sum() <= whole.same.sum()
        assert c.similarity.isfinite().all()

    def test_there_may_be_no_reference_at_all(self, name):
        c = given(torch.zeros(2, 0), [0, 1], torch.zeros(0, dtype=torch.int64))
        assert MININGS[name](c).shape == (2, 0)

    def test_it_never_chooses_an_empty_place_of_a_memory(self, name):
        z, label = random_batch([0, 0, 1, 2])
        c = MININGS[name](Memory(5, 8).double()(z, Batch(None, label=label)))
        expected = MININGS[name](in_batch(z, label))
        torch.testing.assert_close(c.similarity[c.same], expected.similarity[expected.same])
        torch.testing.assert_close(
            c.similarity[c.different], expected.similarity[expected.different]
        )
