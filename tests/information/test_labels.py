"""The probe bound of I(Z;Y) on layouts whose information is known."""

import math

import numpy as np
import pytest
import torch

from nearkin.information import class_means, label_information, labels, tasks


def both_probes(monkeypatch, probe):
    """Class means are the probe of many classes; here also of few."""
    if probe == "class means":
        monkeypatch.setattr(labels, "MOST_CLASSES", 1)


@pytest.fixture(params=["logistic regression", "class means"])
def probe(request, monkeypatch):
    both_probes(monkeypatch, request.param)
    return request.param


def clusters(n, classes, dim, spread, seed=0):
    generator = np.random.default_rng(seed)
    y = np.arange(n) % classes
    centers = 4 * generator.standard_normal((classes, dim))
    return centers[y] + spread * generator.standard_normal((n, dim)), y


def test_well_separated_clusters_tell_all(probe):
    z, y = clusters(400, 8, 16, 0.3)
    found = label_information(z, y)
    assert found.ceiling == pytest.approx(3.0)
    assert 2.9 < found.bits <= found.ceiling
    assert found.kind == "lower"


def test_noise_tells_nothing(probe):
    generator = np.random.default_rng(0)
    z, y = generator.standard_normal((600, 16)), np.arange(600) % 10
    found = label_information(z, y)
    assert -0.1 < found.bits < 0.05
    assert found.low < 0.05


def test_an_xor_layout_tells_a_linear_probe_nothing(probe):
    generator = np.random.default_rng(0)
    corner = generator.integers(0, 2, (800, 2))
    z = corner + 0.05 * generator.standard_normal((800, 2))
    found = label_information(z, corner[:, 0] ^ corner[:, 1])
    assert found.ceiling == pytest.approx(1.0, abs=0.01)
    assert -0.05 < found.bits < 0.05


def test_a_gaussian_mixture_of_known_information(probe):
    # Two classes at -1 and +1 with deviation 1: both probes contain the posterior sigmoid(2 z).
    # I = ln 2 - E log(1 + exp(-2 z)), z ~ N(1, 1); the integral by a fine sum.
    grid = np.linspace(-9, 11, 200_001)
    density = np.exp(-((grid - 1) ** 2) / 2) / math.sqrt(2 * math.pi)
    nats = math.log(2) - (density * np.log1p(np.exp(-2 * grid))).sum() * (grid[1] - grid[0])
    y = np.arange(4000) % 2
    z = np.random.default_rng(1).standard_normal((4000, 1)) + 2 * y[:, None] - 1
    found = label_information(z, y)
    assert found.nats == pytest.approx(nats, abs=0.02)
    assert found.low < nats / math.log(2) < found.high


def test_overconfidence_is_not_punished_without_end(probe):
    # A few rows, many dimensions: an uncalibrated probe would lose bits by the dozen.
    generator = np.random.default_rng(0)
    z, y = generator.standard_normal((60, 100)), np.arange(60) % 6
    assert label_information(z, y).bits > -0.6


def test_invariant_to_renaming_scaling_and_shifting(probe):
    z, y = clusters(120, 5, 4, 5.0)
    expected = label_information(z, y)
    renamed = label_information(z, [f"class {9 - label}" for label in y])
    assert renamed == expected
    moved = label_information(z * 1e30 + 1e30, torch.from_numpy(y))
    assert moved.bits == pytest.approx(expected.bits, abs=1e-3)
    assert label_information(z, y, seed=1).bits != expected.bits


def test_constant_features_and_collapsed_rows_tell_nothing(probe):
    with pytest.warns(UserWarning, match="all 60 rows of z are the same"):
        found = label_information(np.full((60, 3), 0.1), np.arange(60) % 3)
    assert found.bits == pytest.approx(0.0, abs=0.05)


def test_classes_of_one_row_are_left_out(probe):
    z, y = clusters(60, 3, 4, 0.3)
    found = label_information(np.r_[z, z[:2]], np.r_[y, 77, 78])
    assert found.left_out == 2
    assert found.ceiling == pytest.approx(math.log2(3))
    assert found.bits > 1.0


def test_classes_of_two_rows_do_not_break_it(probe):
    z, y = clusters(80, 40, 16, 0.2)
    found = label_information(z, y)
    assert found.ceiling == pytest.approx(math.log2(40))
    assert 0 < found.bits <= found.ceiling
    assert label_information(z[[0, 1, 40, 41]], y[[0, 1, 40, 41]], folds=2).left_out == 0


@pytest.mark.parametrize(
    ("z", "y", "said"),
    [
        (np.ones((3, 2)), [0, 0, 0], "at least two classes of two rows"),
        (np.ones((4, 2)), [0, 0, 1, 2], "at least two classes of two rows"),
        (np.ones((4, 2)), [0, 0, 1], "3 entries but z has 4 rows"),
        (np.ones(4), [0, 0, 1, 1], "matrix"),
        (np.array([[0.0], [1.0], [np.nan], [0.0]]), [0, 0, 1, 1], "first in row 2"),
        (np.ones((2, 2)), np.eye(2, dtype=bool), "multi-hot"),
    ],
)
def test_wrong_input_is_told(z, y, said):
    with pytest.raises(ValueError, match=said):
        label_information(z, y)


def test_one_fold_is_refused():
    with pytest.raises(ValueError, match=r"folds counts parts.* an integer of 2 or more, not 1"):
        label_information(np.ones((4, 2)), [0, 0, 1, 1], folds=1)


