"""What every loss must hold, found by scanning the catalog: a new one is covered at once."""

import inspect
import warnings

import pytest
import torch
from quad4 import LABELS, random_batch
from torch.autograd import gradcheck

from nearkin import catalog
from nearkin.compare import InBatch
from nearkin.core import Batch, home_of
from nearkin.objectives.compared import CLASS_COLUMNS, Compared
from nearkin.standalone import criterion

LOSSES = catalog.scan(catalog.kind_named("loss"))
DIM, CLASSES = 5, 6
OWN = {name for name, loss in LOSSES.items() if home_of(loss).compare in CLASS_COLUMNS}
OF_ROWS = sorted(set(LOSSES) - OWN)
OF_CENTERS = {name for name in OWN if home_of(LOSSES[name]).compare == "centers"}

# What these cannot hold by their definitions; tests of their own say what they hold instead.
ORDERED = {"n_pairs"}  # the first two rows of a class are its anchor and its positive
CONSTANT_WEIGHTS = {"circle", "ranked_list"}  # not differentiated, but they are in the value
ANOTHER_SLOPE = {"js_kl", "smile"}  # the value of one bound, the gradient of another
OF_ANGLES = {"circle", "tuplet_margin"}  # they refuse what is no cosine
OVER_OPEN_HINGES = {"margin"}  # a mean over terms that are not 0 rises where a small one closes
SPREADING_ALL = {"alignment_uniformity"}  # uniformity repels positives too
OF_BOTH_ENDS = {"angular", "angular_hinge", "lifted_structure", "quadruplet"}  # no single triplets
SET = {"angular_hinge": {"angle": 20.0}}  # at 45 degrees it is 0 on random rows in 5 dimensions

pytestmark = pytest.mark.filterwarnings("ignore:n_pairs takes the first two rows")

every = pytest.mark.parametrize("name", LOSSES)
every_one_of_rows = pytest.mark.parametrize("name", OF_ROWS)


def every_one_but(names):
    return pytest.mark.parametrize("name", sorted(set(LOSSES) - names))


def compared(name, dtype=torch.float64) -> Compared:
    """The loss in its home, its parameters drawn at random and its dropout off."""
    objective = criterion(name, classes=CLASSES, dim=DIM, **SET.get(name, {})).compared.eval()
    random = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in objective.parameters():
            drawn = torch.randn(parameter.shape, generator=random, dtype=torch.float64)
            parameter.copy_(drawn)
    return objective.to(dtype)


def scored(name, z, label, objective=None):
    """Terms, the gradient to the embeddings, the gradients to the loss's own parameters."""
    objective = objective or compared(name, z.dtype)
    z = z.detach().clone().requires_grad_()
    terms = objective(z, Batch(None, label=torch.as_tensor(label)))
    leaves = [z, *objective.parameters()]
    # Every loss is a function of the embeddings, so that the first gradient must exist.
    gradients = torch.autograd.grad(terms.total, leaves, allow_unused=True, retain_graph=True)
    assert gradients[0] is not None
    return terms, gradients


def silently(*args):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return scored(*args)


# --- what it says of itself


@every
def test_it_has_a_home_and_says_its_formula_source_and_memory(name):
    loss = LOSSES[name]
    assert home_of(loss) is not None
    doc = inspect.getdoc(loss)
    assert "Memory O(" in doc
    assert " = " in doc
    assert catalog.find(name)[0].source != loss.__module__


@every
def test_its_settings_are_keyword_only_and_have_defaults(name):
    _, *settings = inspect.signature(LOSSES[name]).parameters.values()
    for setting in settings:
        assert setting.kind is setting.KEYWORD_ONLY
        assert setting.default is not setting.empty


# --- what it must not see


# Few are same, so that they are hidden one by one; of classes of one size, and of several.
LONG = {"balanced": [*range(12)] * 3, "unbalanced": [4, 0, 0, 1, 2, 2, 2, 2, *range(5, 40)]}


@every_one_of_rows
@pytest.mark.parametrize("labels", LONG)
def test_a_batch_is_scored_as_one_whose_pairs_a_mask_allows(name, labels):
    z, label = random_batch(LONG[labels], DIM)
    loss = compared(name)
    seen, (slope, *_) = scored(name, z, label, loss)
    loss.mining = lambda c: c.narrowed(torch.ones(c.shape, dtype=torch.bool))
    masked, (other, *_) = scored(name, z, label, loss)
    for key, value in masked.floats().items():
        assert seen.floats()[key] == pytest.approx(value, rel=1e-9, abs=1e-12)
    torch.testing.assert_close(slope, other)


