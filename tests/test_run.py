"""train: what stands in a run folder, data and encoders of one's own, guards, and what is kept."""

import json
import math
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_runs
import torch
import yaml
from safetensors.torch import load_file
from tiny_runs import recipe
from torch import nn

import nearkin as nk
from nearkin import run
from nearkin.console import Reporter
from nearkin.data.base import Splits, Table
from nearkin.loop import TrainingError

EVERYTHING = ["recall@1", "recall@4", "map@r", "nmi", "ami", "information"]


pytestmark = pytest.mark.usefixtures("one_thread")


def train(said, out, **settings):
    settings.setdefault("reporter", Reporter(None))
    return nk.train(said, out=out, **settings)


@pytest.fixture(scope="module")
def done(tmp_path_factory, rows):
    """A finished run with every kind of metric, selected on validation."""
    torch.set_num_threads(1)
    said = recipe(rows, evaluate=EVERYTHING, train={"select": "validation"})
    return train(said, tmp_path_factory.mktemp("done") / "run")


def table(classes, per_class=8, dim=5, seed=0, prefix="c", **columns):
    generator = torch.Generator().manual_seed(seed)
    label = torch.arange(classes).repeat_interleave(per_class)
    centers = torch.randn(classes, dim, generator=generator)
    rows = len(label)
    return Table(
        inputs=centers[label] + torch.randn(rows, dim, generator=generator),
        label=label,
        names=tuple(f"{prefix}{seed}-{i}" for i in range(classes)),
        ids=tuple(f"{prefix}{seed}/{i}" for i in range(rows)),
        columns={name: make(rows) for name, make in columns.items()},
    )


def splits(validation=True, **columns):
    return Splits(
        table(6, **columns),
        table(3, seed=1, **columns) if validation else None,
        table(3, seed=2, **columns),
    )


# The folder


def test_a_run_folder_holds_the_files_of_the_contract_and_no_others(done):
    names = {p.relative_to(done.folder).as_posix() for p in done.folder.rglob("*") if p.is_file()}
    assert names == {
        "recipe.yaml",
        "environment.json",
        "log.jsonl",
        "checkpoint/state.safetensors",
        "model/encoder.safetensors",
        "model/objective.safetensors",
        "model/model.json",
        "embeddings.npz",
        "metrics.json",
        "report.html",
    }


def test_no_file_of_a_run_is_a_pickle(done):
    for path in done.folder.rglob("*"):
        if path.is_file():
            assert path.read_bytes()[:2] not in (b"\x80\x02", b"\x80\x04", b"\x80\x05"), path
    with np.load(done.folder / "embeddings.npz", allow_pickle=False) as arrays:
        assert all(arrays[name].dtype != object for name in arrays.files)


def test_the_environment_says_format_versions_hardware_seed_and_commit(done):
    said = json.loads((done.folder / "environment.json").read_text())
    assert said["format"] == 1
    assert said["torch"] == torch.__version__
    assert said["nearkin"] == nk.__version__
    assert said["seed"] == 0
    assert said["threads"] == 1
    assert said["processes"] == 1
    for key in ("python", "numpy", "scikit-learn", "system", "processor", "cores", "started"):
        assert said[key], key
    assert {"commit", "gpu", "command"} <= set(said)


def test_the_recipe_in_the_folder_is_complete_and_reproduces_the_run(done, tmp_path):
    said = yaml.safe_load((done.folder / "recipe.yaml").read_text())
    assert said["encoder"] == {"mlp": {"dim": 4, "hidden": [8], "dropout": 0.1, "batchnorm": True}}
    assert said["optim"]["default"]["adamw"]["weight_decay"] == 0.01
    assert said["train"]["freeze_batchnorm"] is False
    again = train(done.folder / "recipe.yaml", tmp_path / "again")
    tiny_runs.assert_identical(done.folder, again.folder)


def test_metrics_have_the_blocks_of_the_contract(done):
    said = json.loads((done.folder / "metrics.json").read_text())
    assert said == done.metrics
    assert {"test", "validation", "untrained", "selected", "seconds"} <= set(said)
    for split in ("test", "validation"):
        for closeness in ("cosine", "euclidean"):
            block = said[split][closeness]
            assert set(EVERYTHING) - {"information"} <= set(block)
            for name in ("recall@1", "recall@4", "map@r"):
                assert 0 <= block[name]["low"] <= block[name]["value"] <= block[name]["high"] <= 1
        assert said[split]["queries"] == 24
        assert said[split]["without_relevant"] == 0
        found = said[split]["information"]
        assert found["kind"] == "lower"
        assert found["bits"] <= found["ceiling"] == pytest.approx(1.0)
    assert {"recall@1", "recall@4", "map@r"} <= set(said["untrained"]["cosine"])
    assert {"recall@1", "recall@4", "map@r"} <= set(said["raw"]["cosine"])
    assert said["selected"]["by"] == "validation map@r"
    assert said["selected"]["epoch"] in range(4)
    assert said["seconds"] > 0


