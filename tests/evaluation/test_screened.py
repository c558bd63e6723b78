"""Screened counting against float64: every precision, both forms of the count, adversarial rows."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nearkin.evaluation import evaluate, per_query_values, plan, screened
from nearkin.search import loops, tiles
from nearkin.search.products import has_bfloat16

ALL = ("recall@1", "recall@7", "precision@3", "r_precision", "map@r", "map@3", "map@500")
ALL += ("mrr", "ndcg@5", "ndcg@500", "cmc@2")
CLOSENESS = ("cosine", "euclidean", "inner")
DTYPES = (torch.float32, torch.bfloat16)
HAS_NUMBA = loops.compiled() is not None
FORMS = ["plain", pytest.param("compiled", marks=pytest.mark.skipif(not HAS_NUMBA, reason="numba"))]


class Forced:
    """Whatever its size, a task is screened: in this precision, by this form, in small tiles."""

    def __init__(self, monkeypatch, dtype, form, side=16):
        monkeypatch.setattr(plan, "SMALL", 0)
        monkeypatch.setattr(tiles, "SIDE", side)
        monkeypatch.setattr(screened, "precision", lambda *_: dtype)
        monkeypatch.setattr(loops, "WORTH", 0)
        if form == "plain":
            monkeypatch.setattr(loops, "compiled", lambda: None)


@pytest.fixture(params=DTYPES, ids=("float32", "bfloat16"))
def dtype(request):
    return request.param


@pytest.fixture(params=FORMS)
def form(request):
    return request.param


@pytest.fixture
def forced(monkeypatch, dtype, form):
    return Forced(monkeypatch, dtype, form)


# A tie is 1e-12 of a pair's scale. Float64 sums of at most 64 terms decide it to 1e-14, and what
# lies nearer to the edge of a tie may count either way.
UNDECIDED = 1e-14


def slowly(z, y, x=None, yx=None, closeness="cosine", groups=None):
    """Least and greatest ranks of each query's relevant items, from the whole float64 matrix."""
    loo = x is None
    x, yx = (z, y) if loo else (x, yx)
    q, g = z.astype(np.float64), x.astype(np.float64)
    scale = max(np.abs(q).max(), np.abs(g).max()) or 1.0
    if closeness == "cosine":
        q, g = (
            a / np.maximum(np.linalg.norm(a, axis=1, keepdims=True), 1e-300)
            for a in (b / np.maximum(np.abs(b).max(1, keepdims=True), 1e-300) for b in (q, g))
        )
        size = np.ones((len(q), len(g)))
    else:
        q, g = q / scale, g / scale
        if closeness == "euclidean":
            q, g = q - g.mean(0), g - g.mean(0)
        n, m = np.linalg.norm(q, axis=1)[:, None], np.linalg.norm(g, axis=1)[None]
        size = (n**2 + m**2) / 2 if closeness == "euclidean" else n * m
    s = q @ g.T
    if closeness == "euclidean":
        s = -((q[:, None] - g[None]) ** 2).sum(2) / 2
    found = []
    for i in range(len(q)):
        use = np.ones(len(g), bool)
        if loo:
            use[i] = False
        if groups is not None:
            use &= groups[0][i] != groups[1]
        same = (y[i] & yx).any(1) if y.ndim == 2 else y[i] == yx
        mine = np.flatnonzero(use & same)
        mine = mine[np.argsort(-s[i, mine], kind="stable")]
        other = use & ~same
        least, greatest = [], []
        for j, item in enumerate(mine, 1):
            scale = (size[i, other] + size[i, item]) / 2
            ahead = s[i, other] - s[i, item] + 1e-12 * scale
            least.append(j + int((ahead >= UNDECIDED * scale).sum()))
            greatest.append(j + int((ahead >= -UNDECIDED * scale).sum()))
        found.append((least, greatest))
    return found


def expected(ranks, name):
    """Least and greatest value of one metric of every query from its ranks, by definition."""
    base, _, number = name.partition("@")
    found = [[value_of(base, number, np.array(r, dtype=float)) for r in pair] for pair in ranks]
    greatest, least = np.array(found).T  # no metric rises with a rank
    return least, greatest


