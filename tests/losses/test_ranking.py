"""Losses over rankings, against known values, slow loops, exact evaluation and
pytorch-metric-learning."""

import math
from dataclasses import replace

import pytest
import torch
from pytorch_metric_learning import losses as pml
from quad4 import LABEL4, LABELS, QUAD4, cosines, given, in_batch, random_batch
from torch.autograd import gradcheck

import nearkin as nk
from nearkin import closed, mining
from nearkin.core import Batch
from nearkin.losses.ranking import ranked_list, recall_at_k, smooth_ap

ALL = [smooth_ap, recall_at_k, ranked_list]
SOFT = {
    smooth_ap: {"temperature": 0.3},
    recall_at_k: {"k": (1, 3), "temperature": 0.7, "rank_temperature": 0.2},
    ranked_list: {"temperature": 3.0, "positive_temperature": 2.0, "balance": 0.3},
}


# --- known values


def test_smooth_ap_by_hand():
    # One positive at the similarity of one negative, another negative far off: rank 1.5 of 1.
    c = given([[0.4, 0.4, -0.9]], [0], [0, 1, 1])
    assert smooth_ap(c).other["joint"].item() == pytest.approx(1 - 1 / 1.5)


def test_recall_at_k_by_hand():
    # The positive stands at rank 2.
    c = given([[0.4, 0.9, -0.9]], [0], [0, 1, 1])
    value = recall_at_k(c, k=(1, 2, 4)).other["joint"].item()
    assert value == pytest.approx(1 - (1 / (1 + math.e) + 1 / 2 + 1 / (1 + math.exp(-2))) / 3)


def test_recall_at_k_is_never_above_1():
    # Twelve positives that tie share the rank 6.5, and all are within the first 8.
    c = given(torch.zeros(1, 12), [0], [0] * 12)
    assert recall_at_k(c, k=(8,)).total.item() == 0


def test_ranked_list_of_quad4():
    # Positives at 1, √2 beyond 0.8; negatives nearer than 1.2: only 1-2 at √(2 - √3).
    terms = ranked_list(in_batch(QUAD4, LABEL4))
    nearest = 1.2 - math.sqrt(2 - math.sqrt(3))
    assert terms.tightness.item() == pytest.approx((0.2 + math.sqrt(2) - 0.8) / 4, abs=1e-12)
    assert terms.contrast.item() == pytest.approx(nearest / 4, abs=1e-12)


# --- slow loops


def sigmoid(x):
    return 1 / (1 + math.exp(-x)) if x > -700 else 0.0


def neighbors(z, label):
    """For each row that has a positive: its similarities to the others, and its positives."""
    s, n = cosines(z), len(label)
    for i in range(n):
        row = {j: s[i][j] for j in range(n) if j != i}
        mates = [j for j in row if label[j] == label[i]]
        if mates:
            yield row, mates


def loop_smooth_ap(z, label, temperature):
    values = []
    for row, mates in neighbors(z, label):
        ratios = []
        for p in mates:
            ahead = {j: sigmoid((row[j] - row[p]) / temperature) for j in row if j != p}
            ratios.append((1 + sum(ahead[q] for q in mates if q != p)) / (1 + sum(ahead.values())))
        values.append(1 - sum(ratios) / len(mates))
    return sum(values) / max(len(values), 1)


def loop_recall_at_k(z, label, k, temperature, rank_temperature):
    values = []
    for row, mates in neighbors(z, label):
        ranks = [
            1 + sum(sigmoid((row[j] - row[p]) / rank_temperature) for j in row if j != p)
            for p in mates
        ]
        for cutoff in k:
            hits = sum(sigmoid((cutoff - r) / temperature) for r in ranks)
            values.append(1 - min(1, hits / min(cutoff, len(mates))))
    return sum(values) / max(len(values), 1)


def weighted(gaps, temperature):
    gaps = [g for g in gaps if g > 0]
    weights = [math.exp(temperature * g) for g in gaps]
    return sum(w * g for w, g in zip(weights, gaps, strict=True)) / sum(weights) if gaps else 0.0


