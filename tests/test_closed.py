"""Closed forms against what autograd records for the plain formula, in float64."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck

from nearkin.closed import (
    IN_CACHE,
    distance_slope,
    distances,
    gram,
    in_blocks,
    known,
    log_sum_exp,
    masked,
    picked,
    split,
    split_log_sum_exp,
    unit_rows,
)
from nearkin.positives import mates_of, positives_of


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def coins(*shape, seed=0, share=0.4):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < share


def slopes(value, *leaves):
    return torch.autograd.grad(value, leaves)


# --- the few positives


@given(st.integers(0, 7), st.integers(1, 7), st.integers(0, 1000), st.floats(0, 1))
def test_positives_are_the_columns_of_the_mask_in_order(anchors, references, seed, share):
    same = coins(anchors, references, seed=seed, share=share)
    found = positives_of(same)
    assert found.count.tolist() == same.sum(1).tolist()
    assert found.columns.shape[1] == (max(found.count.tolist()) if anchors else 0)
    for row, mask in enumerate(same.tolist()):
        kept = found.columns[row]
        if found.valid is not None:
            assert found.valid[row].tolist() == sorted(found.valid[row].tolist(), reverse=True)
            kept = kept[found.valid[row]]
        assert kept.tolist() == [column for column, is_same in enumerate(mask) if is_same]


def test_places_that_a_row_does_not_fill_are_filled_by_a_number():
    same = torch.tensor([[True, True, False], [False, False, True]])
    positives = positives_of(same)
    assert positives.fill(torch.ones(2, 2), -7.0).tolist() == [[1, 1], [1, -7]]
    full = positives_of(torch.eye(3, dtype=torch.bool))
    assert full.valid is None
    assert full.fill(torch.ones(3, 1), -7.0).tolist() == [[1], [1], [1]]


# --- a value with a slope that is known


def test_split_gathers_the_positives_and_carries_both_slopes():
    s = normal(4, 6).requires_grad_()
    same = coins(4, 6)
    weight = normal(4, 6, seed=1)

    def weighted(x):
        return (weight * x.square()).sum(1), 2 * weight * x

    positives = positives_of(same)
    own, value = split(s, positives, weighted)
    total = (positives.fill(own, 0.0).exp() * same.any(1)[:, None]).sum() + value.sin().sum()
    plain_value = (weight * s.square()).sum(1)
    plain = torch.where(same, s.exp(), 0.0).sum() + plain_value.sin().sum()
    filler = 0 if positives.valid is None else int((~positives.valid & same.any(1)[:, None]).sum())
    assert total.item() - filler == pytest.approx(plain.item(), rel=1e-12)
    torch.testing.assert_close(slopes(total, s), slopes(plain, s))


def test_known_takes_the_slope_that_comes_with_the_value():
    s = normal(3, 5).requires_grad_()
    value = known(s, lambda x: (x.pow(3).sum(), 3 * x.square()))
    torch.testing.assert_close(slopes(2 * value, s)[0], 6 * s.square())


def test_what_scores_the_rest_is_called_once_and_without_gradients():
    calls = []

    def rest(x):
        calls.append(torch.is_grad_enabled())
        return x.sum(), torch.ones_like(x)

    s = normal(3, 5).requires_grad_()
    known(s, rest).backward()
    assert calls == [False]


@pytest.mark.parametrize("shape", [(1, 1), (7, 11), (3, IN_CACHE // 2 + 1), (1000, 700)])
def test_blocks_cover_every_row_once_and_fit_the_cache(shape):
    parts = list(in_blocks(shape))
    rows = [row for part in parts for row in range(*part.indices(shape[0]))]
    assert rows == list(range(shape[0]))
    assert all((p.stop - p.start) * shape[1] <= max(IN_CACHE, shape[1]) for p in parts)


# --- log-sum-exp


@pytest.mark.parametrize("scale", [1.0, 50.0])
@pytest.mark.parametrize("shape", [(4, 6), (700, 800)])
def test_log_sum_exp_is_that_of_autograd(shape, scale):
    s = normal(*shape).requires_grad_()
    mask = coins(*shape)
    mask[0] = True
    rows = mask.any(1)
    value = known(s, log_sum_exp(masked(mask), scale))
    plain = (scale * s).masked_fill(~mask, -torch.inf).logsumexp(1)
    torch.testing.assert_close(value[rows], plain[rows])
    weight = normal(shape[0], seed=2) * rows
    seen = slopes((weight * torch.where(rows, value, 0.0)).sum(), s)
    hidden = (scale * s).masked_fill(~mask, -1e300).logsumexp(1)
    torch.testing.assert_close(seen, slopes((weight * torch.where(rows, hidden, 0.0)).sum(), s))


def test_the_log_sum_exp_of_nothing_is_minus_infinity_with_slope_zero():
    s = normal(3, 4, dtype=torch.float32).requires_grad_()
    mask = torch.zeros(3, 4, dtype=torch.bool)
    mask[1] = True
    value = known(s, log_sum_exp(masked(mask), 64.0))
    assert value[[0, 2]].tolist() == [-torch.inf, -torch.inf]
    (slope,) = slopes(value.exp().sum(), s)
    assert not slope[[0, 2]].any()
    assert slope.isfinite().all()


def test_a_scale_that_is_a_tensor_gets_its_gradient():
    same = positives_of(coins(4, 6))
    mask = torch.ones(4, 6, dtype=torch.bool)

    def value(s, scale):
        own, everyone = split_log_sum_exp(s, same, masked(mask), scale)
        return same.fill(own, 0.0).square().sum() + everyone.square().sum()

    leaves = (normal(4, 6).requires_grad_(), torch.tensor(1.7, dtype=torch.float64))
    assert gradcheck(value, (leaves[0], leaves[1].requires_grad_()))
    torch.testing.assert_close(value(leaves[0], leaves[1]), value(leaves[0], 1.7))


# --- similarities and directions


def test_gram_is_rows_times_rows_and_so_is_its_slope():
    x = normal(5, 3).requires_grad_()
    weight = normal(5, 5, seed=1)
    torch.testing.assert_close(gram(x), x @ x.T)
    torch.testing.assert_close(
        slopes((weight * gram(x)).sum(), x), slopes((weight * (x @ x.T)).sum(), x)
    )


def test_picked_are_the_entries_of_rows_and_columns():
    s = normal(4, 6).requires_grad_()
    rows, columns = torch.tensor([3, 0, 3]), torch.tensor([[1, 5], [0, 0], [1, 2]])
    seen, plain = picked(s, rows, columns), s[rows[:, None], columns]
    assert torch.equal(seen, plain)
    torch.testing.assert_close(slopes(seen.exp().sum(), s), slopes(plain.exp().sum(), s))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_unit_rows_have_length_one_whatever_their_scale(dtype):
    x = normal(6, 5).to(dtype)
    plain = x / x.norm(dim=1, keepdim=True)
    for scale in (1e-30, 1e-25, 1.0, 1e15, 1e25, 1e30):
        rows, empty = unit_rows(x * scale)
        assert empty is None or not empty.any()
        torch.testing.assert_close(rows, plain)


@pytest.mark.parametrize("scale", [1.0, 1e-20, 1e20])
def test_the_slope_of_unit_rows_is_that_of_the_formula(scale):
    x = (normal(6, 5) * scale).requires_grad_()
    weight = normal(6, 5, seed=1)
    plain = x / torch.linalg.vector_norm(x, dim=1, keepdim=True)
    seen = slopes((weight * unit_rows(x)[0]).sum(), x)[0] * scale
    torch.testing.assert_close(seen, slopes((weight * plain).sum(), x)[0] * scale)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_row_without_a_direction_is_zero_is_named_and_learns_nothing(dtype):
    x = normal(4, 5).to(dtype)
    x[1] = 0
    x[2] = torch.finfo(dtype).tiny / 8
    x = x.requires_grad_()
    rows, empty = unit_rows(x)
    assert empty[:, 0].tolist() == [False, True, True, False]
    assert not rows[1:3].any()
    (slope,) = slopes((rows * normal(4, 5, seed=1).to(dtype)).sum(), x)
    assert not slope[1:3].any()
    assert slope[[0, 3]].any(1).all()
    assert slope.isfinite().all()


def test_the_slope_of_a_distance_is_minus_one_over_it_and_zero_for_identical_rows():
    s = torch.tensor([1.0, 0.5, -1.0], dtype=torch.float64, requires_grad=True)
    d = distances(s)
    assert d[1:].tolist() == pytest.approx([1.0, 2.0])
    assert 0 < d[0] < 1e-70
    assert distance_slope(d.detach()).tolist() == pytest.approx([0.0, -1.0, -0.5])
    assert slopes(d[1:].sum(), s)[0].tolist() == pytest.approx([0.0, -1.0, -0.5])


@given(label=st.lists(st.integers(-3, 4), min_size=0, max_size=14))
def test_mates_are_the_positives_of_the_mask(label):
    label = torch.tensor(label, dtype=torch.int64)
    same = (label[:, None] == label).fill_diagonal_(False) if len(label) else torch.zeros(0, 0) > 0
    seen, expected = mates_of(label), positives_of(same)
    assert torch.equal(seen.columns, expected.columns)
    assert torch.equal(seen.count, expected.count)
    assert seen.pairs == expected.pairs == int(same.sum())
    assert (seen.valid is None) == (expected.valid is None)
    assert seen.valid is None or torch.equal(seen.valid, expected.valid)
