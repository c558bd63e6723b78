"""Metrics of a ranking, by hand."""

import math

import pytest
import torch

from nearkin.evaluation import retrieval
from nearkin.evaluation.base import NOWHERE, Ranking

RANKING = Ranking(
    ranks=torch.tensor([[2, 3, 7], [1, NOWHERE, NOWHERE]]),
    relevant=torch.tensor([3, 1]),
    candidates=torch.tensor([9, 9]),
)
LOG = math.log2


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (retrieval.recall(RANKING, 1), [0, 1]),
        (retrieval.recall(RANKING, 2), [1, 1]),
        (retrieval.precision(RANKING, 4), [2 / 4, 1 / 4]),
        (retrieval.r_precision(RANKING), [2 / 3, 1]),
        (retrieval.map_at_r(RANKING), [(1 / 2 + 2 / 3) / 3, 1]),
        (retrieval.mean_average_precision(RANKING, 2), [1 / 2 / 2, 1]),
        (retrieval.mean_average_precision(RANKING, 9), [(1 / 2 + 2 / 3 + 3 / 7) / 3, 1]),
        (retrieval.reciprocal_rank(RANKING), [1 / 2, 1]),
        (retrieval.ndcg(RANKING, 2), [(1 / LOG(3)) / (1 + 1 / LOG(3)), 1]),
        (
            retrieval.ndcg(RANKING, 9),
            [(1 / LOG(3) + 1 / LOG(4) + 1 / LOG(8)) / (1 + 1 / LOG(3) + 1 / LOG(4)), 1],
        ),
    ],
)
def test_metric_by_hand(found, expected):
    assert found.dtype == torch.float64
    assert found.tolist() == pytest.approx(expected)
