"""Metrics of a whole embedding, Embedded -> dict of floats; those of rankings stand elsewhere."""

from __future__ import annotations

import numpy as np

from nearkin.evaluation.base import Embedded
from nearkin.evaluation.kmeans import kmeans, random_centers, spread_centers
from nearkin.information.labels import label_information

RESTARTS = 4  # k-means++ starts of exact k-means; the best inertia is kept
RANDOM = 10  # random clusterings that nmi_random averages
PASSES = 20  # of k-means from random rows, as the field runs it
MANY_CLASSES, MANY_ROWS = 1_000, 20_000


def nmi(embedded: Embedded) -> dict[str, float]:
    """nmi = I(cluster; class) / ((H(cluster) + H(class)) / 2) of k-means clusters, 0..1.

    Arithmetic mean, as scikit-learn's default and the field since Song et al. 2016. NMI grows with
    the number of clusters by chance alone, so `nmi_random` stands beside it: its mean over 10
    seeded random assignments to clusters of the same sizes.
    """
    codes, clusters_ = embedded.codes, embedded.clusters
    generator = np.random.default_rng(embedded.seed)
    random = [
        normalized_information(codes, generator.permutation(clusters_)) for _ in range(RANDOM)
    ]
    return {
        "nmi": normalized_information(codes, clusters_),
        "nmi_random": float(np.mean(random)),
    }


def ami(embedded: Embedded) -> dict[str, float]:
    """ami: NMI adjusted for chance (Vinh et al. 2010): about 0 for random clusters, 1 for classes.

    Of the same clusters as nmi; may be below 0. Its expectation costs classes x clusters: minutes
    above 5,000 classes.
    """
    from sklearn.metrics import adjusted_mutual_info_score

    return {"ami": float(adjusted_mutual_info_score(embedded.codes, embedded.clusters))}


def information(embedded: Embedded) -> dict[str, float]:
    """information: a lower bound of I(Z;Y) in bits of the rows as given, its interval and H(Y).

    See `nearkin.information.labels.label_information`.
    """
    found = label_information(embedded.z, embedded.codes, seed=embedded.seed)
    return {
        "information": found.bits,
        "information_low": found.low,
        "information_high": found.high,
        "information_ceiling": found.ceiling,
    }


def normalized_information(classes: np.ndarray, clusters_: np.ndarray) -> float:
    """NMI with the arithmetic mean of two assignments (N,) of the same rows, 0..1."""
    from sklearn.metrics import normalized_mutual_info_score

    return float(normalized_mutual_info_score(classes, clusters_, average_method="arithmetic"))


def f1(embedded: Embedded) -> dict[str, float]:
    """f1 = 2PR / (P + R) over pairs of rows: P = same cluster and class / same cluster, R = same
    cluster and class / same class; 0..1.

    The F1 of Song et al. 2016 (Manning et al. 2008, 16.3), of the same clusters as nmi; `f1_random`
    beside it is its mean over 10 seeded random assignments to clusters of the same sizes.
    """
    codes, clusters_ = embedded.codes, embedded.clusters
    generator = np.random.default_rng(embedded.seed)
    random = [pairs_f1(codes, generator.permutation(clusters_)) for _ in range(RANDOM)]
    return {"f1": pairs_f1(codes, clusters_), "f1_random": float(np.mean(random))}


def pairs_f1(classes: np.ndarray, clusters_: np.ndarray) -> float:
    """F1 over pairs of two assignments (N,) of the same rows, 0..1; 0 where no pair shares both."""

    def pairs(codes: np.ndarray) -> int:
        sizes = np.unique(codes, return_counts=True)[1].astype(np.int64)
        return int((sizes * (sizes - 1) // 2).sum())

    _, left = np.unique(classes, return_inverse=True)
    _, right = np.unique(clusters_, return_inverse=True)
    both = pairs(left.astype(np.int64) * (int(right.max()) + 1) + right)
    together = pairs(left) + pairs(right)
    return 2 * both / together if together else 0.0


def clusters(embedded: Embedded) -> np.ndarray:
    """(N,) int: k-means with as many clusters as classes, of unit rows under cosine; seeded.

    Lloyd's algorithm, exact in every pass. Up to 1,000 classes and 20,000 rows: from 4 k-means++
    starts, the best one kept. Above either: from one start at random rows, up to 20 passes.
    """
    count = embedded.classes
    if count <= MANY_CLASSES and len(embedded.z) <= MANY_ROWS:
        rows = embedded.matrix(np.float64)
        starts = [spread_centers(rows, count, embedded.seed + i) for i in range(RESTARTS)]
        found = [kmeans(rows, centers, tolerance=1e-6) for centers in starts]
        return min(found, key=lambda clusters_: clusters_.inertia).assigned
    rows = embedded.matrix(np.float32)
    centers = random_centers(rows, count, embedded.seed)
    return kmeans(rows, centers, passes=PASSES).assigned
