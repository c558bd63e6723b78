"""The one loop: turns, updates, schedules, guards, selection, exact resume. It knows no loss,
encoder or data set."""

from __future__ import annotations

import math
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from nearkin import checkpoint
from nearkin.ahead import taken
from nearkin.core import Batch, Turn, warn_once
from nearkin.learners import Optimizers, chosen, held
from nearkin.runtime import any_process, average_gradients, begin_step, rank, row_keys, share, world
from nearkin.sample import Sampler

LOG_EVERY = 7  # prime to the usual periods of alternation, so that every player is heard
DIAGNOSE_EVERY = 50
COLLAPSED, FLAT = 0.99, 1.5  # mean pairwise cosine above, effective rank below
DELIBERATE = 1.0  # seconds after which a second Ctrl-C is meant


class Trainable(Protocol):
    """What the loop asks of a method (nearkin.methods.base.Method)."""

    def turns(self, batch: Batch) -> Iterator[Turn]: ...  # noqa: D102
    def round(self, table: Any, epoch: int) -> Any: ...  # noqa: D102

    watched: bool

    def diagnosis(self) -> dict[str, float]: ...  # noqa: D102
    def learners(self) -> dict[str, nn.Module]: ...  # noqa: D102


class TrainingError(RuntimeError):
    """Training cannot go on: the loss is no number, or a turn asks for what is not there."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or a polite kill, after the state was saved; the message says where, and how to go
    on."""


