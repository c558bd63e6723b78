"""The exact neighbors against the sorted float64 matrix."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nearkin.rows import Rows
from nearkin.search import loops, tiles
from nearkin.search.nearest import LAST, nearest
from nearkin.search.side import Side
from nearkin.search.space import space_of


@pytest.fixture(params=["compiled", "plain"])
def form(request, monkeypatch):
    monkeypatch.setattr(tiles, "SIDE", 16)
    monkeypatch.setattr(loops, "WORTH", 0)
    if request.param == "plain":
        monkeypatch.setattr(loops, "compiled", lambda: None)
    elif loops.compiled() is None:
        pytest.skip("numba")


def sides(q, g, closeness, dtype):
    queries, gallery = Rows(q), Rows(g)
    space = space_of(closeness, queries, gallery)
    made = Side(queries, space), Side(gallery, space)
    for side in made:
        side.round_to(dtype)
    return made


def slowly(q, g, k):
    """Similarities and places from the prepared float64 rows themselves."""
    value = q.exact(slice(None)) @ g.exact(slice(None)).T - g.half
    order = value.sort(dim=1, descending=True, stable=True)
    return order.values[:, :k], order.indices[:, :k]


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from(["cosine", "euclidean", "inner"]),
    st.sampled_from([torch.float32, torch.bfloat16]),
    st.integers(1, 20),
    st.integers(1, 12),
    st.booleans(),
)
def test_equals_the_sorted_matrix(form, seed, closeness, dtype, dim, k, narrow):
    generator = np.random.default_rng(seed)
    width = np.float32 if narrow else np.float64
    q, g = (generator.standard_normal((n, dim)).astype(width) for n in (21, 45))
    queries, gallery = sides(q, g, closeness, dtype)
    values, index = nearest(queries, gallery, k)
    expected, places = slowly(queries, gallery, k + 1)
    clear = (expected[:, :-1] - expected[:, 1:] > 1e-9).all(1)
    expected, places = expected[:, :k], places[:, :k]
    torch.testing.assert_close(values, expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(index[clear], places[clear])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_of_equal_rows_the_first_comes_first(form, dtype):
    g = np.repeat(np.eye(3, 8), 20, 0)
    queries, gallery = sides(np.eye(3, 8), g, "cosine", dtype)
    _, index = nearest(queries, gallery, 5)
    assert index.tolist() == [[20 * i + j for j in range(5)] for i in range(3)]


def test_of_rows_that_tie_in_float64_the_first_comes_first(form):
    g = np.array([[0.1], [0.7], [0.3], [-0.2], [1.1]])
    queries, gallery = sides(np.array([[3.0], [-0.7]]), g, "cosine", torch.float32)
    assert nearest(queries, gallery, 3)[1].tolist() == [[0, 1, 2], [3, 0, 1]]


def test_skipped_items_and_missing_neighbors(form):
    z = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
    queries, gallery = sides(z, z, "cosine", torch.float32)
    values, index = nearest(queries, gallery, 3, skipped=torch.arange(3))
    assert index.tolist() == [[1, 2, LAST], [0, 2, LAST], [1, 0, LAST]]
    assert values[:, 2].tolist() == [-np.inf] * 3


def test_what_is_known_is_replaced_only_by_nearer_items(form):
    z = np.eye(4)
    queries, gallery = sides(z, z, "cosine", torch.bfloat16)
    known = torch.full((4, 1), 0.5, dtype=torch.float64), torch.full((4, 1), -1)
    assert nearest(queries, gallery, 1, known=known)[1].ravel().tolist() == [0, 1, 2, 3]
    high = torch.full((4, 1), 2.0, dtype=torch.float64), torch.full((4, 1), -1)
    assert nearest(queries, gallery, 1, known=high)[1].ravel().tolist() == [-1] * 4


@pytest.mark.parametrize("closeness", ["euclidean", "inner"])
def test_one_long_row_makes_no_ties_of_the_others(form, closeness):
    """A tie is in units of its own pair, not of the longest row of the gallery."""
    generator = np.random.default_rng(0)
    g = generator.standard_normal((500, 16))
    g[77] = 1e6 if closeness == "euclidean" else -1e13
    q = g[:60] + 0.01 * generator.standard_normal((60, 16))
    q = np.abs(q) if closeness == "inner" else q
    _, index = nearest(*sides(q, g, closeness, torch.float32), 3)
    slow = q @ g.T if closeness == "inner" else -((q[:, None] - g[None]) ** 2).sum(2)
    if closeness == "euclidean":
        assert index[:, 0].tolist() == list(range(60))
    np.testing.assert_array_equal(index, np.argsort(-slow, axis=1, kind="stable")[:, :3])


def test_a_chain_of_small_steps_is_no_tie(form):
    """Each is tied with the next, but the nearest and the farthest are not."""
    g = 1 + np.arange(12)[:, None] * 4e-13
    _, index = nearest(*sides(np.ones((1, 1)), g, "inner", torch.float32), 12)
    # A tie is 1e-12 here, two steps: groups of three from the nearest on.
    assert index.tolist() == [[9, 10, 11, 6, 7, 8, 3, 4, 5, 0, 1, 2]]


@pytest.mark.parametrize("closeness", ["cosine", "euclidean", "inner"])
def test_of_equal_rows_in_several_tiles_every_query_finds_the_first(form, closeness):
    generator = np.random.default_rng(0)
    one = generator.standard_normal((19, 5))
    if closeness == "inner":
        one /= np.linalg.norm(one, axis=1, keepdims=True)
    z = np.concatenate([one] * 4)  # 76 rows: five tiles, of which two would be met backwards
    _, index = nearest(*sides(z, z, closeness, torch.float32), 2)
    assert index.tolist() == [[i % 19, i % 19 + 19] for i in range(76)]


def test_of_a_tie_the_last_one_makes_room(form):
    """Not the one whose float64 value is smaller by a rounding."""
    step = 2.0**-44
    g = np.array([[1 - step], [1.0], [1 + step / 2], [2.0], [3.0]])
    _, index = nearest(*sides(np.ones((1, 1)), g, "inner", torch.float32), 3)
    assert index.tolist() == [[4, 3, 0]]
