"""What an evaluation will take, told before it runs: tiles, memory, seconds."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from nearkin.evaluation import counting
from nearkin.evaluation.counting import Retrieval
from nearkin.search import loops
from nearkin.search import tiles as tiling
from nearkin.search.products import precisions, seconds_a_pair
from nearkin.search.side import HELD

__all__ = ["Plan", "available", "plan_of", "replace"]

# Nearest relevant items of a query, at most, where screening pays: with compiled loops, without.
FEW, FEW_PLAIN = 2048, 8
A_THRESHOLD = 56  # bytes: itself, its count, and what ranks and metrics of a panel are made in
BY_PRODUCTS = 64 << 20  # bytes of the blocks in which thresholds of large classes are found
SMALL = 1 << 27  # products of entries below which float64 takes no longer


@dataclass(frozen=True)
class Plan:
    """The work of the metrics of rankings.

    queries, gallery, dim  sizes
    screened  how many queries are screened; the others are compared in float64 alone
    tiles     products of SIDE x SIDE similarities, of all processes together
    bytes     extra memory beside the rows and labels, at most
    seconds   expected, of one process that does all of it
    held      bytes that rounded rows may take
    threads   at most; None: as many as torch uses
    """

    queries: int
    gallery: int
    dim: int
    screened: int
    tiles: int
    bytes: int
    seconds: float
    held: int = HELD
    threads: int | None = None

    def __str__(self) -> str:
        megabytes, seconds = max(1, round(self.bytes / 1e6)), self.seconds
        took = f"about {seconds:.0f} s" if seconds >= 1.5 else "about a second"
        many, side = "" if self.tiles == 1 else "s", tiling.SIDE
        blocks = f"{self.tiles:,} block{many} of {side:,} x {side:,}"
        return (
            f"{self.queries:,} queries x {self.gallery:,} items x {self.dim:,} dimensions: "
            f"{blocks}, at most {megabytes:,} MB beside them, {took}"
        )


def plan_of(task: Retrieval, depth: int, queries: int | None = None) -> tuple[Plan, Tensor]:
    """The plan of the first `queries` of a task (None: all), and which are screened, (Q,) bool.

    depth   how many of the nearest relevant items are ranked
    Raises MemoryError where not even one block fits, with the memory that it needs.
    """
    count = len(task.queries) if queries is None else queries
    items, dim, device = len(task.gallery), task.queries.dim, task.gallery.device
    relevant = task.relevance.most_relevant()
    most = relevant.clamp_max(depth)
    few = FEW if loops.installed(count * items) else FEW_PLAIN
    chosen = (most <= few) if len(task.queries) * items * dim >= SMALL else most < 0
    screened = min(count, int(chosen.sum()))
    symmetric = task.relevance.leave_one_out and count == len(task.queries)
    blocks, columns = -(-count // tiling.SIDE), -(-items // tiling.SIDE)
    tiles = blocks * (blocks + 1) // 2 if symmetric else blocks * columns
    kept = min(int((most * chosen).sum()), 1 << 22)
    screen = precisions(dim, device)[0] if screened else torch.float64
    threads = torch.get_num_threads() if device.type == "cpu" else 1
    rounded = (items if symmetric else count + items) * dim * screen.itemsize
    fixed = _fixed(task, screened, count, kept, dim)
    if screened and int((relevant * chosen).max()) > counting.LARGE:
        fixed += BY_PRODUCTS
    tile = 2 * tiling.SIDE**2 * screen.itemsize
    free = available()
    room = {"held": min(rounded, HELD) if screened else 0, "threads": threads}
    if free is not None and fixed + room["held"] + threads * tile > free:
        room = {"held": 0, "threads": 1}
        if fixed + tile > free:
            raise MemoryError(
                f"evaluating {count:,} x {items:,} rows of {dim:,} dimensions takes at least "
                f"{(fixed + tile) / 1e6:,.0f} MB beside them, but {free / 1e6:,.0f} MB are free; "
                "close other programs, or give rows in a numpy memory map"
            )
    pairs = tiles * tiling.SIDE**2 if screened else count * items
    seconds = pairs * seconds_a_pair(screen, dim, threads) if device.type == "cpu" else 0.0
    taken = fixed + room["held"] + room["threads"] * tile
    return Plan(count, items, dim, screened, tiles, taken, seconds * 1.3, **room), chosen


def _fixed(task: Retrieval, screened: int, count: int, kept: int, dim: int) -> int:
    """Bytes of whatever does not shrink: norms, thresholds, rows prepared in float64."""
    taken = 40 * (count + len(task.gallery)) + A_THRESHOLD * kept + 3 * 2048 * dim * 8
    if screened < count:
        # A block of queries in float64, its thresholds twice, the gallery or a part of it.
        block = min(counting.QUERIES, count)
        taken += 8 * (2 * block * (dim + 2) + min(counting.KEPT, len(task.gallery) * dim))
        taken += 48 * min(counting.THRESHOLDS, count * len(task.gallery)) + 24 * block * 512
    return taken


def available() -> int | None:
    """Bytes of main memory that are free, as the system and its limits say; None: unknown.

    Processes that torchrun started on one machine have an equal share each.
    """
    found = []
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                found.append(int(line.split()[1]) * 1024)
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        if limit.isdigit():
            used = int(Path("/sys/fs/cgroup/memory.current").read_text())
            found.append(int(limit) - used)
    except (OSError, ValueError):
        pass
    return max(0, min(found)) // _processes() if found else None


def _processes() -> int:
    said = os.environ.get("LOCAL_WORLD_SIZE", "1")
    return max(1, int(said)) if said.isascii() and said.isdigit() else 1
