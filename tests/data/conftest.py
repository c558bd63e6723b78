"""Every test of the data sets has a cache folder of its own."""

import pytest


@pytest.fixture(autouse=True)
def _own_cache(cache):
    return cache
