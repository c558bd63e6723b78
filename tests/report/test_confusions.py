"""Confusions are counts of what a slow loop finds first; the matrix holds their shares."""

from collections import Counter
from dataclasses import replace

import numpy as np

from nearkin.report.confusions import confusions, matrix, matrix_plot
from nearkin.report.gallery import rank_queries


def first_found(view):
    """query -> the row found first, of all rows but itself, one query after another."""
    unit = view.embeddings / np.linalg.norm(view.embeddings, axis=1, keepdims=True)
    near = unit @ unit.T
    np.fill_diagonal(near, -np.inf)
    return near.argmax(1)


def test_pairs_are_counted_as_the_slow_loop_counts_them(view):
    first = first_found(view)
    wanted = Counter(
        (int(a), int(b)) for a, b in zip(view.labels, view.labels[first], strict=True) if a != b
    )
    pairs = confusions(view, rank_queries(view), count=1_000)
    assert {(pair.wanted, pair.found): pair.times for pair in pairs} == wanted
    times = [pair.times for pair in pairs]
    assert times == sorted(times, reverse=True)
    assert times[0] > 1, "or the matrix below is never made"
    for pair in pairs:
        assert pair.queries == 6
        assert len(pair.examples) == min(3, pair.times)
        for query, found in pair.examples:
            assert (view.labels[query], view.labels[found]) == (pair.wanted, pair.found)
            assert first[query] == found


def test_the_matrix_holds_shares_of_the_queries_of_a_class(view):
    ranked, first = rank_queries(view), first_found(view)
    pairs = confusions(view, ranked)
    shown = matrix(view, ranked, pairs)
    assert len(set(shown.classes)) == len(shown.classes) <= 20
    for i, wanted in enumerate(shown.classes):
        for j, found in enumerate(shown.classes):
            share = (view.labels[first[view.labels == wanted]] == found).mean()
            assert shown.shares[i, j] == share
    place = {code: at for at, code in enumerate(shown.classes)}
    assert {pairs[0].wanted, pairs[0].found} <= set(place)
    assert abs(place[pairs[0].wanted] - place[pairs[0].found]) == 1


def test_pairs_that_came_up_once_are_no_matrix(view):
    pairs = [replace(pair, times=1) for pair in confusions(view, rank_queries(view))]
    assert matrix(view, rank_queries(view), pairs) is None
    assert matrix(view, rank_queries(view), []) is None


def test_another_instance_of_the_same_class_is_no_confusion(view):
    instances = replace(view, relevant=np.arange(240) // 2, labels=np.zeros(240, np.int64))
    ranked = rank_queries(instances)
    assert (ranked.rank > 1).any()
    assert confusions(instances, ranked) == []


def test_names_on_the_axes_are_no_markup_and_long_ones_are_cut(view):
    hostile = replace(view, names=[f"<b>{c}</b> and a long name behind it" for c in range(40)])
    ranked = rank_queries(hostile)
    shown = matrix(hostile, ranked, confusions(hostile, ranked))
    figure = matrix_plot(hostile, shown, "pair-1").figure
    assert all("<" not in name and name.endswith("…") for name in figure.layout.xaxis.ticktext)
    assert "<b>" not in str(figure.data[0].text)
    off = np.array(figure.data[0].z, dtype=np.float64)
    assert np.isnan(np.diag(off)).all()
    assert np.nanmax(off) == 100 * (shown.shares - np.diag(np.diag(shown.shares))).max().round(4)
