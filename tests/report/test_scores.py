"""Cells say what metrics.json says, no more."""

import pytest
from made_up_run import block

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
    assert plain(cells[0].text) == "61.2 %"
    assert (cells[0].interval, cells[0].beside, cells[0].number) == ("59.2–63.2", "", 0.612)
    assert cells[5] == scores.Cell("0.745", "0.725–0.765", "random 0.541", 0.7448)
    assert plain(before[0].text) == "12.0 %"


def test_a_metric_that_a_row_lacks_is_a_dash(view):
    view.metrics["untrained"]["cosine"] = {"recall@1": {"value": None}}
    table = scores.table(scores.rows_of(view), "cosine")
    assert table.lines[1][1][0] == table.lines[1][1][4] == scores.Cell("–", "", "", None)


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


def test_floors_are_rows_that_say_how_they_came_about(view):
    whitened = block(0.33) | {"shrinkage": 0.1, "chosen_on": "validation"}
    view.metrics["floors"] = {"raw": block(0.28), "whitened": whitened, "mine": block(0.2)}
    floors = {row.name: row for row in scores.rows_of(view) if row.role == "floor"}
    assert list(floors) == ["features as they are", "whitened", "mine"]
    assert floors["whitened"].note.endswith("no training; shrinkage 0.1, chosen on validation")
    whitened["chosen_on"] = "default"
    assert scores.rows_of(view)[3].note.endswith("shrinkage 0.1 by default")
    table = scores.table(scores.rows_of(view), "cosine")
    assert [row.role for row, _ in table.lines] == ["trained", "untrained"] + 3 * ["floor"]
    assert plain(table.lines[3][1][0].text) == "33.0 %"


@pytest.mark.parametrize("floors", [None, [], 3, {"raw": None}, {"raw": 0.3}, {"raw": {}}])
def test_floors_that_are_none_have_no_row(view, floors):
    view.metrics["floors"] = floors
    assert all(row.role != "floor" for row in scores.rows_of(view))


def test_a_floor_without_the_closeness_is_in_no_table(view):
    view.metrics["floors"] = {"raw": {"cosine": 0.3}}
    assert len(scores.table(scores.rows_of(view), "cosine").lines) == 2


def test_the_paper_is_a_row_with_its_protocol_and_no_column_of_its_own(view):
    view.recipe["paper"] = {
        "source": "Somebody 2020, table 3",
        "selected": "best epoch on the test classes",
        "cosine": {"recall@1": 0.692, "recall@1000": 0.99},
    }
    rows = scores.rows_of(view)
    assert rows[-1].note == (
        "printed in Somebody 2020, table 3; its protocol: best epoch on the test classes"
    )
    table = scores.table(rows, "cosine")
    assert "recall@1000" not in table.metrics
    assert [plain(cell.text) for cell in table.lines[-1][1]][:2] == ["69.2 %", "–"]
    assert len(scores.table(rows, "euclidean").lines) == 3
