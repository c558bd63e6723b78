"""evaluate against a slow loop and other libraries; its symmetries; what wrong input gets."""

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nearkin.evaluation import evaluate, per_query_values

ALL = ("recall@1", "recall@3", "precision@3", "r_precision", "map@r", "map@3", "map@100")
ALL += ("mrr", "ndcg@3", "ndcg@100", "cmc@2")


def similarity_of(closeness, q, x):
    if closeness == "euclidean":
        return -sum((a - b) ** 2 for a, b in zip(q, x, strict=True)) / 2
    inner = sum(a * b for a, b in zip(q, x, strict=True))
    if closeness == "inner":
        return inner
    norms = math.hypot(*q) * math.hypot(*x)
    return inner / norms if norms else 0.0


def slowly(z, relevant, gallery, skipped, closeness, name):
    """One metric of every query from its candidates; ties within 1e-9 go to different items."""
    base, _, number = name.partition("@")
    found = []
    for i, q in enumerate(z):
        items = [
            (similarity_of(closeness, q, x), relevant[i][j])
            for j, x in enumerate(gallery)
            if not skipped[i][j]
        ]
        ranks = []
        for position, s in enumerate(sorted((s for s, same in items if same), reverse=True), 1):
            ranks.append(position + sum(not same and other >= s - 1e-9 for other, same in items))
        found.append(by_definition(base, number, ranks))
    return np.array(found)


def by_definition(base, number, ranks):
    if not ranks:
        return math.nan
    total = len(ranks)
    last = total if number in ("", "r") else int(number)
    hits = [rank <= last for rank in ranks]
    if base in ("recall", "cmc"):
        return float(any(hits))
    if base in ("precision", "r_precision"):
        return sum(hits) / last
    if base == "map":
        gain = sum(j / rank for j, rank in enumerate(ranks, 1) if rank <= last)
        return gain / min(total, last)
    if base == "mrr":
        return 1 / ranks[0]
    gain = sum(1 / math.log2(1 + rank) for rank in ranks if rank <= last)
    return gain / sum(1 / math.log2(1 + place) for place in range(1, min(total, last) + 1))


def random_task(seed, *, grid, multi_hot, gallery, exclude):
    """Rows on a grid have many exact ties; some classes have one row."""
    generator = np.random.default_rng(seed)
    n, g = 24, 31 if gallery else 24
    draw = (
        (lambda size: generator.integers(-1, 2, size).astype(float))
        if grid
        else generator.standard_normal
    )
    z = draw((n, 3))
    x = draw((g, 3)) if gallery else z
    if multi_hot:
        y = generator.random((n, 4)) < 0.3
        yx = generator.random((g, 4)) < 0.3 if gallery else y
        relevant = (y[:, None] & yx[None]).any(2)
    else:
        y = generator.integers(0, 8, n)
        yx = generator.integers(0, 8, g) if gallery else y
        relevant = y[:, None] == yx[None]
    skipped = np.zeros((n, g), bool) if gallery else np.eye(n, dtype=bool)
    arguments = {"gallery": x, "gallery_labels": yx} if gallery else {}
    if exclude:
        ids = generator.integers(0, 5, n)
        other = generator.integers(0, 5, g) if gallery else ids
        skipped |= ids[:, None] == other[None]
        arguments["exclude"] = (ids, other) if gallery else ids
    return z, y, x, relevant, skipped, arguments


@pytest.mark.parametrize("closeness", ["cosine", "euclidean", "inner"])
@pytest.mark.parametrize("grid", [False, True])
@pytest.mark.parametrize("multi_hot", [False, True])
@pytest.mark.parametrize("gallery", [False, True])
@pytest.mark.parametrize("exclude", [False, True])
def test_equals_the_slow_loop(closeness, grid, multi_hot, gallery, exclude):
    z, y, x, relevant, skipped, arguments = random_task(
        7, grid=grid, multi_hot=multi_hot, gallery=gallery, exclude=exclude
    )
    result = evaluate(z, y, metrics=ALL, closeness=closeness, **arguments)
    for name in ALL:
        expected = slowly(z, relevant, x, skipped, closeness, name)
        np.testing.assert_allclose(result.per_query(name), expected, rtol=1e-12, err_msg=name)
        assert result[name] == pytest.approx(np.nanmean(expected))
    assert result.without_relevant == np.isnan(expected).sum()
    assert result.queries == len(z) - result.without_relevant


