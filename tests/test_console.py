"""What a person sees: plain lines now and then, a bar on a terminal, the table of scores."""

import io
import sys

import pytest

from nearkin import console
from nearkin.console import Bar, Pace, Reporter, block_table, fitting, plain, remarks, scores_table
from nearkin.loop import State


def score(value, spread=None):
    said = {"value": value}
    return said if spread is None else {**said, "low": value - spread, "high": value + spread}


METRICS = {
    "test": {
        "cosine": {
            "recall@1": score(0.794, 0.094),
            "map@r": score(0.3),
            "nmi": score(0.236),
            "nmi_random": score(0.004),
        },
        "euclidean": {"recall@1": score(0.9, 0.05)},
        "queries": 533,
        "without_relevant": 2,
        "information": {"bits": 0.734, "ceiling": 1.585},
    },
    "untrained": {"cosine": {"recall@1": score(0.5, 0.1)}},
    "raw": {"cosine": {"recall@1": {"value": None, "low": None, "high": None}}},
    "selected": {"epoch": 3, "by": "validation map@r"},
}


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """A clock that is moved by hand."""
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    return now


# --- plain lines


def test_plain_lines_say_what_happens():
    stream = io.StringIO()
    reporter = Reporter(stream)
    reporter.say("hello [there]")
    reporter.epoch(0, {"recall@1": 0.5, "map@r": 0.25})
    reporter.epoch(1, None)
    reporter.close()
    assert stream.getvalue().splitlines() == [
        "hello [there]",
        "epoch 1  recall@1 0.500  map@r 0.250",
        "epoch 2",
    ]


