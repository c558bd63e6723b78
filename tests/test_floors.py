"""Floors: what features give without training; in runs, over processes, after a resume."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import tiny_runs
import torch

import nearkin as nk
from nearkin.console import Reporter, floors_table, scores_table
from nearkin.data.base import Table
from nearkin.evaluation import evaluate
from nearkin.floors import floors, has_features, ranking_metrics, validation_score
from nearkin.whitening import SHRINKAGES, scatter, standardizing, whitening

pytestmark = pytest.mark.usefixtures("one_thread")

METRICS = ("recall@1", "map@r")


def table(classes, first=0, per_class=12, seed=0, **columns):
    """Classes lie apart in two small dimensions; two large ones are noise that is shared."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.arange(classes).repeat_interleave(per_class)
    rows = len(label)
    centers = torch.randn(classes, 2, generator=generator)
    small = centers[label] + 0.4 * torch.randn(rows, 2, generator=generator)
    noise = 3 * torch.randn(rows, 2, generator=generator)
    return Table(
        inputs=torch.cat([small, noise + 0.8 * small.flip(1)], 1) + 1,
        label=label,
        names=tuple(f"c{first + i}" for i in range(classes)),
        ids=tuple(map(str, range(rows))),
        columns=columns,
    )


def value(block, metric="recall@1"):
    return block["cosine"][metric]["value"]


def test_the_three_floors_are_those_of_the_evaluator():
    train, validation, test = table(12), table(6, 12, seed=1), table(6, 18, seed=2)
    said = floors(train, validation, test, METRICS, 0)
    found = scatter(train.inputs, train.label) + scatter(validation.inputs, validation.label)
    shrinkage = said["whitened"]["shrinkage"]
    wanted = {
        "raw": test.inputs,
        "standardized": standardizing(found)(test.inputs),
        "whitened": whitening(found, shrinkage)(test.inputs),
    }
    assert list(said) == list(wanted)
    for name, z in wanted.items():
        assert said[name]["cosine"] == evaluate(z, test.label, metrics=METRICS).to_dict()
        assert set(said[name]) - {"shrinkage", "chosen_on"} == {
            "cosine",
            "queries",
            "without_relevant",
        }
    assert value(said["whitened"]) > value(said["standardized"]) > value(said["raw"])


def test_the_shrinkage_is_the_best_of_the_validation_classes_fitted_without_them():
    train, validation, test = table(12), table(6, 12, seed=1), table(6, 18, seed=2)
    found, score = scatter(train.inputs, train.label), validation_score(validation, 0)
    scores = [score(whitening(found, s)(validation.inputs)) for s in SHRINKAGES]
    best = max(range(len(SHRINKAGES)), key=lambda i: (scores[i], i))
    said = floors(train, validation, test, METRICS, 0)["whitened"]
    assert (said["shrinkage"], said["chosen_on"]) == (SHRINKAGES[best], "validation")


@pytest.mark.parametrize("validation", [None, table(5, 12, per_class=1)])
def test_without_validation_to_score_the_shrinkage_is_the_default(validation):
    said = floors(table(12), validation, table(6, 18, seed=2), METRICS, 0)["whitened"]
    assert (said["shrinkage"], said["chosen_on"]) == (0.3, "default")


def test_queries_search_the_gallery_only():
    is_query = torch.arange(72) % 3 == 0
    test = table(6, 18, seed=2, is_query=is_query, is_gallery=~is_query)
    said = floors(table(12), None, test, METRICS, 0)
    assert said["whitened"]["queries"] == 24
    z, y = test.inputs, test.label
    alone = evaluate(z[is_query], y[is_query], z[~is_query], y[~is_query], metrics=METRICS)
    assert said["raw"]["cosine"] == alone.to_dict()


