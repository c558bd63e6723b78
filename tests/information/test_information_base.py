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
