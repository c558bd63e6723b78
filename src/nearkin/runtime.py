"""Everything the outside world does to a step: seeds, devices, precision, processes. It knows no
loss and no data."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from nearkin.core import Batch

T = TypeVar("T")

PATIENCE = timedelta(hours=2)  # the first process may decode a large data set while others wait

# ------------------------------------------------------------------ randomness


def mix(*numbers: int) -> int:
    """One 63-bit number from several, so that neighboring seeds share nothing (splitmix64)."""
    state = 0
    for number in numbers:
        state = (state ^ (number & _ALL)) + 0x9E3779B97F4A7C15 & _ALL
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & _ALL
        state = (state ^ state >> 27) * 0x94D049BB133111EB & _ALL
        state ^= state >> 31
    return state >> 1


_ALL = (1 << 64) - 1


def seed_all(*numbers: int) -> None:
    """Seed torch's generators on every device from a few integers; cheap enough for every step."""
    _sow(mix(*numbers))


def _sow(seed: int) -> None:
    for sow in _generators():
        sow(seed)


@functools.cache
def _generators() -> tuple[Callable[[int], object], ...]:
    # torch.manual_seed asks for every kind of device at every call; a step has no time for that.
    found: list[Callable[[int], object]] = [torch.default_generator.manual_seed]
    if torch.cuda.is_available():
        found.append(torch.cuda.manual_seed_all)
    if torch.backends.mps.is_available():
        found.append(torch.mps.manual_seed)
    return tuple(found)


_step: int | None = None


def begin_step(seed: int, step: int) -> None:
    """What is drawn from here to the gather is this process's own; what is drawn after it is
    everybody's."""
    global _step  # noqa: PLW0603  one process takes one step at a time
    _step = mix(seed, step) >> 1
    _sow(_step + 1 + rank())


def seed_shared() -> None:
    """From here on draw what every process draws in this step; outside a step: nothing."""
    if _step is not None:
        _sow(_step)


def row_keys(seed: int, epoch: int, rows: Tensor) -> Tensor:
    """(N,) int64: one key for each (seed, epoch, row). What is random about a row hangs on its key
    alone."""
    return _scramble(rows + _signed(mix(seed, epoch)))


def uniform(keys: Tensor, count: int, stream: int = 0) -> Tensor:
    """(N, count) float32 in [0, 1), a function of the keys (N,) and the stream: the same in every
    process."""
    places = torch.arange(count, device=keys.device) * _signed(0x9E3779B97F4A7C15)
    bits = _scramble(keys[:, None] + places[None] + _signed(mix(stream)))
    return (bits >> 40 & 0xFFFFFF).to(torch.float32) * 2.0**-24


def _signed(number: int) -> int:
    number &= _ALL
    return number - (1 << 64) if number >> 63 else number


def _scramble(x: Tensor) -> Tensor:
    # splitmix64's finalizer in wrapping int64; the masks make the arithmetic shifts logical.
    x = (x ^ x >> 30 & (1 << 34) - 1) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ x >> 27 & (1 << 37) - 1) * _signed(0x94D049BB133111EB)
    return x ^ x >> 31 & (1 << 33) - 1


_keys: Tensor | None = None
_uses: dict[int, int] = {}


class keyed:
    """Within: the rows that the encoder is working on have these keys (see KeyedDropout)."""

    # A generator-based context would cost a step several microseconds.
    def __init__(self, keys: Tensor | None):
        self.keys = keys

    def __enter__(self) -> None:
        global _keys, _uses
        self.before = _keys, _uses
        _keys, _uses = self.keys, {}

    def __exit__(self, *_: object) -> None:
        global _keys, _uses
        _keys, _uses = self.before


class KeyedDropout(nn.Module):
    """Dropout whose mask hangs on the key of each row, so that processes and workers change
    nothing.

    Used several times in one pass it draws a new mask each time. Outside `keyed`, and where the
    first axis is not the rows, it is ordinary dropout.
    """

    def __init__(self, p: float, stream: int):
        super().__init__()
        self.p, self.stream = p, stream

    def forward(self, x: Tensor) -> Tensor:
        """(N, ...) -> the same shape; entries are zeroed with probability p and the rest scaled by
        1/(1-p)."""
        if not self.training or self.p == 0:
            return x
        if _keys is None or len(_keys) != len(x):
            return F.dropout(x, self.p, True)
        use = _uses[self.stream] = _uses.get(self.stream, 0) + 1
        stream = mix(self.stream, use)
        kept = uniform(_keys, x.shape[1:].numel(), stream).view(x.shape) >= self.p
        return x * kept / (1 - self.p)


# ------------------------------------------------------------------ device and precision


def choose_device(name: str = "auto") -> torch.device:
    """`auto` is this process's GPU if there is one, else the CPU; otherwise any torch device
    name."""
    if name == "auto":
        name = f"cuda:{local_rank()}" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device).item()  # a device that keeps no numbers fails here
    except (RuntimeError, AssertionError, ImportError) as error:
        raise ValueError(
            f"device {name!r} is not to be had here ({_first_line(error)}); use auto, cpu or cuda:0"
        ) from None
    return device