def value_of(base, number, r):
    if not len(r):
        return np.nan
    last = len(r) if number in ("", "r") else int(number)
    hits, place = r <= last, np.arange(1, len(r) + 1)
    if base in ("recall", "cmc"):
        return float(hits.any())
    if base == "precision":
        return hits.sum() / last
    if base == "r_precision":
        return hits.mean()
    if base == "map":
        return (hits * place / r).sum() / min(last, len(r))
    if base == "mrr":
        return 1 / r[0]
    best = 1 / np.log2(1 + place[: min(last, len(r))])
    return (hits / np.log2(1 + r)).sum() / best.sum()


def check_agreement(ranks, z, y, *, metrics=ALL, **arguments):
    if not any(least for least, _ in ranks):
        with pytest.raises(ValueError, match="relevant"):
            evaluate(z, y, metrics=metrics, **arguments)
        return
    result = evaluate(z, y, metrics=metrics, **arguments)
    for name in metrics:
        check_values(result.per_query(name), ranks, name)


def check_values(values, ranks, name):
    least, greatest = expected(ranks, name)
    np.testing.assert_array_equal(np.isnan(values), np.isnan(least), err_msg=name)
    between = np.clip(values, least, greatest)
    np.testing.assert_allclose(values, between, rtol=1e-12, err_msg=name)


