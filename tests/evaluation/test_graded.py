"""Graded ndcg@K against its definition, and what wrong levels get."""

import math

import numpy as np
import pytest
import torch

from nearkin.evaluation import evaluate

GENERATOR = np.random.default_rng(0)
Y = GENERATOR.integers(0, 9, 60)
SUPER, ROOT = Y // 3, Y // 6
Z = GENERATOR.standard_normal((60, 3))
X = GENERATOR.standard_normal((45, 3))
YX = GENERATOR.integers(0, 9, 45)
KS = (1, 3, 10, 500)
NAMES = tuple(f"ndcg@{k}" for k in KS)


def by_definition(z, x, gain, skipped, relevant, k):
    """Every candidate in order, those of lower gain first in a tie; NaN without an own one."""
    units = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (z, x)]
    similarity = units[0] @ units[1].T
    found = []
    for i in range(len(z)):
        kept = [j for j in range(len(x)) if not skipped[i, j]]
        order = sorted(kept, key=lambda j: (-round(similarity[i, j], 9), gain[i, j]))
        discount = [1 / math.log2(2 + place) for place in range(min(k, len(kept)))]
        got = sum(d * gain[i, j] for d, j in zip(discount, order, strict=False))
        best = sorted((gain[i, j] for j in kept), reverse=True)
        ideal = sum(d * g for d, g in zip(discount, best, strict=False))
        found.append(got / ideal if (relevant[i] & ~skipped[i]).any() else math.nan)
    return np.array(found)


def gains_between(levels, others, gains):
    """(Q, G): the gain of the finest level that is shared."""
    gain = np.zeros((len(levels[0]), len(others[0])))
    for a, b, value in reversed(list(zip(levels, others, gains, strict=True))):
        gain[a[:, None] == b[None]] = value
    return gain


@pytest.mark.parametrize("grid", [False, True])
@pytest.mark.parametrize("exclude", [False, True])
def test_equals_its_definition(grid, exclude):
    z = np.round(Z) + 0.25 if grid else Z
    skipped = np.eye(60, dtype=bool)
    groups = np.arange(60) % 7
    if exclude:
        skipped |= groups[:, None] == groups[None]
    result = evaluate(
        z,
        Y,
        metrics=("recall@1", *NAMES),
        super_labels=np.stack([SUPER, ROOT], 1),
        gains=(5, 2, 0.5),
        exclude=groups if exclude else None,
    )
    gain = gains_between([Y, SUPER, ROOT], [Y, SUPER, ROOT], (5, 2, 0.5))
    for k, name in zip(KS, NAMES, strict=True):
        expected = by_definition(z, z, gain, skipped, Y[:, None] == Y[None], k)
        np.testing.assert_allclose(result.per_query(name), expected, rtol=1e-12, err_msg=name)


