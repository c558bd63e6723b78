"""Optimizers by learner, their groups, and the check that nobody is left out."""

import pytest
import torch
from torch import nn

from nearkin.learners import chosen, held, optimizers_of


def sgd(groups):
    return torch.optim.SGD(groups, lr=0.1, momentum=0.9, weight_decay=0.01)


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
        self.head = nn.Linear(2, 3)
        self.temperature = nn.Parameter(torch.tensor(1.0))


def names_of(optimizer, module, key=lambda group: True):
    held_there = {id(p) for g in optimizer.param_groups if key(g) for p in g["params"]}
    return {name for name, p in module.named_parameters() if id(p) in held_there}


def test_parameters_of_one_dimension_or_none_have_no_weight_decay():
    encoder = Encoder()
    optimizer = optimizers_of({"encoder": encoder}, {"default": sgd})["encoder"]
    decayed = names_of(optimizer, encoder, lambda g: g["weight_decay"] == 0.01)
    bare = names_of(optimizer, encoder, lambda g: g["weight_decay"] == 0)
    assert decayed == {"trunk.0.weight", "head.weight"}
    assert bare == {"trunk.0.bias", "trunk.1.weight", "trunk.1.bias", "head.bias", "temperature"}


def test_factors_scale_the_rates_of_the_names_that_fit_and_the_last_counts():
    encoder = Encoder()
    factors = {"encoder.*": 0.5, "encoder.trunk.*": 0.1, "*.temperature": 3.0}
    optimizer = optimizers_of({"encoder": encoder}, {"default": sgd}, factors)["encoder"]
    rates = {
        name: group["lr"]
        for group in optimizer.param_groups
        for name in names_of(optimizer, encoder, lambda g, group=group: g is group)
    }
    assert rates["trunk.0.weight"] == rates["trunk.1.bias"] == pytest.approx(0.01)
    assert rates["head.weight"] == rates["head.bias"] == pytest.approx(0.05)
    assert rates["temperature"] == pytest.approx(0.3)
    assert all(g["initial_lr"] == g["lr"] for g in optimizer.param_groups)
    assert all("factor" not in g for g in optimizer.param_groups)


def test_a_part_of_a_learner_may_have_an_optimizer_of_its_own():
    encoder = Encoder()
    makers = {"default": sgd, "encoder.head": lambda groups: torch.optim.AdamW(groups, lr=0.5)}
    optimizers = optimizers_of({"encoder": encoder}, makers)
    assert set(optimizers) == {"encoder", "encoder.head"}
    assert isinstance(optimizers["encoder.head"], torch.optim.AdamW)
    assert names_of(optimizers["encoder.head"], encoder) == {"head.weight", "head.bias"}
    assert "head.weight" not in names_of(optimizers["encoder"], encoder)
    held({"encoder": encoder}, encoder, optimizers)


def test_the_longest_name_of_a_part_holds_its_parameters():
    encoder = Encoder()
    makers = {"default": sgd, "encoder.trunk": sgd, "encoder.trunk.1": sgd}
    optimizers = optimizers_of({"encoder": encoder}, makers)
    assert names_of(optimizers["encoder.trunk.1"], encoder) == {"trunk.1.weight", "trunk.1.bias"}
    assert names_of(optimizers["encoder.trunk"], encoder) == {"trunk.0.weight", "trunk.0.bias"}


def test_a_learner_takes_its_own_optimizer_then_that_of_its_last_name_then_the_default():
    learners = {
        "encoder": nn.Linear(1, 1),
        "a.critic": nn.Linear(1, 1),
        "b.critic": nn.Linear(1, 1),
    }
    makers = {
        "default": lambda g: torch.optim.SGD(g, lr=1.0),
        "critic": lambda g: torch.optim.SGD(g, lr=2.0),
        "b.critic": lambda g: torch.optim.SGD(g, lr=3.0),
    }
    optimizers = optimizers_of(learners, makers)
    rates = {name: o.param_groups[0]["lr"] for name, o in optimizers.items()}
    assert rates == {"encoder": 1.0, "a.critic": 2.0, "b.critic": 3.0}


