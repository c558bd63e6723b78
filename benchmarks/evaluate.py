"""The evaluator against its floor and its peers at the size of Stanford Online Products.

    python benchmarks/evaluate.py [recall] [metrics] [plain] [peers] [default] [kmeans]
        [--rows 60502] [--dim 512] [--part 4096] [--repeats 3] [--threads 1]

Embeddings are made: 2-9 rows a class, recall@1 near 0.6 as of a run on such data. The floor is the
float32 matrix product alone: torch.mm of all pairs, tile by tile into one buffer; `numpy` is the
same by numpy's library. Ways take turns (A B C A B C ...), so that a busy machine slows them alike;
the table gives seconds by the clock and of the processor (median and best), and ratios to the floor
by the median of seconds by the clock (--by cores: of the processor). What takes minutes runs on the
first `--part` queries against the whole gallery; its time is scaled to all queries, and the line
says so.

    recall   recall@{1,10,100,1000}, leave one out (half a matrix) and queries in a gallery,
             screened in bfloat16 (where it pays) and float32
    metrics  all metrics of rankings in one pass
    plain    both without numba
    peers    faiss flat with k = 1001, scikit-learn brute force, pytorch-metric-learning at its best
             setting, open-metric-learning where it is installed, and nearkin in the same rounds
    default  pytorch-metric-learning's default at 5,000 and 10,000 x 128, the same metrics by both
    kmeans   five passes of Lloyd's algorithm, 128 dimensions, 11,316 and 3,745 centers, against
             faiss
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from nearkin.evaluation import evaluate, per_query_values, screened
from nearkin.evaluation.kmeans import kmeans, random_centers
from nearkin.search import loops
from nearkin.search.products import precisions

RECALL = ("recall@1", "recall@10", "recall@100", "recall@1000")
METRICS = (*RECALL, "r_precision", "map@r", "map@100", "mrr", "ndcg@10", "precision@10")
Ways = Mapping[str, tuple[Callable[[], object], float]]  # and by how much its time is scaled


def made(rows: int, dim: int, latent: int = 32, noise: float = 0.8) -> tuple[Tensor, np.ndarray]:
    """Unit rows (N, D) float32 and labels of 2-9 rows a class, in random order."""
    g = torch.Generator().manual_seed(0)
    sizes = torch.randint(2, 10, (rows,), generator=g)
    y = torch.repeat_interleave(torch.arange(rows), sizes)[:rows]
    y = y[torch.randperm(rows, generator=g)]
    centers = torch.randn(int(y.max()) + 1, latent, generator=g)
    z = centers[y] + noise * torch.randn(rows, latent, generator=g)
    z = z @ torch.randn(latent, dim, generator=g)
    z += 0.3 * latent**0.5 * torch.randn(rows, dim, generator=g)
    return torch.nn.functional.normalize(z).contiguous(), y.numpy()


def product(queries: Tensor, gallery: Tensor, rows: int = 1024, columns: int = 8192) -> None:
    """Every similarity in float32, and nothing else."""
    buffer = torch.empty(rows * columns)
    for q in queries.split(rows):
        for g in gallery.split(columns):
            torch.mm(q, g.T, out=buffer[: len(q) * len(g)].view(len(q), len(g)))


def numpy_product(queries: np.ndarray, gallery: np.ndarray, step: int = 1024) -> None:
    """The same by numpy."""
    out = np.empty((step, len(gallery)), np.float32)
    for i in range(0, len(queries), step):
        q = queries[i : i + step]
        np.matmul(q, gallery.T, out=out[: len(q)])


def compared(title: str, ways: Ways, repeats: int, by: str = "clock") -> None:
    """Run the ways in turn and print a table; the first one is the floor."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, (way, scale) in ways.items():
            clock, cores = time.perf_counter(), time.process_time()
            way()
            seconds = time.perf_counter() - clock, time.process_time() - cores
            taken[name].append((seconds[0] * scale, seconds[1] * scale))
    print(f"\n{title}; {repeats} rounds, ratios by {by}", flush=True)
    print(f"  {'':46} {'clock: median':>14} {'best':>8} {'cores: median':>14} {'best':>8}  ratio")
    middles = {
        name: {"clock": statistics.median(clocks), "cores": statistics.median(cores)}
        for name, rounds in taken.items()
        for clocks, cores in [zip(*rounds, strict=True)]
    }
    floor = next(iter(middles.values()))[by]
    for name, rounds in taken.items():
        clocks, cores = zip(*rounds, strict=True)
        middle = middles[name]
        note = "" if ways[name][1] == 1 else f"   (x {ways[name][1]:.1f}, from a part)"
        print(
            f"  {name:46} {middle['clock']:12.3f} s {min(clocks):6.3f} s "
            f"{middle['cores']:12.3f} s {min(cores):6.3f} s  {middle[by] / floor:.3f}{note}",
            flush=True,
        )


