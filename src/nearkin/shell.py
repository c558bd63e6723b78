"""What the commands of the command line share: options, output, and how a command ends. Heavy
modules load inside functions."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from nearkin.console import Reporter

app = typer.Typer(
    name="nearkin",
    help="Embeddings in which near means kin: train, measure, report.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
data_app = typer.Typer(help="The data sets, and a check of your own.", no_args_is_help=True)
app.add_typer(data_app, name="data")

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
TrustCode = Annotated[
    bool, typer.Option("--trust-code", help="Let a recipe import code (package.module:Name).")
]


def print_json(value: Any) -> None:
    """One object on stdout."""
    print(json.dumps(value, allow_nan=False))


def note(text: str) -> None:
    """A line on stderr."""
    print(text, file=sys.stderr)


def width() -> int:
    """Columns of a table."""
    return min(shutil.get_terminal_size((100, 24)).columns, 140)


@contextmanager
def shown() -> Iterator[Reporter]:
    """Shows the progress of long work on stderr, in the process that speaks."""
    from nearkin.console import Reporter, fitting

    reporter = fitting() if speaks() else Reporter(None)
    try:
        yield reporter
    finally:
        reporter.close()


def speaks() -> bool:
    """Whether this is the process that speaks (torchrun starts several)."""
    return os.environ.get("RANK", "0") == "0"


def see_own_code(trusted: bool) -> None:
    """Modules beside a person's recipe can be imported, but only where code is trusted."""
    if trusted and "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())


def guarded(command: Callable[[], int]) -> int:
    """Run a command and return its exit code: 0 done, 1 a check failed, 2 wrong use or input, 130
    interrupted. What it raises is said in a sentence, unless NEARKIN_DEBUG is 1."""
    if os.environ.get("NEARKIN_DEBUG") == "1":
        return command()
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            return command()
    except KeyboardInterrupt as stop:
        return _failed(str(stop) or "interrupted", 130)
    except BrokenPipeError:
        # Whoever read us has gone (`nearkin list | head`); Python must not complain at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError, ImportError, MemoryError) as error:
        return _failed(_sentence(error), 2)
    except Exception as error:
        return _unexpected(error)


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    note(f"nearkin: warning: {' '.join(str(message).split())}")


def _unexpected(error: Exception) -> int:
    usage = getattr(error, "format_message", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        return 2  # the help was printed
    if usage is not None:
        return _failed(f"{usage()} (see nearkin --help)", getattr(error, "exit_code", 2))
    if type(error).__name__ == "TrainingError":
        return _failed(str(error), 1)
    if type(error).__name__ == "Abort":
        return _failed("interrupted", 130)
    what = f"{type(error).__name__}: {error}"
    return _failed(f"this should not happen ({what}); NEARKIN_DEBUG=1 shows where", 1)


_INSTEAD = {
    errno.ENOSPC: "make room, or give another place with --out or NEARKIN_HOME",
    errno.EACCES: "change the rights, or give another place with --out",
    errno.EROFS: "give another place with --out",
}


def _sentence(error: BaseException) -> str:
    if not isinstance(error, OSError) or not error.strerror:
        return str(error) or type(error).__name__
    where = f": {error.filename}" if error.filename else ""
    instead = f"; {_INSTEAD[error.errno]}" if error.errno in _INSTEAD else ""
    return f"{error.strerror}{where}{instead}"


def _failed(text: str, code: int) -> int:
    if speaks():
        print(f"nearkin: {' '.join(text.split())}", file=sys.stderr)
    return code