def test_learners_without_parameters_need_no_optimizer():
    makers = {"default": sgd, "objective": sgd}
    optimizers = optimizers_of({"encoder": nn.Linear(1, 1), "objective": nn.Identity()}, makers)
    assert set(optimizers) == {"encoder"}


def test_frozen_parameters_have_no_optimizer():
    encoder = Encoder()
    encoder.trunk.requires_grad_(False)
    optimizers = optimizers_of({"encoder": encoder}, {"default": sgd})
    assert names_of(optimizers["encoder"], encoder) == {"head.weight", "head.bias", "temperature"}
    held({"encoder": encoder}, encoder, optimizers)


@pytest.mark.parametrize("key", ["encodr", "encoder.tail", "critic"])
def test_an_optimizer_of_nobody_raises_and_names_the_learners(key):
    learners = {"encoder": Encoder(), "objective": nn.Identity()}
    with pytest.raises(ValueError, match=f"optim.{key} names no learner.*encoder, objective"):
        optimizers_of(learners, {"default": sgd, key: sgd})


def test_a_learner_without_an_optimizer_and_no_default_raises():
    with pytest.raises(ValueError, match=r"no optimizer is named for the learner 'encoder'"):
        optimizers_of({"encoder": Encoder()}, {"objective": sgd})


def test_a_parameter_that_no_optimizer_holds_raises():
    method = nn.ModuleDict({"encoder": nn.Linear(2, 2), "forgotten": nn.Linear(2, 2)})
    learners = {"encoder": method["encoder"]}
    optimizers = optimizers_of(learners, {"default": sgd})
    with pytest.raises(ValueError, match=r"forgotten\.weight would never learn"):
        held(learners, method, optimizers)
    method["forgotten"].requires_grad_(False)
    held(learners, method, optimizers)


def test_learners_that_share_a_parameter_raise():
    shared = nn.Linear(2, 2)
    learners = {"encoder": nn.Sequential(shared), "objective": nn.Sequential(shared)}
    with pytest.raises(ValueError, match=r"objective\.0\.weight belongs to the learner 'encoder'"):
        held(learners, nn.ModuleDict(learners), {})


def test_naming_a_learner_chooses_its_parts_too_and_each_once():
    encoder = Encoder()
    optimizers = optimizers_of(
        {"encoder": encoder, "encoderlike": nn.Linear(1, 1)},
        {"default": sgd, "encoder.head": sgd},
    )
    assert chosen(optimizers, ["encoder"]) == [optimizers["encoder.head"], optimizers["encoder"]]
    assert chosen(optimizers, ["encoder", "encoder.head"]) == chosen(optimizers, ["encoder"])
    assert chosen(optimizers, ["encoder.head"]) == [optimizers["encoder.head"]]


def test_a_pattern_of_factors_that_fits_nothing_is_an_error():
    with pytest.raises(ValueError, match=r"'encoder\.stem\.\*' fits no parameter; one of them is"):
        optimizers_of({"encoder": nn.Linear(2, 3)}, {"default": sgd}, {"encoder.stem.*": 0.1})


def test_an_optimizer_of_what_is_frozen_is_told_so():
    encoder = Encoder()
    encoder.trunk.requires_grad_(False)
    with pytest.raises(ValueError, match=r"optim\.encoder\.trunk is for what is frozen and learns"):
        optimizers_of({"encoder": encoder}, {"default": sgd, "encoder.trunk": sgd})
    encoder.trunk[0].requires_grad_(True)
    assert set(optimizers_of({"encoder": encoder}, {"default": sgd, "encoder.trunk": sgd})) == {
        "encoder",
        "encoder.trunk",
    }
