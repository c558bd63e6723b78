"""Pull and push: the slope of every objective by similarity, whatever stands between."""

import math

import pytest
import torch
from quad4 import LABEL4, QUAD4

from nearkin.compare import InBatch
from nearkin.core import Batch
from nearkin.losses.bounds import jsd
from nearkin.losses.pairwise import contrastive
from nearkin.objectives.base import pull_and_push
from nearkin.objectives.center import Center
from nearkin.objectives.compared import Compared
from nearkin.objectives.jensen_shannon import JensenShannon
from nearkin.objectives.pce import PairwiseCrossEntropy
from nearkin.objectives.regularizers import EmbeddingNorm, Uniformity

BATCH = Batch(None, label=LABEL4)


def test_it_is_the_slope_towards_same_and_away_from_different():
    similarity = torch.tensor([[0.5, -0.2, 0.1]], dtype=torch.float64)
    same = torch.tensor([[True, False, False]])
    said = pull_and_push(similarity, same, ~same, lambda s: (s.square() * torch.ones(3)).sum())
    assert said == {"pull": pytest.approx(-1.0), "push": pytest.approx(2 * (-0.2 + 0.1))}


def test_a_loss_that_does_not_read_it_has_none():
    same = torch.ones(2, 2, dtype=torch.bool)
    said = pull_and_push(torch.zeros(2, 2), same, ~same, lambda s: torch.tensor(3.0))
    assert said == {"pull": 0.0, "push": 0.0}


def test_contrastive_pulls_with_two_for_each_same_pair_of_a_row():
    # T = (1/n) Σ D², D² = 2 - 2s: the slope of each ordered pair is -2/n.
    said = Compared(InBatch(), contrastive).diagnosis(QUAD4, BATCH)
    assert said["pull"] == pytest.approx(4 * 2 / 4)


def test_a_critic_is_asked_by_the_cosine():
    objective = JensenShannon(width=8).double()
    said = objective.diagnosis(QUAD4, BATCH)
    c = objective.compare(QUAD4, BATCH)
    step = 1e-6
    for key, where, sign in (("pull", c.same, -1), ("push", c.different, 1)):
        ends = []
        for move in (step, -step):
            distance = c.distance_of(c.similarity + move * where)
            given = objective.critic(distance).detach()
            tight = torch.nn.functional.softplus(-given)[c.same].mean()
            ends.append(float(tight + torch.nn.functional.softplus(given)[c.different].mean()))
        assert said[key] == pytest.approx(sign * (ends[0] - ends[1]) / (2 * step), rel=1e-5)
    assert said["pull"] > 0
    assert said["push"] > 0
    assert all(parameter.grad is None for parameter in objective.parameters())


def test_a_center_pulls_by_its_weight_and_the_classifier_as_cross_entropy_does():
    objective = Center(classes=5, dim=2, weight=0.25).double()
    said = objective.diagnosis(QUAD4, BATCH)  # a classifier of zeros: all classes are alike
    assert said["pull"] == pytest.approx(4 / 5 + 4 * 0.25)
    assert said["push"] == pytest.approx(4 / 5)


def test_pairwise_cross_entropy_by_hand_while_all_classes_are_alike():
    objective = PairwiseCrossEntropy(classes=3, dim=2, lam=0.5).double()
    said = objective.diagnosis(QUAD4, BATCH)
    each = 1 / (2 * 0.5 * 4**2)
    assert said["lam"] == 0.5
    assert said["pull"] == pytest.approx(4 * each * (1 - 1 / 3))
    assert said["push"] == pytest.approx(8 * each / 3)


def test_pairwise_cross_entropy_in_pairs_is_the_loss_itself(monkeypatch):
    from nearkin.objectives import pce

    objective = PairwiseCrossEntropy(classes=3, dim=2, lam=0.5).double()
    with torch.no_grad():
        objective.classifier.weight.normal_(generator=torch.Generator().manual_seed(0))
    seen = []

    def listening(similarity, same, different, total):
        seen.append(float(total(similarity)))
        return pull_and_push(similarity, same, different, total)

    monkeypatch.setattr(pce, "pull_and_push", listening)
    said = objective.diagnosis(QUAD4, BATCH)
    assert seen[0] == pytest.approx(float(objective(QUAD4, BATCH).total))
    assert said["pull"] > 0


def test_uniformity_pushes_everyone_and_says_nothing_without_labels():
    said = Uniformity().diagnosis(QUAD4, BATCH)
    assert said["pull"] < 0 < said["push"]
    # Σ g = 2t: the softmax over pairs adds up to 1.
    assert said["push"] - said["pull"] == pytest.approx(4.0)
    assert Uniformity().diagnosis(QUAD4, Batch(None)) == {}


def test_what_reads_no_similarity_says_nothing():
    assert EmbeddingNorm().diagnosis(QUAD4, BATCH) == {}


def test_jsd_of_cosines_by_hand():
    said = Compared(InBatch(), jsd).diagnosis(QUAD4, BATCH)
    same = [math.cos(math.radians(60)), 0.0]
    expected = sum(1 / (1 + math.exp(s)) for s in same) / 2
    assert said["pull"] == pytest.approx(expected)
