"""What RankMI has learned is drawn from the log alone; other runs have no such part."""

import math

import numpy as np
import pytest
from made_up_run import histogram, log, write_run

from nearkin.report import read_run, write_report
from nearkin.report.rankmi import rankmi_plots, statistic

DISTANCES = np.linspace(0, 2, 41)
TITLES = [
    "Distances of test pairs, and beta",
    "What the statistics network says of a distance",
    "What a pair costs at its distance",
    "Jensen-Shannon divergence of distances",
    "Beta",
    "Pairs that the margin leaves",
    "Loss, by whose turn it was",
]


def v_of(epoch):
    return (1 + epoch) * (1.1 - DISTANCES)


def rankmi_log(epochs=3, key="rankmi", **said):
    """Lines of a run of RankMI; V is a line that grows steeper with every epoch."""
    prefix = key[: -len("rankmi")]
    lines = []
    for epoch in range(epochs):
        for step in range(epoch * 100, epoch * 100 + 100, 50):
            found = {"jsd_bound": 0.1 * epoch, "beta": 1 + 0.01 * step / 100}
            found |= {"kept_same": 0.5, "kept_different": 0.25}
            found = {prefix + name: value for name, value in found.items()}
            who = prefix + "statistics" if step % 100 else "encoder"
            found |= {"learns": [who], "terms": {"total": 2.0 if step % 100 else 1.0}}
            lines.append({"event": "step", "step": step, "epoch": epoch, **found})
        recorded = {"distance": DISTANCES.tolist(), "V": v_of(epoch).tolist()}
        recorded |= {"beta": 1.1, "margin": 0.2, **said}
        lines.append({"event": "epoch", "epoch": epoch, "step": epoch * 100 + 99, key: recorded})
    edges = np.linspace(0, 2, 51)
    return [*lines, {"event": "distances", "when": "trained", **histogram(edges, 0.8, 1.3)}]


def by_title(plots):
    return {plot.title: plot for plot in plots}


def verticals(plot):
    return [round(shape.x0, 6) for shape in plot.figure.layout.shapes]


def curves(plot):
    return {curve.name: curve for curve in plot.curves}


def test_v_t_both_sides_and_beta_stand_over_the_distances_of_test_pairs():
    plots = by_title(rankmi_plots(rankmi_log()))
    assert list(plots) == TITLES
    for title in TITLES[:3]:
        assert verticals(plots[title]) == [1.1, 0.9, 1.3]
        ends = {tuple(p.figure.layout.xaxis.range) for p in list(plots.values())[:3]}
        assert len(ends) == 1
    said = curves(plots[TITLES[1]])
    assert list(said) == ["V", "T", "V after the first epoch"]
    inside = np.isin(DISTANCES, said["V"].x)
    np.testing.assert_allclose(said["V"].y, v_of(2)[inside])
    np.testing.assert_allclose(said["V after the first epoch"].y, v_of(0)[inside])
    np.testing.assert_allclose(said["T"].y, np.log(2) - np.log1p(np.exp(-v_of(2)[inside])))
    near, far = plots[TITLES[2]].curves
    np.testing.assert_allclose(near.y, -said["T"].y)
    np.testing.assert_allclose(far.y, np.log1p(np.exp(v_of(2)[inside])) - np.log(2))
    # The densities of same and of different pairs lie under both, by a scale of their own.
    for title in TITLES[1:3]:
        areas = [t for t in plots[title].figure.data if t.yaxis == "y2"]
        assert len(areas) == 2
        top = max(max(area.y) for area in areas)
        assert plots[title].figure.layout.yaxis2.range[1] == pytest.approx(3 * top, rel=1e-3)


def test_the_course_is_that_of_the_steps_below_its_ceiling():
    plots = by_title(rankmi_plots(rankmi_log()))
    bound, ceiling = plots[TITLES[3]].curves
    assert bound.x.tolist() == [0, 50, 100, 150, 200, 250]
    np.testing.assert_allclose(bound.y, [0, 0, 0.1, 0.1, 0.2, 0.2])
    assert set(ceiling.y) == {math.log(2)}
    assert curves(plots["Beta"])["beta"].y[-1] == pytest.approx(1.025)
    kept = plots["Pairs that the margin leaves"].figure.data
    assert (kept[0].y[0], kept[1].y[0]) == (50, 25)
    encoder, network = plots["Loss, by whose turn it was"].curves
    assert (encoder.x.tolist(), set(encoder.y)) == ([0, 100, 200], {1})
    assert (network.x.tolist(), set(network.y)) == ([50, 150, 250], {2})


def test_the_epoch_taken_is_drawn_and_a_part_of_a_sum_too():
    early = by_title(rankmi_plots(rankmi_log(), chosen=1))[TITLES[1]]
    inside = np.isin(DISTANCES, curves(early)["V"].x)
    np.testing.assert_allclose(curves(early)["V"].y, v_of(1)[inside])
    assert list(by_title(rankmi_plots(rankmi_log(key="pairs.rankmi")))) == TITLES


def test_a_resumed_run_that_says_an_epoch_twice_counts_the_later_word():
    twice = [*rankmi_log(1, beta=0.5), *rankmi_log(1, beta=0.7)]
    assert verticals(rankmi_plots(twice)[0]) == [0.7, 0.5, 0.9]


def test_without_a_margin_there_is_one_line_and_no_word_of_it():
    plot = rankmi_plots(rankmi_log(margin=None))[0]
    assert verticals(plot) == [1.1]
    assert "Dotted" not in plot.note


def test_without_test_distances_v_is_drawn_on_all_of_them():
    plots = by_title(rankmi_plots([line for line in rankmi_log() if line["event"] != "distances"]))
    assert list(plots) == TITLES[1:]
    assert len(curves(plots[TITLES[1]])["V"].x) == len(DISTANCES)


def test_where_v_rises_the_page_says_so():
    bent = np.where(DISTANCES < 1, 1 - DISTANCES, DISTANCES - 1).tolist()
    plots = by_title(rankmi_plots(rankmi_log(V=bent)))
    assert "V rises on 50 % of the distances" in plots[TITLES[1]].note
    assert "rises" not in by_title(rankmi_plots(rankmi_log()))[TITLES[1]].note


@pytest.mark.parametrize(
    "change", [{"V": [1.0]}, {"V": None}, {"beta": None}, {"beta": math.nan}, {"distance": []}]
)
def test_a_record_that_cannot_be_read_has_no_plots(change):
    assert rankmi_plots(rankmi_log(**change)) == []


def test_a_run_of_another_objective_has_none():
    assert rankmi_plots(log()) == []
    assert rankmi_plots([]) == []


def test_t_keeps_its_digits_far_out():
    np.testing.assert_allclose(
        statistic(np.array([-800.0, 0.0, 800.0])), [math.log(2) - 800, 0, math.log(2)]
    )


def test_the_page_has_the_part_for_rankmi_alone(tmp_path, umap):
    for name, lines in (("rankmi", rankmi_log()), ("other", log())):
        folder = write_run(tmp_path / name, lines=lines)
        page = write_report([read_run(folder)], folder / "report.html")
        text = page.read_text(encoding="utf-8")
        assert ("<h2>RankMI</h2>" in text) == (name == "rankmi")
        assert (TITLES[2] in text) == (name == "rankmi")
