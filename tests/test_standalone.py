"""criterion and objective in a loop of one's own: what they take, give and refuse."""

import copy
import functools
import io

import numpy as np
import pytest
import torch
from torch import nn

import nearkin as nk
from nearkin import catalog
from nearkin.compare import InBatch
from nearkin.core import Batch, Comparison, Terms, home, home_of
from nearkin.losses.pairwise import contrastive
from nearkin.mining import hard, multi_similarity, semi_hard
from nearkin.reduce import mean

pytestmark = pytest.mark.filterwarnings("ignore:n_pairs takes the first two rows")

LOSSES = sorted(catalog.scan(catalog.kind_named("loss")))
CLASS_LOSSES = {
    name: home_of(loss).compare
    for name, loss in catalog.scan(catalog.kind_named("loss")).items()
    if home_of(loss).compare in ("proxies", "classifier")
}
OF_BOTH_ENDS = ["angular", "angular_hinge", "lifted_structure", "quadruplet"]
DIM, CLASSES = 6, 4


def rows(n=12, dim=DIM, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, dim, generator=generator, requires_grad=True)


def labels(n=12, classes=CLASSES):
    return torch.arange(n) % classes


def value(x):
    return x.detach().item()


def made(name, **settings):
    """A criterion whose parameters are drawn from a seed."""
    torch.manual_seed(0)
    return nk.criterion(name, classes=CLASSES, dim=DIM, **settings)


def squared(c: Comparison, *, margin: float = 0.0) -> Terms:
    """A loss of one's own."""
    s = c.similarity
    return Terms(
        tightness=mean((1 - s) ** 2, c.same),
        contrast=mean((s - margin).clamp_min(0) ** 2, c.different),
    )


# --- every loss by its name


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_scores_a_batch_and_teaches_the_encoder(name):
    criterion, z = made(name), rows()
    loss = criterion(z, labels())
    assert loss.ndim == 0
    assert torch.isfinite(loss)
    loss.backward()
    # A classifier starts at 0 and has nothing to say to the encoder before its first step.
    assert bool(z.grad.any()) == (name != "cross_entropy")


@pytest.mark.parametrize("name", LOSSES)
def test_the_loss_is_the_sum_of_its_terms(name):
    criterion, z = made(name).eval(), rows()
    terms = criterion.terms(z, labels())
    assert isinstance(terms, Terms)
    assert torch.equal(criterion(z, labels()), terms.total)
    parts = terms.tightness + terms.contrast + sum(terms.other.values())
    assert value(terms.total) == pytest.approx(value(parts))


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_lives_where_its_home_says(name):
    home = home_of(catalog.scan(catalog.kind_named("loss"))[name])
    compare = made(name).compared.compare
    assert compare.name == home.compare
    assert compare.closeness == home.closeness


@pytest.mark.parametrize("name", sorted(CLASS_LOSSES))
def test_what_a_loss_owns_are_parameters_of_the_criterion(name):
    criterion = made(name)
    (kept,) = [p for p in criterion.parameters() if p.ndim == 2]
    assert len(kept) % CLASSES == 0
    assert kept.shape[1] == DIM
    criterion(rows(), labels()).backward()
    assert all(p.grad is not None for p in criterion.parameters())


@pytest.mark.parametrize("name", sorted(set(LOSSES) - set(CLASS_LOSSES)))
def test_losses_over_rows_own_nothing(name):
    assert list(made(name).parameters()) == []


def test_settings_reach_the_loss():
    z, y = rows(), labels()
    s = torch.nn.functional.normalize(z, dim=1)
    s = s @ s.T
    same = (y[:, None] == y[None]) & ~torch.eye(len(y), dtype=torch.bool)
    a, b, base = 3.0, 20.0, 0.2
    pull = torch.where(same, torch.exp(-a * (s - base)), 0).sum(1).log1p().mean() / a
    push = (torch.where(y[:, None] != y[None], torch.exp(b * (s - base)), 0).sum(1)).log1p()
    loss = nk.criterion("multi_similarity", alpha=a, beta=b, base=base)(z, y)
    assert value(loss) == pytest.approx(value(pull + push.mean() / b), rel=1e-5)


def test_print_tells_the_loss_and_its_settings():
    assert "infonce(temperature=0.5)" in str(nk.criterion("infonce", temperature=0.5))


# --- closeness, mining, memory


def test_closeness_replaces_that_of_the_loss():
    z, y = rows(), labels()
    loss = nk.criterion("contrastive", closeness="euclidean")(z, y)
    d2 = torch.cdist(z, z).square()
    same = (y[:, None] == y[None]) & ~torch.eye(len(y), dtype=torch.bool)
    near = (1 - d2.clamp_min(1e-9).sqrt()).clamp_min(0).square()
    expected = (d2 * same).sum() / 12 + (near * (y[:, None] != y[None])).sum() / 12
    assert value(loss) == pytest.approx(value(expected), rel=1e-4)


def test_a_classifier_by_another_closeness_compares_with_proxies():
    criterion = made("cross_entropy", closeness="cosine")
    assert criterion.compared.compare.name == "proxies"
    u, w = (nn.functional.normalize(x, dim=1) for x in (rows(), criterion.compared.compare.vectors))
    expected = nn.functional.cross_entropy(u @ w.T, labels())
    assert value(criterion(rows(), labels())) == pytest.approx(value(expected), rel=1e-5)


