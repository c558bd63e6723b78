"""Counting: what bounds its memory, and the rankings it gives."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from nearkin.evaluation.base import NOWHERE
from nearkin.evaluation.counting import QUERIES, THRESHOLDS, Retrieval, query_blocks, rankings
from nearkin.evaluation.relevance import Relevance
from nearkin.information.given import Rows, given_labels
from nearkin.search.space import space_of


@given(st.lists(st.integers(0, 60), max_size=80), st.integers(1, 9), st.integers(1, 100))
def test_blocks_cover_every_query_once_within_both_bounds(most, queries, thresholds):
    blocks = list(query_blocks(most, queries, thresholds))
    covered = [place for block in blocks for place in range(block.start, block.stop)]
    assert covered == list(range(len(most)))
    for block in blocks:
        count = block.stop - block.start
        assert 1 <= count <= queries
        assert count == 1 or count * max(most[block]) <= thresholds


def test_blocks_are_as_large_as_the_bounds_allow():
    assert list(query_blocks([2, 2, 2, 2, 6], 3, 12)) == [slice(0, 3), slice(3, 5)]


def test_one_class_of_all_rows_does_not_make_a_square_matrix():
    rows = 60_502
    longest = max(block.stop - block.start for block in query_blocks([rows - 1] * rows))
    assert longest * rows <= THRESHOLDS
    longest = max(block.stop - block.start for block in query_blocks([9] * rows))
    assert longest == QUERIES


def test_a_ranking_by_hand():
    # On a line: queries at 0 and 9; the first meets 1 (same), -2 (other), 2 (same), 7 (other).
    queries = Rows(torch.tensor([[0.0], [9.0]]))
    gallery = Rows(torch.tensor([[1.0], [-2.0], [2.0], [7.0]]))
    relevance = Relevance(
        given_labels([0, 1], 2), given_labels([0, 1, 0, 1], 4), None, leave_one_out=False
    )
    task = Retrieval(queries, gallery, space_of("euclidean", queries, gallery), relevance)
    ((places, ranking),) = rankings(task, torch.tensor([0, 1]))
    order = places.argsort()
    # The second query meets 7 (distance 2), 2 (7), 1 (8), -2 (11).
    assert ranking.ranks[order].tolist() == [[1, 3], [1, 4]]
    assert ranking.relevant.tolist() == [2, 2]
    assert ranking.candidates.tolist() == [4, 4]


def test_behind_the_last_relevant_item_stands_nowhere():
    z = Rows(torch.tensor([[0.0], [1.0], [3.0], [7.0], [8.0], [20.0]]))
    labels = given_labels([0, 0, 0, 1, 1, 2], 6)
    groups = (torch.tensor([0, 1, 2, 3, 4, 0]), torch.tensor([0, 1, 2, 3, 4, 0]))
    relevance = Relevance(labels, labels, groups, leave_one_out=True)
    task = Retrieval(z, z, space_of("euclidean", z, z), relevance)
    found = {}
    for places, ranking in rankings(task, torch.arange(6)):
        for place, ranks, relevant, candidates in zip(
            places.tolist(), ranking.ranks, ranking.relevant, ranking.candidates, strict=True
        ):
            kept = [rank for rank in ranks.tolist() if rank != NOWHERE]
            found[place] = (kept, int(relevant), int(candidates))
    assert found == {
        0: ([1, 2], 2, 4),
        1: ([1, 2], 2, 5),
        2: ([1, 2], 2, 5),
        3: ([1], 1, 5),
        4: ([1], 1, 5),
        5: ([], 0, 4),
    }