def _first_line(error: BaseException) -> str:
    first = (str(error) or type(error).__name__).splitlines()[0].split(". ")[0]
    return first if len(first) <= 120 else f"{first[:117]}..."


_UNCHANGED = contextlib.nullcontext()


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """bfloat16 inside the encoder where asked for; float16 is never used."""
    if precision != "bfloat16":
        return _UNCHANGED
    return torch.autocast(device.type, torch.bfloat16)


# ------------------------------------------------------------------ processes


_DISTRIBUTED = dist.is_available()


def world() -> int:
    """How many processes train together; 1 without torchrun."""
    return dist.get_world_size() if _DISTRIBUTED and dist.is_initialized() else 1


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if world() > 1 else 0


def local_rank() -> int:
    """This process's number on its machine, as torchrun says."""
    return int(os.environ.get("LOCAL_RANK", "0"))


@contextlib.contextmanager
def processes() -> Iterator[None]:
    """Join the processes that torchrun started, and part in the end. Without torchrun: nothing."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield
        return
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(local_rank())
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=PATIENCE)
    place = rank()
    try:
        yield
    except RuntimeError as error:
        if not _is_lost(error):
            raise
        raise ConnectionError(
            f"process {place} lost the others ({_first_line(error)}); the one that stopped first "
            "says why"
        ) from error
    finally:
        dist.destroy_process_group()


def _is_lost(error: RuntimeError) -> bool:
    return isinstance(error, dist.DistError) or "gloo" in str(error)


def share(count: int, place: int | None = None) -> slice:
    """This process's contiguous slice of `count` rows; sizes differ by one at most."""
    place = rank() if place is None else place
    return slice(place * count // world(), (place + 1) * count // world())


def barrier() -> None:
    """Wait for the other processes."""
    if world() > 1:
        dist.barrier()


def any_process(flag: bool) -> bool:
    """Whether the flag is set in any process; every process must ask."""
    if world() == 1:
        return flag
    told = torch.tensor([int(flag)])
    if dist.get_backend() == "nccl":
        told = told.cuda()
    dist.all_reduce(told)
    return bool(told.item())


def from_first(value: object) -> object:
    """The value that the first process holds, in every process (plain Python data)."""
    if world() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def by_first(work: Callable[[], T]) -> T:
    """What `work` makes in the first process, in every process (plain Python data).

    An error of the first is raised in all, elsewhere as ValueError, OSError or RuntimeError.
    """
    if world() == 1:
        return work()
    made: T | None = None
    problem: Exception | None = None
    if rank() == 0:
        try:
            made = work()
        except Exception as error:
            problem = error
    kind, text, made = from_first((_plain_kind(problem), str(problem), made))  # type: ignore[misc]
    if problem is not None:
        raise problem
    if kind is not None:
        raise kind(text)
    return made  # type: ignore[return-value]


def first_then_all(work: Callable[[], T]) -> T:
    """What `work` makes, in every process: the first works alone and fills the caches, then the
    others read them. An error of the first is raised in all."""
    made: list[T] = []
    by_first(lambda: made.append(work()))
    return made[0] if made else work()


def _plain_kind(error: Exception | None) -> type[Exception] | None:
    if error is None:
        return None
    return next((kind for kind in (ValueError, OSError) if isinstance(error, kind)), RuntimeError)


def as_in_first(module: nn.Module) -> None:
    """Give every process the parameters and buffers of the first: a module made by hand may have
    started at random."""
    if world() == 1:
        return
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            whole = tensor.detach().contiguous()
            dist.broadcast(whole, src=0)
            tensor.copy_(whole)


class Shards:
    """Queries split over the processes: each works on its slice, all see the whole result."""

    def slice(self, n: int) -> slice:
        """This process's slice of n queries."""
        return share(n)

    def concatenate(self, values: Tensor) -> Tensor:
        """The values of all processes, in order."""
        return gather_rows(values)


def gather_rows(x: Tensor) -> Tensor:
    """Rows of all processes in order, differentiable; slices may differ in size. One process: `x`
    itself."""
    if world() == 1:
        return x
    size = torch.tensor([len(x)], device=x.device)
    sizes = [torch.empty_like(size) for _ in range(world())]
    dist.all_gather(sizes, size)
    counts = [int(s) for s in sizes]
    if x.requires_grad:
        return _Gather.apply(x, counts)  # type: ignore[return-value]
    return _all_gather(x, counts)


def _all_gather(x: Tensor, counts: Sequence[int]) -> Tensor:
    flag = x.dtype == torch.bool
    x = x.to(torch.uint8) if flag else x
    padded = x.new_zeros(max(counts), *x.shape[1:])
    padded[: len(x)] = x.detach()
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    whole = torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])
    return whole.bool() if flag else whole


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, counts: list[int]) -> Tensor:
        ctx.counts = counts
        return _all_gather(x, counts)

    @staticmethod
    def backward(ctx, slope: Tensor) -> tuple[Tensor, None]:
        # The sum over processes: divided by their number when gradients are averaged, it is the
        # gradient of the one loss that every process computed.
        slope = slope.contiguous().clone()
        dist.all_reduce(slope)
        start = sum(ctx.counts[: rank()])
        return slope[start : start + ctx.counts[rank()]], None


