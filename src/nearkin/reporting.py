"""`nearkin report`: the page of finished runs, with pictures where their data are still to be
had."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from nearkin import model as models
from nearkin.assemble import OWN
from nearkin.config import build, load_recipe
from nearkin.data.base import Table
from nearkin.inputs import Inputs, take
from nearkin.report import RunView, read_run, write_report


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
    recipe = load_recipe(view.folder / "recipe.yaml")
    if recipe["data"] == OWN:
        raise ValueError("they were given in Python")
    test = build(recipe["data"], "data", {}, "data", trust_code=trust_code).test
    if list(test.ids) != view.ids:
        raise ValueError("the data have changed since the run")
    encoder = models.load(view.folder, trust_code=trust_code, device="cpu").encoder
    return pictures_of(replace(test, inputs=encoder.seen(test.inputs, 2)))


def pictures_of(table: Table) -> Callable[[int], Any] | None:
    """Row -> its picture, where the prepared inputs are pictures; None otherwise."""
    inputs = table.inputs
    if not isinstance(inputs, Inputs) or len(inputs.shape) != 4 or inputs.dtype != torch.uint8:
        return None

    def picture(row: int) -> Any:
        """The prepared pixels of a row, as a Pillow image."""
        from PIL import Image

        pixels = take(inputs, torch.tensor([row]))[0].permute(1, 2, 0).numpy()
        return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)

    return picture