def test_another_view_is_named():
    with pytest.raises(ValueError, match="by must be one of probe, neighbors, generative"):
        label_information(np.ones((4, 2)), [0, 0, 1, 1], by="knn")


def test_floats_are_no_labels():
    with pytest.raises(TypeError, match=r"label 0 is 0.5 \(float\)"):
        label_information(np.ones((4, 2)), [0.5, 0.5, 1.5, 1.5])


# --- against the truth


MIXTURES = [tasks.classes(1.0), tasks.classes(2.0, 4, 3), tasks.classes(3.0, 8, 6)]


@pytest.mark.parametrize("task", MIXTURES, ids=lambda task: task.name)
@pytest.mark.parametrize("by", ["probe", "neighbors"])
def test_mixtures_of_known_truth_are_right_within_three_standard_errors(task, by):
    z, y = task.sample(1500, 1)
    found = label_information(z, y, by=by)
    off = found.nats - task.nats
    assert abs(off) < 3 * found.error * math.log(2)
    # Whole classes are resampled, which is wide where they are few: also within a twentieth.
    assert abs(off) < 0.05 * math.log(len(set(y.tolist()))) + 0.02


def test_the_probe_of_a_mixture_is_below_the_truth_on_average():
    task = tasks.classes(2.0, 3, 2)
    found = [label_information(*task.sample(300, seed)).nats for seed in range(10)]
    assert np.mean(found) < task.nats + 3 * np.std(found, ddof=1) / math.sqrt(10)


def test_neighbors_see_what_a_linear_probe_does_not():
    generator = np.random.default_rng(0)
    corner = generator.integers(0, 2, (800, 2))
    z = corner + 0.05 * generator.standard_normal((800, 2))
    found = label_information(z, corner[:, 0] ^ corner[:, 1], by="neighbors")
    assert found.bits == pytest.approx(1.0, abs=0.02)
    assert found.kind == "neither"
    assert found.ceiling == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize("by", labels.VIEWS)
def test_random_labels_tell_nothing_by_any_view(by):
    z = np.random.default_rng(0).standard_normal((900, 5))
    found = label_information(z, np.random.default_rng(1).integers(0, 6, 900), by=by)
    assert abs(found.bits) < max(3 * found.error, 0.06)
    assert found.low < 0.05


@pytest.mark.parametrize("by", labels.VIEWS)
def test_few_rows_have_a_wide_interval(by):
    z, y = clusters(24, 3, 4, 3.0)
    few, many = (label_information(*clusters(n, 3, 4, 3.0), by=by) for n in (24, 600))
    assert few.error > 2 * many.error
    assert few.low <= many.bits + few.error
    assert len(z) == len(y) == 24


@pytest.mark.parametrize("by", ["probe", "neighbors"])
def test_a_handful_of_rows_that_agree_is_no_certainty(by):
    few = label_information([[0.0], [1.0], [5.0], [6.0]], [0, 0, 1, 1], by=by)
    # 1 bit · sqrt(1/6 · 5/6 / 4)
    assert few.error >= 0.186
    assert few.low < few.bits - 0.36
    many = label_information(*clusters(1000, 2, 4, 1e-6), by=by)
    assert 0.0009 < many.error < 0.02


def test_the_generative_view_grows_as_classes_contract_and_has_no_ceiling():
    loose, tight = (
        label_information(*clusters(300, 6, 4, spread), by="generative") for spread in (4.0, 0.01)
    )
    assert loose.bits < tight.bits
    assert tight.bits > math.log2(6)  # H(Y), which would be the ceiling of an information
    assert math.isinf(loose.ceiling)
    assert math.isinf(tight.ceiling)
    assert " of " not in repr(tight)
    assert tight.kind == "neither"


@pytest.mark.parametrize("by", labels.VIEWS)
def test_views_leave_out_rows_alone_in_their_class_and_see_no_scale(by):
    z, y = clusters(120, 6, 4, 2.0)
    z, y = np.r_[z, z[:2]], np.r_[y, 77, 78]
    found = label_information(z, y, by=by)
    assert found.left_out == 2
    assert found.ceiling == pytest.approx(math.inf if by == "generative" else math.log2(6))
    assert label_information(1e30 * z, y, by=by).bits == pytest.approx(found.bits, abs=0.01)


def test_many_classes_in_float32_are_what_they_are_in_float64(monkeypatch):
    monkeypatch.setattr(labels, "MOST_CLASSES", 1)
    z, y = clusters(400, 40, 16, 2.0)
    wide = label_information(z, y)
    monkeypatch.setattr(class_means, "_MANY", 1)
    assert label_information(z, y).bits == pytest.approx(wide.bits, abs=1e-4)


@pytest.mark.parametrize("seed", [-1, 1.5, "a", True])
def test_a_seed_that_is_none_is_refused(seed):
    with pytest.raises(ValueError, match="seed must be an integer of 0 or more, not"):
        label_information(np.eye(4), [0, 0, 1, 1], seed)


def test_a_quantity_in_place_of_classes_is_told_where_to_go():
    with pytest.raises(TypeError, match=r"0\.5 \(float\)\. Convert .* 'ksg'\) takes it as it is"):
        label_information(np.eye(4), [0.5, 1.0, 1.5, 2.0])