@dataclass
class State:
    """Where a run stands; all of it is in the checkpoint.

    rows     that the steps of this run have seen, of all processes
    best     {"epoch", "score"} of the epoch selected so far
    waited   epochs since then
    idle     turns skipped because nothing was to be learned
    logged   bytes of the log that belong to this state
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    rows: int = 0
    seconds: float = 0.0
    best: dict[str, float] | None = None
    waited: int = 0
    idle: int = 0
    logged: int = 0
    finished: bool = False
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Players:
    """Those who learn in a turn.

    inputs   what the backward pass stops at; None: all that has a gradient learns
    """

    optimizers: list[torch.optim.Optimizer]
    parameters: list[nn.Parameter]
    inputs: list[nn.Parameter] | None


def players(optimizers: Optimizers, learns: Iterable[str], owned: bool = False) -> Players:
    """The optimizers and parameters of the learners named; `owned`: nothing else has a gradient."""
    active = chosen(optimizers, learns)
    if not active:
        raise TrainingError(
            f"a turn trains {', '.join(learns) or 'nobody'}, but no optimizer is named so; the "
            f"optimizers are {', '.join(optimizers) or 'none'}"
        )
    parameters = [p for o in active for group in o.param_groups for p in group["params"]]
    everyone = owned and len(active) == len(optimizers)
    return Players(active, parameters, None if everyone else parameters)


def update(turn: Turn, optimizers: Optimizers, clip: float | None = None) -> bool:
    """Make one update: minimize the turn's total over the learners it names. False if there was
    nothing to do.

    Raises TrainingError if the total is NaN or infinite, has no graph though it is not 0, does not
    depend on the learners, or no learner named has an optimizer.
    """
    return minimize(turn, players(optimizers, turn.learns), clip)


def minimize(turn: Turn, who: Players, clip: float | None) -> bool:
    """`update`, by those who are known already."""
    total = turn.terms.total
    if not total.requires_grad:
        return _nothing_to_learn(turn, total)
    _check_finite(total, turn)
    for parameter in who.parameters:
        parameter.grad = None  # zero_grad says the same, at ten times the cost
    total.backward(inputs=who.inputs)
    if who.parameters[0].grad is None and all(p.grad is None for p in who.parameters):
        raise TrainingError(
            f"a turn trains {', '.join(turn.learns)}, but its loss does not depend on them; "
            "was the embedding detached, or are they frozen?"
        )
    if world() > 1:
        average_gradients(who.parameters)
    if clip is not None:
        nn.utils.clip_grad_norm_(who.parameters, clip)
    for optimizer in who.optimizers:
        optimizer.step()
    return True


def _nothing_to_learn(turn: Turn, total: Tensor) -> bool:
    if float(total) != 0:
        raise TrainingError(
            f"a turn for {', '.join(turn.learns)} has total {float(total):g} but no graph to "
            "learn from; does the loss detach its comparison?"
        )
    warn_once("a batch had nothing to learn from (no positive pairs?); its turn was skipped")
    return False


def _check_finite(total: Tensor, turn: Turn) -> None:
    value = total.item()
    if not math.isfinite(value):
        parts = ", ".join(f"{key} {part:g}" for key, part in turn.terms.floats().items())
        raise TrainingError(
            f"the loss is {value} ({parts}); lower the learning rate, clip gradients (train.clip), "
            "or look for NaN in the inputs"
        )


class Loop:
    """Trains a method on a table, epoch by epoch, and can be killed at any moment.

    method       a nearkin.methods.base.Method
    optimizers   learner -> optimizer, as `nearkin.learners.optimizers_of` makes them
    schedule     step -> factor on every learning rate
    sampler      the batches of (seed, epoch)
    steps        batches after which training ends, also within an epoch; None: epochs say
    freeze       modules that stay in eval mode while training (their parameters still learn)
    clip         largest norm of a turn's gradient
    patience     epochs without a better score after which training ends; None: never
    later_wins   whether equal scores go to the later epoch
    put_back     whether the selected epoch's weights replace the last one's at the end; they stand
                 in `selected` in any case
    log          takes a record, returns how long the log is
    path         of the checkpoint; None: none is written
    """

    save_seconds: float = 60.0  # a checkpoint at least so often

    def __init__(
        self,
        method: nn.Module,
        optimizers: Optimizers,
        schedule: Callable[[int], float],
        sampler: Sampler,
        *,
        epochs: int,
        seed: int,
        device: torch.device,
        steps: int | None = None,
        freeze: Sequence[nn.Module] = (),
        clip: float | None = None,
        patience: int | None = None,
        later_wins: bool = False,
        put_back: bool = True,
        log: Callable[[dict[str, Any]], int] | None = None,
        path: Path | None = None,
    ):
        self.method, self.optimizers = method, optimizers
        self.schedule, self.sampler = schedule, sampler
        self.epochs, self.seed, self.device, self.freeze = epochs, seed, device, tuple(freeze)
        self.steps, self.clip, self.patience = steps, clip, patience
        self.later_wins, self.put_back = later_wins, put_back
        self.log, self.path = log or (lambda record: 0), path
        self.state = State()
        self.selected: dict[str, Tensor] | None = None
        self.on_step: Callable[[State, int], None] = lambda state, batches: None
        self._saved = time.monotonic()
        self._said: set[str] = set()
        self._players: dict[tuple[str, ...], Players] = {}
        held(self._trainable().learners(), method, optimizers)

    def run(
        self, table: Any, validate: Callable[[int], Mapping[str, Any]], select: str | None
    ) -> State:
        """Train to the end, or until `patience` runs out; then put the selected epoch back in
        place.

        `validate(epoch)` is called after every epoch; its value under "score" is what `select` (a
        name for the log; None: the last epoch is kept) goes by, and all of it is logged.
        """
        with _stops() as stopped:
            while self._goes_on() and not self._exhausted():
                self._epoch(table, stopped)
                self._close_epoch(validate, select)
                self._maybe_stop(any_process(stopped.is_set()))
            self.state.finished = True
            if self.put_back and select is not None and self.selected is not None:
                self.method.load_state_dict(self.selected)
            self.save()
        return self.state

    def resume(self, path: Path) -> None:
        """Stand where the state saved at `path` stood."""
        tensors, facts = checkpoint.load(path)
        self.state = State(**facts["state"])
        model = {k[len("model/") :]: v for k, v in tensors.items() if k.startswith("model/")}
        self.method.load_state_dict(model)
        selected = {k[len("best/") :]: v for k, v in tensors.items() if k.startswith("best/")}
        self.selected = selected or None
        for name, optimizer in self.optimizers.items():
            checkpoint.unpack(f"optimizer/{name}", tensors, facts["optimizers"][name], optimizer)

    def save(self) -> None:
        """Write the checkpoint now (the first process does)."""
        self._saved = time.monotonic()
        if self.path is None or rank() > 0:
            return
        tensors = {f"model/{k}": v for k, v in self.method.state_dict().items()}
        tensors |= {f"best/{k}": v for k, v in (self.selected or {}).items()}
        plain = {}
        for name, optimizer in self.optimizers.items():
            packed, plain[name] = checkpoint.pack(f"optimizer/{name}", optimizer.state_dict())
            tensors |= packed
        checkpoint.save(self.path, tensors, {"state": asdict(self.state), "optimizers": plain})

    def _trainable(self) -> Trainable:
        return self.method  # type: ignore[return-value]

    @property
    def ending(self) -> bool:
        """Whether the epoch that is validated now is the last one, but for early stopping."""
        return self.state.epoch == self.epochs - 1 or self._stepped()

    def _goes_on(self) -> bool:
        # An epoch that was cut short and not yet validated when the run was stopped is closed.
        return self.state.epoch < self.epochs and not (self._stepped() and not self.state.batch)

    def _stepped(self) -> bool:
        return self.steps is not None and self.state.step >= self.steps

    def _exhausted(self) -> bool:
        return self.patience is not None and self.state.waited >= self.patience

    def _epoch(self, table: Any, stopped: threading.Event) -> None:
        state, epoch = self.state, self.state.epoch
        table = self._trainable().round(table, epoch)
        columns = {"label": table.label, **table.columns}
        batches = self.sampler.batches(columns, self.seed, epoch)
        columns["key"] = row_keys(self.seed, epoch, torch.arange(len(table.label)))
        self._train_mode()
        left = None if self.steps is None else state.batch + self.steps - state.step
        todo = batches[state.batch : left]
        pinned = self.device.type == "cuda"
        with closing(taken(table.inputs, map(_mine, todo), columns["key"], pinned)) as inputs:
            for rows in todo:
                began = time.perf_counter()
                self._step(inputs, columns, rows, began)
                state.batch += 1
                state.step += 1
                state.rows += len(rows)
                state.seconds += time.perf_counter() - began
                self.on_step(state, len(batches))
                # Processes must stop at the same step, and asking them costs a message.
                alone = world() == 1 or state.step % LOG_EVERY == 0
                self._maybe_stop(alone and any_process(stopped.is_set()))

    def _train_mode(self) -> None:
        self.method.train()
        for module in self.freeze:
            module.eval()

    def _step(
        self, inputs: Iterator[Tensor], columns: dict[str, Tensor], rows: Tensor, began: float
    ) -> None:
        step = self.state.step
        factor = self.schedule(step)
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor
        begin_step(self.seed, step)
        if step % DIAGNOSE_EVERY == 0:
            self._trainable().watched = True
        batch = self._batch(inputs, columns, _mine(rows))
        turns = 0
        last: Turn | None = None
        for turn in self._trainable().turns(batch):
            turns += 1
            last = turn
            if not minimize(turn, self._who(turn.learns), self.clip):
                self.state.idle += 1
        if step % LOG_EVERY == 0 or step % DIAGNOSE_EVERY == 0:
            self._note_step(turns, last, len(rows), began)

    def _batch(self, inputs: Iterator[Tensor], columns: dict[str, Tensor], rows: Tensor) -> Batch:
        chosen = {name: column.index_select(0, rows) for name, column in columns.items()}
        x, chosen["index"] = next(inputs), rows
        if self.device.type != "cpu":
            x = x.to(self.device, non_blocking=True)
            chosen = {name: c.to(self.device, non_blocking=True) for name, c in chosen.items()}
        return Batch(x, **chosen)

    def _who(self, learns: tuple[str, ...]) -> Players:
        who = self._players.get(learns)
        if who is None:
            known = self._trainable().learners()
            unknown = [name for name in learns if name not in known]
            if unknown:
                raise TrainingError(
                    f"a turn trains {unknown[0]!r}, which is no learner; the learners are "
                    f"{', '.join(known)}"
                )
            # Every trainable parameter is held by an optimizer, so that all of them are everyone.
            who = self._players[learns] = players(self.optimizers, learns, owned=True)
        return who

    def _note_step(self, turns: int, last: Turn | None, rows: int, began: float) -> None:
        state = self.state
        record: dict[str, Any] = {"event": "step", "step": state.step, "epoch": state.epoch}
        record["turns"] = turns
        if last is not None:
            record["learns"] = list(last.learns)
            record["terms"] = last.terms.floats()
        record["rates"] = {n: o.param_groups[0]["lr"] for n, o in self.optimizers.items()}
        if state.step % DIAGNOSE_EVERY == 0:
            diagnosis = self._trainable().diagnosis()
            self._trainable().watched = False
            record |= diagnosis
            self._check_collapse(diagnosis)
        record["rows_per_second"] = round(rows / max(time.perf_counter() - began, 1e-9), 1)
        state.logged = self.log(record)

    def _check_collapse(self, diagnosis: Mapping[str, float]) -> None:
        cosine, rank_ = diagnosis.get("cosine_mean", 0.0), diagnosis.get("effective_rank", math.inf)
        if (cosine > COLLAPSED or rank_ < FLAT) and "collapsed" not in self._said:
            self._said.add("collapsed")
            warnings.warn(
                f"the embeddings have collapsed: at step {self.state.step} the mean pairwise "
                f"cosine is {cosine:.4f} and the effective rank {rank_:.2f}; lower the learning "
                "rate, mine less hard, or add a loss that spreads (infonce, cross_entropy)",
                UserWarning,
                stacklevel=2,
            )

    def _maybe_stop(self, stop: bool) -> None:
        if stop:
            self.save()
            raise Interrupted(f"interrupted at step {self.state.step}; the state is saved")
        if time.monotonic() - self._saved > self.save_seconds:
            self.save()

    def _close_epoch(
        self, validate: Callable[[int], Mapping[str, Any]], select: str | None
    ) -> None:
        state = self.state
        said = dict(validate(state.epoch))
        score = said.pop("score", None)
        if select is not None and score is not None:
            self._select(float(score))
        record = {"event": "epoch", "epoch": state.epoch, "step": state.step}
        state.logged = self.log({**record, "seconds": round(state.seconds, 3), **said})
        state.epoch, state.batch = state.epoch + 1, 0
        self.save()

    def _select(self, score: float) -> None:
        state, best = self.state, self.state.best
        if math.isnan(score):
            raise TrainingError(
                "the selection score is NaN; does the validation split have relevant items?"
            )
        better = (
            best is None or score > best["score"] or (self.later_wins and score == best["score"])
        )
        state.waited = 0 if better else state.waited + 1
        if better:
            state.best = {"epoch": state.epoch, "score": score}
            model = self.method.state_dict()
            self.selected = {k: v.detach().cpu().clone() for k, v in model.items()}


def _mine(rows: Tensor) -> Tensor:
    """This process's part of a batch."""
    return rows[share(len(rows))] if world() > 1 else rows


class _stops:
    """Ctrl-C and SIGTERM set an event instead of breaking a step in the middle; a second Ctrl-C
    breaks it."""

    def __enter__(self) -> threading.Event:
        self.event, self.before, self.asked = threading.Event(), {}, 0.0
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self.before[number] = signal.signal(number, self._ask)
        return self.event

    def _ask(self, number: int, frame: object) -> None:
        # torchrun passes on what the terminal has sent already; that is no second thought.
        again = number == signal.SIGINT and time.monotonic() - self.asked > DELIBERATE
        if self.event.is_set() and again:
            raise KeyboardInterrupt
        self.asked = time.monotonic()
        self.event.set()

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
