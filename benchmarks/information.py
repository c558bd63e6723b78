"""Information: neighbor estimates against scikit-learn's machinery, learned critics at a budget,
labels at the size of Stanford Online Products, the calibration table.

    python benchmarks/information.py neighbors|critics|labels|calibration [seed]

Prints Markdown; `neighbors` is one interleaved run. Set OMP_NUM_THREADS: figures are of that many
threads. `labels` needs Linux (the peak is the kernel's) and exits 1 beyond 90 s of the clock or
1 GB.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

import nearkin as nk
from nearkin.information import neighbors, tasks
from nearkin.information.critical import Corrected
from nearkin.information.critics import Separable
from nearkin.information.readout import (
    Way,
    by_bound,
    exponential,
    read_infonce,
    read_interpolated,
    read_log_mean,
)
from nearkin.information.training import seeded, train
from nearkin.losses import bounds
from nearkin.losses.pairwise import infonce

ROUNDS, K = 5, 5
ROWS, DIMS = 60_502, 512
SECONDS, MEGABYTES = 90, 1000


# --- neighbors


def scikit_learn(x: np.ndarray, y: np.ndarray, k: int) -> float:
    """`_compute_mi_cc` of scikit-learn's mutual_info_regression, its one column made many."""
    from scipy.special import digamma
    from sklearn.neighbors import KDTree, NearestNeighbors

    count = len(x)
    nearest = NearestNeighbors(metric="chebyshev", n_neighbors=k).fit(np.hstack((x, y)))
    radius = np.nextafter(nearest.kneighbors()[0][:, -1], 0)
    nx, ny = (
        KDTree(side, metric="chebyshev").query_radius(
            side, radius, count_only=True, return_distance=False
        )
        for side in (x, y)
    )
    mean = np.mean(digamma(nx)) + np.mean(digamma(ny))
    return float(digamma(count) + digamma(k) - mean)


def ours(how: Callable[..., neighbors.Counted]) -> Callable[[np.ndarray, np.ndarray, int], float]:
    """KSG-1 by one way to count neighbors."""

    def estimate(x: np.ndarray, y: np.ndarray, k: int) -> float:
        seen = how(torch.from_numpy(x), torch.from_numpy(y), k)
        psi = torch.digamma(torch.tensor([k, len(x)], dtype=torch.float64)).sum()
        counts = [torch.digamma(side.double() + 1).mean() for side in (seen.in_x, seen.in_y)]
        return float(psi - sum(counts))

    return estimate


def compare_neighbors(seed: int) -> None:
    """Interleaved: each way once a round, the ratio of medians, in seconds of the processor: others
    on the machine then count less."""
    ways = {"scikit-learn": scikit_learn, "plain torch": ours(neighbors.by_blocks)}
    if neighbors._compiled() is not None:
        ways["numba"] = ours(lambda x, y, k: neighbors._by_numba(x, y, k, neighbors._compiled()))
    ways["as chosen"] = ours(neighbors.joint_neighbors)
    print("| pairs | scikit-learn | plain torch | numba | as chosen | ratio, as chosen |")
    print("|---|---|---|---|---|---|")
    for count, d in ((10_000, 1), (10_000, 3), (10_000, 10), (5_000, 25)):
        x, y = tasks.gaussian(2.0, d).sample(count, seed)
        values = {name: way(x, y, K) for name, way in ways.items()}  # compiles, warms
        assert max(values.values()) - min(values.values()) < 1e-4, values
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(ROUNDS):
            for name, way in ways.items():
                start = time.process_time()
                way(x, y, K)
                seconds[name].append(time.process_time() - start)
        median = {name: float(np.median(each)) for name, each in seconds.items()}
        cells = [f"{median[name]:.3f} s" if name in median else "-" for name in COLUMNS]
        ratio = median["scikit-learn"] / median["as chosen"]
        print(f"| {count:,} x {d} + {d} | {' | '.join(cells)} | {ratio:.1f} |", flush=True)


COLUMNS = ("scikit-learn", "plain torch", "numba", "as chosen")


# --- learned critics

LEARNED = {
    "infonce": Way(by_bound(lambda c: infonce(c, temperature=1.0)), read_infonce, "lower"),
    "donsker_varadhan": Way(
        by_bound(bounds.donsker_varadhan), read_log_mean, "neither", judge="cap"
    ),
    "mine": None,
    "nwj": exponential(by_bound(bounds.nwj), 1.0),
    "tuba": exponential(by_bound(bounds.tuba), 0.0),
    "interpolated": Way(
        by_bound(bounds.interpolated),
        lambda s: read_interpolated(s, 0.01),
        "lower",
        log_baseline=0.0,
    ),
    "smile 1": Way(by_bound(bounds.jsd), lambda s: read_log_mean(s, 1.0), "neither", judge="loss"),
    "smile 5": Way(by_bound(bounds.jsd), lambda s: read_log_mean(s, 5.0), "neither", judge="loss"),
    "js_kl": exponential(by_bound(bounds.jsd), 0.0),
}
PILOT = {
    "infonce": ("1.64", "3.56", "4.02"),
    "donsker_varadhan": ("1.64", "3.72", "5.82"),
    "nwj": ("1.55", "0.29", "2.07"),
    "smile 1": ("2.19", "6.57", "11.1"),
    "smile 5": ("1.65", "5.80", "10.6"),
    "js_kl": ("1.47", "3.8 (median)", "1.2 (median)"),
}