def test_plain_lines_of_long_work_come_now_and_then(clock):
    stream = io.StringIO()
    reporter = Reporter(stream)
    show = reporter.step(2, 120)
    for step in range(1, 101):
        clock[0] += 1
        show(State(epoch=step // 60, batch=step % 60, step=step), 60)
    assert stream.getvalue().splitlines() == [
        "epoch 1 of 2, batch 31 of 60",
        "epoch 2 of 2, batch 2 of 60",
        "epoch 2 of 2, batch 33 of 60",
    ]


@pytest.mark.parametrize(
    ("work", "said"),
    [
        ("prepared", "prepared 36 of 99 inputs, 1.0/s"),
        ("embedded", "embedded 36 of 99 items, 1.0/s"),
    ],
)
def test_counted_work_is_told_only_where_it_takes_long(clock, work, said):
    stream = io.StringIO()
    reporter = Reporter(stream)
    getattr(reporter, work)(5, 99)
    clock[0] += 31
    getattr(reporter, work)(36, 99)
    getattr(reporter, work)(99, 99)
    assert stream.getvalue().splitlines() == [said]


def test_the_pace_is_that_since_it_was_last_asked():
    pace = Pace()
    assert pace(5, 100.0) == ""  # since when, nobody knows
    assert pace(2505, 102.0) == ", 1,250/s"
    assert pace(2508, 104.0, "  ") == "  1.5/s"
    assert pace(2508, 105.0) == ""
    assert pace(3, 106.0) == ""  # other work began
    assert pace(33, 107.0) == ", 30/s"


def test_steps_say_how_many_rows_they_take_a_second(clock):
    stream = io.StringIO()
    show = Reporter(stream).step(1, 60)
    show(State(batch=1, step=1, rows=128, seconds=2.0), 60)
    clock[0] += 31
    show(State(batch=2, step=2, rows=256, seconds=4.0), 60)
    assert stream.getvalue().splitlines() == ["epoch 1 of 1, batch 2 of 60, rows: 64/s"]


def test_without_a_stream_nothing_is_said(capsys, clock):
    reporter = Reporter(None)
    reporter.say("hello")
    reporter.epoch(0, {"recall@1": 0.5})
    clock[0] += 100
    reporter.prepared(1, 2)
    assert capsys.readouterr() == ("", "")


def test_a_terminal_gets_a_bar_and_a_file_gets_lines(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    bar = fitting()
    bar.close()
    assert isinstance(bar, Bar)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert type(fitting()) is Reporter
    assert plain().stream is sys.stderr


# --- the bar


@pytest.fixture
def started(monkeypatch):
    """A bar on a terminal, made in the test: pytest has streams of its own for fixtures."""
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TERM", "xterm")
    bars = []

    def start():
        monkeypatch.setattr(sys, "stderr", Terminal())
        bars.append(Bar())
        return bars[0], sys.stderr

    yield start
    bars[0].close()


def test_the_bar_counts_the_steps_of_all_epochs(started):
    bar, terminal = started()
    show = bar.step(3, 21)
    show(State(epoch=0, batch=3, step=3), 7)
    assert bar.task is None  # not every step is worth a drawing
    show(State(epoch=0, batch=5, step=5), 7)
    bar.epoch(0, {"recall@1": 0.5})
    show(State(epoch=1, batch=7, step=14), 7)
    (task,) = bar.progress.tasks
    assert (task.description, task.completed, task.total) == ("epoch 2/3", 14, 21)
    assert task.fields["note"] == "recall@1 0.500"
    bar.close()
    assert "14/21" in terminal.getvalue()


def test_the_bar_counts_megabytes_and_waits_for_the_first(started):
    bar, terminal = started()
    bar.say("a question")
    assert not bar.progress.live.is_started
    bar.megabytes("downloading a.tgz", 3_400_000, 0)
    assert bar.progress.tasks[0].total is None
    bar.megabytes("downloading a.tgz", 3_400_000, 9_900_000)
    (task,) = bar.progress.tasks
    assert (task.description, task.completed, task.total) == ("downloading a.tgz", 3, 9)
    bar.megabytes("downloading a.tgz", 9_900_000, 9_900_000)
    assert bar.task is None
    assert "a question" in terminal.getvalue()


def test_the_bar_of_counted_work_tells_its_pace_and_goes_when_it_is_done(started, clock):
    bar, _ = started()
    bar.prepared(3, 9)
    assert [task.description for task in bar.progress.tasks] == ["inputs"]
    assert bar.progress.tasks[0].fields["note"] == ""
    clock[0] += 2
    bar.prepared(7, 9)
    assert bar.progress.tasks[0].fields["note"] == "2.0/s"
    bar.prepared(9, 9)
    assert bar.progress.tasks == []
    bar.embedded(1, 2)
    assert [task.description for task in bar.progress.tasks] == ["embedding"]


def test_the_bar_speaks_above_itself_and_reads_no_markup(started):
    bar, terminal = started()
    bar.say("a [bold] line")
    bar.epoch(0, None)
    bar.close()
    assert "a [bold] line" in terminal.getvalue()


# --- the table


def test_the_table_shows_percents_with_intervals_side_by_side():
    lines = scores_table(METRICS).splitlines()
    assert lines[0] == "retrieval on classes never seen in training (cosine, %)"
    assert lines[2].split() == ["trained", "untrained", "encoder", "raw", "input"]
    assert lines[4].split() == ["recall@1", "79.4", "(70.0-88.8)", "50.0", "(40.0-60.0)"]
    assert lines[5].split() == ["map@r", "30.0"]
    assert lines[6].split() == ["nmi", "23.6"]
    assert lines[7].split() == ["nmi_random", "0.4"]


def test_below_the_table_stands_what_else_was_found():
    assert scores_table(METRICS).splitlines()[-1] == (
        "533 queries; 2 without a relevant item, not scored; I(Z;Y) >= 0.73 of 1.58 bits; "
        "epoch 4, selected by validation map@r"
    )
    bare = {"test": {"queries": 3, "without_relevant": 0, "information": {"bits": None}}}
    assert remarks(bare) == "3 queries"


def test_columns_that_were_not_measured_are_left_out():
    lines = scores_table(METRICS, "euclidean").splitlines()
    assert lines[2].split() == ["trained"]
    assert lines[4].split() == ["recall@1", "90.0", "(85.0-95.0)"]


def test_the_table_fits_eighty_columns():
    wide = {f"precision@{k}": score(1.0, 0.0) for k in (1, 10, 100)}
    metrics = {
        **METRICS,
        **{key: {**METRICS["test"], "cosine": wide} for key in ("test", "untrained", "raw")},
    }
    lines = scores_table(metrics, width=80).splitlines()
    assert max(len(line) for line in lines[:-1]) <= 80
    assert sum("100.0 (100.0-100.0)" in line for line in lines) == 3  # no cell is broken


def test_a_block_alone_has_its_own_title():
    table = block_table([("value", METRICS["test"])], "cosine", "mine.npz (cosine, %)", 60)
    assert table.splitlines()[0] == "mine.npz (cosine, %)"
    assert "trained" not in table