def gather(z: Tensor, batch: Batch) -> tuple[Tensor, Batch]:
    """Embeddings (N, D) and columns of the global batch, in the sampler's order, in every process.

    Within a step the random numbers drawn from here on (mining, dropout of the objective) are the
    same everywhere: they hang on (seed, step).
    """
    seed_shared()
    if world() == 1:
        return z, batch
    return gather_rows(z), Batch(None, **{name: gather_rows(x) for name, x in batch.items()})


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Average over the processes; a gradient that is None in every process stays None."""
    if world() == 1:
        return
    by_type: dict[tuple[torch.dtype, torch.device], list[nn.Parameter]] = {}
    for parameter in parameters:
        by_type.setdefault((parameter.dtype, parameter.device), []).append(parameter)
    for group in by_type.values():
        _average(group)


def _average(group: list[nn.Parameter]) -> None:
    slopes = [torch.zeros_like(p) if p.grad is None else p.grad for p in group]
    has = torch.tensor([float(p.grad is not None) for p in group]).to(slopes[0])
    flat = torch.cat([has, *[slope.flatten() for slope in slopes]])
    dist.all_reduce(flat)
    has, flat = flat[: len(group)].tolist(), flat[len(group) :] / world()
    for parameter, some, slope in zip(
        group, has, flat.split([s.numel() for s in slopes]), strict=True
    ):
        parameter.grad = slope.view_as(parameter) if some else None


class _SumOverProcesses(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx, slope: Tensor) -> Tensor:
        slope = slope.contiguous().clone()
        dist.all_reduce(slope)
        return slope


class GlobalBatchNorm(_BatchNorm):
    """BatchNorm whose training statistics are those of the global batch, on any device."""

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(
                f"BatchNorm needs rows and channels, but the input has {input.dim()} dimensions"
            )

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, ...) -> the same shape."""
        if not self.training or world() == 1:
            return super().forward(input)
        x = input.float() if input.dtype in (torch.bfloat16, torch.float16) else input
        axes = [0, *range(2, x.dim())]
        shape = [1, -1, *[1] * (x.dim() - 2)]
        count = x.new_tensor([x.numel() / x.shape[1]])
        total = _SumOverProcesses.apply(torch.cat([x.sum(axes), count]))
        mean, count = total[:-1] / total[-1], total[-1].detach()  # type: ignore[index]
        centered = x - mean.view(shape)
        variance = _SumOverProcesses.apply(centered.square().sum(axes)) / count  # type: ignore[operator]
        self._note(mean.detach(), variance.detach() * count / (count - 1).clamp_min(1))
        y = centered * (variance + self.eps).rsqrt().view(shape)
        if self.weight is not None:
            y = y * self.weight.view(shape) + self.bias.view(shape)
        return y.to(input.dtype)

    @torch.no_grad()
    def _note(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None:
            return
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        rate = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean), rate)
        self.running_var.lerp_(variance.to(self.running_var), rate)


def prepare_encoder(encoder: nn.Module, frozen: Sequence[nn.Module] = ()) -> nn.Module:
    """The encoder with dropout keyed by row and, over several processes, global BatchNorm.

    frozen   modules that stay as they are: BatchNorm in eval mode needs no statistics
    """
    streams = iter(range(1, 1 << 30))
    kept = {id(module) for module in frozen}

    def made(module: nn.Module) -> nn.Module | None:
        """What stands in for a module; None where it may stay."""
        if isinstance(module, nn.Dropout):
            return KeyedDropout(module.p, next(streams))
        single = isinstance(module, _BatchNorm) and not isinstance(module, GlobalBatchNorm)
        if single and world() > 1 and id(module) not in kept:
            return _global(module)  # type: ignore[arg-type]
        return None

    return _replaced(encoder, made, {})


def _replaced(
    module: nn.Module,
    made: Callable[[nn.Module], nn.Module | None],
    done: dict[nn.Module, nn.Module],
) -> nn.Module:
    if module in done:  # one module may stand in several places, and stays one
        return done[module]
    new = made(module)
    done[module] = module if new is None else new.train(module.training)
    if new is None:
        # named_children would pass over the second place of a module.
        for name, child in module._modules.items():
            if child is not None:
                module._modules[name] = _replaced(child, made, done)
    return done[module]


def _global(module: _BatchNorm) -> GlobalBatchNorm:
    new = GlobalBatchNorm(
        module.num_features, module.eps, module.momentum, module.affine, module.track_running_stats
    )
    new.weight, new.bias = module.weight, module.bias
    new.running_mean, new.running_var = module.running_mean, module.running_var
    new.num_batches_tracked = module.num_batches_tracked
    return new
