"""The bundled recipes: the papers' are what the papers say, and each takes its steps."""

import copy
import importlib

import layouts
import numpy as np
import pytest
import tiny_runs
import torch

from nearkin import cli
from nearkin.catalog import recipe_files
from nearkin.config import build_train, complete, load_recipe, resolve
from nearkin.console import Reporter
from nearkin.data.base import Splits, Table
from nearkin.run import train

PAPERS = ("cub", "cars", "sop", "inshop")
VALIDATED = tuple(f"{name}_validated" for name in PAPERS)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A recipe by its name, on a tiny copy of its data, with tiny pictures and random weights."""

    def made(name, **changes):
        data = name.removesuffix("_validated")
        module = importlib.import_module(f"nearkin.data.{data}")
        monkeypatch.setattr(module, "OFFICIAL", {})
        folder = layouts.ALL[data](tmp_path / data)
        inside = {"weights": None, "image_size": 32, "resize": 36}
        settings = {f"encoder.resnet50_paper.{key}": value for key, value in inside.items()}
        settings |= {f"data.{data}.path": str(folder), "sampler.uniform.batch": 4}
        settings |= {"train.epochs": 1, "train.workers": 1}
        return load_recipe(name), {**settings, **changes}

    return made


@pytest.mark.slow
@pytest.mark.parametrize("name", PAPERS)
def test_the_papers_recipe_reports_the_last_epoch_and_the_papers_selection(small, tmp_path, name):
    said, settings = small(name)
    run = train(said, set=settings, out=tmp_path / "run", reporter=Reporter(None))
    assert run.metrics["selected"]["by"] == "last epoch"
    assert "test classes chose" in run.metrics["best_on_test"]["by"]
    assert "validation" not in run.metrics
    assert set(said["paper"]["cosine"]) < set(run.metrics["test"]["cosine"])
    assert tiny_runs.lines(tmp_path / "run", "step")


@pytest.mark.parametrize("name", sorted(recipe_files()))
def test_every_recipe_resolves_and_is_complete(name):
    full = complete(resolve(load_recipe(name)))
    assert full["about"]
    assert build_train(full["train"]).epochs >= 1


@pytest.mark.parametrize("name", PAPERS)
def test_the_honest_variant_differs_in_data_selection_and_words_alone(name):
    paper, honest = (resolve(load_recipe(each)) for each in (name, f"{name}_validated"))
    assert paper["train"]["select"] == "best_on_test"
    assert honest["train"]["select"] == "validation"
    assert honest["data"][name] == {"validation": 0.2}
    alike = copy.deepcopy(honest)
    alike["data"], alike["about"] = paper["data"], paper["about"]
    alike["train"]["select"] = paper["train"]["select"]
    assert alike == paper


# Boudiaf et al. 2020, the paper and its code: epochs, rate, momentum, feature norm, crop.
BIRDS = {"brightness": 0.25, "contrast": 0.25, "saturation": 0.25, "hue": 0.0, "widest": 4 / 3}
CARS = {"brightness": 0.3, "contrast": 0.3, "saturation": 0.3, "hue": 0.1, "widest": 1.0}
SETTINGS = {
    "cub": (30, (0.02, 0.0, False), False, "jittered_crop", BIRDS),
    "cars": (100, (0.05, 0.0, False), True, "jittered_crop", CARS),
    "sop": (100, (0.003, 0.99, True), True, "random_resized_crop", {"widest": 4 / 3}),
    "inshop": (100, (0.003, 0.99, True), True, "random_resized_crop", {"widest": 4 / 3}),
}
EVERY = [*PAPERS, *VALIDATED]


@pytest.mark.parametrize("recipe", EVERY)
def test_the_papers_settings(recipe):
    name = recipe.removesuffix("_validated")
    epochs, sgd, normalized, crop, changes = SETTINGS[name]
    full = complete(resolve(load_recipe(recipe)))
    inside = full["encoder"]["resnet50_paper"]
    optimizer = full["optim"]["default"]["sgd"]
    compared = full["objective"]["compared"]
    assert full["train"]["epochs"] == epochs
    assert (optimizer["lr"], optimizer["momentum"], optimizer["nesterov"]) == sgd
    assert optimizer["weight_decay"] == 5e-4
    assert inside["batchnorm"] is normalized
    assert (inside["image_size"], inside["resize"]) == (224, 256)
    assert inside["keep_aspect"] is (name == "cub")
    assert inside["weights"] == "imagenet_v1"
    assert list(inside["crop"]) == [crop]
    assert inside["crop"][crop]["smallest"] == 0.16
    assert inside["crop"][crop]["flip"] is True
    said = {key: pytest.approx(inside["crop"][crop][key]) for key in changes}
    assert said == changes
    assert inside["crop"][crop]["narrowest"] * changes["widest"] == pytest.approx(1)
    assert full["train"]["freeze_batchnorm"] is True
    assert full["train"]["schedule"] == {"warmup_cosine": {"warmup": 100}}
    assert full["train"]["select_by"] == "recall@1"
    assert full["sampler"] == {"uniform": {"batch": 128}}
    assert compared["compare"]["classifier"]["dropout"] == 0.5
    assert compared["loss"] == {"cross_entropy": {"label_smoothing": 0.1}}


# Table 3 of the paper in percent: K, cosine, Euclidean.
TABLE = {
    "cub": """1 69.2 67.6, 2 79.2 78.1, 4 86.9 85.6, 8 91.6 91.1, 16 95.0 94.7, 32 97.3 97.2""",
    "cars": """1 89.3 89.1, 2 93.9 93.7, 4 96.6 96.5, 8 98.4 98.1, 16 99.3 99.0, 32 99.7 99.4""",
    "sop": """1 81.1 80.8, 10 91.7 91.2, 100 96.3 95.7, 1000 98.8 98.1""",
    "inshop": """1 90.6 90.6, 10 98.0 97.8, 20 98.6 98.5, 30 98.9 98.8, 40 99.1 98.9, 50 99.2
    99.0""",
}


@pytest.mark.parametrize("recipe", EVERY)
def test_the_papers_figures(recipe):
    name = recipe.removesuffix("_validated")
    said = load_recipe(recipe)
    rows = [row.split() for row in TABLE[name].split(", ")]
    for place, closeness in ((1, "cosine"), (2, "euclidean")):
        wanted = {f"recall@{row[0]}": float(row[place]) / 100 for row in rows}
        assert said["paper"][closeness] == pytest.approx(wanted)
    assert [f"recall@{row[0]}" for row in rows] == said["evaluate"][: len(rows)]
    assert said["paper"]["data"] == name


@pytest.mark.parametrize("name", PAPERS)
def test_a_set_that_is_not_there_is_told_in_a_sentence(name, capsys, cache, tmp_path):
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", name, "--out", str(tmp_path / "run")])
    assert stop.value.code == 2
    assert f"nearkin data prepare {name}" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def drawn(classes, first, per_class=16):
    """Pictures of random patterns, one a class, with noise."""
    random = np.random.default_rng(first)
    label = np.repeat(np.arange(classes), per_class)
    patterns = random.uniform(0, 200, (classes, 1, 12, 12))
    pixels = patterns[label] + random.uniform(0, 55, (len(label), 1, 12, 12))
    return Table(
        torch.from_numpy(pixels.astype(np.uint8)),
        torch.from_numpy(label),
        tuple(f"class {first + each}" for each in range(classes)),
        tuple(f"{first}/{row}" for row in range(len(label))),
    )


def test_cross_entropy_beside_a_bound_between_embeddings_and_labels_takes_its_steps(tmp_path):
    data = Splits(drawn(8, 0), drawn(4, 100), drawn(4, 200), {"image_size": 12, "channels": 1})
    changes = {"sampler.uniform.batch": 64, "train.epochs": 1, "evaluate": ["recall@1"]}
    out = tmp_path / "run"
    train("glyphs_joint", set=changes, data=data, out=out, reporter=Reporter(None))
    (step,) = tiny_runs.lines(out, "step")
    terms = step["terms"]
    assert step["learns"] == ["encoder", "classes.objective", "labels.objective", "labels.critic"]
    assert terms["total"] == pytest.approx(terms["classes.total"] + terms["labels.total"])
    assert terms["tightness"] == pytest.approx(
        terms["classes.tightness"] + terms["labels.tightness"]
    )
    assert step["pull"] > 0
    assert step["labels.bound_bits"] <= step["labels.bound_ceiling"] == 1
    assert set(step["rates"]) == set(step["learns"])
    (last,) = (r for r in tiny_runs.lines(out, "panel") if r["of"] == "validation" and r["step"])
    assert last["step"] == 2


def test_a_bound_between_two_views_takes_its_steps(tmp_path):
    out = tmp_path / "run"
    changes = {"sampler.paired.pairs": 480, "train.epochs": 1}
    train("halves_bound", set=changes, out=out, reporter=Reporter(None))
    (step,) = tiny_runs.lines(out, "step")
    assert step["learns"] == ["encoder", "objective", "critic"]
    assert step["bound_bits"] <= step["bound_ceiling"] == pytest.approx(np.log2(480))
    held = [r for r in tiny_runs.lines(out, "panel") if r["of"] == "validation"]
    assert [r["step"] for r in held] == [0, 2]
    assert held[1]["uniformity"] != held[0]["uniformity"]


# Kemertas et al. 2020: figures in percent, NMI; classes and rows of a batch.
RANKMI = {
    "cub": ({"1": 66.7, "2": 77.2, "4": 85.1, "8": 91.0}, 71.3, (24, 5)),
    "cars": ({"1": 83.3, "2": 89.8, "4": 93.8, "8": 96.5}, 69.4, (24, 5)),
    "sop": ({"1": 74.3, "10": 87.9, "100": 94.9, "1000": 98.3}, 90.5, (60, 2)),
}


@pytest.mark.parametrize("name", RANKMI)
def test_rankmis_recipes_are_what_its_paper_says(name):
    recalls, nmi, (classes, rows) = RANKMI[name]
    said = load_recipe(f"rankmi_{name}")
    printed = {f"recall@{k}": value / 100 for k, value in recalls.items()}
    printed |= {"nmi": nmi / 100}
    assert said["paper"]["cosine"] == pytest.approx(printed)
    assert set(printed) <= set(said["evaluate"])
    assert said["paper"]["data"] == name
    full = complete(resolve(said))
    assert classes * rows == 120
    assert full["sampler"] == {"balanced": {"classes": classes, "per_class": rows}}
    objective = full["objective"]["rankmi"]
    paper = {"k": 1, "margin": 0.2, "beta": 1.0, "warmup": 0, "width": 128, "layers": 2}
    assert {key: objective[key] for key in paper} == paper
    rates = {key: node["adam"]["lr"] for key, node in full["optim"].items()}
    assert rates.pop("default") == 1e-3
    assert rates == {"encoder.trunk": 1e-5, "encoder.head": 1e-3, "statistics": 1e-3}
    assert all(node["adam"]["weight_decay"] == 1e-4 for node in full["optim"].values())
    assert full["encoder"]["head"]["dim"] == 128
    head = recipe_files()[f"rankmi_{name}"].read_text(encoding="utf-8").partition("about:")[0]
    assert "Not reproduced here" in head
    assert "computed, not measured" in head


@pytest.mark.slow
@pytest.mark.parametrize("name", RANKMI)
def test_rankmis_recipes_take_their_steps(tmp_path, monkeypatch, name):
    module = importlib.import_module(f"nearkin.data.{name}")
    monkeypatch.setattr(module, "OFFICIAL", {})
    folder = layouts.ALL[name](tmp_path / name)
    trunk = {"weights": None, "image_size": 32, "resize": 36}
    settings = {f"encoder.head.trunk.resnet50_paper.{key}": v for key, v in trunk.items()}
    settings |= {f"data.{name}.path": str(folder), "train.epochs": 2, "train.workers": 1}
    settings |= {"sampler.balanced.classes": 2, "sampler.balanced.per_class": 2}
    run = train(
        load_recipe(f"rankmi_{name}"), set=settings, out=tmp_path / "run", reporter=Reporter(None)
    )
    assert run.metrics["selected"]["by"] == "last epoch"
    assert "test classes chose" in run.metrics["best_on_test"]["by"]
    (first, *_) = tiny_runs.lines(tmp_path / "run", "step")
    assert first["learns"] == ["encoder"]
    assert set(first["rates"]) == {"encoder.trunk", "encoder.head", "statistics"}
    assert "<h2>RankMI</h2>" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