def loop_ranked_list(z, label, margin, boundary, temperature, positive_temperature, balance):
    s, n = cosines(z), len(label)
    d = [[math.sqrt(max(2 - 2 * x, 0)) for x in row] for row in s]
    tight = apart = 0.0
    for i in range(n):
        own = [j for j in range(n) if j != i and label[j] == label[i]]
        others = [j for j in range(n) if label[j] != label[i]]
        tight += weighted([d[i][j] - boundary + margin for j in own], positive_temperature)
        apart += weighted([boundary - d[i][j] for j in others], temperature)
    return (1 - balance) * tight / n, balance * apart / n


@pytest.mark.parametrize("temperature", [0.01, 0.4])
@pytest.mark.parametrize("labels", LABELS)
def test_smooth_ap_is_its_slow_loop(labels, temperature):
    z, label = random_batch(LABELS[labels])
    value = smooth_ap(in_batch(z, label), temperature=temperature).other["joint"].item()
    expected = loop_smooth_ap(z, label.tolist(), temperature)
    assert value == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(
    "settings", [((1, 2, 4, 8), 1.0, 0.01), ((3,), 0.1, 0.5), ((1, 20), 2.0, 0.05)]
)
@pytest.mark.parametrize("labels", LABELS)
def test_recall_at_k_is_its_slow_loop(labels, settings):
    z, label = random_batch(LABELS[labels])
    named = dict(zip(("k", "temperature", "rank_temperature"), settings, strict=True))
    value = recall_at_k(in_batch(z, label), **named).other["joint"].item()
    expected = loop_recall_at_k(z, label.tolist(), *settings)
    assert value == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("settings", [(0.4, 1.2, 10.0, 0.0, 0.5), (0.9, 1.5, 2.0, 3.0, 0.2)])
@pytest.mark.parametrize("labels", LABELS)
def test_ranked_list_is_its_slow_loop(labels, settings):
    z, label = random_batch(LABELS[labels])
    names = ("margin", "boundary", "temperature", "positive_temperature", "balance")
    terms = ranked_list(in_batch(z, label), **dict(zip(names, settings, strict=True)))
    tight, apart = loop_ranked_list(z, label.tolist(), *settings)
    assert terms.tightness.item() == pytest.approx(tight, rel=1e-9, abs=1e-12)
    assert terms.contrast.item() == pytest.approx(apart, rel=1e-9, abs=1e-12)


# --- gradients, for every sort of comparison


def dense_ranks(c, temperature):
    """(A, R) on the graph: 1 and how many of the class, and of all compared, are nearer."""
    s = c.similarity
    ahead = torch.sigmoid((s[:, None, :] - s[:, :, None]) / temperature)
    ahead = ahead * ~torch.eye(s.shape[1], dtype=torch.bool)
    return tuple(1 + (ahead * mask[:, None]).sum(2) for mask in (c.same, c.compared))


def over_positives(c, x):
    scored = c.same.any(1)
    return (x * c.same).sum(1)[scored], c.same.sum(1)[scored]


def dense_smooth_ap(c, temperature):
    mates, everyone = dense_ranks(c, temperature)
    total, count = over_positives(c, mates / everyone)
    return (1 - total / count).mean()


def dense_recall_at_k(c, k, temperature, rank_temperature):
    _, ranks = dense_ranks(c, rank_temperature)
    recalls = []
    for cutoff in k:
        hits, count = over_positives(c, torch.sigmoid((cutoff - ranks) / temperature))
        recalls.append((hits / count.clamp_max(cutoff)).clamp_max(1))
    return 1 - torch.stack(recalls).mean()


def dense_ranked_list(c, temperature, positive_temperature, balance):
    d = (2 - 2 * c.similarity).sqrt()
    total = 0.0
    for mask, gap, cold, share in (
        (c.same, d - 0.8, positive_temperature, 1 - balance),
        (c.different, 1.2 - d, temperature, balance),
    ):
        weight = (cold * gap).exp().detach() * mask * (gap > 0)
        weight = weight / weight.sum(1, keepdim=True).clamp_min(1e-300)
        total = total + share * (weight * gap).sum(1).mean()
    return total


DENSE = {
    smooth_ap: dense_smooth_ap,
    recall_at_k: dense_recall_at_k,
    ranked_list: dense_ranked_list,
}


