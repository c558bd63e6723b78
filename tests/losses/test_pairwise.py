"""Losses over pairs of rows, against known values, slow loops and pytorch-metric-learning."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given as draw
from hypothesis import settings as how
from hypothesis import strategies as st
from pytorch_metric_learning import distances
from pytorch_metric_learning import losses as pml
from quad4 import LABEL4, LABELS, QUAD4, in_batch, random_batch
from sorts import SORTS, assert_agrees, assert_equals_peer, mean_of, sides, total_of
from torch.nn.functional import normalize

from nearkin.core import Terms
from nearkin.losses.hinges import binomial_deviance
from nearkin.losses.pairwise import (
    alignment_uniformity,
    contrastive,
    infonce,
    multi_similarity,
    snca,
    supcon,
)

EVERY = [contrastive, multi_similarity, infonce, supcon, snca, alignment_uniformity]


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


def test_alignment_and_uniformity_of_quad4_by_hand():
    # Squared distances: 1 and 2 within the classes, 2, 4, 2 - √3 and 3 between them.
    squares = [1, 2, 2, 4, 2 - math.sqrt(3), 3]
    terms = alignment_uniformity(in_batch(QUAD4, LABEL4), weight=0.5)
    assert terms.tightness.item() == pytest.approx(1.5, abs=1e-12)
    spread = math.log(math.fsum(math.exp(-2 * d) for d in squares) / 6)
    assert terms.contrast.item() == pytest.approx(0.5 * spread, abs=1e-12)


# --- floors and extremes


def test_contrastive_tightness_is_four_times_the_center_tightness_over_classes():
    for labels, classes in ((LABELS["balanced"], 4), (LABELS["pairs"], 3)):
        z, label = random_batch(labels)
        rows = normalize(z)
        spread = sum(
            (rows[label == k] - rows[label == k].mean(0)).square().sum() / 2 for k in range(classes)
        )
        terms = contrastive(in_batch(z, label))
        torch.testing.assert_close(terms.tightness, 4 / classes * spread)


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


def descended(loss, z):
    """The value of `loss(z)` at its minimum near z."""
    z = z.clone().requires_grad_()
    descent = torch.optim.LBFGS([z], max_iter=300, line_search_fn="strong_wolfe")

    def closure():
        descent.zero_grad()
        value = loss(z)
        value.backward()
        return value

    descent.step(closure)
    return loss(z).item()


def test_supcon_reaches_its_floor_by_descent():
    label = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2])
    z = random_batch(label.tolist(), dim=2, seed=3)[0]
    reached = descended(lambda z: supcon(in_batch(z, label), temperature=1.0).total, z)
    assert reached == pytest.approx(10.8504518274 / 9, abs=1e-6)


def test_the_simplex_is_not_the_floor_of_an_unbalanced_batch():
    label = torch.tensor([0, 0, 0, 0, 1, 1, 1, 2, 2])
    z = random_batch(label.tolist(), dim=2, seed=3)[0]
    reached = descended(lambda z: supcon(in_batch(z, label), temperature=1.0).total, z)
    assert reached * 9 == pytest.approx(11.118907, abs=1e-5)


@pytest.mark.parametrize("rows", [3, 8])
def test_supcon_of_equal_rows_is_the_log_of_the_others(rows):
    label = torch.arange(rows) // 2 if rows == 8 else torch.zeros(rows, dtype=torch.int64)
    value = supcon(in_batch(torch.ones(rows, 3, dtype=torch.float64), label)).total
    assert value.item() == pytest.approx(math.log(rows - 1), abs=1e-12)


def test_uniformity_of_equal_rows_is_zero_and_falls_as_they_spread():
    label = torch.arange(4) // 2
    collapsed = alignment_uniformity(in_batch(torch.ones(4, 3, dtype=torch.float64), label))
    assert collapsed.contrast.item() == pytest.approx(0.0, abs=1e-12)
    assert collapsed.tightness.item() == pytest.approx(0.0, abs=1e-12)
    corners = alignment_uniformity(in_batch(simplex(4), label))
    # All distances on the simplex of 4 corners are alike: d² = 2 + 2/3.
    assert corners.contrast.item() == pytest.approx(-2 * (2 + 2 / 3), abs=1e-12)


def test_alignment_pulls_a_class_together_and_uniformity_repels_everyone():
    z, label = random_batch(LABELS["unbalanced"])
    leaf = in_batch(z, label).similarity.requires_grad_()
    c = replace(in_batch(z, label), given=leaf)
    (near,) = torch.autograd.grad(alignment_uniformity(c).tightness, leaf, retain_graph=True)
    assert bool((near[c.same] < 0).all())
    assert not near[~c.same].any()
    (apart,) = torch.autograd.grad(alignment_uniformity(c).contrast, leaf)
    assert bool((apart[c.compared] > 0).all())


# --- what they reduce to


def test_supcon_of_two_views_of_distinct_items_is_nt_xent():
    z, _ = random_batch([0] * 10, seed=4)
    label = torch.arange(5).repeat(2)  # view 0 of every item, then view 1
    logits = (normalize(z) @ normalize(z).T / 0.2).fill_diagonal_(-torch.inf)
    other_view = (torch.arange(10) + 5) % 10
    expected = torch.nn.functional.cross_entropy(logits, other_view)
    c = in_batch(z, label)
    for loss in (supcon, infonce, snca):
        torch.testing.assert_close(loss(c, temperature=0.2).total, expected)


@how(max_examples=30, deadline=None)
@draw(
    st.lists(st.integers(0, 3), min_size=2, max_size=12),
    st.integers(0, 2**31),
    st.floats(0.05, 5.0),
)
def test_the_log_outside_the_mean_is_at_most_the_log_inside(labels, seed, temperature):
    z, label = random_batch(labels, seed=seed)
    c = in_batch(z, label)
    positives = c.positives.count[c.positives.count > 0]
    inside = supcon(c, temperature=temperature).total
    outside = snca(c, temperature=temperature).total + mean_of(list(positives.double().log()))
    assert outside.item() <= inside.item() + 1e-9
    if bool((positives == 1).all()):
        torch.testing.assert_close(outside, inside)


def test_multi_similarity_of_lone_pairs_is_the_binomial_deviance():
    c = SORTS["mined by row"](random_batch(LABELS["shuffled"])[0])
    soft = multi_similarity(c, alpha=3.0, beta=30.0, base=0.4)
    deviance = binomial_deviance(c, alpha=3.0, beta=0.4, cost=10.0)
    torch.testing.assert_close(soft.tightness, deviance.tightness / 3)
    torch.testing.assert_close(soft.contrast, deviance.contrast / 30)


def test_multi_similarity_tends_to_hinges_on_the_hardest_pairs():
    z, label = random_batch(LABELS["balanced"])
    c = in_batch(z, label)
    hardest_positive = torch.where(c.same, c.similarity, torch.inf).amin(1)
    hardest_negative = torch.where(c.different, c.similarity, -torch.inf).amax(1)
    terms = multi_similarity(c, alpha=1e4, beta=1e4, base=0.5)
    tight, apart = (0.5 - hardest_positive).clamp_min(0), (hardest_negative - 0.5).clamp_min(0)
    assert terms.tightness.item() == pytest.approx(tight.mean().item(), abs=1e-6)
    assert terms.contrast.item() == pytest.approx(apart.mean().item(), abs=1e-6)


def test_infonce_pull_equals_push():
    z, label = random_batch(LABELS["unbalanced"])
    c = in_batch(z, label)
    s = c.similarity.requires_grad_()
    (g,) = torch.autograd.grad(infonce(c).total, s)
    torch.testing.assert_close(-(g * c.same).sum(), (g * c.different).sum())


@pytest.mark.parametrize("loss", EVERY)
def test_it_does_not_see_an_orthogonal_map(loss):
    z, label = random_batch(LABELS["unbalanced"])
    turn, _ = torch.linalg.qr(random_batch([0] * 5, seed=9)[0])
    torch.testing.assert_close(
        loss(in_batch(z @ turn, label)).total, loss(in_batch(z, label)).total
    )


# --- slow formulas, anchor by anchor


def distance(s):
    return (2 - 2 * s).sqrt()


def slow_contrastive(c, margin):
    rows = sides(c)
    tight = total_of([(2 - 2 * near).sum() for _, near, _ in rows])
    apart = total_of([(margin - distance(far)).clamp_min(0).square().sum() for *_, far in rows])
    return Terms(tight / len(rows), apart / len(rows))


def slow_multi_similarity(c, alpha, beta, base):
    rows = sides(c)
    tight = [(1 + (-alpha * (near - base)).exp().sum()).log() / alpha for _, near, _ in rows]
    apart = [(1 + (beta * (far - base)).exp().sum()).log() / beta for *_, far in rows]
    return Terms(mean_of(tight), mean_of(apart))


def slow_infonce(c, temperature):
    tight, apart = [], []
    for _, near, far in sides(c):
        for s in near / temperature:
            tight.append(-s)
            apart.append((s.exp() + (far / temperature).exp().sum()).log())
    return Terms(mean_of(tight), mean_of(apart))


def everyone(near, far, temperature):
    return torch.cat([near, far]).div(temperature).exp().sum().log()


def slow_supcon(c, temperature):
    rows = [(near, far) for _, near, far in sides(c) if len(near)]
    tight = [-near.mean() / temperature for near, _ in rows]
    return Terms(mean_of(tight), mean_of([everyone(*row, temperature) for row in rows]))


def slow_snca(c, temperature):
    rows = [(near, far) for _, near, far in sides(c) if len(near)]
    tight = [-(near / temperature).exp().sum().log() for near, _ in rows]
    return Terms(mean_of(tight), mean_of([everyone(*row, temperature) for row in rows]))


def slow_alignment_uniformity(c, alpha, t, weight):
    near = [x for _, near, _ in sides(c) for x in distance(near) ** alpha]
    potentials = [
        x for _, near, far in sides(c) for x in (-t * (2 - 2 * torch.cat([near, far]))).exp()
    ]
    spread = mean_of(potentials).log() if potentials else torch.zeros(())
    return Terms(mean_of(near), weight * spread)


SLOW = [
    (contrastive, slow_contrastive, {"margin": 1.2}),
    (multi_similarity, slow_multi_similarity, {"alpha": 3.0, "beta": 20.0, "base": 0.4}),
    (infonce, slow_infonce, {"temperature": 0.2}),
    (infonce, slow_infonce, {"temperature": torch.tensor(0.3, dtype=torch.float64)}),
    (supcon, slow_supcon, {"temperature": 0.2}),
    (supcon, slow_supcon, {"temperature": torch.tensor(0.3, dtype=torch.float64)}),
    (snca, slow_snca, {"temperature": 0.2}),
    (snca, slow_snca, {"temperature": torch.tensor(0.3, dtype=torch.float64)}),
    (alignment_uniformity, slow_alignment_uniformity, {"alpha": 2.0, "t": 2.0, "weight": 1.0}),
    (alignment_uniformity, slow_alignment_uniformity, {"alpha": 1.5, "t": 0.7, "weight": 0.3}),
]


@pytest.mark.parametrize("sort", SORTS)
@pytest.mark.parametrize(("loss", "slow", "settings"), SLOW)
def test_it_equals_a_slow_formula_with_its_gradient(loss, slow, settings, sort):
    assert_agrees(loss, slow, SORTS[sort], settings)


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize(("loss", "slow", "settings"), SLOW)
def test_it_equals_a_slow_formula_by_its_parts(loss, slow, settings, labels):
    z, label = random_batch(LABELS[labels], seed=2)
    terms, expected = (f(in_batch(z, label), **settings) for f in (loss, slow))
    assert terms.floats() == pytest.approx(expected.floats(), rel=1e-10)


def test_more_blocks_than_one_change_nothing(monkeypatch):
    z, label = random_batch(LABELS["shuffled"])
    whole = [loss(in_batch(z, label)).total.item() for loss in EVERY]
    monkeypatch.setattr("nearkin.closed.IN_CACHE", 40)  # three rows at a time
    parts = [loss(in_batch(z, label)).total.item() for loss in EVERY]
    assert parts == pytest.approx(whole, rel=1e-12)


# --- pytorch-metric-learning


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
    assert_equals_peer(lambda z: loss(in_batch(z, label)).total, lambda z: peer(z, label), z)


# --- wrong settings


@pytest.mark.parametrize("loss", [infonce, supcon, snca])
def test_a_temperature_must_be_above_zero(loss):
    with pytest.raises(ValueError, match="temperature must be above 0, not 0"):
        loss(in_batch(QUAD4, LABEL4), temperature=0.0)


@pytest.mark.parametrize("name", ["alpha", "t"])
def test_alignment_and_uniformity_need_settings_above_zero(name):
    with pytest.raises(ValueError, match=f"{name} must be above 0, not -1"):
        alignment_uniformity(in_batch(QUAD4, LABEL4), **{name: -1.0})
    with pytest.raises(ValueError, match="weight must be at least 0, not -1"):
        alignment_uniformity(in_batch(QUAD4, LABEL4), weight=-1.0)


@pytest.mark.parametrize("loss", [contrastive, alignment_uniformity])
def test_distances_are_refused_where_there_are_none(loss):
    with pytest.raises(ValueError, match="'inner' has no distance"):
        loss(in_batch(QUAD4, LABEL4, "inner"))
