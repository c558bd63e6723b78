"""What a person sees while a run goes on: a progress bar on a terminal, plain lines elsewhere; and
the table."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Mapping
from typing import IO, Any

from nearkin.loop import State

ROWS = (
    ("test", "trained"),
    ("untrained", "untrained encoder"),
    ("raw", "raw input"),
)


class Reporter:
    """Plain lines on a stream; nothing at all without one."""

    def __init__(self, stream: IO[str] | None):
        self.stream = stream

    def say(self, text: str) -> None:
        """One line."""
        if self.stream is not None:
            print(text, file=self.stream, flush=True)

    def prepared(self, done: int, total: int) -> None:
        """So many of the inputs are prepared."""
        if done == total or done % 5000 < 256:
            self.say(f"prepared {done} of {total} inputs")

    def step(self, epochs: int) -> Callable[[State, int], None]:
        """What the loop calls after each step, with its state and the number of batches an
        epoch."""
        return lambda state, batches: None

    def epoch(self, epoch: int, scores: Mapping[str, float] | None) -> None:
        """An epoch is over."""
        said = "".join(f"  {name} {value:.3f}" for name, value in (scores or {}).items())
        self.say(f"epoch {epoch + 1}{said}")

    def close(self) -> None:
        """Nothing more comes."""
        return


class Bar(Reporter):
    """A progress bar with what was last measured, on a terminal (rich)."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        super().__init__(None)
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=Console(stderr=True),
        )
        self.progress.start()
        self.task: Any = None
        self.note = ""

    def say(self, text: str) -> None:
        """One line above the bar."""
        self.progress.console.print(text, markup=False, highlight=False)

    def prepared(self, done: int, total: int) -> None:
        """The bar shows inputs."""
        self._show("inputs", done, total)
        if done == total:
            self._clear()

    def step(self, epochs: int) -> Callable[[State, int], None]:
        """The bar shows steps, with rows a second and the time that is left."""

        def show(state: State, batches: int) -> None:
            if state.step % 5 == 0 or state.batch == batches:
                self._show(f"epoch {state.epoch + 1}/{epochs}", state.step, batches * epochs)

        return show

    def epoch(self, epoch: int, scores: Mapping[str, float] | None) -> None:
        """The bar's note shows the last scores."""
        self.note = " ".join(f"{name} {value:.3f}" for name, value in (scores or {}).items())

    def close(self) -> None:
        """Take the bar away."""
        self.progress.stop()

    def _show(self, what: str, done: int, total: int) -> None:
        if self.task is None:
            self.task = self.progress.add_task(what, total=total, note="")
        self.progress.update(
            self.task, description=what, completed=done, total=total, note=self.note
        )

    def _clear(self) -> None:
        if self.task is not None:
            self.progress.remove_task(self.task)
            self.task = None


def plain() -> Reporter:
    """Plain lines on stderr."""
    return Reporter(sys.stderr)


def fitting(quiet: bool = False) -> Reporter:
    """A bar on a terminal, plain lines elsewhere, nothing where asked for."""
    if quiet:
        return Reporter(None)
    return Bar() if sys.stderr.isatty() else plain()


def scores_table(metrics: Mapping[str, Any], closeness: str = "cosine", width: int = 100) -> str:
    """The table of a run's metrics.json as text: trained, untrained and raw, in percent with
    intervals."""
    from rich.console import Console
    from rich.table import Table

    rows = [(title, metrics[key]) for key, title in ROWS if key in metrics]
    names = list(rows[0][1][closeness])
    shown = [
        n for n in names if n.startswith(("recall", "cmc", "map", "mrr", "ndcg", "r_pre", "preci"))
    ]
    table = Table(title=f"retrieval on classes never seen in training ({closeness}, %)")
    table.add_column("")
    for name in shown:
        table.add_column(name, justify="right")
    for title, said in rows:
        cells = [_cell(said[closeness].get(name)) for name in shown]
        table.add_row(title, *cells)
    console = Console(width=width, file=io.StringIO(), record=True)
    console.print(table)
    return console.export_text().rstrip() + "\n" + _below(metrics)


def _cell(said: Mapping[str, Any] | None) -> str:
    if said is None or said.get("value") is None:
        return ""
    value = f"{100 * said['value']:.1f}"
    if said.get("low") is None:
        return value
    return f"{value}\n{100 * said['low']:.1f}-{100 * said['high']:.1f}"


def _below(metrics: Mapping[str, Any]) -> str:
    said = [f"{metrics['test']['queries']} queries"]
    lone = metrics["test"]["without_relevant"]
    if lone:
        said.append(f"{lone} without a relevant item, not scored")
    found = metrics["test"].get("information")
    if found and found.get("bits") is not None:
        said.append(f"I(Z;Y) >= {found['bits']:.2f} of {found['ceiling']:.2f} bits")
    by = metrics.get("selected", {})
    if by:
        said.append(f"epoch {by['epoch'] + 1}, selected by {by['by']}")
    return "; ".join(said)