def test_equals_its_definition_in_a_gallery():
    result = evaluate(Z, Y, X, YX, metrics=NAMES, super_labels=SUPER, gallery_super_labels=YX // 3)
    gain = gains_between([Y, SUPER], [YX, YX // 3], (2, 1))
    skipped = np.zeros((60, 45), bool)
    for k, name in zip(KS, NAMES, strict=True):
        expected = by_definition(Z, X, gain, skipped, Y[:, None] == YX[None], k)
        np.testing.assert_allclose(result.per_query(name), expected, rtol=1e-12)


def test_equals_scikit_learn():
    from sklearn.metrics import ndcg_score

    gain = gains_between([Y, SUPER], [YX, YX // 3], (3, 1))
    units = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (Z, X)]
    result = evaluate(
        Z,
        Y,
        X,
        YX,
        metrics="ndcg@10",
        super_labels=SUPER,
        gallery_super_labels=YX // 3,
        gains=(3, 1),
    )
    assert result["ndcg@10"] == pytest.approx(ndcg_score(gain, units[0] @ units[1].T, k=10))


def test_labels_of_every_form_give_the_same():
    names = np.array(["a", "b", "c"])[SUPER]
    forms = (SUPER, SUPER.tolist(), names, torch.tensor(SUPER), SUPER[:, None], names.tolist())
    found = {evaluate(Z, Y, metrics="ndcg@5", super_labels=form)["ndcg@5"] for form in forms}
    assert len(found) == 1
    pairs = list(zip(names.tolist(), ROOT.tolist(), strict=True))
    both = evaluate(Z, Y, metrics="ndcg@5", super_labels=pairs)
    assert (
        both["ndcg@5"]
        == evaluate(Z, Y, metrics="ndcg@5", super_labels=np.stack([SUPER, ROOT], 1))["ndcg@5"]
    )


def test_other_metrics_stay_and_gains_of_a_higher_level_vanish():
    names = ("recall@1", "map@r", "mrr", "ndcg@5")
    plain = evaluate(Z, Y, metrics=names)
    graded = evaluate(Z, Y, metrics=names, super_labels=SUPER)
    assert [plain[name] for name in names[:3]] == [graded[name] for name in names[:3]]
    assert plain["ndcg@5"] != graded["ndcg@5"]
    little = evaluate(Z, Y, metrics=names, super_labels=SUPER, gains=(1, 1e-12))
    assert little["ndcg@5"] == pytest.approx(plain["ndcg@5"], rel=1e-6)


def test_screened_levels_equal_those_in_float64(monkeypatch):
    from nearkin.evaluation import plan

    levels = {"super_labels": SUPER, "gains": (2, 1), "metrics": ("map@r", *NAMES)}
    whole = evaluate(Z, Y, **levels)
    monkeypatch.setattr(plan, "SMALL", 0)
    screened = evaluate(Z, Y, **levels)
    for name in NAMES:
        np.testing.assert_allclose(whole.per_query(name), screened.per_query(name), rtol=1e-13)


def test_a_collapsed_embedding_finds_nothing():
    result = evaluate(np.ones((60, 3)), Y, metrics="ndcg@10", super_labels=SUPER)
    assert result["ndcg@10"] == 0


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"metrics": "recall@1"}, ValueError, "ndcg@K alone, which is not among the metrics"),
        ({"super_labels": SUPER[:-1]}, ValueError, "super_labels has 59 entries but z has 60"),
        ({"super_labels": np.arange(60)}, ValueError, "class .* lies in .* needs one super-label"),
        ({"super_labels": SUPER * 0.5}, TypeError, "integers or texts"),
        ({"super_labels": np.ones((60, 2, 2))}, ValueError, "the finer level first"),
        ({"super_labels": [(1, 2)] * 59 + [(1,)]}, ValueError, "as many levels in every row"),
        ({"gains": (1, 2)}, ValueError, r"gains must be 2 numbers above 0 that descend.*2, 1"),
        ({"gains": (2, 0)}, ValueError, "gains must be 2 numbers above 0"),
        ({"gains": (2, float("nan"))}, ValueError, "gains must be 2"),
        ({"gains": (3, 2, 1)}, ValueError, "gains must be 2"),
        ({"gains": "21"}, ValueError, "gains must be 2"),
        ({"super_labels": None, "gains": (2, 1)}, ValueError, "gains are given without super_lab"),
        ({"gallery_super_labels": SUPER}, ValueError, "without a gallery"),
        ({"labels": np.eye(9, dtype=bool)[Y]}, ValueError, "one class a row.* multi-hot"),
        ({"gallery": X, "gallery_labels": YX}, ValueError, "needs gallery_super_labels too"),
        (
            {
                "gallery": X,
                "gallery_labels": YX,
                "gallery_super_labels": np.stack([YX // 3, YX // 6], 1),
            },
            ValueError,
            "super_labels have 1 levels but gallery_super_labels 2",
        ),
    ],
)
def test_wrong_levels_are_told(arguments, error, said):
    with pytest.raises(error, match=said):
        evaluate(**{"z": Z, "labels": Y, "metrics": "ndcg@5", "super_labels": SUPER, **arguments})
