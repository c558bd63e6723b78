"""Losses over histograms, against known values, slow loops and pytorch-metric-learning."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as some
from pytorch_metric_learning import losses as pml
from quad4 import LABEL4, LABELS, QUAD4, cosines, given, in_batch, random_batch
from torch.autograd import gradcheck

import nearkin as nk
from nearkin import closed, mining
from nearkin.losses.histograms import fast_ap, histogram

BOTH = [histogram, fast_ap]
# A peer that indexes in a way that torch is about to drop.
IN_PEER = pytest.mark.filterwarnings("ignore:Using a non-tuple sequence")
PEERS = {
    "histogram": lambda bins: pml.HistogramLoss(n_bins=bins),
    "fast_ap": lambda bins: pml.FastAPLoss(num_bins=bins),
}


def joint(loss, c, **settings):
    terms = loss(c, **settings)
    assert terms.tightness.item() == terms.contrast.item() == 0
    return terms.other["joint"]


# --- known values on QUAD4


@pytest.mark.parametrize("bins", [4, 100, 150])
def test_histogram_of_quad4(bins):
    c = in_batch(QUAD4, LABEL4)
    assert joint(histogram, c, bins=bins).item() == pytest.approx(0.375, abs=1e-9)


def test_fast_ap_of_quad4():
    assert joint(fast_ap, in_batch(QUAD4, LABEL4)).item() == pytest.approx(0.3125, abs=1e-9)


# --- slow loops


def stands(x, node, step):
    """The share of x that stands at a node, by the triangle around it."""
    return max(0.0, 1 - abs(x - node) / step)


def loop_histogram(z, label, bins):
    s, n = cosines(z), len(label)
    pairs = [(i, j) for i in range(n) for j in range(i)]
    near = [s[i][j] for i, j in pairs if label[i] == label[j]]
    far = [s[i][j] for i, j in pairs if label[i] != label[j]]
    if not near or not far:
        return 0.0
    nodes = [-1 + 2 * r / bins for r in range(bins + 1)]
    h = [math.fsum(stands(x, t, 2 / bins) for x in near) / len(near) for t in nodes]
    others = [math.fsum(stands(x, t, 2 / bins) for x in far) / len(far) for t in nodes]
    return math.fsum(others[r] * math.fsum(h[: r + 1]) for r in range(bins + 1))


def loop_fast_ap(z, label, bins):
    s, n = cosines(z), len(label)
    nodes = [4 * j / bins for j in range(bins + 1)]
    values = []
    for i in range(n):
        d = {j: 2 - 2 * s[i][j] for j in range(n) if j != i}
        near = [j for j in d if label[j] == label[i]]
        if not near:
            continue
        h = [math.fsum(stands(d[j], t, 4 / bins) for j in d) for t in nodes]
        own = [math.fsum(stands(d[j], t, 4 / bins) for j in near) for t in nodes]
        upto = range(1, bins + 2)
        found = [own[j - 1] * sum(own[:j]) / sum(h[:j]) for j in upto if sum(h[:j]) > 0]
        values.append(1 - math.fsum(found) / len(near))
    return math.fsum(values) / max(len(values), 1)


SLOW = {"histogram": loop_histogram, "fast_ap": loop_fast_ap}


@pytest.mark.parametrize("bins", [1, 3, 10, 101])
@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("loss", BOTH)
def test_the_value_is_that_of_a_slow_loop(loss, labels, bins):
    z, label = random_batch(LABELS[labels])
    expected = SLOW[loss.__name__](z, label.tolist(), bins)
    assert joint(loss, in_batch(z, label), bins=bins).item() == pytest.approx(expected, rel=1e-9)


# --- gradients, for every sort of comparison


def at_nodes(s, mask, bins):
    """(A, bins + 1) on the graph: how many of the mask stand at each node, the nearest first."""
    nodes = torch.linspace(1, -1, bins + 1, dtype=s.dtype)
    triangle = (1 - (s.clamp(-1, 1)[..., None] - nodes).abs() * bins / 2).relu()
    return (triangle * mask[..., None]).sum(1)


def dense_histogram(c, bins):
    near = at_nodes(c.similarity, c.same, bins).sum(0) / c.same.sum()
    far = at_nodes(c.similarity, c.different, bins).sum(0) / c.different.sum()
    return (far.cumsum(0) * near).sum()


def dense_fast_ap(c, bins):
    near, everyone = (at_nodes(c.similarity, mask, bins) for mask in (c.same, c.compared))
    total = everyone.cumsum(1)
    ratio = near * near.cumsum(1) / torch.where(total > 0, total, 1.0)
    scored = c.same.any(1)
    return (1 - ratio.sum(1)[scored] / c.same.sum(1)[scored]).mean()


DENSE = {"histogram": dense_histogram, "fast_ap": dense_fast_ap}


def of_every_sort():
    """Comparisons by a similarity that is a leaf: in batch, with a memory, narrowed, mined,
    multi-hot."""
    random = torch.Generator().manual_seed(4)
    found = {name: in_batch(*random_batch(labels)) for name, labels in LABELS.items()}
    one = found["shuffled"]
    s = torch.rand(5, 9, generator=random, dtype=torch.float64) * 2.4 - 1.2
    anchor, reference = torch.tensor([0, 1, 2, 0, 7]), torch.tensor([0, 1, 0, 2, 2, 1, 0, 3, 0])
    found["other rows"] = given(s, anchor, reference)
    allowed = torch.rand(5, 9, generator=random) > 0.3
    found["narrowed"] = given(s, anchor, reference, allowed=allowed)
    found["mined"] = mining.semi_hard(one)
    hot = torch.rand(9, 4, generator=random) > 0.6
    found["multi-hot"] = given(s, hot[:5], hot)
    return {
        name: replace(c, given=c.similarity.detach().clone().requires_grad_())
        for name, c in found.items()
    }


@pytest.mark.parametrize("bins", [1, 7, 50])
@pytest.mark.parametrize("sort", of_every_sort())
@pytest.mark.parametrize("loss", BOTH)
def test_value_and_gradient_are_those_of_the_formula_on_the_graph(loss, sort, bins):
    c = of_every_sort()[sort]
    value, expected = joint(loss, c, bins=bins), DENSE[loss.__name__](c, bins)
    assert value.item() == pytest.approx(expected.item(), rel=1e-9, abs=1e-14)
    slopes = [torch.autograd.grad(x, c.given)[0] for x in (value, expected)]
    torch.testing.assert_close(*slopes, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("loss", BOTH)
def test_many_blocks_are_one(loss, monkeypatch):
    c = of_every_sort()["shuffled"]
    whole = torch.autograd.grad(joint(loss, c), c.given)
    monkeypatch.setattr(closed, "IN_CACHE", 25)
    blocks = torch.autograd.grad(joint(loss, c), c.given)
    torch.testing.assert_close(blocks, whole, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("loss", BOTH)
def test_what_is_beyond_the_last_node_counts_there_and_has_no_gradient(loss):
    s = torch.tensor([[1.5, -0.33, -0.25, -7.0], [0.3, -0.1, 1.2, 40.0]], dtype=torch.float64)
    label = (torch.tensor([0, 1]), torch.tensor([0, 1, 0, 1]))
    leaf = s.clone().requires_grad_()
    value = joint(loss, replace(given(s, *label), given=leaf), bins=10)
    inside = joint(loss, given(s.clamp(-1, 1), *label), bins=10)
    assert value.item() == pytest.approx(inside.item(), rel=1e-12)
    (slope,) = torch.autograd.grad(value, leaf)
    assert not slope[s.abs() > 1].any()
    assert slope[s.abs() < 1].any()


@pytest.mark.parametrize("loss", BOTH)
def test_a_similarity_that_is_nan_gives_nan(loss):
    s = torch.tensor([[0.5, torch.nan, 0.1], [0.2, 0.1, 0.4]])
    assert joint(loss, given(s, [0, 1], [0, 1, 1])).isnan()


@pytest.mark.parametrize("loss", BOTH)
def test_fewer_than_one_bin_is_refused(loss):
    with pytest.raises(ValueError, match="bins must be at least 1, not 0"):
        loss(in_batch(QUAD4, LABEL4), bins=0)


# --- what they say


@pytest.mark.parametrize("loss", BOTH)
def test_classes_apart_cost_nothing(loss):
    label = torch.arange(12) // 3
    c = in_batch(torch.eye(4, dtype=torch.float64)[label], label)
    assert joint(loss, c).item() == pytest.approx(0, abs=1e-12)


def test_identical_rows_of_two_classes_are_the_worst_of_histograms():
    c = in_batch(torch.ones(4, 3, dtype=torch.float64), LABEL4)
    assert joint(histogram, c).item() == pytest.approx(1, abs=1e-9)


@drawn(seed=some.integers(0, 10**6), bins=some.integers(1, 200))
@settings(max_examples=20, deadline=None)
def test_a_histogram_is_within_one_step_of_the_share_of_inversions(seed, bins):
    z, label = random_batch(LABELS["unbalanced"], seed=seed)
    c = in_batch(z, label)
    near, far = c.similarity[c.same], c.similarity[c.different]

    def inversions(slack):
        return (near[:, None] <= far + slack).double().mean().item()

    step = 2 / bins + 1e-9
    assert inversions(-2 * step) <= joint(histogram, c, bins=bins).item() <= inversions(2 * step)


def test_fine_histograms_tend_to_the_share_of_inversions():
    z, label = random_batch([0] * 30 + [1] * 30 + [2] * 20)
    c = in_batch(z, label)
    near, far = c.similarity[c.same], c.similarity[c.different]
    share = (near[:, None] <= far).double().mean().item()
    gaps = [abs(joint(histogram, c, bins=bins).item() - share) for bins in (10, 100, 5000)]
    assert gaps[2] < 1e-4 < gaps[0]


@pytest.mark.parametrize("labels", ["balanced", "unbalanced", "shuffled"])
def test_fine_fast_ap_is_at_most_the_average_precision(labels):
    z, label = random_batch(LABELS[labels])
    exact = nk.evaluate(z, label, metrics=("map@20",))["map@20"]
    fine = 1 - joint(fast_ap, in_batch(z, label), bins=20000).item()
    assert fine < exact - 1e-3


def test_fine_fast_ap_of_positives_at_half_bins():
    # One positive behind one negative: AP 1/2. Each stands at two nodes, half at a time: the
    # positive's first half is at 1.5 of all, its second at 2: ½·½/1.5 + ½·1/2.
    s = torch.tensor([[0.35, 0.05]])
    value = joint(fast_ap, given(s, [0], [1, 0]), bins=20)
    assert 1 - value.item() == pytest.approx(1 / 6 + 1 / 4)


# --- pytorch-metric-learning


@pytest.mark.parametrize("bins", [5, 10, 100])
@pytest.mark.parametrize(
    "labels", [[0, 0, 1, 1], [0] * 5 + [1] * 3 + [2] * 4, [3, 1, 3, 2, 1, 2, 3, 0], [0, 0, 1, 2]]
)
@IN_PEER
@pytest.mark.parametrize("loss", BOTH)
def test_value_and_gradient_are_those_of_pytorch_metric_learning(loss, labels, bins):
    if loss is histogram and labels == [0, 0, 1, 2]:
        pytest.skip("it leaves out the negative pair of two rows that are alone in their classes")
    z, label = random_batch(labels)
    found = []
    for value in (
        lambda z: joint(loss, in_batch(z, label), bins=bins),
        lambda z: PEERS[loss.__name__](bins)(z, label),
    ):
        leaf = z.clone().requires_grad_()
        total = value(leaf)
        found.append((total.detach(), torch.autograd.grad(total, leaf)[0]))
    # Its histogram multiplies whole numbers by the step in float32.
    loose = 1e-6 if loss is histogram else 1e-12
    torch.testing.assert_close(found[0], found[1], rtol=10 * loose, atol=loose)


@IN_PEER
def test_histograms_of_duplicates_where_pytorch_metric_learning_has_no_bin():
    z, label = QUAD4[[0, 0, 2, 3]], LABEL4
    with pytest.raises(RuntimeError, match="out of bounds"):
        pml.HistogramLoss(n_bins=100)(z, label)
    assert joint(histogram, in_batch(z, label)).item() == pytest.approx(
        loop_histogram(z, label.tolist(), 100), abs=1e-9
    )


@pytest.mark.parametrize("loss", BOTH)
def test_gradcheck_through_the_embedding(loss):
    z, label = random_batch(LABELS["shuffled"])
    assert gradcheck(lambda z: joint(loss, in_batch(z, label), bins=6), z.requires_grad_())
