"""Masked reductions, and the softmax over many classes in blocks."""

import math

import pytest
import torch
from torch.autograd import gradcheck

from nearkin import reduce

X = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], dtype=torch.float64)
MASK = torch.tensor([[True, False, True], [False, False, False]])


def test_mean_counts_masked_entries_only():
    assert reduce.mean(X, MASK).item() == 2.0


def test_mean_of_nothing_is_zero_with_gradient_zero():
    x = (X * torch.inf).requires_grad_()
    value = reduce.mean(x, torch.zeros_like(MASK))
    (gradient,) = torch.autograd.grad(value, x)
    assert value.item() == 0
    assert torch.equal(gradient, torch.zeros_like(X))


def test_ratio_is_zero_where_nothing_was_counted():
    seen = reduce.ratio(torch.tensor([6.0, 0.0]), torch.tensor([3, 0]))
    assert seen.tolist() == [2.0, 0.0]


def test_logsumexp_sums_masked_entries_only():
    x = X.clone().requires_grad_()
    value = reduce.logsumexp(x, MASK)
    assert value[0].item() == pytest.approx(math.log(math.e + math.e**3))
    assert value[1].item() == -math.inf
    (gradient,) = torch.autograd.grad(value[0] + torch.where(value > -1e9, value, 0).sum(), x)
    share = 1 / (1 + math.e**2)
    expected = torch.tensor([[2 * share, 0, 2 - 2 * share], [0, 0, 0]], dtype=torch.float64)
    torch.testing.assert_close(gradient, expected)


def test_logsumexp_runs_along_any_dimension():
    value = reduce.logsumexp(X, MASK, dim=0)
    assert value.tolist() == [1.0, -math.inf, 3.0]


def test_log1p_sum_exp_adds_one_and_is_zero_for_nothing():
    x = X.clone().requires_grad_()
    value = reduce.log1p_sum_exp(x, MASK)
    assert value[0].item() == pytest.approx(math.log(1 + math.e + math.e**3))
    assert value[1].item() == 0
    (gradient,) = torch.autograd.grad(value.sum(), x)
    assert gradient[1].tolist() == [0, 0, 0]
    assert gradient[0, 1] == 0
    along = reduce.log1p_sum_exp(X, MASK, dim=0)
    expected = [math.log1p(math.e), 0.0, math.log1p(math.e**3)]
    torch.testing.assert_close(along, torch.tensor(expected, dtype=torch.float64))


def test_huge_entries_do_not_overflow():
    x = torch.tensor([[1e30, -1e30]])
    assert reduce.log1p_sum_exp(x, torch.ones(1, 2).bool()).item() == x[0, 0].item()


@pytest.mark.parametrize("block", [1, 3, 7, 8192])
@pytest.mark.parametrize("bias", [None, torch.linspace(-1, 1, 7, dtype=torch.float64)])
def test_blocked_softmax_equals_dense_in_value_and_gradient(block, bias):
    random = torch.Generator().manual_seed(block)
    a = torch.randn(5, 4, dtype=torch.float64, generator=random, requires_grad=True)
    r = torch.randn(7, 4, dtype=torch.float64, generator=random, requires_grad=True)
    leaves = [a, r] if bias is None else [a, r, bias.clone().requires_grad_()]
    weight = torch.randn(5, dtype=torch.float64, generator=random)
    dense = (leaves[0] @ leaves[1].T + (leaves[2] if bias is not None else 0)).logsumexp(1)
    blocked = reduce.blocked_logsumexp(*leaves, block=block)
    torch.testing.assert_close(blocked, dense)
    seen = torch.autograd.grad((blocked * weight).sum(), leaves)
    expected = torch.autograd.grad((dense * weight).sum(), leaves)
    for mine, theirs in zip(seen, expected, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_blocked_softmax_passes_gradcheck():
    leaves = [torch.randn(n, 3, dtype=torch.float64, requires_grad=True) for n in (3, 5)]
    assert gradcheck(lambda a, r: reduce.blocked_logsumexp(a, r, block=2), leaves)


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
def test_a_setting_that_must_be_positive_is_refused_by_name(value):
    with pytest.raises(ValueError, match=f"temperature must be above 0, not {value}"):
        reduce.positive(alpha=1.0, temperature=value)
