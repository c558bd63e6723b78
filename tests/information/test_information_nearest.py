"""Neighbor estimates: values by hand, tables of known truth, parity, wrong input."""

import math

import numpy as np
import pytest
import torch

from nearkin.information import tasks
from nearkin.information.nearest import by_class_neighbors, ksg, mixed
from nearkin.information.samples import samples

spiral_3 = tasks.two_pair(3).mapped("spiral", tasks.spiral(0, 1), tasks.spiral(1, 2))


@pytest.mark.parametrize(("y", "nats"), [((0, 1, 2.5, 4.5), 11 / 6), ((0, 2.5, 1, 4.5), 1 / 3)])
def test_ksg_of_four_pairs_by_hand(y, nats):
    s = samples(np.array([0, 1, 2.5, 4.5]), np.array(y, dtype=float))
    assert ksg(s, k=1).nats == pytest.approx(nats, abs=1e-12)


# k = 5, 2,000 pairs, mean of three seeds: as measured with another implementation.
TABLE = [
    (tasks.pair(), 0.420),
    (tasks.additive(0.75), 0.320),
    (tasks.pair().mapped("half-cube", tasks.half_cube), 0.416),
    (tasks.asinh_student(1, 1), 0.229),
    (tasks.dense(5), 0.558),
    (tasks.dense(25), 0.890),
    (tasks.two_pair(3), 0.870),
    (tasks.two_pair(5), 0.623),
    (tasks.two_pair(25), 0.115),
    (spiral_3, 0.609),
    (tasks.asinh_student(5, 2), 0.251),
    (tasks.independent(5), -0.003),
]


@pytest.mark.parametrize(("task", "nats"), TABLE, ids=[task.name for task, _ in TABLE])
def test_ksg_on_the_table(task, nats):
    found = [ksg(samples(*task.sample(2000, seed))).nats for seed in range(3)]
    assert np.mean(found) == pytest.approx(nats, abs=0.05)


def test_ksg_agrees_with_scikit_learn():
    # Its estimator has its own noise of 1e-10 and counts oneself; at equal k they are one.
    from sklearn.feature_selection import mutual_info_regression

    x, y = tasks.pair().sample(800, 4)
    theirs = mutual_info_regression(x, y[:, 0], n_neighbors=4, random_state=0)[0]
    assert ksg(samples(x, y), k=4).nats == pytest.approx(theirs, abs=1e-3)


def test_mixed_agrees_with_scikit_learn():
    from sklearn.feature_selection import mutual_info_classif

    x, y = tasks.classes(2.0, 3).sample(700, 1)
    theirs = mutual_info_classif(x, y, n_neighbors=3, random_state=0)[0]
    assert mixed(samples(x, y), k=3).nats == pytest.approx(theirs, abs=1e-6)


def test_the_standard_error_is_that_of_repetition():
    for task, how in ((tasks.dense(2), ksg), (tasks.classes(2.0, 3), mixed)):
        found = [how(samples(*task.sample(500, seed))) for seed in range(60)]
        spread = np.std([each.bits for each in found], ddof=1)
        assert spread / np.mean([each.error for each in found]) == pytest.approx(1, abs=0.35)


@pytest.mark.parametrize(
    "task",
    [tasks.classes(2.0), tasks.classes(3.0, 4), tasks.classes(3.0, 4, 5), tasks.overlapping(5)],
    ids=lambda task: task.name,
)
def test_mixed_is_right_within_three_standard_errors(task):
    found = mixed(samples(*task.sample(3000, 2)))
    assert abs(found.nats - task.nats) < 3 * found.error * math.log(2)
    assert found.kind == "neither"


def test_random_labels_tell_nothing():
    x = np.random.default_rng(0).standard_normal((2000, 6))
    found = mixed(samples(x, np.arange(2000) % 7))
    assert abs(found.bits) < 3 * found.error
    assert found.low < 0 < found.high


def test_classes_far_apart_tell_all():
    y = np.arange(300) % 5
    x = 100.0 * np.eye(5)[y] + np.random.default_rng(0).standard_normal((300, 5))
    found = mixed(samples(x, y))
    assert found.ceiling == pytest.approx(math.log2(5))
    assert found.bits == pytest.approx(math.log2(5), abs=0.02)


