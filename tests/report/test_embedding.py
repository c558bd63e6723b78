"""The panel as plots: held-out rows beside trained ones, bounds, intervals, several runs."""

import numpy as np
from made_up_run import log

from nearkin.report.embedding import overlaid_panels, panel_plots, rows_of_panel

TITLES = [
    "Bits, trained on and held out",
    "Same pairs against different pairs",
    "Alignment",
    "Uniformity",
    "Mean cosine of pairs",
    "Effective rank",
    "Distance from the simplex",
]


def by_title(plots):
    return {plot.title: plot for plot in plots}


def without(of):
    return [line for line in log() if line.get("of") != of]


def test_every_number_of_the_panel_has_its_plot_of_both_kinds_of_rows():
    plots = by_title(panel_plots(log()))
    assert list(plots) == TITLES
    for title in TITLES[1:]:
        assert [curve.name for curve in plots[title].curves] == ["held out", "trained on"]
    held = plots["Effective rank"].curves[0]
    lines = [line for line in log() if line.get("of") == "validation"]
    np.testing.assert_array_equal(held.x, [line["step"] for line in lines])
    np.testing.assert_array_equal(held.y, [line["effective_rank"] for line in lines])
    assert held.x[0] == 0


def test_bits_have_their_interval_and_their_ceilings():
    bits = by_title(panel_plots(log()))[TITLES[0]]
    names = ["held out", "ceiling, held out", "trained on", "ceiling, trained on"]
    assert [curve.name for curve in bits.curves] == names
    held, ceiling = bits.curves[:2]
    np.testing.assert_allclose(held.high - held.low, 0.4)
    assert set(ceiling.y) == {5.32}


def test_what_the_dimensions_allow_is_drawn_where_no_simplex_fits():
    lines = [{**line, "simplex_least": 0.3} if "jsd" in line else line for line in log()]
    names = [curve.name for curve in by_title(panel_plots(lines))[TITLES[-1]].curves]
    assert names[1] == "most even, held out"


def test_a_run_that_holds_nothing_out_says_so_at_every_plot():
    for plot in panel_plots(without("validation")):
        assert "which flatter" in plot.note
        assert [curve.name for curve in plot.curves][:1] == ["trained on"]
    assert not any("which flatter" in plot.note for plot in panel_plots(log()))


def test_what_was_not_measured_has_no_plot():
    assert panel_plots([]) == []
    bare = [line | {"jsd": None, "information": {"bits": None}} for line in log() if "jsd" in line]
    assert list(by_title(panel_plots(bare))) == TITLES[2:]


def test_the_rows_are_said():
    said = rows_of_panel(log())
    assert said.startswith("256 of 5,120 training rows and 400 of 900 validation rows. Classes of")
    assert rows_of_panel(without("validation")).endswith("validation rows.")
    assert rows_of_panel([{"event": "start"}]) == ""


def test_several_runs_are_compared_on_rows_held_out_where_there_are_any():
    plots = by_title(overlaid_panels({"one": log(), "two": without("validation")}))
    (curve,) = plots["Effective rank"].curves
    assert curve.name == "one"
    alone = without("validation")
    plots = by_title(overlaid_panels({"one": alone, "two": alone}))
    assert all("which flatter" in plot.note for plot in plots.values())
    assert [curve.name for curve in plots["Effective rank"].curves] == ["one", "two"]
