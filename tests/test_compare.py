"""Where references come from: shapes, labels and vectors of each comparison, and what it keeps."""

import warnings

import pytest
import torch
from quad4 import LABEL4, LABELS, QUAD4, in_batch, random_batch
from torch.nn.functional import normalize

from nearkin.compare import (
    AcrossViews,
    Centers,
    Classifier,
    Compare,
    InBatch,
    Memory,
    Proxies,
    bounded,
    classes_of,
    unit,
)
from nearkin.core import Batch
from nearkin.losses.bounds import jsd
from nearkin.losses.pairwise import infonce, supcon


def labelled(label):
    return Batch(None, label=torch.as_tensor(label))


# --- rows as they are compared


@pytest.mark.parametrize("scale", [1e-300, 1e-30, 1.0, 1e30, 1e300])
def test_unit_rows_do_not_see_the_scale(scale):
    z, _ = random_batch([0, 0, 0])
    torch.testing.assert_close(unit(z * scale), normalize(z))


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e20, 1e37])
def test_unit_rows_have_the_gradient_of_their_scale_in_float32(scale):
    z, _ = random_batch([0, 0, 0], dtype=torch.float32)
    weight = torch.linspace(-1, 1, z.numel()).view_as(z)
    exact, seen = z.double().requires_grad_(), (z * scale).requires_grad_()
    (expected,) = torch.autograd.grad((normalize(exact) * weight).sum(), exact)
    (gradient,) = torch.autograd.grad((unit(seen) * weight).sum(), seen)
    torch.testing.assert_close(gradient.double() * scale, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("faint", [0.0, 1e-40])
def test_a_zero_row_stays_zero_with_gradient_zero_and_is_told_of_once(faint):
    z = torch.tensor([[faint, 0.0], [3.0, 4.0]], requires_grad=True)
    with pytest.warns(UserWarning, match="an embedding row is all zeros"):
        rows = unit(z)
    assert rows.tolist() == [[0.0, 0.0], [pytest.approx(0.6), pytest.approx(0.8)]]
    (gradient,) = torch.autograd.grad(rows.sum(), z)
    assert gradient[0].tolist() == [0, 0]
    assert gradient[1].isfinite().all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        unit(torch.zeros(5, 2))  # another row of another batch


def test_rows_out_of_range_are_shortened_with_their_direction():
    z = torch.tensor([[3e20, 4e20], [3.0, 4.0], [0.0, 0.0]], requires_grad=True)
    with pytest.warns(UserWarning, match=r"entries beyond 1e\+15"):
        rows = bounded(z)
    torch.testing.assert_close(rows[0], torch.tensor([0.75e15, 1e15]))
    assert rows[1:].tolist() == [[3, 4], [0, 0]]
    assert torch.autograd.grad(rows.sum(), z)[0].isfinite().all()
    same = torch.ones(2, 2)
    assert bounded(same) is same


@pytest.mark.parametrize("closeness", ["euclidean", "inner"])
def test_huge_rows_have_finite_similarities(closeness):
    z, label = random_batch([0, 0, 1, 1], dtype=torch.float32)
    with pytest.warns(UserWarning, match="entries beyond"):
        c = in_batch(z * 1e20, label, closeness)
    assert c.similarity.isfinite().all()


# --- a comparison of one's own


def test_a_comparison_must_say_how_it_compares():
    with pytest.raises(TypeError, match="Compare says no forward"):
        Compare(None)(QUAD4, labelled(LABEL4))


def test_closeness_is_settled_once():
    compare = InBatch()
    assert "None" in repr(compare)
    compare.settle("euclidean")
    compare.settle("cosine")
    assert compare.closeness == "euclidean"
    assert compare.remember(QUAD4, labelled(LABEL4)) is None


# --- in batch, across views


@pytest.mark.parametrize("closeness", ["cosine", "euclidean", "inner", None])
def test_in_batch_meets_itself(closeness):
    z, label = random_batch(LABELS["pairs"])
    c = InBatch(closeness)(z, labelled(label))
    assert c.square() is c
    assert c.columns_are == "rows"
    assert c.closeness == (closeness or "cosine")
    assert not c.same.diagonal().any()
    assert not c.different.diagonal().any()
    rows = normalize(z) if closeness in ("cosine", None) else z
    torch.testing.assert_close(c.anchors, rows)


def test_across_views_compares_view_0_with_view_1():
    z, _ = random_batch([0] * 6)
    view, pair = torch.tensor([1, 0, 0, 1, 1, 0]), torch.tensor([7, 8, 7, 9, 8, 9])
    compare = AcrossViews()
    assert compare.needs == ("view", "pair")
    c = compare(z, Batch(None, view=view, pair=pair))
    assert c.shape == (3, 3)
    assert c.anchor_label.tolist() == [8, 7, 9]
    assert c.reference_label.tolist() == [7, 9, 8]
    assert c.same.nonzero().tolist() == [[0, 2], [1, 0], [2, 1]]
    assert int(c.different.sum()) == 6
    torch.testing.assert_close(c.similarity, normalize(z[view == 0]) @ normalize(z[view == 1]).T)


def test_a_third_view_is_refused():
    with pytest.raises(ValueError, match="must hold 0 and 1 only"):
        AcrossViews()(QUAD4, Batch(None, view=torch.tensor([0, 1, 2, 0]), pair=LABEL4))


# --- memory


def fed(memory, *batches):
    for z, label in batches:
        memory.remember(z, labelled(label))
    return memory


def numbered(first, rows):
    """Rows that tell their own number by their direction."""
    angle = torch.arange(first, first + rows, dtype=torch.float64) / 10
    return torch.stack([angle.cos(), angle.sin()], 1), torch.arange(first, first + rows)


def compared_labels(memory, z, label):
    c = memory(z, labelled(label))
    return c.reference_label[(c.same | c.different)[0]].tolist()


def test_an_empty_memory_equals_in_batch():
    z, label = random_batch(LABELS["unbalanced"])
    c = Memory(5, 16).double()(z, labelled(label))
    assert c.shape == (10, 26)
    expected = in_batch(z, label)
    torch.testing.assert_close(infonce(c).total, infonce(expected).total)
    assert torch.equal(c.same[:, :10], expected.same)
    assert not c.same[:, 10:].any()
    assert not c.different[:, 10:].any()


def test_only_filled_places_are_compared_and_shapes_never_change():
    memory = Memory(2, 5).double()
    z, label = numbered(90, 2)
    shapes = {key: value.shape for key, value in memory.state_dict().items()}
    assert compared_labels(memory, z, label) == [91]
    fed(memory, numbered(0, 3))
    assert compared_labels(memory, z, label) == [91, 0, 1, 2]
    fed(memory, numbered(3, 3))  # wraps: row 5 overwrites row 0, the oldest
    assert compared_labels(memory, z, label) == [91, 5, 1, 2, 3, 4]
    assert memory(z, labelled(label)).shape == (2, 7)
    assert {key: value.shape for key, value in memory.state_dict().items()} == shapes


def test_what_is_kept_are_rows_as_they_were_compared():
    memory = Memory(5, 4).double()
    z, label = random_batch([0, 0, 1])
    fed(memory, (z, label))
    torch.testing.assert_close(memory.kept[:3], normalize(z))
    c = memory(z, labelled(label))
    torch.testing.assert_close(c.similarity[:, 3:6], normalize(z) @ normalize(z).T)
    assert c.same[0, 3:].tolist() == [True, True, False, False]


@pytest.mark.parametrize("rows", [5, 6, 11])
def test_a_batch_larger_than_the_memory_leaves_its_last_rows(rows):
    memory = fed(Memory(2, 5).double(), numbered(50, 2), numbered(0, rows))
    assert sorted(memory.kept_label.tolist()) == list(range(rows - 5, rows))
    z, label = numbered(rows, 2)
    fed(memory, (z, label))
    assert sorted(memory.kept_label.tolist()) == list(range(rows - 3, rows + 2))
    for place, row in zip(memory.kept_label.tolist(), memory.kept, strict=True):
        torch.testing.assert_close(row, numbered(place, 1)[0][0])


def test_nothing_is_remembered_in_evaluation():
    memory = fed(Memory(2, 4).double().eval(), numbered(0, 3))
    assert int(memory.written) == 0
    assert not memory.kept.any()


def test_a_memory_survives_saving_and_loading():
    memory = fed(Memory(2, 4).double(), numbered(0, 6))
    other = Memory(2, 4).double()
    other.load_state_dict(memory.state_dict())
    fed(memory, numbered(6, 2))
    fed(other, numbered(6, 2))
    for key, value in memory.state_dict().items():
        assert torch.equal(value, other.state_dict()[key])


def test_a_memory_passes_gradients_to_the_batch_only():
    memory = fed(Memory(5, 8).double(), random_batch([0, 1, 2]))
    z, label = random_batch([0, 1, 1], seed=1)
    z.requires_grad_()
    infonce(memory(z, labelled(label))).total.backward()
    assert z.grad.norm() > 0
    assert not memory.kept.requires_grad


def test_a_memory_refuses_multi_label_rows_and_no_size():
    with pytest.raises(ValueError, match="one label a row"):
        Memory(2)(QUAD4, labelled(torch.ones(4, 3).bool()))
    with pytest.raises(ValueError, match="size >= 1, not 0"):
        Memory(2, 0)


# --- classes


def test_proxies_stand_per_class_in_a_row():
    proxies = Proxies(3, 2, per_class=2, closeness="cosine").double()
    c = proxies(QUAD4, labelled([0, 2, 2, 1]))
    assert c.columns_are == "classes"
    assert c.reference_label.tolist() == [0, 0, 1, 1, 2, 2]
    assert c.same[1].tolist() == [False, False, False, False, True, True]
    torch.testing.assert_close(c.similarity, QUAD4 @ normalize(proxies.vectors).T)
    assert list(proxies.state_dict()) == ["vectors"]


def test_means_and_sums_of_the_classes_present():
    z, label = random_batch([4, 4, 4, 1])
    batch = labelled(label)
    means = Centers("means", "inner")(z, batch)
    sums = Centers("sums", "inner")(z, batch)
    assert means.reference_label.tolist() == [1, 4]
    torch.testing.assert_close(means.references, torch.stack([z[3], z[:3].mean(0)]))
    torch.testing.assert_close(sums.references, torch.stack([z[3], z[:3].sum(0)]) / 4)
    cosine = Centers("means")(z, batch)
    expected = normalize(torch.stack([normalize(z)[3], normalize(z)[:3].mean(0)]))
    torch.testing.assert_close(cosine.references, expected)


def test_centers_pass_gradients_to_the_rows():
    z, label = random_batch([0, 0, 1])
    z.requires_grad_()
    c = Centers("means", "inner")(z, labelled(label))
    (gradient,) = torch.autograd.grad(c.references[0].sum(), z)
    torch.testing.assert_close(gradient[:, 0], torch.tensor([0.5, 0.5, 0.0]).double())


def test_centers_refuse_multi_label_rows():
    with pytest.raises(ValueError, match="rows of one class each"):
        Centers()(QUAD4, labelled(torch.ones(4, 2).bool()))


def test_a_classifier_starts_at_zero_and_adds_its_bias():
    head = Classifier(3, 2, closeness="inner").double()
    c = head(QUAD4, labelled([0, 1, 2, 2]))
    assert not c.similarity.any()
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[1.0, 0], [0, 1], [1, 1]]))
        head.bias.copy_(torch.tensor([0.0, 5, 0]))
    c = head(QUAD4, labelled([0, 1, 2, 2]))
    torch.testing.assert_close(c.similarity, QUAD4 @ head.weight.T + head.bias)
    assert sorted(head.state_dict()) == ["bias", "weight"]
    assert Classifier(3, 2, bias=False, closeness="cosine").bias is None