def test_equals_average_precision_of_scikit_learn():
    from sklearn.metrics import average_precision_score

    generator = np.random.default_rng(0)
    z, y = generator.standard_normal((60, 5)), generator.integers(0, 5, 60)
    x, yx = generator.standard_normal((80, 5)), generator.integers(0, 5, 80)
    found = evaluate(z, y, x, yx, metrics="map@80").per_query("map@80")
    units = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (z, x)]
    scores = units[0] @ units[1].T
    expected = [average_precision_score(yx == y[i], scores[i]) for i in range(60)]
    np.testing.assert_allclose(found, expected)


def test_equals_torchmetrics():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torchmetrics.functional import retrieval as peer
    generator = torch.Generator().manual_seed(0)
    z, x = torch.randn(40, 6, generator=generator), torch.randn(70, 6, generator=generator)
    y = torch.randint(0, 9, (40,), generator=generator)
    yx = torch.randint(0, 9, (70,), generator=generator)
    names = ("recall@5", "mrr", "ndcg@5", "ndcg@70", "r_precision", "precision@5")
    result = evaluate(z, y, x, yx, metrics=names, closeness="inner")
    for i in range(40):
        scores, target = z[i] @ x.T, y[i] == yx
        scores = scores - scores.min() + 1  # the peer takes scores below 0 for "not found"
        expected = {
            "recall@5": peer.retrieval_hit_rate(scores, target, top_k=5),
            "mrr": peer.retrieval_reciprocal_rank(scores, target),
            "ndcg@5": peer.retrieval_normalized_dcg(scores, target, top_k=5),
            "ndcg@70": peer.retrieval_normalized_dcg(scores, target),
            "r_precision": peer.retrieval_r_precision(scores, target),
            "precision@5": peer.retrieval_precision(scores, target, top_k=5),
        }
        for name, value in expected.items():
            assert result.per_query(name)[i] == pytest.approx(float(value), abs=1e-6), name


def test_equals_pytorch_metric_learning():
    from pytorch_metric_learning.distances import LpDistance
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
    from pytorch_metric_learning.utils.inference import CustomKNN

    generator = torch.Generator().manual_seed(1)
    y = torch.randint(0, 12, (150,), generator=generator)
    z = torch.randn(12, 8, generator=generator)[y] + torch.randn(150, 8, generator=generator)
    names = ("precision_at_1", "r_precision", "mean_average_precision_at_r")
    peer = AccuracyCalculator(
        include=names,
        k="max_bin_count",
        device=torch.device("cpu"),
        knn_func=CustomKNN(LpDistance(normalize_embeddings=False)),
    )
    expected = peer.get_accuracy(z, y)
    result = evaluate(z, y, metrics=("recall@1", "r_precision", "map@r"), closeness="euclidean")
    assert [result[name] for name in result] == pytest.approx(
        [expected[name] for name in names], rel=1e-6
    )


def test_four_unit_vectors_have_recall_one_half():
    angles = np.radians([0, 60, 90, 180])
    z = np.stack([np.cos(angles), np.sin(angles)], 1)
    assert evaluate(z, [0, 0, 1, 1])["recall@1"] == 0.5


def test_a_perfect_ranking_gives_1():
    z = torch.eye(4).repeat_interleave(3, 0)
    result = evaluate(z, torch.arange(4).repeat_interleave(3), metrics=(*ALL, "nmi", "ami"))
    perfect = dict.fromkeys((*ALL, "nmi", "ami"), 1.0) | {"precision@3": 2 / 3}
    for name, value in perfect.items():
        assert result[name] == pytest.approx(value), name


@pytest.mark.parametrize("closeness", ["cosine", "euclidean", "inner"])
@pytest.mark.parametrize("row", [[0.0, 0.0, 0.0], [0.3, -1.7, 0.1], [1e-170, 1e160, 3.0]])
def test_a_collapsed_embedding_is_worst(closeness, row):
    # Every different item stands before the first of 3 same ones: 8 of them.
    result = evaluate(
        np.array([row] * 12),
        np.arange(12) % 3,
        closeness=closeness,
        metrics=("recall@8", "recall@9", "map@r", "mrr"),
    )
    assert [result[name] for name in result] == [0.0, 1.0, 0.0, pytest.approx(1 / 9)]


def test_ties_at_block_edges_do_not_depend_on_the_order(monkeypatch):
    from nearkin.evaluation import counting

    generator = np.random.default_rng(5)
    z, y = generator.integers(-1, 2, (90, 2)).astype(np.float32), generator.integers(0, 9, 90)
    whole = evaluate(z, y, metrics=ALL)
    for queries, tile, thresholds, kept in ((7, 5, 1 << 22, 1 << 23), (90, 64, 40, 0)):
        monkeypatch.setattr(counting, "TILE", tile)
        monkeypatch.setattr(counting, "KEPT", kept)
        monkeypatch.setattr(
            counting.query_blocks, "__defaults__", (queries, thresholds), raising=True
        )
        small = evaluate(z, y, metrics=ALL)
        for name in ALL:
            np.testing.assert_array_equal(small.per_query(name), whole.per_query(name))


