"""RankMI beside triplet, margin and contrastive, one encoder and one budget, classes never seen.

    python benchmarks/rankmi.py omniglot FILE.npz [--rows NAME ...] [--seeds N] [--out DIR]
                                                  [--table FILE.md]
    python benchmarks/rankmi.py features FILE.npz ...

omniglot   FILE.npz as benchmarks/omniglot.py reads it; its network, optimizer and settings of the
           other losses
features   FILE.npz  `feature` (N, D), `label` (N,), `split` (N,) 0 for classes to train on and 1
           for those to test on; a linear head from the identity

RankMI gives one player its turn in a batch, so that at as many rows seen as the others the encoder
gets half of their updates; rows of the table with more epochs stand beside. "printed" has the
paper's settings, "searched" those that a small search on training characters chose: every negative
within the margin, 100 batches of warm-up, rate 1e-3 in place of 4e-3. Nothing is selected on test
classes: the figures are those of the last step. Seconds are those of the processor, for training
and measuring; a run that stood there before has none.
"""

from __future__ import annotations

import argparse
import math
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import nearkin as nk
from nearkin.config import load_recipe
from nearkin.console import Reporter

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import omniglot  # noqa: E402

METRICS = ("recall@1", "recall@2", "map@r")
V_LEARNS = {"adam": {"lr": 1e-3, "weight_decay": 1e-4}}


def rankmi(epochs: int, lr: float, **settings: Any) -> dict[str, Any]:
    return {
        "objective": {"rankmi": settings},
        "optim.default": {"adamw": {"lr": lr, "weight_decay": 1e-4}},
        "optim.statistics": V_LEARNS,
        "train.epochs": epochs,
    }


def searched(epochs: int) -> dict[str, Any]:
    return rankmi(epochs, 1e-3, warmup=100, cutoff=None)


def of_omniglot(name: str, epochs: int) -> dict[str, Any]:
    return {**omniglot.OBJECTIVES[name], "train.epochs": epochs}


OTHERS = ("triplet", "contrastive", "margin")
LONGER = (10, 20, 40, 80)  # epochs
# Whole epochs of 30 characters by 4 drawings, 96,000 drawings in 5 of them.
BUDGET = {"train.steps": None, "sampler": {"balanced": {"classes": 30, "per_class": 4}}}
_OMNIGLOT: dict[str, dict[str, Any]] = {
    **{name: of_omniglot(name, 5) for name in OTHERS},
    "rankmi printed": rankmi(5, 4e-3),
    "rankmi searched": searched(5),
    **{f"{name}, {n} epochs": of_omniglot(name, n) for n in LONGER for name in OTHERS},
    **{f"rankmi searched, {n} epochs": searched(n) for n in LONGER},
}
OMNIGLOT = {name: {**said, **BUDGET} for name, said in _OMNIGLOT.items()}

FEATURES_RECIPE: dict[str, Any] = {
    "seed": 0,
    "data": {"npz": {"path": "features.npz", "validation": 0}},
    "encoder": {"head": {"start": "identity"}},
    "sampler": {"balanced": {"classes": 32, "per_class": 4}},
    "objective": {"compared": {"compare": {"in_batch": {}}, "loss": {"triplet": {}}}},
    "optim": {"default": {"adamw": {"lr": 1e-3, "weight_decay": 1e-4}}},
    "train": {"epochs": 20, "schedule": {"warmup_cosine": {"warmup": 75}}, "select": "last"},
    "evaluate": list(METRICS),
}


def pairs(lr: float, loss: str, **settings: Any) -> dict[str, Any]:
    compared = {"compare": {"in_batch": {}}, "loss": {loss: settings}}
    return {"objective": {"compared": compared}, "optim.default.adamw.lr": lr}


