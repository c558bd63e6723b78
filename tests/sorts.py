"""One comparison of each sort, and the check of a loss against a slow formula on all of them."""

from dataclasses import replace

import torch
from quad4 import in_batch, random_batch
from torch.nn.functional import normalize

from nearkin.core import Comparison

LABEL = torch.tensor([4, 0, 2, 0, 4, 4, 1, 2, 0, 3, 0])
Z = random_batch(LABEL.tolist())[0]


def _in_batch(z):
    return in_batch(z, LABEL)


def _of_references(z):
    """The first five rows against the others, some of them without a positive there."""
    rows = normalize(z)
    return Comparison(LABEL[:5], LABEL[5:], anchors=rows[:5], references=rows[5:])


def _with_a_memory(z):
    rows = normalize(z)
    filled = torch.arange(11) < 9
    return Comparison(
        LABEL[:4],
        LABEL,
        anchors=rows[:4],
        references=rows,
        oneself=torch.arange(4),
        allowed=filled.expand(4, -1),
    )


def _with_a_mask(z):
    random = torch.Generator().manual_seed(5)
    return replace(_in_batch(z), allowed=torch.rand(11, 11, generator=random) < 0.6)


def _mined_by_row(z):
    """Rows of one positive and one negative, an anchor more than once."""
    rows, columns = torch.tensor([1, 1, 0, 2, 8, 5]), torch.tensor([3, 8, 4, 7, 10, 0])
    return _in_batch(z).columns(rows, torch.stack([columns, torch.tensor([0, 2, 9, 6, 5, 3])], 1))


def _multi_hot(z):
    labels = torch.nn.functional.one_hot(LABEL, 5).bool()
    labels[2, 4] = labels[6, 0] = labels[9, 2] = True
    labels[5] = False
    return in_batch(z, labels)


def _without_positives(z):
    return in_batch(z[:4], torch.arange(4))


def _without_negatives(z):
    return in_batch(z[:4], torch.zeros(4, dtype=torch.int64))


def _of_one_row(z):
    return in_batch(z[:1], LABEL[:1])


SORTS = {
    "in batch": _in_batch,
    "of references": _of_references,
    "with a memory": _with_a_memory,
    "with a mask": _with_a_mask,
    "mined by row": _mined_by_row,
    "multi-hot": _multi_hot,
    "without positives": _without_positives,
    "without negatives": _without_negatives,
    "of one row": _of_one_row,
}


def sides(c):
    """For each anchor: its label, the similarities of its positives and those of its negatives."""
    return [
        (label, s[same], s[different])
        for label, s, same, different in zip(
            c.anchor_label, c.similarity, c.same, c.different, strict=True
        )
    ]


def total_of(values):
    """Their sum, 0 where there are none."""
    return sum(values, torch.zeros((), dtype=torch.float64))


def mean_of(values):
    """Their mean, 0 where there are none."""
    return total_of(values) / max(len(values), 1)


def assert_agrees(loss, slow, make, settings):
    """Every part, and the gradients to the embeddings and to settings that learn."""
    seen, gradients = _measured(loss, make, settings)
    wanted, expected = _measured(slow, make, settings)
    assert seen.other.keys() == wanted.other.keys()
    for key, value in wanted.floats().items():
        torch.testing.assert_close(seen.floats()[key], value, rtol=1e-9, atol=1e-12)
    for one, two in zip(gradients, expected, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-12)


def _measured(loss, make, settings):
    leaves = [Z.clone().requires_grad_()]
    ready = dict(settings)
    for key, value in settings.items():
        if isinstance(value, torch.Tensor):
            ready[key] = value.clone().requires_grad_()
            leaves.append(ready[key])
    terms = loss(make(leaves[0]), **ready)
    if not terms.total.requires_grad:
        return terms, [torch.zeros_like(leaf) for leaf in leaves]
    slopes = torch.autograd.grad(terms.total, leaves, allow_unused=True)
    pairs = zip(slopes, leaves, strict=True)
    return terms, [torch.zeros_like(leaf) if slope is None else slope for slope, leaf in pairs]


def assert_equals_peer(value_of, peer, z):
    """Value and gradient of `value_of(z)` and of `peer(z)`."""
    mine, other = z.clone().requires_grad_(), z.clone().requires_grad_()
    value, expected = value_of(mine), peer(other)
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-9)
    (slope,), (wanted,) = torch.autograd.grad(value, mine), torch.autograd.grad(expected, other)
    torch.testing.assert_close(slope, wanted, rtol=1e-8, atol=1e-9)


def value_and_slope(score, c_of, z, **chosen):
    z = z.clone().requires_grad_()
    value = score(c_of(z), **chosen)
    value = getattr(value, "total", value)
    return value, torch.autograd.grad(value, z)[0]


def assert_equals(loss, slow, c_of, z, **chosen):
    """Value and gradient of a loss are those of a slow loop over the comparison."""
    value, slope = value_and_slope(loss, c_of, z, **chosen)
    expected, its_slope = value_and_slope(slow, c_of, z, **chosen)
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(slope, its_slope, rtol=1e-9, atol=1e-11)
    return value
