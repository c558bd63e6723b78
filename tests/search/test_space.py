"""The products that stand for similarities."""

import pytest
import torch

from nearkin.information.given import Rows
from nearkin.search.space import TIE, space_of, unit

GENERATOR = torch.Generator().manual_seed(0)
Q, G = (torch.randn(n, 4, generator=GENERATOR, dtype=torch.float64) for n in (5, 7))


@pytest.mark.parametrize("name", ["cosine", "euclidean", "inner"])
def test_the_product_orders_by_similarity(name):
    expected = {
        "cosine": torch.nn.functional.cosine_similarity(Q[:, None], G[None], dim=2),
        "euclidean": -torch.cdist(Q, G).square() / 2,
        "inner": Q @ G.T,
    }[name]
    space = space_of(name, Rows(Q), Rows(G))
    found = space.query(Q) @ space.gallery(G, 0.0).T
    gaps = found[:, 1:] - found[:, :-1]
    scale = 1.0 if name == "cosine" else space.scale**2
    torch.testing.assert_close(gaps * scale, expected[:, 1:] - expected[:, :-1])


@pytest.mark.parametrize("name", ["cosine", "euclidean", "inner"])
def test_slack_counts_in_units_of_the_norms(name):
    space = space_of(name, Rows(Q), Rows(G))
    raised, plain = (space.query(Q) @ space.gallery(G, slack).T for slack in (0.5, 0.0))
    shift = 0 if space.middle is None else space.middle
    q, g = ((x / space.scale - shift).norm(dim=1) for x in (Q, G))
    scale = {
        "cosine": torch.ones(5, 7, dtype=torch.float64),
        "inner": q[:, None] * g[None],
        "euclidean": (q[:, None] ** 2 + g[None] ** 2) / 2,
    }[name]
    torch.testing.assert_close(raised - plain, 0.5 * scale)


def test_a_tie_is_wider_than_the_rounding_of_a_product():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(1, 512, generator=generator, dtype=torch.float64).expand(300, -1)
    turned = unit(rows[:, torch.randperm(512, generator=generator)])
    product = turned @ turned.flip(0).T
    assert float(product.max() - product.min()) < TIE / 100


def test_a_row_of_zeros_has_similarity_0():
    assert unit(torch.zeros(1, 3)).tolist() == [[0.0, 0.0, 0.0]]


def test_unit_rows_survive_extreme_entries():
    x = torch.tensor([[3e300, 4e300], [3e-300, 4e-300]], dtype=torch.float64)
    torch.testing.assert_close(unit(x), torch.tensor([[0.6, 0.8]] * 2, dtype=torch.float64))