FEATURES: dict[str, dict[str, Any]] = {
    "triplet": pairs(3e-4, "triplet", margin=0.1),
    "contrastive": pairs(3e-4, "contrastive"),
    "margin": {
        "objective": {
            "compared": {
                "compare": {"in_batch": {}},
                "loss": {"margin": {}},
                "mining": {"distance_weighted": {}},
                "learn": {"beta": {"start": 0.9, "per": "class"}},
            }
        },
        "optim.objective": {"sgd": {"lr": 0.1, "momentum": 0.9}},
    },
    "rankmi printed": rankmi(20, 1e-3),
    "rankmi printed, 30 epochs": rankmi(30, 1e-3),
}
FEATURES |= {
    f"{name}, {epochs} epochs": {**said, "train.epochs": epochs}
    for epochs in (40, 80)
    for name, said in FEATURES.items()
    if "epochs" not in name
}


def prepared_features(source: Path, folder: Path) -> Path:
    """The rows under the names that the set `npz` reads, scaled to mean length 16."""
    with np.load(source, allow_pickle=False) as file:
        x, label, split = (file[key] for key in ("feature", "label", "split"))
    x = x.astype(np.float32)
    place, unfinished = folder / "features.npz", folder / ".features.npz"
    with unfinished.open("wb") as out:
        scale = 16 / np.linalg.norm(x, axis=1).mean()
        np.savez(out, inputs=x * scale, labels=label, split=np.array(["train", "test"])[split])
    unfinished.replace(place)
    return place


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("on", choices=("omniglot", "features"))
    parser.add_argument("file", type=Path)
    parser.add_argument("--rows", nargs="*", help="names of the rows of the table; default: all")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("runs/rankmi"))
    parser.add_argument("--table", type=Path, help="write the table as Markdown, too")
    given = parser.parse_args()
    known = OMNIGLOT if given.on == "omniglot" else FEATURES
    names = list(known) if given.rows is None else given.rows
    if unknown := [name for name in names if name not in known]:
        parser.error(f"there is no row {unknown[0]!r}; the rows: {', '.join(known)}")
    folder = given.out / given.on
    folder.mkdir(parents=True, exist_ok=True)
    if given.on == "omniglot":
        recipe, data = load_recipe(HERE / "omniglot.yaml"), omniglot.prepared(given.file, folder)
    else:
        recipe, data = FEATURES_RECIPE, prepared_features(given.file, folder)
    rows = []
    for name in names:
        found = [
            one(recipe, known[name], seed, data, folder / f"{slug(name)}_{seed}")
            for seed in range(given.seeds)
        ]
        rows.append(row(name, found))
        print(rows[-1], flush=True)
    text = table(rows, given.seeds)
    print(text)
    if given.table:
        given.table.write_text(text, encoding="utf-8")


def slug(name: str) -> str:
    return "_".join(name.replace(",", "").split())


def one(
    recipe: dict[str, Any], changes: dict[str, Any], seed: int, data: Path, out: Path
) -> dict[str, float]:
    stood, began = out.exists(), time.process_time()
    run = nk.train(
        recipe,
        set={"seed": seed, "data.npz.path": str(data), **changes},
        out=out,
        resume=True,
        reporter=Reporter(None),
    )
    scores = run.metrics["test"]["cosine"]
    seconds = float("nan") if stood else time.process_time() - began
    return {**{key: scores[key]["value"] for key in METRICS}, "seconds": seconds}


def row(name: str, found: list[dict[str, float]]) -> str:
    def said(key: str) -> str:
        values = [run[key] for run in found]
        spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
        return f"{statistics.fmean(values):.3f}{spread}"

    seconds = statistics.fmean(run["seconds"] for run in found)
    spent = "" if math.isnan(seconds) else f"{seconds:.0f}"
    return f"| {name} | {len(found)} | {' | '.join(map(said, METRICS))} | {spent} |"


def table(rows: list[str], seeds: int) -> str:
    said = (
        f"seeds 0 to {seeds - 1}, {platform.machine()}, {torch.get_num_threads()} thread, Python "
        f"{platform.python_version()}, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}"
    )
    head = f"| objective | seeds | {' | '.join(METRICS)} | CPU seconds a run |"
    return "\n".join([head, "|---|---|---|---|---|---|", *rows, "", f"({said})", ""])


if __name__ == "__main__":
    sys.exit(main())
