"""Result: values, per-query values, intervals, comparison."""

import json

import numpy as np
import pytest

from nearkin.evaluation import compare_results, evaluate

GENERATOR = np.random.default_rng(0)
Y = np.r_[GENERATOR.integers(0, 15, 120), 99]
Z = GENERATOR.standard_normal((15, 6))[Y % 15] + GENERATOR.standard_normal((121, 6))
NOISE = GENERATOR.standard_normal((121, 6))


@pytest.fixture(scope="module")
def result():
    return evaluate(Z, Y, metrics=("recall@1", "map@r", "nmi"))


def test_a_query_without_a_relevant_item_is_left_out_and_counted(result):
    values = result.per_query("recall@1")
    assert np.isnan(values[-1])
    assert not np.isnan(values[:-1]).any()
    assert result["recall@1"] == values[:-1].mean()
    assert (result.queries, result.without_relevant) == (120, 1)


def test_the_interval_holds_the_value_and_is_repeatable(result):
    low, high = result.interval("map@r")
    assert low < result["map@r"] < high
    again = evaluate(Z, Y, metrics="map@r").interval("map@r")
    assert again == (low, high)
    assert evaluate(Z, Y, metrics="map@r", seed=1).interval("map@r") != (low, high)


def test_per_query_values_are_a_copy(result):
    result.per_query("recall@1")[:] = 5
    assert result["recall@1"] <= 1


def test_it_is_a_mapping_ready_for_json(result):
    assert result.metrics == tuple(result) == ("recall@1", "map@r", "nmi", "nmi_random")
    found = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert set(found["recall@1"]) == {"value", "low", "high"}
    assert found["recall@1"]["value"] == result["recall@1"]
    assert set(found["nmi"]) == {"value"}
    assert result.closeness == "cosine"


def test_one_class_has_no_interval_in_json():
    found = evaluate(Z[:5], [3] * 5, metrics="recall@1").to_dict()
    assert found == {"recall@1": {"value": 1.0, "low": None, "high": None}}


def test_it_prints_a_table(result):
    lines = repr(result).splitlines()
    assert lines[0] == "121 queries by cosine, 1 of them without a relevant item and left out"
    low, high = result.interval("recall@1")
    assert lines[1].split() == ["recall@1", f"{result['recall@1']:.4f}", f"({low:.4f}..{high:.4f})"]
    assert lines[4].split() == ["nmi_random", f"{result['nmi_random']:.4f}"]


def test_unknown_names_are_told(result):
    with pytest.raises(KeyError, match=r"no 'recal@1'; did you mean 'recall@1'"):
        result["recal@1"]
    with pytest.raises(ValueError, match="no value per query"):
        result.interval("nmi")
    assert "mrr" not in result


def test_a_better_embedding_is_told_from_noise(result):
    found = compare_results(result, evaluate(NOISE, Y), "map@r")
    noise = evaluate(NOISE, Y)["map@r"]
    assert found.value == pytest.approx(result["map@r"] - noise)
    assert found.low > 0
    assert found.p < 0.01
    assert found.classes == 15


def test_a_comparison_is_antisymmetric(result):
    other = evaluate(NOISE, Y)
    one, back = (compare_results(*pair, "map@r") for pair in ((result, other), (other, result)))
    assert (one.value, one.low, one.high) == pytest.approx((-back.value, -back.high, -back.low))


def test_other_queries_are_refused(result):
    with pytest.raises(ValueError, match="first has 121 and the second 120"):
        compare_results(result, evaluate(Z[:-1], Y[:-1]), "map@r")
    with pytest.raises(ValueError, match="labels differ"):
        compare_results(result, evaluate(Z, Y + 1), "map@r")
    with pytest.raises(ValueError, match="labels differ"):
        compare_results(result, evaluate(Z, Y[::-1]), "map@r")


def test_the_gallery_may_differ(result):
    other = evaluate(Z, Y, gallery=NOISE[:50], gallery_labels=Y[:50], metrics="recall@1")
    assert compare_results(result, other, "recall@1").value > 0
