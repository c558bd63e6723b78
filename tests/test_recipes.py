"""The bundled recipes: the papers' are what the papers say, and each takes its steps."""

import copy
import importlib

import layouts
import pytest
import tiny_runs

from nearkin import cli
from nearkin.catalog import recipe_files
from nearkin.config import build_train, complete, load_recipe, resolve
from nearkin.console import Reporter
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


# Boudiaf et al. 2020, section 6 of the paper and its code: epochs, rate, momentum, feature norm.
@pytest.mark.parametrize(
    ("name", "epochs", "sgd", "normalized", "recall"),
    [
        ("cub", 30, (0.02, 0.0, False), False, (0.692, 0.676)),
        ("cars", 100, (0.05, 0.0, False), True, (0.893, 0.891)),
        ("sop", 100, (0.003, 0.99, True), True, (0.811, 0.808)),
        ("inshop", 100, (0.003, 0.99, True), True, (0.906, 0.906)),
    ],
)
def test_the_papers_settings(name, epochs, sgd, normalized, recall):
    full = complete(resolve(load_recipe(name)))
    inside = full["encoder"]["resnet50_paper"]
    optimizer = full["optim"]["default"]["sgd"]
    compared = full["objective"]["compared"]
    assert full["train"]["epochs"] == epochs
    assert (optimizer["lr"], optimizer["momentum"], optimizer["nesterov"]) == sgd
    assert optimizer["weight_decay"] == 5e-4
    assert inside["batchnorm"] is normalized
    assert inside["resize"] == 256
    assert inside["keep_aspect"] is (name == "cub")
    assert inside["weights"] == "imagenet_v1"
    assert full["train"]["freeze_batchnorm"] is True
    assert full["train"]["schedule"] == {"warmup_cosine": {"warmup": 100}}
    assert full["sampler"] == {"uniform": {"batch": 128}}
    assert compared["compare"]["classifier"]["dropout"] == 0.5
    assert compared["loss"] == {"cross_entropy": {"label_smoothing": 0.1}}
    assert (full["paper"]["cosine"]["recall@1"], full["paper"]["euclidean"]["recall@1"]) == recall


@pytest.mark.parametrize("name", PAPERS)
def test_a_set_that_is_not_there_is_told_in_a_sentence(name, capsys, cache, tmp_path):
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", name, "--out", str(tmp_path / "run")])
    assert stop.value.code == 2
    assert f"nearkin data prepare {name}" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
