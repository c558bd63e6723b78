"""Losses that ask which neighbor is the right one, against known values, slow formulas and
pytorch-metric-learning."""

import math
import warnings
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from pytorch_metric_learning import distances
from pytorch_metric_learning import losses as pml
from quad4 import LABEL4, LABELS, QUAD4, in_batch, random_batch
from sorts import SORTS, Z, assert_agrees, assert_equals_peer, mean_of, sides

import nearkin as nk
from nearkin.core import Comparison, Terms
from nearkin.losses.neighbors import n_pairs, nca, tuplet_margin
from nearkin.losses.pairwise import infonce, snca

pytestmark = pytest.mark.filterwarnings("ignore:n_pairs takes the first two rows")

# --- known values on QUAD4


def test_n_pairs_of_quad4():
    c = in_batch(QUAD4, LABEL4, "inner")
    assert n_pairs(c, norm_weight=0.0).total.item() == pytest.approx(0.7092660481, abs=1e-9)
    terms = n_pairs(c)
    assert terms.total.item() == pytest.approx(0.7102660481, abs=1e-9)
    assert terms.other["norm"].item() == pytest.approx(0.001, abs=1e-12)
    assert terms.tightness.item() == pytest.approx(-0.25, abs=1e-12)  # -(cos 60° + cos 90°) / 2


def test_nca_of_quad4_by_hand():
    # Squared distances to the positive and to everyone.
    rows = [(1, 2, 4), (1, 2 - math.sqrt(3), 3), (2, 2, 2 - math.sqrt(3)), (2, 4, 3)]
    tight = math.fsum(near / 0.5 for near, *_ in rows) / 4
    spread = math.fsum(math.log(math.fsum(math.exp(-d / 0.5) for d in row)) for row in rows) / 4
    terms = nca(in_batch(QUAD4, LABEL4), temperature=0.5)
    assert terms.tightness.item() == pytest.approx(tight, abs=1e-12)
    assert terms.contrast.item() == pytest.approx(spread, abs=1e-12)


def test_tuplet_margin_of_quad4_by_hand():
    # Angles to the positive and to the negatives, in degrees.
    rows = [(60, 90, 180), (60, 30, 120), (90, 90, 30), (90, 180, 120)]

    def cos(degrees):
        return math.cos(math.radians(degrees))

    values = [
        math.log1p(math.fsum(math.exp(4 * (cos(x) - cos(near - 20))) for x in far))
        for near, *far in rows
    ]
    value = tuplet_margin(in_batch(QUAD4, LABEL4), margin=20.0, scale=4.0).total
    assert value.item() == pytest.approx(math.fsum(values) / 4, abs=1e-12)


# --- what they reduce to


def test_n_pairs_of_two_classes_is_a_soft_triplet():
    z, label = random_batch([0, 0, 1, 1])
    f, g = z[[0, 2]], z[[1, 3]]
    expected = F.softplus((f * g.flip(0)).sum(1) - (f * g).sum(1)).mean()
    value = n_pairs(in_batch(z, label, "inner"), norm_weight=0.0).total
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)


def test_n_pairs_is_cross_entropy_with_the_positives_as_weights():
    z, label = random_batch([0, 0, 1, 1, 2, 2, 3, 3])
    f, g = z[::2], z[1::2]
    expected = F.cross_entropy(f @ g.T, torch.arange(4))
    value = n_pairs(in_batch(z, label, "inner"), norm_weight=0.0).total
    torch.testing.assert_close(value, expected)


@pytest.mark.parametrize("labels", LABELS)
def test_nca_is_snca_at_half_the_temperature(labels):
    z, label = random_batch(LABELS[labels])
    c = in_batch(z, label)
    torch.testing.assert_close(
        nca(c, temperature=0.4).total, snca(c, temperature=0.2).total, rtol=1e-11, atol=1e-11
    )


@pytest.mark.parametrize("sort", SORTS)
def test_tuplet_margin_without_a_margin_is_infonce(sort):
    c = SORTS[sort](Z)
    seen, wanted = tuplet_margin(c, margin=0.0, scale=5.0), infonce(c, temperature=0.2)
    assert seen.floats() == pytest.approx(wanted.floats(), rel=1e-12)


def test_without_noise_nca_picks_the_nearest_row():
    # A temperature near 0 leaves the nearest row alone: log p is 0 where it is of the class.
    c = in_batch(torch.tensor([[0.0], [1.0], [5.0], [6.5]]).double(), LABEL4, "euclidean")
    assert nca(c, temperature=0.01).total.item() == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("loss", [nca, n_pairs, tuplet_margin])
def test_it_does_not_see_an_orthogonal_map(loss):
    z, label = random_batch(LABELS["unbalanced"])
    turn, _ = torch.linalg.qr(random_batch([0] * 5, seed=9)[0])
    torch.testing.assert_close(
        loss(in_batch(z @ turn, label)).total, loss(in_batch(z, label)).total
    )


# --- slow formulas, anchor by anchor


