"""Ranks, neighbors and worst classes against a slow loop over the whole matrix."""

from dataclasses import replace

import numpy as np
import pytest

from nearkin.report import gallery
from nearkin.report.gallery import neighbors, rank_queries, worst_classes


def slow_ranks(view):
    """query -> (rank of the best relevant item, that item), one pair of rows after another."""
    ranks = {}
    for query in np.flatnonzero(view.is_query):
        cosine = {}
        for other in np.flatnonzero(view.is_gallery):
            if other != query:
                a, b = view.embeddings[[query, other]].astype(np.float64)
                cosine[other] = a @ b / (np.linalg.norm(a) * np.linalg.norm(b))
        right = [row for row in cosine if view.relevant[row] == view.relevant[query]]
        if right:
            best = max(right, key=lambda row: cosine[row])
            ahead = [row for row in cosine if row not in right and cosine[row] >= cosine[best]]
            ranks[query] = (1 + len(ahead), best)
    return ranks


@pytest.fixture
def parted(view):
    """Queries and gallery that share some rows, with a class that has no gallery item."""
    rng = np.random.default_rng(1)
    is_gallery = (rng.random(240) < 0.7) & (view.labels != 3)
    return replace(view, is_query=rng.random(240) < 0.5, is_gallery=is_gallery)


def test_ranks_are_those_of_the_slow_loop(parted):
    ranked, slow = rank_queries(parted), slow_ranks(parted)
    assert dict(zip(ranked.query, ranked.rank, strict=True)) == {q: r for q, (r, _) in slow.items()}
    assert dict(zip(ranked.query, ranked.best, strict=True)) == {q: b for q, (_, b) in slow.items()}
    assert not (parted.labels[ranked.query] == 3).any()
    assert ranked.considered == ranked.queries == parted.is_query.sum()


def test_block_edges_change_nothing(parted, monkeypatch):
    whole = rank_queries(parted)
    queries = np.array([5, 77])
    near = [rows for rows, _ in neighbors(parted, queries, 8)]
    monkeypatch.setattr(gallery, "_BLOCK", 1_000)
    monkeypatch.setattr(gallery, "_ROWS", 7)
    np.testing.assert_array_equal(near, [rows for rows, _ in neighbors(parted, queries, 8)])
    blocked = rank_queries(parted)
    for name in ("query", "best", "rank", "mistaken"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(blocked, name))


def test_a_collapsed_embedding_has_the_worst_ranks(view):
    ranked = rank_queries(replace(view, embeddings=np.ones_like(view.embeddings)))
    assert set(ranked.rank) == {1 + 240 - 6}


def test_many_queries_are_drawn_with_a_seed(view):
    ranked = rank_queries(view, limit=50, seed=3)
    assert (ranked.considered, ranked.queries, len(ranked.query)) == (50, 240, 50)
    np.testing.assert_array_equal(ranked.query, rank_queries(view, limit=50, seed=3).query)
    assert set(ranked.query) != set(rank_queries(view, limit=50, seed=4).query)


def test_worst_come_first_and_random_ones_are_others(view):
    ranked = rank_queries(view)
    worst = ranked.worst(12)
    assert list(ranked.rank[worst]) == sorted(ranked.rank, reverse=True)[:12]
    drawn = ranked.random(8, seed=0, without=worst)
    assert len(drawn) == 8
    assert not set(drawn) & set(worst)
    np.testing.assert_array_equal(drawn, ranked.random(8, seed=0, without=worst))


def test_neighbors_are_the_nearest_and_never_the_query_itself(parted):
    query = int(np.flatnonzero(parted.is_query & parted.is_gallery)[0])
    ((rows, cosine),) = neighbors(parted, np.array([query]), 8)
    unit = parted.embeddings / np.linalg.norm(parted.embeddings, axis=1, keepdims=True)
    others = np.flatnonzero(parted.is_gallery & (np.arange(240) != query))
    expected = others[np.argsort(-(unit[others] @ unit[query]))][:8]
    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_allclose(cosine, unit[expected] @ unit[query], atol=1e-6)


def test_a_wrong_neighbor_stands_before_an_equally_near_right_one(view):
    flat = replace(view, embeddings=np.ones_like(view.embeddings))
    ((rows, _),) = neighbors(flat, np.array([0]), 8)
    assert (view.labels[rows] != view.labels[0]).all()


def test_fewer_items_than_neighbors_asked_for_are_all_given(view):
    few = replace(view, is_gallery=np.arange(240) < 4)
    found = neighbors(few, np.array([0, 200]), 8)
    assert [len(rows) for rows, _ in found] == [3, 4]


def test_an_empty_gallery_leaves_nothing_to_rank(view):
    ranked = rank_queries(replace(view, is_gallery=np.zeros(240, bool)))
    assert len(ranked.query) == 0
    assert len(ranked.worst(12)) == len(ranked.random(8)) == 0


def test_zero_rows_and_huge_rows_are_ranked(view):
    odd = view.embeddings.copy()
    odd[0], odd[6] = 0, 1e38
    ranked = rank_queries(replace(view, embeddings=odd))
    assert len(ranked.query) == 240
    assert ranked.rank.min() >= 1


def test_worst_classes_by_hand(view):
    # On a circle: one of the first class and both of the second lie nearest to the other class.
    angle = np.deg2rad([0, 1.4, -2, 2, 180, 181])
    line = replace(
        view,
        embeddings=np.stack([np.cos(angle), np.sin(angle)], 1).astype(np.float32),
        labels=np.array([0, 0, 1, 1, 2, 2]),
        relevant=np.array([0, 0, 1, 1, 2, 2]),
        is_query=np.ones(6, bool),
        is_gallery=np.ones(6, bool),
    )
    classes = worst_classes(line, rank_queries(line))
    said = [(score.label, score.hits, score.queries) for score in classes]
    assert said == [(1, 0, 2), (0, 1, 2)]
    assert classes[0].mistaken == 0
    assert classes[1].mistaken == 1


def test_rows_of_one_group_never_find_one_another(view):
    grouped = replace(view, group=np.arange(240) // 3)
    ranked = rank_queries(grouped)
    assert (ranked.query // 3 != ranked.best // 3).all()
    assert (ranked.query // 3 != ranked.mistaken // 3).all()
    for query, (rows, _) in zip([0, 7], neighbors(grouped, np.array([0, 7]), 8), strict=True):
        assert (rows // 3 != query // 3).all()


def test_best_queries_are_hits_that_lead_most_one_a_class(view):
    ranked = rank_queries(view)
    best = ranked.best_led(6, view.labels[ranked.query])
    assert (ranked.rank[best] == 1).all()
    assert len(set(view.labels[ranked.query[best]])) == 6
    assert list(ranked.lead[best]) == sorted(ranked.lead[best], reverse=True)
    hits = ranked.rank == 1
    assert ranked.lead[best[0]] == ranked.lead[hits].max()
    assert (ranked.lead[hits] > 0).all()
    collapsed = rank_queries(replace(view, embeddings=np.ones_like(view.embeddings)))
    assert len(collapsed.best_led(6, view.labels[collapsed.query])) == 0


def test_fewer_queries_are_drawn_where_the_work_would_take_minutes(view, monkeypatch):
    monkeypatch.setattr(gallery, "MOST_WORK", 240 * 16 * 150)
    assert rank_queries(view).considered == 150
    monkeypatch.setattr(gallery, "MOST_WORK", 1)
    assert rank_queries(view).considered == 100
