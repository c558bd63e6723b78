"""The panel: which rows it looks at and when, what it says, and what it warns of."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_runs
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_runs import recipe

import nearkin as nk
from nearkin.console import Reporter
from nearkin.data.base import Table
from nearkin.evaluation import geometry
from nearkin.information.class_means import class_mean_information
from nearkin.loop import State
from nearkin.panel import FEWEST, PER_CLASS, ROWS, Panel, measured, sampled

pytestmark = pytest.mark.usefixtures("one_thread")


def table(label, z=None):
    label = torch.as_tensor(label)
    names = tuple(map(str, range(int(label.max()) + 1)))
    ids = tuple(map(str, range(len(label))))
    return Table(torch.zeros(len(label), 2) if z is None else z, label, names, ids)


def panel(train, validation=None):
    """Of rows that are their own embedding; there is no test split to look at."""
    return Panel(SimpleNamespace(train=train, validation=validation), lambda t: t.inputs, seed=0)


class Steps:
    """As much of a loop as a panel reads."""

    def __init__(self, epochs=100):
        self.state, self.epochs, self.records = State(), epochs, []

    @property
    def ending(self):
        return self.state.epoch == self.epochs - 1

    def log(self, record):
        self.records.append(record)
        return len(self.records)


# Which rows


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=300), st.integers(4, 200), st.integers(0))
def test_a_sample_is_bounded_seeded_and_of_whole_classes_as_far_as_it_goes(label, most, seed):
    label = torch.tensor(label)
    rows = sampled(label, most, seed)
    assert torch.equal(rows, sampled(label, most, seed))
    assert torch.equal(rows, rows.unique())
    assert 1 <= len(rows) <= most
    limit = max(PER_CLASS, most // len(label.unique()))
    counts = torch.bincount(label[rows])
    assert int(counts.max()) <= limit
    sizes = torch.bincount(label, minlength=len(counts))[: len(counts)]
    cut = (counts > 0) & (counts < sizes.clamp_max(limit))
    assert int(cut.sum()) <= 1  # the class that the bound fell into


def test_another_seed_draws_other_rows_and_another_order_of_codes_no_longer_classes():
    label = torch.arange(4000) % 80
    one, two = sampled(label, 200, 0), sampled(label, 200, 1)
    assert not torch.equal(one, two)
    assert len(one) == 200
    assert sorted(torch.bincount(label[one]).unique().tolist()) == [0, PER_CLASS]


def test_few_classes_fill_the_rows_and_classes_of_one_row_come_last():
    assert len(sampled(torch.arange(5000) % 2, 1000, 0)) == 1000
    label = torch.tensor([0, 0, 0, *range(1, 50)])
    assert {0, 1, 2} <= set(sampled(label, 4, 3).tolist())


def test_of_many_training_rows_a_twentieth_and_never_more_than_a_thousand():
    for count, looked_at in ((100, 100), (600, FEWEST), (12_000, 600), (40_000, ROWS)):
        train = panel(table(torch.arange(count) % 30))
        assert len(train.rows["training"]) == pytest.approx(looked_at, abs=PER_CLASS)
        assert len(train.rows["training"]) <= looked_at
    held = panel(table([0, 0]), table(torch.arange(9000) % 90))
    assert len(held.rows["validation"]) == ROWS


def test_the_remark_says_what_is_held_out():
    both = panel(table(torch.arange(600) % 6), table(torch.arange(50) % 5))
    assert both.remark() == "252 of 600 training rows and 50 of 50 validation rows"
    alone = panel(table([0, 0, 1, 1])).remark()
    assert alone.startswith("4 of 4 training rows; there is no validation split")


# When


def drawn(steps, epochs, validation=None):
    """The steps at which panels are drawn, in a run of epochs of so many steps."""
    loop = Steps(epochs)
    each = panel(table([0, 0, 1, 1], torch.eye(4)), validation)
    each.start(loop)
    for epoch in range(epochs):
        loop.state.step, loop.state.epoch = loop.state.step + steps, epoch
        each.follow(loop, epoch)
    return [record["step"] for record in loop.records]


def test_a_panel_is_drawn_before_training_after_the_first_epoch_every_100_steps_and_last():
    assert drawn(steps=108, epochs=3) == [0, 108, 216, 324]
    assert drawn(steps=30, epochs=9) == [0, 30, 150, 270]
    assert drawn(steps=20, epochs=8) == [0, 20, 120, 160]
    assert drawn(steps=2, epochs=1) == [0, 2]


def test_a_resumed_run_has_its_first_panel_already():
    loop = Steps()
    loop.state.step, loop.state.notes["panel"] = 170, 60
    panel(table([0, 0, 1, 1], torch.eye(4))).start(loop)
    assert loop.records == []


def test_rows_that_are_embedded_already_are_not_embedded_again():
    asked = []
    validation = table(torch.arange(3000) % 25, torch.randn(3000, 4))
    splits = SimpleNamespace(train=table([0, 0, 1, 1], torch.eye(4)), validation=validation)
    each = Panel(splits, lambda t: asked.append(len(t)) or t.inputs, seed=0)
    loop = Steps()
    each.start(loop)
    assert asked == [4, ROWS]
    loop.state.step = 100
    each.follow(loop, 0, validation.inputs)
    assert asked == [4, ROWS, 4]
    kept = ("event", "step", "epoch", "seconds")
    before, after = (
        {k: v for k, v in record.items() if k not in kept}
        for record in (loop.records[1], loop.records[3])
    )
    assert before == after


# What


def test_it_says_what_the_functions_say():
    generator = torch.Generator().manual_seed(0)
    label = torch.arange(60) % 6
    z = torch.randn(60, 5, generator=generator) + 2 * torch.eye(6, 5)[label]
    said = measured(z, label, 9, seed=3)
    assert "missing" not in said
    unit = torch.nn.functional.normalize(z, dim=1)
    assert said["information"]["bits"] == class_mean_information(unit, label, 3).bits
    assert said["information"]["ceiling"] == pytest.approx(math.log2(6))
    assert said["jsd"] == geometry.pair_divergence(z, label)
    assert said["alignment"] == geometry.alignment(z, label)
    assert said["uniformity"] == geometry.uniformity(z)
    assert said["cosine_mean"] == geometry.mean_cosine(z)
    assert said["effective_rank"] == geometry.effective_rank(z)
    assert said["simplex_distance"] == geometry.simplex_distance(z, label, 9)
    assert said["simplex_least"] == geometry.least_simplex_distance(6, 5, 9)
    assert json.loads(json.dumps(said)) == said


def test_what_cannot_be_measured_is_none_with_its_reason():
    said = measured(torch.eye(4), torch.arange(4), 4, seed=0)
    assert said["information"] is said["jsd"] is said["alignment"] is None
    assert set(said["missing"]) == {"information", "jsd", "alignment"}
    assert "two classes of two rows" in said["missing"]["information"]
    assert said["simplex_distance"] > 0
    one = measured(torch.eye(4), torch.zeros(4, dtype=torch.int64), 1, seed=0)
    assert set(one["missing"]) == {"information", "jsd", "simplex_distance", "simplex_least"}
    assert one["alignment"] == pytest.approx(2)
    single = measured(torch.eye(4)[:1], torch.zeros(1, dtype=torch.int64), 1, seed=0)
    assert single["uniformity"] is None
    assert single["effective_rank"] == pytest.approx(1)


# Warnings


def after(z, label, step=100):
    loop = Steps()
    each = panel(table(label, z))
    each.start(loop)
    loop.state.step = step
    each.follow(loop, 0)
    loop.state.step = 2 * step
    each.follow(loop, 1)
    return loop.records


def test_a_collapse_is_said_once_and_not_of_an_encoder_that_has_not_learned():
    alike = torch.ones(8, 3) + 1e-4 * torch.eye(8, 3)
    with pytest.warns(UserWarning, match="training rows have collapsed: after step 100") as heard:
        after(alike, torch.arange(8) % 2)
    assert len(heard) == 1


@pytest.mark.parametrize("z", [torch.zeros(9, 3), torch.tensor([[1.0, 0], [-1, 0], [2, 0]] * 3)])
def test_rows_of_zeros_and_three_classes_on_a_line_have_collapsed(z):
    with pytest.warns(UserWarning, match="effective rank [01]"):
        after(z, torch.arange(9) % 3)


def test_a_few_steps_are_no_collapse():
    records = after(torch.ones(8, 3), torch.arange(8) % 4, step=40)  # a warning would raise
    assert records[-1]["cosine_mean"] == pytest.approx(1)


def test_two_classes_on_one_line_have_not_collapsed():
    z = torch.tensor([[1.0, 0.0]] * 6 + [[-1.0, 0.0]] * 2)
    records = after(z, torch.tensor([0] * 6 + [1] * 2))
    assert records[-1]["effective_rank"] == pytest.approx(1)
    assert records[-1]["simplex_distance"] == pytest.approx(0, abs=1e-6)


def test_rows_that_are_no_numbers_are_said_and_end_no_run():
    z = torch.eye(6)
    z[2, 1] = math.nan
    with pytest.warns(UserWarning, match="1 of 6 embeddings hold NaN"):
        records = after(z, torch.arange(6) % 2)
    assert records[0]["problem"] == "1 of 6 embeddings hold NaN or infinity"
    assert "jsd" not in records[0]


# In a run


def without_validation(rows, path):
    with np.load(rows) as stored:
        split = np.where(stored["split"] == 1, 2, stored["split"])
        np.savez(path, inputs=stored["inputs"], labels=stored["labels"], split=split)
    return path


@pytest.mark.parametrize("validation", [True, False])
def test_a_run_logs_its_panel(tmp_path, rows, validation):
    said = recipe(rows)
    if not validation:
        said["data"]["npz"]["validation"] = 0.0
        said["data"]["npz"]["path"] = str(without_validation(rows, tmp_path / "rows.npz"))
    run = nk.train(said, out=tmp_path / "run", reporter=Reporter(None))
    of = ["training", "validation"] if validation else ["training"]
    records = tiny_runs.lines(run.folder, "panel")
    assert [record["of"] for record in records] == of * 3
    assert [record["step"] for record in records[:: len(of)]] == [0, 6, 24]
    (start,) = tiny_runs.lines(run.folder, "start")
    assert ("no validation split" in start["panel"]) != validation
    for record in records:
        assert 0 <= record["jsd"] <= 1
        assert 0 <= record["alignment"] <= 4
        assert -8 <= record["uniformity"] <= 0
        assert 1 <= record["effective_rank"] <= 4
        assert record["simplex_least"] <= record["simplex_distance"] <= math.sqrt(2)
        assert record["information"]["bits"] <= record["information"]["ceiling"]
