"""Value and gradient against pytorch-metric-learning on random batches of many shapes, wherever the
definitions coincide; where they do not, a test shows the difference and its name says why."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pytorch_metric_learning import distances, losses, miners, reducers, regularizers

from nearkin import catalog
from nearkin.losses.hinges import margin
from nearkin.losses.ranking import smooth_ap
from nearkin.standalone import criterion

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    # Its histogram loss indexes by a list of two lists.
    pytest.mark.filterwarnings("ignore:Using a non-tuple sequence:UserWarning"),
    pytest.mark.filterwarnings("ignore:the labels are only 0 and 1:UserWarning"),
    pytest.mark.filterwarnings("ignore:n_pairs takes the first two rows:UserWarning"),
]


@pytest.fixture(autouse=True)
def _in_float64():
    """Some of the peer's losses make what they add up in torch's default type."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


Cosine, Distance, Mean = distances.CosineSimilarity, distances.LpDistance, reducers.MeanReducer
RADIANS = math.degrees(0.5)


# --- batches


def counts_of(kind: str, random: torch.Generator) -> list[int]:
    """How many rows each class has."""

    def upto(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=random))

    if kind == "balanced":
        return [upto(2, 5)] * upto(2, 8)
    if kind == "as many rows as classes":
        return [side := upto(2, 5)] * side
    if kind == "any":
        return [upto(1, 6) for _ in range(upto(2, 7))]
    if kind == "both":  # a class of several rows, one of one row, and whatever comes
        return [upto(2, 6), 1, *(upto(1, 5) for _ in range(upto(0, 6)))]
    if kind == "mates":  # nobody is alone
        return [upto(2, 7) for _ in range(upto(2, 6))]
    if kind == "one alone":
        return [1, *(upto(2, 7) for _ in range(upto(1, 5)))]
    raise ValueError(kind)