@every_one_but(ORDERED)
@pytest.mark.parametrize("labels", LABELS)
def test_the_order_of_rows_does_not_matter(name, labels):
    z, label = random_batch(LABELS[labels], DIM)
    order = torch.randperm(len(label), generator=torch.Generator().manual_seed(1))
    terms, (gradient, *own) = scored(name, z, label)
    other, (moved, *moved_own) = scored(name, z[order], label[order])
    for key, value in terms.floats().items():
        assert other.floats()[key] == pytest.approx(value, rel=1e-9, abs=1e-12)
    torch.testing.assert_close(moved, gradient[order])
    for one, two in zip(own, moved_own, strict=True):
        torch.testing.assert_close(one, two)


@every
@pytest.mark.parametrize("labels", LABELS)
def test_the_names_of_labels_do_not_matter(name, labels):
    z, label = random_batch(LABELS[labels], DIM)
    terms, (gradient, *_) = scored(name, z, label)
    renamed = torch.tensor([3, 5, 0, 4, 1, 2])
    objective = compared(name)
    if name in OWN:
        for parameter in objective.parameters():
            of_class = parameter.data.unflatten(0, (CLASSES, -1))  # several proxies side by side
            of_class[renamed] = of_class.clone()
    else:
        # Neighbors beyond the integers that a float can hold.
        renamed = renamed + 2**53
    other, (same, *_) = scored(name, z, renamed[label], objective)
    for key, value in terms.floats().items():
        assert other.floats()[key] == pytest.approx(value, rel=1e-9, abs=1e-12)
    torch.testing.assert_close(same, gradient)


# --- batches at the border


BORDER = {
    "without positives": ([0, 1, 2, 3], 1.0),
    "without negatives": ([2, 2, 2, 2], 1.0),
    "of one row": ([1], 1.0),
    "of one class and one row more": ([0, 0, 0, 1], 1.0),
    "huge": ([0, 0, 1, 1, 2], 1e20),
    "tiny": ([0, 0, 1, 1, 2], 1e-20),
    "denormal": ([0, 0, 1, 1, 2], 1e-42),
}


def assert_finite(terms, gradients):
    assert all(value.isfinite() for value in (terms.total, terms.tightness, terms.contrast))
    assert all(value.isfinite() for value in terms.other.values())
    for gradient in gradients:
        assert gradient is None or gradient.isfinite().all()


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("border", BORDER)
def test_value_and_gradient_are_finite_for_a_batch(name, border, dtype):
    labels, scale = BORDER[border]
    z, label = random_batch(labels, DIM)
    assert_finite(*silently(name, (z * scale).to(dtype), label))


@every_one_of_rows
@pytest.mark.parametrize("border", BORDER)
@pytest.mark.parametrize("closeness", ["cosine", "euclidean", "inner"])
def test_value_and_gradient_are_finite_by_any_closeness(name, closeness, border):
    labels, scale = BORDER[border]
    z, label = random_batch(labels, DIM, dtype=torch.float32)
    objective = Compared(InBatch(closeness), LOSSES[name])
    reads_distance = "c.distance" in inspect.getsource(LOSSES[name])
    if closeness != "cosine" and name in OF_ANGLES:
        with pytest.raises(ValueError, match="needs angles"):
            silently(name, z * scale, label, objective)
    elif closeness == "inner" and reads_distance:
        with pytest.raises(ValueError, match="has no distance"):
            silently(name, z * scale, label, objective)
    else:
        assert_finite(*silently(name, z * scale, label, objective))


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("labels", [[0, 0, 1, 1], [0, 1, 2, 3], [0, 0, 0, 0]])
@pytest.mark.parametrize("rows", ["zero", "one zero", "identical", "opposite", "identical pairs"])
def test_value_and_gradient_are_finite_for_degenerate_rows(name, rows, labels, dtype):
    z, label = random_batch(labels, DIM)
    z = {
        "zero": torch.zeros_like(z),
        "one zero": z * (torch.arange(4) != 1)[:, None],
        "identical": z[:1].expand(4, -1),
        "opposite": z[:1] * torch.tensor([1, 1, -1, -1])[:, None],
        "identical pairs": z[[0, 0, 2, 2]],
    }[rows].to(dtype)
    terms, gradients = silently(name, z, label)
    assert_finite(terms, gradients)
    if rows == "zero" and home_of(LOSSES[name]).closeness == "cosine":
        assert not gradients[0].any()


