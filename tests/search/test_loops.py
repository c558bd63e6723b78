"""When the compiled loops are loaded, and what stands in for them."""

import os
import subprocess
import sys

import pytest
import torch

from nearkin import fast
from nearkin.search import loops, tiles
from nearkin.search.products import full_float32

SMALL = """
import sys, numpy as np, nearkin as nk
z, y = np.random.default_rng(0).normal(size=(1500, 64)), np.arange(1500) % 300
made = []
nk.evaluate(z, y, planned=made.append)
assert made[0].screened == 1500
sys.exit("numba" in sys.modules)
"""


def test_few_rows_do_not_wait_for_a_compiler():
    assert subprocess.run([sys.executable, "-c", SMALL], check=False).returncode == 0


def test_without_numba_there_are_no_loops(monkeypatch):
    monkeypatch.setitem(sys.modules, "nearkin.search.compiled", None)
    fast.loops.cache_clear()
    try:
        assert loops.compiled() is None
    finally:
        monkeypatch.undo()
        fast.loops.cache_clear()


def test_products_are_full_float32_within_and_as_before_afterwards():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with full_float32():
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


NEWER = """
import torch
from nearkin.search.products import full_float32
place = torch.backends.mkldnn.matmul
place.fp32_precision = "bf16"
with full_float32():
    assert place.fp32_precision == "ieee"
assert place.fp32_precision == "bf16"
"""


def test_torchs_newer_switches_are_turned_too():
    assert subprocess.run([sys.executable, "-c", NEWER], check=False).returncode == 0


FULL = """
import errno, sys, warnings
import numba.core.caching as caching, numpy as np, nearkin as nk
from nearkin import fast
from nearkin.search import loops
def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")
caching.IndexDataCacheFile.save = full
loops.WORTH = 0
index = nk.Index()
index.add(np.eye(4))
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    assert [hits[0]["id"] for hits in index.search(np.eye(4), k=1)] == [0, 1, 2, 3]
    index.search(np.eye(4), k=1)
assert ["No space left" in str(one.message) for one in said] == [True], said
"""


def test_a_full_disk_costs_a_warning_only(tmp_path):
    pytest.importorskip("numba")
    home = {**os.environ, "NEARKIN_HOME": str(tmp_path), "NUMBA_CACHE_DIR": ""}
    assert subprocess.run([sys.executable, "-c", FULL], check=False, env=home).returncode == 0


def test_overlapping_threads_leave_the_switches_as_they_were():
    """Each has the switch for itself until the last one ends."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        first, second = full_float32(), full_float32()
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert torch.get_float32_matmul_precision() == "highest"
        second.__exit__(None, None, None)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


def test_overlapping_workers_leave_the_number_of_threads_as_it_was():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        first, second = tiles._one_thread_each(), tiles._one_thread_each()
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert torch.get_num_threads() == 1
        second.__exit__(None, None, None)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