rows = st.integers(0, 2**32 - 1)


@settings(max_examples=15, deadline=None)
@given(rows)
def test_invariant_to_the_order_of_rows(seed):
    z, y, *_ = random_task(seed, grid=True, multi_hot=False, gallery=False, exclude=False)
    order = np.random.default_rng(seed).permutation(len(z))
    one, other = (evaluate(a, b, metrics=ALL) for a, b in ((z, y), (z[order], y[order])))
    for name in ALL:
        np.testing.assert_array_equal(one.per_query(name)[order], other.per_query(name))


@settings(max_examples=15, deadline=None)
@given(rows, st.sampled_from(["cosine", "euclidean", "inner"]))
def test_invariant_to_rotation(seed, closeness):
    z, y, *_ = random_task(seed, grid=True, multi_hot=False, gallery=False, exclude=False)
    turn = np.linalg.qr(np.random.default_rng(seed).standard_normal((3, 3)))[0]
    one, other = (evaluate(x, y, metrics=ALL, closeness=closeness) for x in (z, z @ turn))
    for name in ALL:
        np.testing.assert_array_equal(one.per_query(name), other.per_query(name))


@settings(max_examples=15, deadline=None)
@given(rows)
def test_invariant_to_renaming_labels(seed):
    z, y, *_ = random_task(seed, grid=False, multi_hot=False, gallery=False, exclude=False)
    names = np.array(list("hgbfadec"))
    one, other = (evaluate(z, labels, metrics=(*ALL, "nmi")) for labels in (y, names[y]))
    assert one.to_dict() == other.to_dict()


def test_euclidean_is_invariant_to_a_common_shift():
    generator = np.random.default_rng(0)
    z, y = generator.integers(0, 3, (40, 3)).astype(float), generator.integers(0, 6, 40)
    one, other = (evaluate(x, y, closeness="euclidean", metrics=ALL) for x in (z, z + 1e7))
    for name in ALL:
        np.testing.assert_array_equal(one.per_query(name), other.per_query(name))


@pytest.mark.parametrize("scale", [1e-200, 1e200])
@pytest.mark.parametrize("closeness", ["cosine", "euclidean", "inner"])
def test_invariant_to_extreme_scales(closeness, scale):
    generator = np.random.default_rng(0)
    z, y = generator.standard_normal((40, 3)), generator.integers(0, 6, 40)
    one, other = (evaluate(x, y, closeness=closeness, metrics=ALL) for x in (z, z * scale))
    for name in ALL:
        np.testing.assert_array_equal(one.per_query(name), other.per_query(name))


def test_neighboring_large_labels_are_different():
    z = np.array([[1.0, 0.0], [1.0, 0.01], [0.0, 1.0], [0.01, 1.0]])
    labels = [0, 1, 1, 0]
    expected = evaluate(z, labels)["recall@1"]
    assert expected == 0.0
    for offset in (2**40, 2**53, 2**62, 2**64, -(2**70)):
        assert evaluate(z, [label + offset for label in labels])["recall@1"] == expected
    assert evaluate(z, np.array(labels) + 2**53)["recall@1"] == expected
    assert evaluate(z, torch.tensor(labels) + 2**53)["recall@1"] == expected
    unsigned = np.array([2**63 + label for label in labels], np.uint64)
    assert evaluate(z, unsigned)["recall@1"] == expected


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_float_dtype_is_ranked_in_float64(dtype):
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(50, 6, generator=generator).to(dtype).requires_grad_()
    y = torch.randint(0, 5, (50,), generator=generator)
    same = evaluate(z.detach().double().numpy(), y.numpy(), metrics=ALL)
    assert evaluate(z, y, metrics=ALL).to_dict() == same.to_dict()


def test_arrays_that_torch_cannot_hold_are_read():
    z = np.random.default_rng(0).standard_normal((20, 4))
    y = np.arange(20) % 4
    expected = evaluate(z, y).to_dict()
    frozen = z.copy()
    frozen.setflags(write=False)
    for other in (
        z.astype(">f8"),
        z.astype(np.longdouble),
        frozen,
        z[::-1].copy()[::-1],
        z.tolist(),
    ):
        assert evaluate(other, y).to_dict() == expected


