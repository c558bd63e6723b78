"""The geometry of an embedding: exact values, invariances, and slow formulas beside the fast
ones."""

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon

from nearkin.evaluation import geometry
from nearkin.evaluation.geometry import (
    alignment,
    effective_rank,
    jensen_shannon,
    least_simplex_distance,
    mean_cosine,
    pair_divergence,
    simplex_distance,
    sphere,
    uniformity,
)

FEW = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 2**32 - 1)


def simplex(classes, dim, each=1, radius=1.0, seed=0):
    """Rows on a regular simplex, rotated at random, and their labels."""
    generator = np.random.default_rng(seed)
    corners = math.sqrt(classes / (classes - 1)) * (np.eye(classes) - 1 / classes)
    rotation = np.linalg.qr(generator.normal(size=(max(dim, classes),) * 2))[0]
    rows = np.zeros((classes, max(dim, classes)))
    rows[:, :classes] = corners
    flat = np.linalg.svd(corners)[2]  # the last direction holds nothing
    if dim < classes:
        rows = corners @ flat.T[:, :dim]
        rotation = np.linalg.qr(generator.normal(size=(dim, dim)))[0]
    return np.repeat(radius * rows @ rotation, each, 0), np.repeat(np.arange(classes), each)


def some(seed, rows=40, dim=6, classes=5):
    generator = np.random.default_rng(seed)
    label = generator.permutation(np.arange(rows) % classes)
    return generator.normal(size=(rows, dim)) + generator.normal(size=(classes, dim))[label], label


def unit(z):
    return z / np.linalg.norm(z, axis=1, keepdims=True)


def slow(z, label, t=2.0):
    """(alignment, uniformity, mean cosine) pair by pair."""
    u = unit(z)
    pairs = [(i, j) for i in range(len(u)) for j in range(len(u)) if i != j]
    squared = {pair: ((u[pair[0]] - u[pair[1]]) ** 2).sum() for pair in pairs}
    same = [squared[i, j] for i, j in pairs if label[i] == label[j]]
    return (
        np.mean(same),
        np.log(np.mean([np.exp(-t * d) for d in squared.values()])),
        np.mean([u[i] @ u[j] for i, j in pairs]),
    )


@FEW
@given(seeds)
def test_they_are_their_formulas_pair_by_pair(seed):
    z, label = some(seed, rows=17)
    expected = slow(z, label)
    said = alignment(z, label), uniformity(z), mean_cosine(z)
    assert said == pytest.approx(expected, abs=1e-5)


@FEW
@given(seeds)
def test_rotating_renaming_and_shuffling_change_nothing(seed):
    z, label = some(seed)
    generator = np.random.default_rng(seed)
    rotation = np.linalg.qr(generator.normal(size=(6, 6)))[0]
    order, names = generator.permutation(len(z)), generator.permutation(5)
    other, renamed = (z @ rotation)[order], [f"class {names[k]}" for k in label[order]]
    for measure in (alignment, simplex_distance):
        assert measure(other, renamed) == pytest.approx(measure(z, label), abs=1e-5)
    for measure in (uniformity, effective_rank, mean_cosine):
        assert measure(other) == pytest.approx(measure(z), abs=1e-5)
    # A cosine may cross the edge of a bin in its last digit.
    assert pair_divergence(other, renamed) == pytest.approx(pair_divergence(z, label), abs=0.03)


@FEW
@given(seeds, st.integers(2, 60))
def test_blocks_do_not_matter(seed, entries):
    z, label = some(seed, rows=23)
    whole = sphere(z, label)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(geometry, "_ENTRIES", entries)
        parts = sphere(z, label)
    np.testing.assert_array_equal(whole.same, parts.same)
    np.testing.assert_array_equal(whole.different, parts.different)
    assert parts.same_cosine == pytest.approx(whole.same_cosine, rel=1e-5, abs=1e-5)
    assert parts.potential == pytest.approx(whole.potential, rel=1e-5)


