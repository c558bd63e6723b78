"""Sum: weights, names, turns and notes of several objectives."""

import pytest
import torch
from quad4 import LABEL4, QUAD4, in_batch

from nearkin.compare import AcrossViews, Classifier, InBatch, Memory
from nearkin.core import Batch
from nearkin.losses.classification import cross_entropy
from nearkin.losses.pairwise import contrastive, infonce
from nearkin.losses.triplets import triplet
from nearkin.objectives.compared import Compared
from nearkin.objectives.jensen_shannon import AlternatingJensenShannon, JensenShannon
from nearkin.objectives.pce import PairwiseCrossEntropy
from nearkin.objectives.regularizers import EmbeddingNorm
from nearkin.objectives.sum import Sum

BATCH = Batch(None, label=LABEL4)


def pairs(loss=contrastive):
    return Compared(InBatch(), loss)


def test_a_sum_adds_by_weight_and_keeps_the_parts_apart():
    whole = Sum({"a": pairs(), "b": pairs(triplet)}, {"b": 0.1})
    one, two = contrastive(in_batch(QUAD4, LABEL4)), triplet(in_batch(QUAD4, LABEL4))
    terms = whole(QUAD4, BATCH)
    torch.testing.assert_close(terms.total, one.total + 0.1 * two.total)
    torch.testing.assert_close(terms.tightness, one.tightness)
    assert list(terms.other) == ["b.joint"]
    torch.testing.assert_close(terms.other["b.joint"], 0.1 * two.total)


def test_equal_keys_of_two_parts_do_not_mix():
    whole = Sum({"a": pairs(triplet), "b": pairs(triplet)}, {"a": 2.0})
    assert sorted(whole(QUAD4, BATCH).other) == ["a.joint", "b.joint"]


@pytest.mark.parametrize(
    ("parts", "weights", "said"),
    [
        ({}, None, "a sum needs at least one part"),
        ({"a": pairs()}, {"b": 1.0}, "a weight for 'b', but the parts are a"),
    ],
)
def test_wrong_parts_are_named(parts, weights, said):
    with pytest.raises(ValueError, match=said):
        Sum(parts, weights)


def test_columns_of_all_parts_are_needed():
    whole = Sum({"a": pairs(), "b": Compared(AcrossViews(), infonce)})
    assert whole.needs == ("label", "pair", "view")


def test_own_turns_come_first_then_one_common_turn():
    whole = Sum(
        {
            "critic": JensenShannon(critic_steps=2, width=8),
            "classes": Compared(Classifier(2, 2), cross_entropy),
        }
    ).double()
    z = QUAD4.clone().requires_grad_()
    learns = [turn.learns for turn in whole.turns(z, BATCH)]
    assert learns == [("critic.critic",)] * 2 + [("encoder", "classes.objective")]
    assert sorted(whole.learners()) == ["classes.objective", "critic.critic"]


def test_a_silent_part_leaves_the_turn_to_the_others_and_none_is_no_turn():
    alone = Sum({"rank": AlternatingJensenShannon(critic_steps=1, width=8)}).double()
    both = Sum(
        {"rank": AlternatingJensenShannon(critic_steps=1, width=8), "pairs": pairs()}
    ).double()
    learns = {"alone": [], "both": []}
    for _ in range(4):
        for key, whole in (("alone", alone), ("both", both)):
            z = QUAD4.clone().requires_grad_()
            learns[key] += [turn.learns for turn in whole.turns(z, BATCH)]
    encoder, critic = ("encoder",), ("rank.critic",)
    assert learns["alone"] == [encoder, critic, encoder, critic]
    common = ("encoder", "pairs.objective")
    assert learns["both"] == [common, critic, common, common, critic, common]
    assert int(both.parts["rank"].time) == 4


def test_learners_of_a_silent_part_stay_out_of_the_common_turn():
    class Silent(Compared):
        def forward(self, z, batch):
            return None

    whole = Sum({"silent": Silent(InBatch(), contrastive), "pairs": pairs()})
    (turn,) = whole.turns(QUAD4.clone().requires_grad_(), BATCH)
    assert turn.learns == ("encoder", "pairs.objective")
    assert sorted(whole.learners()) == ["pairs.objective", "silent.objective"]


def test_parts_take_their_notes():
    whole = Sum({"kept": Compared(Memory(2, 8).double(), infonce), "pairs": pairs()})
    for _ in whole.turns(QUAD4.clone().requires_grad_(), BATCH):
        pass
    assert int(whole.parts["kept"].compare.written) == 4


def test_pull_and_push_add_by_weight():
    one = pairs().diagnosis(QUAD4, BATCH)
    two = pairs(infonce).diagnosis(QUAD4, BATCH)
    whole = Sum({"a": pairs(), "b": pairs(infonce), "c": EmbeddingNorm()}, {"b": 0.5})
    seen = whole.diagnosis(QUAD4, BATCH)
    for key in ("pull", "push"):
        assert seen[key] == pytest.approx(one[key] + 0.5 * two[key])


def test_what_is_no_slope_is_noted_by_its_part_as_it_is():
    z = QUAD4.float()
    parts = {name: PairwiseCrossEntropy(2, 2, lam=0.5) for name in ("a", "b")}
    seen = Sum({**parts, "c": pairs()}, {"a": 3.0, "c": 2.0}).diagnosis(z, BATCH)
    assert sorted(seen) == ["a.lam", "b.lam", "pull", "push"]
    assert seen["a.lam"] == seen["b.lam"] == 0.5
    pull = 3 * parts["a"].diagnosis(z, BATCH)["pull"] + parts["b"].diagnosis(z, BATCH)["pull"]
    assert seen["pull"] == pytest.approx(pull + 2 * pairs().diagnosis(z, BATCH)["pull"])


@pytest.mark.parametrize("name", ["a.b", "two words", "keys"])
def test_a_part_needs_a_plain_name(name):
    with pytest.raises(ValueError, match="cannot name a part of a sum"):
        Sum({name: pairs()})


def test_the_log_shows_a_sum_and_what_each_part_gave_to_it():
    whole = Sum({"a": pairs(), "b": pairs(triplet), "c": pairs()}, {"b": 0.1, "c": 3.0})
    one, two = contrastive(in_batch(QUAD4, LABEL4)), triplet(in_batch(QUAD4, LABEL4))
    said = whole(QUAD4, BATCH).floats()
    assert said["a.tightness"] == pytest.approx(one.tightness.item())
    assert said["c.contrast"] == pytest.approx(3 * one.contrast.item())
    assert said["b.joint"] == said["b.total"] == pytest.approx(0.1 * two.total.item())
    assert said["total"] == pytest.approx(said["a.total"] + said["b.total"] + said["c.total"])
    assert said["tightness"] == pytest.approx(said["a.tightness"] + said["c.tightness"])


def test_a_sum_in_a_sum_is_keyed_by_both():
    inner = Sum({"x": pairs(), "y": pairs(triplet)}, {"y": 2.0})
    said = Sum({"in": pairs(), "of": inner}, {"of": 0.5})(QUAD4, BATCH).floats()
    two = triplet(in_batch(QUAD4, LABEL4)).total.item()
    assert said["of.y.joint"] == said["of.y.total"] == pytest.approx(two)
    assert said["of.total"] == pytest.approx(said["of.x.total"] + said["of.y.total"])
    assert said["total"] == pytest.approx(said["in.total"] + said["of.total"])