def test_the_metrics_are_those_of_the_embeddings_in_the_folder(done):
    with np.load(done.folder / "embeddings.npz") as arrays:
        z, labels = arrays["embeddings"], arrays["labels"]
        assert z.shape == (24, 4)
        assert z.dtype == np.float32
        assert list(arrays["names"][np.unique(labels)]) == ["10", "11"]
        assert len(set(arrays["ids"])) == 24
    for closeness in ("cosine", "euclidean"):
        result = nk.evaluate(z, labels, metrics=("recall@1", "map@r"), closeness=closeness)
        for name in ("recall@1", "map@r"):
            assert done.metrics["test"][closeness][name]["value"] == pytest.approx(result[name])


def test_the_log_has_a_line_for_every_epoch_and_what_a_plot_needs(done):
    records = [json.loads(line) for line in (done.folder / "log.jsonl").read_text().splitlines()]
    kinds = [record["event"] for record in records]
    assert kinds[:2] == ["start", "distances"]
    assert kinds[-1] == "distances"
    assert kinds.count("epoch") == 4
    start = records[0]
    assert (start["steps"], start["epochs"], start["rows"], start["classes"]) == (24, 4, 96, 8)
    step = next(r for r in records if r["event"] == "step")
    assert {"step", "epoch", "terms", "pull", "push", "rates", "rows_per_second"} <= set(step)
    epoch = next(r for r in records if r["event"] == "epoch")
    assert {"recall@1", "map@r"} <= set(epoch["validation"])
    assert "bits" in epoch["information"]
    before, after = (r for r in records if r["event"] == "distances")
    assert (before["when"], after["when"]) == ("untrained", "trained")
    assert len(before["same"]) == len(before["different"]) == len(before["edges"]) - 1


def test_the_model_is_loaded_and_embeds_as_in_the_folder(done, rows):
    with np.load(rows) as data:
        inputs = data["inputs"][data["split"] == 2]
    with np.load(done.folder / "embeddings.npz") as arrays:
        expected = arrays["embeddings"]
    for model in (nk.load(done.folder), done.model):
        z = model.embed(inputs)
        assert z.dtype == np.float32
        np.testing.assert_allclose(z, expected, rtol=1e-5, atol=1e-6)
    assert model.dim == 4
    card = json.loads((done.folder / "model" / "model.json").read_text())
    assert card["classes"] == [str(i) for i in range(8)]


def test_the_run_prints_its_table(done):
    assert "recall@1" in repr(done)
    assert "untrained encoder" in repr(done)


# What is kept


def test_training_helps_and_the_untrained_block_is_the_encoder_before_it(tmp_path, rows):
    said = recipe(rows, train={"epochs": 1}, optim={"default": {"sgd": {"lr": 1e-12}}})
    metrics = train(said, tmp_path / "run").metrics
    # BatchNorm takes notes all the same, so that it is close and not equal.
    untrained = metrics["untrained"]["cosine"]["map@r"]["value"]
    assert metrics["test"]["cosine"]["map@r"]["value"] == pytest.approx(untrained, abs=0.25)
    assert metrics["selected"] == {"epoch": 0, "by": "last epoch"}


def test_best_on_test_stands_beside_the_last_epoch_and_is_marked(tmp_path, rows):
    said = {"select": "best_on_test", "schedule": None, "epochs": 3}
    fast = {"default": {"adamw": {"lr": 3.0}}}
    run = train(recipe(rows, train=said, optim=fast), tmp_path / "run")
    metrics, epochs = run.metrics, tiny_runs.lines(tmp_path / "run", "epoch")
    scores = [record["test"]["map@r"] for record in epochs]
    best = max(range(3), key=lambda epoch: (scores[epoch], epoch))
    assert metrics["selected"] == {"epoch": 2, "by": "last epoch"}
    assert metrics["test"]["cosine"]["map@r"]["value"] == pytest.approx(scores[-1])
    beside = metrics["best_on_test"]
    assert beside["epoch"] == best != 2
    assert beside["by"] == "test map@r (the test classes chose it)"
    assert beside["cosine"]["map@r"]["value"] == pytest.approx(scores[best]) != scores[-1]


