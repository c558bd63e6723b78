"""When the compiled loops are loaded, and what stands in for them."""

import subprocess
import sys

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
        with loops.full_float32():
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


NEWER = """
import torch
from nearkin.search.loops import full_float32
place = torch.backends.mkldnn.matmul
place.fp32_precision = "bf16"
with full_float32():
    assert place.fp32_precision == "ieee"
assert place.fp32_precision == "bf16"
"""


def test_torchs_newer_switches_are_turned_too():
    assert subprocess.run([sys.executable, "-c", NEWER], check=False).returncode == 0
