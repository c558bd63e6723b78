"""What a person sees of long work: a progress bar on a terminal, plain lines elsewhere; and the
table of scores."""

from __future__ import annotations

import io
import math
import sys
import time
from collections.abc import Callable, Mapping
from typing import IO, Any

from nearkin.loop import State

COLUMNS = (("test", "trained"), ("untrained", "untrained encoder"), ("raw", "raw input"))
FLOORS = "the features without training"
UNSEEN = "retrieval on classes never seen in training"
PATIENCE = 30.0  # seconds between two plain lines of the same work


class Pace:
    """How many a second since it was last asked, as text after a separator; empty where nothing can
    be told."""

    def __init__(self) -> None:
        self.count, self.at = 0, math.inf

    def __call__(self, count: int, at: float, separator: str = ", ") -> str:
        """`count` of them were done at second `at`."""
        more, seconds = count - self.count, at - self.at
        self.count, self.at = count, at
        if more <= 0 or seconds <= 0:
            return ""
        rate = more / seconds
        return f"{separator}{rate:,.0f}/s" if rate >= 10 else f"{separator}{rate:.1f}/s"


class Reporter:
    """Plain lines on a stream; nothing at all without one."""

    def __init__(self, stream: IO[str] | None):
        self.stream, self.pace = stream, Pace()
        self._spoke = time.monotonic()

    def say(self, text: str) -> None:
        """One line."""
        self._spoke = time.monotonic()
        if self.stream is not None:
            print(text, file=self.stream, flush=True)

    def prepared(self, done: int, total: int) -> None:
        """So many of the inputs are prepared."""
        pace = self.pace(done, time.monotonic())
        self._now_and_then(f"prepared {done} of {total} inputs{pace}")

    def embedded(self, done: int, total: int) -> None:
        """So many of the items are embedded."""
        pace = self.pace(done, time.monotonic())
        self._now_and_then(f"embedded {done} of {total} items{pace}")

    def tried(self, done: int, total: int) -> None:
        """So many of the estimates are made."""
        self._now_and_then(f"estimated {done} of {total}")

    def compared(self, done: int, total: int) -> None:
        """So many of the blocks of similarities are compared."""
        self._now_and_then(f"compared {done:,} of {total:,} blocks")

    def megabytes(self, what: str, done: int, total: int) -> None:
        """So many bytes of the work `what` are done; the total is 0 where unknown."""
        of = f" of {total // 10**6}" if total else ""
        self._now_and_then(f"{what}: {done // 10**6}{of} MB")

    def step(self, epochs: int, steps: int) -> Callable[[State, int], None]:
        """What the loop calls after each of so many steps, with its state and the number of batches
        an epoch."""

        def show(state: State, batches: int) -> None:
            said = f"epoch {state.epoch + 1} of {epochs}, batch {state.batch} of {batches}"
            self._now_and_then(f"{said}{pace(state.rows, state.seconds, ', rows: ')}")

        pace = Pace()
        return show

    def epoch(self, epoch: int, scores: Mapping[str, float] | None) -> None:
        """An epoch is over."""
        said = "".join(f"  {name} {value:.3f}" for name, value in (scores or {}).items())
        self.say(f"epoch {epoch + 1}{said}")

    def close(self) -> None:
        """Nothing more comes."""
        return

    def _now_and_then(self, text: str) -> None:
        if time.monotonic() - self._spoke > PATIENCE:
            self.say(text)


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
            TextColumn("{task.fields[note]}", markup=False),
            console=Console(stderr=True),
        )
        self.task: Any = None
        self.note = ""

    def say(self, text: str) -> None:
        """One line above the bar."""
        self.progress.console.print(text, markup=False, highlight=False)

    def prepared(self, done: int, total: int) -> None:
        """The bar shows inputs."""
        self._count("inputs", done, total)

    def embedded(self, done: int, total: int) -> None:
        """The bar shows items."""
        self._count("embedding", done, total)

    def tried(self, done: int, total: int) -> None:
        """The bar shows estimates."""
        self._count("estimates", done, total)

    def compared(self, done: int, total: int) -> None:
        """The bar shows blocks of similarities."""
        self._show("comparing", done, total, "")
        if done == total:
            self._remove()

    def megabytes(self, what: str, done: int, total: int) -> None:
        """The bar shows millions of bytes."""
        self._show(what, done // 10**6, total // 10**6 or None, "MB")
        if done == total:
            self._remove()

    def step(self, epochs: int, steps: int) -> Callable[[State, int], None]:
        """The bar shows the steps of all epochs, with the time that is left."""

        def show(state: State, batches: int) -> None:
            if state.step % 5 == 0 or state.batch == batches:
                note = self.note + pace(state.rows, state.seconds, "  rows: " if self.note else "")
                self._show(f"epoch {state.epoch + 1}/{epochs}", state.step, steps, note)

        pace = Pace()
        return show

    def epoch(self, epoch: int, scores: Mapping[str, float] | None) -> None:
        """The bar's note shows the last scores."""
        self.note = " ".join(f"{name} {value:.3f}" for name, value in (scores or {}).items())
        if self.task is not None:
            self.progress.update(self.task, note=self.note)

    def close(self) -> None:
        """Leave the bar as it stands; nothing more comes."""
        self.progress.stop()

    def _count(self, what: str, done: int, total: int) -> None:
        self._show(what, done, total, self.pace(done, time.monotonic(), ""))
        if done == total:
            self._remove()

    def _remove(self) -> None:
        self.progress.remove_task(self.task)
        self.task = None

    def _show(self, what: str, done: int, total: int | None, note: str) -> None:
        if self.task is None:
            # Not before: a bar that runs would swallow a question to the person.
            self.progress.start()
            self.task = self.progress.add_task(what, total=total, note="")
        self.progress.update(self.task, description=what, completed=done, total=total, note=note)


def plain() -> Reporter:
    """Plain lines on stderr."""
    return Reporter(sys.stderr)


def fitting() -> Reporter:
    """A bar on a terminal, plain lines elsewhere."""
    return Bar() if sys.stderr.isatty() else plain()


def scores_table(metrics: Mapping[str, Any], closeness: str = "cosine", width: int = 100) -> str:
    """A run's metrics.json as text: trained, untrained and raw side by side, the floors of features
    below, and what else was found."""
    floors = metrics.get("floors", {})
    columns = [
        (title, metrics[key])
        for key, title in COLUMNS
        if key in metrics and not (key == "raw" and floors)
    ]
    said = [block_table(columns, closeness, f"{UNSEEN} ({closeness}, %)", width)]
    if floors:
        said += ["", floors_table(floors, width)]
    return "\n".join([*said, remarks(metrics)])


def floors_table(floors: Mapping[str, Any], width: int = 100) -> str:
    """The floors side by side, and what the whitening was chosen on."""
    table = block_table(list(floors.items()), "cosine", f"{FLOORS} (cosine, %)", width)
    white = floors["whitened"]
    on = "by default" if white["chosen_on"] == "default" else f"chosen on {white['chosen_on']}"
    return f"{table}\nwhitened within classes, shrinkage {white['shrinkage']:g} {on}"


def listing(items: list[tuple[str, str, str]], width: int = 100) -> str:
    """(name, summary, source) each on a line of its own, the sources dimmed."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column()
    for name, summary, source in items:
        table.add_row(Text(name), Text.assemble(summary, "  ", (source, "dim")))
    console = Console(width=width)
    with console.capture() as text:
        console.print(table)
    return text.get()


def block_table(
    columns: list[tuple[str, Mapping[str, Any]]], closeness: str, title: str, width: int = 100
) -> str:
    """Blocks of metrics.json as the columns of a table, in percent with 95 % intervals."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    blocks = {name: block[closeness] for name, block in columns if closeness in block}
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("", *blocks):
        table.add_column(name, justify="right" if name else "left")
    for name in dict.fromkeys(name for block in blocks.values() for name in block):
        table.add_row(name, *(_cell(block.get(name)) for block in blocks.values()))
    console = Console(width=width, file=io.StringIO(), record=True)
    console.print(table)
    lines = [line.rstrip() for line in console.export_text().rstrip().splitlines()]
    return "\n".join([title, *lines])


def _cell(said: Mapping[str, Any] | None) -> str:
    if said is None or said.get("value") is None:
        return ""
    value = f"{100 * said['value']:.1f}"
    if said.get("low") is None:
        return value
    return f"{value} ({100 * said['low']:.1f}-{100 * said['high']:.1f})"


def remarks(metrics: Mapping[str, Any]) -> str:
    """How many queries were scored, the information in bits, which epoch was selected."""
    test = metrics["test"]
    said = [f"{test['queries']} queries"]
    if test["without_relevant"]:
        said.append(f"{test['without_relevant']} without a relevant item, not scored")
    found = test.get("information")
    if found and found.get("bits") is not None:
        said.append(f"I(Z;Y) >= {found['bits']:.2f} of {found['ceiling']:.2f} bits")
    by = metrics.get("selected", {})
    if by:
        said.append(f"epoch {by['epoch'] + 1}, selected by {by['by']}")
    if lost := _floor_above(test, metrics.get("floors", {})):
        said.append(lost)
    return "; ".join(said)


def _floor_above(test: Mapping[str, Any], floors: Mapping[str, Any]) -> str:
    """A plain word where features without training beat the trained encoder at the first metric."""
    for name, said in test.get("cosine", {}).items():
        above = {k: f["cosine"][name]["value"] for k, f in floors.items() if name in f["cosine"]}
        best = max(above, key=above.__getitem__, default="")
        if best and above[best] > said["value"]:
            return f"the {best} features alone give more {name} than this"
        return ""
    return ""
