"""The course of training is what the log says; what is missing has no plot."""

import numpy as np
import pytest
from made_up_run import histogram, log

from nearkin.report.course import distance_plots, overlaid, training_plots


def by_title(plots):
    return {plot.title: plot for plot in plots}


def test_every_part_of_a_log_has_its_plot():
    plots = by_title(training_plots(log(), chosen=8))
    assert list(plots) == [
        "Terms of the loss",
        "Pull and push",
        "Learning rates",
        "Validation",
        "Information about the class",
    ]
    terms = {curve.name: curve for curve in plots["Terms of the loss"].curves}
    assert list(terms) == ["total", "tightness", "contrast"]
    steps = [line for line in log() if line["event"] == "step"]
    np.testing.assert_array_equal(terms["total"].y, [line["terms"]["total"] for line in steps])
    np.testing.assert_array_equal(plots["Pull and push"].curves[0].x, np.arange(0, 400, 50))
    assert [curve.name for curve in plots["Learning rates"].curves] == ["encoder", "objective"]
    assert plots["Validation"].figure.layout.shapes[0].x0 == 8


def test_an_empty_log_has_no_plots():
    assert training_plots([]) == []
    assert distance_plots([]) == []


def test_parts_that_are_always_zero_and_a_total_of_one_part_are_not_drawn():
    terms = [{"total": t, "tightness": 0.0, "contrast": 0.0, "joint": t} for t in (3.0, 2.0)]
    lines = [{"event": "step", "step": s, "terms": t} for s, t in enumerate(terms)]
    (plot,) = training_plots(lines)
    assert [curve.name for curve in plot.curves] == ["joint"]


def test_a_sum_is_drawn_whole_and_by_its_parts():
    terms = {"total": 3.0, "tightness": 1.0, "contrast": 2.0, "a.joint": 0.5, "a.total": 0.5}
    terms |= {"a.tightness": 0.0, "b.total": 2.5, "b.tightness": 1.0, "b.x.total": 2.5}
    lines = [{"event": "step", "step": s, "terms": terms} for s in range(3)]
    plots = by_title(training_plots(lines))
    whole, parts = plots["Terms of the loss"].curves, plots["Parts of the sum"].curves
    assert [curve.name for curve in whole] == ["total", "tightness", "contrast"]
    assert {curve.name: curve.y[0] for curve in parts} == {"a": 0.5, "b": 2.5}


def test_a_resumed_run_that_says_a_step_twice_is_drawn_once_with_the_later_word():
    said = [(0, 3.0), (1, 2.0), (2, 9.0), (1, 1.5), (2, 1.0)]
    lines = [{"event": "step", "step": s, "terms": {"total": t}} for s, t in said]
    (curve,) = training_plots(lines)[0].curves
    assert curve.x.tolist() == [0, 1, 2]
    assert curve.y.tolist() == [3.0, 1.5, 1.0]


def test_values_that_are_no_finite_numbers_are_left_out():
    values = [1.0, float("nan"), None, float("inf"), 2.0]
    lines = [
        {"event": "epoch", "epoch": e, "information": {"bits": v}} for e, v in enumerate(values)
    ]
    (curve,) = training_plots(lines)[0].curves
    assert (curve.x.tolist(), curve.y.tolist()) == ([0, 4], [1.0, 2.0])


def test_long_curves_are_shortened_and_rates_are_not_smoothed():
    rates = [{"event": "step", "step": s, "rates": {"a": s / 9_999}} for s in range(10_000)]
    (plot,) = training_plots(rates)
    (trace,) = plot.figure.data
    assert 500 < len(trace.x) <= 1_500
    np.testing.assert_allclose(trace.y, np.array(trace.x) / 9_999, rtol=1e-5)