def test_dropout_stands_before_the_classifier_and_in_training_only():
    head = Classifier(2, 50, dropout=0.5, closeness="inner")
    z = torch.ones(4, 50)
    torch.manual_seed(0)
    zeros = (head(z, labelled(LABEL4)).anchors == 0).float().mean().item()
    assert 0.3 < zeros < 0.7
    assert torch.equal(head.eval()(z, labelled(LABEL4)).anchors, z)


@pytest.mark.parametrize("dropout", [-0.1, 1.0])
def test_a_dropout_out_of_range_is_refused(dropout):
    with pytest.raises(ValueError, match=r"dropout must be in \[0, 1\)"):
        Classifier(2, 2, dropout=dropout)


def test_a_classifier_by_cosine_has_no_bias():
    with pytest.raises(ValueError, match="set bias: false or use proxies"):
        Classifier(2, 2).settle("cosine")
    head = Classifier(2, 2, bias=False).double()
    head.settle("cosine")
    head.weight.data.fill_(3.0)
    c = head(QUAD4 * 7, labelled(LABEL4))
    torch.testing.assert_close(c.similarity, QUAD4.sum(1, keepdim=True).expand(4, 2) / 2**0.5)


@pytest.mark.parametrize("kind", [Classifier, Proxies])
@pytest.mark.parametrize(("label", "seen"), [([0, 1, 2, 3], 3), ([0, -1, 1, 2], -1)])
def test_a_label_without_a_column_is_named(kind, label, seen):
    compare = kind(3, 2, closeness="inner").double()
    with pytest.raises(ValueError, match=f"label {seen} is out of range.*classes 0..2"):
        compare(QUAD4, labelled(label))


