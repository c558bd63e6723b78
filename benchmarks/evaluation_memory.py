"""Peak extra memory and time of nearkin's evaluation at the size of Stanford Online Products:
60,502 x 512.

    python benchmarks/evaluation_memory.py [rows] [dims] [closeness] [metric,metric,...] [classes]

Labels have 2-9 rows a class unless a number of equal classes is given. Linux only: the peak is the
kernel's.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import torch

import nearkin.evaluation as evaluation

BOUND = 512  # MiB


def labels_like_products(rows: int, generator: np.random.Generator) -> np.ndarray:
    sizes = generator.integers(2, 10, rows)
    return np.repeat(np.arange(rows), sizes)[:rows]


def resident(field: str) -> float:
    """MiB of VmRSS (now) or VmHWM (the peak since it was last forgotten)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def main() -> None:
    rows, dims = (int(value) for value in (sys.argv[1:3] + ["60502", "512"][len(sys.argv[1:3]) :]))
    closeness = sys.argv[3] if len(sys.argv) > 3 else "cosine"
    names = sys.argv[4] if len(sys.argv) > 4 else "recall@1,recall@10,recall@100,map@r,mrr"
    generator = np.random.default_rng(0)
    if len(sys.argv) > 5:
        labels = np.arange(rows) % int(sys.argv[5])
    else:
        labels = labels_like_products(rows, generator)
    centers = torch.randn(int(labels.max()) + 1, dims, generator=torch.Generator().manual_seed(0))
    z = centers[torch.from_numpy(labels)]
    z += 2.5 * torch.randn(z.shape, generator=torch.Generator().manual_seed(1))
    del centers
    warm = torch.randn(64, 8, generator=torch.Generator().manual_seed(2))
    evaluation.evaluate(warm, np.arange(64) % 4, metrics=names.split(","), closeness=closeness)

    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    start = time.perf_counter()
    result = evaluation.evaluate(z, labels, metrics=names.split(","), closeness=closeness)
    seconds = time.perf_counter() - start
    peak = resident("VmHWM") - before
    print(f"{rows} x {dims}, {len(np.unique(labels))} classes, {torch.get_num_threads()} threads")
    print(result)
    print(f"peak extra memory {peak:.0f} MiB (bound {BOUND}), {seconds:.1f} s")
    if peak > BOUND:
        sys.exit(1)


if __name__ == "__main__":
    main()