def test_long_terms_are_a_running_mean_over_their_own_trace():
    plot = training_plots(log(steps=2_000))[0]
    assert len(plot.figure.data) == 2 * len(plot.curves)
    assert all(len(trace.x) <= 1_500 for trace in plot.figure.data)
    faint, bold = plot.figure.data[:2]
    assert faint.opacity < 0.5
    assert np.std(np.diff(bold.y)) < np.std(np.diff(faint.y)) / 5


def test_names_of_terms_are_no_markup():
    lines = [{"event": "step", "step": 0, "rates": {"<b>x</b>": 1.0}}]
    assert training_plots(lines)[0].figure.data[0].name == "&lt;b&gt;x&lt;/b&gt;"


def test_distances_share_their_axes_and_say_their_overlap():
    before, after = distance_plots(log())
    assert (before.title, after.title) == ("Before training", "After training")
    assert before.figure.layout.xaxis.range == after.figure.layout.xaxis.range == (0, 2)
    assert before.figure.layout.yaxis.range == after.figure.layout.yaxis.range
    edges = [0.0, 1.0, 2.0]
    line = {"event": "distances", "when": "trained", "edges": edges}
    (plot,) = distance_plots([line | {"same": [0.75, 0.25], "different": [0.5, 0.5]}])
    assert plot.note == "The two overlap by 75 %."
    np.testing.assert_array_equal(plot.curves[0].x, [0.5, 1.5])


@pytest.mark.parametrize("change", [{"same": [1.0]}, {"edges": []}, {"different": []}])
def test_histograms_that_do_not_fit_are_not_drawn(change):
    line = {"event": "distances", "when": "trained", **histogram(np.linspace(0, 2, 9), 1, 1)}
    assert len(distance_plots([line])) == 1
    assert distance_plots([line | change]) == []


def test_one_epoch_alone_has_no_curves_over_epochs():
    line = {
        "event": "epoch",
        "epoch": 0,
        "validation": {"recall@1": 0.5},
        "test": {"recall@1": 0.1},
    }
    assert training_plots([line]) == []
    assert len(training_plots([line, line | {"epoch": 1}])) == 2


def test_information_has_its_interval_and_validation_is_in_percent():
    told = {"bits": 2.0, "low": 1.5, "high": 2.25, "ceiling": 3.0}
    lines = [
        {"event": "epoch", "epoch": e, "information": told, "validation": {"map@r": 0.25}}
        for e in range(2)
    ]
    plots = by_title(training_plots(lines))
    bits = plots["Information about the class"].figure.data[0]
    assert bits.error_y.array == (0.25, 0.25)
    assert bits.error_y.arrayminus == (0.5, 0.5)
    assert plots["Validation"].figure.data[0].y == (25.0, 25.0)
    mixed = [line | {"validation": {"map@r": 0.25, "nmi": 0.5}} for line in lines]
    assert by_title(training_plots(mixed))["Validation"].figure.data[0].y == (0.25, 0.25)


def test_the_test_classes_followed_over_epochs_are_no_honest_figure():
    lines = [{"event": "epoch", "epoch": e, "test": {"recall@1": 0.5}} for e in range(3)]
    (plot,) = training_plots(lines)
    assert plot.title.startswith("The test classes")
    assert "no honest figure" in plot.note


def test_several_runs_share_a_plot_for_each_thing_that_two_of_them_logged():
    short = [line for line in log(steps=100, epochs=5) if line["event"] != "distances"]
    plots = by_title(overlaid({"one": log(), "two": short, "none": []}))
    assert list(plots) == [
        "Loss",
        "Validation map@r",
        "Validation recall@1",
        "Information about the class",
        "Bits of rows held out",
        "Same pairs against different pairs",
        "Effective rank",
        "Distance from the simplex",
    ]
    assert [curve.name for curve in plots["Loss"].curves] == ["one", "two"]
    assert [len(curve.x) for curve in plots["Effective rank"].curves] == [11, 6]
    first, second = plots["Loss"].curves
    assert (first.color, first.dash) != (second.color, second.dash)
