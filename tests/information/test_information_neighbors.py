"""Neighbors and counts: trees, blocks and compiled loops agree with a slow loop."""

import numpy as np
import pytest
import torch

from nearkin.information import neighbors
from nearkin.information.neighbors import by_blocks, joint_neighbors, nearest_distances


def pairs(n, dx, dy, seed=0):
    generator = torch.Generator().manual_seed(seed)
    # Multiples of 1/8, exact in float32: with ties, and every distance the same both ways.
    return [
        (8 * torch.randn(n, d, generator=generator, dtype=torch.float64)).round() / 8
        for d in (dx, dy)
    ]


def slow(x, y, k):
    found = []
    for i in range(len(x)):
        dx, dy = ((side - side[i]).abs().amax(1) for side in (x, y))
        others = torch.arange(len(x)) != i
        radius = torch.maximum(dx, dy)[others].sort().values[k - 1]
        found.append((radius, (dx[others] < radius).sum(), (dy[others] < radius).sum()))
    return [torch.stack(column) for column in zip(*found, strict=True)]


def by_trees(x, y, k):
    return neighbors._by_trees(x.numpy(), y.numpy(), k)


def by_numba(x, y, k):
    pytest.importorskip("numba")
    return neighbors._by_numba(x, y, k, neighbors._compiled())


@pytest.mark.parametrize("how", [by_trees, by_blocks, by_numba, joint_neighbors])
@pytest.mark.parametrize(("n", "dx", "dy", "k"), [(90, 1, 1, 3), (130, 4, 5, 1), (70, 2, 3, 6)])
def test_radius_and_counts_are_those_of_a_slow_loop(how, n, dx, dy, k):
    x, y = pairs(n, dx, dy)
    for seen, expected in zip(how(x, y, k), slow(x, y, k), strict=True):
        assert torch.equal(seen.double(), expected.double())


def test_where_the_work_is_worth_it_the_compiled_loop_is_taken(monkeypatch):
    called = []
    monkeypatch.setattr(neighbors, "WORTH_COMPILING", 10.0)
    monkeypatch.setattr(neighbors, "_compiled", lambda: called.append)
    monkeypatch.setattr(
        neighbors, "_by_numba", lambda x, y, k, c: c(k) or neighbors.by_blocks(x, y, k)
    )
    joint_neighbors(*pairs(20, 4, 4), 3)
    joint_neighbors(*pairs(20, 1, 1), 3)
    assert called == [3]


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("how", ["jitter", "one far row", "some near", "cauchy"])
def test_what_float32_cannot_tell_apart_is_taken_in_float64(how, compiled, monkeypatch):
    if compiled:
        pytest.importorskip("numba")
        monkeypatch.setattr(neighbors, "WORTH_COMPILING", 1.0)
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 300, 4, generator=generator, dtype=torch.float64)
    if how == "jitter":
        x, y = x.sign() + 1e-8 * x, y.sign() + 1e-8 * y
    elif how == "one far row":
        x[0], y[0] = 1e9, -1e9
    elif how == "some near":
        x[:20], y[:20] = 3 + 1e-7 * x[:20], 3 + 1e-7 * y[:20]
    else:
        x, y = (x / y) ** 5, (y / x.roll(1, 0)) ** 5
    for seen, exact in zip(joint_neighbors(x, y, 3), slow(x, y, 3), strict=True):
        # Of distances between 1e-30 and 1e20 a few others are equal but for rounding.
        off = (seen - exact).abs() > 1e-6 * exact
        assert off.double().mean() <= (0.02 if how == "cauchy" else 0)


@pytest.mark.parametrize("d", [2, 9])
def test_nearest_distances_are_euclidean(d):
    z = pairs(100, d, 1)[0]
    far = torch.cdist(z, z).sort(1).values
    torch.testing.assert_close(nearest_distances(z, 4), far[:, 4])


def test_memory_is_never_quadratic():
    # 3,000 x 3,000 doubles would be 72 MB; the largest block held is 64 x 3,000.
    sizes = []

    class Watched(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                sizes.append(out.numel())
            return out

    x, y = pairs(3000, 5, 5)
    with Watched():
        by_blocks(x, y, 3)
    assert max(sizes) <= 64 * 3000


def test_numba_takes_the_threads_of_torch():
    pytest.importorskip("numba")
    x, y = pairs(50, 4, 4)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        two = by_numba(x, y, 2)
    finally:
        torch.set_num_threads(before)
    assert np.array_equal(two.in_x.numpy(), by_numba(x, y, 2).in_x.numpy())
