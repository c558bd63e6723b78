"""Multi-hot labels in every loss: rows are the same where they share a label, or the loss says that
it
cannot take them."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from quad4 import cosines, dot, random_batch, unit_rows

import nearkin as nk
from nearkin import catalog
from nearkin.core import Batch, home_of

LOSSES = sorted(catalog.scan(catalog.kind_named("loss")))
DIM, CLASSES, ROWS = 5, 6, 12
OF_ROWS = [
    name
    for name in LOSSES
    if home_of(catalog.scan(catalog.kind_named("loss"))[name]).compare == "in_batch"
]
# These need one class a row, and say so.
REFUSED = {
    "spce": "a center needs rows of one class each",
    "quadruplet": "quadruplet takes rows of one class each",
}
OF_BOTH_ENDS = {"angular", "angular_hinge", "lifted_structure", "quadruplet"}
# These read more of the labels than who is the same, so that loops of their own check them.
BY_HAND = {"n_pairs", "proxy_anchor", "soft_triple", "sub_center_arcface"}

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:n_pairs takes the first two rows"),
]


def made(name, **settings):
    torch.manual_seed(0)
    counted = name not in OF_ROWS or "learn" in settings
    facts = {"dim": DIM, **({"classes": CLASSES} if counted else {})}
    criterion = nk.criterion(name, **facts, **settings).double().eval()
    for parameter in criterion.parameters():
        parameter.data = torch.randn(parameter.shape, dtype=torch.float64)
    return criterion


def embeddings(n=ROWS, seed=0):
    return random_batch([0] * n, DIM, seed=seed)[0].requires_grad_()


def random_hot(n=ROWS, width=CLASSES, seed=0, share=0.25):
    """(n, width) bool: rows with none, one and several labels."""
    random = torch.Generator().manual_seed(seed)
    return torch.rand(n, width, generator=random) < share


def share_a_label(one, other):
    """(A, R) by hand: whether two rows have a label in common."""
    return [
        [any(a and b for a, b in zip(x, y, strict=True)) for y in other.tolist()]
        for x in one.tolist()
    ]


def written_out(c, same):
    """The same comparison by labels that spell the mask out: anchor i has class i alone, and so has
    each of its columns that is the same."""
    anchors = torch.arange(c.shape[0])
    columns = torch.where(torch.tensor(same), anchors[:, None], -1)
    return replace(c, anchor_label=anchors, reference_label=columns)


def scored(criterion, c, z):
    terms = criterion.compared.scored(c)
    leaves = [z, *criterion.parameters()]
    slopes = torch.autograd.grad(terms.total, leaves, allow_unused=True, retain_graph=True)
    return terms.floats(), slopes


def assert_alike(one, two):
    for key, value in one[0].items():
        assert two[0][key] == pytest.approx(value, rel=1e-9, abs=1e-12), key
    for a, b in zip(one[1], two[1], strict=True):
        torch.testing.assert_close(a, b)


def labels_of_columns(c, hot):
    return hot if c.columns_are == "rows" else c.reference_label


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", sorted(set(LOSSES) - set(REFUSED) - BY_HAND))
def test_it_equals_the_loss_on_masks_that_are_written_out(name, seed):
    hot, z, criterion = random_hot(seed=seed), embeddings(seed=seed), made(name)
    c = criterion.compared.comparison(z, Batch(None, label=hot))
    same = share_a_label(hot, labels_of_columns(c, hot))
    assert any(map(any, same))
    assert_alike(scored(criterion, written_out(c, same), z), scored(criterion, c, z))


@pytest.mark.parametrize("name", REFUSED)
def test_what_needs_one_class_a_row_says_so(name):
    with pytest.raises(ValueError, match=REFUSED[name]):
        made(name)(embeddings(), random_hot())


@pytest.mark.parametrize("name", [name for name in OF_ROWS if name != "quadruplet"])
def test_a_memory_keeps_one_label_a_row(name):
    with pytest.raises(ValueError, match="a memory keeps one label a row; compare multi-label"):
        made(name, memory=8)(embeddings(), random_hot())


def test_a_setting_for_each_class_needs_one_class_a_row():
    each = made("margin", learn={"beta": {"start": 1.2, "per": "class"}})
    with pytest.raises(ValueError, match=r"needs rows of one class each.*multi-hot"):
        each(embeddings(), random_hot())


# --- by loops


def log_sum_exp(values):
    return math.log(math.fsum(map(math.exp, values)))


def average(values):
    return math.fsum(values) / len(values)


@pytest.mark.parametrize("seed", range(3))
def test_n_pairs_takes_rows_whose_positives_all_come_later(seed):
    hot, z, weight = random_hot(seed=seed), embeddings(seed=seed), 0.01
    same, rows = share_a_label(hot, hot), z.tolist()
    pairs = {}
    for i in range(ROWS):
        own = [j for j in range(ROWS) if j != i and same[i][j]]
        if own and own[0] > i:
            pairs[i] = own[0]
    assert len(pairs) > 1
    columns = set(pairs.values())
    logits = {
        i: [dot(rows[i], rows[j]) for j in columns if j == own or not same[i][j]]
        for i, own in pairs.items()
    }
    terms = made("n_pairs", norm_weight=weight).terms(z, hot).floats()
    near = average([dot(rows[i], rows[own]) for i, own in pairs.items()])
    assert terms["tightness"] == pytest.approx(-near)
    assert terms["contrast"] == pytest.approx(average([log_sum_exp(x) for x in logits.values()]))
    squares = [dot(rows[i], rows[i]) + dot(rows[own], rows[own]) for i, own in pairs.items()]
    assert terms["norm"] == pytest.approx(weight * average(squares))


def of_classes(criterion, z, together):
    """[[...]]: for each row and each class, what `together` makes of the cosines to its columns."""
    proxies = unit_rows(criterion.compared.compare.vectors.detach())
    each = len(proxies) // CLASSES
    return [
        [together([dot(row, proxies[k * each + m]) for m in range(each)]) for k in range(CLASSES)]
        for row in unit_rows(z)
    ]


def softmax_over_classes(cosines_of, hot, scale, moved):
    """tightness, contrast: of rows that have a class; of several own classes the mean counts."""
    own, everyone = [], []
    for row, has in zip(cosines_of, hot.tolist(), strict=True):
        if any(has):
            logits = [scale * (moved(c) if h else c) for c, h in zip(row, has, strict=True)]
            own.append(average([x for x, h in zip(logits, has, strict=True) if h]))
            everyone.append(log_sum_exp(logits))
    return -average(own), average(everyone)


@pytest.mark.parametrize("seed", range(3))
def test_proxy_anchor_pulls_every_row_that_has_the_class(seed):
    hot, z, criterion = random_hot(seed=seed), embeddings(seed=seed), made("proxy_anchor")
    pull, push = [], []
    rows = of_classes(criterion, z, max)
    for k in range(CLASSES):
        own = [-32 * (rows[i][k] - 0.1) for i in range(ROWS) if hot[i, k]]
        others = [32 * (rows[i][k] + 0.1) for i in range(ROWS) if not hot[i, k]]
        pull += [log_sum_exp([0.0, *own])] if own else []
        push.append(log_sum_exp([0.0, *others]))
    terms = criterion.terms(z, hot).floats()
    assert terms["tightness"] == pytest.approx(average(pull))
    assert terms["contrast"] == pytest.approx(average(push))


def relaxed(cosines_of):
    weights = [math.exp(c / 0.1) for c in cosines_of]
    return sum(w * c for w, c in zip(weights, cosines_of, strict=True)) / sum(weights)


def wider(cos):
    angle = math.acos(cos) + 0.5
    return math.cos(angle) if angle <= math.pi else cos - 0.5 * math.sin(0.5)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("name", "together", "scale", "moved"),
    [
        ("soft_triple", relaxed, 20.0, lambda cos: cos - 0.01),
        ("sub_center_arcface", max, 64.0, wider),
    ],
)
def test_classes_of_several_columns_count_for_each_label_of_a_row(
    name, together, scale, moved, seed
):
    hot, z, criterion = random_hot(seed=seed), embeddings(seed=seed), made(name)
    terms = criterion.terms(z, hot).floats()
    expected = softmax_over_classes(of_classes(criterion, z, together), hot, scale, moved)
    assert (terms["tightness"], terms["contrast"]) == pytest.approx(expected)


def test_contrastive_by_hand():
    hot, z = random_hot(seed=1), embeddings(seed=1)
    same, s = share_a_label(hot, hot), cosines(z)
    near = apart = 0.0
    for i in range(ROWS):
        for j in set(range(ROWS)) - {i}:
            squared = 2 - 2 * s[i][j]
            if same[i][j]:
                near += squared / ROWS
            else:
                apart += max(0.0, 1 - math.sqrt(squared)) ** 2 / ROWS
    terms = made("contrastive").terms(z, hot).floats()
    assert (terms["tightness"], terms["contrast"]) == pytest.approx((near, apart))


# --- references, forms and borders


@pytest.mark.parametrize("name", sorted(set(OF_ROWS) - BY_HAND))
def test_multi_hot_references_equal_masks_that_are_written_out(name):
    hot, other = random_hot(seed=3), random_hot(9, seed=4)
    z, zr, criterion = embeddings(seed=3), embeddings(9, seed=4), made(name)

    def against(label, labels_there):
        return criterion(z, label, references=zr, reference_labels=labels_there)

    if name in OF_BOTH_ENDS:
        with pytest.raises(ValueError, match="both ends of a pair"):
            against(hot, other)
        return
    compare = criterion.compared.compare
    c = compare.made(
        anchor_label=hot,
        reference_label=other,
        anchors=compare.as_compared(z),
        references=compare.as_compared(zr),
    )
    written = criterion.compared.scored(written_out(c, share_a_label(hot, other))).total
    assert against(hot, other).item() == pytest.approx(written.item(), rel=1e-9)


def test_n_pairs_takes_the_first_reference_that_shares_a_label():
    hot, other = random_hot(seed=3), random_hot(9, seed=4)
    z, zr = embeddings(seed=3), embeddings(9, seed=4)
    same, rows, there = share_a_label(hot, other), z.tolist(), zr.tolist()
    pairs = {i: same[i].index(True) for i in range(ROWS) if any(same[i])}
    columns = set(pairs.values())
    near = average([dot(rows[i], there[own]) for i, own in pairs.items()])
    sums = [
        log_sum_exp([dot(rows[i], there[j]) for j in columns if j == own or not same[i][j]])
        for i, own in pairs.items()
    ]
    criterion = made("n_pairs", norm_weight=0.0)
    terms = criterion.terms(z, hot, references=zr, reference_labels=other).floats()
    assert (terms["tightness"], terms["contrast"]) == pytest.approx((-near, average(sums)))


@pytest.mark.parametrize(
    "form",
    [
        lambda hot: hot.long(),
        lambda hot: hot.to(torch.uint8),
        lambda hot: hot.numpy(),
        lambda hot: hot.numpy().astype(np.int32),
        lambda hot: hot.tolist(),
        lambda hot: hot.long().tolist(),
        list,
    ],
)
@pytest.mark.parametrize("name", ["supcon", "proxy_anchor"])
def test_multi_hot_labels_come_in_any_form(name, form):
    z, hot, criterion = embeddings(), random_hot(), made(name)
    assert torch.equal(criterion(z, form(hot)), criterion(z, hot))


@pytest.mark.parametrize("name", sorted(set(LOSSES) - set(REFUSED)))
@pytest.mark.filterwarnings("ignore:a batch holds no positive pair")
def test_rows_without_a_label_are_nobodys(name):
    z, criterion = embeddings(), made(name)
    nothing = criterion.terms(z, torch.zeros(ROWS, CLASSES, dtype=torch.bool))
    assert nothing.total.isfinite()
    (slope,) = torch.autograd.grad(nothing.total, z)
    assert slope.isfinite().all()
    if name in OF_ROWS:
        assert nothing.tightness == 0
        alone = criterion.terms(z, torch.arange(ROWS))
        assert nothing.total.item() == pytest.approx(alone.total.item())


@pytest.mark.parametrize("name", sorted(set(LOSSES) - set(OF_ROWS) - set(REFUSED)))
def test_another_width_than_the_classes_is_refused(name):
    with pytest.raises(ValueError, match=f"width 4 meet {CLASSES} classes"):
        made(name)(embeddings(), random_hot(width=4))


def test_classes_and_multi_hot_do_not_meet():
    z, zr, hot = embeddings(), embeddings(9), random_hot(9)
    with pytest.raises(ValueError, match="both must be classes, or multi-hot of one width"):
        made("supcon")(z, torch.arange(ROWS), references=zr, reference_labels=hot)
    with pytest.raises(ValueError, match="both must be classes, or multi-hot of one width"):
        made("supcon")(z, random_hot(width=4), references=zr, reference_labels=hot)
