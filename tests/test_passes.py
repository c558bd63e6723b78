"""Compiled passes against plain torch: the same losses and gradients to the rounding of float32."""

import importlib
import os
import pickle
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from quad4 import LABELS

from nearkin import catalog, closed, fast, mining, positives
from nearkin.blocked import blocked_softmax
from nearkin.compare import InBatch
from nearkin.core import Batch, Comparison, home_of
from nearkin.objectives.compared import CLASS_COLUMNS
from nearkin.standalone import criterion

pytest.importorskip("numba")
passes = importlib.import_module("nearkin.passes")

LOSSES = catalog.scan(catalog.kind_named("loss"))
OF_ROWS = [name for name in LOSSES if home_of(LOSSES[name]).compare not in CLASS_COLUMNS]
pytestmark = pytest.mark.filterwarnings("ignore:n_pairs takes the first two rows")


@pytest.fixture
def plain(monkeypatch):
    def off():
        monkeypatch.setattr(fast, "passes", lambda: None)
        monkeypatch.setattr(positives, "passes", lambda: None)

    return off


def normal(*shape, seed=0, dtype=torch.float32):
    drawn = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return drawn.to(dtype)


def scored(loss, z, label):
    z = z.detach().clone().requires_grad_()
    value = loss(z, label)
    value.backward()
    return value.detach(), z.grad


def check_same(loss, z, label, off):
    """Compiled and plain are as far from float64 as float32 is."""
    found = scored(loss, z, label)
    off()
    expected, exact = scored(loss, z, label), scored(loss.double(), z.double(), label)
    for a, b, c in zip(found, expected, exact, strict=True):
        a, b, c = a.double(), b.double(), c.double()
        size = c.abs().max().clamp_min(1e-30)
        error = (b - c).abs().max() / size
        torch.testing.assert_close(a / size, c / size, rtol=0, atol=float(4 * error + 2e-5))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("kind", ["balanced", "unbalanced", "many", "copies"])
def test_every_loss_is_what_plain_torch_makes_it(name, kind, plain):
    label = {
        "balanced": torch.arange(24).repeat(4)[torch.randperm(96, generator=torch.Generator())],
        "unbalanced": torch.tensor(LABELS["unbalanced"]).repeat_interleave(3),
        "many": torch.arange(2).repeat_interleave(40),
        "copies": torch.arange(24).repeat(4),
    }[kind]
    z = normal(len(label), 20, seed=3)
    if kind == "copies":
        z[1], z[-1] = z[0], z[-2] * 3  # of two classes
    classes = int(label.max()) + 1
    torch.manual_seed(0)
    check_same(criterion(name, classes=classes, dim=20).eval(), z, label, plain)


@pytest.mark.parametrize("name", ["contrastive", "multi_similarity", "triplet", "histogram"])
@pytest.mark.parametrize("how", ["hard", "multi_similarity", "multi_label", "references", "large"])
def test_whoever_is_compared(name, how, plain):
    label = torch.arange(12).repeat(3)
    if how == "multi_label":
        label = torch.rand(36, 5, generator=torch.Generator().manual_seed(0)) < 0.3
    if how == "large":
        label = torch.arange(75).repeat(4)
    z = normal(len(label), 300 if how == "large" else 8, seed=1)
    mined = {"mining": how} if how in ("hard", "multi_similarity") else {}
    loss = criterion(name, **mined)
    if how == "references":
        inner, other = loss, normal(20, 8, seed=2)

        class Against(torch.nn.Module):
            def forward(self, z, label):
                return inner(z, label, other.to(z.dtype), torch.arange(20) % 12)

        loss = Against()
    check_same(loss, z, label, plain)


@given(
    st.integers(1, 7),
    st.integers(1, 70),
    st.integers(0, 1000),
    st.floats(0.01, 200),
    st.floats(0, 1),
)
def test_log_sum_exp_is_exact_to_float32(rows, columns, seed, scale, share):
    s = normal(rows, columns, seed=seed)
    mask = torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed)) < share
    rest = closed.log_sum_exp(closed.masked(mask), scale)
    value, slope = rest(s)
    exact, exact_slope = closed.log_sum_exp(closed.masked(mask), scale)(s.double())
    torch.testing.assert_close(value.double(), exact, rtol=3e-7, atol=2e-6)
    torch.testing.assert_close(slope.double(), exact_slope, rtol=scale * 2e-6 + 1e-5, atol=1e-35)