@pytest.mark.parametrize(
    ("mining", "meant"),
    [
        ("hard", hard),
        ({"hard": None}, hard),
        ({"multi_similarity": {"epsilon": 0.5}}, lambda c: multi_similarity(c, epsilon=0.5)),
        (semi_hard, semi_hard),
    ],
)
def test_mining_is_a_name_a_node_or_a_function(mining, meant):
    z, y = rows(), labels()
    mined = nk.criterion("contrastive", mining=mining)(z, y)
    whole = InBatch("cosine")(z, Batch(None, label=y))
    assert torch.equal(mined, contrastive(meant(whole)).total)


def test_mining_of_ones_own_narrows_the_comparison():
    seen = []

    def everything(c):
        seen.append(c.shape)
        return c

    z, y = rows(), labels()
    own = nk.criterion("supcon", mining=everything)
    assert torch.equal(own(z, y), nk.criterion("supcon")(z, y))
    assert seen == [(12, 12)]


def test_a_memory_compares_with_the_batches_before():
    criterion = nk.criterion("contrastive", memory=24, dim=DIM)
    first, second, y = rows(seed=1), rows(seed=2), labels()
    alone = nk.criterion("contrastive")
    assert torch.allclose(criterion(first, y), alone(first, y))
    both = criterion(second, y)
    against_first = alone(second, y, references=first.detach(), reference_labels=y)
    assert torch.allclose(both, alone(second, y) + against_first, rtol=1e-5)
    assert criterion.compared.compare.written == 24


@pytest.mark.parametrize("name", OF_BOTH_ENDS)
def test_a_loss_that_reads_both_ends_of_a_pair_takes_no_memory(name):
    with pytest.raises(ValueError, match="both ends of a pair"):
        nk.criterion(name, memory=24, dim=DIM)(rows(), labels())


@pytest.mark.parametrize("name", sorted(set(LOSSES) - {*CLASS_LOSSES, *OF_BOTH_ENDS, "spce"}))
def test_empty_places_of_a_memory_do_not_count(name):
    first, second, y = rows(seed=1).double(), rows(seed=2).double().detach(), labels()
    second.requires_grad_()
    found = []
    for size in (12, 100):
        criterion = nk.criterion(name, memory=size, dim=DIM).double()
        criterion(first, y)
        loss = criterion(second, y)
        found.append((value(loss), *torch.autograd.grad(loss, second)))
    (small, slope), (large, other) = found
    assert large == pytest.approx(small, rel=1e-9)
    torch.testing.assert_close(other, slope)
    assert value(nk.criterion(name)(second, y)) != pytest.approx(small, rel=1e-6)


def test_a_memory_takes_nothing_in_while_evaluating():
    criterion = nk.criterion("infonce", memory=24, dim=DIM).eval()
    criterion(rows(), labels())
    assert criterion.compared.compare.written == 0


def test_a_memory_survives_save_and_load_with_string_labels():
    names = ["fox", "owl", "elk"] * 4
    one = nk.criterion("infonce", memory=24, dim=DIM)
    one(rows(seed=1), names)
    other = nk.criterion("infonce", memory=24, dim=DIM)
    other(rows(seed=3), names[::-1])  # these come in another order
    other.load_state_dict(one.state_dict())
    z = rows(seed=2)
    assert torch.equal(one(z, names), other(z, names))


def test_gather_in_one_process_changes_nothing():
    z, y = rows(), labels()
    assert torch.equal(nk.criterion("infonce", gather=True)(z, y), nk.criterion("infonce")(z, y))


# --- labels


@pytest.mark.parametrize(
    "form",
    [
        lambda y: y.tolist(),
        lambda y: tuple(y.tolist()),
        lambda y: y.numpy(),
        lambda y: y.numpy().astype(np.uint8),
        lambda y: y.numpy()[::1].copy()[::-1][::-1],
        lambda y: y.to(torch.int32),
        list,
        lambda y: [f"class {i}" for i in y.tolist()],
        lambda y: np.array([f"class {i}" for i in y.tolist()]),
        lambda y: np.array([f"class {i}" for i in y.tolist()], dtype=object),
        lambda y: [f"{i}".encode() for i in y.tolist()],
        lambda y: y - 2**62,
        lambda y: y + (2**63 - 10),
        lambda y: y.numpy().astype(np.uint64) + np.uint64(2**63 + 5),
        lambda y: [i + 2**80 for i in y.tolist()],
        lambda y: nn.functional.one_hot(y).bool(),
        nn.functional.one_hot,
        lambda y: nn.functional.one_hot(y).tolist(),
    ],
)
def test_losses_over_rows_take_labels_of_any_form(form):
    z, y = rows(), labels()
    criterion = nk.criterion("contrastive")
    assert torch.equal(criterion(z, form(y)), criterion(z, y))


def test_neighboring_ids_beyond_float_precision_are_different_classes():
    z = rows(4)
    ids = torch.tensor([2**60, 2**60, 2**60 + 1, 2**60 + 1])
    assert torch.equal(
        nk.criterion("supcon")(z, ids), nk.criterion("supcon")(z, torch.tensor([0, 0, 1, 1]))
    )


