"""Metrics of a whole embedding, Embedded -> dict of floats; those of rankings stand elsewhere."""

from __future__ import annotations

import warnings

import numpy as np

from nearkin.evaluation.base import Embedded
from nearkin.information.labels import label_information

RESTARTS = 4  # k-means++ starts of exact k-means; the best inertia is kept
RANDOM = 10  # random clusterings that nmi_random averages
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


def clusters(embedded: Embedded) -> np.ndarray:
    """(N,) int: k-means with as many clusters as classes, of unit rows under cosine; seeded.

    Up to 1,000 classes and 20,000 rows: Lloyd's algorithm from 4 k-means++ starts, the best one
    kept. Above either: mini-batches of 4,096 rows, up to 10 passes, from one start at random rows,
    float32.
    """
    from sklearn.cluster import KMeans, MiniBatchKMeans
    from sklearn.exceptions import ConvergenceWarning

    count = embedded.classes
    if count <= MANY_CLASSES and len(embedded.z) <= MANY_ROWS:
        rows = embedded.matrix(np.float64)
        kmeans = KMeans(count, n_init=RESTARTS, random_state=embedded.seed)  # type: ignore[arg-type]
    else:
        rows = embedded.matrix(np.float32)
        kmeans = MiniBatchKMeans(
            count,
            init="random",
            n_init=1,  # type: ignore[arg-type]
            batch_size=4096,
            max_iter=10,
            random_state=embedded.seed,
        )
    with warnings.catch_warnings():
        # Fewer distinct rows than classes: a collapsed embedding, which the value itself tells.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return np.asarray(kmeans.fit_predict(rows))