class In:
    """Within it, screens use this precision, and the compiled loops or not."""

    def __init__(self, dtype: torch.dtype | None, compiled: bool = True):
        self.patches = []
        if dtype is not None:
            self.patches.append(mock.patch.object(screened, "precision", return_value=dtype))
        if not compiled:
            self.patches.append(mock.patch.object(loops, "compiled", return_value=None))

    def __call__(self, way: Callable[[], object]) -> Callable[[], object]:
        def inside() -> object:
            for patch in self.patches:
                patch.start()
            try:
                return way()
            finally:
                for patch in self.patches:
                    patch.stop()

        return inside


def onednn_product(queries: Tensor, gallery: Tensor, step: int = 1024) -> None:
    """The same by oneDNN, as torch's compiler calls it."""
    for q in queries.split(step):
        for g in gallery.split(step):
            torch.ops.mkldnn._linear_pointwise(q, g, None, "none", [], "")


def floors(z: Tensor, part: int) -> dict[str, tuple[Callable[[], object], float]]:
    scale = len(z) / part
    return {
        "float32 product, torch.mm (the floor)": (lambda: product(z[:part], z), scale),
        "float32 product, numpy": (lambda: numpy_product(z[:part].numpy(), z.numpy()), scale),
        "float32 product, oneDNN": (lambda: onednn_product(z[:part], z), scale),
    }


def ours(
    z: Tensor, y: np.ndarray, metrics: tuple[str, ...], part: int, compiled: bool
) -> dict[str, tuple[Callable[[], object], float]]:
    """Leave one out over all rows; queries in a gallery over a part of them."""
    some = slice(0, part)

    def in_gallery() -> object:
        # A copy, so that the rows are not known to be the gallery's own.
        return per_query_values(z[some].clone(), y[some], z, y, metrics=metrics)

    found: dict[str, tuple[Callable[[], object], float]] = {}
    for dtype in precisions(z.shape[1], z.device):
        name = str(dtype).removeprefix("torch.")
        found[f"leave one out, {name}"] = (
            In(dtype, compiled)(lambda: evaluate(z, y, metrics=metrics)),
            1.0,
        )
        found[f"queries in a gallery, {name}"] = (In(dtype, compiled)(in_gallery), len(z) / part)
    return found


def peers(z: Tensor, y: np.ndarray, part: int) -> dict[str, tuple[Callable[[], object], float]]:
    import faiss
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
    from sklearn.neighbors import NearestNeighbors

    x, scale = z.numpy(), len(z) / part
    faiss.omp_set_num_threads(torch.get_num_threads())

    def hits(neighbors: np.ndarray) -> list[float]:
        # The row itself, wherever it came, is no neighbor.
        its = neighbors == np.arange(len(neighbors))[:, None]
        its[~its.any(1), -1] = True
        near = (y[neighbors] == y[: len(neighbors), None])[~its].reshape(len(neighbors), -1)
        return [float(near[:, :k].any(1).mean()) for k in (1, 10, 100, 1000)]

    def flat() -> object:
        index = faiss.IndexFlatIP(x.shape[1])
        index.add(x)
        return hits(index.search(x[:part], 1001)[1])

    def brute() -> object:
        index = NearestNeighbors(n_neighbors=1001, algorithm="brute").fit(x)
        return hits(index.kneighbors(x[:part], return_distance=False))

    names = ("precision_at_1", "r_precision", "mean_average_precision_at_r")

    def calculator() -> object:
        best = AccuracyCalculator(include=names, k="max_bin_count", device=torch.device("cpu"))
        found = best.get_accuracy(
            z[:part], torch.from_numpy(y[:part]), z, torch.from_numpy(y), True
        )
        return [found[name] for name in names]

    found: dict[str, tuple[Callable[[], object], float]] = {
        "faiss flat, k = 1001": (flat, scale),
        "scikit-learn brute force, k = 1001": (brute, scale),
        "pytorch-metric-learning, k = max_bin_count": (calculator, scale),
    }
    if (listed := open_metric_learning(z, y, part)) is not None:
        found["open-metric-learning, top 1000"] = (listed, scale)
    return found