def test_every_pair_is_counted_once():
    z, label = some(0, rows=37)
    counted = sphere(z, label)
    same = sum(n * (n - 1) // 2 for n in np.bincount(label))
    assert counted.same.sum() == same
    assert counted.different.sum() == 37 * 36 // 2 - same


@pytest.mark.parametrize(("classes", "dim"), [(2, 1), (2, 5), (3, 2), (4, 3), (4, 8), (10, 64)])
def test_classes_collapsed_on_a_simplex(classes, dim):
    z, label = simplex(classes, dim, each=3, radius=7.0)
    assert simplex_distance(z, label) == pytest.approx(0, abs=1e-6)
    assert least_simplex_distance(classes, dim) == 0
    assert alignment(z, label) == pytest.approx(0, abs=1e-6)
    assert pair_divergence(z, label) == 1
    assert effective_rank(z) == pytest.approx(classes - 1, rel=1e-4)


def test_part_of_a_larger_simplex_is_on_it_and_on_no_smaller_one():
    z, label = simplex(12, 16, each=2)
    few = label < 5
    assert simplex_distance(z[few], label[few], classes=12) == pytest.approx(0, abs=1e-6)
    assert simplex_distance(z[few], label[few]) > 0.1
    assert least_simplex_distance(5, 16, classes=12) == 0


def test_orthogonal_means_are_at_the_distance_that_their_gram_matrices_have():
    k = 4
    target = (np.eye(k) - 1 / k) / math.sqrt(k - 1)
    expected = np.linalg.norm(np.eye(k) / math.sqrt(k) - target)
    assert simplex_distance(np.eye(k), np.arange(k)) == pytest.approx(expected, abs=1e-6)


@FEW
@given(seeds, st.integers(2, 7), st.integers(2, 9), st.integers(0, 5))
def test_the_distance_is_that_of_the_gram_matrices_and_never_below_the_least(seed, k, dim, more):
    z, label = some(seed, rows=4 * k, dim=dim, classes=k)
    u = unit(z)
    means = np.stack([u[label == c].mean(0) for c in range(k)])
    gram, corners = means @ means.T, k + more
    target = np.eye(k) * (1 + 1 / (corners - 1)) - 1 / (corners - 1)
    expected = np.linalg.norm(gram / np.linalg.norm(gram) - target / np.linalg.norm(target))
    said = simplex_distance(z, label, classes=corners)
    assert said == pytest.approx(expected, abs=1e-5)
    least = least_simplex_distance(k, dim) if not more else 0
    assert least - 1e-6 <= said <= math.sqrt(2) + 1e-6


def test_the_least_distance_is_reached_by_the_largest_directions_of_the_simplex():
    corners = np.eye(6) - 1 / 6
    values, vectors = np.linalg.eigh(corners)
    best = (vectors * values.clip(0) ** 0.5)[:, -3:]  # rows of unequal length
    gram = best @ best.T
    expected = np.linalg.norm(gram / np.linalg.norm(gram) - corners / np.linalg.norm(corners))
    assert least_simplex_distance(6, 3) == pytest.approx(expected)


def test_some_classes_of_an_even_frame_are_at_the_least_distance_on_average():
    # A harmonic frame: 11 unit rows in 4 dimensions, their sum 0, as even as it goes.
    turn = 2 * np.pi * np.arange(11) / 11
    frame = np.stack([np.cos(turn), np.sin(turn), np.cos(3 * turn), np.sin(3 * turn)], 1) / 2**0.5
    whole = simplex_distance(frame, np.arange(11))
    assert whole == pytest.approx(least_simplex_distance(11, 4), abs=1e-6)
    some = [
        simplex_distance(frame[list(rows)], np.arange(5), classes=11) ** 2
        for rows in combinations(range(11), 5)
    ]
    assert np.mean(some) == pytest.approx(least_simplex_distance(5, 4, 11) ** 2, rel=0.05)


def test_a_collapsed_embedding_is_told_by_all_of_them():
    z, label = np.tile([[3.0, 4.0]], (12, 1)), np.arange(12) % 3
    assert alignment(z, label) == pytest.approx(0, abs=1e-6)
    assert uniformity(z) == pytest.approx(0, abs=1e-6)
    assert mean_cosine(z) == pytest.approx(1, abs=1e-6)
    assert effective_rank(z) == pytest.approx(1, abs=1e-3)
    assert pair_divergence(z, label) == 0
    assert simplex_distance(z, label) == pytest.approx(math.sqrt(2), abs=1e-6)


def test_isotropic_rows_have_full_rank_and_even_rows_are_uniform():
    axes = np.concatenate([np.eye(5), -np.eye(5)])
    assert effective_rank(axes) == pytest.approx(5)
    assert mean_cosine(axes) == pytest.approx(-1 / 9)
    expected = np.log((8 * np.exp(-4) + np.exp(-8)) / 9)
    assert uniformity(axes) == pytest.approx(expected, rel=1e-6)
    assert effective_rank(np.random.default_rng(0).normal(size=(4000, 8))) > 7.9


def test_two_opposite_points():
    z = np.array([[1.0, 0.0], [-2.0, 0.0]])
    assert alignment(z, [0, 0]) == pytest.approx(4)
    assert uniformity(z, t=0.5) == pytest.approx(-2)
    assert effective_rank(z) == pytest.approx(1)


def test_rows_of_zeros_have_no_direction():
    z = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    assert mean_cosine(z) == 0
    assert alignment(z, [0, 0, 0]) == pytest.approx(2)
    assert effective_rank(np.zeros((3, 2))) == 0
    assert simplex_distance(np.zeros((4, 2)), [0, 0, 1, 1]) == pytest.approx(math.sqrt(2))


@FEW
@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), min_size=1, max_size=20))
def test_the_divergence_of_histograms_is_scipys(pairs):
    p, q = np.array(pairs).T
    if not p.sum() or not q.sum():
        with pytest.raises(ValueError, match="empty"):
            jensen_shannon(p, q)
        return
    expected = float(jensenshannon(p, q, base=2)) ** 2
    assert jensen_shannon(p, q) == pytest.approx(expected, abs=1e-12)
    assert jensen_shannon(p, p) == 0
    assert 0 <= jensen_shannon(p, q) <= 1