def rows(kind, generator, n, dim):
    """Rows of a kind that is hard on a screen."""
    if kind == "grid":
        return generator.integers(-1, 2, (n, dim)).astype(float)
    z = generator.standard_normal((n, dim))
    if kind == "equal":
        return np.repeat(z[:1], n, 0)
    if kind == "duplicates":
        return z[generator.integers(0, max(1, n // 3), n)]
    if kind == "norms":
        return z * 10.0 ** generator.integers(-12, 13, (n, 1))
    if kind == "zeros":
        return z * (generator.random((n, 1)) < 0.7)
    if kind == "close":
        # Similarities that differ by no more than the bound of either precision.
        step = 10.0 ** generator.integers(-9, -1, (n, 1))
        return z[:1] + step * z
    return z


KINDS = ("normal", "grid", "equal", "duplicates", "norms", "zeros", "close")


@pytest.mark.parametrize("closeness", CLOSENESS)
@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_float64_matrix(forced, closeness, kind):
    generator = np.random.default_rng(3)
    for dim, width in ((1, np.float64), (5, np.float32), (24, np.float64)):
        z = rows(kind, generator, 60, dim).astype(width)
        y = generator.integers(0, 9, 60)
        check_agreement(slowly(z, y, closeness=closeness), z, y, closeness=closeness)


@pytest.mark.parametrize("closeness", CLOSENESS)
@pytest.mark.parametrize("power", [40, -40, 60, -60, 170, -170, -200])
def test_sets_beyond_float32_equal_the_float64_matrix(forced, closeness, power):
    generator = np.random.default_rng(3)
    y = generator.integers(0, 9, 60)
    for kind in ("normal", "zeros"):
        z = rows(kind, generator, 60, 8)
        ranks = slowly(z, y, closeness=closeness)
        check_agreement(ranks, z * 10.0**power, y, closeness=closeness)


@pytest.mark.parametrize("closeness", CLOSENESS)
def test_subnormal_rows_equal_the_float64_matrix(forced, closeness):
    generator = np.random.default_rng(3)
    z = (generator.standard_normal((60, 8)) * 1e-42).astype(np.float32)
    y = generator.integers(0, 9, 60)
    check_agreement(slowly(z, y, closeness=closeness), z, y, closeness=closeness)


@pytest.mark.parametrize("closeness", CLOSENESS)
def test_queries_and_gallery_of_other_widths_and_sizes(forced, closeness):
    """Either side is read as given or scaled first, the shift of both taken off alike."""
    generator = np.random.default_rng(3)
    z, x = generator.standard_normal((37, 8)), generator.standard_normal((52, 8)) + 1
    y, yx = generator.integers(0, 9, 37), generator.integers(0, 9, 52)
    for q, g in (
        (z * 1e120, x.astype(np.float32)),
        (z.astype(np.longdouble), x.astype(np.float32)),
        (z * 1e-120, x * 1e-90),
    ):
        ranks = slowly(q, y, g, yx, closeness)
        check_agreement(ranks, q, y, gallery=g, gallery_labels=yx, closeness=closeness)


@pytest.mark.parametrize("closeness", CLOSENESS)
def test_gallery_groups_and_several_labels(forced, closeness):
    generator = np.random.default_rng(5)
    z, x = (rows("grid", generator, n, 3).astype(np.float32) for n in (37, 52))
    y, yx = generator.random((37, 5)) < 0.3, generator.random((52, 5)) < 0.3
    ids = (generator.integers(0, 4, 37), generator.integers(0, 4, 52))
    for labels, others in ((y, yx), (y.argmax(1), yx.argmax(1))):
        for groups in (None, ids):
            ranks = slowly(z, labels, x, others, closeness, groups)
            check_agreement(
                ranks, z, labels, gallery=x, gallery_labels=others, closeness=closeness,
                exclude=groups,
            )  # fmt: skip
    check_agreement(slowly(z, y, groups=(ids[0], ids[0])), z, y, exclude=ids[0])


def test_pairs_at_the_bound_are_counted_in_float64(forced):
    """Different items a hair above, at and below a relevant one, within the bound of the screen."""
    base = np.zeros((1, 64))
    base[0, 0] = 1.0
    steps = np.array([0.5, 0.5 + 1e-11, 0.5 - 1e-11, 0.5 + 1e-14, 0.5 - 1e-14, 0.5 + 1e-6, 0.49])
    turned = np.zeros((len(steps), 64))
    turned[:, 0], turned[np.arange(7), np.arange(1, 8)] = steps, np.sqrt(1 - steps**2)
    z, y = np.concatenate([base, turned]), np.array([0, 0, 1, 2, 3, 4, 5, 6])
    result = per_query_values(z, y, metrics=["mrr"])["mrr"]
    # Nearer: 0.5 + 1e-11 and 0.5 + 1e-6; tied, and so before it: 0.5 ± 1e-14.
    assert float(result[0]) == pytest.approx(1 / 5)


def test_thresholds_beyond_those_counted_together(forced):
    """Classes with more relevant items than a run counts at once, and fewer than the plan's end."""
    generator = np.random.default_rng(0)
    z, y = generator.standard_normal((140, 4)), generator.integers(0, 3, 140)
    check_agreement(slowly(z, y), z, y)


def test_many_thresholds_are_sorted(forced):
    """More of them than are put in order one by one; cut off, too."""
    generator = np.random.default_rng(2)
    z, y = generator.standard_normal((240, 4)), generator.integers(0, 3, 240)
    ranks = slowly(z, y)
    check_agreement(ranks, z, y)
    check_agreement(ranks, z, y, metrics=("map@70", "precision@3", "mrr"))


@pytest.mark.parametrize("closeness", CLOSENESS)
def test_thresholds_of_large_classes_come_from_products(forced, monkeypatch, closeness):
    monkeypatch.setattr(screened, "LARGE", 8)
    generator = np.random.default_rng(3)
    y = np.concatenate([np.zeros(30, int), generator.integers(1, 12, 50)])
    z = generator.standard_normal((80, 4))
    groups = generator.integers(0, 4, 80)
    for metrics in (ALL, ("recall@1", "map@3")):
        ranks = slowly(z, y, closeness=closeness)
        check_agreement(ranks, z, y, closeness=closeness, metrics=metrics)
        ranks = slowly(z, y, closeness=closeness, groups=(groups, groups))
        check_agreement(ranks, z, y, closeness=closeness, exclude=groups, metrics=metrics)


def test_classes_too_large_for_a_screen_are_compared_in_float64(forced, monkeypatch):
    monkeypatch.setattr(plan, "FEW", 6)
    generator = np.random.default_rng(0)
    y = np.concatenate([np.zeros(40, int), generator.integers(1, 9, 40)])
    z = generator.standard_normal((80, 4))
    check_agreement(slowly(z, y), z, y)
    check_agreement(slowly(z, y), z, y, metrics=("recall@1", "mrr"))


def test_panels_of_queries_give_what_all_at_once_give(forced, monkeypatch):
    generator = np.random.default_rng(1)
    z, y = generator.standard_normal((70, 4)), generator.integers(0, 9, 70)
    monkeypatch.setattr(screened, "PANEL", 50)
    check_agreement(slowly(z, y), z, y)


def test_a_slice_of_queries_has_the_values_of_all(forced):
    generator = np.random.default_rng(1)
    z, y = generator.standard_normal((70, 4)).astype(np.float32), generator.integers(0, 9, 70)
    whole = evaluate(z, y, metrics=ALL)
    for name, part in per_query_values(z, y, metrics=ALL, queries=slice(11, 58)).items():
        np.testing.assert_array_equal(part, whole.per_query(name)[11:58])


class Process:
    """One of several processes, in turn: the last one sees what all of them made."""

    def __init__(self, rank, world, made):
        self.rank, self.world, self.made, self.calls = rank, world, made, 0

    def slice(self, n):
        cuts = [n * i // self.world for i in range(self.world + 1)]
        return slice(cuts[self.rank], cuts[self.rank + 1])

    def concatenate(self, values):
        parts = self.made.setdefault(self.calls, [])
        self.calls += 1
        parts.append(values)
        missing = [torch.zeros_like(values)] * (self.world - len(parts))
        return torch.cat([*parts, *missing])


def test_processes_share_the_tiles(forced, monkeypatch):
    generator = np.random.default_rng(1)
    z, y = generator.standard_normal((70, 4)).astype(np.float32), generator.integers(0, 9, 70)
    alone, made = evaluate(z, y, metrics=ALL), {}
    for rank in range(3):
        result = evaluate(z, y, metrics=ALL, gather=Process(rank, 3, made))
    for name in ALL:
        np.testing.assert_array_equal(result.per_query(name), alone.per_query(name))


def test_threads_give_what_one_gives(forced):
    generator = np.random.default_rng(1)
    z, y = generator.standard_normal((150, 8)).astype(np.float32), generator.integers(0, 40, 150)
    alone = evaluate(z, y, metrics=ALL)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        several = evaluate(z, y, metrics=ALL)
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(before)
    for name in ALL:
        np.testing.assert_array_equal(several.per_query(name), alone.per_query(name))


@pytest.mark.parametrize("form_", FORMS)
def test_rows_rounded_anew_give_what_kept_ones_give(monkeypatch, dtype, form_):
    from nearkin.evaluation import evaluator

    Forced(monkeypatch, dtype, form_)
    generator = np.random.default_rng(1)
    z, y = generator.standard_normal((150, 8)).astype(np.float32), generator.integers(0, 40, 150)
    kept = evaluate(z, y, metrics=ALL)
    made = plan.plan_of
    monkeypatch.setattr(
        evaluator,
        "plan_of",
        lambda *a: (lambda p, few: (plan.replace(p, held=0), few))(*made(*a)),
    )
    for name, value in evaluate(z, y, metrics=ALL).items():
        assert value == kept[name]


@pytest.mark.parametrize("closeness", CLOSENESS)
def test_memory_maps_torch_and_narrow_rows(forced, tmp_path, closeness):
    generator = np.random.default_rng(1)
    z, y = generator.standard_normal((70, 6)), generator.integers(0, 9, 70)
    np.save(tmp_path / "z.npy", z.astype(np.float32))
    mapped = np.load(tmp_path / "z.npy", mmap_mode="r")
    assert not mapped.flags.writeable
    check_agreement(slowly(mapped, y, closeness=closeness), mapped, y, closeness=closeness)
    for given_ in (z.astype(np.float16), z[::-1], np.asfortranarray(z), z[:, ::2]):
        check_agreement(slowly(given_, y, closeness=closeness), given_, y, closeness=closeness)
    half = torch.from_numpy(z).bfloat16()
    check_agreement(
        slowly(half.double().numpy(), y, closeness=closeness), half, y, closeness=closeness
    )


def cases():
    return st.tuples(
        st.integers(0, 2**32 - 1),
        st.sampled_from(KINDS),
        st.sampled_from(CLOSENESS),
        st.integers(1, 40),
        st.integers(2, 60),
        st.integers(1, 12),
        st.booleans(),
        st.booleans(),
        st.sampled_from([np.float32, np.float64]),
    )


def check_one_case(case):
    seed, kind, closeness, dim, n, classes, gallery, grouped, width = case
    generator = np.random.default_rng(seed)
    z = rows(kind, generator, n, dim).astype(width)
    y = generator.integers(0, classes, n)
    arguments = {}
    if gallery:
        g = int(generator.integers(1, 60))
        x, yx = rows(kind, generator, g, dim).astype(width), generator.integers(0, classes, g)
        arguments = {"gallery": x, "gallery_labels": yx}
    groups = None
    if grouped:
        ids = generator.integers(0, 5, n)
        groups = (ids, generator.integers(0, 5, len(arguments["gallery"])) if gallery else ids)
        arguments["exclude"] = groups
    x, yx = arguments.get("gallery"), arguments.get("gallery_labels")
    ranks = slowly(z, y, x, yx, closeness, groups)
    check_agreement(ranks, z, y, closeness=closeness, **arguments)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(cases())
def test_random_cases_equal_the_float64_matrix(forced, case):
    check_one_case(case)


def test_a_pair_at_the_edge_of_a_tie(forced):
    """Nearer to the edge than float64 rounds: either side is right, and no other is."""
    check_one_case((212, "norms", "euclidean", 34, 59, 2, True, False, np.float32))


@pytest.mark.slow
@settings(
    max_examples=500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(cases())
def test_two_thousand_random_cases_equal_the_float64_matrix(forced, case):
    """500 for each precision and each form of the count: 2,000."""
    check_one_case(case)


def test_a_processor_says_whether_it_has_bfloat16():
    assert has_bfloat16() in (True, False)


@pytest.mark.slow
def test_120_000_rows_take_little_memory_and_rank_as_float64_does():
    generator = np.random.default_rng(0)
    z = generator.standard_normal((120_000, 16)).astype(np.float32)
    y = generator.integers(0, 30_000, 120_000)
    made = []
    result = evaluate(z, y, metrics=("recall@100", "map@r", "mrr"), planned=made.append)
    assert made[0].bytes < 150e6
    some = slice(70_000, 70_020)
    s = z[some].astype(float) @ z.T.astype(float)
    length = np.linalg.norm(z.astype(float), axis=1)
    s /= length[some][:, None] * length
    ranks = []
    for i, own in enumerate(range(70_000, 70_020)):
        same = (y == y[own]) & (np.arange(len(y)) != own)
        order = np.sort(s[i, same])[::-1]
        other = s[i, y != y[own]]
        found = [j + int((other >= t - 1e-12).sum()) for j, t in enumerate(order, 1)]
        ranks.append((found, found))
    for name in result:
        check_values(result.per_query(name)[some], ranks, name)


@pytest.mark.parametrize("closeness", CLOSENESS)
def test_the_reference_leaves_few_queries_open(closeness):
    """Else it would agree with anything."""
    generator, open_, every = np.random.default_rng(0), 0, 0
    for kind in KINDS:
        for dim in (1, 8, 40):
            z, y = rows(kind, generator, 60, dim), generator.integers(0, 9, 60)
            for least, greatest in slowly(z, y, closeness=closeness):
                open_, every = open_ + (least != greatest), every + 1
    assert open_ <= 0.005 * every


@pytest.mark.skipif(not HAS_NUMBA, reason="numba")
def test_a_block_of_queries_has_one_lock(monkeypatch):
    from nearkin.evaluation import counted

    Forced(monkeypatch, torch.float32, "compiled")
    made, init = [], counted.Compiled.__init__

    def noted(self, *arguments):
        init(self, *arguments)
        made.append(sorted(self.locks))

    monkeypatch.setattr(counted.Compiled, "__init__", noted)
    generator = np.random.default_rng(1)
    evaluate(generator.standard_normal((70, 4)), generator.integers(0, 9, 70))
    assert made == [[0, 16, 32, 48, 64]]