def test_multi_hot_rows_are_the_same_where_they_share_a_label():
    z = rows(3)
    hot = torch.tensor([[1, 1, 0], [0, 1, 1], [1, 0, 0]])
    terms = nk.criterion("contrastive").terms(z, hot)
    u = nn.functional.normalize(z, dim=1)
    d2 = 2 - 2 * u @ u.T
    # 0 shares with 1 and with 2; 1 and 2 share nothing.
    assert value(terms.tightness) == pytest.approx(value(2 * (d2[0, 1] + d2[0, 2]) / 3), rel=1e-5)


@pytest.mark.parametrize("name", sorted(CLASS_LOSSES))
def test_named_classes_stand_for_their_numbers(name):
    names = ["ash", "birch", "cedar", "dogwood"]
    torch.manual_seed(0)
    by_name = nk.criterion(name, classes=names, dim=DIM)
    z, y = rows(), labels()
    said = [names[i] for i in y.tolist()]
    assert torch.equal(by_name(z, said), made(name)(z, y))
    assert torch.equal(by_name(z, y), made(name)(z, y))  # numbers are numbers all the same


def test_multi_hot_labels_go_with_proxies_of_their_width():
    hot = nn.functional.one_hot(labels(), CLASSES)
    assert torch.allclose(made("proxy_anchor")(rows(), hot), made("proxy_anchor")(rows(), labels()))
    with pytest.raises(ValueError, match="width 3 meet 4 classes"):
        made("proxy_anchor")(rows(), hot[:, :3])


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (torch.zeros(12), "never floats"),
        (nn.functional.one_hot(labels()).float(), "never floats: convert them with .long"),
        (np.zeros((12, 1), np.int64), r"give labels\[:, 0\]"),
        ([[1]] * 12, r"\(N,\), one class a row"),
        (np.zeros(12, np.float32), "integers or texts"),
        ([0.5] * 12, "integers or texts"),
        (torch.zeros(12, dtype=torch.complex64), "complex"),
        (torch.zeros(12, dtype=torch.bool), "a match bit is no class label"),
        ([True, False] * 6, "a match bit is no class label"),
        (torch.zeros(11, dtype=torch.int64), "11 labels for 12 rows"),
        (["a"] * 13, "13 entries but the batch has 12 rows"),
        (torch.zeros(12, 1, dtype=torch.int64), r"give labels\[:, 0\]"),
        (torch.zeros(12, 2, 2, dtype=torch.int64), r"not of shape \(12, 2, 2\)"),
        (torch.tensor(3), r"not of shape \(\)"),
        (torch.full((12, 3), 2), "multi-hot labels must hold 0 and 1 only"),
        ([[1, 2]] * 12, "must be multi-hot"),
        ([[1, 2], [3]] * 6, "cannot be read|inhomogeneous"),
        ([1, "1"] * 6, "all integers or all texts"),
        (["a", None] * 6, "label 1 is None"),
        (np.array(["2020-01-01"] * 12, dtype="datetime64[D]"), "integers or texts"),
        (None, "one label a row"),
        ("abcdefghijkl", "one label a row"),
        (7, "one label a row"),
    ],
)
def test_other_labels_are_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        nk.criterion("infonce")(rows(), wrong)


@pytest.mark.parametrize(("label", "seen"), [(CLASSES, CLASSES), (-1, -1)])
@pytest.mark.parametrize("name", sorted(CLASS_LOSSES))
def test_a_label_out_of_range_is_named(name, label, seen):
    y = labels()
    y[5] = label
    with pytest.raises(ValueError, match=rf"label {seen} is out of range.*0\.\.3"):
        made(name)(rows(), y)


def test_strings_need_names_where_something_is_kept_for_each_class():
    with pytest.raises(ValueError, match="classes must be named: classes="):
        made("proxy_anchor")(rows(), ["a", "b"] * 6)
    nk.criterion("spce")(rows(), ["a", "b"] * 6)  # its centers are those of the batch


def test_a_string_that_is_no_class_is_named_with_the_nearest_one():
    criterion = nk.criterion("proxy_anchor", classes=["tiger", "zebra"], dim=DIM)
    with pytest.raises(ValueError, match=r"'tigre' is none of the 2 classes.*'tiger'"):
        criterion(rows(4), ["tiger", "zebra", "tigre", "zebra"])


# --- embeddings


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (torch.zeros(12), r"floating tensor \(N, D\), not \(12,\)"),
        (torch.zeros(12, 2, 3), r"not \(12, 2, 3\)"),
        (torch.zeros(12, 6, dtype=torch.int64), "not .* torch.int64"),
        (np.zeros((12, 6)), "not ndarray"),
        ([[0.0] * 6] * 12, "not list"),
        (torch.full((12, 6), torch.nan), "NaN or infinity .first in row 0"),
        (torch.cat([torch.ones(7, 6), torch.full((5, 6), torch.inf)]), "first in row 7"),
    ],
)
def test_other_embeddings_are_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        nk.criterion("infonce")(wrong, labels())


def test_embeddings_of_another_width_than_the_proxies_are_refused():
    with pytest.raises(ValueError, match="5 dimensions meet references of 6; set dim to 5"):
        made("proxy_anchor")(rows(dim=5), labels())


