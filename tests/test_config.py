"""Recipes read, changed, checked, built and written, with small members of every kind."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim import Optimizer

from nearkin import catalog, config
from nearkin.catalog import Kind
from nearkin.config import RecipeError, build, build_train, complete, dump, load_recipe, resolve
from nearkin.core import Comparison, Loss, Terms

# The members


@dataclass
class Splits:
    count: int


def shapes(count: int = 3, folder: str | Path = Path("here")) -> Splits:
    if count < 1:
        raise ValueError(f"a data set of {count} items is none")
    return Splits(count)


Encoder = type("Encoder", (nn.Module,), {})
Compare = type("Compare", (nn.Module,), {})
Objective = type("Objective", (nn.Module,), {})
Sampler, Method = type("Sampler", (), {}), type("Method", (), {})
Cnn = type("Cnn", (Encoder,), {"name": "cnn"})
InBatch = type("InBatch", (Compare,), {"name": "in_batch"})
Mining = Callable[[Comparison], Comparison]


class Mlp(Encoder):
    name = "mlp"

    def __init__(self, image_size: int, dim: int = 64, layers: tuple[int, ...] = (32,)):
        super().__init__()
        self.image_size, self.dim, self.layers = image_size, dim, layers


class Uniform(Sampler):
    name = "uniform"

    def __init__(self, batch: int = 128):
        self.batch = batch


class Classifier(Compare):
    name = "classifier"

    def __init__(self, classes: int, dim: int, dropout: float = 0.0):
        super().__init__()
        self.classes, self.dim, self.dropout = classes, dim, dropout


Maybe = dict[str, dict[str, Any]] | None


class Compared(Objective):
    name = "compared"

    def __init__(
        self, compare: Compare, loss: Loss, mining: Mining | None = None, learn: Maybe = None
    ):
        super().__init__()
        self.compare, self.loss, self.mining, self.learn = compare, loss, mining, learn


class Sum(Objective):
    name = "sum"

    def __init__(self, parts: dict[str, Objective], weights: dict[str, float] | None = None):
        super().__init__()
        self.parts, self.weights = nn.ModuleDict(parts), weights


class Stack(Objective):
    name = "stack"

    def __init__(self, layers: list[Objective], mode: Literal["mean", "last"] = "mean"):
        super().__init__()
        self.layers = layers


class Rounds(Method):
    name = "rounds"

    def __init__(self, objective: Objective, rounds: int = 2): ...


def hard(c: Comparison, *, k: int = 1) -> Comparison: ...


def infonce(c: Comparison, *, temperature: float = 0.1) -> Terms:
    return Terms(tightness=torch.tensor(temperature))


def triplet(c: Comparison, *, margin: float = 0.2) -> Terms: ...


def learned(c: Comparison, *, beta: Tensor, alpha: float = 0.2) -> Terms:
    return Terms(tightness=beta * alpha)


def unbounded(c: Comparison, *, edge: float = math.inf, level: int = 2) -> Terms: ...


def sized(c: Comparison, *, classes: int, share: float) -> Terms:
    return Terms(tightness=torch.tensor(share * classes))


def sgd(parameters: Any, lr: float, momentum: float = 0, nesterov: bool = False) -> Optimizer:
    return torch.optim.SGD(parameters, lr=lr, momentum=momentum, nesterov=nesterov)


def adam(parameters: Any, *, lr: float = 1e-3) -> torch.optim.Adam: ...


def ramp(total: int, *, warmup: int = 100) -> Callable[[int], float]:
    return lambda step: min(step / warmup, 1.0)


def metric_names() -> list[tuple[str, str, str]]:
    return [(name, "", "") for name in ("recall@K", "map@r", "nmi")]


HERE = __name__
OF_TOTAL = Callable[[int], catalog.Schedule]
PAIRS, TERMS = "nearkin.core:Comparison", "nearkin.core:Terms"
TABLE = [
    Kind("recipe", "bundled.recipes", "recipes"),
    Kind("data", HERE, "datasets", "data set", returns=f"{HERE}:Splits"),
    Kind("encoder", HERE, "encoders", base=f"{HERE}:Encoder"),
    Kind("sampler", HERE, "samplers", base=f"{HERE}:Sampler"),
    Kind("objective", HERE, "objectives", base=f"{HERE}:Objective"),
    Kind("method", HERE, "methods", base=f"{HERE}:Method"),
    Kind("compare", HERE, "compares", "comparison", base=f"{HERE}:Compare"),
    Kind("mining", HERE, "mining", returns=PAIRS, first=PAIRS, waits=True),
    Kind("loss", HERE, "losses", returns=TERMS, first=PAIRS, waits=True),
    Kind("metric", HERE, "metrics", names="metric_names"),
    Kind("optimizer", HERE, "optimizers", "", "", "torch.optim:Optimizer", "parameters", True),
    Kind("schedule", HERE, "schedules", "", "", catalog.Schedule, "total", True, OF_TOTAL),
]

RECIPE = """\
# nearkin train small    cost: nothing
seed: 0
data: {shapes: {}}
encoder: {mlp: {dim: 32}}
sampler: uniform
objective:
  compared:
    compare: {classifier: {dropout: 1e-1}}
    loss: {infonce: {temperature: 5e-2}}