def test_the_model_kept_is_the_last_one_whatever_the_test_classes_chose(tmp_path, rows):
    fast = {"default": {"adamw": {"lr": 0.3}}}
    runs = [
        train(recipe(rows, train={"select": how, "schedule": None}, optim=fast), tmp_path / how)
        for how in ("last", "best_on_test")
    ]
    a, b = (load_file(run.folder / "model" / "encoder.safetensors") for run in runs)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_selection_goes_by_the_metric_that_is_asked_for(tmp_path, rows):
    said = recipe(rows, train={"select": "validation", "select_by": "recall@4"})
    metrics = train(said, tmp_path / "run").metrics
    assert metrics["selected"]["by"] == "validation recall@4"
    scores = [r["validation"]["recall@4"] for r in tiny_runs.lines(tmp_path / "run", "epoch")]
    assert metrics["selected"]["epoch"] == max(range(4), key=lambda e: (scores[e], -e))


def test_a_run_of_so_many_steps_ends_there_and_its_schedule_with_it(tmp_path, rows):
    said = recipe(rows, train={"steps": 8, "schedule": {"warmup_cosine": {"warmup": 1}}})
    train(said, tmp_path / "run")
    (start,) = tiny_runs.lines(tmp_path / "run", "start")
    assert (start["steps"], start["epochs"]) == (8, 2)  # an epoch has six batches
    steps = tiny_runs.lines(tmp_path / "run", "step")
    assert steps[-1]["step"] == 7
    assert steps[-1]["rates"]["encoder"] == pytest.approx(
        0.01 * (1 + math.cos(7 * math.pi / 8)) / 2
    )
    assert [r["step"] for r in tiny_runs.lines(tmp_path / "run", "epoch")] == [6, 8]
    panels = {r["step"] for r in tiny_runs.lines(tmp_path / "run", "panel")}
    assert panels == {0, 6, 8}  # the last one too


def test_more_steps_than_the_epochs_have_are_refused(tmp_path, rows):
    with pytest.raises(ValueError, match=r"train\.steps is 25, but 4 epochs of 6 batches are over"):
        train(recipe(rows, train={"steps": 25}), tmp_path / "run")


def test_early_stop_ends_the_run_before_its_last_epoch(tmp_path, rows):
    said = recipe(
        rows,
        train={"select": "validation", "early_stop": 1, "epochs": 9, "schedule": None},
        optim={"default": {"adamw": {"lr": 0.1}}},
    )
    metrics = train(said, tmp_path / "run").metrics
    epochs = tiny_runs.lines(tmp_path / "run", "epoch")
    assert len(epochs) == metrics["selected"]["epoch"] + 2 < 9


def test_another_seed_gives_another_run_and_the_same_seed_the_same(tmp_path, rows):
    a, b = (train(recipe(rows, seed=s), tmp_path / str(s)) for s in (0, 1))
    c = train(recipe(rows), tmp_path / "again")
    tiny_runs.assert_identical(a.folder, c.folder)
    one, two = (load_file(r.folder / "model" / "encoder.safetensors") for r in (a, b))
    assert not torch.equal(one["net.1.weight"], two["net.1.weight"])


def test_a_run_starts_from_the_encoder_of_another(tmp_path, rows, done):
    said = recipe(
        rows,
        train={"start": str(done.folder), "epochs": 1},
        optim={"default": {"sgd": {"lr": 1e-12}}},
    )
    metrics = train(said, tmp_path / "run").metrics
    before = done.metrics["test"]["cosine"]["map@r"]["value"]
    assert metrics["untrained"]["cosine"]["map@r"]["value"] == pytest.approx(before)


