"""What the page for users of pytorch-metric-learning says: every line of its table of equalities is
read from the page and checked, value and gradient; so are the differences that it names."""

import math
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from pytorch_metric_learning import distances, losses, miners, reducers, samplers
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from pytorch_metric_learning.utils.inference import CustomKNN

import nearkin as nk
from nearkin.core import Batch

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    # Its histogram loss indexes by a list of two lists.
    pytest.mark.filterwarnings("ignore:Using a non-tuple sequence:UserWarning"),
    pytest.mark.filterwarnings("ignore:n_pairs takes the first two rows:UserWarning"),
]

PAGE = Path(__file__).parents[1] / "docs" / "coming-from-pytorch-metric-learning.md"
TEXT = PAGE.read_text(encoding="utf-8")
EQUAL = re.findall(r"^\| `(losses\..*?)` \| `(nk\..*?)` \|(.*?)\|$", TEXT, re.MULTILINE)
KINDS = {
    "": ("unbalanced", "with singles", "two each"),
    "two rows of each class or more": ("unbalanced", "two each"),
    "two rows of each class": ("two each",),
    "rows of length 1": ("unit rows",),
}
DIM, CLASSES = 8, 7


@pytest.fixture(autouse=True)
def _in_float64():
    """Some of the peer's losses make what they add up in torch's default type."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def drawn(kind, seed=0):
    counts = {"with singles": [1, 4, 2, 1, 5], "two each": [2] * 6}.get(kind, [3, 2, 5, 2, 4])
    random = torch.Generator().manual_seed(seed)
    label = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    label = label[torch.randperm(len(label), generator=random)]
    z = torch.randn(len(counts), DIM, generator=random)[label]
    z = z + torch.randn(len(label), DIM, generator=random)
    return (F.normalize(z) if kind == "unit rows" else z), label


def made(code):
    """What a cell of the table makes."""
    names = {"losses": losses, "miners": miners, "reducers": reducers, "distances": distances}
    return eval(code, names | {"nk": nk, "math": math, "classes": CLASSES, "dim": DIM})


def scored(module, z, label, mine=None):
    """The value, and the gradient by directions for rows of length 1."""
    z = z.detach().clone().requires_grad_()
    value = module(z, label, mine(z, label)) if mine else module(z, label)
    (slope,) = torch.autograd.grad(value, z)
    return value.detach(), slope


def shared(theirs, ours):
    """The peer's proxies, with classes as rows, for ours."""
    kept, own = ([p for p in x.parameters() if p.ndim == 2] for x in (theirs, ours))
    assert len(kept) == len(own) <= 1
    with torch.no_grad():
        for a, b in zip(kept, own, strict=True):
            b.copy_(a if a.shape == b.shape else a.T)


def test_the_page_has_a_table_of_equalities():
    assert len(EQUAL) >= 25
    assert {where.strip() for *_, where in EQUAL} == set(KINDS)
    named = set(re.findall(r"\b(\w+Loss)\b", TEXT))
    every = {name for name in dir(losses) if name.endswith("Loss")}
    assert every - named <= {"BaseMetricLossFunction", "GenericPairLoss", "SelfSupervisedLoss"}


@pytest.mark.parametrize(("theirs", "ours", "where"), EQUAL, ids=[x[1][14:60] for x in EQUAL])
def test_they_are_equal(theirs, ours, where):
    for kind in KINDS[where.strip()]:
        for seed in range(4):
            z, label = drawn(kind, seed)
            torch.manual_seed(seed)
            theirs_of = made(theirs)
            peer, *miner = theirs_of if isinstance(theirs_of, tuple) else (theirs_of,)
            own = made(ours).double()
            shared(peer, own)
            expected, wanted = scored(peer, z, label, *miner)
            value, slope = scored(own, z, label)
            if kind == "unit rows":
                # The peer does not normalize what is normalized already; directions are compared.
                wanted = wanted - (wanted * z).sum(1, keepdim=True) * z
            torch.testing.assert_close(value, expected, rtol=1e-8, atol=1e-9)
            torch.testing.assert_close(slope, wanted, rtol=1e-5, atol=1e-6)


# --- the differences


def test_its_contrastive_has_the_hinges_of_margin_and_other_means():
    z, label = drawn("with singles")
    plain = losses.ContrastiveLoss(reducer=reducers.SumReducer())(z, label)
    d = torch.cdist(F.normalize(z), F.normalize(z))
    off = ~torch.eye(len(z), dtype=torch.bool)
    same = (label[:, None] == label) & off
    near = (label[:, None] != label) & (d < 1)
    half = nk.criterion("margin", margin=0.5, beta=0.5)(z, label)
    torch.testing.assert_close(half * (same.sum() + near.sum()), plain)
    means = d[same].mean() + (1 - d[near]).mean()
    torch.testing.assert_close(losses.ContrastiveLoss()(z, label), means)
    squares = (d[same] ** 2).sum() + ((1 - d[near]) ** 2).sum()
    torch.testing.assert_close(nk.criterion("contrastive")(z, label), squares / len(z))


def test_its_margin_counts_a_positive_once_for_each_negative():
    z, label = drawn("unbalanced")
    d = torch.cdist(F.normalize(z), F.normalize(z))
    same = (label[:, None] == label) & ~torch.eye(len(z), dtype=torch.bool)
    pull, push = (d - 1.0).clamp_min(0) * same, (1.4 - d).clamp_min(0) * (label[:, None] != label)
    negatives = (label[:, None] != label).sum(1, keepdim=True)
    weights = [negatives.expand_as(d), same.sum(1, keepdim=True).expand_as(d)]
    for counted, module in (
        (weights, losses.MarginLoss(margin=0.2, beta=1.2)),
        ([torch.ones_like(d)] * 2, nk.criterion("margin", margin=0.2, beta=1.2)),
    ):
        total = (pull * counted[0]).sum() + (push * counted[1]).sum()
        number = ((pull > 0) * counted[0]).sum() + ((push > 0) * counted[1]).sum()
        torch.testing.assert_close(module(z, label), total / number)


