"""Masked reductions, and a softmax over many classes in blocks."""

import math

import pytest
import torch
from torch.autograd import gradcheck

from nearkin import reduce
from nearkin.closed import unit_rows
from nearkin.core import Comparison

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


def test_softplus_of_a_log_sum_exp_adds_one_and_is_zero_for_nothing():
    x = X.clone().requires_grad_()
    value = reduce.softplus(reduce.logsumexp(x, MASK))
    assert value[0].item() == pytest.approx(math.log(1 + math.e + math.e**3))
    assert value[1].item() == 0
    (gradient,) = torch.autograd.grad(value.sum(), x)
    assert gradient[1].tolist() == [0, 0, 0]
    assert gradient[0, 1] == 0
    along = reduce.softplus(reduce.logsumexp(X, MASK, dim=0))
    expected = [math.log1p(math.e), 0.0, math.log1p(math.e**3)]
    torch.testing.assert_close(along, torch.tensor(expected, dtype=torch.float64))


def test_huge_entries_do_not_overflow():
    x = torch.tensor([[1e30, -1e30]])
    assert reduce.softplus(reduce.logsumexp(x, torch.ones(1, 2).bool())).item() == x[0, 0].item()


# --- a softmax over many classes, in blocks


def drawn(*shape, seed=0):
    random = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=random, requires_grad=True)


COLUMN = torch.tensor([3, 0, 6, 3, 5])


def whole(a, r, bias):
    """The same by plain autograd over all logits."""
    logits = a @ r.T if bias is None else a @ r.T + bias
    rest = logits.scatter(1, COLUMN[:, None], -torch.inf).logsumexp(1)
    return logits.gather(1, COLUMN[:, None]), rest


@pytest.mark.parametrize("kept", [0, 1 << 28])
@pytest.mark.parametrize("entries", [1, 12, 35, 1 << 20])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("used", [(0,), (1,), (0, 1)])
def test_blocked_softmax_equals_dense_in_value_and_gradient(
    kept, entries, biased, used, monkeypatch
):
    monkeypatch.setattr(reduce, "ENTRIES", entries)
    monkeypatch.setattr(reduce, "KEPT", kept)
    leaves = [drawn(5, 4), drawn(7, 4, seed=1), *([drawn(7, seed=2)] if biased else [])]
    bias = leaves[2] if biased else None
    seen = reduce.blocked_softmax(leaves[0], leaves[1], COLUMN, bias)
    expected = whole(leaves[0], leaves[1], bias)
    for mine, theirs in zip(seen, expected, strict=True):
        torch.testing.assert_close(mine, theirs)
    # Twice: the first backward pass must leave what is kept as it is.
    for seed in (3, 4):
        weights = [drawn(*x.shape, seed=seed).detach() for x in seen]
        sums = [sum((x[k] * weights[k]).sum() for k in used) for x in (seen, expected)]
        slopes = [torch.autograd.grad(x, leaves, retain_graph=True) for x in sums]
        for mine, theirs in zip(*slopes, strict=True):
            torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("entries", [10, 1 << 20])
