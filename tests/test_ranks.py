"""Ranks among thresholds are exact, whatever the numbers."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nearkin.ranks import BUCKETS, ladder, ranks_by_class

NUMBERS = st.floats(-10, 10, width=32) | st.sampled_from(
    [0.0, 1.0, 1.0 + 2**-23, 1e-30, -1e30, 1e30]
)


def slow(value, x):
    return (value <= x.reshape(-1, 1)).sum(1).int().view(x.shape)


@given(st.lists(NUMBERS, min_size=1, max_size=9), st.lists(NUMBERS, max_size=9), st.booleans())
def test_a_number_is_ranked_among_thresholds_and_equal_ones_are_below(value, x, wide):
    dtype = torch.float64 if wide else torch.float32
    value, _ = torch.tensor(value, dtype=dtype).sort()
    x = torch.cat([torch.tensor(x, dtype=dtype), value, value.nextafter(value - 1)])
    assert torch.equal(ladder(value).ranks(x), slow(value, x))


def test_many_numbers_at_many_thresholds():
    random = torch.Generator().manual_seed(0)
    value, _ = torch.rand(3 * BUCKETS // 2, generator=random).sort()
    x = torch.rand(100, 7, generator=random) * 1.2 - 0.1
    seen = ladder(value).ranks(x)
    assert seen.shape == x.shape
    assert torch.equal(seen, torch.searchsorted(value, x, right=True).int())


def test_nan_keeps_every_threshold_off():
    seen = ladder(torch.tensor([1.0, 2.0])).ranks(torch.tensor([torch.nan, torch.inf, -torch.inf]))
    assert seen.tolist() == [2, 2, 0]


@pytest.mark.parametrize("entries", [0, 1000])
@pytest.mark.parametrize("own", [[], [0], [2, 0, 0, 1, 2]])
def test_ranks_by_class_count_the_first_thresholds_of_each_class(own, entries):
    below = ranks_by_class(torch.tensor(own, dtype=torch.int64), 3, entries)
    rank = torch.arange(len(own) + 1, dtype=torch.int32)
    seen = below(torch.arange(3)[:, None], rank)
    assert seen.dtype == torch.int32
    assert seen.tolist() == [[own[:r].count(c) for r in range(len(own) + 1)] for c in range(3)]
