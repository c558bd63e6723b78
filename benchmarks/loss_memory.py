"""One step of one loss: made for timing, and the peak memory of it measured in this process.

    python benchmarks/loss_memory.py NAME ROWS DIM CLASSES [peer]

Run by losses.py, which reads the lines `ours BYTES`, `peer BYTES` and `unit BYTES`. With CLASSES
above 0 the figure is what is held beyond the weights and their gradient. Linux only: the peak is
the kernel's.
"""

from __future__ import annotations

import ctypes
import gc
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from peers import PEERS, randomized
from torch import Tensor, nn

import nearkin as nk
from nearkin import catalog
from nearkin.core import home_of
from nearkin.objectives.compared import CLASS_COLUMNS

GIB = 2**30
CLASSES = 11_318  # of Stanford Online Products
PLAIN = "NEARKIN_BENCHMARK_PLAIN"  # set: no compiled passes
BLAS = "NEARKIN_BENCHMARK_BLAS"  # set: no products by oneDNN


def settle() -> None:
    """Hide numba where plain torch is measured, and oneDNN where BLAS is; called before nearkin
    looks for them."""
    torch.backends.mkldnn.enabled = not os.environ.get(BLAS)
    if os.environ.get(PLAIN):
        sys.modules["numba"] = None  # type: ignore[assignment]


def environment(threads: int) -> dict[str, str]:
    """Of a process whose peak is measured: large blocks go back to the kernel when they are
    freed."""
    own = {"MALLOC_MMAP_THRESHOLD_": "262144", "OMP_NUM_THREADS": str(threads)}
    return {**os.environ, **own}


def losses_of_nearkin() -> list[str]:
    """Their names, relatives side by side, as the peers are listed."""
    known = catalog.scan(catalog.kind_named("loss"))
    return sorted(known, key=lambda name: list(PEERS).index(name) if name in PEERS else len(PEERS))


def needs_columns(name: str) -> bool:
    """Whether a loss compares rows with columns of classes."""
    loss = catalog.scan(catalog.kind_named("loss"))[name]
    return home_of(loss).compare in CLASS_COLUMNS


class Step:
    """Forward and backward of one loss on one batch: `ours`, `peer`, and the `floor` of both.

    Classes of `each` rows around centers in 16 dimensions, labels shuffled. Columns of classes are
    about 11,318, also where a class has several, or `classes`.
    """

    def __init__(self, name: str, rows: int, dim: int, each: int, seed: int, classes: int = 0):
        random = torch.Generator().manual_seed(seed)
        self.name, self.random, self.dim = name, random, dim
        label = (torch.arange(rows) // each)[torch.randperm(rows, generator=random)]
        around = torch.randn(rows // each, 16, generator=random)[label]
        z = around @ torch.randn(16, dim, generator=random) * 0.25
        self.z = (z + 0.7 * torch.randn(rows, dim, generator=random)).requires_grad_()
        home = home_of(catalog.scan(catalog.kind_named("loss"))[name])
        self.classes, self.columns = 0, rows
        if home.compare == "centers":
            self.columns = rows // each
        elif home.compare in CLASS_COLUMNS:
            per_class = home.settings.get("per_class", 1)
            self.classes = classes or CLASSES // per_class
            self.columns = self.classes * per_class
            label = torch.randperm(self.classes, generator=random)[: rows // each][label]
        self.label, self._made = label, {}

    def ours(self) -> Tensor:
        return self._step("ours", self._make_ours)

    def peer(self) -> Tensor:
        return self._step("peer", self._make_peer)

    def made(self, whose: str) -> nn.Module:
        """The module of a step that ran."""
        return self._made[whose]

    def floor(self) -> None:
        """The matrix products alone, into memory that is there."""
        if "floor" not in self._made:
            self._made["floor"] = self._operands()
        x, w, slope, s, to_x, to_w = self._made["floor"]
        torch.mm(x, w.T, out=s)
        torch.mm(slope, w, out=to_x)
        if to_w is not None:
            torch.mm(slope.T, x, out=to_w)

    def fresh_floor(self) -> tuple[Tensor, ...]:
        """Three products whose results are fresh memory."""
        if "floor" not in self._made:
            x = self.z.detach()
            slope = torch.randn(len(x), self.columns, generator=self.random)
            self._made["floor"] = x, torch.randn(self.columns, self.dim), slope
        x, w, slope = self._made["floor"]
        return x @ w.T, slope @ w, slope.T @ x

    def _operands(self) -> tuple[Tensor | None, ...]:
        x = self.z.detach()
        own = self.columns == len(x) and not self.classes
        w = x if own else torch.randn(self.columns, self.dim, generator=self.random)
        slope = torch.randn(len(x), self.columns, generator=self.random)
        to_w = None if own else torch.empty_like(w)
        return x, w, slope, torch.empty_like(slope), torch.empty_like(x), to_w

    def _make_ours(self) -> nn.Module:
        settings = PEERS[self.name].ours if self.name in PEERS else {}
        facts = {"classes": self.classes, "dim": self.dim} if self.classes else {}
        return nk.criterion(self.name, **facts, **settings)

    def _make_peer(self) -> nn.Module:
        make = PEERS[self.name].make
        if make is None:
            raise ValueError(f"the peer has no {self.name}")
        return make(self.classes, self.dim)

    def _step(self, whose: str, make: Callable[[], nn.Module]) -> Tensor:
        if whose not in self._made:
            self._made[whose] = randomized(make(), self.random)
        self.forget()
        module = self._made[whose]
        value = module(self.z, self.label)
        value.backward()
        return value.detach()

    def forget(self) -> None:
        """Gradients of the last step."""
        self.z.grad = None
        for module in self._made.values():
            if isinstance(module, nn.Module):
                for parameter in module.parameters():
                    parameter.grad = None


def resident(field: str) -> int:
    """Bytes of VmRSS (now) or VmHWM (the peak since it was last forgotten)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def peak(step: Callable[[], object]) -> int:
    """Bytes that a step holds at its peak above what was held before it."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    step()
    return resident("VmHWM") - before


def main() -> None:
    warnings.simplefilter("ignore")
    settle()
    name, *sizes = sys.argv[1:5]
    rows, dim, classes = map(int, sizes)
    step = Step(name, rows, dim, 4, 0, classes)
    print("unit", 4 * rows * max(step.columns, rows))
    for whose in ("ours", "peer") if "peer" in sys.argv[5:] else ("ours",):
        run = getattr(step, whose)
        run()
        step.forget()
        held = peak(run)
        if classes:
            module = step.made(whose)
            held -= sum(p.grad.nbytes for p in module.parameters() if p.grad is not None)
        print(whose, held)


if __name__ == "__main__":
    main()
