"""The nouns: a batch, a comparison and its views, terms."""

import warnings
from dataclasses import replace
from functools import partial

import pytest
import torch
from quad4 import LABEL4, QUAD4, given, in_batch, random_batch

from nearkin.closed import UnitRows
from nearkin.compare import InBatch
from nearkin.core import (
    Batch,
    Comparison,
    Home,
    Terms,
    at_least_float32,
    home,
    home_of,
    warn_once,
)


def test_the_same_sentence_is_said_once_and_another_one_again():
    with pytest.warns(UserWarning, match="one sentence"):
        warn_once("one sentence")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_once("one sentence")
    with pytest.warns(UserWarning, match="another sentence"):
        warn_once("another sentence")


def test_a_batch_is_a_mapping_of_its_columns():
    batch = Batch("inputs", label=torch.tensor([1, 2]), view=torch.tensor([0, 1]))
    assert sorted(batch) == ["label", "view"]
    assert len(batch) == 2
    assert batch["view"].tolist() == [0, 1]
    assert "pair" not in batch
    more = batch.with_columns(view=torch.tensor([1, 1]), pair=torch.tensor([5, 6]))
    assert more["view"].tolist() == [1, 1]
    assert more.inputs == "inputs"
    assert batch["view"].tolist() == [0, 1]
    assert more.without_inputs().inputs is None
    assert sorted(more.without_inputs()) == ["label", "pair", "view"]


@pytest.mark.parametrize(
    ("batch", "known"),
    [(Batch(None), "none"), (Batch(None, view=LABEL4, label=LABEL4), "label, view")],
)
def test_a_missing_column_is_named_with_those_that_are_there(batch, known):
    with pytest.raises(KeyError, match=f"no column 'pair'; its columns: {known}"):
        batch["pair"]


def test_terms_add_key_by_key_and_scale():
    one, two, four = (torch.tensor(x) for x in (1.0, 2.0, 4.0))
    a, b = Terms(one, two, {"joint": four}), Terms(four, one, {"joint": one, "penalty": two})
    both = a + b
    assert both.floats() == {
        "total": 15.0,
        "tightness": 5.0,
        "contrast": 3.0,
        "joint": 5.0,
        "penalty": 2.0,
    }
    assert (0.5 * both).floats()["total"] == 7.5
    assert (0.5 * both).floats()["penalty"] == 1.0
    assert sorted(both.named("a").other) == ["a.joint", "a.penalty"]
    assert both.named("a").total == both.total
    assert Terms().floats() == {"total": 0.0, "tightness": 0.0, "contrast": 0.0}


def test_a_home_is_found_on_a_loss_and_on_a_partial_of_it():
    @home("proxies", "cosine", per_class=2)
    def own(c: Comparison, *, margin: float = 1.0) -> Terms:
        return Terms()

    assert home_of(own) == Home("proxies", "cosine", {"per_class": 2})
    assert home_of(partial(own, margin=2.0)) == home_of(own)
    assert home_of(lambda c: Terms()) is None
    with pytest.raises(ValueError, match="'cosinus' is no closeness; expected one of cosine"):
        home("proxies", "cosinus")


def test_similarities_of_quad4_are_cosines():
    s = in_batch(3 * QUAD4, LABEL4).similarity
    expected = [[1, 0.5, 0, -1], [0.5, 1, 0.8660254038, -0.5], [0, 0.8660254038, 1, 0]]
    expected = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(s[:3], expected, atol=1e-9, rtol=0)


def test_distances_are_those_of_unit_rows_under_cosine():
    z, label = random_batch([0, 0, 1, 1, 2])
    c, rows = in_batch(z, label), torch.nn.functional.normalize(z)
    off = ~torch.eye(5, dtype=torch.bool)
    torch.testing.assert_close(c.distance[off], torch.cdist(rows, rows)[off])


def test_distances_are_those_of_the_rows_under_euclidean():
    z, label = random_batch([0, 0, 1, 1, 2])
    c = in_batch(z, label, "euclidean")
    off = ~torch.eye(5, dtype=torch.bool)
    torch.testing.assert_close(c.distance[off], torch.cdist(z, z)[off])
    torch.testing.assert_close(c.similarity, 1 - torch.cdist(z, z).square() / 2)


def test_a_large_common_offset_does_not_spoil_euclidean_similarities():
    z, label = random_batch([0, 0, 1, 1, 2, 2], dim=16, dtype=torch.float32)
    shifted = z + 1e4  # the sum itself is rounded to about 1e-3
    exact = 1 - torch.cdist(shifted.double(), shifted.double()).square() / 2
    seen = in_batch(shifted, label, "euclidean").similarity
    assert seen.dtype == torch.float32
    torch.testing.assert_close(seen.double(), exact, atol=1e-3, rtol=1e-4)


