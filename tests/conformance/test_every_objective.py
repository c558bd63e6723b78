"""What every objective must hold, found by scanning the catalog: a new one is covered at once."""

import copy
import inspect
import json

import pytest
import torch
from quad4 import LABELS, random_batch

from nearkin import catalog
from nearkin.config import build
from nearkin.core import Batch, Terms, Turn
from nearkin.objectives.base import Objective

OBJECTIVES = catalog.scan(catalog.kind_named("objective"))
DIM, CLASSES = 5, 6
FACTS = {"classes": CLASSES, "dim": DIM}

PAIRS = {"compared": {"compare": {"in_batch": {}}, "loss": {"infonce": {}}}}
CLASSIFIER = {"compared": {"compare": {"classifier": {}}, "loss": {"cross_entropy": {}}}}

# Nodes of a recipe. A member that is not named here must be built from its defaults.
EXAMPLES = {
    "pairs": PAIRS,
    "classifier": CLASSIFIER,
    "memory": {"compared": {"compare": {"memory": {"size": 32}}, "loss": {"supcon": {}}}},
    "mined": {"compared": {**PAIRS["compared"], "mining": {"semi_hard": {}}}},
    "learned": {"compared": {**PAIRS["compared"], "learn": {"temperature": {"start": 0.1}}}},
    "pce": {"pce": {"lam": 0.5}},
    "rankmi": {"rankmi": {}},
    "rankmi of all pairs": {"rankmi": {"k": 2, "warmup": 1, "margin": None, "cutoff": None}},
    "across_views": {"compared": {"compare": {"across_views": {}}, "loss": {"infonce": {}}}},
    "bound": {"bound": {"compare": {"proxies": {}}, "loss": {"jsd": {}}, "critic": {"linear": {}}}},
    "bound_in_turns": {
        "bound": {
            "compare": {"across_views": {"anchors": "both"}},
            "loss": {"infonce": {}},
            "critic": {"separable": {"width": 8}},
            "critic_steps": 2,
        }
    },
    "sum": {
        "sum": {
            "parts": {
                "one": CLASSIFIER,
                "two": {"jensen_shannon": {"width": 8}},
                "three": {"alternating_jensen_shannon": {"width": 8}},
                "four": {"rankmi": {"width": 8}},
            },
            "weights": {"two": 0.1},
        }
    },
}
SHOWN = {next(iter(node)) for node in EXAMPLES.values()}
EXAMPLES |= {name: {name: {}} for name in OBJECTIVES if name not in SHOWN}


def made(name, seed=0) -> Objective:
    torch.manual_seed(seed)
    return build(EXAMPLES[name], "objective", FACTS, "objective").double()