def test_its_proxy_nca_is_a_normalized_softmax_and_not_the_papers():
    z, label = drawn("unbalanced")
    theirs = losses.ProxyNCALoss(CLASSES, DIM, softmax_scale=1).double()
    softmax = nk.criterion("norm_softmax", classes=CLASSES, dim=DIM, temperature=0.5).double()
    paper = nk.criterion("proxy_nca", classes=CLASSES, dim=DIM, scale=1.0).double()
    for ours in (softmax, paper):
        shared(theirs, ours)
    torch.testing.assert_close(softmax(z, label), theirs(z, label))
    assert paper(z, label) < theirs(z, label) - 0.01


def test_its_ranked_list_differentiates_its_weights():
    z, label = drawn("unbalanced")
    theirs = losses.RankedListLoss(margin=0.4, Tn=5, imbalance=0.5, alpha=1.2, Tp=0)
    settings = {"margin": 0.4, "boundary": 1.2, "temperature": 5.0, "balance": 0.5}
    ours = nk.criterion("ranked_list", positive_temperature=0.0, **settings)
    (value, slope), (expected, wanted) = scored(ours, z, label), scored(theirs, z, label)
    torch.testing.assert_close(value, expected, rtol=1e-3, atol=1e-4)
    assert (slope - wanted).norm() > 0.01 * wanted.norm()


def test_its_smooth_ap_needs_classes_of_one_size():
    z, label = drawn("unbalanced")
    with pytest.raises(ValueError, match="same number of elements"):
        losses.SmoothAPLoss()(z, label)
    assert nk.criterion("smooth_ap")(z, label).isfinite()


def test_its_histogram_fails_at_similarity_1():
    rows, label = torch.eye(2)[[0, 0, 1, 1]], torch.tensor([0, 0, 1, 1])
    with pytest.raises((IndexError, RuntimeError), match="out of bounds"):
        losses.HistogramLoss(n_bins=10)(rows, label)
    assert nk.criterion("histogram", bins=10)(rows, label) == 0


def test_its_generalized_lifted_counts_anchors_without_a_positive():
    z, label = drawn("with singles")
    theirs = losses.GeneralizedLiftedStructureLoss()(z, label)
    assert nk.criterion("generalized_lifted")(z, label) != pytest.approx(theirs.item(), rel=1e-3)


def test_its_distance_weighted_miner_loses_anchors_whose_negatives_are_distant():
    axes = torch.eye(512, dtype=torch.float32)

    def at(distance, i, j):
        c = 1 - distance**2 / 2
        return c * axes[i] + math.sqrt(1 - c * c) * axes[j]

    rows = [axes[0], at(0.1, 0, 5), at(1.39, 0, 1), axes[2], at(0.55, 2, 3), at(0.1, 2, 9)]
    z, label = torch.stack(rows), torch.tensor([0, 0, 1, 2, 3, 2])
    anchors, _, _ = miners.DistanceWeightedMiner()(z, label)
    assert 0 not in label[anchors]
    mined = nk.criterion("margin", mining="distance_weighted").compared
    assert 0 in mined.comparison(z, Batch(None, label=label)).anchor_label


def test_a_memory_gives_the_value_of_its_memory_and_another_gradient():
    z, label = drawn("unbalanced")
    theirs = losses.CrossBatchMemory(losses.NTXentLoss(temperature=0.1), DIM, memory_size=64)
    ours = nk.criterion("infonce", temperature=0.1, memory=64, dim=DIM)
    plain = nk.criterion("infonce", temperature=0.1)
    (value, slope), (expected, wanted) = scored(ours, z, label), scored(theirs, z, label)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(slope, scored(plain, z, label)[1])
    assert (slope - wanted).norm() > 0.1 * wanted.norm()


def test_its_sampler_leaves_rows_out_and_ours_covers_them():
    label = torch.arange(1000) // 20
    theirs = samplers.MPerClassSampler(label, 4, 100, 1000)
    assert len(set(theirs)) < 800
    batches = list(nk.sampler("balanced", label, classes=25, per_class=4, seed=0))
    rows = [row for batch in batches for row in batch]
    assert len(set(rows)) == len(rows) == 1000
    again = list(nk.sampler("balanced", label, classes=25, per_class=4, seed=0))
    assert again == batches


@pytest.mark.parametrize(
    ("distance", "closeness"),
    [
        (distances.CosineSimilarity(), "cosine"),
        (distances.LpDistance(normalize_embeddings=False), "euclidean"),
    ],
)
def test_figures_are_those_of_its_calculator(distance, closeness):
    random = torch.Generator().manual_seed(0)
    label = torch.arange(120) % 17
    z = torch.randn(17, DIM, generator=random)[label] + torch.randn(120, DIM, generator=random)
    names = {
        "precision_at_1": "recall@1",
        "r_precision": "r_precision",
        "mean_average_precision_at_r": "map@r",
        "mean_reciprocal_rank": "mrr",
        "mean_average_precision": "map@119",
    }
    calculator = AccuracyCalculator(include=tuple(names), k=119, knn_func=CustomKNN(distance))
    expected = calculator.get_accuracy(z, label)
    result = nk.evaluate(z, label, metrics=tuple(names.values()), closeness=closeness)
    for theirs, ours in names.items():
        assert result[ours] == pytest.approx(expected[theirs], rel=1e-6)
