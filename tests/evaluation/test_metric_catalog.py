"""The names of metrics."""

import pytest

from nearkin.evaluation import evaluate, metric_names
from nearkin.evaluation.catalog import chosen


def test_every_listed_metric_can_be_computed():
    names = [name.replace("@K", "@2") for name, _, _ in metric_names()]
    z = [[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]] * 3
    result = evaluate(z, [0, 0, 1, 1] * 3, metrics=names)
    assert set(names) <= set(result.metrics)


def test_the_list_has_summaries_and_sources():
    listed = metric_names()
    assert [name for name, _, _ in listed][:2] == ["recall@K", "precision@K"]
    assert all(summary and source for _, summary, source in listed)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("recal@5", "did you mean 'recall@5'?"),
        ("Recall@5", "did you mean 'recall@5'?"),
        ("recall", "recall needs a number K of 1 or more; for example recall@10"),
        ("recall@K", "recall needs a number K"),
        ("recall@-1", "recall needs a number K"),
        ("recall@1.5", "recall needs a number K"),
        ("recall@99999999999999999999", "K must be below"),
        ("recall@" + "9" * 5000, "K must be below"),
        ("recall@9223372036854775808", "K must be below"),
        ("precision@", "precision needs a number K"),
        ("map@q", "map needs a number K"),
        ("nmi@3", "did you mean 'nmi'?"),
        ("r_precison", "did you mean 'r_precision'?"),
        ("zzzz", "expected one of recall@K"),
        (3, "3 is no metric"),
    ],
)
def test_unknown_names_are_told(name, said):
    with pytest.raises(ValueError, match="is no metric") as caught:
        chosen([name])
    assert said in str(caught.value)


def test_names_are_computed_once_and_in_order():
    ranked, whole = chosen(["map@r", "nmi", "recall@1", "map@r"])
    assert (list(ranked), list(whole)) == (["map@r", "recall@1"], ["nmi"])