optim:
  default: {sgd: {lr: 0.05}}
  encoder.head: {sgd: {lr: 1}}
train: {epochs: 2, schedule: {ramp: {warmup: 5}}}
evaluate: [recall@1, map@r]
"""


@pytest.fixture(autouse=True)
def members_of_this_file(monkeypatch):
    table = {kind.name: kind for kind in TABLE}
    monkeypatch.setattr(catalog, "KINDS", table)
    monkeypatch.setattr(config, "KINDS", table)


@pytest.fixture(autouse=True)
def bundled(tmp_path, monkeypatch):
    """A package with the recipes `small` and `broken`; the working folder is empty."""
    folder = tmp_path / "packages" / "bundled" / "recipes"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").touch()
    (folder / "small.yaml").write_text(RECIPE)
    (folder / "broken.yaml").write_text("seed: 0\ndata: {shapes: {}\nencoder: mlp\n")
    monkeypatch.syspath_prepend(folder.parent.parent)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    yield folder
    sys.modules.pop("bundled", None)


def small(*overrides: str, **changes: Any) -> dict[str, Any]:
    return resolve({**load_recipe("small"), **changes}, overrides)


def refused(*overrides: str, **changes: Any) -> str:
    with pytest.raises(RecipeError) as error:
        small(*overrides, **changes)
    return str(error.value)


def no_build(node: Any, kind: str, where: str = "node", **facts: Any) -> str:
    with pytest.raises(RecipeError) as error:
        build(node, kind, facts, where)
    return str(error.value)


# Building


@pytest.mark.parametrize("node", ["uniform", {"uniform": {}}, {"uniform": None}])
def test_a_node_is_a_name_or_a_name_with_settings_or_with_null(node):
    assert build(node, "sampler", {}, "sampler").batch == 128


def test_arguments_that_are_kinds_are_built_by_the_same_rule():
    node = {
        "compared": {
            "compare": {"classifier": {"dropout": "1e-1"}},
            "loss": {"infonce": {"temperature": 1}},
            "mining": {"hard": {"k": 3}},
        }
    }
    made = build(node, "objective", {"classes": 7, "dim": 4}, "objective")
    assert isinstance(made, Compared)
    assert (made.compare.classes, made.compare.dim, made.compare.dropout) == (7, 4, 0.1)
    assert made.loss.func is infonce
    assert made.loss.keywords == {"temperature": 1.0}
    assert made.mining.keywords == {"k": 3}


def test_a_kind_that_may_be_absent_may_be_null():
    made = build({"compared": {"compare": "in_batch", "loss": "triplet", "mining": None}},
                 "objective", {}, "objective")  # fmt: skip
    assert made.mining is None
    assert no_build({"compared": {"compare": None, "loss": "triplet"}}, "objective").startswith(
        "node.compared.compare: expected one comparison, as name or {name: {setting: value}}, "
        "got null"
    )


def test_lists_and_dicts_of_a_kind_are_built_part_by_part():
    part = {"compared": {"compare": "in_batch", "loss": "triplet"}}
    made = build({"sum": {"parts": {"a": part, "b": part}, "weights": {"b": "1e-1"}}},
                 "objective", {}, "objective")  # fmt: skip
    assert list(made.parts) == ["a", "b"]
    assert made.weights == {"b": 0.1}
    assert len(build({"stack": {"layers": [part, part]}}, "objective", {}, "o").layers) == 2
    assert no_build({"sum": {"parts": [part]}}, "objective").startswith(
        "node.sum.parts: expected {name: ...} with one objective in each place"
    )
    assert "node.stack.layers.1: there is no objective" in no_build(
        {"stack": {"layers": [part, "comparred"]}}, "objective"
    )
    assert "expected a list [...]" in no_build({"stack": {"layers": part}}, "objective")


def test_functions_that_wait_become_partials_and_data_functions_are_called():
    loss = build({"infonce": {"temperature": 0.5}}, "loss", {}, "loss")
    assert isinstance(loss, functools.partial)
    assert float(loss(None).tightness) == 0.5
    optimizer = build({"sgd": {"lr": "5e-4"}}, "optimizer", {}, "optim.default")
    assert optimizer([nn.Parameter(torch.zeros(1))]).param_groups[0]["lr"] == 5e-4
    assert build("ramp", "schedule", {}, "train.schedule")(1000)(50) == 0.5
    assert build({"shapes": {"count": 5}}, "data", {}, "data") == Splits(5)


def test_a_function_of_ones_own_waits_for_what_the_recipe_cannot_say():
    loss = build("learned", "loss", {}, "loss")
    assert float(loss(None, beta=torch.tensor(2.0)).tightness) == pytest.approx(0.4)


def test_required_arguments_named_like_a_fact_are_filled_in_and_others_are_not():
    facts = {"image_size": 28, "dim": 5}
    made = build("mlp", "encoder", facts, "encoder")
    assert (made.image_size, made.dim) == (28, 64)
    assert build({"mlp": {"image_size": 8}}, "encoder", facts, "encoder").image_size == 8
    loss = build({"sized": {"share": 0.5}}, "loss", {"classes": 4}, "loss")
    assert float(loss(None).tightness) == 2.0


def test_missing_arguments_are_named():
    assert no_build("classifier", "compare", classes=3) == (
        "node.classifier needs 'dim', and no fact fills it in"
    )
    assert no_build("sized", "loss") == (
        "node.sized needs 'classes', 'share', and no fact fills it in"
    )
    assert "node.sgd needs 'lr'" in no_build("sgd", "optimizer")


def test_objects_that_are_built_pass_through():
    encoder = Mlp(3)
    assert build(encoder, "encoder", {}, "encoder") is encoder
    made = build({"compared": {"compare": InBatch(), "loss": infonce}}, "objective", {}, "o")
    assert made.loss is infonce
    assert no_build(nn.Linear(1, 1), "encoder").startswith(
        "node: expected one encoder, as name or {name: {setting: value}}, got Linear("
    )


def test_what_a_constructor_refuses_is_said_with_its_place():
    assert no_build({"shapes": {"count": 0}}, "data", "data") == (
        "data.shapes: a data set of 0 items is none"
    )


def test_own_code_is_built_when_trusted_and_checked_for_its_kind(tmp_path, monkeypatch):
    text = f"from {HERE} import Encoder\nclass Own(Encoder): pass\nclass Other: pass\n"
    (tmp_path / "own_code_of_a_user.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    own, other = "own_code_of_a_user:Own", "own_code_of_a_user:Other"
    assert "--trust-code" in no_build(own, "encoder")
    assert "own_code_of_a_user" not in sys.modules
    made = build(own, "encoder", {}, "encoder", trust_code=True)
    assert isinstance(made, Encoder)
    with pytest.raises(RecipeError, match=r"encoder.*Other made Other, which is no .*:Encoder"):
        build(other, "encoder", {}, "encoder", trust_code=True)


# Errors of names and settings


@pytest.mark.parametrize(
    ("node", "sentence"),
    [
        ("comparred", "node: there is no objective 'comparred'; did you mean 'compared'?"),
        ("zzz", "node: there is no objective 'zzz'; known: compared, stack, sum"),
        ({}, "node: expected one objective, got 0 (none)"),
        ({"sum": {}, "stack": {}}, "node: expected one objective, got 2 (sum, stack)"),
        ({3: {}}, "node: expected one objective by its name, got 3"),
        ({"sum": 3}, "node.sum: expected {setting: value}, got 3"),
        (4, "node: expected one objective, as name or {name: {setting: value}}, got 4"),
        ({"compared": {"compare": "in_batch", "loss": {"infonce": {"temprature": 1}}}},
         "node.compared.loss.infonce takes no 'temprature'; did you mean 'temperature'?"),
        ({"compared": {"compare": {"in_batch": {"size": 3}}, "loss": "triplet"}},
         "node.compared.compare.in_batch takes no 'size'; it takes no settings"),
        ({"compared": {"compare": "in_batch", "loss": {"triplet": {"margin": "wide"}}}},
         "node.compared.loss.triplet.margin: expected a number, got 'wide'"),
        ({"sum": {"parts": {}, "weights": {"b": float("nan")}}},
         "node.sum.weights.b: expected a finite number, got nan"),
        ({"stack": {"layers": [], "mode": "men"}},
         "node.stack.mode: expected 'mean' or 'last', got 'men'; did you mean 'mean'?"),
    ],
)  # fmt: skip
def test_an_error_says_where_what_and_what_instead(node, sentence):
    assert no_build(node, "objective") == sentence


# The whole recipe


def test_a_recipe_is_resolved_to_plain_checked_data():
    assert small() == {
        "seed": 0,
        "data": {"shapes": {}},
        "encoder": {"mlp": {"dim": 32}},
        "sampler": {"uniform": {}},
        "objective": {
            "compared": {
                "compare": {"classifier": {"dropout": 0.1}},
                "loss": {"infonce": {"temperature": 0.05}},
            }
        },
        "optim": {"default": {"sgd": {"lr": 0.05}}, "encoder.head": {"sgd": {"lr": 1.0}}},
        "train": {"epochs": 2, "schedule": {"ramp": {"warmup": 5}}},
        "evaluate": ["recall@1", "map@r"],
    }
    assert list(small()) == list(load_recipe("small"))


def test_resolving_leaves_the_given_recipe_alone():
    recipe = load_recipe("small")
    resolve(recipe, {"objective.compared.loss.infonce.temperature": 1, "optim.default": "adam"})
    assert recipe == load_recipe("small")


@pytest.mark.parametrize("key", ["data", "encoder", "sampler", "optim"])
def test_a_recipe_without_a_part_says_which(key):
    assert refused(f"{key}=null") == f"the recipe needs {key!r}"


def test_a_recipe_has_an_objective_or_a_method():
    rounds = {"rounds": {"objective": {"compared": {"compare": "in_batch", "loss": "triplet"}}}}
    sentence = "a recipe has either an objective or a method; set the other to null"
    assert refused(method=rounds) == sentence
    assert refused("objective=null") == sentence
    assert small("objective=null", method=rounds)["method"]["rounds"]["objective"]["compared"]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"trian": {}}, "a recipe takes no 'trian'; did you mean 'train'?"),
        ({"seed": "0"}, "seed: expected an integer, got '0'"),
        ({"seed": -1}, "seed: expected at least 0, got -1"),
        ({"seed": True}, "seed: expected an integer, got True"),
        ({"optim": {"objective": {"adam": {}}}},
         "optim needs 'default', the optimizer of every learner not named in it"),
        ({"optim": {"default": "adm"}},
         "optim.default: there is no optimizer 'adm'; did you mean 'adam'?"),
        ({"evaluate": ["recal@10"]},
         "evaluate: 'recal@10' is no metric; did you mean 'recall@10'?"),
        ({"evaluate": ["recall@0"]}, "evaluate: 'recall@0' is no metric; "
         "did you mean 'recall@10'?"),
        ({"evaluate": ["recall@K"]}, "evaluate: 'recall@K' is no metric; "
         "did you mean 'recall@10'?"),
        ({"evaluate": "map@r"}, "evaluate: expected a list, got 'map@r'"),
        ({"train": {"epoch": 3}}, "train takes no 'epoch'; did you mean 'epochs'?"),
        ({"train": {"epochs": 0}}, "train.epochs: expected at least 1, got 0"),
        ({"train": {"epochs": 2.0}}, "train.epochs: expected an integer, got 2.0"),
        ({"train": {"workers": 0}}, "train.workers: expected at least 1, got 0"),
        ({"train": {"clip": 0}}, "train.clip: expected more than 0, got 0"),
        ({"train": {"early_stop": 0}}, "train.early_stop: expected at least 1, got 0"),
        ({"train": {"freeze_batchnorm": 1}},
         "train.freeze_batchnorm: expected true or false, got 1"),
        ({"train": {"factors": {"encoder.*": -1}}},
         "train.factors.encoder.*: expected at least 0, got -1"),
        ({"train": {"precision": "bfloat"}}, "train.precision: expected 'float32' or 'bfloat16', "
         "got 'bfloat'; did you mean 'bfloat16'?"),
        ({"train": {"select": "best"}}, "train.select: expected 'validation', 'last' or "
         "'best_on_test', got 'best'"),
        ({"train": {"select_by": "map@"}},
         "train.select_by: 'map@' is no metric; did you mean 'map@r'?"),
        ({"train": {"schedule": "rampp"}},
         "train.schedule: there is no schedule 'rampp'; did you mean 'ramp'?"),
        ({"train": {"early_stop": 3, "select": "last"}},
         "train.early_stop counts epochs without improvement on validation, so it needs "
         "train.select=validation, not 'last'"),
        ({"train": [1]}, "train: expected {setting: value}, got [1]"),
        ({"about": 3}, "about: expected text, got 3"),
        ({"paper": {"year": float("inf")}},
         "paper: expected finite numbers, got {'year': inf}"),
    ],
)  # fmt: skip
def test_a_wrong_recipe_is_refused_with_a_sentence(change, sentence):
    assert refused(**change) == sentence


def test_train_is_built_with_its_schedule_and_its_defaults():
    train = build_train({"schedule": {"ramp": {"warmup": 10}}, "clip": "1e0"})
    assert train.schedule is not None
    assert train.schedule(100)(5) == 0.5
    assert (train.clip, train.epochs, train.precision, train.select) == (
        1.0, 10, "float32", "validation",
    )  # fmt: skip
    assert (train.select_by, train.device, train.workers, train.start) == ("map@r", "auto", 2, None)
    assert build_train(None) == config.Train()


def test_what_is_no_recipe_is_refused():
    with pytest.raises(RecipeError, match=r"^a recipe: expected {setting: value}, got 'small'$"):
        resolve("small")  # type: ignore[arg-type]


def test_an_optimizer_of_torch_is_own_code_that_waits_for_parameters():
    node = {"torch.optim:SGD": {"lr": "1e-2"}}
    optimizer = build(node, "optimizer", {}, "optim.default", trust_code=True)
    assert optimizer([nn.Parameter(torch.zeros(1))]).param_groups[0]["lr"] == 0.01


def test_own_code_in_a_recipe_is_read_only_when_trusted():
    recipe = {**load_recipe("small"), "encoder": f"{HERE}:Mlp"}
    with pytest.raises(RecipeError, match=r"^encoder: .*--trust-code \(in Python trust_code=True"):
        resolve(recipe)
    with pytest.raises(RecipeError, match="--trust-code"):
        complete(recipe)
    with pytest.raises(RecipeError, match="--trust-code"):
        resolve(recipe, {f"encoder.{HERE}:Mlp.dim": 3})
    changed = resolve(recipe, {f"encoder.{HERE}:Mlp.dim": 3}, trust_code=True)
    assert changed["encoder"] == {f"{HERE}:Mlp": {"dim": 3}}


# Overrides


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("seed=3", ["seed"], 3),
        ("encoder=cnn", ["encoder"], {"cnn": {}}),
        ("encoder={mlp: {dim: 8}}", ["encoder"], {"mlp": {"dim": 8}}),
        ("encoder.mlp={dim: 8}", ["encoder"], {"mlp": {"dim": 8}}),
        ("encoder.mlp.dim=8", ["encoder", "mlp", "dim"], 8),
        ("encoder.mlp.layers=[4, 5]", ["encoder", "mlp", "layers"], [4, 5]),
        ("encoder.mlp.layers.0=7", ["encoder", "mlp", "layers"], [7]),
        ("sampler.uniform.batch=64", ["sampler", "uniform", "batch"], 64),
        ("data.shapes.count=2", ["data", "shapes", "count"], 2),
        ("objective.compared.loss.infonce.temperature=1e-3",
         ["objective", "compared", "loss", "infonce", "temperature"], 0.001),
        ("objective.compared.loss=triplet",
         ["objective", "compared", "loss"], {"triplet": {}}),
        ("objective.compared.mining.hard.k=2",
         ["objective", "compared", "mining"], {"hard": {"k": 2}}),
        ("objective.compared.learn.beta={start: 1.2}",
         ["objective", "compared", "learn"], {"beta": {"start": 1.2}}),
        ("optim.default.sgd.lr=0.1", ["optim", "default", "sgd", "lr"], 0.1),
        ("optim.encoder.head.sgd.momentum=0.9",
         ["optim", "encoder.head"], {"sgd": {"lr": 1.0, "momentum": 0.9}}),
        ("optim.objective.sgd.lr=0.1", ["optim", "objective"], {"sgd": {"lr": 0.1}}),
        ("optim.a.new.one=adam", ["optim", "a.new.one"], {"adam": {}}),
        ("train.epochs=3", ["train", "epochs"], 3),
        ("train.schedule.ramp.warmup=7", ["train", "schedule", "ramp", "warmup"], 7),
        ("train.schedule=null", ["train", "schedule"], None),
        ("train.factors.encoder.stem.*=0.1", ["train", "factors"], {"encoder.stem.*": 0.1}),
        ("evaluate=[nmi]", ["evaluate"], ["nmi"]),
        ("about=a=b", ["about"], "a=b"),
    ],
)  # fmt: skip
def test_an_override_sets_one_place(override, path, value):
    changed = functools.reduce(lambda node, key: node[key], path, small(override))
    assert changed == value


def test_overrides_go_into_parts_of_a_sum_and_of_a_list():
    part = {"compared": {"compare": "in_batch", "loss": {"infonce": {}}}}
    whole = {"sum": {"parts": {"a": part}, "weights": {"a": 1}}}
    changed = small(
        "objective.sum.parts.a.compared.loss.infonce.temperature=2",
        "objective.sum.parts.b={compared: {compare: in_batch, loss: triplet}}",
        "objective.sum.weights.b=0.1",
        objective=whole,
    )["objective"]["sum"]
    assert changed["parts"]["a"]["compared"]["loss"] == {"infonce": {"temperature": 2.0}}
    assert changed["parts"]["b"]["compared"]["loss"] == {"triplet": {}}
    assert changed["weights"] == {"a": 1.0, "b": 0.1}
    stack = {"stack": {"layers": [part, part]}}
    changed = small("objective.stack.layers.1.compared.loss.infonce.temperature=2", objective=stack)
    losses = [
        each["compared"]["loss"]["infonce"] for each in changed["objective"]["stack"]["layers"]
    ]
    assert losses == [{}, {"temperature": 2.0}]


def test_overrides_of_one_place_go_into_nested_plain_values():
    learn = {"beta": {"start": 1.0, "per": "class"}}
    node = {"compared": {"compare": "in_batch", "loss": "learned", "learn": learn}}
    changed = small("objective.compared.learn.beta.start=2", objective=node)
    assert changed["objective"]["compared"]["learn"] == {"beta": {"start": 2, "per": "class"}}
    assert learn == {"beta": {"start": 1.0, "per": "class"}}


def test_overrides_from_python_are_values_and_later_ones_win():
    assert resolve(load_recipe("small"), {"train.epochs": 3})["train"]["epochs"] == 3
    assert small("seed=1", "seed=2")["seed"] == 2


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("seed", "'seed' sets nothing; write key=value, for example train.epochs=3"),
        ("=3", "'=3' sets nothing; write key=value, for example train.epochs=3"),
        ("trian.epochs=3", "a recipe takes no 'trian'; did you mean 'train'?"),
        ("train.epoch=3", "train takes no 'epoch'; did you mean 'epochs'?"),
        ("encoder.mlp.dimm=3", "encoder.mlp takes no 'dimm'; did you mean 'dim'?"),
        ("encoder.mlp.dim.x=3", "encoder.mlp.dim is 32, which has no 'x' inside"),
        ("encoder.mlp.layers.3=3",
         "encoder.mlp.layers has no '3'; its parts are numbered 0 to 0"),
        ("encoder.dim=3", "encoder is 'mlp'; did you mean 'encoder.mlp.dim'?"),
        ("encoder.mlpp.dim=3",
         "encoder is 'mlp', and there is no encoder 'mlpp'; did you mean 'mlp'?"),
        ("objective.compared.loss.triplet.margin=0.1",
         "objective.compared.loss is 'infonce'; to replace it by 'triplet' set "
         "objective.compared.loss='{triplet: {margin: 0.1}}'"),
        ("optim.default.sdg.lr=1",
         "optim.default is 'sgd', and there is no optimizer 'sdg'; did you mean 'sgd'?"),
        ("objective.compared.mining.hrd.k=2",
         "objective.compared.mining: there is no mining 'hrd'; did you mean 'hard'?"),
        ("seed=[1", "the value of seed, line 1: expected ',' or ']', but got '<stream end>'"),
        ("train={epochs: 1, epochs: 2}",
         "the value of train, line 1: the key 'epochs' is said twice"),
    ],
)  # fmt: skip
def test_a_wrong_override_is_refused_with_a_sentence(override, sentence):
    assert refused(override) == sentence


def test_the_inside_of_an_object_cannot_be_overridden():
    assert refused("encoder.mlp.dim=3", encoder=Mlp(3)) == (
        "encoder was given as an object; only the whole of it can be replaced"
    )
    assert small("encoder=cnn", encoder=Mlp(3))["encoder"] == {"cnn": {}}


# Files


def test_a_bundled_name_wins_unless_there_is_a_slash(tmp_path):
    (tmp_path / "work" / "small").write_text("seed: 5")
    assert load_recipe("small")["data"] == {"shapes": {}}
    assert load_recipe("./small") == {"seed": 5}
    (tmp_path / "work" / "small.yaml").write_text("seed: 6")
    assert load_recipe("small.yaml") == {"seed": 6}
    assert load_recipe(tmp_path / "work" / "small.yaml") == {"seed": 6}


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("smal", None, "'smal' is no recipe and no file; did you mean 'small'?"),
        ("no/smal.yaml", None, "'no/smal.yaml' is no recipe and no file; did you mean 'small'?"),
        (".", None, "'.' is a folder, not a recipe; known: broken, small"),
        ("broken", None, "recipe 'broken', line 3: expected ',' or '}', but got '<scalar>'"),
        ("x.yaml", "", "recipe 'x.yaml' must hold 'key: value' lines, not null"),
        ("x.yaml", "- 1", "recipe 'x.yaml' must hold 'key: value' lines, not [1]"),
        ("x.yaml", "a: 1\na: 2", "recipe 'x.yaml', line 2: the key 'a' is said twice"),
        ("x.yaml", "a: {b: 1,\n b: 2}", "recipe 'x.yaml', line 2: the key 'b' is said twice"),
        ("x.yaml", "a: &b 1\nc: *b",
         "recipe 'x.yaml', line 2: a recipe has no aliases (*name); write the value out"),
        ("x.yaml", "a: !!python/name:os.system x", "recipe 'x.yaml', line 1: could not determine "
         "a constructor for the tag 'tag:yaml.org,2002:python/name:os.system'"),
        ("x.yaml", "[" * 1000, "recipe 'x.yaml' is nested too deep to be read"),
        ("x.yaml", "a: \x00", "recipe 'x.yaml': unacceptable character #x0000: special "
         "characters are not allowed"),
    ],
)  # fmt: skip
def test_a_recipe_that_cannot_be_read_says_why(name, text, sentence):
    if text is not None:
        Path(name).write_text(text)
    with pytest.raises(RecipeError) as error:
        load_recipe(name)
    assert str(error.value) == sentence


def test_a_recipe_that_is_no_text_says_so():
    Path("x.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match=r"recipe 'x.yaml' cannot be read as text: .*utf-8"):
        load_recipe("x.yaml")


def test_a_date_stays_text():
    Path("x.yaml").write_text("paper: {date: 2020-01-31}")
    assert load_recipe("x.yaml") == {"paper": {"date": "2020-01-31"}}


# Writing


plain_data = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text()
    | st.floats(allow_nan=False) | st.sampled_from(["5e-4", "no", "1:30", "2020-01-31", "=", "<<"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=12,
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@example({"\x85": "\u2028", "ß": "\ufeff"})
@given(st.dictionaries(st.text(), plain_data, min_size=1, max_size=4))
def test_what_is_dumped_reads_back_as_it_was(data):
    again = config._parse(dump(data), "text")
    assert again == data
    assert repr(again) == repr(data)


def test_a_value_that_stands_twice_is_written_twice():
    twice = {"start": 1.0}
    assert dump({"a": twice, "b": twice}) == "a:\n  start: 1.0\nb:\n  start: 1.0\n"


def test_an_object_cannot_be_written():
    with pytest.raises(RecipeError, match="Mlp was given as an object; only names and plain"):
        dump(small(encoder=Mlp(3)))


def test_a_complete_recipe_has_every_default():
    full = complete(small("objective.compared.mining=hard"))
    assert list(full) == [
        "seed", "data", "encoder", "sampler", "objective", "optim", "train", "evaluate",
    ]  # fmt: skip
    assert full["data"] == {"shapes": {"count": 3, "folder": "here"}}
    assert full["encoder"] == {"mlp": {"dim": 32, "layers": [32]}}
    assert full["sampler"] == {"uniform": {"batch": 128}}
    assert full["objective"] == {
        "compared": {
            "compare": {"classifier": {"dropout": 0.1}},
            "loss": {"infonce": {"temperature": 0.05}},
            "mining": {"hard": {"k": 1}},
            "learn": None,
        }
    }
    assert full["optim"]["default"] == {"sgd": {"lr": 0.05, "momentum": 0.0, "nesterov": False}}
    assert full["train"] == {
        "epochs": 2, "steps": None, "schedule": {"ramp": {"warmup": 5}}, "precision": "float32",
        "select": "validation", "select_by": "map@r", "clip": None, "device": "auto",
        "workers": 2, "start": None, "early_stop": None, "freeze_batchnorm": False, "factors": {},
    }  # fmt: skip


def test_a_complete_recipe_is_complete_resolves_to_itself_and_survives_its_file(tmp_path):
    full = complete(small())
    Path("recipe.yaml").write_text(dump(full))
    again = load_recipe("recipe.yaml")
    assert again == full
    assert resolve(again) == full
    assert complete(again) == full
    assert dump(complete(again)) == dump(full)


def test_a_recipe_without_seed_train_and_evaluate_gets_them():
    recipe = load_recipe("small")
    for key in ("seed", "train", "evaluate"):
        del recipe[key]
    full = complete(resolve(recipe))
    assert (full["seed"], full["train"]["epochs"]) == (0, 10)
    assert full["evaluate"] == ["recall@1", "map@r"]


def test_a_default_that_no_recipe_can_say_stays_with_the_signature():
    full = complete(small("objective.compared.loss=unbounded"))
    assert full["objective"]["compared"]["loss"] == {"unbounded": {"level": 2}}


def test_the_words_about_a_recipe_are_kept():
    paper = {"title": "On near and kin", "year": 2020}
    full = complete(small(about="A test.", paper=paper))
    assert list(full)[:3] == ["about", "paper", "seed"]
    assert full["paper"] == paper