def test_exponentials_are_right_to_two_units_over_their_whole_range():
    x = np.linspace(-87, 0, 1_000_000).astype(np.float32)
    found, total = x[None].copy(), np.zeros(len(x), np.float32)
    passes._add_exps(found[0], np.float32(1), np.zeros_like(x), total)
    exact = np.exp(x.astype(np.float64))
    assert np.abs(found[0] / exact - 1).max() < 2.5e-7
    assert np.array_equal(total, found[0])


SEEING_ALL = [  # every similarity is in their value
    "contrastive", "multi_similarity", "infonce", "supcon", "snca", "nca", "triplet",
    "triplet_hard", "triplet_semi_hard", "generalized_lifted", "lifted_structure", "ranked_list",
    "histogram", "tuplet_margin",
]  # fmt: skip


@pytest.mark.parametrize("form", ["compiled", "plain"])
@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("name", SEEING_ALL)
def test_nan_is_never_lost(name, sign, form, plain):
    """Arithmetic makes NaN of either sign: inf - inf has its sign bit set on common processors."""
    if form == "plain":
        plain()
    s, label = normal(8, 8).clamp(-0.9, 0.9), torch.arange(4).repeat(2)
    s[0, 5] = torch.tensor(torch.nan).copysign(torch.tensor(sign))
    rows = normal(8, 3)
    c = Comparison(label, label, anchors=rows, references=rows, given=s, oneself=torch.arange(8))
    assert LOSSES[name](c).total.isnan()


@pytest.mark.parametrize("name", ["norm_softmax", "cross_entropy", "cosface", "arcface"])
def test_nan_among_many_classes_is_told_of(name):
    torch.manual_seed(0)
    loss = criterion(name, classes=3000, dim=16)
    weights = next(p for p in loss.parameters() if p.ndim == 2)
    with torch.no_grad():
        weights.normal_()[2000, 3] = torch.nan
    with pytest.raises(ValueError, match="is nan though"):
        loss(normal(64, 16), torch.arange(64))


def test_sums_over_very_many_classes_are_exact_to_float32():
    torch.manual_seed(0)
    z, rows = normal(2, 4) * 1e-3, normal(131_072, 4)
    _, rest = blocked_softmax(z, rows, torch.tensor([0, 1]))
    exact = (z.double() @ rows.double().T).scatter(1, torch.tensor([[0], [1]]), -torch.inf)
    torch.testing.assert_close(rest.double(), exact.logsumexp(1), rtol=0, atol=2e-6)


@pytest.mark.parametrize("change", ["similarity", "rows"])
def test_what_was_changed_in_place_is_seen(change):
    z, label = normal(12, 5).requires_grad_(), torch.arange(4).repeat(3)
    if change == "similarity":
        slopes = []
        for make in (lambda s: s.mul_(0.5), lambda s: s * 0.5):
            c = InBatch("cosine")(z, Batch(None, label=label))
            c = replace(c, given=make(c.similarity))
            slopes.append(torch.autograd.grad(LOSSES["multi_similarity"](c).total, z)[0])
        torch.testing.assert_close(*slopes)
        return
    c = InBatch("inner")(z, Batch(None, label=label))
    assert c.similarity.requires_grad
    with torch.no_grad():
        z.mul_(3)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        LOSSES["multi_similarity"](c).total.backward()


def test_a_comparison_can_be_pickled_after_a_loss():
    with torch.no_grad():
        c = InBatch("cosine")(normal(12, 5), Batch(None, label=torch.arange(4).repeat(3)))
        before = LOSSES["multi_similarity"](c).total
    assert torch.equal(LOSSES["multi_similarity"](pickle.loads(pickle.dumps(c))).total, before)


def test_what_is_not_counted_gets_no_slope_and_nan_stays():
    s = normal(3, 5)
    s[1, 2] = torch.nan
    keep = closed.masked(torch.tensor([[True] * 5, [True] * 5, [False] * 5]))
    value, slope = closed.log_sum_exp(keep)(s)
    assert value[1].isnan()
    assert value[2] == -torch.inf
    assert not slope[2].any()
    assert slope[0].isfinite().all()


@pytest.mark.parametrize("strictly", [True, False])
def test_nearest_below_is_the_same_in_plain_torch(strictly, plain):
    s = normal(30, 50).round(decimals=1)  # with ties
    keep = closed.masked(torch.rand(30, 50, generator=torch.Generator().manual_seed(1)) < 0.6)
    limit = torch.cat([s[:, :3], torch.full((30, 1), -9.0), torch.full((30, 1), torch.inf)], 1)
    found = closed.nearest_below(s, keep, limit, strictly)
    plain()
    assert torch.equal(found, closed.nearest_below(s, keep, limit, strictly))
    assert (found[:, 3] == -1).all()
    kept = keep(s.clone(), slice(None), -torch.inf)
    assert torch.equal(found[:, 4], kept.argmax(1))