@pytest.mark.parametrize(
    "make", [lambda: Classifier(3, 8), lambda: Proxies(3, 8), lambda: Memory(8)]
)
def test_embeddings_of_another_width_are_refused(make):
    with pytest.raises(
        ValueError, match="embeddings of 2 dimensions meet references of 8; set dim"
    ):
        make()(QUAD4.float(), labelled([0, 1, 2, 2]))


def test_multi_hot_rows_meet_the_columns_of_their_classes():
    label = torch.tensor([[1, 0, 1], [0, 1, 0], [0, 0, 0], [1, 1, 1]]).bool()
    c = Classifier(3, 2, closeness="inner").double()(QUAD4, labelled(label))
    assert torch.equal(c.same, label)
    assert torch.equal(c.different, ~label)
    with pytest.raises(ValueError, match="width 3 meet 5 classes"):
        classes_of(label, torch.arange(5))


def test_no_rows_need_no_columns():
    assert classes_of(torch.zeros(0, dtype=torch.int64), torch.arange(2)).tolist() == [0, 1]


@pytest.mark.parametrize("loss", [infonce, jsd, supcon])
def test_both_views_asking_is_the_mean_of_both_directions(loss):
    z, _ = random_batch([0] * 10)
    order = torch.tensor([3, 1, 4, 0, 2, 2, 0, 3, 1, 4])
    batch = Batch(None, view=torch.arange(10) % 2, pair=order[torch.arange(10) // 2 * 2])
    said = {
        anchors: loss(AcrossViews("cosine", anchors)(z, batch))
        for anchors in ("first", "second", "both")
    }
    for part in ("tightness", "contrast"):
        one, other = getattr(said["first"], part), getattr(said["second"], part)
        torch.testing.assert_close(getattr(said["both"], part), (one + other) / 2)


def test_where_both_views_ask_no_row_meets_its_own_view():
    z, _ = random_batch([0] * 6)
    batch = Batch(None, view=torch.tensor([0, 1, 0, 1, 0, 1]), pair=torch.arange(6) // 2)
    c = AcrossViews("cosine", "both")(z, batch)
    assert torch.equal(c.compared, batch["view"][:, None] != batch["view"])
    assert c.same.sum() == 6
    assert c.different.sum() == 12
