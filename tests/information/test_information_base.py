"""Information: its units, its checks, its words."""

import math

import pytest

from nearkin.information import Information


def test_nats_are_bits_times_log_2():
    assert Information(2.0, 1.5, 2.5).nats == pytest.approx(math.log(4))


def test_it_reads_as_a_sentence():
    found = Information(2.31, 2.20, 2.41, 3.32, "lower")
    assert repr(found) == "2.31 bits of 3.32 (lower bound, 95 % 2.20..2.41)"
    found = Information(1.0, 0.5, 1.5, kind="neither", left_out=3)
    assert repr(found) == "1.00 bits (no bound, 95 % 0.50..1.50, 3 rows left out)"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((1.0, 1.1, 1.2), "does not hold"),
        ((math.nan, 0.0, 1.0), "finite"),
        ((2.0, 1.0, 3.0, 1.5), "exceeds its ceiling"),
        ((1.0, 0.0, 2.0, -1.0), "ceiling must be"),
        ((1.0, 0.0, 2.0, 3.0, "low"), "'low' is no kind"),
        ((1.0, 0.0, 2.0, 3.0, "lower", -1), "left_out"),
    ],
)
def test_contradictions_are_refused(arguments, said):
    with pytest.raises(ValueError, match=said):
        Information(*arguments)


def test_from_nats_with_a_normal_interval():
    found = Information.from_nats(math.log(2), 0.5 * math.log(2), "neither")
    assert (found.bits, found.low, found.high) == pytest.approx((1, 0.02, 1.98))
    assert found.error == pytest.approx(0.5)
    lower = Information.from_nats(math.log(2), math.log(2), "lower", math.log(4), left_out=3)
    assert (lower.high, lower.ceiling, lower.left_out) == pytest.approx((2, 2, 3))
    negative = Information.from_nats(-0.1, 0.2, "lower")
    assert negative.bits < 0
    assert "-0.14 bits (lower bound, 95 % -0.71..0.42)" in repr(negative)


def test_it_is_at_its_ceiling_within_a_fifth():
    assert Information(1.7, 1.6, 1.8, 2.0).at_ceiling
    assert not Information(1.5, 1.4, 1.6, 2.0).at_ceiling
    assert not Information(9.0, 8.0, 10.0).at_ceiling


def test_as_json_an_infinite_ceiling_is_null():
    said = Information(1.0, 0.5, 1.5, kind="upper", error=0.2).to_dict()
    assert said == {
        "bits": 1.0,
        "low": 0.5,
        "high": 1.5,
        "error": 0.2,
        "ceiling": None,
        "kind": "upper",
        "left_out": 0,
    }
    with pytest.raises(ValueError, match="a standard error must be 0 bits or more"):
        Information(1.0, 0.5, 1.5, error=math.nan)


def test_an_upper_bound_says_what_it_stands_on():
    assert "upper bound if its model is right" in repr(Information(1.0, 0.5, 1.5, kind="upper"))