def batches(count=6):
    for seed in range(count):
        z, label = random_batch(LABELS["shuffled"][:10], DIM, seed=seed)
        place = torch.arange(10)
        yield z, Batch(None, label=label, view=place % 2, pair=place // 2)


def train(objective, steps, skip=0):
    """A small encoder and the objective through some batches; each turn moves whom it names."""
    torch.manual_seed(1)
    encoder = torch.nn.Linear(DIM, DIM).double()
    learners = {"encoder": encoder, **objective.learners()}
    for x, batch in list(batches())[skip : skip + steps]:
        for turn in objective.turns(encoder(x), batch):
            assert isinstance(turn, Turn)
            assert set(turn.learns) <= set(learners)
            parameters = [p for name in turn.learns for p in learners[name].parameters()]
            slopes = torch.autograd.grad(turn.terms.total, parameters, allow_unused=True)
            with torch.no_grad():
                for parameter, slope in zip(parameters, slopes, strict=True):
                    if slope is not None:
                        parameter -= 0.05 * slope
    return objective


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("name", OBJECTIVES)
def test_it_has_an_example_and_says_what_it_is(name):
    assert any(name in node for node in EXAMPLES.values())
    assert inspect.getdoc(OBJECTIVES[name])


@pytest.mark.parametrize("name", EXAMPLES)
class TestEvery:
    def test_learners_own_disjoint_parameters_all_of_them(self, name):
        objective = made(name)
        owned = [id(p) for module in objective.learners().values() for p in module.parameters()]
        assert len(owned) == len(set(owned))
        assert set(owned) == {id(p) for p in objective.parameters()}
        assert objective.learners()

    def test_turns_name_known_learners_and_take_the_encoder_along(self, name):
        objective = made(name)
        known = {"encoder", *objective.learners()}
        named = []
        for z, batch in batches():
            for turn in objective.turns(z.requires_grad_(), batch):
                assert set(turn.learns) <= known
                assert len(set(turn.learns)) == len(turn.learns) > 0
                named += turn.learns
        moved = {k for k, module in objective.learners().items() if list(module.parameters())}
        assert moved | {"encoder"} <= set(named)

    def test_a_turn_without_the_encoder_does_not_reach_it(self, name):
        objective = made(name)
        for z, batch in batches():
            z.requires_grad_()
            for turn in objective.turns(z, batch):
                z.grad = None
                turn.terms.total.backward()
                assert (z.grad is not None) == ("encoder" in turn.learns)

    def test_no_grad_mode_and_no_autocast_is_left_open(self, name):
        objective = made(name)
        for z, batch in batches(3):
            for _ in objective.turns(z.requires_grad_(), batch):
                assert torch.is_grad_enabled()
                assert not torch.is_autocast_enabled("cpu")

    def test_forward_gives_terms_or_none_and_no_terms_is_no_turn(self, name):
        objective = made(name)
        for z, batch in batches():
            z.requires_grad_()
            before = copy.deepcopy(objective)
            torch.manual_seed(5)  # what an objective draws, the loop seeds for each step
            encoders = [t for t in objective.turns(z, batch) if "encoder" in t.learns]
            torch.manual_seed(5)
            for _ in before.before(z.detach(), batch):
                pass
            terms = before(z, batch)
            assert terms is None or isinstance(terms, Terms)
            assert len(encoders) == (terms is not None)
            if terms is not None:
                torch.testing.assert_close(encoders[0].terms.total, terms.total)
                assert terms.total.requires_grad
                assert terms.total.isfinite()

    def test_state_survives_saving_and_loading(self, name):
        whole = train(made(name), 5)
        first = train(made(name), 5)
        for key, value in whole.state_dict().items():
            assert torch.equal(value, first.state_dict()[key])
        second = made(name, seed=9)
        second.load_state_dict(copy.deepcopy(first.state_dict()))
        whole, second = train(whole, 1, skip=5), train(second, 1, skip=5)
        for key, value in whole.state_dict().items():
            assert torch.equal(value, second.state_dict()[key]), key

    def test_buffers_never_change_their_shape(self, name):
        objective = made(name)
        shapes = {key: value.shape for key, value in objective.state_dict().items()}
        train(objective, 4)
        assert {key: value.shape for key, value in objective.state_dict().items()} == shapes

    def test_its_columns_are_enough(self, name):
        objective = made(name)
        z, batch = next(iter(batches()))
        few = Batch(None, **{key: batch[key] for key in objective.needs})
        terms = objective(z.requires_grad_(), few)
        assert terms is None or terms.total.isfinite()

    def test_what_it_records_is_plain(self, name):
        objective = train(made(name), 3)
        said = objective.recorded()
        assert json.loads(json.dumps(said, allow_nan=False)) == said

    def test_diagnosis_changes_nothing(self, name):
        objective = made(name)
        z, batch = next(iter(batches()))
        state = copy.deepcopy(objective.state_dict())
        seen = objective.diagnosis(z, batch)
        assert all(isinstance(value, float) for value in seen.values())
        for key, value in objective.state_dict().items():
            assert torch.equal(value, state[key])
        assert all(parameter.grad is None for parameter in objective.parameters())