def slow_nca(c, temperature):
    rows = [(near, far) for _, near, far in sides(c) if len(near)]
    tight = [-((2 * near - 2) / temperature).exp().sum().log() for near, _ in rows]
    apart = [((2 * torch.cat(row) - 2) / temperature).exp().sum().log() for row in rows]
    return Terms(mean_of(tight), mean_of(apart))


def slow_tuplet_margin(c, margin, scale):
    tight, apart = [], []
    for _, near, far in sides(c):
        for s in near:
            nearer = scale * (torch.acos(s) - math.radians(margin)).cos()
            tight.append(-nearer)
            apart.append((nearer.exp() + (scale * far).exp().sum()).log())
    return Terms(mean_of(tight), mean_of(apart))


def slow_n_pairs(c, norm_weight):
    """The rule for the roles, row by row, with Python's own lists and sets."""
    same, different, s = c.same.tolist(), c.different.tolist(), c.similarity
    square = c.references is not None and c.references is c.anchors
    pairs = []
    for i, row in enumerate(same):
        positives = [j for j, shares in enumerate(row) if shares]
        if positives and (not square or positives[0] > i):
            pairs.append((i, positives[0]))
    chosen = {j for _, j in pairs}
    apart = []
    for i, j in pairs:
        columns = range(c.shape[1]) if c.mined else chosen
        seen = [s[i, k] for k in columns if k == j or different[i][k]]
        apart.append(torch.stack(seen).logsumexp(0))
    other = {}
    if c.anchors is not None and norm_weight:
        squares = [(c.anchors[i] ** 2).sum() + (c.references[j] ** 2).sum() for i, j in pairs]
        other = {"norm": norm_weight * mean_of(squares)}
    return Terms(-mean_of([s[i, j] for i, j in pairs]), mean_of(apart), other)


SLOW = [
    (nca, slow_nca, {"temperature": 1.0}),
    (nca, slow_nca, {"temperature": torch.tensor(0.3, dtype=torch.float64)}),
    (tuplet_margin, slow_tuplet_margin, {"margin": 5.73, "scale": 64.0}),
    (tuplet_margin, slow_tuplet_margin, {"margin": 30.0, "scale": 3.0}),
    (n_pairs, slow_n_pairs, {"norm_weight": 0.0}),
    (n_pairs, slow_n_pairs, {"norm_weight": 0.1}),
]


@pytest.mark.parametrize("sort", SORTS)
@pytest.mark.parametrize(("loss", "slow", "settings"), SLOW)
def test_it_equals_a_slow_formula_with_its_gradient(loss, slow, settings, sort):
    assert_agrees(loss, slow, SORTS[sort], settings)


@pytest.mark.parametrize("sort", ["in batch", "of references", "with a memory", "with a mask"])
def test_n_pairs_of_inner_products_equals_a_slow_formula(sort):
    def make(z):
        c = SORTS[sort](z)
        plain = replace(c, closeness="inner", anchors=z[: c.shape[0]], references=z[-c.shape[1] :])
        return plain if c.references is not c.anchors else replace(plain, references=plain.anchors)

    assert_agrees(n_pairs, slow_n_pairs, make, {"norm_weight": 0.01})


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize(("loss", "slow", "settings"), SLOW)
def test_it_equals_a_slow_formula_by_its_parts(loss, slow, settings, labels):
    z, label = random_batch(LABELS[labels], seed=2)
    terms, expected = (f(in_batch(z, label), **settings) for f in (loss, slow))
    assert terms.floats() == pytest.approx(expected.floats(), rel=1e-10)


# --- the roles of N-pairs


def test_the_names_of_labels_decide_nothing_in_n_pairs():
    z, label = random_batch(LABELS["pairs"])
    renamed = torch.tensor([7, 2, 5])[label]
    one, two = (n_pairs(in_batch(z, y, "inner")).floats() for y in (label, renamed))
    assert one == pytest.approx(two, rel=1e-12)


def test_whole_pairs_of_n_pairs_may_stand_in_any_order():
    z, label = random_batch(LABELS["pairs"])
    order = torch.tensor([4, 0, 5, 2, 3, 1])  # each class's first row still comes first
    one = n_pairs(in_batch(z, label, "inner")).floats()
    assert n_pairs(in_batch(z[order], label[order], "inner")).floats() == pytest.approx(one)


def test_rows_beyond_the_second_and_lone_rows_are_not_in_n_pairs():
    z, label = random_batch([0, 1, 0, 2, 1, 0, 1])
    kept = torch.tensor([0, 1, 2, 4])
    whole = n_pairs(in_batch(z, label, "inner")).total
    pairs = n_pairs(in_batch(z[kept], label[kept], "inner")).total
    torch.testing.assert_close(whole, pairs)


