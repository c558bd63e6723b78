"""A tiny recipe that trains in a blink, and what two run folders must agree in."""

import copy
import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

SCHEDULE = {"warmup_cosine": {"warmup": 4}}
COMPARED = {
    "compared": {"compare": {"classifier": {"dropout": 0.2}}, "loss": {"cross_entropy": {}}}
}
ADAMW = {"adamw": {"lr": 0.01}}
MOMENTUM = {"sgd": {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}}
MEMORY = {"compared": {"compare": {"memory": {"size": 40}}, "loss": {"contrastive": {}}}}
CRITIC = {"jensen_shannon": {"critic_steps": 2, "width": 8}}
RANKMI = {"rankmi": {"warmup": 3, "width": 8}}
ALTERNATING = {"alternating_jensen_shannon": {"critic_steps": 2, "width": 8}}


def write_rows(path: Path, classes: int = 12, per_class: int = 12, dim: int = 6) -> Path:
    """Clusters on a circle, two thirds of the classes to train, the rest in halves."""
    generator = np.random.default_rng(0)
    label = np.repeat(np.arange(classes), per_class)
    centers = generator.normal(size=(classes, dim))
    rows = centers[label] + generator.normal(size=(len(label), dim))
    split = np.where(label < classes * 2 // 3, 0, np.where(label < classes * 5 // 6, 1, 2))
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, inputs=rows.astype(np.float32), labels=label, split=split)
    return path


def recipe(path: Path, **changes: object) -> dict:
    """24 steps in 4 epochs on the rows in `path`; keys are replaced, `train` is updated."""
    said: dict = {
        "seed": 0,
        "data": {"npz": {"path": str(path)}},
        "encoder": {"mlp": {"dim": 4, "hidden": [8], "dropout": 0.1}},
        "sampler": {"uniform": {"batch": 16}},
        "objective": COMPARED,
        "optim": {"default": ADAMW},
        "train": {"epochs": 4, "select": "last", "schedule": SCHEDULE},
        "evaluate": ["recall@1", "map@r"],
    }
    for key, value in copy.deepcopy(changes).items():
        said[key] = {**said["train"], **value} if key == "train" else value
    return said


def lines(folder: Path, *events: str) -> list[dict]:
    """The records of the log of these events, without what a clock says."""
    read = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    timed = ("seconds", "rows_per_second")
    return [
        {key: value for key, value in record.items() if key not in timed}
        for record in read
        if record["event"] in events
    ]


def assert_identical(one: Path, two: Path) -> None:
    """Every tensor of model/, embeddings.npz, metrics.json but seconds, and the log of steps."""
    weights = sorted(path.name for path in (one / "model").glob("*.safetensors"))
    assert weights == ["encoder.safetensors", "objective.safetensors"]
    for name in weights:
        a, b = load_file(one / "model" / name), load_file(two / "model" / name)
        assert a.keys() == b.keys()
        for key, value in a.items():
            assert torch.equal(value, b[key]), f"{name}: {key}"
    a, b = (json.loads((run / "metrics.json").read_text()) for run in (one, two))
    assert a.pop("seconds") > 0
    assert b.pop("seconds") > 0
    assert a == b
    with np.load(one / "embeddings.npz") as a, np.load(two / "embeddings.npz") as b:
        assert a.files == b.files
        for key in a.files:
            assert np.array_equal(a[key], b[key]), key
    for events in (("step",), ("epoch",), ("panel",), ("start", "distances")):
        assert lines(one, *events) == lines(two, *events)
    assert (one / "model" / "model.json").read_text() == (two / "model" / "model.json").read_text()