def test_blocked_softmax_of_unit_rows_reaches_what_they_were_made_of(entries, monkeypatch):
    monkeypatch.setattr(reduce, "ENTRIES", entries)
    a, x = drawn(5, 4), drawn(7, 4, seed=1)
    rows, _ = unit_rows(x)
    own, rest = reduce.blocked_softmax(a, rows, COLUMN)
    plain = whole(a, torch.nn.functional.normalize(x), None)
    seen = torch.autograd.grad((own[:, 0] * rest).sum(), [a, x])
    expected = torch.autograd.grad((plain[0][:, 0] * plain[1]).sum(), [a, x])
    for mine, theirs in zip(seen, expected, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_blocked_softmax_passes_gradcheck(monkeypatch):
    monkeypatch.setattr(reduce, "ENTRIES", 10)
    leaves = [drawn(5, 3), drawn(7, 3, seed=1)]
    assert gradcheck(lambda a, r: reduce.blocked_softmax(a, r, COLUMN), leaves)


@pytest.mark.parametrize("frozen", [0, 1])
def test_blocked_softmax_leaves_what_is_frozen(frozen):
    leaves = [drawn(5, 3), drawn(7, 3, seed=1)]
    leaves[frozen].requires_grad_(False)
    reduce.blocked_softmax(*leaves, COLUMN)[1].sum().backward()
    assert leaves[frozen].grad is None
    assert leaves[1 - frozen].grad.norm() > 0


def test_alone_in_its_softmax_a_column_has_no_rest():
    a, r = drawn(2, 3), drawn(1, 3, seed=1)
    own, rest = reduce.blocked_softmax(a, r, torch.zeros(2, dtype=torch.int64))
    assert rest.tolist() == [-math.inf, -math.inf]
    value = torch.logaddexp(own[:, 0], rest).sum()
    torch.testing.assert_close(value, (a @ r.T).sum())
    for mine, theirs in zip(
        torch.autograd.grad(value, [a, r]),
        torch.autograd.grad((a @ r.T).sum(), [a, r]),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs)


def test_logits_of_any_size_stay_finite():
    a = torch.tensor([[2.0**60, 0.0], [0.0, 80.0]], requires_grad=True)
    r = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, -1.0]], requires_grad=True)
    own, rest = reduce.blocked_softmax(a, r, torch.tensor([0, 2]))
    assert own[:, 0].tolist() == [2.0**60, -80]
    assert rest.tolist() == [0.0, pytest.approx(math.log(2))]
    for slope in torch.autograd.grad(rest.sum(), [a, r]):
        assert slope.isfinite().all()


# --- columns of classes


def columns_are(label, columns, **fields):
    label, columns = torch.as_tensor(label), torch.as_tensor(columns)
    return Comparison(label, columns, given=torch.zeros(len(label), len(columns)), **fields)


def test_own_column_finds_the_one_column_of_each_label():
    assert reduce.own_column(columns_are([5, 9, 5], [0, 5, 9])).tolist() == [1, 2, 1]
    assert reduce.own_column(columns_are([2**53 + 1], [2**53, 2**53 + 1])).tolist() == [1]


@pytest.mark.parametrize(
    "fields",
    [
        {"label": [0, 1], "columns": [1, 0]},
        {"label": [0, 1], "columns": [0, 0, 1, 1]},
        {"label": [0, 7], "columns": [0, 1]},
        {"label": [0, -1], "columns": [0, 1]},
        {"label": [0], "columns": [[0, 1]]},
        {"label": [[True, False]], "columns": [[True, False], [False, True]]},
        {"label": [0, 1], "columns": [0, 1], "allowed": torch.ones(2, 2).bool()},
        {"label": [0, 1], "columns": [0, 1], "oneself": torch.tensor([0, 1])},
    ],
)
def test_without_one_column_each_there_is_no_own_column(fields):
    assert reduce.own_column(columns_are(**fields)) is None


def test_by_class_puts_the_columns_of_a_class_together():
    s = torch.arange(12.0).view(2, 6)
    grouped, label = reduce.by_class(
        Comparison(torch.tensor([0, 1]), torch.tensor([4, 4, 7, 7, 0, 0]), given=s)
    )
    assert grouped.tolist() == s.view(2, 3, 2).tolist()
    assert label.tolist() == [4, 7, 0]


@pytest.mark.parametrize("columns", [[0, 0, 1], [0, 0, 0, 1, 2, 2], [0, 1, 1, 2]])
def test_by_class_refuses_classes_of_unequal_columns(columns):
    with pytest.raises(ValueError, match="as many, side by side; use proxies with per_class"):
        reduce.by_class(columns_are([0], columns))


def test_by_class_refuses_what_was_mined():
    with pytest.raises(ValueError, match="nothing may be mined"):
        reduce.by_class(columns_are([0], [0, 1], allowed=torch.ones(1, 2).bool()))


def test_moved_takes_values_and_slopes_as_they_are_given():
    x = drawn(3, 2)
    y = reduce.moved(x, lambda x: (x.exp(), 2 * x))
    torch.testing.assert_close(y, x.exp())
    (slope,) = torch.autograd.grad((3 * y).sum(), x)
    torch.testing.assert_close(slope, 6 * x.detach())


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
def test_a_setting_that_must_be_positive_is_refused_by_name(value):
    with pytest.raises(ValueError, match=f"temperature must be above 0, not {value}"):
        reduce.positive(alpha=1.0, temperature=value)
