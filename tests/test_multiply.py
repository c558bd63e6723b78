"""Products by two libraries: right in any layout, and never chosen where they do not belong."""

import os
import subprocess
import sys

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from nearkin import blocked, closed, core, multiply
from nearkin.compare import InBatch, Proxies
from nearkin.core import Batch
from nearkin.multiply import times


def drawn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.fixture
def onednn(monkeypatch):
    """Everything by oneDNN, and how often it was asked."""
    if not multiply.onednn_sums_in_float32(64):
        pytest.skip("this build of torch has no oneDNN in full float32")
    asked = []

    def counted(a, b):
        asked.append((a.shape, b.shape))
        return torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")

    monkeypatch.setattr(multiply, "LARGE", 1)
    monkeypatch.setattr(multiply, "_sorts", set())
    monkeypatch.setattr(multiply, "_faster_here", lambda: True)
    monkeypatch.setattr(multiply, "by_onednn", counted)
    return asked


SHAPES = [(1, 1, 1), (7, 3, 5), (64, 130, 33), (5, 1000, 512), (513, 40, 1030)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("turned", ["neither", "first", "second", "both"])
def test_onednn_multiplies_matrices_in_any_layout(shape, turned, onednn):
    n, m, k = shape
    a = drawn(k, n).T if turned in ("first", "both") else drawn(n, k)
    b = drawn(m, k, seed=1).T if turned in ("second", "both") else drawn(k, m, seed=1)
    out = torch.full((n + 2, m + 3), 7.0)
    into = times(a, b, out=out[1:-1, 2:-1])
    assert len(onednn) == 1
    expected = a.double() @ b.double()
    for found in (times(a, b), into, out[1:-1, 2:-1]):
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-6 * k)
    assert (out[:, :2] == 7).all()
    assert (out[0] == 7).all()


def test_nothing_to_multiply_is_nothing(onednn):
    for n, m, k in ((0, 3, 4), (3, 0, 4), (3, 4, 0)):
        assert torch.equal(times(torch.zeros(n, k), torch.zeros(k, m)), torch.zeros(n, m))
    assert not onednn


def test_only_large_float32_on_a_cpu_goes_to_onednn(onednn, monkeypatch):
    monkeypatch.setattr(multiply, "LARGE", 1000)
    a, b = drawn(10, 10), drawn(10, 10)
    times(a[:9], b)
    times(a.double(), b.double())
    times(a.bfloat16(), b.bfloat16())
    with torch.device("meta"):
        times(torch.empty(10, 10), torch.empty(10, 10))
    torch.compile(times, backend="eager")(a, b)
    with monkeypatch.context() as off:
        off.setattr(torch.backends.mkldnn, "enabled", False)
        times(a, b)
    assert not onednn
    times(a, b)
    assert len(onednn) == 1


def test_onednn_keeps_code_for_a_few_sorts_of_products_alone(onednn):
    def found(n):
        return times(drawn(n, 4), drawn(4, 5, seed=1))

    first = [found(n) for n in range(1, 300)]
    assert len(onednn) == multiply.SORTS
    # What was made by one library is always made by it.
    again = [found(n) for n in range(299, 0, -1)]
    assert len(onednn) == 2 * multiply.SORTS
    assert all(torch.equal(a, b) for a, b in zip(first, again[::-1], strict=True))


@pytest.mark.parametrize(
    ("vendor", "capability", "mkl", "faster"),
    [
        ("AuthenticAMD", "AVX512", True, True),
        ("AuthenticAMD", "AVX2", True, False),
        ("AuthenticAMD", "AVX512", False, False),
        ("GenuineIntel", "AVX512", True, False),
        ("", "AVX512", True, False),
    ],
)
def test_what_the_machine_is_decides(vendor, capability, mkl, faster, monkeypatch):
    monkeypatch.setattr(multiply, "_vendor", lambda: vendor)
    monkeypatch.setattr(multiply, "onednn_sums_in_float32", lambda dim: True)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: mkl)
    assert multiply._faster_here.__wrapped__() is faster


def test_the_vendor_is_read_from_the_system_or_unknown(monkeypatch):
    monkeypatch.setattr(multiply.platform, "processor", lambda: "AMD64 Family 25, AuthenticAMD")
    assert multiply._vendor() == "AuthenticAMD"
    monkeypatch.setattr(multiply.platform, "processor", lambda: "")

    class Unreadable:
        def __init__(self, *_):
            pass

        def read_text(self, **_):
            raise OSError("no such file")

    monkeypatch.setattr(multiply, "Path", Unreadable)
    assert multiply._vendor() == ""


SHORT = """
from nearkin import multiply
multiply._vendor = lambda: "AuthenticAMD"
assert not multiply.onednn_sums_in_float32(64)
assert not multiply.onednn_is_faster()
"""


def test_where_onednns_own_settings_shorten_float32_it_is_left_out():
    settings = {**os.environ, "ONEDNN_DEFAULT_FPMATH_MODE": "BF16"}
    assert subprocess.run([sys.executable, "-c", SHORT], check=False, env=settings).returncode == 0


# --- what losses make of them

# Of torch's own derivatives in forward mode.
JIT = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")


