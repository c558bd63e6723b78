"""Mining, against what it keeps on QUAD4, slow loops and pytorch-metric-learning's miners."""

import pytest
import torch
from pytorch_metric_learning import miners as pml
from quad4 import LABEL4, LABELS, QUAD4, given, in_batch, random_batch

from nearkin import catalog, mining
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