@pytest.mark.parametrize("name", LOSSES)
def test_bfloat16_is_scored_in_float32_and_float64_in_itself(name):
    loss = made(name)(rows().to(torch.bfloat16), labels())
    assert loss.dtype == torch.float32
    criterion = made(name).double()
    assert criterion(rows().double(), labels()).dtype == torch.float64


def test_embeddings_of_another_width_than_the_memory_are_refused():
    criterion = nk.criterion("infonce", memory=8, dim=DIM)
    with pytest.raises(ValueError, match="5 dimensions meet references of 6; set dim to 5"):
        criterion(rows(dim=5), labels())


def test_float64_embeddings_and_float32_proxies_are_told_what_to_do():
    with pytest.raises(ValueError, match=r"float64.*float32.*bring them together with \.to\("):
        made("proxy_anchor")(rows().double(), labels())


def test_another_device_is_told():
    criterion = made("proxy_anchor").to("meta")
    with pytest.raises(ValueError, match=r"on cpu meet parameters .* on meta.*\.to\('cpu'"):
        criterion(rows(), labels())


# --- references


def test_references_are_other_rows_than_the_batch():
    z, zr = rows(5, seed=1), rows(7, seed=2)
    y, yr = torch.tensor([0, 0, 1, 1, 2]), torch.tensor([0, 1, 2, 0, 1, 2, 0])
    terms = nk.criterion("contrastive").terms(z, y, references=zr, reference_labels=yr)
    u, ur = nn.functional.normalize(z, dim=1), nn.functional.normalize(zr, dim=1)
    d2 = 2 - 2 * u @ ur.T
    same = y[:, None] == yr[None]
    assert value(terms.tightness) == pytest.approx(value((d2 * same).sum() / 5), rel=1e-5)
    terms.total.backward()
    assert z.grad.any()
    assert zr.grad.any()


def test_references_and_anchors_share_the_code_of_strings():
    z, zr = rows(4, seed=1), rows(4, seed=2)
    criterion = nk.criterion("supcon", mining="hard")
    by_text = criterion(
        z, ["a", "b", "c", "a"], references=zr, reference_labels=["c", "b", "a", "a"]
    )
    by_code = criterion(z, [0, 1, 2, 0], references=zr, reference_labels=[2, 1, 0, 0])
    assert torch.equal(by_text, by_code)


def test_references_that_are_the_embeddings_raise():
    z, y = rows(), labels()
    for same in (z, z.detach(), z[:]):
        with pytest.raises(ValueError, match="references are the embeddings themselves"):
            nk.criterion("infonce")(z, y, references=same, reference_labels=y)


def test_references_that_contain_the_embeddings_raise():
    both, y = rows(24), labels()
    for anchors in (both[:12], both[6:18], both[::2]):
        with pytest.raises(ValueError, match=r"references contain the embeddings .*take them out"):
            nk.criterion("infonce")(anchors, y, references=both, reference_labels=torch.cat([y, y]))
    # Two halves of one pass through the encoder share a storage and no row.
    for anchors, references in ((both[:12], both[12:]), (both[::2], both[1::2])):
        nk.criterion("infonce")(anchors, y, references=references, reference_labels=y)


def test_references_that_copy_the_embeddings_are_told_of_once():
    z, y, criterion = rows(), labels(), nk.criterion("infonce")
    with pytest.warns(UserWarning, match="references equal the embeddings row by row"):
        criterion(z, y, references=z.detach().clone(), reference_labels=y)
    criterion(z, y, references=z.detach().clone(), reference_labels=y)


def test_references_of_another_kind_of_labels_are_refused():
    said = "labels are integers, but reference_labels are texts; give both of one kind"
    with pytest.raises(ValueError, match=said):
        nk.criterion("infonce")(
            rows(), labels(), references=rows(3, seed=9), reference_labels=["0", "1", "2"]
        )


def test_classes_and_dim_are_held_to_for_losses_over_rows_too():
    z, y = rows(), labels()
    nk.criterion("infonce", classes=4, dim=DIM)(z, y)
    nk.criterion("infonce", classes=4)(z, [f"class {i}" for i in y.tolist()])
    with pytest.raises(ValueError, match=r"label 3 is out of range of the classes 0\.\.2"):
        nk.criterion("infonce", classes=3)(z, y)
    with pytest.raises(ValueError, match="multi-hot labels of width 4 meet 3 classes"):
        nk.criterion("infonce", classes=3)(z, nn.functional.one_hot(y))
    with pytest.raises(ValueError, match="embeddings of 6 dimensions, but dim=7; set dim to 6"):
        nk.criterion("infonce", dim=7)(z, y)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"references": torch.zeros(3, 6)}, "references need reference_labels"),
        ({"reference_labels": torch.zeros(3)}, "give both or neither"),
        (
            {"references": torch.ones(3, 5), "reference_labels": [0, 1, 2]},
            "5 dimensions.*do not go with embeddings .6 dimensions",
        ),
        (
            {"references": torch.ones(3, 6).double(), "reference_labels": [0, 1, 2]},
            "float64.*do not go with.*float32",
        ),
        ({"references": torch.ones(3, 6), "reference_labels": [0, 1]}, "reference_labels"),
        (
            {"references": torch.ones(3, 6), "reference_labels": torch.ones(3, 2).bool()},
            "both must be classes, or multi-hot of one width",
        ),
        (
            {"references": torch.full((3, 6), torch.nan), "reference_labels": [0, 1, 2]},
            "references hold NaN",
        ),
        ({"references": [1, 2], "reference_labels": [0, 1]}, "references must be a floating"),
    ],
)
def test_wrong_references_are_refused(given, said):
    with pytest.raises(ValueError, match=said):
        nk.criterion("infonce")(rows(), labels(), **given)


