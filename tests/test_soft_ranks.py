"""Soft ranks against the plain formula, and within the memory they promise."""

import pytest
import torch
from quad4 import LABELS, in_batch, random_batch
from torch.autograd import gradcheck
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nearkin import closed
from nearkin.positives import positives_of
from nearkin.soft_ranks import soft_ranks


def dense(s, columns, mask, temperature):
    """The formula with all (A, P, R) sigmoids on the graph."""
    own = s.gather(1, columns)
    ahead = torch.sigmoid((s[:, None] - own[:, :, None]) / temperature)
    return own, (ahead * mask[:, None]).sum(2)


def comparison(labels):
    c = in_batch(*random_batch(LABELS[labels]))
    return c.similarity.detach().requires_grad_(), c.positives, c.compared


@pytest.mark.parametrize("temperature", [0.01, 1.0])
@pytest.mark.parametrize("labels", LABELS)
def test_soft_ranks_and_their_gradient_are_those_of_the_formula(labels, temperature):
    s, positives, mask = comparison(labels)
    found = soft_ranks(s, positives, mask, temperature)
    expected = dense(s, positives.columns, mask, temperature)
    # Both outputs weigh differently everywhere, so that no part of the gradient is hidden.
    random = torch.Generator().manual_seed(1)
    weights = [torch.rand(x.shape, generator=random, dtype=x.dtype) for x in expected]
    slopes = []
    for outputs in (found, expected):
        value = sum((w * x).sum() for w, x in zip(weights, outputs, strict=True))
        slopes.append(torch.autograd.grad(value, s)[0])
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(*slopes, rtol=1e-9, atol=1e-12)


def test_soft_ranks_pass_gradcheck():
    s, positives, mask = comparison("unbalanced")
    assert gradcheck(lambda s: soft_ranks(s, positives, mask, 0.1), s)


def test_a_cold_soft_rank_counts_who_is_nearer_and_a_tie_half():
    s = torch.tensor([[0.5, 0.9, 0.5, 0.1, 0.7]])
    mask = torch.tensor([[True, True, True, True, False]])
    positives = positives_of(torch.tensor([[True, False, False, True, False]]))
    own, ranks = soft_ranks(s, positives, mask, 1e-6)
    assert own.tolist() == s[:, [0, 3]].tolist()
    # 0.9 is nearer than 0.5, itself and its tie count half each; 0.7 is not in the mask.
    assert ranks.tolist() == [[2.0, 3.5]]


def test_soft_ranks_of_rows_without_positives_are_empty_and_keep_the_graph():
    s = torch.rand(3, 4, dtype=torch.float64, requires_grad=True)
    none = positives_of(torch.zeros(3, 4, dtype=torch.bool))
    own, ranks = soft_ranks(s, none, torch.ones(3, 4, dtype=torch.bool), 0.1)
    assert own.shape == ranks.shape == (3, 0)
    (slope,) = torch.autograd.grad(ranks.sum(), s)
    assert not slope.any()


class Largest(TorchDispatchMode):
    """Notes the entries of the largest tensor that any operation returns."""

    entries = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        sizes = [x.untyped_storage().nbytes() // x.element_size() for x in tensors(out)]
        self.entries = max([self.entries, *sizes])
        return out


def tensors(tree):
    return [x for x in tree_leaves(tree) if isinstance(x, torch.Tensor)]


def test_soft_ranks_never_hold_more_than_one_block_of_sigmoids(monkeypatch):
    rows, most = 40, 19
    s = torch.rand(rows, rows, dtype=torch.float64, requires_grad=True)
    same = torch.ones(rows, rows, dtype=torch.bool).tril(-1)
    same = same & (torch.arange(rows) < most)
    mask = torch.ones_like(same)
    positives = positives_of(same)
    whole = torch.autograd.grad(soft_ranks(s, positives, mask, 0.1)[1].square().sum(), s)
    monkeypatch.setattr(closed, "IN_CACHE", 3 * most * rows)
    with Largest() as seen:
        blocks = torch.autograd.grad(soft_ranks(s, positives, mask, 0.1)[1].square().sum(), s)
    assert seen.entries == 3 * most * rows < rows * most * rows / 10
    torch.testing.assert_close(blocks, whole, rtol=1e-12, atol=1e-12)
