"""Masked reductions, means over pairs, and columns of classes."""

import math

import pytest
import torch

from nearkin import reduce
from nearkin.core import Comparison
from nearkin.positives import positives_of

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


def drawn(*shape, seed=0):
    random = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=random, requires_grad=True)


# --- means over pairs


@pytest.mark.parametrize("whole", [True, False])
def test_pair_means_are_those_of_a_slow_loop_with_their_gradient(whole):
    same = torch.tensor([[0, 1, 1, 0], [1, 0, 0, 1], [1, 1, 0, 0]]) > 0
    if not whole:
        same[1], same[2, 0] = False, False
    own, rest, positives = drawn(3, 2), drawn(3, seed=1), positives_of(same)
    seen = reduce.pair_means(positives, own, rest)
    taken = [(i, p) for i in range(3) for p in range(int(same[i].sum()))]
    expected = (
        sum(own[i, p] for i, p in taken) / len(taken),
        sum(torch.logaddexp(own[i, p], rest[i]) for i, p in taken) / len(taken),
    )
    for weights in ((1.0, 0.0), (0.0, 1.0), (-2.0, 3.0)):
        slopes = [
            torch.autograd.grad(a * weights[0] + b * weights[1], [own, rest], retain_graph=True,
                                allow_unused=True, materialize_grads=True)
            for a, b in (seen, expected)
        ]  # fmt: skip
        for mine, theirs in zip(*slopes, strict=True):
            torch.testing.assert_close(mine, theirs)
    for mine, theirs in zip(seen, expected, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_pair_means_of_no_pairs_are_zero_and_no_rest_counts_alone():
    nobody = positives_of(torch.zeros(2, 3, dtype=torch.bool))
    rest = drawn(2)
    seen = reduce.pair_means(nobody, torch.empty(2, 0, dtype=torch.float64), rest)
    assert [x.item() for x in seen] == [0, 0]
    own = drawn(2, 1)
    alone = positives_of(torch.eye(2, dtype=torch.bool))
    _, everyone = reduce.pair_means(alone, own, torch.full((2,), -torch.inf).double())
    torch.testing.assert_close(everyone, own.mean())


@pytest.mark.parametrize("whole", [True, False])
def test_mean_of_means_gives_each_anchor_one_vote(whole):
    same = torch.tensor([[0, 1, 1], [1, 0, 1], [1, 1, 0]]) > 0
    same[1, 0] = whole
    x, positives = drawn(3, 2), positives_of(same)
    rows = [x[i, : int(same[i].sum())].mean() for i in range(3)]
    torch.testing.assert_close(reduce.mean_of_means(positives, x), torch.stack(rows).mean())


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
