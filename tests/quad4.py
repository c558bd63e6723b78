"""Small batches with known values: QUAD4, random ones, and one comparison of each sort."""

import math

import torch

from nearkin.compare import InBatch
from nearkin.core import Batch, Comparison

# Unit vectors at 0, 60, 90, 180 degrees.
QUAD4 = torch.tensor(
    [[math.cos(math.radians(a)), math.sin(math.radians(a))] for a in (0, 60, 90, 180)],
    dtype=torch.float64,
)
LABEL4 = torch.tensor([0, 0, 1, 1])

# Balanced, unbalanced with singletons, one class, all classes alone.
LABELS = {
    "balanced": [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3],
    "unbalanced": [0, 0, 0, 0, 0, 0, 1, 1, 2, 3],
    "shuffled": [4, 0, 2, 0, 4, 4, 1, 2, 0, 3, 0],
    "pairs": [0, 0, 1, 1, 2, 2],
}


def random_batch(labels, dim=5, seed=0, dtype=torch.float64):
    """Embeddings of various lengths around class directions, and their labels."""
    random = torch.Generator().manual_seed(seed)
    label = torch.tensor(labels)
    around = torch.randn(int(label.max()) + 1, dim, generator=random, dtype=torch.float64)[label]
    z = around + torch.randn(len(label), dim, generator=random, dtype=torch.float64)
    return z.to(dtype), label


def in_batch(z, label, closeness="cosine") -> Comparison:
    return InBatch(closeness)(z, Batch(None, label=label))


def given(similarity, anchor_label, reference_label, **fields) -> Comparison:
    """A comparison by a similarity that is written down."""
    return Comparison(
        torch.as_tensor(anchor_label),
        torch.as_tensor(reference_label),
        closeness=fields.pop("closeness", "given"),
        given=torch.as_tensor(similarity, dtype=torch.float64),
        **fields,
    )


def unit_rows(z):
    """Rows of length 1, as plain lists of Python floats."""
    return [[x / math.hypot(*row) for x in row] for row in z.tolist()]


def dot(a, b):
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


def cosines(z):
    rows = unit_rows(z)
    return [[dot(a, b) for b in rows] for a in rows]


def slope(loss, c_of, z):
    """The gradient of a loss with respect to the embeddings."""
    z = z.detach().clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(c_of(z)).total, z)
    return gradient
