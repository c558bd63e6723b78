"""Seconds of what is asked of a result after its metrics: intervals, tests, tables, wrong
neighbors and graded ndcg@K, at the size of Stanford Online Products: 60,502 x 512.

    python benchmarks/evaluation_people.py [rows] [dims]

Rows are noise around random centers, 2-9 rows a class, twelve super-classes; all compiled loops are
called once before, on few rows.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

import nearkin.evaluation as evaluation


def made(rows: int, dims: int, noise: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(rows), generator.integers(2, 10, rows))[:rows]
    centers = generator.standard_normal((labels[-1] + 1, dims), dtype=np.float32)
    other = np.random.default_rng(seed).standard_normal((rows, dims), dtype=np.float32)
    return centers[labels] + noise * other, labels


def timed(name: str, work: Callable[[], Any]) -> Any:
    begun = time.perf_counter()
    found = work()
    print(f"{name:<58} {time.perf_counter() - begun:7.2f} s", flush=True)
    return found


def main() -> None:
    rows, dims = (int(value) for value in (sys.argv[1:3] + ["60502", "512"][len(sys.argv[1:3]) :]))
    print(f"{rows} x {dims}, torch {torch.__version__}, {torch.get_num_threads()} thread(s)")
    few, labels = made(5000, dims, 2.0, 1)
    evaluation.evaluate(few, labels, metrics="map@r").wrong(1)
    evaluation.evaluate(few, labels, metrics="recall@1").wrong(1)
    z, labels = made(rows, dims, 2.0, 1)
    other, _ = made(rows, dims, 2.02, 2)
    family = labels % 12
    names = ("recall@1", "map@r")
    a = timed("evaluate: recall@1, map@r", lambda: evaluation.evaluate(z, labels, metrics=names))
    b = timed("the same of another embedding", lambda: evaluation.evaluate(other, labels))
    for over in ("classes", "queries"):
        timed(f"interval of map@r over {over}", lambda: a.interval("map@r", over))  # noqa: B023
        for test in ("sign_flip", "bootstrap"):
            found = timed(
                f"compare_results, map@r, over {over}, {test}",
                lambda: evaluation.compare_results(a, b, "map@r", over, test),  # noqa: B023
            )
            print(f"    {found!r}")
    timed("by_class", lambda: a.by_class("map@r"))
    timed("by_group", lambda: a.by_group("map@r", family))
    timed("worst_classes", lambda: a.worst_classes("map@r"))
    timed("wrong neighbors, the first time", a.wrong)
    timed("thieves, after it", a.thieves)
    print(f"recall@1 {a['recall@1']:.3f}: {len(a.wrong(rows))} wrong neighbors")
    timed("evaluate: ndcg@10", lambda: evaluation.evaluate(z, labels, metrics="ndcg@10"))
    timed(
        "evaluate: ndcg@10, graded by 12 super-labels",
        lambda: evaluation.evaluate(z, labels, metrics="ndcg@10", super_labels=family),
    )


if __name__ == "__main__":
    main()
