"""The embeddings of many rows, as fast as the machine gives them. It knows no loss and no data set;
how convolutions are folded stands in folding."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from nearkin.ahead import taken
from nearkin.folding import folded, is_watched
from nearkin.inputs import Inputs, take

BATCH = 256
_ENOUGH = 64  # rows from which on folding costs less than it saves
_NUMBERS = 8 * 3 * 224 * 224  # of a batch whose maps stay near a core
_WAITING = 4  # batches for each core that are begun before they are asked for
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
    count: int | None = None,
) -> Tensor:
    """(N, D) embeddings on the CPU: all that `extracted` gives.

    progress   told of (done, N) rows
    """
    kept, done = [], 0
    with contextlib.closing(extracted(module, embed, inputs, device, precision, count)) as parts:
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
    count: int | None = None,
) -> Generator[Tensor]:
    """(B, D) after (B, D) embeddings, in the order of the rows, without gradients.

    The module is in evaluation mode meanwhile, its convolutions are folded (see folding), and on a
    CPU each core works on batches of its own where no module could keep something from one batch
    to another; all is as before at the end. Close the generator
    (contextlib.closing) where it may be left before.

    module      whatever `embed` runs
    embed       (B, ...) prepared inputs on the device -> (B, D); it sets its own autocast
    precision   float32 or bfloat16: what `embed` computes in
    count       rows of all processes, where `inputs` are the share of one: whether to fold hangs on
                them, so that it does not hang on the number of processes

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
        many = (len(inputs) if count is None else count) >= _ENOUGH
        if many and len(inputs):
            yield from _folded(module, made, inputs, device, _TOLERANCE[precision])
        else:
            yield from _one_by_one(made, inputs, device)
    finally:
        for m, mode in modes.items():
            m.training = mode


def _folded(
    module: nn.Module, embed: Embed, inputs: Inputs, device: torch.device, tolerance: float
) -> Iterator[Tensor]:
    first = take(inputs, torch.arange(min(_TRIED, len(inputs))))
    with _calls() as called:
        plain = embed(first)
    with folded(module, device) as graphs:
        if graphs and _agree(embed, first, plain, tolerance):
            apart = device.type == "cpu" and _keeps_nothing(module, called, graphs)
            yield from (_side_by_side if apart else _one_by_one)(embed, inputs, device)
            return
    yield from _one_by_one(embed, inputs, device)


@contextlib.contextmanager
def _calls() -> Iterator[set[nn.Module]]:
    """The modules that are called within, whoever they belong to."""
    called: set[nn.Module] = set()
    handle = register_module_forward_pre_hook(lambda module, _: called.add(module))
    try:
        yield called
    finally:
        handle.remove()


def _keeps_nothing(module: nn.Module, called: set[nn.Module], graphs: list[nn.Module]) -> bool:
    """Whether nothing that runs could keep something between two calls: it is a graph, or a class
    of torch's or of this package."""
    inside = {part for graph in graphs for part in graph.modules()}
    # Those around a graph run too, even where their forward is called by that name.
    around = {part for part in module.modules() if not inside.isdisjoint(part.modules())}
    return all(map(_is_known, (called | around) - inside))


def _is_known(part: nn.Module) -> bool:
    ours = type(part).__module__.startswith(("torch.nn.", "nearkin."))
    return ours and not is_watched(part) and "forward" not in vars(part)


def _agree(embed: Embed, first: Tensor, plain: Tensor, tolerance: float) -> bool:
    try:
        fast = embed(first)
    except (RuntimeError, TypeError, AttributeError):
        return False  # a kernel that this machine or this torch does not have
    if fast.shape != plain.shape or fast.dtype != plain.dtype:
        return False
    off = (fast.double() - plain.double()).norm()
    return bool(off <= tolerance * plain.double().norm())


def _one_by_one(embed: Embed, inputs: Inputs, device: torch.device) -> Iterator[Tensor]:
    batches = torch.arange(len(inputs)).split(BATCH)
    with contextlib.closing(taken(inputs, batches, pinned=device.type == "cuda")) as made:
        for x in made:
            yield embed(x)


def _side_by_side(embed: Embed, inputs: Inputs, _: torch.device) -> Iterator[Tensor]:
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
    waiting: deque[Future[Tensor]] = deque()
    try:
        for rows in batches:
            waiting.append(pool.submit(made, rows))
            if len(waiting) > _WAITING * cores:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(cores)
