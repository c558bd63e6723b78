"""Cells say what metrics.json says, no more."""

import pytest

from nearkin.report import scores

S = scores.SPACE


def plain(text):
    return text.replace(S, " ")


def test_without_pictures_raw_is_input_not_pixels(view):
    assert [row.name for row in scores.rows_of(view)] == ["trained", "untrained", "raw input"]


def test_a_table_has_a_line_a_row_and_a_column_a_metric(view):
    table = scores.table(scores.rows_of(view), "cosine")
    assert table.metrics == [*(f"recall@{k}" for k in (1, 2, 4, 8)), "map@r", "nmi", "ami"]
    (trained, cells), (_, before), _ = table.lines
    assert trained.role == "trained"
    assert plain(cells[0][0]) == "61.2 %"
    assert cells[0][1:] == ("59.2–63.2", "")
    assert cells[5] == ("0.745", "0.725–0.765", "random 0.541")
    assert plain(before[0][0]) == "12.0 %"


def test_a_metric_that_a_row_lacks_is_a_dash(view):
    view.metrics["untrained"]["cosine"] = {"recall@1": {"value": None}}
    table = scores.table(scores.rows_of(view), "cosine")
    assert table.lines[1][1][0] == ("–", "", "")
    assert table.lines[1][1][4] == ("–", "", "")


def test_information_is_bits_of_its_ceiling(view):
    line = scores.information(scores.rows_of(view))[0]
    assert (line.bits, line.interval, line.ceiling) == ("3.18", "3.06–3.30", "5.32")
    assert line.percent == pytest.approx(100 * 5.2 * 0.612 / 5.32)


@pytest.mark.parametrize(
    ("queries", "missing", "said"),
    [
        (240, 3, "240 queries; 3 of them have no relevant item and are left out of every mean."),
        (1240, 1, "1,240 queries; 1 of them has no relevant item and is left out of every mean."),
        (7, 0, "7 queries; every one has a relevant item."),
    ],
)
def test_queries_are_counted(queries, missing, said):
    assert scores.counts({"queries": queries, "without_relevant": missing}) == said


@pytest.mark.parametrize(
    ("metric", "words"),
    [
        ("recall@4", "among the 4 nearest"),
        ("cmc@10", "among the 10 nearest"),
        ("map@r", "R nearest"),
        ("nmi", "by chance"),
        ("recall@x", ""),
        ("my_metric", ""),
    ],
)
def test_metrics_are_defined(metric, words):
    assert words in scores.definition(metric)
    assert bool(scores.definition(metric)) == bool(words)