def open_metric_learning(z: Tensor, y: np.ndarray, part: int) -> Callable[[], object] | None:
    """recall@K by its nearest neighbors and its metric; None where it is not installed."""
    try:
        from oml.functional.knn import batched_knn
        from oml.functional.metrics import calc_retrieval_metrics
        from oml.retrieval import RetrievalResults
    except ImportError:
        return None
    labels, tops = torch.from_numpy(y), (1, 10, 100, 1000)

    def listed() -> object:
        found = batched_knn(
            embeddings=z,
            ids_query=torch.arange(part),
            ids_gallery=torch.arange(len(z)),
            top_n=max(tops),
            labels_gt=labels,
            bs=min(5000, part),
        )
        results = RetrievalResults(*found)
        metrics = calc_retrieval_metrics(
            results.retrieved_ids, results.gt_ids, cmc_top_k=tops, precision_top_k=(),
            map_top_k=(), verbose=False,
        )  # fmt: skip
        return [float(metrics["cmc"][k]) for k in tops]

    return listed


def agreement(z: Tensor, y: np.ndarray, part: int, ways: Ways) -> None:
    """The values of the peers beside ours, on the same queries without a query itself."""
    mine = {
        name: float(np.nanmean(value.numpy()))
        for name, value in per_query_values(
            z, y, metrics=(*RECALL, "r_precision", "map@r"), queries=slice(0, part)
        ).items()
    }
    print("  values:", ", ".join(f"{name} {value:.6f}" for name, value in mine.items()))
    for name, (way, _) in ways.items():
        print(f"    {name}:", ", ".join(f"{value:.6f}" for value in way()), flush=True)


def by_default(rows: int, dim: int) -> Ways:
    """pytorch-metric-learning's default sorts all rows for each query: on few rows only.

    Every metric that it has, but for those of clusters.
    """
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

    z, y = made(rows, dim)
    metrics = {
        "precision_at_1": "recall@1",
        "r_precision": "r_precision",
        "mean_average_precision_at_r": "map@r",
        "mean_average_precision": f"map@{rows}",
        "mean_reciprocal_rank": "mrr",
    }

    def peer() -> dict[str, float]:
        calculator = AccuracyCalculator(include=tuple(metrics), device=torch.device("cpu"))
        return calculator.get_accuracy(z, torch.from_numpy(y))

    def mine() -> dict[str, float]:
        result = evaluate(z, y, metrics=tuple(metrics.values()))
        return {name: result[name] for name in metrics.values()}

    theirs, found = peer(), mine()
    off = max(abs(theirs[name] - found[own]) for name, own in metrics.items())
    print(
        f"\n  largest difference of {len(metrics)} metrics, {rows:,} x {dim}: {off:.1e}", flush=True
    )
    return {"nearkin": (mine, 1.0), "pytorch-metric-learning, its default": (peer, 1.0)}