def test_only_flat_rows_of_floating_numbers_are_features():
    rows = table(3)
    assert has_features(rows)
    for inputs in (
        torch.ones(36, 4, dtype=torch.int64),
        torch.ones(36, 1, 4, 4),
        torch.ones(36, 9000),
        ["a.jpg"] * 36,
    ):
        assert not has_features(Table(inputs, rows.label, rows.names, rows.ids))
    assert ranking_metrics(["nmi", "recall@4", "information"]) == ["recall@4"]
    assert ranking_metrics(["nmi", "ami"]) == ["recall@1", "map@r"]


# In a run


@pytest.fixture(scope="module")
def done(tmp_path_factory, rows):
    torch.set_num_threads(1)
    made = tiny_runs.recipe(rows, evaluate=["recall@1", "map@r", "nmi"], train={"epochs": 1})
    out = tmp_path_factory.mktemp("floors") / "run"
    return nk.train(made, out=out, reporter=Reporter(None))


def test_a_run_on_features_says_its_floors(done, rows):
    said = done.metrics["floors"]
    assert list(said) == ["raw", "standardized", "whitened"]
    assert said["raw"] == done.metrics["raw"]
    assert list(said["whitened"]["cosine"]) == ["recall@1", "map@r"]
    with np.load(rows) as held:
        test = held["split"] == 2
        alone = evaluate(held["inputs"][test], held["labels"][test], metrics=METRICS)
    assert said["raw"]["cosine"] == alone.to_dict()


def test_a_run_on_pictures_has_no_floors(tmp_path):
    small = {"encoder.small_cnn.width": 4, "train.epochs": 1, "evaluate": ["recall@1"]}
    run = nk.train("digits", set=small, out=tmp_path / "run", reporter=Reporter(None))
    assert "floors" not in run.metrics
    assert "raw" in run.metrics


def test_the_table_shows_them_below_the_trained_figure(done):
    lines = scores_table(done.metrics).splitlines()
    (at,) = (i for i, line in enumerate(lines) if line.startswith("the features without training"))
    assert next(filter(None, lines[at + 1 :])).split() == ["raw", "standardized", "whitened"]
    white = f"{100 * value(done.metrics['floors']['whitened']):.1f}"
    (first,) = (line for line in lines[at:] if line.split()[:1] == ["recall@1"])
    assert white in first
    assert "raw input" not in "\n".join(lines[:at])
    on = "shrinkage 0.3 by default"
    assert on in floors_table(
        {
            "whitened": {
                **done.metrics["floors"]["whitened"],
                "shrinkage": 0.3,
                "chosen_on": "default",
            }
        }
    )


def test_a_trained_encoder_below_a_floor_is_told(done):
    floor = done.metrics["floors"]["whitened"]
    high = {**floor["cosine"], "recall@1": {"value": 1.0}}
    low = {**done.metrics["test"]["cosine"], "recall@1": {"value": 0.5}}
    said = {
        **done.metrics,
        "test": {**done.metrics["test"], "cosine": low},
        "floors": {**done.metrics["floors"], "whitened": {**floor, "cosine": high}},
    }
    told = "the whitened features alone give more recall@1 than this"
    assert scores_table(said).endswith(told)
    said["test"]["cosine"] = {**low, "recall@1": {"value": 1.0}}
    assert told not in scores_table(said)


@pytest.mark.slow
def test_two_processes_say_the_floors_of_one(tmp_path):
    rows = tiny_runs.write_rows(tmp_path / "rows.npz")
    said = []
    for count in ("1", "2"):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc-per-node", count, "-m", "nearkin", "train", "tiny.yaml", "--json"]
        (tmp_path / "tiny.yaml").write_text(
            json.dumps(
                tiny_runs.recipe(
                    rows,
                    encoder={"head": {"start": "whitened"}},
                    objective={"compared": {"compare": "in_batch", "loss": "supcon"}},
                )
            )
        )
        done = subprocess.run(
            [*command, "--out", count],
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"},
            capture_output=True,
            text=True,
            check=True,
        )
        said.append(json.loads(done.stdout))
    assert said[0]["floors"] == said[1]["floors"]
    assert said[0]["untrained"] == said[1]["untrained"]
