"""`nearkin report`: the page of finished runs, with pictures where their data are still to be
had."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from nearkin import model as models
from nearkin.assemble import OWN
from nearkin.config import build, load_recipe
from nearkin.report import RunView, read_run, write_report
from nearkin.run import pictures_of


def report(
    runs: Sequence[Path],
    out: Path | None = None,
    *,
    trust_code: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> Path:
    """Write the page of one or several runs; returns its path.

    out   default: report.html in the folder of the first run

    Raises ValueError or OSError for a folder that is no finished run.
    """
    views = [_view(Path(run), trust_code, say) for run in runs]
    return write_report(views, out or Path(runs[0]) / "report.html")


def _view(folder: Path, trust_code: bool, say: Callable[[str], None]) -> RunView:
    view = read_run(folder)
    try:
        view.picture = _pictures(view, trust_code)
    except (ValueError, OSError, ImportError) as error:
        say(f"{folder}: a report without pictures, for its data cannot be read ({error})")
    return view


def _pictures(view: RunView, trust_code: bool) -> Callable[[int], Any] | None:
    """Pictures of the test rows, in the order of embeddings.npz."""
    from dataclasses import replace

    recipe = load_recipe(view.folder / "recipe.yaml")
    if recipe["data"] == OWN:
        raise ValueError("they were given in Python")
    test = build(recipe["data"], "data", {}, "data", trust_code=trust_code).test
    if list(test.ids) != view.ids:
        raise ValueError("the data have changed since the run")
    encoder = models.load(view.folder, trust_code=trust_code, device="cpu").encoder
    return pictures_of(replace(test, inputs=encoder.seen(test.inputs, 2)))