def test_disjoint_histograms_are_one_bit_apart():
    assert jensen_shannon([1, 2, 0, 0], [0, 0, 5, 1]) == 1


def test_random_labels_have_next_to_no_divergence_and_close_classes_much():
    generator = np.random.default_rng(0)
    z = generator.normal(size=(500, 8))
    label = np.arange(500) % 10
    assert pair_divergence(z, label) < 0.01
    near = generator.normal(size=(10, 8))[label] * 3 + z
    assert 0.5 < pair_divergence(near, label) < 1


def test_float32_torch_half_precision_and_lists_agree():
    z, label = some(3)
    for other in (z.astype(np.float32), torch.from_numpy(z), z.tolist()):
        assert alignment(other, label) == pytest.approx(alignment(z, label), rel=1e-5)
    assert effective_rank(torch.from_numpy(z).bfloat16()) == pytest.approx(
        effective_rank(z), rel=1e-2
    )


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda z: alignment(z, np.arange(4)), "no same pair"),
        (lambda z: pair_divergence(z, [0, 0, 0, 0]), "no different pair"),
        (lambda z: pair_divergence(z, [0, 1, 2, 3]), "no same pair"),
        (lambda z: pair_divergence(z, [0, 0, 1, 1], bins=1), "at least 2 bins"),
        (lambda z: alignment(z, [0, 0]), "one label a row"),
        (lambda z: alignment(z, np.eye(4, dtype=bool)), "multi-hot"),
        (lambda z: uniformity(z, t=0), "above 0"),
        (lambda z: uniformity(z, t=math.inf), "above 0"),
        (lambda z: uniformity(z[:1]), "at least two rows"),
        (lambda z: mean_cosine(z[:1]), "at least two rows"),
        (lambda z: simplex_distance(z, [0, 0, 0, 0]), "at least two classes"),
        (lambda z: simplex_distance(z, [0, 0, 1, 1], classes=1), "too few"),
        (lambda z: least_simplex_distance(3, 0), "at least 1 dimension"),
        (lambda z: effective_rank(z * np.nan), "NaN"),
        (lambda z: jensen_shannon([1, 2], [1, 2, 3]), "same bins"),
        (lambda z: jensen_shannon([1, -2], [1, 2]), "at least 0"),
    ],
)
def test_wrong_input_is_told(call, said):
    with pytest.raises(ValueError, match=said):
        call(np.arange(12.0).reshape(4, 3) + 1)