@pytest.mark.filterwarnings("ignore:.*rows coincide", "ignore:.*pairs are copies")
def test_on_discrete_rows_it_is_the_information_of_counts():
    two, corner = np.arange(2).repeat(50), np.eye(4)
    assert mixed(samples(np.eye(2)[two], two)).bits == pytest.approx(1, abs=0.03)
    # A tenth is on the other side: 1 - h(0.1) bits.
    swapped = np.where(np.arange(1000) % 10 == 0, 1, 0) ^ np.arange(1000) // 500
    found = mixed(samples(np.eye(2)[swapped], np.arange(1000) // 500))
    assert found.bits == pytest.approx(1 + 0.1 * math.log2(0.1) + 0.9 * math.log2(0.9), abs=0.01)
    drawn = np.random.default_rng(0).integers(0, 4, (2, 1000))
    found = mixed(samples(corner[drawn[0]], drawn[1]))
    assert abs(found.bits) < 0.03


@pytest.mark.filterwarnings("ignore:.*rows coincide", "ignore:.*pairs are copies")
@pytest.mark.parametrize("spread", [1e-2, 1e-4, 1e-7, 0.0])
@pytest.mark.parametrize("rows", [1000, 5000], ids=["float64", "float32"])
def test_however_far_classes_collapse_the_rows_tell_all(spread, rows):
    generator = np.random.default_rng(0)
    y = np.arange(rows) % 10
    z = generator.standard_normal((10, 32))[y] + spread * generator.standard_normal((rows, 32))
    found = mixed(samples(z, y))
    assert found.bits == pytest.approx(math.log2(10), abs=0.02)
    assert by_class_neighbors(torch.from_numpy(z), torch.from_numpy(y)).bits == pytest.approx(
        math.log2(10), abs=0.02
    )


def test_rows_alone_in_their_class_are_left_out():
    x, y = tasks.classes(3.0, 4).sample(200)
    y = np.r_[y[:-2], 90, 91]
    assert mixed(samples(x, y)).left_out == 2


@pytest.mark.filterwarnings("ignore:.*pairs are copies")
def test_copies_are_told_of():
    x, y = tasks.pair().sample(200)
    x, y = np.r_[x, x[:3]], np.r_[y, y[:3]]
    with pytest.warns(UserWarning, match=r"3 pairs occur more than once.*jitter=1e-8"):
        ksg(samples(x, y))
    six = np.repeat(x[:30], 6, 0), np.repeat(y[:30], 6, 0)
    with pytest.raises(ValueError, match=r"6 pairs coincide.*jitter=1e-8"):
        ksg(samples(*six))
    # Thirty places of six pairs: copies are closeness, and noise does not make them fewer.
    assert ksg(samples(*six), jitter=1e-8).bits > ksg(samples(x[:30], y[:30])).bits + 1
    label = np.arange(203) % 2
    label[200:] = label[:3]
    with pytest.warns(UserWarning, match="rows coincide with rows of their class"):
        found = mixed(samples(x, label), k=1)
    # The labels know nothing; six rows of 203 have a neighbor at distance 0.
    assert abs(found.bits) < 3 * found.error + 6 / 203


def test_noise_by_a_seed_is_the_same_noise():
    x, y = tasks.pair().sample(100)
    one, two, other = (ksg(samples(x, y, seed), jitter=0.1).bits for seed in (1, 1, 2))
    assert one == two != other


@pytest.mark.filterwarnings("ignore:.*pairs are copies")
@pytest.mark.parametrize("dim", [2, 4])
def test_tiny_noise_mends_ties_in_every_dimension(dim):
    coins = np.random.default_rng(0).integers(0, 2, (2, 1000, dim)).astype(float)
    found = ksg(samples(*coins), jitter=1e-8)
    assert abs(found.bits) < 3 * found.error


@pytest.mark.parametrize("dim", [2, 4])
def test_one_row_far_out_tells_nothing(dim):
    x, y = np.random.default_rng(0).standard_normal((2, 1000, dim))
    before = ksg(samples(x, y))
    x[0] *= 1e9
    y[0] *= 1e9
    found = ksg(samples(x, y))
    assert abs(before.bits) < 3 * before.error
    # The far row is alone in both, and its own term is all that changes.
    assert abs(found.bits) < 3 * found.error + 0.02


def test_only_some_rows_are_anchors_where_there_are_many(monkeypatch):
    from nearkin.information import nearest

    x, y = tasks.classes(2.0, 3).sample(2000)
    every = mixed(samples(x, y))
    monkeypatch.setattr(nearest, "ANCHORS", 500)
    some = mixed(samples(x, y))
    assert some.error == pytest.approx(2 * every.error, rel=0.2)
    assert abs(some.bits - every.bits) < 4 * some.error


@pytest.mark.parametrize(
    ("how", "y", "k", "said"),
    [
        (ksg, np.linspace(0, 1, 6), 6, "k = 6 neighbors need more than 6 rows, but there are 6"),
        (ksg, np.linspace(0, 1, 6), 0, "k counts neighbors, so it must be an integer of 1 or more"),
        (mixed, [0, 0, 0, 1, 2, 3], 3, "at least two classes of two rows"),
        (mixed, [0, 0, 0, 1, 1, 1], 0, "k counts neighbors"),
    ],
)
def test_too_few_rows_are_told(how, y, k, said):
    x = np.random.default_rng(0).standard_normal(6)
    with pytest.raises(ValueError, match=said):
        how(samples(x, y), k=k)


def test_a_class_smaller_than_k_uses_the_neighbors_it_has():
    z = torch.tensor([0.0, 1, 2, 10, 11]).double().numpy()
    found = mixed(samples(z, [0, 0, 0, 1, 1]), k=3)
    psi = torch.digamma(torch.arange(1, 6).double())
    # Class 0 sees 2 of its own within the second; class 1 sees 1 within the first.
    expected = psi[4] + (3 * (psi[1] - psi[2] - psi[1]) + 2 * (psi[0] - psi[1] - psi[0])) / 5
    assert found.nats == pytest.approx(float(expected), abs=1e-12)