@given(st.lists(st.integers(-3, 4), max_size=30))
def test_mates_are_those_of_plain_torch(labels):
    label = torch.tensor(labels, dtype=torch.int64)
    found = positives.mates_of(label)
    same = (label[:, None] == label[None]).fill_diagonal_(False)
    expected = positives.positives_of(same)
    assert found.count.tolist() == expected.count.tolist()
    assert found.pairs == expected.pairs
    for i in range(len(labels)):
        n = int(found.count[i])
        assert found.columns[i, :n].tolist() == expected.columns[i, :n].tolist()
        assert found.valid is None or found.valid[i].sum() == n


@pytest.mark.parametrize("columns", [1, 6, 20])
def test_chosen_entries_have_the_gradient_of_a_gather(columns, plain):
    for off in (lambda: None, plain):
        off()
        z = normal(9, 5).requires_grad_()
        chosen = torch.randint(0, 9, (9, columns), generator=torch.Generator().manual_seed(2))
        weight = normal(9, columns, seed=3)
        rows, _ = closed.unit_rows(z)
        found = closed.gathered(closed.gram(rows), chosen)
        (slope,) = torch.autograd.grad((found * weight).sum(), z)
        unit = torch.nn.functional.normalize(z)
        wanted = (unit @ unit.T).gather(1, chosen)
        torch.testing.assert_close(found, wanted)
        torch.testing.assert_close(slope, torch.autograd.grad((wanted * weight).sum(), z)[0])


def test_a_matrix_whose_gradient_is_looked_at_keeps_it():
    z, label = normal(12, 5).requires_grad_(), torch.arange(4).repeat(3)
    c = InBatch("cosine")(z, Batch(None, label=label))
    c.similarity.retain_grad()
    LOSSES["multi_similarity"](c).total.backward()
    assert c.similarity.grad is not None
    assert c.similarity.grad.any()
    again = InBatch("cosine")(z, Batch(None, label=label))
    seen = []
    again.similarity.register_hook(seen.append)
    LOSSES["triplet_hard"](again).total.backward()
    assert len(seen) == 1


def test_halves_of_products_are_the_products(one_thread):
    for n, dim in ((256, 256), (300, 257), (1030, 256), (512, 520), (1100, 513)):
        rows, _ = closed.unit_rows(normal(n, dim))
        found = closed.gram(rows)
        assert torch.equal(found, found.T)
        torch.testing.assert_close(found, rows @ rows.T, rtol=0, atol=2e-6)


def test_mining_that_narrows_is_scored_the_same(plain):
    z, label = normal(40, 6), torch.arange(10).repeat(4)
    c = mining.hard(InBatch("cosine")(z, Batch(None, label=label)))
    found = LOSSES["supcon"](c).total
    plain()
    torch.testing.assert_close(found, LOSSES["supcon"](replace(c)).total)


def test_without_numba_plain_torch_serves():
    said = (
        "import sys; sys.modules['numba'] = None\n"
        "import torch, nearkin as nk\n"
        "z = torch.randn(8, 4, requires_grad=True)\n"
        "nk.criterion('contrastive')(z, torch.arange(4).repeat(2)).backward()\n"
        "assert z.grad.any() and 'nearkin.passes' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", said], env=dict(os.environ), capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()


@pytest.mark.parametrize("bins", [1, 10])
@pytest.mark.parametrize("form", ["few", "mask"])
@pytest.mark.parametrize("which", ["positive", "negative", "both"])
def test_pairs_infinitely_far_apart_count_as_the_farthest(which, form, bins, plain):
    label = torch.arange(32) // 2 if form == "few" else torch.arange(32) // 8
    s = normal(32, 32).clamp(-0.9, 0.9)
    if which != "negative":
        s[0, 1], s[9, 8] = -torch.inf, -torch.inf
    if which != "positive":
        s[0, 31], s[9, 20] = -torch.inf, -torch.inf

    def value(s):
        c = Comparison(label, label, given=s, oneself=torch.arange(32))
        assert (c.keep_different.skip is None) == (form == "mask")
        return float(LOSSES["histogram"](c, bins=bins).total)

    found, farthest = value(s), value(s.clamp_min(-1e30))
    plain()
    assert found == pytest.approx(value(s), abs=1e-6)
    assert found == pytest.approx(farthest, abs=1e-6)
    assert found > 0
