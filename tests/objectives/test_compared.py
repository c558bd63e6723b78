"""Compared: a comparison, perhaps mined, and a loss; what it refuses, what learns, its slopes."""

import math
import warnings
from functools import partial

import pytest
import torch
from quad4 import LABEL4, LABELS, QUAD4, in_batch, random_batch

from nearkin import mining
from nearkin.compare import AcrossViews, Centers, Classifier, InBatch, Memory, Proxies
from nearkin.core import Batch, Comparison, Terms, home
from nearkin.losses.bounds import jsd
from nearkin.losses.classification import cosface, cross_entropy, spce
from nearkin.losses.hinges import sigmoid
from nearkin.losses.pairwise import contrastive, infonce, multi_similarity
from nearkin.losses.proxies import proxy_anchor
from nearkin.losses.triplets import triplet
from nearkin.objectives import compared
from nearkin.objectives.base import Objective
from nearkin.objectives.compared import Compared


def labelled(label):
    return Batch(None, label=torch.as_tensor(label))


def test_it_scores_its_comparison():
    objective = Compared(InBatch(), multi_similarity)
    assert objective(QUAD4, labelled(LABEL4)).total.item() == pytest.approx(0.6846149190)
    assert objective.compare.closeness == "cosine"
    assert objective.needs == ("label",)
    assert Compared(AcrossViews(), infonce).needs == ("view", "pair")


def test_it_takes_the_losses_own_closeness_unless_another_was_asked_for():
    assert Compared(Classifier(2, 2), cross_entropy).compare.closeness == "inner"
    assert Compared(InBatch("euclidean"), contrastive).compare.closeness == "euclidean"
    assert Compared(InBatch(), lambda c: Terms()).compare.closeness == "cosine"


def test_mining_stands_between_the_comparison_and_the_loss():
    z, label = random_batch(LABELS["unbalanced"])
    objective = Compared(InBatch(), triplet, mining.hard)
    expected = triplet(mining.hard(in_batch(z, label))).total
    torch.testing.assert_close(objective(z, labelled(label)).total, expected)


@pytest.mark.parametrize(
    ("compare", "loss", "said"),
    [
        (InBatch(), cross_entropy, "cross_entropy needs one column a class, but in_batch gives"),
        (InBatch(), partial(proxy_anchor, alpha=8.0), "proxy_anchor needs .*; use proxies"),
        (
            Proxies(2, 2),
            infonce,
            "infonce needs rows of data as columns, but proxies gives classes",
        ),
        (Memory(2), spce, "spce needs one column a class, but memory gives rows; use centers"),
    ],
)
def test_a_comparison_of_the_other_kind_is_refused(compare, loss, said):
    with pytest.raises(ValueError, match=said):
        Compared(compare, loss)


@pytest.mark.parametrize(
    ("compare", "loss"), [(Proxies(2, 2), cosface), (Classifier(2, 2), cross_entropy)]
)
def test_columns_of_classes_are_not_mined(compare, loss):
    said = f"rows compared with rows, but {loss.__name__} compares with {compare.name}; leave"
    for chosen in (mining.hard, partial(mining.multi_similarity, epsilon=0.2), lambda c: c):
        with pytest.raises(ValueError, match=said):
            Compared(compare, loss, chosen)
    Compared(compare, loss, mining.all)


def test_mining_must_return_a_comparison():
    def picks(c):
        return c.same

    for own, name in ((picks, "picks"), (partial(picks), "picks")):
        with pytest.raises(ValueError, match=f"{name} returned Tensor; a mining returns"):
            Compared(InBatch(), infonce, own)(QUAD4, labelled(LABEL4))


@pytest.mark.parametrize("compare", [InBatch(), Proxies(2, 2)])
def test_a_loss_without_a_home_goes_anywhere(compare):
    def own(c):
        return Terms(tightness=-c.similarity[c.same].mean())

    value = Compared(compare.double(), own)(QUAD4, labelled(LABEL4))
    assert value.total.isfinite()


def test_a_batch_without_a_positive_pair_is_told_of_once():
    objective = Compared(InBatch(), infonce)
    batch = labelled([0, 1, 2, 3])
    with pytest.warns(UserWarning, match="a batch holds no positive pair"):
        objective(QUAD4, batch)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert objective(QUAD4, batch).total.item() == 0