def learn_critics(seed: int, steps: int = 1500, batch: int = 64, rate: float = 1e-3) -> None:
    """Separable critics on fresh pairs of `tasks.gaussian`, their state, scale and level chosen by
    32 batches more, as the estimators do it; then 400 fresh batches: mean ± sd, and the median, of
    the estimate of one batch."""
    print(f"{steps} steps of {batch} fresh pairs, Adam {rate:g}, 20 + 20 dimensions, seed {seed}\n")
    print("| estimator | 2 nats | 6 nats | 10 nats | pilot at 2, 6, 10 |\n|---|---|---|---|---|")
    for name, way in LEARNED.items():
        cells = []
        for nats in (2, 6, 10):
            corrected = way or Way(Corrected(0.99), read_log_mean, "neither", judge="cap")
            found = np.array(_learned(nats, corrected, seed, steps, batch, rate))
            cells.append(f"{found.mean():.2f} ± {found.std():.2f} ({np.median(found):.2f})")
        print(
            f"| {name} | {' | '.join(cells)} | {', '.join(PILOT.get(name, ('-',)))} |", flush=True
        )


def _learned(nats, way, seed, steps, batch, rate) -> list[float]:
    generator = np.random.default_rng(seed)
    task = tasks.gaussian(nats)

    def drawn():
        while True:
            yield tuple(torch.from_numpy(side).float() for side in task.draw(batch, generator))

    critic = seeded(lambda: Separable(20, 20), torch.Generator().manual_seed(seed))
    fresh = drawn()
    validation = [next(fresh) for _ in range(VALIDATION)]

    def chosen():
        return way.scaled(torch.stack([critic(x, y) for x, y in validation]))

    train(
        critic,
        lambda x, y: way.loss(critic(x, y)),
        fresh,
        steps=steps,
        rate=rate,
        check=lambda: chosen().loss,
    )
    with torch.no_grad():
        scaled = chosen()
        return [way.read(scaled(critic(*next(fresh))[None])).value for _ in range(400)]


VALIDATION = 32  # batches


# --- labels


def resident(field: str) -> float:
    """MB of VmRSS (now) or VmHWM (the peak since it was last forgotten)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024 / 1e6
    raise RuntimeError(f"/proc/self/status has no {field}")


def label_views(seed: int) -> None:
    """The three views of 60,502 x 512 with about 11,000 classes of 2 to 9 rows."""
    generator = np.random.default_rng(seed)
    y = np.repeat(np.arange(ROWS), generator.integers(2, 10, ROWS))[:ROWS]
    random = torch.Generator().manual_seed(seed)
    z = torch.randn(int(y.max()) + 1, DIMS, generator=random)[torch.from_numpy(y)]
    z += 2.5 * torch.randn(z.shape, generator=random)
    nk.label_information(z[:64], y[:64])
    print(f"{ROWS} x {DIMS}, {len(np.unique(y))} classes, {torch.get_num_threads()} threads\n")
    print("| view | found | seconds | of them computing | peak extra MB |\n|---|---|---|---|---|")
    total, most = 0.0, 0.0
    for by in ("probe", "neighbors", "generative"):
        before = resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")
        start, busy = time.perf_counter(), time.process_time()
        found = nk.label_information(z, y, seed, by=by)
        seconds, busy = time.perf_counter() - start, time.process_time() - busy
        peak = resident("VmHWM") - before
        total, most = total + seconds, max(most, peak)
        print(f"| {by} | {found!r} | {seconds:.1f} | {busy:.1f} | {peak:.0f} |", flush=True)
    print(
        f"\nall three: {total:.1f} s of the clock (bound {SECONDS}), "
        f"{most:.0f} MB (bound {MEGABYTES})"
    )
    if total > SECONDS or most > MEGABYTES:
        sys.exit(1)


# --- calibration


def calibration(seed: int) -> None:
    """The quick table of `nearkin information --calibrate`, a row each estimator."""
    from nearkin.informed import calibration as measured

    print_calibration(measured(seed=seed))


def print_calibration(found: dict) -> None:
    """As Markdown."""
    cells = {(cell["estimator"], cell["task"]): cell for cell in found["cells"]}
    truths = {cell["task"]: cell["truth"] for cell in found["cells"]}
    of_classes = [name for name in truths if "classes" in name or "uniforms" in name]
    for some in ([name for name in truths if name not in of_classes], of_classes):
        print(f"| | kind | {' | '.join(some)} |\n|---|---|{'---|' * len(some)}")
        print(f"| *truth* | | {' | '.join(f'*{truths[name]:.2f}*' for name in some)} |")
        for name in dict.fromkeys(e for e, task in cells if task in some):
            row = [cells[name, task] for task in some]
            shown = [
                f"{cell['estimate']:.2f} ± {cell['error']:.2f}{' !' * cell['broken']}"
                for cell in row
            ]
            print(f"| `{name}` | {row[0]['kind']} | {' | '.join(shown)} |")
        print()
    print("| | independent (0) | with noise / whole | two copies / one (2) |\n|---|---|---|---|")
    for name, row in found["consistency"].items():
        print(f"| `{name}` | {' | '.join(f'{value:.2f}' for value in row.values())} |")


def main() -> None:
    parts = {
        "neighbors": compare_neighbors,
        "critics": learn_critics,
        "labels": label_views,
        "calibration": calibration,
    }
    if len(sys.argv) < 2 or sys.argv[1] not in parts:
        sys.exit(f"name a part: {', '.join(parts)}")
    parts[sys.argv[1]](int(sys.argv[2]) if len(sys.argv) > 2 else 0)


if __name__ == "__main__":
    main()