def test_references_without_a_shared_label_warn():
    with pytest.warns(UserWarning, match="no row shares .* with a reference.*number both labels"):
        nk.criterion("infonce")(
            rows(), labels(), references=torch.ones(2, 6), reference_labels=[8, 9]
        )


@pytest.mark.parametrize(
    "criterion",
    [lambda: made("proxy_anchor"), lambda: nk.criterion("infonce", memory=8, dim=DIM)],
)
def test_a_loss_with_references_of_its_own_takes_no_others(criterion):
    with pytest.raises(ValueError, match="references of its own"):
        criterion()(rows(), labels(), references=torch.ones(2, 6), reference_labels=[0, 1])


# --- wrong settings


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: nk.criterion("infonc"), "no loss 'infonc'; did you mean 'infonce'"),
        (lambda: nk.criterion("jensen_shannon"), r"use nearkin.objective\('jensen_shannon'\)"),
        (lambda: nk.criterion("margin", beta="x"), "criterion.margin.beta: expected a number, got"),
        (lambda: nk.criterion("infonce", temprature=1), "did you mean 'temperature'"),
        (lambda: nk.criterion("infonce", temperature="x"), "temperature: expected a number"),
        (lambda: nk.criterion("infonce", temperature=float("nan")), "finite number"),
        (lambda: nk.criterion("infonce", closeness="cosinus"), "did you mean 'cosine'"),
        (lambda: nk.criterion("infonce", mining="hrad"), "did you mean 'hard'"),
        (lambda: nk.criterion("infonce", mining=5), "expected one mining"),
        (
            lambda: nk.criterion("infonce", mining={"multi_similarity": {"epsilo": 1}}),
            "did you mean 'epsilon'",
        ),
        (lambda: nk.criterion("infonce", memory=8), "memory, so criterion needs dim="),
        (lambda: nk.criterion("infonce", memory=0, dim=4), "size >= 1, not 0"),
        (lambda: nk.criterion("infonce", memory=1.5, dim=4), "size: expected an integer"),
        (lambda: nk.criterion("proxy_anchor"), "needs classes=... and dim=..."),
        (lambda: nk.criterion("proxy_anchor", classes=3), "needs dim=..."),
        (lambda: made("proxy_anchor", memory=8), "leave memory out"),
        (lambda: nk.criterion("proxy_anchor", classes=0, dim=4), "at least 1, not 0"),
        (lambda: nk.criterion("proxy_anchor", classes=[], dim=4), "at least 1, not 0"),
        (lambda: nk.criterion("proxy_anchor", classes=2.5, dim=4), "whole number, not 2.5"),
        (lambda: nk.criterion("proxy_anchor", classes=True, dim=4), "whole number, not True"),
        (lambda: nk.criterion("proxy_anchor", classes="abc", dim=4), "whole number, not 'abc'"),
        (lambda: nk.criterion("proxy_anchor", classes=[1, 2], dim=4), "holds names"),
        (lambda: nk.criterion("proxy_anchor", classes=["a", "a"], dim=4), "twice"),
        (lambda: nk.criterion("proxy_anchor", classes=3, dim=-1), "dim must be at least 1"),
        (lambda: nk.criterion("cross_entropy", classes=4, dim=4, label_smoothing=2), "smoothing"),
        (lambda: nk.criterion("infonce", gather="no"), "gather is True or False, not 'no'"),
        (lambda: nk.criterion("infonce", mining=lambda a, b: a), "a mining is called with one Com"),
        (lambda: made("cosface", mining="hard"), "cosface compares with proxies; leave mining out"),
        (lambda: nk.criterion(5), "a name or a function of a Comparison, not 5"),
        (lambda: nk.criterion("pack.age:loss"), "import it and give the function"),
        (lambda: nk.criterion(squared, margin=0.2), "functools.partial"),
        (lambda: nk.criterion(lambda a, b: a), "called with one Comparison.*missing a required"),
        (lambda: nk.criterion(nn.CrossEntropyLoss()), "CrossEntropyLoss does not fit"),
        (lambda: nk.criterion(home("across_views", "cosine")(lambda c: c)), "reads view, pair"),
        (lambda: nk.criterion(home("proxis", "cosine")(lambda c: c)), "did you mean 'proxies'"),
    ],
)
def test_wrong_settings_are_refused_with_what_to_do(make, said):
    with pytest.raises(ValueError, match=said):
        make()(rows(dim=4), labels())


def test_a_loss_that_becomes_no_number_names_itself():
    with pytest.raises(ValueError, match=r"infonce is (nan|inf) though the embeddings are finite"):
        nk.criterion("infonce", temperature=1e-45)(rows(), labels())


def test_counts_may_be_numbers_of_numpy_and_torch():
    criterion = nk.criterion("proxy_anchor", classes=labels().max() + 1, dim=np.int64(DIM))
    assert criterion.compared.compare.vectors.shape == (CLASSES, DIM)


# --- a loss of one's own