def test_inner_products_take_the_bias():
    a, r, bias = torch.randn(3, 4), torch.randn(2, 4), torch.tensor([1.0, -2.0])
    c = Comparison(torch.arange(3), torch.arange(2), "classes", "inner", a, r, bias)
    torch.testing.assert_close(c.similarity, a @ r.T + bias)


@pytest.mark.parametrize("closeness", ["inner", "given"])
def test_a_distance_is_refused_where_closeness_is_none(closeness):
    c = given(torch.zeros(2, 2), [0, 1], [0, 1], closeness=closeness)
    with pytest.raises(ValueError, match=f"a comparison by '{closeness}' has no distance"):
        _ = c.distance


def test_a_comparison_of_nothing_has_no_similarity():
    c = Comparison(LABEL4, LABEL4)
    with pytest.raises(ValueError, match="needs anchors and references, or a given similarity"):
        _ = c.similarity


def test_identical_rows_have_distance_about_zero_and_gradient_zero():
    z = torch.ones(3, 4, dtype=torch.float64, requires_grad=True)
    c = in_batch(z, torch.tensor([0, 0, 1]))
    (gradient,) = torch.autograd.grad(c.distance.sum(), z)
    assert float(c.distance.max().detach()) < 1e-7
    assert torch.equal(gradient, torch.zeros_like(gradient))


def test_same_and_different_leave_oneself_out():
    c = in_batch(QUAD4, LABEL4)
    yes = torch.tensor([[0, 1], [1, 0]]).bool()
    assert torch.equal(c.same, torch.block_diag(yes, yes).bool())
    assert torch.equal(c.different, LABEL4[:, None] != LABEL4[None])
    assert c.shape == (4, 4)
    assert not c.mined


def test_without_oneself_every_pair_counts():
    c = given(torch.zeros(2, 3), [0, 1], [0, 1, 1])
    assert c.same.tolist() == [[True, False, False], [False, True, True]]
    assert torch.equal(c.different, ~c.same)


def test_only_allowed_pairs_are_compared():
    allowed = torch.tensor([[True, True, False, False]] * 4)
    c = given(torch.zeros(4, 4), LABEL4, LABEL4, allowed=allowed, oneself=torch.arange(4))
    assert c.same.nonzero().tolist() == [[0, 1], [1, 0]]
    assert c.different.nonzero().tolist() == [[2, 0], [2, 1], [3, 0], [3, 1]]


def test_minus_one_means_that_no_column_is_the_anchor():
    c = given(torch.zeros(2, 2), [0, 0], [0, 0], oneself=torch.tensor([-1, 1]))
    assert c.same.tolist() == [[True, True], [True, False]]


def test_labels_beyond_the_integers_of_a_float_are_told_apart():
    big = 2**53
    c = in_batch(QUAD4, torch.tensor([big, big + 1, big, big + 2]))
    assert c.same.nonzero().tolist() == [[0, 2], [2, 0]]


def test_rows_with_several_labels_are_the_same_if_they_share_one():
    label = torch.tensor([[1, 1, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]]).bool()
    c = in_batch(QUAD4, label)
    assert c.shape == (4, 4)
    assert c.same.nonzero().tolist() == [[0, 1], [1, 0]]
    assert int(c.different.sum()) == 10
    rows, columns = c.pairs()
    picked = c.columns(rows, torch.stack([columns, torch.tensor([2, 3])], 1))
    assert picked.mined
    assert picked.shape == (2, 2)
    assert picked.same.tolist() == [[True, False], [True, False]]


def test_pairs_are_the_positive_ones_in_row_order():
    rows, columns = in_batch(QUAD4, LABEL4).pairs()
    assert rows.tolist() == [0, 1, 2, 3]
    assert columns.tolist() == [1, 0, 3, 2]