@every_one_of_rows
@pytest.mark.parametrize("labels", [[0, 1, 2, 3], [4]])
def test_without_positives_nothing_gathers_and_what_is_coupled_is_zero(name, labels):
    z, label = random_batch(labels, DIM)
    terms, (gradient, *_) = silently(name, z, label)
    assert terms.tightness.item() == 0
    assert all(value.item() == 0 for value in terms.other.values())
    assert terms.total.item() == terms.contrast.item()
    if terms.contrast.item() == 0:
        assert not gradient.any()


@every
def test_it_warns_once_a_run(name):
    z, _ = random_batch([0, 0, 0, 0], DIM)
    expected = {"an embedding row is all zeros"}
    if home_of(LOSSES[name]).closeness != "cosine":
        expected = set()
    label = [0, 1, 2, 3]
    if name not in OWN:
        expected.add("a batch holds no positive pair")
    objective = compared(name)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for zero in (1, 3, 2):
            scored(name, z * (torch.arange(4) != zero)[:, None], label, objective)
    assert {str(w.message).split(":")[0].split(",")[0] for w in said} == expected
    assert len(said) == len(expected)


# --- how it computes


@every
@pytest.mark.parametrize("labels", LABELS)
def test_total_is_the_sum_of_its_parts_exactly(name, labels):
    z, label = random_batch(LABELS[labels], DIM, dtype=torch.float32)
    terms, _ = scored(name, z, label)
    parts = terms.tightness + terms.contrast
    for value in terms.other.values():
        parts = parts + value
    assert terms.total.item() == parts.item()
    assert all(v.ndim == 0 for v in (terms.tightness, terms.contrast, *terms.other.values()))


@every
@pytest.mark.parametrize("labels", LABELS)
def test_float32_agrees_with_float64(name, labels):
    z, label = random_batch(LABELS[labels], DIM)
    z = z.float()  # the same numbers in both
    low, low_slopes = scored(name, z, label)
    high, high_slopes = scored(name, z.double(), label, compared(name, torch.float32).double())
    assert low.total.dtype == torch.float32
    assert high.total.dtype == torch.float64
    for key, value in high.floats().items():
        assert low.floats()[key] == pytest.approx(value, rel=1e-4, abs=1e-5)
    for one, two in zip(low_slopes, high_slopes, strict=True):
        torch.testing.assert_close(one.double(), two, rtol=1e-3, atol=1e-4)


@every_one_but(CONSTANT_WEIGHTS | ANOTHER_SLOPE)
@pytest.mark.parametrize("labels", ["unbalanced", "pairs"])
def test_gradcheck(name, labels):
    z, label = random_batch(LABELS[labels], DIM)
    objective = compared(name)

    def value(z, *_):
        return objective(z, Batch(None, label=label)).total

    leaves = [z.requires_grad_(), *objective.parameters()]
    assert gradcheck(value, leaves, eps=1e-6, atol=1e-5, rtol=1e-4)


@every
def test_under_bfloat16_autocast_it_computes_in_float32(name):
    z, label = random_batch(LABELS["unbalanced"], DIM, dtype=torch.float32)
    batch, objective = Batch(None, label=label), compared(name, torch.float32)
    leaves = [z.requires_grad_(), *objective.parameters()]
    expected = objective(z, batch).total
    with torch.autocast("cpu", torch.bfloat16):
        seen = objective(z, batch).total
        assert objective.comparison(z.bfloat16(), batch).similarity.dtype == torch.float32
        low = objective(z.bfloat16(), batch).total
    assert low.dtype == torch.float32
    assert low.item() == pytest.approx(expected.item(), rel=0.1)
    assert seen.item() == expected.item()
    slopes = [torch.autograd.grad(value, leaves) for value in (seen, expected)]
    for one, two in zip(*slopes, strict=True):
        assert torch.equal(one, two)


@every_one_but(OVER_OPEN_HINGES)
def test_it_learns(name):
    z, label = random_batch(LABELS["unbalanced"], DIM)
    terms, gradients = scored(name, z, label)
    for gradient in gradients:
        assert gradient.norm() > 1e-6
    objective = compared(name)
    leaves = [z.clone().requires_grad_(), *objective.parameters()]
    for _ in range(20):
        value = objective(leaves[0], Batch(None, label=label)).total
        for leaf, slope in zip(leaves, torch.autograd.grad(value, leaves), strict=True):
            leaf.data -= 0.02 * slope / (1 + slope.norm())
    assert objective(leaves[0], Batch(None, label=label)).total.item() < terms.total.item()


@every_one_but(SPREADING_ALL)
def test_rows_of_one_class_attract_and_others_repel(name):
    z, label = random_batch(LABELS["unbalanced"], DIM)
    seen = compared(name).diagnosis(z, Batch(None, label=label))
    assert seen["pull"] > 0
    assert seen["push"] > 0


