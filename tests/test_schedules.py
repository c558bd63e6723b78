"""Schedules against the values that the paper's code gives."""

import math

import pytest

from nearkin.schedules import constant, step, warmup_cosine

TOTALS = {"cub": 1350, "cars": 6200, "products": 46500, "in_shop": 20200}


@pytest.mark.parametrize("total", TOTALS.values())
def test_the_warm_up_starts_at_a_hundredth(total):
    assert warmup_cosine(total)(0) == pytest.approx(0.01, rel=1e-12)


@pytest.mark.parametrize(
    ("name", "place", "value", "tolerance"),
    [
        ("cub", 98, 0.98705, 5e-6),
        ("cub", 99, 0.98679, 5e-6),
        ("cars", 99, 0.99937, 5e-6),
        ("products", 99, 0.999989, 5e-7),
        ("in_shop", 99, 0.999941, 5e-7),
        ("cub", 1349, 1.35e-6, 5e-9),
    ],
)
def test_warmup_cosine_has_the_values_of_the_papers_code(name, place, value, tolerance):
    assert warmup_cosine(TOTALS[name])(place) == pytest.approx(value, abs=tolerance)


@pytest.mark.parametrize(("name", "peak"), [("cub", 98), ("cars", 99), ("products", 99)])
def test_warmup_cosine_peaks_where_ramp_and_cosine_meet(name, peak):
    schedule = warmup_cosine(TOTALS[name])
    assert max(range(TOTALS[name]), key=schedule) == peak


def test_warmup_cosine_is_the_smaller_of_ramp_and_cosine_and_not_their_product():
    schedule = warmup_cosine(40, warmup=10)
    assert schedule(4) == 0.5
    assert schedule(20) == pytest.approx((1 + math.cos(math.pi / 2)) / 2)


def test_a_warm_up_of_no_steps_raises():
    with pytest.raises(ValueError, match="warmup is a number of steps >= 1, not 0"):
        warmup_cosine(10, warmup=0)


def test_step_drops_at_half_and_at_three_quarters():
    schedule = step(100)
    assert [schedule(i) for i in (0, 49, 50, 74)] == [1.0, 1.0, 0.1, 0.1]
    assert schedule(75) == schedule(99) == pytest.approx(0.01)


def test_step_drops_where_it_is_told():
    schedule = step(10, at=[0.3], factor=0.5)
    assert [schedule(i) for i in range(5)] == [1, 1, 1, 0.5, 0.5]


@pytest.mark.parametrize("share", [0.0, 1.0, 30.0])
def test_step_refuses_what_is_no_share(share):
    with pytest.raises(ValueError, match="between 0 and 1"):
        step(100, at=[share])


def test_constant_is_one():
    assert {constant(5)(i) for i in range(5)} == {1.0}
