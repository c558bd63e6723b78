"""Sentences and bars say what metrics.json says, no more."""

from dataclasses import replace

import numpy as np
from made_up_run import block, metrics

from nearkin.report import scores, words


def plain(text):
    return text.replace(scores.SPACE, " ")


def without(tree, *names):
    return {key: value for key, value in tree.items() if key not in names}


def test_the_headline_is_a_sentence_with_the_interval_and_what_was_there_before(view):
    assert plain(words.headline(replace(view, picture=lambda row: None))) == (
        "On 40 classes never seen in training, the nearest neighbor is of the same class for "
        "61.2 % (59.2–63.2) of queries, against 38.0 % for raw pixels and 12.0 % for the "
        "untrained encoder."
    )


def test_the_headline_leaves_out_what_was_not_measured(view):
    alone = replace(view, metrics=without(view.metrics, "raw", "untrained"))
    assert plain(words.headline(alone)).endswith("for 61.2 % (59.2–63.2) of queries.")
    no_interval = {"test": {"cosine": {"map@r": 0.25}}}
    assert plain(words.headline(replace(view, metrics=no_interval))) == (
        "On 40 classes never seen in training, map@r is 25.0 %."
    )
    assert words.headline(replace(view, metrics={})).endswith("no metric was measured.")


def test_the_headline_counts_only_classes_that_take_part_and_knows_instances(view):
    few = replace(view, is_query=view.labels == 0, is_gallery=view.labels == 0)
    assert words.headline(few).startswith("On 1 class never")
    instances = replace(view, relevant=np.arange(240) // 2)
    assert "is the same item for" in words.headline(instances)


def test_the_selection_is_told(view):
    assert words.selection(view) == (
        "The weights are those of epoch 8 (counted from 0), chosen by validation map@r."
    )
    for by in ("last", "last epoch"):
        last = replace(view, metrics={"selected": {"epoch": 9, "by": by}}, log=[])
        assert words.selection(last) == "The weights are those of epoch 9, the last one."
    assert words.selection(replace(view, metrics={})) == ""


def test_selection_on_the_test_classes_is_recognized_in_recipe_and_metrics(view):
    assert not words.selected_on_test(view)
    by = {"selected": {"epoch": 3, "by": "best_on_test recall@1"}}
    assert words.selected_on_test(replace(view, metrics=by))
    wish = {"train": {"select": "best_on_test"}}
    assert words.selected_on_test(replace(view, recipe=wish))
    beside = metrics() | {"best_on_test": block(0.65) | {"epoch": 3}}
    assert not words.selected_on_test(replace(view, recipe=wish, metrics=beside))


def test_the_best_epoch_on_test_is_a_row_of_its_own_but_no_bar(view):
    told = metrics() | {"best_on_test": block(0.65) | {"epoch": 3}}
    best = replace(view, metrics=told)
    assert [row.name for row in scores.rows_of(best)][1] == "⚠ best on test (epoch 3)"
    assert [bar.row.role for bar in words.bars(best)] == ["trained", "untrained", "raw"]
    assert words.bars(best)[0].percent == 61.2


def test_the_headline_names_the_highest_floor_and_says_if_training_gave_less(view):
    floors = {"raw": block(0.3), "whitened": block(0.5)}
    above = words.headline(replace(view, metrics=metrics() | {"floors": floors}))
    assert plain(above).endswith(
        "against 50.0 % for whitening alone and 12.0 % for the untrained encoder."
    )
    floors["whitened"] = block(0.7)
    below = words.headline(replace(view, metrics=metrics() | {"floors": floors}))
    assert below.endswith(" That is less than whitening alone gives without any training.")
    raw = words.headline(replace(view, metrics=metrics() | {"raw": block(0.62)}))
    assert raw.endswith(" That is less than raw input gives without any training.")


def test_several_runs_have_a_highest_and_a_lowest(view):
    low = replace(view, metrics=metrics() | {"test": block(0.5)})
    said = plain(words.headline_of_several([low, view], ["a", "b"]))
    assert said == (
        "Of 2 runs, b has the highest recall@1, 61.2 % (59.2–63.2); a has the lowest, 50.0 %."
    )
    other = replace(low, ids=[f"other {row}" for row in low.ids])
    assert "not all tested on the same items; recall@1: a 61.2 %, b 50.0 %" in plain(
        words.headline_of_several([view, other], ["a", "b"])
    )
    assert words.headline_of_several([view, replace(view, metrics={})], ["a", "b"]) == (
        "2 runs beside each other."
    )
    assert [bar.row.name for bar in words.bars_of_several([low, view], ["a", "b"])] == ["a", "b"]