@pytest.mark.parametrize("name", sorted(set(LOSSES) - OF_CENTERS))
def test_multi_hot_labels_of_one_class_are_its_label(name):
    z, label = random_batch(LABELS["unbalanced"], DIM)
    hot = torch.nn.functional.one_hot(label, CLASSES).bool()
    one, two = scored(name, z, label), scored(name, z, hot)
    torch.testing.assert_close(one[0].total, two[0].total)
    torch.testing.assert_close(one[1][0], two[1][0])


@every_one_of_rows
def test_after_mining_it_still_scores(name):
    z, label = random_batch(LABELS["unbalanced"], DIM)
    for key, mine in catalog.scan(catalog.kind_named("mining")).items():
        objective = Compared(InBatch("cosine"), LOSSES[name], mine)
        if name in OF_BOTH_ENDS and key in ("semi_hard", "distance_weighted"):
            with pytest.raises(ValueError, match="both ends of a pair"):
                scored(name, z, label, objective)
            continue
        terms, (gradient, *_) = scored(name, z, label, objective)
        assert terms.total.isfinite(), key
        assert gradient.isfinite().all(), key
        lone, slopes = silently(name, z[:3], torch.tensor([0, 1, 2]), objective)
        assert_finite(lone, slopes)


# --- what a closed form must not do silently


@every
def test_a_penalty_on_its_gradient_raises_or_is_exact(name):
    z, label = random_batch(LABELS["unbalanced"], DIM)
    objective, z = compared(name), z.requires_grad_()
    value = objective(z, Batch(None, label=label)).total
    (slope,) = torch.autograd.grad(value, z, create_graph=True)
    if name != "n_pairs":
        with pytest.raises(RuntimeError, match="once_differentiable"):
            slope.square().sum().backward()
        return
    (seen,) = torch.autograd.grad(slope.square().sum(), z)

    def steepness(z):
        value = objective(z, Batch(None, label=label)).total
        return torch.autograd.grad(value, z)[0].square().sum()

    along = torch.randn(z.shape, generator=torch.Generator().manual_seed(5), dtype=z.dtype)
    step = 1e-5 * along
    risen = (steepness(z + step) - steepness(z - step)) / 2e-5
    assert (seen * along).sum().item() == pytest.approx(risen.item(), rel=1e-4)


@every
def test_its_gradient_is_the_same_with_the_backward_pass_under_autocast(name):
    z, label = random_batch(LABELS["unbalanced"], DIM, dtype=torch.float32)
    objective = compared(name, torch.float32)
    leaves = [z.requires_grad_(), *objective.parameters()]
    plain = torch.autograd.grad(objective(z, Batch(None, label=label)).total, leaves)
    value = objective(z, Batch(None, label=label)).total
    with torch.autocast("cpu", torch.bfloat16):
        under = torch.autograd.grad(value, leaves)
    for one, two in zip(plain, under, strict=True):
        torch.testing.assert_close(one, two, rtol=2e-2, atol=2e-2 * one.abs().max().item())


@every_one_of_rows
@pytest.mark.parametrize("closeness", ["cosine", "euclidean"])
def test_against_no_references_at_all_it_is_zero_with_gradient_zero(name, closeness):
    z, label = random_batch([0, 0, 1], DIM)
    own = criterion(name, closeness=closeness) if closeness != "cosine" else criterion(name)
    nothing = {"references": z[:0], "reference_labels": label[:0]}
    z = z.requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if name in OF_BOTH_ENDS or (closeness == "euclidean" and name in OF_ANGLES):
            with pytest.raises(ValueError, match=r"both ends|angles"):
                own(z, label, **nothing)
            return
        value = own(z, label, **nothing)
    value.backward()
    assert value.item() == 0
    assert not z.grad.any()


@every
def test_a_margin_below_zero_is_refused(name):
    settings = inspect.signature(LOSSES[name]).parameters
    for key in {"margin", "second_margin", "nu", "weight", "spread"} & set(settings):
        with pytest.raises(ValueError, match=key):
            silently(name, *random_batch(LABELS["pairs"], DIM), with_settings(name, **{key: -0.1}))


@every
def test_an_empty_batch_is_zero(name):
    terms, _ = silently(name, torch.zeros(0, DIM), torch.zeros(0, dtype=torch.int64))
    # Without what is about the proxies alone.
    rows = [value for key, value in terms.other.items() if key != "spread"]
    assert [value.item() for value in (terms.tightness, terms.contrast, *rows)] == [0, 0] + [
        0
    ] * len(rows)


def with_settings(name, **settings):
    return criterion(name, classes=CLASSES, dim=DIM, **settings).compared.eval().double()
