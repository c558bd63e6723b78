"""The map: which rows are drawn, how they are laid out, and that odd embeddings cost nothing."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nearkin.report.projection import class_colors, drawn_by_class, embedding_map


def test_pca_is_the_plane_of_largest_spread_of_the_unit_rows(view, umap):
    _, pca = embedding_map(view).layouts
    unit = view.embeddings / np.linalg.norm(view.embeddings, axis=1, keepdims=True)
    centered = (unit - unit.mean(0)).astype(np.float64)
    values, vectors = np.linalg.eigh(centered.T @ centered)
    for axis, column in ((pca.x, vectors[:, -1]), (pca.y, vectors[:, -2])):
        projected = centered @ column
        np.testing.assert_allclose(abs(axis @ projected), axis @ axis, rtol=1e-4)
    percent = 100 * values[-2:].sum() / values.sum()
    assert f"{percent:.0f} % of the variance" in pca.note


def test_umap_is_taken_where_it_is_installed(view, umap):
    found = embedding_map(view, seed=4)
    assert [layout.name for layout in found.layouts] == ["UMAP", "PCA"]
    assert umap == [{"n_neighbors": 15, "random_state": 4, "n_jobs": 1}]


def test_neighborhoods_keep_classes_together_and_the_seed_decides(view):
    tight = replace(view, embeddings=np.repeat(view.embeddings[::6], 6, 0) + 0.01)
    first, again = embedding_map(tight, most=60), embedding_map(tight, most=60)
    layout = first.layouts[0]
    assert layout.name in ("t-SNE", "UMAP")
    np.testing.assert_array_equal(layout.x, again.layouts[0].x)
    points = np.stack([layout.x, layout.y], 1)
    apart = np.linalg.norm(points[:, None] - points[None], axis=2)
    np.fill_diagonal(apart, np.inf)
    labels = tight.labels[first.rows]
    assert (labels[apart.argmin(1)] == labels).mean() > 0.9


def test_the_global_random_state_is_left_alone(view):
    import random

    before = np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    embedding_map(view, most=30)
    np.testing.assert_array_equal(np.random.get_state()[1], before[0])  # noqa: NPY002
    assert random.getstate() == before[1]


@pytest.mark.parametrize("dim", [1, 2])
@pytest.mark.parametrize("rows", [3, 12])
def test_few_rows_and_dimensions_have_a_map(view, rows, dim):
    embeddings = np.zeros((240, dim), np.float32)
    embeddings[:, 0] = np.cos(np.arange(240))
    few = replace(view, embeddings=embeddings, is_query=np.arange(240) < rows)
    found = embedding_map(replace(few, is_gallery=few.is_query))
    assert len(found.layouts) == (2 if rows >= 8 else 1)
    for layout in found.layouts:
        assert np.isfinite(layout.x).all()
        assert np.isfinite(layout.y).all()
        assert len(layout.x) == rows


@pytest.mark.parametrize("value", [0.0, 1.0, 1e38])
def test_a_collapsed_embedding_has_no_map(view, value):
    assert embedding_map(replace(view, embeddings=np.full((240, 16), value, np.float32))) is None


def test_fewer_than_three_rows_have_no_map(view):
    two = np.arange(240) < 2
    assert embedding_map(replace(view, is_query=two, is_gallery=two)) is None


@given(st.lists(st.integers(0, 30), min_size=1, max_size=300).map(np.array), st.integers(1, 100))
def test_drawn_rows_are_sorted_bounded_and_few_of_a_class(labels, most):
    drawn = drawn_by_class(labels, most)
    assert (np.diff(drawn) > 0).all()
    assert len(drawn) <= most or len(labels) <= most
    if len(labels) > most:
        counts = np.bincount(labels[drawn])
        assert counts.max() <= max(5, most // len(set(labels)))
        assert counts.sum() >= min(most, len(set(labels)))


def test_large_classes_are_thinned_alike_and_many_classes_are_shown_whole():
    even = drawn_by_class(np.repeat(np.arange(10), 1_000), 200)
    np.testing.assert_array_equal(np.bincount(even // 1_000), np.full(10, 20))
    many = np.repeat(np.arange(1_000), 5)
    kept = np.bincount(many[drawn_by_class(many, 200)])
    assert sorted(set(kept)) == [0, 5]


@pytest.mark.parametrize("count", [1, 10, 11, 300])
def test_every_class_has_a_color(count):
    colors = class_colors(count)
    assert len(colors) == count
    assert all(len(color) == 7 and int(color[1:], 16) >= 0 for color in colors)
    assert len(set(colors[:100])) == min(count, 100)