def drawn(kind: str, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of various lengths around class directions, and their labels."""
    random = torch.Generator().manual_seed(seed)
    order = kind.removesuffix(", in order")
    acute = order.endswith(", acute")
    counts = counts_of(order.removesuffix(", acute"), random)
    label = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    if order == kind:
        label = label[torch.randperm(len(label), generator=random)]
    dim = int(torch.randint(2, 17, (), generator=random)) + 6 * acute
    z = torch.randn(len(counts), dim, generator=random, dtype=torch.float64)[label]
    z = z + torch.randn(len(label), dim, generator=random, dtype=torch.float64)
    # Beside a long common direction no two rows are more than a right angle apart.
    return (z + 1.5 * z.norm(dim=1).max() / dim**0.5 if acute else z), label


def test_the_batches_are_of_many_shapes():
    shapes = [drawn(kind, seed)[0].shape for kind in ("any", "both") for seed in range(10)]
    assert min(rows for rows, _ in shapes) <= 6
    assert max(rows for rows, _ in shapes) >= 20
    z, _ = drawn("mates, acute", 1)
    assert (F.normalize(z) @ F.normalize(z).T).min() > 0


# --- how each is made


class SquaredOverAnchors(reducers.BaseReducer):
    """Squares each hinge, and divides the sum by the number of rows."""

    def pos_pair_reduction(self, losses, loss_indices, embeddings, labels):
        return losses.square().sum() / len(embeddings)

    neg_pair_reduction = pos_pair_reduction


class TripletsGiven(torch.nn.Module):
    """Its triplet loss on triplets that are found by a slow loop."""

    def __init__(self, loss, found):
        super().__init__()
        self.loss, self.found = loss, found

    def forward(self, z, label):
        rows = F.normalize(z.detach())
        return self.loss(z, label, self.found(torch.cdist(rows, rows), label))


def semi_hard_triplets(d, label):
    """FaceNet's: the nearest negative beyond the positive, or the farthest where none is."""
    found = []
    for a in range(len(d)):
        far = [n for n in range(len(d)) if label[n] != label[a]]
        for p in range(len(d)):
            if p != a and label[p] == label[a] and far:
                beyond = [n for n in far if d[a, n] > d[a, p]]
                n = (
                    min(beyond, key=lambda n: d[a, n])
                    if beyond
                    else max(far, key=lambda n: d[a, n])
                )
                found.append((a, p, n))
    return tuple(torch.tensor(found).T)


class Mined(torch.nn.Module):
    """Its loss after its miner."""

    def __init__(self, loss, miner):
        super().__init__()
        self.loss, self.miner = loss, miner

    def forward(self, z, label):
        return self.loss(z, label, self.miner(z, label))


class OfUnitRows(torch.nn.Module):
    """Its loss of rows that are of length 1 already."""

    def __init__(self, loss):
        super().__init__()
        self.loss = loss

    def forward(self, z, label):
        return self.loss(F.normalize(z), label)


def easy(negatives):
    return lambda: Mined(
        losses.NTXentLoss(temperature=0.1),
        miners.BatchEasyHardMiner("easy", negatives, distance=Cosine()),
    )


def itself_too(c):
    """Smooth-AP where each row is among its own references, as in the peer."""
    return smooth_ap(replace(c, oneself=None), temperature=0.05)


def bare_hinges(c):
    """Margin loss without a margin around β/2: the hinges d and [1 - d]₊."""
    return margin(c, margin=0.5, beta=0.5)


@dataclass(frozen=True)
class Row:
    """One line of the table.

    loss     ours: a name, or a function of a comparison
    theirs   () -> the peer's module, or (classes, dim) where it keeps something for each class
    batches  where the two definitions coincide
    ours     settings of ours
    kept     the peer's parameter, and whether its classes are columns; "" where it has none
    """

    loss: str | Callable[..., Any]
    theirs: Callable[..., torch.nn.Module]
    batches: tuple[str, ...] = ("any", "balanced")
    ours: dict[str, Any] = field(default_factory=dict)
    kept: str = ""
    columns: bool = True


def over_classes(make, **settings):
    return lambda classes, dim: make(num_classes=classes, embedding_size=dim, **settings)


PARITY = {
    # pairs
    "contrastive": Row(
        "contrastive",
        lambda: losses.ContrastiveLoss(0, 1.2, reducer=SquaredOverAnchors()),
        ("both", "balanced"),
        {"margin": 1.2},
    ),
    "multi_similarity": Row("multi_similarity", losses.MultiSimilarityLoss),
    "multi_similarity, other settings": Row(
        "multi_similarity",
        lambda: losses.MultiSimilarityLoss(alpha=5, beta=20, base=0.2),
        ours={"alpha": 5.0, "beta": 20.0, "base": 0.2},
    ),
    "multi_similarity, mined": Row(
        "multi_similarity",
        lambda: Mined(losses.MultiSimilarityLoss(), miners.MultiSimilarityMiner(epsilon=0.1)),
        ("mates", "balanced"),
        {"mining": "multi_similarity"},
    ),
    "infonce": Row("infonce", lambda: losses.NTXentLoss(temperature=0.1), ("both", "balanced")),
    "infonce, temperature 0.5": Row(
        "infonce", lambda: losses.NTXentLoss(temperature=0.5), ("both",), {"temperature": 0.5}
    ),
    "supcon": Row("supcon", lambda: losses.SupConLoss(temperature=0.1), ("both", "balanced")),
    "snca": Row(
        "snca",
        lambda: losses.NCALoss(softmax_scale=20, distance=Cosine()),
        ("both", "balanced"),
    ),
    "circle": Row("circle", losses.CircleLoss, ("both", "balanced")),
    "circle, for faces": Row(
        "circle",
        lambda: losses.CircleLoss(m=0.25, gamma=256),
        ("mates",),
        {"margin": 0.25, "scale": 256.0},
    ),
    "margin, one triplet an anchor": Row(
        "margin",
        lambda: Mined(losses.MarginLoss(), miners.BatchHardMiner()),
        ("mates", "balanced"),
        {"mining": "hard"},
    ),
    # triplets
    "triplet": Row("triplet", lambda: losses.TripletMarginLoss(margin=0.2), ("both", "balanced")),
    "triplet, margin 1": Row(
        "triplet", lambda: losses.TripletMarginLoss(margin=1), ("both",), {"margin": 1.0}
    ),
    "triplet_semi_hard, the triplets given": Row(
        "triplet_semi_hard",
        lambda: TripletsGiven(
            losses.TripletMarginLoss(margin=0.2, distance=Distance(power=2), reducer=Mean()),
            semi_hard_triplets,
        ),
        ("both", "balanced"),
    ),
    "triplet_hard": Row(
        "triplet_hard",
        lambda: Mined(
            losses.TripletMarginLoss(margin=0.2, reducer=Mean()), miners.BatchHardMiner()
        ),
        ("both", "balanced"),
    ),
    "triplet_soft_margin": Row(
        "triplet_soft_margin",
        lambda: losses.TripletMarginLoss(margin=0, smooth_loss=True, reducer=Mean()),
        ("both", "balanced"),
    ),
    "triplet_soft_margin, batch hard": Row(
        "triplet_soft_margin",
        lambda: Mined(
            losses.TripletMarginLoss(margin=0, smooth_loss=True, reducer=Mean()),
            miners.BatchHardMiner(),
        ),
        ("both", "balanced"),
        {"mining": "hard"},
    ),
    "easy_positive_hard_negative": Row(
        "easy_positive_hard_negative", easy("hard"), ("mates, acute", "both, acute")
    ),
    "easy_positive_semi_hard_negative": Row(
        "easy_positive_semi_hard_negative", easy("semihard"), ("mates, acute", "both, acute")
    ),
    # structured
    "lifted_structure": Row("lifted_structure", losses.LiftedStructureLoss, ("both", "balanced")),
    "lifted_structure, margin 2": Row(
        "lifted_structure",
        lambda: losses.LiftedStructureLoss(neg_margin=2),
        ("both",),
        {"margin": 2.0},
    ),
    "generalized_lifted": Row(
        "generalized_lifted", losses.GeneralizedLiftedStructureLoss, ("mates", "balanced")
    ),
    "angular, of unit rows": Row(
        "angular", lambda: OfUnitRows(losses.AngularLoss(alpha=45)), ("both", "balanced")
    ),
    "angular, of unit rows, 36 degrees": Row(
        "angular", lambda: OfUnitRows(losses.AngularLoss(alpha=36)), ("both",), {"angle": 36.0}
    ),
    # neighbors
    "nca": Row("nca", losses.NCALoss, ("both", "balanced")),
    "nca, temperature 0.2": Row(
        "nca", lambda: losses.NCALoss(softmax_scale=5), ("both",), {"temperature": 0.2}
    ),
    "n_pairs": Row(
        "n_pairs",
        lambda: losses.NPairsLoss(
            distance=distances.DotProductSimilarity(normalize_embeddings=False)
        ),
        ("both", "balanced"),
        {"norm_weight": 0.0},
    ),
    "n_pairs of unit rows": Row(
        "n_pairs",
        losses.NPairsLoss,
        ("both", "balanced"),
        {"norm_weight": 0.0, "closeness": "cosine"},
    ),
    "tuplet_margin": Row("tuplet_margin", losses.TupletMarginLoss, ("both", "balanced")),
    # ranking
    "histogram": Row("histogram", lambda: losses.HistogramLoss(n_bins=100), ("one alone", "mates")),
    "histogram, 7 bins": Row(
        "histogram", lambda: losses.HistogramLoss(n_bins=7), ("mates",), {"bins": 7}
    ),
    "fast_ap": Row("fast_ap", lambda: losses.FastAPLoss(num_bins=10), ("both", "balanced")),
    "fast_ap, 25 bins": Row(
        "fast_ap", lambda: losses.FastAPLoss(num_bins=25), ("both",), {"bins": 25}
    ),
    "smooth_ap, each row its own hit": Row(
        itself_too,
        lambda: losses.SmoothAPLoss(temperature=0.05),
        ("as many rows as classes, in order",),
    ),
    # proxies and classes
    "proxy_anchor": Row("proxy_anchor", over_classes(losses.ProxyAnchorLoss), kept="proxies"),
    "proxy_nca_plus_plus": Row(
        "proxy_nca_plus_plus", over_classes(losses.ProxyNCALoss, softmax_scale=9), kept="proxies"
    ),
    "proxy_nca_plus_plus, scale 1": Row(
        "proxy_nca_plus_plus",
        over_classes(losses.ProxyNCALoss),
        ours={"scale": 1.0},
        kept="proxies",
    ),
    "norm_softmax": Row("norm_softmax", over_classes(losses.NormalizedSoftmaxLoss), kept="W"),
    "cosface": Row("cosface", over_classes(losses.CosFaceLoss, margin=0.35, scale=64), kept="W"),
    "arcface": Row("arcface", over_classes(losses.ArcFaceLoss, margin=RADIANS, scale=64), kept="W"),
    "sub_center_arcface": Row(
        "sub_center_arcface",
        over_classes(losses.SubCenterArcFaceLoss, margin=RADIANS, scale=64, sub_centers=3),
        kept="W",
    ),
    "soft_triple, its spread left out": Row(
        "soft_triple", over_classes(losses.SoftTripleLoss), ours={"spread": 0.0}, kept="fc"
    ),
}
CASES = [(name, kind) for name, row in PARITY.items() for kind in row.batches]


# --- the comparison


def ours_of(row: Row, classes: int, dim: int) -> torch.nn.Module:
    facts = {"classes": classes, "dim": dim} if row.kept else {}
    return criterion(row.loss, **facts, **row.ours).double()


def theirs_of(row: Row, mine: torch.nn.Module, classes: int, dim: int) -> torch.nn.Module:
    """The peer, with the values of our parameters."""
    if not row.kept:
        return row.theirs()
    module = row.theirs(classes, dim).double()
    (vectors,) = mine.parameters()
    random = torch.Generator().manual_seed(9)
    with torch.no_grad():
        vectors.copy_(torch.randn(vectors.shape, generator=random, dtype=torch.float64))
        kept = getattr(module, row.kept)
        kept.copy_(vectors.T if row.kept in TURNED else vectors)
    return module


TURNED = {"W", "fc"}  # the peer keeps these with classes as columns


def slopes(module, z, label, kept="") -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The value, its gradient to the rows and to what a module keeps."""
    z = z.detach().clone().requires_grad_()
    value = module(z, label)
    found = torch.autograd.grad(value, [z, *module.parameters()])
    return value.detach(), [g.T if kept in TURNED and i else g for i, g in enumerate(found)]


@pytest.mark.parametrize(("name", "kind"), CASES, ids=[f"{n}-{k}" for n, k in CASES])
def test_value_and_gradient_coincide(name, kind):
    row = PARITY[name]
    for seed in range(10):
        z, label = drawn(kind, seed)
        classes = int(label.max()) + 1 + seed % 3
        mine = ours_of(row, classes, z.shape[1])
        theirs = theirs_of(row, mine, classes, z.shape[1])
        value, found = slopes(mine, z, label)
        expected, wanted = slopes(theirs, z, label, row.kept)
        torch.testing.assert_close(value, expected, rtol=1e-8, atol=1e-9)
        for a, b in zip(found, wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)


# --- where they do not coincide


def both(mine, theirs, kind, seed=0):
    """Our value and theirs on one batch, and their gradients."""
    z, label = drawn(kind, seed)
    (a, (da, *_)), (b, (db, *_)) = slopes(mine, z, label), slopes(theirs, z, label)
    return a.item(), b.item(), da, db


def test_its_contrastive_differs_because_it_does_not_square_and_leaves_zeros_out_of_its_means():
    ours, theirs, *_ = both(criterion("contrastive"), losses.ContrastiveLoss(), "both")
    assert ours != pytest.approx(theirs, rel=1e-2)
    # Its own hinges are those of the margin loss; ours has one divisor for both sides.
    z, label = drawn("both", 0)
    summed = losses.ContrastiveLoss(reducer=reducers.SumReducer())(z, label)
    d = torch.cdist(F.normalize(z), F.normalize(z))
    open_ = ((label[:, None] != label) & (d < 1)) | (label[:, None] == label)
    open_ &= ~torch.eye(len(z), dtype=torch.bool)
    torch.testing.assert_close(criterion(bare_hinges)(z, label) * open_.sum(), summed)


def test_its_margin_loss_differs_because_it_counts_a_pair_once_for_each_of_its_triplets():
    z, label = drawn("balanced", 1)
    counts = label.bincount()[label]
    rows = F.normalize(z)
    d = torch.cdist(rows, rows)
    same = (label[:, None] == label) & ~torch.eye(len(z), dtype=torch.bool)
    near = torch.where(same, (d - 1).relu(), 0.0)
    far = torch.where(label[:, None] != label, (1.4 - d).relu(), 0.0)
    ours = (near.sum() + far.sum()) / ((near > 0).sum() + (far > 0).sum())
    torch.testing.assert_close(criterion("margin")(z, label), ours)
    positives, negatives = (counts - 1)[:, None], (len(z) - counts)[:, None]
    theirs = (near * negatives).sum() + (far * positives).sum()
    theirs = theirs / (((near > 0) * negatives).sum() + ((far > 0) * positives).sum())
    torch.testing.assert_close(losses.MarginLoss()(z, label), theirs)
    assert ours.item() != pytest.approx(theirs.item(), rel=1e-2)


def test_its_semi_hard_triplets_differ_because_it_keeps_all_within_the_margin():
    def within(d, label):
        found = [
            (a, p, n)
            for a in range(len(d))
            for p in range(len(d))
            for n in range(len(d))
            if p != a and label[p] == label[a] != label[n] and 0 < d[a, n] - d[a, p] <= 0.2
        ]
        return tuple(torch.tensor(found).T)

    loss = losses.TripletMarginLoss(margin=0.2)
    miner = miners.TripletMarginMiner(margin=0.2, type_of_triplets="semihard")
    z, label = drawn("balanced", 3)
    theirs = Mined(loss, miner)(z, label)
    torch.testing.assert_close(theirs, TripletsGiven(loss, within)(z, label))
    assert criterion("triplet_semi_hard")(z, label).item() != pytest.approx(theirs.item(), rel=1e-2)


def test_its_easy_positives_differ_because_it_keeps_similarities_below_zero():
    for negatives in ("hard", "semi_hard"):
        mine = criterion(f"easy_positive_{negatives}_negative")
        ours, theirs, *_ = both(mine, easy(negatives.replace("_", ""))(), "balanced", 2)
        assert ours != pytest.approx(theirs, rel=1e-2)


@pytest.mark.filterwarnings("ignore:a batch holds one class only")
def test_its_supcon_differs_because_without_negatives_it_is_zero():
    z, _ = drawn("mates", 0)
    label = torch.zeros(len(z), dtype=torch.int64)
    assert losses.SupConLoss()(z, label).item() == 0
    assert criterion("supcon")(z, label).item() > 0


def test_its_histogram_differs_because_pairs_of_two_rows_that_are_alone_are_not_counted():
    z, label = drawn("mates", 0)
    label[:2] = torch.tensor([90, 91])
    mine, theirs = criterion("histogram"), losses.HistogramLoss(n_bins=100)
    assert mine(z, label).item() != pytest.approx(theirs(z, label).item(), rel=1e-6)


def test_its_smooth_ap_differs_because_a_row_is_its_own_first_hit():
    kind = "as many rows as classes, in order"
    ours, theirs, *_ = both(
        criterion("smooth_ap", temperature=0.05), losses.SmoothAPLoss(temperature=0.05), kind, 2
    )
    assert theirs < ours * 0.9


def test_its_smooth_ap_differs_because_it_groups_rows_by_the_number_of_classes():
    # Classes 0 0 1 1 2 2, read as the two groups 0 0 1 and 1 2 2.
    z, _ = drawn("balanced", 0)
    z, label = z[:6], torch.tensor([0, 0, 1, 1, 2, 2])
    theirs = losses.SmoothAPLoss(temperature=0.05)
    read = torch.tensor([0, 0, 0, 1, 1, 1])
    wrong, right = criterion(itself_too)(z, read), criterion(itself_too)(z, label)
    torch.testing.assert_close(theirs(z, label), wrong)
    assert right.item() != pytest.approx(wrong.item(), rel=1e-2)


def test_its_ranked_list_differs_because_it_differentiates_its_weights():
    mine = criterion("ranked_list", margin=0.4, boundary=1.2, temperature=4.0)
    theirs = losses.RankedListLoss(margin=0.4, Tn=4)
    for seed in range(5):
        ours, value, slope, other = both(mine, theirs, "balanced", seed)
        assert ours == pytest.approx(value, rel=1e-3)  # it adds 1e-5 for each row to its divisors
        assert (slope - other).norm() > 0.01 * other.norm()


def test_its_n_pairs_differs_because_it_takes_unit_rows_and_has_no_regularizer():
    z, label = drawn("mates", 1)
    first = torch.stack([(label == k).nonzero()[:2, 0] for k in label.unique()])
    f, g = z[first].unbind(1)
    norms = 0.0005 * (f.square().sum(1).mean() + g.square().sum(1).mean())
    plain = losses.NPairsLoss(distance=distances.DotProductSimilarity(normalize_embeddings=False))
    torch.testing.assert_close(criterion("n_pairs")(z, label), plain(z, label) + norms)
    assert losses.NPairsLoss()(z, label).item() != pytest.approx(plain(z, label).item(), rel=1e-2)


def test_its_pair_losses_differ_because_one_pair_of_each_kind_scores_zero():
    # Two rows of a class and one of another, mined down to one positive and one negative.
    z = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
    label, kept = torch.tensor([0, 0, 1]), torch.zeros(3, 3, dtype=torch.bool)
    kept[0, 1:] = True
    first = [torch.tensor([i]) for i in (0, 1, 0, 2)]
    assert losses.MultiSimilarityLoss()(z, label, first).item() == 0
    mine = criterion("multi_similarity", mining=lambda c: replace(c, allowed=kept))
    assert mine(z, label).item() > 0.05


def test_its_angular_differs_because_it_leaves_the_negatives_as_long_as_they_are():
    plain = losses.AngularLoss(alpha=45)
    ours, theirs, *_ = both(criterion("angular", angle=45.0), plain, "balanced")
    assert ours != pytest.approx(theirs, rel=1e-2)


def test_its_proxy_nca_differs_because_the_own_proxy_is_in_its_sum():
    z, label = drawn("any", 1)
    classes, dim = int(label.max()) + 1, z.shape[1]
    mine = criterion("proxy_nca", classes=classes, dim=dim).double()
    theirs = losses.ProxyNCALoss(classes, dim, reducer=reducers.DoNothingReducer())
    with torch.no_grad():
        theirs.proxies.copy_(next(mine.parameters()))
    each = theirs(z, label)["loss"]["losses"]
    torch.testing.assert_close(mine(z, label), each.expm1().log().mean())


def test_its_soft_triple_differs_because_the_spread_of_centers_is_a_regularizer_to_add():
    z, label = drawn("balanced", 1)
    classes = int(label.max()) + 1
    row = replace(PARITY["soft_triple, its spread left out"], ours={})
    mine = ours_of(row, classes, z.shape[1])
    plain = theirs_of(row, mine, classes, z.shape[1])
    added = regularizers.SparseCentersRegularizer(classes, 10)
    settings = {"weight_regularizer": added, "weight_reg_weight": 0.2}
    whole = theirs_of(
        replace(row, theirs=over_classes(losses.SoftTripleLoss, **settings)),
        mine,
        classes,
        z.shape[1],
    )
    assert mine(z, label).item() > plain(z, label).item() + 0.01
    # It has 1e-6 under the root and its sums.
    torch.testing.assert_close(mine(z, label), whole(z, label), rtol=1e-4, atol=0)


def test_its_generalized_lifted_differs_because_rows_that_are_alone_count_in_its_mean():
    z, label = drawn("one alone", 0)
    alone = label == 0
    assert alone.sum() == 1
    rows = F.normalize(z)
    d = torch.cdist(rows[alone], rows[~alone])
    apart = (1 - d).logsumexp(1).relu().sum()
    mine = criterion("generalized_lifted")(z, label) * (len(z) - 1)
    theirs = losses.GeneralizedLiftedStructureLoss()(z, label) * len(z)
    torch.testing.assert_close(theirs, mine + apart)


def test_its_memory_differs_because_no_gradient_reaches_a_row_through_the_others():
    mine = criterion("multi_similarity", memory=120, dim=6).double()
    theirs = losses.CrossBatchMemory(losses.MultiSimilarityLoss(), 6, memory_size=120).double()
    alone = criterion("multi_similarity")
    random = torch.Generator().manual_seed(0)
    for turn in range(3):
        z = torch.randn(30, 6, generator=random, dtype=torch.float64)
        label = torch.randint(5, (30,), generator=random)
        value, (slope,) = slopes(mine, z, label)
        expected, (other,) = slopes(theirs, z, label)
        torch.testing.assert_close(value, expected)
        assert (slope - other).norm() > 0.1 * slope.norm()
        if turn == 0:
            # Nothing is remembered yet: ours is the loss of the batch.
            torch.testing.assert_close(slope, slopes(alone, z, label)[1][0])


def test_a_peer_has_a_line_here_wherever_the_two_coincide():
    """Losses that have no line are those of which the peer has none, or that it defines
    otherwise."""
    lines = {row.loss for row in PARITY.values() if isinstance(row.loss, str)}
    missing = set(catalog.scan(catalog.kind_named("loss"))) - lines
    assert missing == {*WITHOUT_PEER, *OTHERWISE}


WITHOUT_PEER = {
    "alignment_uniformity",
    "angular_hinge",
    "binomial_deviance",
    "cross_entropy",
    "donsker_varadhan",
    "interpolated",
    "js_kl",
    "jsd",
    "nwj",
    "quadruplet",
    "recall_at_k",
    "sigmoid",
    "smile",
    "spce",
    "tuba",
}
OTHERWISE = {"proxy_nca", "ranked_list", "smooth_ap"}