def test_columns_makes_one_row_a_pair_with_references_of_its_own():
    c = in_batch(QUAD4, LABEL4)
    picked = c.columns(torch.tensor([0, 0, 3]), torch.tensor([[1, 2], [1, 3], [2, 0]]))
    assert picked.shape == (3, 2)
    assert picked.anchor_label.tolist() == [0, 0, 1]
    assert picked.reference_label.tolist() == [[0, 1], [0, 1], [1, 0]]
    expected = torch.tensor([[0.5, 0.0], [0.5, -1.0], [0.0, -1.0]]).double()
    torch.testing.assert_close(picked.similarity, expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(picked.distance, (2 - 2 * expected).sqrt())
    assert picked.same.tolist() == [[True, False]] * 3
    assert picked.different.tolist() == [[False, True]] * 3
    with pytest.raises(ValueError, match="mined row by row already"):
        picked.columns(torch.tensor([0]), torch.tensor([[0]]))


def test_a_gradient_flows_through_chosen_columns():
    z = QUAD4.clone().requires_grad_()
    c = in_batch(z, LABEL4).columns(torch.tensor([0]), torch.tensor([[1, 2]]))
    (gradient,) = torch.autograd.grad(c.similarity.sum(), z)
    assert gradient[:3].norm() > 0
    assert gradient[3].norm() == 0


def test_square_gives_itself_only_if_a_batch_meets_itself():
    c = in_batch(QUAD4, LABEL4)
    assert c.square() is c
    for other in (
        Comparison(LABEL4, LABEL4, anchors=QUAD4, references=QUAD4.clone()),
        c.columns(*(x[:, None] if i else x for i, x in enumerate(c.pairs()))),
    ):
        with pytest.raises(ValueError, match="compare in_batch"):
            other.square()


def test_views_are_computed_once():
    c = in_batch(QUAD4, LABEL4)
    assert c.similarity is c.similarity
    assert c.distance is c.distance
    assert c.same is c.same
    assert c.different is c.different


@pytest.mark.parametrize("closeness", ["cosine", "euclidean", "inner"])
def test_similarity_stays_float32_under_autocast_and_for_bfloat16_rows(closeness):
    z, label = random_batch([0, 0, 1, 1], dtype=torch.float32)
    expected = in_batch(z, label, closeness).similarity
    with torch.autocast("cpu", torch.bfloat16):
        seen = in_batch(z, label, closeness).similarity
        low = InBatch(closeness)(z.bfloat16(), Batch(None, label=label)).similarity
    assert seen.dtype == low.dtype == torch.float32
    assert torch.equal(seen, expected)


def test_a_given_similarity_is_widened_and_float64_is_kept():
    low = Comparison(LABEL4, LABEL4, given=torch.zeros(4, 4, dtype=torch.bfloat16))
    assert low.similarity.dtype == torch.float32
    wide = torch.zeros(2, dtype=torch.float64)
    assert at_least_float32(wide) is wide
    assert at_least_float32(wide.float()).dtype == torch.float32


def test_unit_rows_are_made_when_they_are_read_and_then_kept():
    made = []
    lazy = UnitRows(torch.ones(3, 2), lambda x: made.append(1) or x / 2)
    c = Comparison(torch.tensor([0]), torch.arange(3), references=lazy)
    assert c.unmade is lazy
    assert not made
    assert c.references is c.references
    assert len(made) == 1
    assert replace(c, bias=None).references is c.references


def test_who_reads_unit_rows_first_without_gradients_takes_none_away():
    x = torch.tensor([[3.0, 4.0]], requires_grad=True)
    c = Comparison(torch.tensor([0]), torch.tensor([0]), references=UnitRows(x, lambda x: x / 5))
    with torch.no_grad():
        assert c.references.norm() == 1
    c.references.sum().backward()
    assert x.grad.tolist() == [[pytest.approx(0.2)] * 2]


def test_references_may_be_left_out():
    assert Comparison(torch.tensor([0]), torch.arange(3)).references is None


@pytest.mark.parametrize(
    "label",
    [
        *([0, 1, 0, 2, 1, 3], [0, 0, 1, 1], [5], [0, 0, 0, 1], list(range(9)) * 3),
        [4, 0, 0, 1, 2, 2, 2, *range(5, 30)],
    ],
)
@pytest.mark.parametrize("start", [0, 1])
def test_what_is_kept_of_a_block_is_what_the_masks_say(label, start):
    label = torch.tensor(label)
    z = torch.randn(len(label), 3, generator=torch.Generator().manual_seed(0))
    c = InBatch("cosine")(z, Batch(None, label=label))
    narrow = c.narrowed(torch.rand(len(label), len(label)) < 0.6)
    others = replace(c, reference_label=label.clone(), references=z)
    part = slice(start, start + 2)
    for each in (c, narrow, others):
        x = each.similarity[part]
        for keep, mask in (
            (each.keep_different, each.different),
            (each.keep_compared, each.compared),
        ):
            seen = keep(x.clone(), part, -7.0)
            assert torch.equal(seen, torch.where(mask[part], x, -7.0))
        assert torch.equal(each.negatives, each.different.sum(1))


def test_a_total_is_a_tensor_of_its_own():
    terms = Terms(other={"joint": torch.tensor(2.0)})
    total = terms.total
    total /= 4
    assert terms.floats()["joint"] == 2
    assert isinstance(Terms(other={"joint": 0.0}).total, torch.Tensor)
    assert Terms().total == 0
    assert Terms(torch.tensor(1.0), torch.tensor(2.0), {"joint": torch.tensor(4.0)}).total == 7
