"""Curves are drawn as they are, long ones shortened; shares in percent, whiskers at the ends."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from nearkin.report.figures import BLUE, Curve, decimate, plot, running_mean


def test_shares_are_drawn_in_percent_with_their_whiskers():
    x, y = np.arange(2.0), np.array([0.5, 0.25])
    curve = Curve("a", x, y, BLUE, low=y - 0.125, high=y + 0.25)
    drawn = plot("t", "n", [curve], "epoch", percent=True)
    (trace,) = drawn.figure.data
    assert trace.y == (50.0, 25.0)
    assert trace.error_y.array == (25.0, 25.0)
    assert trace.error_y.arrayminus == (12.5, 12.5)
    np.testing.assert_array_equal(drawn.curves[0].y, y)


def test_curves_without_points_have_no_plot():
    assert plot("t", "n", [Curve("a", np.zeros(0), np.zeros(0), BLUE)], "epoch") is None


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=300), st.integers(4, 60))
def test_decimation_keeps_ends_and_extremes_in_order(values, most):
    y = np.array(values)
    x, kept = decimate(np.arange(len(y)), y, most)
    assert len(x) <= most or len(x) == len(y) <= most
    assert x[0] == 0
    assert x[-1] == len(y) - 1
    assert (np.diff(x) > 0).all()
    assert (kept.min(), kept.max()) == (y.min(), y.max())
    np.testing.assert_array_equal(kept, y[x])


def test_running_mean_by_hand():
    np.testing.assert_allclose(running_mean(np.array([0.0, 3, 6, 0]), 3), [1.5, 3, 3, 3])
