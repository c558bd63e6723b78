"""Several runs: differences are those of compare_results, recipes by the keys that differ."""

from dataclasses import replace

import numpy as np
import pytest
from made_up_run import block

import nearkin
from nearkin.report import comparison, gallery
from nearkin.report.comparison import paired, recall_plots, recipe_differences
from nearkin.report.scores import Row


@pytest.fixture
def better(view):
    """The same rows, nearer to their classes' means, in another order and with other codes."""
    centers = np.stack([view.embeddings[view.labels == c].mean(0) for c in range(40)])
    order = np.random.default_rng(0).permutation(240)
    return replace(
        view,
        embeddings=(0.5 * view.embeddings + 0.5 * centers[view.labels])[order],
        labels=39 - view.labels[order],
        relevant=100 + 7 * view.relevant[order],
        names=view.names[::-1],
        ids=[view.ids[row] for row in order],
    )


def test_differences_are_those_of_compare_results(view, better):
    found = paired([view, better], ["a", "b"])
    metrics = ["recall@1", "recall@2", "recall@4", "recall@8", "map@r"]
    assert (found.first, found.metrics, found.queries, found.of) == ("a", metrics, 240, 240)
    back = np.argsort(better.ids)[np.argsort(np.argsort(view.ids))]
    results = [
        nearkin.evaluate(z, view.labels, metrics=metrics)
        for z in (better.embeddings[back], view.embeddings)
    ]
    (line,) = found.lines
    assert line.run == "b"
    for metric, gain in zip(metrics, line.gains, strict=True):
        wanted = nearkin.compare_results(*results, metric)
        assert gain.number == round(wanted.value, 6)
        assert gain.text == f"+{100 * wanted.value:.1f}"
        assert gain.interval == f"+{100 * wanted.low:.1f} to +{100 * wanted.high:.1f}"
        assert gain.clear


def test_the_same_run_twice_differs_by_nothing(view):
    (line,) = paired([view, view], ["a", "a (2)"]).lines
    assert {gain.text for gain in line.gains} == {"0.0"}
    assert not any(gain.clear for gain in line.gains)


def test_a_loss_has_a_minus_sign(view, better):
    (line,) = paired([better, view], ["b", "a"]).lines
    assert all(gain.text.startswith("−") and gain.number < 0 for gain in line.gains)


def test_groups_are_left_out_of_both(view, better):
    grouped = replace(view, group=np.arange(240) // 3)
    (line,) = paired([grouped, better], ["a", "b"]).lines
    assert "other items" in line.reason, "one has groups and the other has not"
    result = nearkin.evaluate(view.embeddings, view.labels, exclude=grouped.group)
    twin = replace(grouped, embeddings=-grouped.embeddings)
    (line,) = paired([grouped, twin], ["a", "b"]).lines
    assert line.gains[0].text == "0.0"
    assert 0 < result["recall@1"] < 1


def test_runs_of_other_items_or_classes_are_not_paired(view, better):
    others = [
        replace(view, ids=[f"other {row}" for row in range(240)]),
        replace(better, relevant=np.arange(240) // 3),
        replace(view, is_query=np.arange(240) < 100),
        replace(view, ids=view.ids[:-1]),
    ]
    found = paired([view, *others], list("abcde"))
    assert [bool(line.reason) for line in found.lines] == [True] * 4
    assert paired([replace(view, metrics={}), view], ["a", "b"]) is None


def test_many_queries_are_drawn_and_counted(view, better, monkeypatch):
    monkeypatch.setattr(gallery, "MOST_WORK", 1)
    found = paired([view, better], ["a", "b"])
    assert (found.queries, found.of) == (100, 240)
    assert found.lines[0].gains[0].number > 0


def test_only_the_keys_that_differ_are_told(view):
    one = {"seed": 0, "data": {"glyphs": {}}, "train": {"epochs": 3, "clip": None}, "paper": {}}
    two = {"seed": 0, "data": {"digits": {}}, "train": {"epochs": 5, "clip": None}}
    runs = [replace(view, recipe=recipe) for recipe in (one, two)]
    assert recipe_differences(runs) == [
        ("data.glyphs", ["yes", "–"]),
        ("train.epochs", ["3", "5"]),
        ("data.digits", ["–", "yes"]),
    ]
    assert recipe_differences([runs[0], runs[0]]) == []


def test_recall_is_a_curve_over_k_with_intervals(view):
    paper = {"cosine": {"recall@1": 0.5, "recall@10": 0.9, "map@r": 0.3}}
    rows = [Row("", "trained", "trained", block(0.6)), Row("", "paper", "paper", paper)]
    cosine, euclidean = recall_plots(rows, ["ours", "paper"])
    ours, theirs = cosine.curves
    np.testing.assert_array_equal(ours.x, [1, 2, 4, 8])
    np.testing.assert_allclose(ours.high - ours.low, 0.04)
    np.testing.assert_array_equal(theirs.x, [1, 10])
    assert theirs.low is None
    assert cosine.figure.layout.xaxis.type == "log"
    assert cosine.figure.layout.xaxis.ticktext == ("1", "2", "4", "8", "10")
    assert [curve.name for curve in euclidean.curves] == ["ours"]


def test_one_k_alone_is_no_curve():
    rows = [Row("", "trained", "trained", {"cosine": {"recall@1": 0.5, "recall@x": 0.7}})]
    assert recall_plots(rows, ["trained"]) == []


def test_rows_of_a_plot_are_told_apart():
    rows = [Row("", str(k), "trained", {}) for k in range(20)]
    assert len(set(comparison._looks(rows))) == 20