def test_slices_of_queries_concatenate_to_the_whole():
    z, y, _, _, _, arguments = random_task(
        3, grid=False, multi_hot=False, gallery=True, exclude=True
    )
    whole = per_query_values(z, y, metrics=ALL, **arguments)
    cuts = [slice(0, 0), slice(0, 9), slice(9, 10), slice(10, 24)]
    parts = [per_query_values(z, y, metrics=ALL, queries=cut, **arguments) for cut in cuts]
    for name in ALL:
        joined = torch.cat([part[name] for part in parts])
        torch.testing.assert_close(joined, whole[name], rtol=0, atol=0, equal_nan=True)


def test_a_gather_that_shares_the_queries_changes_nothing():
    z, y, *_ = random_task(3, grid=True, multi_hot=False, gallery=False, exclude=False)
    first, second = slice(0, 11), slice(11, 24)
    rest = list(per_query_values(z, y, metrics=ALL, queries=second).values())

    class FirstOfTwo:
        def slice(self, n):
            assert n == 24
            return first

        def concatenate(self, values):
            assert len(values) == 11
            return torch.cat([values, rest.pop(0)])

    shared = evaluate(z, y, metrics=(*ALL, "nmi"), gather=FirstOfTwo())
    assert shared.to_dict() == evaluate(z, y, metrics=(*ALL, "nmi")).to_dict()


GOOD = np.random.default_rng(0).standard_normal((6, 2))
LABELS = [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"metrics": "recal@1"}, ValueError, r"'recal@1' is no metric; did you mean 'recall@1'\?"),
        ({"metrics": ["recall@0"]}, ValueError, "number K of 1 or more"),
        ({"metrics": []}, ValueError, "no metric is named"),
        ({"closeness": "cosin"}, ValueError, "'cosin' is no closeness; did you mean 'cosine'"),
        ({"z": GOOD[0]}, ValueError, r"matrix \(N, D\)"),
        ({"z": GOOD[:0], "labels": []}, ValueError, "empty"),
        ({"z": GOOD.astype(int)}, TypeError, "floating-point"),
        ({"z": np.where(GOOD[3, 1] == GOOD, np.nan, GOOD)}, ValueError, "first in row 3"),
        ({"z": np.where(GOOD[4, 0] == GOOD, np.inf, GOOD)}, ValueError, "first in row 4"),
        ({"labels": LABELS[:5]}, ValueError, "labels has 5 entries but z has 6 rows"),
        ({"labels": [0.0, 0.0, 1.0, 1.0, 2.0, 2.0]}, TypeError, "label 0 is 0.0"),
        ({"labels": [*LABELS[:5], "2"]}, TypeError, "integers .* and texts"),
        ({"labels": list("abcdef")}, ValueError, "none of the 6 queries"),
        ({"labels": np.arange(6)[:, None]}, ValueError, r"their shape is \(6, 1\)"),
        ({"labels": np.arange(12).reshape(6, 2)}, TypeError, "multi-hot"),
        ({"labels": np.eye(6, 3)}, TypeError, "multi-hot"),
        ({"gallery": GOOD}, ValueError, "gallery_labels"),
        ({"gallery_labels": LABELS}, ValueError, "without a gallery"),
        ({"gallery": GOOD[:, :1], "gallery_labels": LABELS}, ValueError, "2 dimensions .* has 1"),
        ({"gallery": GOOD, "gallery_labels": LABELS[:2]}, ValueError, "gallery_labels has 2"),
        ({"gallery": GOOD, "gallery_labels": list("aabbcc")}, TypeError, "of one kind"),
        ({"exclude": [1, 2]}, ValueError, "exclude has 2 entries"),
        ({"exclude": np.ones((6, 2), int)}, ValueError, "exclude must be group ids"),
        ({"exclude": LABELS}, ValueError, "what exclude skips"),
        (
            {"gallery": GOOD, "gallery_labels": LABELS, "exclude": LABELS},
            ValueError,
            r"pair \(query ids, gallery ids\)",
        ),
        (
            {"labels": np.eye(3, dtype=bool)[LABELS], "metrics": "nmi"},
            ValueError,
            "one class a row",
        ),
    ],
)
def test_wrong_input_is_told(arguments, error, said):
    with pytest.raises(error, match=said):
        evaluate(**{"z": GOOD, "labels": LABELS, **arguments})


def test_a_row_without_labels_has_no_relevant_item_and_is_no_neighbor_of_itself():
    hot = np.array([[1, 0], [1, 0], [0, 0]])
    result = evaluate(np.array([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]), hot, metrics="recall@1")
    np.testing.assert_array_equal(result.per_query("recall@1"), [1.0, 1.0, np.nan])