def test_a_function_without_a_home_compares_in_batch_by_cosine():
    criterion = nk.criterion(squared)
    z, y = rows(), labels()
    u = nn.functional.normalize(z, dim=1)
    s = u @ u.T
    same = (y[:, None] == y[None]) & ~torch.eye(12, dtype=torch.bool)
    assert value(criterion.terms(z, y).tightness) == pytest.approx(
        value((1 - s)[same].square().mean()), rel=1e-5
    )


def test_a_function_with_a_home_lives_there():
    @home("proxies", "cosine", per_class=2)
    def proxied(c: Comparison) -> Terms:
        return squared(c, margin=0.1)

    criterion = nk.criterion(proxied, classes=CLASSES, dim=DIM)
    assert criterion.compared.compare.vectors.shape == (2 * CLASSES, DIM)
    criterion(rows(), labels()).backward()
    assert all(p.grad.any() for p in criterion.parameters())


def test_settings_of_a_function_are_bound_with_partial():
    criterion = nk.criterion(functools.partial(squared, margin=0.5), memory=8, dim=DIM)
    assert "squared(margin=0.5)" in str(criterion)
    assert criterion(rows(), labels()) < nk.criterion(squared)(rows(), labels())


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        (lambda c: c.similarity.mean(), "returned Tensor; a loss returns nearkin.Terms"),
        (lambda c: Terms(tightness=c.similarity[0]), r"terms of shape \(12,\)"),
        (lambda c: Terms(tightness=c.similarity.sum() / 0), "though the embeddings are finite"),
    ],
)
def test_what_a_function_returns_is_checked(returned, said):
    for more in ({}, {"references": torch.ones(12, 6), "reference_labels": labels()}):
        with pytest.raises(ValueError, match=said):
            nk.criterion(returned)(rows(), labels(), **more)


# --- parameters that learn


@pytest.mark.parametrize("name", LOSSES)
def test_a_criterion_survives_save_load_and_copy(name):
    criterion, z, y = made(name).eval(), rows(), labels()
    other = nk.criterion(name, classes=CLASSES, dim=DIM).eval()
    other.load_state_dict(criterion.state_dict())
    assert torch.equal(other(z, y), criterion(z, y))
    assert torch.equal(copy.deepcopy(criterion)(z, y), criterion(z, y))
    torch.save(criterion, io.BytesIO())


def test_proxies_gather_their_classes_in_a_loop_of_ones_own():
    torch.manual_seed(0)
    encoder = nn.Linear(4, DIM)
    criterion = made("proxy_anchor")
    optimizer = torch.optim.AdamW([*encoder.parameters(), *criterion.parameters()], lr=0.05)
    x, y = torch.eye(4)[labels()] + 0.1, labels()
    first = value(criterion(encoder(x), y))
    for _ in range(30):
        optimizer.zero_grad()
        criterion(encoder(x), y).backward()
        optimizer.step()
    assert value(criterion(encoder(x), y)) < first / 2


# --- settings that learn


def test_a_setting_that_learns_is_a_parameter_of_the_criterion():
    criterion = nk.criterion("infonce", learn={"temperature": {"start": 0.2}})
    z, y = rows(), labels()
    (temperature,) = criterion.parameters()
    assert value(criterion(z, y)) == pytest.approx(
        value(nk.criterion("infonce", temperature=0.2)(z, y))
    )
    optimizer = torch.optim.SGD(criterion.parameters(), lr=0.01)
    first = value(criterion(z, y))
    for _ in range(10):
        optimizer.zero_grad()
        criterion(z, y).backward()
        optimizer.step()
    assert value(criterion(z, y)) < first
    assert value(temperature) != pytest.approx(0.2)


def test_a_setting_learns_for_each_class():
    learn = {"beta": {"start": 1.2, "per": "class"}}
    criterion = nk.criterion("margin", learn=learn, classes=["a", "b", "c", "d", "e"])
    z = rows()
    loss = criterion(z, ["abcd"[i] for i in labels().tolist()])
    assert value(loss) == pytest.approx(value(nk.criterion("margin")(z, labels())))
    loss.backward()
    (beta,) = criterion.parameters()
    assert beta.shape == (5,)
    assert beta.grad[:4].any()
    assert beta.grad[4] == 0
    with pytest.raises(ValueError, match=r"label 7 is out of range.*classes 0\.\.4"):
        criterion(z, labels() + 4)


def test_a_setting_that_learns_scores_other_references_too():
    z, zr, y = rows(seed=1), rows(seed=2), labels()
    learns = nk.criterion("infonce", learn={"temperature": {"start": 0.2}})
    fixed = nk.criterion("infonce", temperature=0.2)
    one, two = (c(z, y, references=zr, reference_labels=y) for c in (learns, fixed))
    assert value(one) == pytest.approx(value(two))
    one.backward()
    assert all(p.grad != 0 for p in learns.parameters())


