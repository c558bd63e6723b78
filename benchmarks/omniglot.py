"""Omniglot end to end: several objectives, one encoder, one budget, characters never seen.

    python benchmarks/omniglot.py FILE.npz [--objectives NAME ...] [--seeds N] [--out DIR]
                                  [--table FILE.md]

FILE.npz  `image` (N, 28, 28) uint8, `label` (N,), `split` (N,) 0 for the 964 characters to train
          on and 1 for the 659 to test on, `alphabet` (N,)

Every run takes 800 steps of 128 drawings by AdamW (omniglot.yaml): 32 characters by 4 drawings, or
at random over characters; nothing is selected on test characters: the figure is that of the last
step. The settings of each objective are those that a
search on validation characters chose once. Prints the mean and the standard deviation over seeds.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import nearkin as nk
from nearkin.console import Reporter

HERE = Path(__file__).parent
LOSS = "objective.compared.loss"
UNIFORM = {"sampler": {"uniform": {"batch": 128}}}


def pairs(loss: str, **settings: Any) -> dict[str, Any]:
    return {LOSS: {loss: settings}}


def proxies(loss: str, **settings: Any) -> dict[str, Any]:
    return {**UNIFORM, "objective.compared.compare": {"proxies": {}}, LOSS: {loss: settings}}


OBJECTIVES: dict[str, dict[str, Any]] = {
    "cross_entropy": {
        **UNIFORM,
        "encoder.small_cnn.batchnorm": True,
        "objective.compared.compare": {"classifier": {"dropout": 0.1}},
        LOSS: {"cross_entropy": {"label_smoothing": 0.1}},
    },
    "norm_softmax": proxies("norm_softmax", temperature=0.1),
    "proxy_anchor": proxies("proxy_anchor"),
    "multi_similarity": pairs("multi_similarity"),
    "margin": {
        LOSS: {"margin": {}},
        "objective.compared.mining": {"distance_weighted": {}},
        "objective.compared.learn": {"beta": {"start": 0.9, "per": "class"}},
        "optim.objective": {"sgd": {"lr": 0.1, "momentum": 0.9}},
    },
    "supcon": pairs("supcon", temperature=0.07),
    "contrastive": pairs("contrastive"),
    "triplet": pairs("triplet", margin=0.1),
}


def prepared(source: Path, folder: Path) -> Path:
    """The drawings under the names that the set `npz` reads."""
    with np.load(source, allow_pickle=False) as file:
        image, label, split, alphabet = (file[k] for k in ("image", "label", "split", "alphabet"))
    names = np.array(["train", "test"])[split]
    place = folder / "omniglot.npz"
    unfinished = folder / ".omniglot.npz"
    with unfinished.open("wb") as out:
        np.savez(out, images=image, labels=label, split=names, super_labels=alphabet)
    unfinished.replace(place)
    return place


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--objectives", nargs="*", choices=OBJECTIVES, default=list(OBJECTIVES))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/omniglot"))
    parser.add_argument("--table", type=Path, help="write the table as Markdown, too")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    data = prepared(given.file, given.out)
    rows = []
    for name in given.objectives:
        found = [one(name, seed, data, given.out) for seed in range(given.seeds)]
        rows.append(row(name, found))
        print(rows[-1], flush=True)
    text = table(rows, given.seeds)
    print(text)
    if given.table:
        given.table.write_text(text, encoding="utf-8")


def one(name: str, seed: int, data: Path, folder: Path) -> dict[str, float]:
    run = nk.train(
        HERE / "omniglot.yaml",
        set={"seed": seed, "data.npz.path": str(data), **OBJECTIVES[name]},
        out=folder / f"{name}_{seed}",
        resume=True,
        reporter=Reporter(None),
    )
    scores = run.metrics["test"]
    values = {key: scores["cosine"][key]["value"] for key in ("recall@1", "recall@2", "map@r")}
    return {**values, "seconds": run.metrics["seconds"]}


def row(name: str, found: list[dict[str, float]]) -> str:
    def said(key: str) -> str:
        values = [run[key] for run in found]
        spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
        return f"{statistics.fmean(values):.3f}{spread}"

    cells = [said(key) for key in ("recall@1", "recall@2", "map@r")]
    seconds = statistics.fmean(run["seconds"] for run in found)
    return f"| {name} | {' | '.join(cells)} | {seconds:.0f} |"


def table(rows: list[str], seeds: int) -> str:
    said = (
        f"{seeds} seeds, {platform.machine()}, {torch.get_num_threads()} threads, Python "
        f"{platform.python_version()}, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}"
    )
    head = "| objective | recall@1 | recall@2 | map@r | seconds a run |"
    return "\n".join([head, "|---|---|---|---|---|", *rows, "", f"({said})", ""])


if __name__ == "__main__":
    sys.exit(main())