def test_n_pairs_warns_once_of_rows_that_it_leaves_out():
    z, label = random_batch(LABELS["balanced"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        n_pairs(in_batch(*random_batch(LABELS["pairs"])))
        with pytest.warns(UserWarning, match=r"first two rows .* per_class 2"):
            n_pairs(in_batch(z, label))
        n_pairs(in_batch(z, label))


def test_n_pairs_of_references_takes_each_anchors_first_positive():
    z, _ = random_batch([0] * 7)
    loss = nk.criterion("n_pairs", norm_weight=0.0)
    value = loss(z[:3], [0, 1, 3], references=z[3:], reference_labels=[1, 0, 0, 2])
    # Row 2 has no reference of its class; references 2 and 3 are chosen by no one.
    f, g = z[:2], z[[4, 3]]
    torch.testing.assert_close(value, F.cross_entropy(f @ g.T, torch.arange(2)))


def test_a_reference_chosen_twice_counts_once_in_n_pairs():
    random = torch.Generator().manual_seed(0)
    f = torch.randn(3, 4, dtype=torch.float64, generator=random)
    g = torch.randn(2, 4, dtype=torch.float64, generator=random)
    c = Comparison(
        torch.tensor([0, 0, 1]), torch.tensor([0, 1]), closeness="inner", anchors=f, references=g
    )
    expected = F.cross_entropy(f @ g.T, torch.tensor([0, 0, 1]))
    torch.testing.assert_close(n_pairs(c, norm_weight=0.0).total, expected)


def test_a_given_similarity_is_scored_as_the_one_of_its_rows():
    # The diagnosis replaces the similarity by a leaf.
    z, label = random_batch(LABELS["shuffled"])
    c = in_batch(z, label, "inner")
    leaf = c.similarity.clone().requires_grad_()
    for loss in (n_pairs, snca):
        whole = loss(replace(c, given=leaf)).total
        torch.testing.assert_close(whole, loss(c).total)
        (slope,) = torch.autograd.grad(whole, leaf)
        assert -(slope * c.same).sum() > 0
        assert (slope * c.different).sum() > 0


# --- the slack of the tuplet margin


def test_a_positive_nearer_than_the_margin_is_pushed_back_to_it():
    label = torch.tensor([0, 0, 1])
    angle = torch.tensor([0.0, 3.0, 15.0], dtype=torch.float64).deg2rad()

    def gradient(margin):
        turned = angle.clone().requires_grad_()
        z = torch.stack([turned.cos(), turned.sin()], 1)
        c = replace(in_batch(z, label), allowed=torch.tensor([[1, 1, 1], [0] * 3, [0] * 3]).bool())
        (slope,) = torch.autograd.grad(tuplet_margin(c, margin=margin).total, turned)
        return slope[1].item()

    assert gradient(1.0) > 0  # minimizing turns the positive toward the anchor
    assert gradient(6.0) < 0
    assert gradient(3.0) == pytest.approx(0.0, abs=1e-9)


# --- pytorch-metric-learning


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize(
    ("loss", "closeness", "peer"),
    [
        (nca, "cosine", pml.NCALoss(softmax_scale=1)),
        (
            nca,
            "euclidean",
            pml.NCALoss(distance=distances.LpDistance(power=2, normalize_embeddings=False)),
        ),
        (tuplet_margin, "cosine", pml.TupletMarginLoss(margin=5.73, scale=64)),
        (
            lambda c: n_pairs(c, norm_weight=0.0),
            "inner",
            pml.NPairsLoss(distance=distances.DotProductSimilarity(normalize_embeddings=False)),
        ),
    ],
)
def test_it_equals_pytorch_metric_learning(loss, closeness, peer, labels):
    z, label = random_batch(LABELS[labels])
    assert_equals_peer(
        lambda z: loss(in_batch(z, label, closeness)).total, lambda z: peer(z, label), z
    )


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("temperature", [0.2, 1.0])
def test_snca_is_their_nca_of_cosines(temperature, labels):
    z, label = random_batch(LABELS[labels])
    peer = pml.NCALoss(softmax_scale=1 / temperature, distance=distances.CosineSimilarity())
    assert_equals_peer(
        lambda z: snca(in_batch(z, label), temperature=temperature).total,
        lambda z: peer(z, label),
        z,
    )


# --- wrong settings


@pytest.mark.parametrize(("loss", "name"), [(nca, "temperature"), (tuplet_margin, "scale")])
def test_a_setting_must_be_above_zero(loss, name):
    with pytest.raises(ValueError, match=f"{name} must be above 0, not 0"):
        loss(in_batch(QUAD4, LABEL4), **{name: 0.0})


def test_settings_out_of_range_are_refused():
    with pytest.raises(ValueError, match="norm_weight must be at least 0, not -1"):
        n_pairs(in_batch(QUAD4, LABEL4), norm_weight=-1.0)
    for wrong in (-1.0, 180.0):
        with pytest.raises(ValueError, match="in degrees, from 0 to under 180, not"):
            tuplet_margin(in_batch(QUAD4, LABEL4), margin=wrong)


def test_a_closeness_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="'inner' has no distance"):
        nca(in_batch(QUAD4, LABEL4, "inner"))
    for closeness in ("inner", "euclidean"):
        with pytest.raises(ValueError, match=f"tuplet_margin needs angles, but .* {closeness!r}"):
            tuplet_margin(in_batch(QUAD4, LABEL4, closeness))
