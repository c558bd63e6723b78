"""k-means against scikit-learn and a slow loop; what wrong input gets."""

import numpy as np
import pytest
import torch

from nearkin.evaluation import clustering
from nearkin.evaluation.kmeans import kmeans, random_centers, spread_centers
from nearkin.search import loops


def blobs(n=600, k=12, dim=6, seed=0, noise=0.4):
    generator = np.random.default_rng(seed)
    y = generator.integers(0, k, n)
    z = generator.standard_normal((k, dim))[y] + noise * generator.standard_normal((n, dim))
    return z.astype(np.float32)


@pytest.fixture(params=["compiled", "plain"])
def form(request, monkeypatch):
    monkeypatch.setattr(loops, "WORTH", 0)
    if request.param == "plain":
        monkeypatch.setattr(loops, "compiled", lambda: None)
    elif loops.compiled() is None:
        pytest.skip("numba")


def test_equals_scikit_learn_from_the_same_centers(form):
    from sklearn.cluster import KMeans

    z = blobs().astype(np.float64)
    centers = random_centers(z, 12, 0)
    ours = kmeans(z, centers)
    peer = KMeans(12, init=centers, n_init=1, max_iter=300, tol=0).fit(z)
    np.testing.assert_array_equal(ours.assigned, peer.labels_)
    assert ours.inertia == pytest.approx(peer.inertia_, rel=1e-9)
    np.testing.assert_allclose(ours.centers, peer.cluster_centers_, atol=1e-6)


def test_one_pass_assigns_to_the_nearest_and_of_equal_ones_to_the_first(form):
    z = np.array([[0.0], [1.0], [2.0], [10.0]])
    found = kmeans(z, np.array([[0.0], [2.0], [2.0]]), passes=1)
    assert found.assigned.tolist() == [0, 0, 1, 1]
    assert found.inertia == pytest.approx(0 + 1 + 0 + 64)


def test_an_empty_center_moves_to_the_farthest_row(form):
    z = np.array([[0.0], [1.0], [2.0], [10.0]])
    found = kmeans(z, np.array([[0.5], [400.0]]))
    assert found.assigned.tolist() == [0, 0, 0, 1]
    assert found.centers.ravel().tolist() == [1.0, 10.0]


def test_rows_that_are_all_equal_have_the_first_center(form):
    found = kmeans(np.ones((10, 3)), np.ones((2, 3)))
    assert set(found.assigned.tolist()) <= {0, 1}
    assert found.inertia == 0.0


def test_both_forms_and_any_threads_find_the_same(monkeypatch):
    z = blobs(1500, 60, 8)
    centers = random_centers(z, 60, 3)
    monkeypatch.setattr(loops, "WORTH", 0)
    one = kmeans(z, centers)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        several = kmeans(z, centers)
    finally:
        torch.set_num_threads(before)
    monkeypatch.setattr(loops, "compiled", lambda: None)
    plain = kmeans(z, centers)
    for other in (several, plain):
        np.testing.assert_array_equal(one.assigned, other.assigned)
        assert one.inertia == pytest.approx(other.inertia, rel=1e-12)


def test_equals_faiss_from_the_same_centers():
    faiss = pytest.importorskip("faiss")
    z = blobs(2000, 40, 16)
    centers = random_centers(z, 40, 0).astype(np.float32)
    peer = faiss.Kmeans(16, 40, niter=25, min_points_per_centroid=1, max_points_per_centroid=10**6)
    peer.train(z, init_centroids=centers)
    assert kmeans(z, centers, passes=26).inertia == pytest.approx(peer.obj[-1], rel=1e-3)


def test_a_seed_fixes_the_start():
    z = blobs()
    for start in (random_centers, spread_centers):
        np.testing.assert_array_equal(start(z, 9, 4), start(z, 9, 4))
        assert not np.array_equal(start(z, 9, 4), start(z, 9, 5))


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match=r"3 rows can have 1\.\.3 centers, not 4"):
        kmeans(np.zeros((3, 2)), np.zeros((4, 2)))
    with pytest.raises(ValueError, match="like rows"):
        kmeans(np.zeros((3, 2)), np.zeros((2, 3)))


def test_f1_over_pairs_by_hand():
    # Pairs of one class: (0, 1), (2, 3); of one cluster: (0, 1), (0, 2), (1, 2); of both: (0, 1).
    assert clustering.pairs_f1(np.array([0, 0, 1, 1]), np.array([5, 5, 5, 7])) == pytest.approx(0.4)
    assert clustering.pairs_f1(np.arange(4), np.arange(4)) == 0.0
    assert clustering.pairs_f1(np.zeros(4), np.zeros(4)) == 1.0


def test_f1_equals_scikit_learns_pair_counts():
    from sklearn.metrics.cluster import pair_confusion_matrix

    generator = np.random.default_rng(0)
    a, b = generator.integers(0, 7, 200), generator.integers(0, 9, 200)
    (_, wrong), (missed, hit) = pair_confusion_matrix(a, b)
    expected = 2 * hit / (2 * hit + wrong + missed)
    assert clustering.pairs_f1(a, b) == pytest.approx(expected)