@pytest.mark.parametrize("shape", [(30, 8), (600, 520), (1100, 513)])
def test_rows_with_themselves_by_onednn(shape, onednn):
    z = drawn(*shape).requires_grad_()
    slope = drawn(shape[0], shape[0], seed=1)
    (found,) = torch.autograd.grad(closed.gram(z), z, slope)
    exact = z.detach().double().requires_grad_()
    (expected,) = torch.autograd.grad(exact @ exact.T, exact, slope.double())
    torch.testing.assert_close(closed.gram(z).double(), exact @ exact.T, rtol=2e-6, atol=1e-4)
    torch.testing.assert_close(found.double(), expected, rtol=2e-6, atol=5e-4)
    assert onednn


@pytest.mark.parametrize("closeness", ["cosine", "euclidean", "inner"])
def test_rows_with_references_by_onednn(closeness, onednn):
    z, label = drawn(12, 6).requires_grad_(), torch.arange(12) % 5
    compare = Proxies(5, 6, closeness=closeness)
    slope = drawn(12, 5, seed=2)
    of = [z, compare.vectors]
    similarity = compare(z, Batch(None, label=label)).similarity
    found = torch.autograd.grad(similarity, of, slope)
    assert len(onednn) == 3
    compare, z64 = compare.double(), z.detach().double().requires_grad_()
    similarity = compare(z64, Batch(None, label=label)).similarity
    expected = torch.autograd.grad(similarity, [z64, compare.vectors], slope.double())
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-5)
    assert len(onednn) == 3


@JIT
def test_a_product_with_references_is_differentiable_twice(monkeypatch):
    monkeypatch.setattr(multiply, "LARGE", 1)
    a, r = drawn(4, 3, dtype=torch.float64), drawn(5, 3, seed=1, dtype=torch.float64)
    leaves = [a.requires_grad_(), r.requires_grad_()]
    assert gradcheck(core.cross, leaves, check_forward_ad=True)
    assert gradgradcheck(core.cross, leaves)


def test_a_penalty_on_the_gradient_by_onednn_has_a_gradient(onednn):
    def penalty(a, r):
        value = core.cross(a, r).square().sum()
        (slope,) = torch.autograd.grad(value, a, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), [a, r])

    leaves = [drawn(40, 30).requires_grad_(), drawn(50, 30, seed=1).requires_grad_()]
    found = penalty(*leaves)
    assert onednn
    expected = penalty(*(x.detach().double().requires_grad_() for x in leaves))
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine.double(), theirs, rtol=1e-4, atol=1e-1)
        assert theirs.abs().max() > 1e3


@JIT
def test_transforms_of_functions_take_torchs_own_product(onednn):
    a, r = drawn(3, 4, 5), drawn(6, 5, seed=1)
    torch.testing.assert_close(torch.func.vmap(core.cross, (0, None))(a, r), a @ r.T)
    by_function = torch.func.grad(lambda x: core.cross(x, r).square().sum())(a[0])
    torch.testing.assert_close(by_function, 2 * (a[0] @ r.T) @ r)
    _, along = torch.func.jvp(lambda x: core.cross(x, r), (a[0],), (a[1],))
    torch.testing.assert_close(along, a[1] @ r.T)
    assert not onednn


def test_what_no_gradient_needs_may_change_in_place(onednn):
    a, r = drawn(4, 3), drawn(5, 3, seed=1).requires_grad_()
    value = core.cross(a, r).sum()
    with torch.no_grad():
        r.zero_()
    value.backward()
    torch.testing.assert_close(r.grad, a.sum(0).expand(5, 3))


def test_frozen_references_cost_no_product(onednn):
    a, r = drawn(4, 3).requires_grad_(), drawn(5, 3, seed=1)
    core.cross(a, r).sum().backward()
    assert len(onednn) == 2


def test_a_softmax_in_blocks_by_onednn(onednn, monkeypatch):
    monkeypatch.setattr(blocked, "ENTRIES", 40)
    a, r = drawn(5, 4).requires_grad_(), drawn(23, 4, seed=1).requires_grad_()
    column = torch.tensor([3, 22, 6, 3, 15])
    rows = closed.UnitRows(r, lambda x: closed.unit_rows(x)[0])
    own, rest = blocked.blocked_softmax(a, rows, column)
    found = torch.autograd.grad((own[:, 0] * rest).sum(), [a, r])
    assert onednn
    a64, r64 = (x.detach().double().requires_grad_() for x in (a, r))
    logits = a64 @ torch.nn.functional.normalize(r64).T
    own = logits.gather(1, column[:, None])[:, 0]
    rest = logits.scatter(1, column[:, None], -torch.inf).logsumexp(1)
    expected = torch.autograd.grad((own * rest).sum(), [a64, r64])
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine.double(), theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("large", [1, 1 << 40])
def test_similarities_and_slopes_are_full_float32_under_autocast(large, monkeypatch):
    monkeypatch.setattr(multiply, "LARGE", large)
    z, label = drawn(12, 6), torch.arange(12) % 5
    slope = {"rows": drawn(12, 12, seed=2), "classes": drawn(12, 5, seed=3)}
    for compare in (InBatch("cosine"), Proxies(5, 6)):

        def scored(short, compare=compare):
            leaf = z.clone().requires_grad_()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=short):
                similarity = compare(leaf, Batch(None, label=label)).similarity
            # Outside, as torch asks for; where the product is our own, inside as well.
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=short and large == 1):
                similarity.backward(slope[compare.columns_are])
            return similarity.detach(), leaf.grad

        expected, found = scored(False), scored(True)
        for mine, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-6)


def test_the_question_is_asked_in_float32_on_a_cpu_whatever_the_defaults():
    ask = multiply.onednn_sums_in_float32.__wrapped__
    before = ask(64)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            assert ask(64) == before
    finally:
        torch.set_default_dtype(torch.float32)
