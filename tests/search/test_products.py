"""Products of rows in low precision: every library within the bound, and none that shortens."""

import os
import subprocess
import sys

import pytest
import torch

from nearkin import multiply
from nearkin.search import products
from nearkin.search.screen import bound_of

WAYS = {"blas": products._by_blas, "onednn": products._by_onednn}


@pytest.fixture(params=sorted(WAYS))
def way(request):
    if request.param == "onednn" and not products.onednn_sums_in_float32(8):
        pytest.skip("this build of torch has no oneDNN in full float32")
    return WAYS[request.param]


@pytest.mark.parametrize("shape", [(1, 1, 1), (7, 3, 5), (64, 130, 33), (5, 1000, 512)])
def test_float32_products_keep_the_bound(way, shape):
    rows, columns, dim = shape
    generator = torch.Generator().manual_seed(0)
    q, g = (
        torch.nn.functional.normalize(torch.randn(n, dim, generator=generator)).contiguous()
        for n in (rows, columns)
    )
    with products.full_float32():
        tile = way(q, g, torch.empty(rows * columns))
    assert tile.shape == (rows, columns)
    assert tile.is_contiguous()
    off = (tile.double() - q.double() @ g.double().T).abs().max()
    # The rows as rounded are longer than 1 by a rounding or two, and no distance is left to them.
    assert float(off) <= bound_of(torch.float32, dim, 2.0**-23, 2.0**-23).flat


def test_the_fastest_is_one_of_them_and_is_taken():
    q, g, out = torch.eye(4), 2 * torch.eye(4), torch.empty(16)
    assert products._fastest(4) in WAYS.values()
    torch.testing.assert_close(products.product(q, g, out), 2 * torch.eye(4))


def test_where_onednn_cannot_be_had_blas_makes_products(monkeypatch):
    def missing(*_):
        raise AttributeError("no such operation")

    monkeypatch.setattr(multiply, "by_onednn", missing)
    products.onednn_sums_in_float32.cache_clear()
    products._fastest.cache_clear()
    try:
        assert products._fastest(4) is products._by_blas
    finally:
        monkeypatch.undo()
        products.onednn_sums_in_float32.cache_clear()
        products._fastest.cache_clear()


SHORT = """
import os, sys, torch
from nearkin.search import products
torch.set_float32_matmul_precision("medium")
x = torch.full((64, 64), 1 + 2.0**-20)
with products.full_float32():
    tile = products.product(x, torch.eye(64), torch.empty(64 * 64))
assert bool((tile == x).all()), float(tile[0, 0])
shortened = os.environ["ONEDNN_DEFAULT_FPMATH_MODE"] != "STRICT"
sys.exit(shortened and products._fastest(64) is not products._by_blas)
"""


@pytest.mark.parametrize("mode", ["STRICT", "BF16", "ANY"])
def test_no_setting_shortens_float32(mode):
    """oneDNN's own settings are not torch's to turn: BLAS is taken then."""
    settings = {**os.environ, "ONEDNN_DEFAULT_FPMATH_MODE": mode}
    assert subprocess.run([sys.executable, "-c", SHORT], check=False, env=settings).returncode == 0