def of_every_sort():
    """Comparisons by a similarity that is a leaf: in batch, with a memory, narrowed, mined,
    multi-hot."""
    random = torch.Generator().manual_seed(4)
    found = {name: in_batch(*random_batch(labels)) for name, labels in LABELS.items()}
    one = found["shuffled"]
    s = torch.rand(5, 9, generator=random, dtype=torch.float64) * 1.9 - 0.95
    anchor, reference = torch.tensor([0, 1, 2, 0, 7]), torch.tensor([0, 1, 0, 2, 2, 1, 0, 3, 0])
    found["other rows"] = given(s, anchor, reference, closeness="cosine")
    allowed = torch.rand(5, 9, generator=random) > 0.3
    found["narrowed"] = given(s, anchor, reference, allowed=allowed, closeness="cosine")
    found["mined"] = mining.semi_hard(one)
    hot = torch.rand(9, 4, generator=random) > 0.6
    found["multi-hot"] = given(s, hot[:5], hot, closeness="cosine")
    # The similarity of a row with itself would have a distance without a slope.
    apart = 1 - 1e-9
    return {
        name: replace(c, given=c.similarity.detach().clamp_max(apart).requires_grad_())
        for name, c in found.items()
    }


@pytest.mark.parametrize("sort", of_every_sort())
@pytest.mark.parametrize("loss", ALL)
def test_value_and_gradient_are_those_of_the_formula_on_the_graph(loss, sort):
    c = of_every_sort()[sort]
    value, expected = loss(c, **SOFT[loss]).total, DENSE[loss](c, **SOFT[loss])
    assert value.item() == pytest.approx(expected.item(), rel=1e-9, abs=1e-14)
    slopes = [torch.autograd.grad(x, c.given)[0] for x in (value, expected)]
    torch.testing.assert_close(*slopes, rtol=1e-9, atol=1e-12)
    assert slopes[0].any()


@pytest.mark.parametrize("loss", ALL)
def test_many_blocks_are_one(loss, monkeypatch):
    c = of_every_sort()["shuffled"]
    whole = torch.autograd.grad(loss(c).total, c.given)
    monkeypatch.setattr(closed, "IN_CACHE", 25)
    blocks = torch.autograd.grad(loss(c).total, c.given)
    torch.testing.assert_close(blocks, whole, rtol=1e-12, atol=1e-12)


# --- what they say


@pytest.mark.parametrize("labels", LABELS)
def test_cold_smooth_ap_is_the_mean_average_precision(labels):
    z, label = random_batch(LABELS[labels])
    exact = nk.evaluate(z, label, metrics=("map@20",))["map@20"]
    value = smooth_ap(in_batch(z, label), temperature=1e-9).total.item()
    assert value == pytest.approx(1 - exact, abs=1e-9)


@pytest.mark.parametrize("k", [1, 2, 3, 7])
@pytest.mark.parametrize("labels", LABELS)
def test_cold_recall_at_k_is_the_recall_within_k_and_within_k_minus_1(labels, k):
    z, label = random_batch(LABELS[labels])
    c = in_batch(z, label)
    seen = nk.evaluate(z, label, metrics=(f"precision@{k}", f"precision@{max(k - 1, 1)}"))
    hits = k * torch.as_tensor(seen.per_query(f"precision@{k}"))
    before = (k - 1) * torch.as_tensor(seen.per_query(f"precision@{max(k - 1, 1)}"))
    scored = c.positives.count > 0
    expected = ((hits + before)[scored] / 2 / c.positives.count[scored].clamp_max(k)).mean()
    value = recall_at_k(c, k=(k,), temperature=1e-6, rank_temperature=1e-9).total.item()
    assert value == pytest.approx(1 - expected.item(), abs=1e-9)


def test_classes_apart_cost_nothing():
    label = torch.tensor([0, 0, 1, 1, 2, 2])
    c = in_batch(torch.eye(3, dtype=torch.float64)[label], label)
    assert smooth_ap(c).total.item() == pytest.approx(0, abs=1e-12)
    assert recall_at_k(c, k=(2, 4), temperature=0.02).total.item() == pytest.approx(0, abs=1e-12)
    terms = ranked_list(c)
    assert terms.total.item() == terms.tightness.item() == terms.contrast.item() == 0


