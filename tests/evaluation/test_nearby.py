"""Neighbors on demand against the sorted matrix; what wrong input gets."""

import numpy as np
import pytest

from nearkin.evaluation import evaluate, neighbors

GENERATOR = np.random.default_rng(0)
Z, X = GENERATOR.standard_normal((60, 5)), GENERATOR.standard_normal((40, 5))
IDS, OTHERS = GENERATOR.integers(0, 3, 60), GENERATOR.integers(0, 3, 40)


def similarities(closeness, q, g):
    if closeness == "inner":
        return q @ g.T
    if closeness == "euclidean":
        return -((q[:, None] - g[None]) ** 2).sum(2) / 2
    return (q / np.linalg.norm(q, axis=1)[:, None]) @ (g / np.linalg.norm(g, axis=1)[:, None]).T


@pytest.mark.parametrize("closeness", ["cosine", "euclidean", "inner"])
@pytest.mark.parametrize("gallery", [False, True])
@pytest.mark.parametrize("grouped", [False, True])
def test_equals_the_sorted_matrix(closeness, gallery, grouped):
    asked = np.array([3, 59, 0])
    s = similarities(closeness, Z, X if gallery else Z)
    if not gallery:
        np.fill_diagonal(s, -np.inf)
    arguments = {"gallery": X} if gallery else {}
    if grouped:
        arguments["exclude"] = (IDS, OTHERS) if gallery else IDS
        s[IDS[:, None] == (OTHERS if gallery else IDS)[None]] = -np.inf
    found = neighbors(Z, asked, 7, closeness=closeness, **arguments)
    order = np.argsort(-s[asked], axis=1)[:, :7]
    np.testing.assert_array_equal(found.index, order)
    np.testing.assert_allclose(found.similarity, np.take_along_axis(s[asked], order, 1), atol=1e-12)


def test_behind_the_last_item_stands_nothing():
    found = neighbors(Z[:3], [1], 4, exclude=["a", "b", "a"])
    assert sorted(found.index[0, :2]) == [0, 2]
    assert found.index[0, 2:].tolist() == [-1, -1]
    assert np.isnan(found.similarity[0]).tolist() == [False, False, True, True]


def test_the_first_neighbor_says_what_recall_at_1_counts():
    y = GENERATOR.integers(0, 9, 60)
    first = neighbors(Z, np.arange(60), 1).index[:, 0]
    np.testing.assert_array_equal(
        evaluate(Z, y).per_query("recall@1"), (y[first] == y).astype(float)
    )


def test_the_rank_of_the_best_relevant_item_is_one_over_mrr():
    y = np.arange(60) % 2
    ranks = 1 / evaluate(Z, y, metrics="mrr").per_query("mrr")
    near = neighbors(Z, np.arange(60), 59).index
    expected = (y[near] == y[:, None]).argmax(1) + 1
    np.testing.assert_allclose(ranks, expected)


def test_wrong_queries_are_refused():
    with pytest.raises(ValueError, match=r"0\.\.59"):
        neighbors(Z, [60])
    with pytest.raises(ValueError, match="integers"):
        neighbors(Z, [0.5])
    with pytest.raises(ValueError, match="k must be 1 or more"):
        neighbors(Z, [0], 0)
    with pytest.raises(ValueError, match="5 dimensions but gallery has 2"):
        neighbors(Z, [0], gallery=np.zeros((3, 2)))
    assert neighbors(Z, np.zeros(0, int), 3).index.shape == (0, 3)