def test_a_temperature_that_learned_to_be_negative_is_named():
    criterion = nk.criterion("infonce", learn={"temperature": {"start": -0.5}})
    with pytest.raises(ValueError, match=r"^temperature must be above 0, not -0.5$"):
        criterion(rows(), labels())


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: {"learn": "temperature"}, "learn takes .*, not 'temperature'"),
        (lambda: {"learn": {"temperatur": {"start": 1}}}, "did you mean 'temperature'"),
        (lambda: {"learn": {"temperature": 0.1}}, "takes start and per, not 0.1"),
        (
            lambda: {"learn": {"temperature": {"start": 0.1}}, "temperature": 0.2},
            "temperature is given and learned at once; leave temperature=... out",
        ),
        (
            lambda: {"learn": {"temperature": {"start": 0.1, "per": "class"}}},
            "say how many with classes",
        ),
        (
            lambda: {"learn": {"temperature": {"start": 0.1, "per": "class"}}, "classes": 3},
            "infonce takes one temperature for all",
        ),
    ],
)
def test_a_wrong_wish_to_learn_is_refused(make, said):
    with pytest.raises(ValueError, match=said):
        nk.criterion("infonce", **make())


def test_a_setting_may_be_a_tensor_of_ones_own():
    temperature = torch.tensor(0.2, requires_grad=True)
    nk.criterion("infonce", temperature=temperature)(rows(), labels()).backward()
    assert temperature.grad != 0


# --- objectives and their turns


def optimizers_for(objective, encoder):
    makers = {"encoder": encoder, **objective.learners()}
    return {
        name: torch.optim.SGD(module.parameters(), lr=0.1)
        for name, module in makers.items()
        if list(module.parameters())
    }


def learned(objective, steps=1, encoder=None, **columns):
    """Who learned in each turn, and which learners moved."""
    torch.manual_seed(0)
    encoder = encoder or nn.Linear(4, DIM)
    optimizers = optimizers_for(objective, encoder)
    before = copy.deepcopy({"encoder": encoder, **objective.learners()})
    said = []
    for step in range(steps):
        x = torch.randn(12, 4, generator=torch.Generator().manual_seed(step))
        for turn in objective.turns(encoder(x), labels(), **columns):
            assert nk.update(turn, optimizers)
            said.append(turn.learns)
    after = {"encoder": encoder, **objective.learners()}
    moved = {
        name
        for name, module in after.items()
        if any(
            not torch.equal(p, q)
            for p, q in zip(module.parameters(), before[name].parameters(), strict=True)
        )
    }
    return said, moved


def test_jensen_shannon_trains_its_critic_before_the_encoder():
    said, moved = learned(nk.objective("jensen_shannon", critic_steps=2, width=8))
    assert said == [("critic",), ("critic",), ("encoder",)]
    assert moved == {"encoder", "critic"}


def test_the_alternating_one_takes_one_turn_a_batch():
    said, _ = learned(nk.objective("alternating_jensen_shannon", critic_steps=2, width=8), 6)
    assert said == [("encoder",), ("critic",), ("critic",)] * 2


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_by_name_is_an_objective_in_its_home(name):
    torch.manual_seed(0)
    objective = nk.objective(name, classes=CLASSES, dim=DIM)
    z, y = rows(), labels()
    (turn,) = objective.turns(z, y)
    assert torch.equal(turn.terms.total, made(name)(z, y))
    assert turn.learns == ("encoder", "objective")
    assert list(objective.learners()) == ["objective"]


def test_an_objective_of_a_loss_takes_its_home_and_what_learns():
    objective = nk.objective(
        "infonce", memory=24, dim=DIM, mining="hard", learn={"temperature": {"start": 0.2}}
    )
    said, moved = learned(objective, steps=2)
    assert said == [("encoder", "objective")] * 2
    assert moved == {"encoder", "objective"}
    assert objective.inner.compare.written == 24


def test_a_sum_names_the_learners_of_its_parts():
    node = {
        "sum": {
            "parts": {
                "a": {"jensen_shannon": {"critic_steps": 1, "width": 8}},
                "b": {"compared": {"compare": "proxies", "loss": "proxy_anchor"}},
                "c": {"compared": {"compare": "in_batch", "loss": "supcon"}},
            },
            "weights": {"c": 0.5},
        }
    }
    objective = nk.objective(node, classes=CLASSES, dim=DIM)
    said, moved = learned(objective)
    assert said == [("a.critic",), ("encoder", "b.objective", "c.objective")]
    assert moved == {"encoder", "a.critic", "b.objective"}


def test_compared_takes_classes_dim_and_names():
    settings = {"compare": "classifier", "loss": {"cross_entropy": {"label_smoothing": 0.1}}}
    objective = nk.objective("compared", **settings, classes=["a", "b", "c", "d"], dim=DIM)
    z, y = rows(), labels()
    by_number = [turn.terms.total for turn in objective.turns(z, y)]
    by_name = [turn.terms.total for turn in objective.turns(z, ["abcd"[i] for i in y.tolist()])]
    assert by_number == by_name
    _, moved = learned(objective, steps=2)  # a classifier of zeros has no slope for the encoder
    assert moved == {"encoder", "objective"}


def test_a_setting_may_learn_for_each_class():
    objective = nk.objective(
        "compared",
        compare={"in_batch": {}},
        loss="infonce",
        learn={"temperature": {"start": 0.1}},
    )
    said, moved = learned(objective)
    assert said == [("encoder", "objective")]
    assert moved == {"encoder", "objective"}
    assert "temperature" in dict(objective.inner.learned.named_parameters())
    per_class = {"compare": "in_batch", "loss": "margin"}
    learn = {"beta": {"start": 1.2, "per": "class"}}
    objective = nk.objective("compared", **per_class, learn=learn, classes=5)
    assert objective.inner.learned["beta"].shape == (5,)