def test_a_hot_ranked_list_of_equal_weights_is_the_mean_of_the_violating_hinges():
    z, label = random_batch(LABELS["unbalanced"])
    c = in_batch(z, label)
    gap = torch.where(c.different, (1.2 - c.distance).clamp_min(0), 0.0)
    means = gap.sum(1) / (gap > 0).sum(1).clamp_min(1)
    value = ranked_list(c, temperature=0.0, balance=1.0)
    torch.testing.assert_close(value.contrast, means.mean())
    assert value.tightness.item() == 0


def test_a_cold_ranked_list_sees_the_nearest_negative_alone():
    z, label = random_batch(LABELS["unbalanced"])
    c = in_batch(z, label)
    nearest = torch.where(c.different, c.distance, torch.inf).amin(1)
    value = ranked_list(c, temperature=1e6, balance=1.0).contrast
    torch.testing.assert_close(value, (1.2 - nearest).clamp_min(0).mean())


def test_a_ranked_list_without_temperatures_has_the_derivative_of_its_value():
    z, label = random_batch(LABELS["unbalanced"])

    def value(z):
        return ranked_list(in_batch(z, label), temperature=0.0).total

    assert gradcheck(value, z.requires_grad_())


# --- what they refuse


def test_wrong_settings_are_refused():
    c = in_batch(QUAD4, LABEL4)
    with pytest.raises(ValueError, match="temperature must be above 0, not 0"):
        smooth_ap(c, temperature=0.0)
    with pytest.raises(ValueError, match="rank_temperature must be above 0, not -1"):
        recall_at_k(c, rank_temperature=-1.0)
    for k in ((), (4, 0)):
        with pytest.raises(ValueError, match="k must be one or more numbers from 1 on"):
            recall_at_k(c, k=k)
    with pytest.raises(ValueError, match=r"balance must be between 0 and 1, not 1\.5"):
        ranked_list(c, balance=1.5)
    with pytest.raises(ValueError, match="positive_temperature must be at least 0, not -2"):
        ranked_list(c, positive_temperature=-2.0)


def test_a_recipe_gives_the_cutoffs_as_a_list():
    z, label = random_batch(LABELS["unbalanced"])
    home = nk.criterion("recall_at_k", k=[1, 4]).compared
    value = home(z, Batch(None, label=label)).total
    assert value.item() == recall_at_k(in_batch(z, label), k=(1, 4)).total.item()
    with pytest.raises(ValueError, match=r"expected an integer, got 1\.5"):
        nk.criterion("recall_at_k", k=[1.5])


# --- pytorch-metric-learning


def both(ours, theirs, z):
    found = []
    for value in (ours, theirs):
        leaf = z.clone().requires_grad_()
        total = value(leaf)
        found.append((total.detach().double(), torch.autograd.grad(total, leaf)[0]))
    return found


@pytest.mark.parametrize("side", [2, 3, 4])
def test_smooth_ap_of_rows_that_find_themselves_is_that_of_pytorch_metric_learning(side):
    # It is right only where there are as many classes as rows in each, one class after another.
    z, label = random_batch([row // side for row in range(side * side)])

    def ours(z):
        return smooth_ap(replace(in_batch(z, label), oneself=None)).total

    one, two = both(ours, lambda z: pml.SmoothAPLoss()(z, label), z)
    # It sums in float32.
    torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("temperatures", [(0.0, 0.0), (3.0, 0.0), (4.0, 2.0)])
@pytest.mark.parametrize("labels", LABELS)
def test_ranked_list_is_that_of_pytorch_metric_learning(labels, temperatures):
    z, label = random_batch(LABELS[labels])
    toward, away = temperatures
    peer = pml.RankedListLoss(margin=0.4, Tn=toward, imbalance=0.3, alpha=1.2, Tp=away)

    def ours(z):
        c = in_batch(z, label)
        settings = {"temperature": toward, "positive_temperature": away, "balance": 0.3}
        return ranked_list(c, **settings).total

    one, two = both(ours, lambda z: peer(z, label), z)
    added = 1e-5 * len(label)  # to its sums of weights, of which each is at least 1
    torch.testing.assert_close(one[0], two[0], rtol=1.01 * added, atol=1e-9)
    if temperatures == (0.0, 0.0):
        # Else it differentiates the weights, which are constants here.
        torch.testing.assert_close(one[1], two[1], rtol=1.01 * added, atol=1e-5)
