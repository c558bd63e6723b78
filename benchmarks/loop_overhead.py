"""What a step of the Loop costs above a bare PyTorch loop of the same step; nothing is learned.

Prints microseconds a step: an MLP 16-32-8, batches of 32, 400 steps, rows in memory, cross-entropy
over a linear classifier of 10 classes. The loops take turns (A B C A B C ...), so that a busy
machine slows them alike.

    python benchmarks/loop_overhead.py [--repeats 15] [--threads 1]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nearkin.compare import Classifier
from nearkin.core import Batch
from nearkin.data.base import Table
from nearkin.encoders.base import Given
from nearkin.learners import optimizers_of
from nearkin.loop import Loop
from nearkin.losses.classification import cross_entropy
from nearkin.methods.base import Supervised
from nearkin.objectives.compared import Compared
from nearkin.sample import Batches, Sampler, Uniform

STEPS, ROWS, CLASSES, TARGET = 400, 32, 10, 60.0


class Drawn(Sampler):
    """The batches of a uniform sampler, drawn once: drawing them is no part of a step."""

    def __init__(self, columns: Mapping[str, Tensor]):
        self.drawn = Uniform(ROWS).batches(columns, 0, 0)

    def batches(self, columns: Mapping[str, Tensor], seed: int, epoch: int) -> Batches:
        return self.drawn


def table() -> Table:
    """400 batches of normal rows with labels at random."""
    generator = torch.Generator().manual_seed(0)
    rows = STEPS * ROWS
    return Table(
        inputs=torch.randn(rows, 16, generator=generator),
        label=torch.randint(CLASSES, (rows,), generator=generator),
        names=tuple(map(str, range(CLASSES))),
        ids=tuple(map(str, range(rows))),
    )


def method() -> Supervised:
    """Encoder and classifier, the same at every call."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8))
    return Supervised(Given(net, 8), Compared(Classifier(CLASSES, 8), cross_entropy))


def optimizers(chosen: Supervised) -> dict[str, torch.optim.Optimizer]:
    """One SGD for the encoder and one for the objective."""
    return optimizers_of(
        chosen.learners(), {"default": lambda groups: torch.optim.SGD(groups, lr=0.01)}
    )


def by_loop(rows: Table, sampler: Sampler) -> Callable[[], object]:
    """The loop of nearkin."""
    chosen = method()
    loop = Loop(
        chosen,
        optimizers(chosen),
        lambda step: 1.0,
        sampler,
        epochs=1,
        seed=0,
        device=torch.device("cpu"),
    )

    def train() -> None:
        loop.state.epoch = loop.state.step = 0
        loop.run(rows, lambda epoch: {}, None)

    return train


def bare(rows: Table, sampler: Sampler) -> Callable[[], object]:
    """The same step by hand: the same modules, loss and optimizers."""
    chosen = method()
    steppers = list(optimizers(chosen).values())
    batches = sampler.batches({}, 0, 0)

    def train() -> None:
        for places in batches:
            x, label = rows.inputs[places], rows.label[places]
            total = chosen.objective(chosen.encoder(x), Batch(None, label=label)).total
            for optimizer in steppers:
                optimizer.zero_grad()
            total.backward()
            for optimizer in steppers:
                optimizer.step()

    return train


def plain(rows: Table, sampler: Sampler) -> Callable[[], object]:
    """PyTorch alone: torch's cross-entropy, one optimizer."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8))
    head = nn.Linear(8, CLASSES)
    optimizer = torch.optim.SGD([*net.parameters(), *head.parameters()], lr=0.01)
    batches = sampler.batches({}, 0, 0)

    def train() -> None:
        for places in batches:
            x, label = rows.inputs[places], rows.label[places]
            total = F.cross_entropy(head(net(x)), label)
            optimizer.zero_grad()
            total.backward()
            optimizer.step()

    return train


def interleaved(loops: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Microseconds a step of each loop in each round, after one round to warm up."""
    taken: dict[str, list[float]] = {name: [] for name in loops}
    for round_ in range(repeats + 1):
        for name, train in loops.items():
            began = time.perf_counter()
            train()
            if round_:
                taken[name].append((time.perf_counter() - began) / STEPS * 1e6)
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    said = parser.parse_args()
    torch.set_num_threads(said.threads)
    rows = table()
    sampler = Drawn({"label": rows.label})
    loops = {
        "nearkin's loop": by_loop(rows, sampler),
        "bare loop of the same step": bare(rows, sampler),
        "torch alone, its own cross-entropy": plain(rows, sampler),
    }
    taken = interleaved(loops, said.repeats)
    for name, values in taken.items():
        print(
            f"{name:36} median {statistics.median(values):7.1f}   best {min(values):7.1f} us/step"
        )
    ours, same, _ = taken.values()
    differences = [a - b for a, b in zip(ours, same, strict=True)]
    over = statistics.median(differences)
    print(
        f"above the bare loop of the same step: median {over:.1f}, "
        f"of the best {min(ours) - min(same):.1f} us/step (target {TARGET:.0f})"
    )


if __name__ == "__main__":
    main()