@pytest.mark.parametrize("form", [list, np.array, torch.tensor, lambda x: [f"pair {i}" for i in x]])
def test_turns_take_further_columns_in_any_form(form):
    objective = nk.objective({"compared": {"compare": "across_views", "loss": "infonce"}})
    pair, view = [0, 1, 2, 3, 4, 5] * 2, [0] * 6 + [1] * 6
    (turn,) = objective.turns(rows(), view=view, pair=form(pair))
    assert turn.terms.total > 0


def test_a_column_that_is_missing_or_too_short_is_named():
    objective = nk.objective({"compared": {"compare": "across_views", "loss": "infonce"}})
    with pytest.raises(ValueError, match=r"reads the column 'view': turns\(z, view=\.\.\.\)"):
        next(objective.turns(rows(), labels()))
    with pytest.raises(ValueError, match="7 view for 12 rows"):
        next(objective.turns(rows(), view=torch.zeros(7).long(), pair=labels()))
    with pytest.raises(ValueError, match=r"reads the column 'label': turns\(z, labels"):
        next(nk.objective("jensen_shannon").turns(rows()))


@pytest.mark.parametrize(
    ("z", "y", "said"),
    [
        (torch.full((12, 6), torch.nan), labels(), "NaN or infinity"),
        (rows(), torch.zeros(12), "never floats"),
        (rows(), labels()[:5], "5 labels for 12 rows"),
        (rows().double(), labels(), "float64"),
    ],
)
def test_turns_check_what_they_are_given(z, y, said):
    with pytest.raises(ValueError, match=said):
        next(nk.objective("jensen_shannon").turns(z, y))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: nk.objective("jensen_shanon"), "did you mean 'jensen_shannon'"),
        (lambda: nk.objective("jensen_shannon", critic_step=1), "did you mean 'critic_steps'"),
        (lambda: nk.objective("jensen_shannon", critic_steps=0), "at least 1, not 0"),
        (lambda: nk.objective({"sum": {}}, weights={}), "go into the node"),
        (lambda: nk.objective("compared", compare="proxies", loss="proxy_anchor"), "classes"),
        (lambda: nk.objective(3), "objective"),
        (lambda: nk.objective("infonc"), "no objective and no loss 'infonc'.*'infonce'"),
        (lambda: nk.objective("infonce", temprature=1), "did you mean 'temperature'"),
        (lambda: nk.objective("infonce", temperature="x"), "infonce.temperature: expected a num"),
        (lambda: nk.objective("proxy_anchor"), "needs classes=... and dim=..."),
        (lambda: nk.objective("infonce", memory=8), "memory, so objective needs dim="),
        (lambda: nk.objective("pack.age:Loss"), "trust"),
        (
            lambda: nk.objective({"triplet": {}}),
            "triplet is a loss; write {compared: {compare: {in_batch: {}}, loss: {triplet: {}}}}",
        ),
        (
            lambda: nk.objective({"sum": {"parts": {"a": {"cosface": {}}}}}),
            "cosface is a loss; write {compared: {compare: {proxies: {}}, loss: {cosface: {}}}}",
        ),
        (lambda: nk.objective("sum", parts={"a": "infonce"}), "infonce is a loss; write"),
    ],
)
def test_wrong_objectives_are_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()


def test_strings_need_names_in_objectives_too():
    settings = {"compare": "proxies", "loss": "proxy_anchor", "dim": DIM}
    objective = nk.objective("compared", **settings, classes=2)
    with pytest.raises(ValueError, match="classes must be named"):
        next(objective.turns(rows(), ["a", "b"] * 6))
    learn = {"beta": {"start": 1.2, "per": "class"}}
    each = nk.objective("compared", compare="in_batch", loss="margin", learn=learn, classes=2)
    with pytest.raises(ValueError, match="classes must be named"):
        next(each.turns(rows(), ["a", "b"] * 6))


def test_a_learner_without_an_optimizer_is_not_silent():
    objective = nk.objective(
        "compared", compare="proxies", loss="proxy_anchor", classes=CLASSES, dim=DIM
    )
    encoder = nn.Linear(4, DIM)
    optimizers = {"encoder": torch.optim.SGD(encoder.parameters(), lr=0.1)}

    def step():
        for turn in objective.turns(encoder(torch.ones(12, 4)), labels()):
            nk.update(turn, optimizers)

    step()
    with pytest.raises(ValueError, match="'objective' has parameters that no optimizer holds"):
        step()


def test_turns_that_are_only_looked_at_are_no_complaint():
    objective = nk.objective(
        "compared", compare="proxies", loss="proxy_anchor", classes=CLASSES, dim=DIM
    )
    for _ in range(4):
        assert len(list(objective.turns(rows(), labels()))) == 1
    with torch.no_grad():
        assert len(list(objective.turns(rows(), labels()))) == 1


def test_updates_by_hand_are_no_complaint():
    objective = nk.objective(
        "compared", compare="proxies", loss="proxy_anchor", classes=CLASSES, dim=DIM
    )
    optimizer = torch.optim.SGD(objective.parameters(), lr=0.1)
    for _ in range(4):
        for turn in objective.turns(rows(), labels()):
            turn.terms.total.backward()
            optimizer.step()
            optimizer.zero_grad()
