"""Metrics of a ranking, one function each, Ranking -> (Q,) float64; ranks are found elsewhere.

Letters: r_j is the rank of the j-th relevant item, R the number of relevant items of the query.
Values of queries without a relevant item mean nothing; the evaluator leaves them out. All values
lie in 0..1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nearkin.evaluation.base import Ranking


def recall(ranking: Ranking, k: int) -> Tensor:
    """recall@K = [r_1 <= K]: whether a relevant item is among the K nearest.

    The field's Recall@K (Jégou et al. 2011; Song et al. 2016); elsewhere hit rate, success@K,
    CMC@K, and at K = 1 precision@1 and top-1 accuracy. It is not the share of the relevant items
    that were found.
    """
    return (ranking.ranks[:, 0] <= k).double()


def precision(ranking: Ranking, k: int) -> Tensor:
    """precision@K = |{j: r_j <= K}| / K, also where fewer than K items are relevant."""
    return (ranking.ranks <= k).sum(1).double() / k


def r_precision(ranking: Ranking) -> Tensor:
    """r_precision = |{j: r_j <= R}| / R: precision at the number of relevant items."""
    return (ranking.ranks <= ranking.relevant[:, None]).sum(1) / _at_least_one(ranking)


def map_at_r(ranking: Ranking) -> Tensor:
    """map@r = (1/R) Σ_j [r_j <= R] j / r_j (Musgrave et al. 2020, MAP@R)."""
    return _precisions(ranking, ranking.relevant[:, None]) / _at_least_one(ranking)


def mean_average_precision(ranking: Ranking, k: int) -> Tensor:
    """map@K = Σ_j [r_j <= K] j / r_j / min(K, R): average precision of the first K.

    With K no smaller than the gallery it is the average precision (AP) of scikit-learn.
    """
    return _precisions(ranking, k) / _at_least_one(ranking).clamp_max(k)


def reciprocal_rank(ranking: Ranking) -> Tensor:
    """mrr = 1 / r_1: the reciprocal rank, whose mean is the MRR."""
    return 1.0 / ranking.ranks[:, 0].double()


def ndcg(ranking: Ranking, k: int) -> Tensor:
    """ndcg@K = Σ_j [r_j <= K] / log2(1 + r_j) over the same sum for ranks 1..min(K, R).

    Binary gains (Järvelin and Kekäläinen 2002); the ideal list holds the R relevant items, cut at
    K. With `super_labels` gains are graded: see `evaluation.graded`.
    """
    return gain(ranking, k) / ideal_gain(ranking, k)


def gain(ranking: Ranking, k: int) -> Tensor:
    """DCG@K = Σ_j [r_j <= K] / log2(1 + r_j)."""
    ranks = ranking.ranks[:, :k]  # no relevant item behind the K-th has rank K or less
    return torch.where(ranks <= k, 1.0 / torch.log2(1.0 + ranks.double()), 0.0).sum(1)


def ideal_gain(ranking: Ranking, k: int) -> Tensor:
    """Σ_{i = 1..min(K, R)} 1 / log2(1 + i): the largest DCG@K that R relevant items allow."""
    most = min(k, max(int(ranking.relevant.max()), 1))
    places = torch.arange(1, most + 1, device=ranking.ranks.device)
    ideal = (1.0 / torch.log2(1.0 + places.double())).cumsum(0)
    return ideal[_at_least_one(ranking).clamp_max(most).long() - 1]


def _precisions(ranking: Ranking, last: int | Tensor) -> Tensor:
    """Σ_j [r_j <= last] j / r_j."""
    places = torch.arange(1, ranking.ranks.shape[1] + 1, device=ranking.ranks.device)
    return torch.where(ranking.ranks <= last, places / ranking.ranks.double(), 0.0).sum(1)


def _at_least_one(ranking: Ranking) -> Tensor:
    return ranking.relevant.clamp_min(1).double()
