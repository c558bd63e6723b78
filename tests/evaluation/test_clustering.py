"""NMI, AMI and information of embeddings."""

import numpy as np
import pytest
import torch

from nearkin.evaluation import clustering, evaluate
from nearkin.evaluation.base import Embedded
from nearkin.information import label_information
from nearkin.information.given import Rows, given_labels


@pytest.mark.parametrize(
    ("classes", "clusters", "expected"),
    [
        ([0, 1, 2, 1], [0, 1, 2, 1], 1.0),
        ([0, 1, 2, 1], [2, 0, 1, 0], 1.0),
        ([0, 0, 1, 1], [0, 0, 1, 2], 0.8),
        ([0, 0, 0, 1, 1, 1], [0, 0, 1, 1, 1, 1], 0.478704),
    ],
)
def test_nmi_oracles(classes, clusters, expected):
    found = clustering.normalized_information(np.array(classes), np.array(clusters))
    assert found == pytest.approx(expected, abs=1e-6)


def rays(lengths):
    """Two classes on two rays: told apart by angle, mixed by distance."""
    angles = np.repeat([0.0, 1.0], len(lengths))
    length = np.tile(lengths, 2)
    return np.stack([length * np.cos(angles), length * np.sin(angles)], 1), np.repeat([0, 1], 4)


def test_clusters_follow_the_closeness():
    z, y = rays([1.0, 2.0, 50.0, 60.0])
    cosine = evaluate(z, y, metrics=("nmi", "ami"))
    assert cosine["nmi"] == pytest.approx(1.0)
    assert cosine["ami"] == pytest.approx(1.0)
    euclidean = evaluate(z * [1, 0.1], y, metrics="nmi", closeness="euclidean")
    assert euclidean["nmi"] < 0.1


def test_random_rows_have_the_nmi_of_random_clusters_and_no_ami():
    generator = np.random.default_rng(0)
    z, y = generator.standard_normal((400, 8)), generator.integers(0, 40, 400)
    result = evaluate(z, y, metrics=("nmi", "ami"))
    assert result["nmi"] == pytest.approx(result["nmi_random"], abs=0.02)
    assert result["nmi"] > 0.3
    assert abs(result["ami"]) < 0.03


def test_a_seed_fixes_the_clusters():
    generator = np.random.default_rng(0)
    z, y = generator.standard_normal((200, 4)), generator.integers(0, 10, 200)
    assert evaluate(z, y, metrics="nmi", seed=4) == evaluate(z, y, metrics="nmi", seed=4)


def test_collapsed_rows_have_no_nmi():
    assert evaluate(np.ones((12, 3)), np.arange(12) % 3, metrics="nmi")["nmi"] == 0.0


def test_mini_batches_find_what_exact_k_means_finds(monkeypatch):
    monkeypatch.setattr(clustering, "MANY_ROWS", 10)
    generator = np.random.default_rng(0)
    y = np.arange(300) % 3
    z = 20 * np.eye(3)[y] + generator.standard_normal((300, 3))
    found = clustering.clusters(Embedded(Rows(z), given_labels(y, 300), "euclidean", 0))
    assert clustering.normalized_information(y, found) > 0.7


def test_information_is_that_of_the_rows_as_given():
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(90) % 3
    z = torch.eye(3)[y] + torch.randn(90, 3, generator=generator)
    result = evaluate(z, y, metrics=("recall@1", "information"), seed=2)
    expected = label_information(z, y, seed=2)
    assert result["information"] == expected.bits
    assert result["information_ceiling"] == pytest.approx(np.log2(3))
    assert (result["information_low"], result["information_high"]) == (expected.low, expected.high)