def test_a_row_alone_in_its_class_is_no_news_for_a_classifier():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        said = Compared(Classifier(4, 2).double(), cross_entropy)(QUAD4, labelled([0, 1, 2, 3]))
    assert said.total.item() == pytest.approx(math.log(4))


def test_the_memory_takes_the_batch_in_after_the_turn():
    objective = Compared(Memory(2, 8).double(), infonce)
    z = QUAD4.clone().requires_grad_()
    for turn in objective.turns(z, labelled(LABEL4)):
        assert turn.learns == ("encoder", "objective")
        assert int(objective.compare.written) == 0
    assert int(objective.compare.written) == 4
    assert not objective.compare.kept.requires_grad


# --- settings that learn


@home("in_batch", "cosine")
def margin_of(c: Comparison, *, beta: torch.Tensor | float = 1.0, scale: float = 1.0) -> Terms:
    wide = beta[c.anchor_label][:, None] if isinstance(beta, torch.Tensor) and beta.ndim else beta
    return Terms(other={"joint": scale * ((c.distance - wide) * c.same).sum()})


def test_a_setting_that_learns_is_a_parameter_of_the_objective():
    objective = Compared(InBatch(), margin_of, learn={"beta": {"start": 1.2}})
    assert [(k, p.item()) for k, p in objective.named_parameters()] == [
        ("learned.beta", pytest.approx(1.2))
    ]
    objective(QUAD4, labelled(LABEL4)).total.backward()
    assert objective.learned["beta"].grad.item() == -4
    per_class = {"beta": {"start": 1.2, "per": "class"}}
    many = Compared(InBatch(), partial(margin_of, scale=2.0), learn=per_class, classes=3)
    many(QUAD4, labelled(LABEL4)).total.backward()
    assert many.learned["beta"].grad.tolist() == [-4, -4, 0]


def test_a_temperature_learns_in_a_loss_of_the_house():
    objective = Compared(InBatch(), infonce, learn={"temperature": {"start": 0.1}})
    expected = infonce(in_batch(QUAD4, LABEL4)).total.item()
    value = objective(QUAD4, labelled(LABEL4)).total
    assert value.item() == pytest.approx(expected, rel=1e-6)
    value.backward()
    assert objective.learned["temperature"].grad.item() != 0


@pytest.mark.parametrize(
    ("learn", "classes", "said"),
    [
        ({"beta": {"begin": 1.0}}, None, "learn.beta takes start and per, not begin"),
        ({"beta": {"start": 1.0, "of": 2}}, None, "learn.beta takes start and per, not of, start"),
        ({"beta": {"start": 1.0, "per": "row"}}, None, "per must be all or class, not 'row'"),
        ({"beta": {"start": 1.0, "per": "class"}}, None, "say how many with classes"),
        ({"betta": {"start": 1.0}}, None, "learn.betta: the loss has no such setting.*'beta'"),
        ({"xyz": {"start": 1.0}}, None, "no such setting; known: beta, scale"),
        ({"scale": {"start": 1.0}}, None, "scale as a fixed number; those that learn: beta"),
        ({"beta": 1.2}, None, r"learn.beta takes start and per, not 1.2; write \{start: 1.2\}"),
        ({"beta": {"start": "x"}}, None, "learn.beta.start must be a finite number, not 'x'"),
        ({"beta": {"start": True}}, None, "must be a finite number, not True"),
        ({"beta": {"start": math.inf}}, None, "must be a finite number, not inf"),
    ],
)
def test_a_wrong_wish_to_learn_is_named(learn, classes, said):
    with pytest.raises(ValueError, match=said):
        Compared(InBatch(), margin_of, learn=learn, classes=classes)


def test_a_loss_of_numbers_alone_learns_nothing():
    with pytest.raises(ValueError, match="margin as a fixed number; none of its settings learns"):
        Compared(InBatch(), contrastive, learn={"margin": {"start": 1.0}})


def test_a_setting_without_an_annotation_may_learn():
    def own(c, speed=1.0):
        return Terms(tightness=speed * c.similarity.sum())

    objective = Compared(InBatch(), own, learn={"speed": {"start": 2}})
    objective(QUAD4, labelled(LABEL4)).total.backward()
    assert objective.learned["speed"].grad.item() != 0


