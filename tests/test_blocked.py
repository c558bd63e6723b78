"""A softmax over many classes in blocks: value and gradient are those of the whole."""

import math

import pytest
import torch
from torch.autograd import gradcheck

from nearkin import blocked
from nearkin.blocked import blocked_softmax
from nearkin.closed import UnitRows, unit_rows


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
    monkeypatch.setattr(blocked, "ENTRIES", entries)
    monkeypatch.setattr(blocked, "KEPT", kept)
    leaves = [drawn(5, 4), drawn(7, 4, seed=1), *([drawn(7, seed=2)] if biased else [])]
    bias = leaves[2] if biased else None
    seen = blocked_softmax(leaves[0], leaves[1], COLUMN, bias)
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
    monkeypatch.setattr(blocked, "ENTRIES", entries)
    a, x = drawn(5, 4), drawn(7, 4, seed=1)
    rows, _ = unit_rows(x)
    own, rest = blocked_softmax(a, rows, COLUMN)
    plain = whole(a, torch.nn.functional.normalize(x), None)
    seen = torch.autograd.grad((own[:, 0] * rest).sum(), [a, x])
    expected = torch.autograd.grad((plain[0][:, 0] * plain[1]).sum(), [a, x])
    for mine, theirs in zip(seen, expected, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_blocked_softmax_passes_gradcheck(monkeypatch):
    monkeypatch.setattr(blocked, "ENTRIES", 10)
    leaves = [drawn(5, 3), drawn(7, 3, seed=1)]
    assert gradcheck(lambda a, r: blocked_softmax(a, r, COLUMN), leaves)


@pytest.mark.parametrize("frozen", [0, 1])
def test_blocked_softmax_leaves_what_is_frozen(frozen):
    leaves = [drawn(5, 3), drawn(7, 3, seed=1)]
    leaves[frozen].requires_grad_(False)
    blocked_softmax(*leaves, COLUMN)[1].sum().backward()
    assert leaves[frozen].grad is None
    assert leaves[1 - frozen].grad.norm() > 0


def test_alone_in_its_softmax_a_column_has_no_rest():
    a, r = drawn(2, 3), drawn(1, 3, seed=1)
    own, rest = blocked_softmax(a, r, torch.zeros(2, dtype=torch.int64))
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
    own, rest = blocked_softmax(a, r, torch.tensor([0, 2]))
    assert own[:, 0].tolist() == [2.0**60, -80]
    assert rest.tolist() == [0.0, pytest.approx(math.log(2))]
    for slope in torch.autograd.grad(rest.sum(), [a, r]):
        assert slope.isfinite().all()


# --- unit rows that nobody has made


class Counted:
    """Makes unit rows and says how often."""

    def __init__(self):
        self.times = 0

    def __call__(self, x):
        self.times += 1
        return unit_rows(x)[0]


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("kept", [0, 1 << 28])
@pytest.mark.parametrize("entries", [10, 1 << 20])
def test_rows_of_any_length_are_compared_by_direction_and_never_made(
    entries, kept, biased, monkeypatch
):
    monkeypatch.setattr(blocked, "ENTRIES", entries)
    monkeypatch.setattr(blocked, "KEPT", kept)
    a, x, make = drawn(5, 4), drawn(7, 4, seed=1), Counted()
    bias = drawn(7, seed=2) if biased else None
    scale = torch.tensor([0.1, 1, 7, 1e3, 1e-3, 1, 2], dtype=torch.float64)[:, None]
    own, rest = blocked_softmax(a, UnitRows(scale * x, make), COLUMN, bias)
    plain = whole(a, torch.nn.functional.normalize(scale * x), bias)
    for mine, theirs in zip((own, rest), plain, strict=True):
        torch.testing.assert_close(mine, theirs)
    weights = drawn(5, seed=7).detach()
    for pick in (lambda o, r: (weights * o[:, 0] * r).sum(), lambda o, r: r[1], lambda o, r: o[2]):
        leaves = [a, x, *([bias] if biased else [])]
        seen = torch.autograd.grad(pick(own, rest).sum(), leaves, retain_graph=True)
        expected = torch.autograd.grad(pick(*plain).sum(), leaves, retain_graph=True)
        for mine, theirs in zip(seen, expected, strict=True):
            torch.testing.assert_close(mine, theirs)
    assert make.times == 0


@pytest.mark.parametrize("frozen", [0, 1])
def test_frozen_rows_of_any_length_get_no_slope(frozen):
    leaves = [drawn(5, 3), drawn(7, 3, seed=1)]
    leaves[frozen].requires_grad_(False)
    blocked_softmax(leaves[0], UnitRows(leaves[1], Counted()), COLUMN)[1].sum().backward()
    assert leaves[frozen].grad is None
    assert leaves[1 - frozen].grad.norm() > 0


def test_exponentials_that_vanish_leave_an_exact_gradient():
    a = torch.tensor([[900.0, 1.0], [1.0, -900.0]], dtype=torch.float64, requires_grad=True)
    x, column = drawn(4, 2, seed=3), torch.tensor([1, 1])
    own, rest = blocked_softmax(a, UnitRows(x, Counted()), column)
    logits = a @ torch.nn.functional.normalize(x).T
    plain = logits.scatter(1, column[:, None], -torch.inf).logsumexp(1)
    seen = torch.autograd.grad((rest - own[:, 0]).sum(), [a, x])
    expected = torch.autograd.grad((plain - logits.gather(1, column[:, None])[:, 0]).sum(), [a, x])
    for mine, theirs in zip(seen, expected, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("factor", [0.0, 1e-36, 1e30])
def test_lengths_that_leave_float32_are_found_with_care(factor):
    a = drawn(5, 4).float().detach()
    x = drawn(7, 4, seed=1).float().detach()
    x[2] *= factor
    x.requires_grad_()
    make = Counted()
    own, rest = blocked_softmax(a, UnitRows(x, make), COLUMN)
    assert make.times == 1
    plain = whole(a, unit_rows(x)[0], None)
    for mine, theirs in zip((own, rest), plain, strict=True):
        torch.testing.assert_close(mine, theirs)
    assert torch.autograd.grad(rest.sum(), x)[0].isfinite().all()


@pytest.mark.parametrize("kept", [0, 1 << 28])
@pytest.mark.parametrize("entries", [40, 1 << 20])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("rows", ["raw", "unit", "given"])
def test_float32_is_as_near_to_float64_as_its_rounding(rows, biased, entries, kept, monkeypatch):
    monkeypatch.setattr(blocked, "ENTRIES", entries)
    monkeypatch.setattr(blocked, "KEPT", kept)
    random = torch.Generator().manual_seed(0)
    column = torch.randint(40, (9,), generator=random)

    def scored(dtype):
        a, x = (3 * drawn(9, 6)).to(dtype), (5 * drawn(40, 6, seed=1)).to(dtype)
        bias = drawn(40, seed=2).to(dtype) if biased else None
        made = {"raw": lambda: UnitRows(x, Counted()), "unit": lambda: unit_rows(x)[0]}
        own, rest = blocked_softmax(a, made.get(rows, lambda: x)(), column, bias)
        value = (own[:, 0] * rest).sum() + rest.logsumexp(0)
        leaves = [a, x, *([bias] if biased else [])]
        return value.detach(), *torch.autograd.grad(value, leaves)

    for found, exact in zip(scored(torch.float32), scored(torch.float64), strict=True):
        size = exact.abs().max()
        torch.testing.assert_close(found.double() / size, exact / size, rtol=0, atol=2e-6)


@pytest.mark.parametrize("scale", [1e-3, 0.1, 1.0, 30.0])
@pytest.mark.parametrize("length", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("biased", [False, True])
def test_slopes_keep_their_digits_at_every_length(biased, length, scale):
    column = torch.arange(9) % 4

    def slopes(dtype):
        a, x = (scale * drawn(9, 6)).to(dtype).detach(), (length * drawn(40, 6, seed=1)).to(dtype)
        bias = (30 * drawn(40, seed=2)).to(dtype) if biased else None
        own, rest = blocked_softmax(a, UnitRows(x, Counted()), column, bias)
        return torch.autograd.grad(torch.logaddexp(own[:, 0], rest).sum() - own.sum(), x)[0]

    found, exact = slopes(torch.float32).double(), slopes(torch.float64)
    torch.testing.assert_close(found, exact, rtol=0, atol=float(3e-6 * exact.abs().max()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("rows", ["raw", "given"])
def test_a_bias_of_another_dtype_is_taken_as_the_anchors_are(rows, dtype):
    a, x = drawn(5, 4).float(), drawn(7, 4, seed=1).float()
    bias = drawn(7, seed=2).detach().to(dtype).requires_grad_()

    def slopes(bias):
        references = UnitRows(x, Counted()) if rows == "raw" else x
        own, rest = blocked_softmax(a, references, COLUMN, bias)
        assert own.dtype == rest.dtype == torch.float32
        return torch.autograd.grad(torch.logaddexp(own[:, 0], rest).sum(), bias)[0]

    found, expected = slopes(bias), slopes(bias.detach().float().requires_grad_())
    assert found.dtype == dtype
    torch.testing.assert_close(found, expected.to(dtype))


def test_no_anchors_have_no_logits():
    for rows in (drawn(7, 4).float(), UnitRows(drawn(7, 4).float(), Counted())):
        a = torch.zeros(0, 4, requires_grad=True)
        own, rest = blocked_softmax(a, rows, torch.zeros(0, dtype=torch.int64))
        assert own.shape == (0, 1)
        assert rest.shape == (0,)


def test_a_class_that_is_switched_off_gets_no_slope():
    a, x = drawn(5, 4).float().detach().requires_grad_(), drawn(9, 4, seed=1).float()
    bias = torch.zeros(9)
    bias[8] = -torch.inf
    own, rest = blocked_softmax(a, UnitRows(x, Counted()), COLUMN, bias)
    found = torch.autograd.grad(torch.logaddexp(own[:, 0], rest).sum(), [a, x])
    own, rest = blocked_softmax(a, UnitRows(x[:8], Counted()), COLUMN)
    expected = torch.autograd.grad(torch.logaddexp(own[:, 0], rest).sum(), [a, x])
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs)
