"""The embeddings of many rows, as fast as the machine gives them. It knows no loss and no data set;
how convolutions are folded stands in folding."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

from nearkin.ahead import taken
from nearkin.folding import folded
from nearkin.inputs import Inputs, take

BATCH = 256
_ENOUGH = 64  # rows from which on folding costs less than it saves
_NUMBERS = 8 * 3 * 224 * 224  # of a batch whose maps stay near a core
_TRIED = 2  # rows by which the folded module is held against the plain one
# Largest relative difference of those rows: rounding, and no other network.
_TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1}

Embed = Callable[[Tensor], Tensor]
Progress = Callable[[int, int], None]


def extract(
    module: nn.Module,
    embed: Embed,
    inputs: Inputs,
    device: torch.device,
    precision: str = "float32",
    progress: Progress | None = None,
) -> Tensor:
    """(N, D) embeddings on the CPU: all that `extracted` gives.

    progress   told of (done, N) rows
    """
    kept, done = [], 0
    with contextlib.closing(extracted(module, embed, inputs, device, precision)) as parts:
        for part in parts:
            kept.append(part)
            done += len(part)
            if progress is not None:
                progress(done, len(inputs))
    return torch.cat(kept).cpu()


def extracted(
    module: nn.Module,
    embed: Embed,
    inputs: Inputs,
    device: torch.device,
    precision: str = "float32",
) -> Generator[Tensor]:
    """(B, D) after (B, D) embeddings, in the order of the rows, without gradients.

    The module is in evaluation mode meanwhile, its convolutions are folded (see folding), and on a
    CPU each core works on batches of its own; all is as before at the end. Close the generator
    (contextlib.closing) where it may be left before.

    module      whatever `embed` runs
    embed       (B, ...) prepared inputs on the device -> (B, D); it sets its own autocast
    precision   float32 or bfloat16: what `embed` computes in

    Folding changes float32 embeddings in their last digits only. Where the folded module does not
    agree with the plain one on the first rows, all are embedded by the plain one.
    """
    modes = {m: m.training for m in module.modules()}
    module.eval()

    def made(x: Tensor) -> Tensor:
        """The embeddings of one batch."""
        with torch.no_grad():  # a setting of each thread
            return embed(x.to(device, non_blocking=x.is_pinned()))

    try:
        yield from _extracted(module, made, inputs, device, _TOLERANCE[precision])
    finally:
        for m, mode in modes.items():
            m.training = mode


def _extracted(
    module: nn.Module, embed: Embed, inputs: Inputs, device: torch.device, tolerance: float
) -> Iterator[Tensor]:
    if len(inputs) >= _ENOUGH:
        first = take(inputs, torch.arange(_TRIED))
        plain = embed(first)
        with folded(module, device) as anything:
            if anything and _agree(embed, first, plain, tolerance):
                each = _side_by_side if device.type == "cpu" else _one_by_one
                yield from each(embed, inputs)
                return
    yield from _one_by_one(embed, inputs)


def _agree(embed: Embed, first: Tensor, plain: Tensor, tolerance: float) -> bool:
    try:
        fast = embed(first)
    except (RuntimeError, TypeError, AttributeError):
        return False  # a kernel that this machine or this torch does not have
    if fast.shape != plain.shape or fast.dtype != plain.dtype:
        return False
    off = (fast.double() - plain.double()).norm()
    return bool(off <= tolerance * plain.double().norm())


def _one_by_one(embed: Embed, inputs: Inputs) -> Iterator[Tensor]:
    batches = torch.arange(len(inputs)).split(BATCH)
    with contextlib.closing(taken(inputs, batches, pinned=torch.cuda.is_available())) as made:
        for x in made:
            yield embed(x)


def _side_by_side(embed: Embed, inputs: Inputs) -> Iterator[Tensor]:
    """Each core makes and embeds a batch of its own, so that none waits for another."""

    def made(rows: Tensor) -> Tensor:
        """The embeddings of the rows with these numbers."""
        return embed(take(inputs, rows))

    numbers = max(1, torch.Size(inputs.shape[1:]).numel())
    batches = torch.arange(len(inputs)).split(min(BATCH, max(1, _NUMBERS // numbers)))
    cores = torch.get_num_threads()
    if cores == 1:
        yield from map(made, batches)
        return
    torch.set_num_threads(1)
    pool = ThreadPoolExecutor(cores, initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield from pool.map(made, batches)
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(cores)