@pytest.mark.parametrize("loss", [infonce, sigmoid])
def test_a_loss_that_takes_one_value_for_all_refuses_one_for_each_class(loss):
    key = "temperature" if loss is infonce else "bias"
    learn = {key: {"start": 0.1, "per": "class"}}
    with pytest.raises(ValueError, match=f"takes one {key} for all.*set per: all"):
        Compared(InBatch(), loss, learn=learn, classes=3)


def test_a_value_for_each_class_needs_a_comparison_by_classes():
    learn = {"beta": {"start": 1.2, "per": "class"}}
    with pytest.raises(ValueError, match="across_views reads no classes; set per: all"):
        Compared(AcrossViews(), margin_of, learn=learn, classes=3)
    for compare in (InBatch(), Memory(2), Proxies(3, 2)):
        assert len(Compared(compare, margin_of_rows, learn=learn, classes=3).learned["beta"]) == 3


def margin_of_rows(c: Comparison, *, beta: torch.Tensor | float = 1.0) -> Terms:
    wide = beta[c.anchor_label] if isinstance(beta, torch.Tensor) else beta
    return Terms(other={"joint": wide.sum() - c.similarity.sum()})


def test_a_loss_that_takes_anything_may_learn_anything():
    def own(c, **settings):
        return Terms(tightness=settings["speed"] * c.similarity.sum())

    objective = Compared(InBatch(), own, learn={"speed": {"start": 2}})
    objective(QUAD4, labelled(LABEL4)).total.backward()
    assert objective.learned["speed"].grad.item() != 0


# --- diagnosis


def test_pull_and_push_of_contrastive_by_hand():
    # d² = 2 - 2s: each same pair has slope -2/4; of the different ones only rows 1 and 2, at
    # distance .5176, are nearer than the margin: slope 2 (1 - d)/d over 4.
    seen = Compared(InBatch(), contrastive).diagnosis(QUAD4, labelled(LABEL4))
    d = 0.5176380902
    assert seen["pull"] == pytest.approx(4 * 2 / 4)
    assert seen["push"] == pytest.approx(2 * 2 * (1 - d) / d / 4)


@pytest.mark.parametrize("loss", [infonce, jsd, triplet, multi_similarity])
def test_pull_and_push_are_slopes_along_the_similarity(loss):
    z, label = random_batch(LABELS["unbalanced"])
    seen = Compared(InBatch(), loss).diagnosis(z, labelled(label))
    assert seen["pull"] > 0
    assert seen["push"] > 0
    if loss is infonce:
        assert seen["pull"] == pytest.approx(seen["push"])


@pytest.mark.parametrize(
    "objective",
    [
        Compared(InBatch(), triplet, mining.semi_hard),
        Compared(Classifier(4, 5).double(), cross_entropy),
        Compared(Centers("sums"), spce),
        Compared(Proxies(4, 5).double(), proxy_anchor),
    ],
)
def test_every_comparison_can_be_diagnosed_without_a_trace(objective):
    z, label = random_batch(LABELS["unbalanced"])
    with torch.no_grad():
        seen = objective.diagnosis(z, labelled(label))
    assert seen["pull"] > 0
    assert seen["push"] > 0
    assert all(parameter.grad is None for parameter in objective.parameters())


def test_a_loss_that_reads_no_similarity_neither_pulls_nor_pushes():
    objective = Compared(InBatch(), lambda c: Terms())
    assert objective.diagnosis(QUAD4, labelled(LABEL4)) == {"pull": 0.0, "push": 0.0}


def test_comparisons_too_large_to_watch_are_not(monkeypatch):
    monkeypatch.setattr(compared, "WATCHED", 15)
    assert Compared(InBatch(), infonce).diagnosis(QUAD4, labelled(LABEL4)) == {}


def test_an_objective_must_say_its_forward():
    bare = Objective()
    with pytest.raises(TypeError, match="Objective says no forward"):
        next(bare.turns(QUAD4, labelled(LABEL4)))
    assert bare.learners() == {"objective": bare}
    assert bare.diagnosis(QUAD4, labelled(LABEL4)) == {}
