"""Calibration: which estimator meets which task, when a bound counts as broken, the checks."""

import math

import pytest

from nearkin.information import Information, tasks
from nearkin.information.calibration import (
    Cell,
    calibrate,
    consistency,
    full_tasks,
    quick_tasks,
)

ONE = tasks.gaussian(1.0, 5)


def cell(nats, error, kind, task=ONE):
    return Cell("some", task, Information.from_nats(nats, error, kind))


@pytest.mark.parametrize(
    ("nats", "kind", "broken", "within"),
    [
        (1.2, "lower", False, True),
        (1.4, "lower", True, False),
        (0.2, "lower", False, False),
        (0.6, "upper", True, False),
        (3.0, "upper", False, False),
        (3.0, "neither", False, False),
    ],
)
def test_a_bound_is_broken_beyond_three_standard_errors(nats, kind, broken, within):
    seen = cell(nats, 0.1, kind)
    assert (seen.broken, seen.within) == (broken, within)
    assert seen.to_dict()["broken"] == broken


def test_each_estimator_meets_the_tasks_it_is_made_for():
    chosen = [ONE, tasks.overlapping(5)]
    told = []
    cells = calibrate(
        chosen,
        ["ksg", "cca", "mixed", "probe"],
        rows=300,
        progress=lambda done, total: told.append((done, total)),
    )
    assert [(c.estimator, c.task.name) for c in cells] == [
        ("ksg", ONE.name),
        ("cca", ONE.name),
        ("mixed", chosen[1].name),
        ("probe", chosen[1].name),
    ]
    assert told == [(i, 4) for i in range(4)]
    by_name = {c.estimator: c for c in cells}
    for name in ("cca", "mixed"):
        assert by_name[name].within
        assert not by_name[name].broken


def test_steps_and_batch_go_to_those_that_learn():
    (seen,) = calibrate([ONE], ["infonce"], rows=200, steps=2, batch=16)
    assert seen.found.ceiling == pytest.approx(4)


def test_what_says_nothing_says_why():
    (seen,) = calibrate([tasks.dense(25)], ["cca"], rows=40)
    assert seen.found is None
    assert "need more than 51 rows" in seen.reason
    assert seen.to_dict()["estimate"] is None
    assert not seen.broken
    assert math.isnan(seen.off)


def test_an_unknown_estimator_is_named():
    with pytest.raises(ValueError, match="there is no estimator 'ksgg'; known: infonce"):
        calibrate([ONE], ["ksgg"])


def test_consistency_is_of_three_tasks():
    cells = [
        cell(0.02, 0.1, "neither", tasks.independent(5)),
        cell(0.8, 0.1, "neither", ONE),
        cell(0.4, 0.1, "neither", tasks.processed(1.0, 5)),
        cell(1.2, 0.1, "neither", ONE.doubled()),
    ]
    assert consistency(cells) == {
        "some": {
            "independent": pytest.approx(0.02),
            "processed": pytest.approx(0.5),
            "doubled": pytest.approx(1.5),
        }
    }
    assert consistency(cells[1:2]) == {}


def test_the_lists_hold_the_checks_and_no_task_twice():
    for listed in (quick_tasks(), full_tasks()):
        names = [task.name for task in listed]
        assert len(set(names)) == len(names)
        assert {ONE.name, ONE.doubled().name, tasks.processed(1.0, 5).name} <= set(names)
    assert {"dense 50 x 50", "cubic 20 x 20, 10 nats", "swiss roll 2 x 1"} <= set(names)