def clustering(rows: int, centers: int) -> Ways:
    import faiss

    z, _ = made(rows, 128)
    x = z.numpy()
    start = random_centers(x, centers, 0)
    faiss.omp_set_num_threads(torch.get_num_threads())
    passes = 5

    def peer() -> object:
        means = faiss.Kmeans(
            128, centers, niter=passes, max_points_per_centroid=10**9, min_points_per_centroid=1
        )
        means.train(x, init_centroids=start.astype(np.float32))
        far, _ = means.index.search(x, 1)
        return float(far.sum())

    def mine() -> object:
        return kmeans(x, start, passes=passes + 1).inertia

    print(f"  inertia after {passes} passes: nearkin {mine():.2f}, faiss {peer():.2f}", flush=True)
    c = torch.from_numpy(start).float()

    def floor() -> None:
        for _ in range(passes + 1):
            product(z, c)

    return {
        "float32 products, torch (the floor)": (floor, 1.0),
        "nearkin": (mine, 1.0),
        "faiss": (peer, 1.0),
    }


def resident(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def memory(z: Tensor, y: np.ndarray, metrics: tuple[str, ...], compiled: bool) -> None:
    """Peak memory above what was resident before (Linux)."""
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    In(None, compiled)(lambda: evaluate(z, y, metrics=metrics))()
    print(f"  extra memory, {len(metrics)} metrics{'' if compiled else ', without numba'}: "
          f"{resident('VmHWM') - before:.0f} MiB", flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = ["recall", "metrics", "plain", "peers", "default", "kmeans"]
    parser.add_argument("what", nargs="*", default=parts)
    parser.add_argument("--rows", type=int, default=60_502)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--part", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--by", choices=("clock", "cores"), default="clock")
    said = parser.parse_args()
    if unknown := set(said.what) - set(parts):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; choose from {', '.join(parts)}")
    torch.set_num_threads(said.threads)
    warm(said.dim)
    z, y = made(said.rows, said.dim)
    shape = f"{said.rows:,} x {said.dim}, {said.threads} thread(s)"

    def table(title: str, ways: Ways) -> None:
        compared(f"{title}, {shape}", ways, said.repeats, said.by)

    if {"recall", "metrics", "plain"} & set(said.what):
        memory(z, y, METRICS, True)
    if "recall" in said.what:
        table("recall@1, 10, 100, 1000", floors(z, said.part) | ours(z, y, RECALL, said.part, True))
    if "metrics" in said.what:
        ways = floors(z, said.part) | ours(z, y, METRICS, said.part, True)
        table(f"{len(METRICS)} metrics of rankings", ways)
    if "plain" in said.what:
        memory(z, y, METRICS, False)
        for title, metrics in (("recall", RECALL), ("metrics", METRICS)):
            ways = floors(z, said.part) | ours(z, y, metrics, said.part, False)
            table(f"{title} without numba", ways)
    if "peers" in said.what:
        others = peers(z, y, said.part)
        agreement(z, y, said.part, others)
        table("peers", floors(z, said.part) | chosen(z, y) | others)
    if "default" in said.what:
        for rows in (5_000, 10_000):
            ways = by_default(rows, 128)
            compared(f"by default, {rows:,} x 128", ways, said.repeats, said.by)
    if "kmeans" in said.what:
        for centers, rows in ((11_316, 60_502), (3_745, 20_000)):
            compared(f"k-means, {rows:,} x 128, {centers:,} centers, {said.threads} thread(s)",
                     clustering(rows, centers), said.repeats, said.by)  # fmt: skip


def warm(dim: int) -> None:
    """The first use compiles, for each precision."""
    small = made(5_000, dim)
    for dtype in precisions(dim, small[0].device):
        for metrics in (RECALL, METRICS):
            In(dtype)(partial(evaluate, *small, metrics=metrics))()


def chosen(z: Tensor, y: np.ndarray) -> dict[str, tuple[Callable[[], object], float]]:
    """nearkin as it chooses, over all rows."""
    return {
        "nearkin, recall@1, 10, 100, 1000": (lambda: evaluate(z, y, metrics=RECALL), 1.0),
        f"nearkin, {len(METRICS)} metrics": (lambda: evaluate(z, y, metrics=METRICS), 1.0),
    }


if __name__ == "__main__":
    main()
