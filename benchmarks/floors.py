"""Heads trained on frozen features against what the features give without training; no trunk runs
here.

    python benchmarks/floors.py FEATURES.npz [--seeds 3] [--steps 600] [--out DIR]

FEATURES.npz holds feature (N, D), label (N,) integers and split (N,), 0 for the classes of training
and 1 for those of the test. The last fifth of the training classes, in the order of their labels,
chooses the shrinkage; then everything is fitted or trained on all of them, by settings fixed here
and not chosen on the test classes. Prints recall@1 and map@r on the test classes in percent, mean
and, over seeds, standard deviation.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import nearkin as nk
from nearkin.console import Reporter
from nearkin.measured import measure
from nearkin.sample import Balanced

METRICS = ("recall@1", "map@r")
RATE, RATES = 1e-3, {"contrastive": 3e-4}  # three times as much, and contrastive loses 5 points
OBJECTIVES: dict[str, dict[str, Any]] = {
    "supcon": {"compare": {"in_batch": {}}, "loss": {"supcon": {"temperature": 0.07}}},
    "contrastive": {"compare": {"in_batch": {}}, "loss": {"contrastive": {"margin": 1.0}}},
    "multi_similarity": {"compare": {"in_batch": {}}, "loss": {"multi_similarity": {}}},
    "norm_softmax": {"compare": {"proxies": {}}, "loss": {"norm_softmax": {}}},
}


def converted(path: Path, out: Path) -> Path:
    """The file in the names that nearkin reads: inputs, labels, split (train or test)."""
    with np.load(path, allow_pickle=False) as held:
        split = np.where(held["split"] == 0, "train", "test")
        inputs, labels = held["feature"].astype(np.float32), held["label"].astype(np.int64)
    np.savez(out, inputs=inputs, labels=labels, split=split)
    return out


def recipe(path: Path, head: dict[str, Any], objective: str, steps: int, seed: int) -> dict:
    """A head on all training classes, 32 x 4 rows a batch, the last step kept."""
    return {
        "seed": seed,
        "data": {"npz": {"path": str(path), "validation": 0}},
        "encoder": {"head": head},
        "sampler": {"balanced": {"classes": 32, "per_class": 4}},
        "objective": {"compared": OBJECTIVES[objective]},
        "optim": {"default": {"adamw": {"lr": RATES.get(objective, RATE), "weight_decay": 1e-4}}},
        "train": {
            "epochs": max(1, round(steps / batches(path))),
            "select": "last",
            "schedule": {"warmup_cosine": {"warmup": 50}},
        },
        "evaluate": list(METRICS),
    }


def batches(path: Path) -> int:
    """Batches in an epoch of the balanced sampler."""
    with np.load(path) as held:
        labels = held["labels"][held["split"] == "train"]
    columns = {"label": torch.from_numpy(np.unique(labels, return_inverse=True)[1])}
    return len(Balanced(classes=32, per_class=4).batches(columns, 0, 0))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("features", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--out", type=Path, help="keep the runs in this folder")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        out = chosen.out or Path(scratch)
        out.mkdir(parents=True, exist_ok=True)
        path = converted(chosen.features, out / "features.npz")
        found = measure(path, metrics=METRICS, closeness="cosine", with_floors=True)["floors"]
        for name, block in found.items():
            show(name, [[block["cosine"][metric]["value"] for metric in METRICS]])
        shrinkage = found["whitened"]["shrinkage"]
        print(f"shrinkage {shrinkage:g}, chosen on {found['whitened']['chosen_on']}")
        heads = {"identity": {"start": "identity"}}
        heads["whitened"] = {"start": "whitened", "shrinkage": shrinkage}
        for objective in OBJECTIVES:
            for start, head in heads.items():
                train(path, out, start, head, objective, chosen.steps, chosen.seeds)


def train(
    path: Path, out: Path, start: str, head: dict, objective: str, steps: int, seeds: int
) -> None:
    """One line of the table: before the first step, and after the last."""
    before, after, began = [], [], time.perf_counter()
    for seed in range(seeds):
        run = nk.train(
            recipe(path, head, objective, steps, seed),
            out=out / f"{objective}-{start}-{seed}",
            force=True,
            reporter=Reporter(None),
        )
        for scores, block in ((before, "untrained"), (after, "test")):
            said = run.metrics[block]["cosine"]
            scores.append([said[metric]["value"] for metric in METRICS])
    show(f"head from {start}, no step", before[:1])
    seconds = (time.perf_counter() - began) / seeds
    show(f"head from {start}, {objective}", after, f"{seconds:.0f} s a run")


def show(name: str, scores: list[list[float]], note: str = "") -> None:
    """Mean and deviation of each metric."""
    parts = []
    for values in zip(*scores, strict=True):
        spread = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
        parts.append(f"{100 * statistics.mean(values):5.1f}{spread:6}")
    print(f"{name:38} {'  '.join(parts)}  {note}".rstrip(), flush=True)


if __name__ == "__main__":
    main()
