"""When the compiled loops are loaded, and what stands in for them."""

import subprocess
import sys

import pytest
import torch

from nearkin.search import loops

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
    loops.compiled.cache_clear()
    try:
        assert loops.compiled() is None
    finally:
        monkeypatch.undo()
        loops.compiled.cache_clear()


def test_products_are_full_float32_within_and_as_before_afterwards():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with pytest.raises(RuntimeError, match="inside"), loops.full_float32():
            assert torch.get_float32_matmul_precision() == "highest"
            raise RuntimeError("inside")
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
