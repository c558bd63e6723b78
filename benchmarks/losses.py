"""Every loss of nearkin against pytorch-metric-learning and against the bare matrix products:
time and peak memory of forward + backward, float32, and what the softmax losses take with many
classes.

    python benchmarks/losses.py [--batch 128 512 2048] [--dim 128 512] [--only NAME ...]
                                [--what time memory classes] [--threads 2] [--plain] [--blas]
                                [--out FILE.md] [--quick]

Classes of 4 rows, labels shuffled. All steps of one batch size take turns, round after round, so
that a busy machine slows them alike. The floor of a loss is its matrix products alone: the
similarity and one back for rows against themselves, two back where the columns learn. A peer that
would hold over 12 GiB is not run; one whose step takes over 3 s has one figure, marked "once".
Prints a table, then what must hold with the figure found, and exits 1 where something does not.
With --plain ours run in plain torch, as without the extra `fast`, and the median asked for is that
without it. With --blas torch's BLAS makes all products, as on processors where oneDNN is no faster
(see nearkin/multiply.py); the floor and the peer always take BLAS. The memory part needs Linux.
About 15 minutes on 2 cores; --quick runs one small size as a smoke test.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import os
import platform
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path

import loss_memory
import torch
from loss_memory import GIB, Step, losses_of_nearkin
from loss_tables import (
    Check,
    Taken,
    Timed,
    class_checks,
    memory_checks,
    memory_table,
    time_checks,
    time_table,
)
from peers import PEERS, Peer, peer_bytes

import nearkin as nk
from nearkin.fast import compiled
from nearkin.multiply import onednn_is_faster

SEED = 0
LEAST = 0.01  # seconds a figure takes at least: short steps are repeated within it
SHORT = 0.1  # seconds of a step that is measured after one of its own
ENOUGH = 2.0  # seconds after which a step is not measured again
TOO_SLOW = 3.0  # seconds of a first step that is kept instead of warming up
SOFTMAX = ("cross_entropy", "norm_softmax", "cosface", "arcface")
MILLION = 1_000_000
MOST = 12 * GIB  # a peer that would hold more is not run


def seconds(step: Callable[[], object], repeats: int = 1, warm: bool = False) -> float:
    """What a step takes, the mean of `repeats` in a row.

    As in `timeit`, without the collector of garbage: it would come in one step for what another
    left. What was there from the start is frozen, so that collecting before is quick. With `warm` a
    step of its own comes before: as in training, it finds caches that hold its data, and does not
    pay for giving back the memory that another left.
    """
    gc.collect()
    gc.disable()
    try:
        if warm:
            step()
        began = time.perf_counter()
        for _ in range(repeats):
            step()
        return (time.perf_counter() - began) / repeats
    finally:
        gc.enable()


def interleaved(steps: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, Taken]:
    """Seconds of each step, which take turns round after round after some to warm up.

    A step that takes over `TOO_SLOW` seconds is measured once, the first time; one that takes over
    `ENOUGH` once, after warming up. How often a short one is repeated is told by the shortest of
    its first few: a step after one that holds much memory may take ten times as long.
    """
    taken: dict[str, list[float]] = {}
    repeats: dict[str, int] = {}
    warms: dict[str, bool] = {}
    for name, step in steps.items():
        first = seconds(step)
        if first <= TOO_SLOW:
            first = seconds(step)
        taken[name] = [first] if first > ENOUGH else []
        few = [first] if first > LEAST else [first, *(seconds(step) for _ in range(3))]
        repeats[name], warms[name] = max(1, int(LEAST / min(few))), first <= SHORT
    for _ in range(rounds):
        for name, step in steps.items():
            if sum(taken[name]) * repeats[name] > ENOUGH:
                continue
            taken[name].append(seconds(step, repeats[name], warms[name]))
    return {
        name: Taken(statistics.median(values), min(values), len(values))
        for name, values in taken.items()
    }


def times(
    names: Iterable[str], rows: int, dim: int, each: int, rounds: int, last: bool
) -> list[Timed]:
    """All losses at one size in one round robin: floor, peer, ours; floor, peer, ours; ..."""
    steps: dict[str, Callable[[], object]] = {}
    notes: dict[str, str] = {}
    for name in names:
        peer = PEERS.get(name, Peer())
        step = Step(name, rows, dim, each, SEED)
        step.ours()  # compiles its passes, where they are not kept yet
        steps[f"{name} floor"] = step.floor
        notes[name], runs = peer.note, peer.make is not None
        if runs and peer_bytes(peer, rows, each - 1) > MOST:
            notes[name], runs = f"the peer would hold over {MOST / GIB:.0f} GiB", False
        elif runs and rows >= peer.once and not last:
            notes[name], runs = "the peer is measured at the last width only", False
        elif not runs:
            notes[name] = "the peer has none"
        if runs:
            steps[f"{name} peer"] = step.peer
        steps[f"{name} ours"] = step.ours
    taken = interleaved(steps, rounds)
    return [
        Timed(
            name,
            rows,
            dim,
            each,
            taken[f"{name} floor"],
            taken[f"{name} ours"],
            taken.get(f"{name} peer"),
            notes[name],
        )
        for name in notes
    ]


def many_classes(names: Iterable[str], counts: Iterable[int], rounds: int) -> list[Timed]:
    """Softmax losses against three products whose results are fresh memory, as theirs are."""
    found = []
    for classes in counts:
        steps: dict[str, Callable[[], object]] = {}
        for name in names:
            step = Step(name, 128, 512, 4, SEED, classes)
            step.ours()
            steps[f"{name} floor"] = step.fresh_floor
            steps[f"{name} peer"] = step.peer
            steps[f"{name} ours"] = step.ours
        taken = interleaved(steps, rounds)
        for name in names:
            three = (taken[f"{name} {whose}"] for whose in ("floor", "ours", "peer"))
            found.append(Timed(name, 128, 512, classes, *three, PEERS[name].note))
    return found


def in_fresh_process(name: str, rows: int, dim: int, classes: int, peer: bool) -> dict[str, float]:
    """{"ours": bytes, "peer": bytes, "unit": bytes}: each step's peak, measured by
    loss_memory.py."""
    command = [sys.executable, loss_memory.__file__, name, *map(str, (rows, dim, classes))]
    said = subprocess.run(
        [*command, "peer"] if peer else command,
        env=loss_memory.environment(torch.get_num_threads()),
        capture_output=True,
        text=True,
        check=False,
    )
    if said.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {said.stderr[-2000:]}")
    return {key: float(value) for key, value in map(str.split, said.stdout.splitlines())}


def memories(names: Iterable[str], rows: int, dim: int) -> dict[str, dict[str, float]]:
    found = {}
    for name in names:
        peer = PEERS.get(name, Peer())
        fits = peer.make is not None and peer_bytes(peer, rows, 3) <= MOST and peer.once > rows
        found[name] = in_fresh_process(name, rows, dim, 0, fits)
        print(f"  memory {name}: {found[name]}", file=sys.stderr, flush=True)
    return found


def machine() -> str:
    import pytorch_metric_learning as peer

    model = platform.processor() or platform.machine()
    cpus = Path("/proc/cpuinfo")
    if cpus.exists():
        names = [x for x in cpus.read_text().splitlines() if x.startswith("model name")]
        model = f"{len(names)} x {names[0].partition(': ')[2]}" if names else model
    return (
        f"{datetime.date.today()}, {model}, {torch.get_num_threads()} threads, Python "
        f"{platform.python_version()}, torch {torch.__version__}, pytorch-metric-learning "
        f"{peer.__version__}, nearkin {nk.__version__}, {with_passes()}, {with_products()}, seed "
        f"{SEED}."
    )


def with_passes() -> str:
    """Whether losses run in compiled passes here."""
    if compiled(torch.empty(0)) is None:
        return "in plain torch"
    return f"compiled by numba {metadata.version('numba')}"


def with_products() -> str:
    """What makes large products here."""
    return f"products by {'oneDNN' if onednn_is_faster() else 'BLAS'}"


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, nargs="+", default=[128, 512, 2048])
    parser.add_argument("--dim", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--only", nargs="+", help="names of losses")
    parser.add_argument("--what", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--plain", action="store_true", help="as without the extra fast")
    parser.add_argument("--blas", action="store_true", help="no products by oneDNN")
    parser.add_argument("--out", type=Path, help="write the tables to this file as markdown")
    parser.add_argument("--quick", action="store_true", help="one small size, a smoke test")
    said = parser.parse_args()
    if said.quick:
        said.batch, said.dim, said.rounds = [128], [128], 2
    return said


def timing(said: argparse.Namespace, names: Sequence[str]) -> tuple[list[str], list[Check]]:
    found: list[Timed] = []
    for rows in said.batch:
        for dim in said.dim:
            print(f"  time B={rows} d={dim}", file=sys.stderr, flush=True)
            found += times(names, rows, dim, 4, said.rounds, dim == said.dim[-1])
    if "triplet" in names and not said.quick:
        found += times(["triplet"], 1024, 512, 64, said.rounds, True)
    said_of_it = "Medians over the rounds, the best in brackets; once: measured one time."
    lines = ["", "## Time", "", said_of_it, ""]
    return lines + time_table(found), time_checks(found)


def memory(said: argparse.Namespace, names: Sequence[str]) -> tuple[list[str], list[Check]]:
    rows, dim = (256, 128) if said.quick else (2048, 512)
    found = memories(names[:6] if said.quick else names, rows, dim)
    lines = [
        "",
        "## Memory",
        "",
        f"Peak of one step above what was held before it, B={rows}, d={dim}, each in a process of "
        "its own, in float32 matrices of the size named.",
        "",
    ]
    # Of small matrices the figure says nothing: the allocator's own pages are as many.
    return lines + memory_table(found, rows), [] if said.quick else memory_checks(found, rows)


def classes(said: argparse.Namespace, names: Sequence[str]) -> tuple[list[str], list[Check]]:
    chosen = [name for name in SOFTMAX if name in names]
    counts = (1000,) if said.quick else (11_318, 100_000)
    most = 20_000 if said.quick else MILLION
    found = many_classes(chosen, counts, said.rounds)
    held = {name: in_fresh_process(name, 128, 128, most, False) for name in chosen}
    lines = ["", "## Many classes", "", "The floor's results are fresh memory.", ""]
    lines += time_table(found, "classes")
    lines += ["", f"Peak beyond weights and their gradient, K={most:,}, d=128, B=128:", ""]
    lines += [f"- {name}: {taken['ours'] / 1e6:.0f} MB" for name, taken in held.items()]
    return lines, class_checks(found, held, most)


PARTS = {"time": timing, "memory": memory, "classes": classes}


def main() -> None:
    said = parsed()
    torch.set_num_threads(said.threads)
    # The parameters of a loss stay where they are here, and the peer's own code warns of itself.
    warnings.simplefilter("ignore")
    # Also for the processes that measure memory.
    if said.blas:
        os.environ[loss_memory.BLAS] = "1"
    if said.plain:
        os.environ[loss_memory.PLAIN] = "1"
    loss_memory.settle()
    known = losses_of_nearkin()
    gc.freeze()
    unknown = sorted(set(said.only or ()) - set(known))
    if unknown:
        sys.exit(f"nearkin has no loss named {', '.join(unknown)}; known: {', '.join(known)}")
    names = [name for name in known if not said.only or name in said.only]
    lines = ["# Losses: time and memory", "", f"`python benchmarks/{' '.join(command())}`", ""]
    lines.append(machine())
    checks: list[Check] = []
    for part in said.what:
        table, more = PARTS[part](said, names)
        lines += table
        checks += more
        print("\n".join(table), flush=True)
    failed = [check for check in checks if not check.holds]
    summary = f"{len(checks) - len(failed)} of {len(checks)} hold."
    lines += ["", "## What must hold", "", summary, "", *(f"- {check}" for check in failed)]
    lines += [f"- {check}" for check in checks if check.holds and "peer/ours" not in check.what]
    print("", *checks, summary, sep="\n")
    if said.out:
        said.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    sys.exit(1 if failed else 0)


def command() -> list[str]:
    return [Path(sys.argv[0]).name, *sys.argv[1:]]


if __name__ == "__main__":
    main()