def test_a_start_that_is_no_run_or_does_not_fit_raises(tmp_path, rows, done):
    with pytest.raises(ValueError, match="there is no run folder"):
        train(recipe(rows, train={"start": str(tmp_path / "nowhere")}), tmp_path / "run")
    wide = recipe(rows, train={"start": str(done.folder)}, encoder={"mlp": {"dim": 5}})
    with pytest.raises(ValueError, match="do not fit this encoder"):
        train(wide, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("objective", [tiny_runs.CRITIC, tiny_runs.ALTERNATING, tiny_runs.MEMORY])
def test_other_objectives_and_balanced_batches_train_too(tmp_path, rows, objective):
    said = recipe(rows, objective=objective, sampler={"balanced": {"classes": 4, "per_class": 3}})
    metrics = train(said, tmp_path / "run").metrics
    assert metrics["test"]["cosine"]["recall@1"]["value"] > 0.5
    weights = load_file(tmp_path / "run" / "model" / "objective.safetensors")
    assert weights


def test_bfloat16_trains_and_is_said_in_the_card(tmp_path, rows):
    train(recipe(rows, train={"precision": "bfloat16"}), tmp_path / "run")
    card = json.loads((tmp_path / "run" / "model" / "model.json").read_text())
    assert card["precision"] == "bfloat16"
    assert nk.load(tmp_path / "run").embed(np.zeros((2, 6), np.float32)).dtype == np.float32


# Data and encoders of one's own


class OwnEncoder(nn.Module):
    def __init__(self, dim=3):
        super().__init__()
        self.net, self.dim = nn.Sequential(nn.Linear(5, dim), nn.Dropout(0.1)), dim

    def forward(self, x):
        return self.net(x)


def test_data_and_an_encoder_of_ones_own_train_resume_and_load(tmp_path, rows):
    data, out = splits(), tmp_path / "run"
    torch.manual_seed(0)
    done = train(recipe(rows), out, data=data, encoder=OwnEncoder())
    said = yaml.safe_load((out / "recipe.yaml").read_text())
    assert said["data"] == said["encoder"] == "(an object given in Python)"
    assert done.metrics["test"]["queries"] == 24
    again = train(recipe(rows), out, data=data, encoder=OwnEncoder(), resume=True)
    assert again.metrics == done.metrics

    with pytest.raises(ValueError, match=r"pass it: nearkin\.load\(run, encoder=\.\.\.\)"):
        nk.load(out)
    z = nk.load(out, encoder=OwnEncoder()).embed(data.test.inputs)
    with np.load(out / "embeddings.npz") as arrays:
        np.testing.assert_allclose(z, arrays["embeddings"], rtol=1e-5, atol=1e-6)
        assert list(arrays["ids"]) == list(data.test.ids)
    with pytest.raises(ValueError, match="do not fit this encoder"):
        nk.load(out, encoder=OwnEncoder(dim=4))


def test_an_encoder_without_a_width_raises(tmp_path, rows):
    with pytest.raises(ValueError, match="needs an attribute `dim`"):
        train(recipe(rows), tmp_path / "run", data=splits(), encoder=nn.Linear(5, 3))
    narrow = OwnEncoder()
    narrow.dim = 7
    with pytest.raises(ValueError, match=r"the encoder gave shape \(\d+, 3\); expected \(N, 7\)"):
        train(recipe(rows), tmp_path / "run", data=splits(), encoder=narrow)
    assert not (tmp_path / "run").exists()


def test_queries_search_a_gallery_and_relevance_may_be_another_than_the_class(tmp_path, rows):
    columns = {
        "is_query": lambda n: torch.arange(n) % 2 == 0,
        "is_gallery": lambda n: torch.arange(n) % 2 == 1,
        "relevant": lambda n: torch.arange(n) // 2,
    }
    done = train(recipe(rows), tmp_path / "run", data=splits(**columns))
    assert done.metrics["test"]["queries"] == 12
    with np.load(tmp_path / "run" / "embeddings.npz") as arrays:
        assert arrays["is_query"].sum() == 12
        assert not (arrays["is_query"] & arrays["is_gallery"]).any()
        assert list(arrays["relevant"]) == [i // 2 for i in range(24)]


def test_what_was_left_out_is_listed(tmp_path, rows):
    data = replace(splits(), left_out=(("a/1.png", "broken"), ("b/é.png", "empty")))
    train(recipe(rows), tmp_path / "run", data=data)
    text = (tmp_path / "run" / "left_out.txt").read_text(encoding="utf-8")
    assert text == "a/1.png\tbroken\nb/é.png\tempty\n"


# Guards: nothing is written


@pytest.fixture
def refused(tmp_path, rows):
    """Training raises this sentence, and leaves no folder behind."""

    def check(match, error=ValueError, data=None, **changes):
        out = tmp_path / "run"
        with pytest.raises(error, match=match):
            train(recipe(rows, **changes), out, data=data)
        assert not out.exists()

    return check


def test_classes_that_train_and_test_share_are_refused():
    with pytest.raises(ValueError, match=r"'c0-\d' stands in train and in test"):
        Splits(table(3), None, table(3))


def test_one_class_is_refused(refused):
    data = Splits(table(1), None, table(3, seed=2))
    refused("at least two classes, but the train split has 1", data=data)


def test_selection_on_a_validation_split_that_is_not_there_is_refused(refused):
    refused(
        r"no validation split; set train\.select=last",
        data=splits(validation=False),
        train={"select": "validation"},
    )


def test_a_label_out_of_the_classifiers_range_is_refused(refused):
    few = {"compared": {"compare": {"classifier": {"classes": 3}}, "loss": {"cross_entropy": {}}}}
    refused(r"label \d is out of range", objective=few)


def test_columns_that_the_data_have_not_are_refused(refused):
    views = {"compared": {"compare": {"across_views": {}}, "loss": {"infonce": {}}}}
    refused("objective: it reads the column 'view', but the data have label", objective=views)
    refused("sampler: it reads the column 'pair'", sampler={"paired": {"pairs": 4}})


def test_a_batch_larger_than_the_classes_is_refused(refused):
    refused("set classes to 8 or less", sampler={"balanced": {"classes": 9, "per_class": 2}})


def test_a_device_that_is_not_there_is_refused(refused):
    refused("device 'cuda:77' is not to be had", train={"device": "cuda:77"})


def test_an_optimizer_of_nobody_is_refused(refused):
    refused(
        r"optim\.critic names no learner",
        optim={"default": tiny_runs.ADAMW, "critic": tiny_runs.ADAMW},
    )


def test_a_missing_data_file_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file"):
        train(recipe(tmp_path / "no.npz"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_loss_that_is_no_number_at_the_first_step_leaves_no_folder(tmp_path, rows):
    data = splits()
    # Numbers, but their sum over a batch is none in float32.
    bad = replace(data.train, inputs=data.train.inputs.abs().clamp(1, 3) * 1e38)
    with pytest.raises(TrainingError, match="the loss is nan"):
        train(recipe(rows), tmp_path / "run", data=replace(data, train=bad))
    assert not (tmp_path / "run").exists()


def test_features_that_are_no_numbers_leave_no_folder(tmp_path, rows):
    data = splits()
    bad = replace(data.train, inputs=data.train.inputs * torch.inf)
    with pytest.raises(ValueError, match="features hold NaN or infinite"):
        train(recipe(rows), tmp_path / "run", data=replace(data, train=bad))
    assert not (tmp_path / "run").exists()


# What a person sees


def test_a_person_hears_of_coverage_measuring_and_epochs(tmp_path, rows):
    said = []

    class Ear(Reporter):
        def say(self, text):
            said.append(text)

    train(recipe(rows), tmp_path / "run", reporter=Ear(None))
    assert said[0] == "an epoch of 6 batches covers 96 of 96 rows"
    assert "measuring the untrained encoder and the raw inputs" in said
    assert sum(line.startswith("epoch ") for line in said) == 4


@pytest.mark.filterwarnings("default")
def test_a_warning_of_training_stands_in_the_log(tmp_path, rows):
    data = splits()
    lone = replace(data.train, label=torch.arange(48), names=tuple(map(str, range(48))))
    said = recipe(rows, objective=tiny_runs.MEMORY, train={"epochs": 1})
    train(said, tmp_path / "run", data=replace(data, train=lone))
    warned = tiny_runs.lines(tmp_path / "run", "warning")
    assert any("holds no positive pair" in record["message"] for record in warned)


@pytest.mark.parametrize(
    ("given", "name"),
    [("digits", "digits"), ("my/own recipe.yaml", "own recipe"), ({"seed": 0}, "own")],
)
def test_the_folder_of_a_run_is_named_by_its_recipe(tmp_path, monkeypatch, given, name):
    monkeypatch.chdir(tmp_path)
    if isinstance(given, str) and given.endswith(".yaml"):
        Path(given).parent.mkdir()
        Path(given).write_text("seed: 0\n")
    assert run._named(given)[0] == name


def test_a_folder_of_images_takes_the_recipe_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my photos").mkdir()
    name, said = run._named("my photos")
    assert name == "my-photos"
    assert said["data"] == {"folder": {"path": str(tmp_path / "my photos")}}
    (tmp_path / "digits").mkdir()
    assert run._named("digits")[1]["data"] == {"digits": {}}
    assert run._named(f".{os.sep}digits")[1]["data"] == {
        "folder": {"path": str(tmp_path / "digits")}
    }
