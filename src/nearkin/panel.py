"""Panel: what a run tells about its embedding while it is trained, on a fixed sample of its rows.
What the numbers are is defined in evaluation.geometry and information.class_means."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nearkin.data.base import Splits, Table
from nearkin.evaluation.geometry import (
    effective_rank,
    least_simplex_distance,
    mean_cosine,
    simplex_distance,
    sphere,
)
from nearkin.information.class_means import class_mean_information
from nearkin.loop import COLLAPSED, FLAT, Loop
from nearkin.runtime import rank

ROWS = 1_000  # of each split at most
PER_CLASS = 20  # of a class, unless there are so few classes that the rows would not be filled
SHARE, FEWEST = 20, 256  # training rows: a twentieth of them, or so many
EVERY = 100  # steps from one panel to the next, at least

Embed = Callable[[Table], Tensor]


class Panel:
    """A fixed sample of the training and of the validation rows, measured now and then.

    splits   of the run; the test split is never looked at
    embed    Table -> (N, D) as retrieval sees it. Every process calls it alike
    seed     of the samples and of what is random in a measure

    The training rows were learned from, so what they tell flatters; only the validation rows are
    held out, by whole classes. A run without a validation split has training rows alone, and its
    log and page say so.
    """

    def __init__(self, splits: Splits, embed: Embed, seed: int):
        self.embed, self.seed = embed, seed
        train, validation = splits.train, splits.validation
        most = min(ROWS, max(FEWEST, len(train) // SHARE))
        self.rows = {"training": sampled(train.label, most, seed)}
        self.tables = {"training": train}
        if validation is not None:
            self.rows["validation"] = sampled(validation.label, ROWS, seed)
            self.tables["validation"] = validation
        self._said = False

    def remark(self) -> str:
        """Which rows are looked at, in a sentence for the log and the page."""
        parts = [
            f"{len(rows):,} of {len(self.tables[of]):,} {of} rows" for of, rows in self.rows.items()
        ]
        if "validation" in self.rows:
            return " and ".join(parts)
        return (
            f"{parts[0]}; there is no validation split, so that nothing is measured on rows held "
            "out"
        )

    def start(self, loop: Loop) -> None:
        """The panel before the first step; a resumed run has it already."""
        if "panel" not in loop.state.notes:
            self._draw(loop, None, None)

    def follow(self, loop: Loop, epoch: int, validation: Tensor | None = None) -> None:
        """The panel at the end of an epoch: of the first, of the last, and where 100 steps have
        passed since the one before.

        validation   (N, D) embeddings of the whole validation split where they are there already
        """
        # Steps decide, never a clock: a resumed run and every process agree.
        last = loop.state.notes.get("panel", 0)
        passed = loop.state.step - last
        if passed >= EVERY or (passed and (last == 0 or loop.ending)):
            self._draw(loop, epoch, validation)

    def _draw(self, loop: Loop, epoch: int | None, validation: Tensor | None) -> None:
        state = loop.state
        state.notes["panel"] = state.step
        where = {"event": "panel", "step": state.step}
        where |= {} if epoch is None else {"epoch": epoch}
        for of, rows in self.rows.items():
            began = time.perf_counter()
            whole = validation if of == "validation" else None
            table = self.tables[of]
            z = self.embed(table.select(rows)) if whole is None else whole[rows]
            if rank() > 0:
                continue  # the first process writes the log
            label = table.label[rows]
            found = measured(z, label, table.classes, self.seed)
            counts = {"of": of, "rows": len(label), "classes": len(torch.unique(label))}
            seconds = round(time.perf_counter() - began, 4)
            state.logged = loop.log({**where, **counts, **found, "seconds": seconds})
            said = _trouble(found, of, state.step, table.classes)
            if said and not self._said:
                self._said = True
                warnings.warn(said, UserWarning, stacklevel=2)


def _trouble(found: Mapping[str, Any], of: str, step: int, classes: int) -> str:
    """What to warn of: rows that hold NaN, or that lie in one direction; empty for neither."""
    if "problem" in found:
        return f"the panel could not be drawn of the {of} rows at step {step}: {found['problem']}"
    cosine, directions = found["cosine_mean"], found["effective_rank"]
    # Untrained encoders often begin near a line, and a few steps do not take them off it.
    if cosine is None or step < EVERY:
        return ""
    # Two classes may lie opposite each other on one line, and nothing has collapsed.
    flat = directions < (FLAT if classes > 2 else 0.5)
    if cosine <= COLLAPSED and not flat:
        return ""
    return (
        f"the embeddings of the {of} rows have collapsed: after step {step} their mean pairwise "
        f"cosine is {cosine:.4f} and their effective rank {directions:.2f}; lower the learning "
        "rate, mine less hard, or add a loss that spreads (infonce, cross_entropy)"
    )


def measured(z: Tensor, label: Tensor, classes: int, seed: int) -> dict[str, Any]:
    """What the panel says of (N, D) embeddings and their labels (N,).

    information        bits by class means on unit rows, their interval and ceiling H(Y), in bits
    jsd                divergence between the cosines of same and different pairs, in bits, 0 to 1
    alignment          mean squared distance of same pairs, 0 to 4
    uniformity         log of the mean Gaussian potential of pairs, t = 2, -8 to 0
    cosine_mean        mean cosine of pairs
    effective_rank     1 to min(N, D)
    simplex_distance   of the class means from a simplex of `classes` corners, 0 to √2
    simplex_least      what it is where `classes` lie as evenly as D dimensions allow

    What cannot be measured is None, with the reason under `missing`. Rows that are not finite give
    `problem` alone.
    """
    if not bool(z.isfinite().all()):
        broken = int((~z.isfinite().all(1)).sum())
        return {"problem": f"{broken} of {len(z)} embeddings hold NaN or infinity"}
    z = z.float()
    present, dim = len(torch.unique(label)), z.shape[1]
    found: dict[str, Any] = {}
    missing: dict[str, str] = {}

    def note(name: str, value: Callable[[], Any]) -> None:
        """Measure one number, or say why it cannot be."""
        try:
            found[name] = value()
        except ValueError as error:
            found[name], missing[name] = None, str(error)

    note("information", lambda: _bits(z, label, seed))
    pairs = cache(partial(sphere, z, label))
    note("jsd", lambda: pairs().pair_divergence)
    note("alignment", lambda: pairs().alignment)
    note("uniformity", lambda: pairs().uniformity)
    note("cosine_mean", lambda: mean_cosine(z))
    note("effective_rank", lambda: effective_rank(z))
    note("simplex_distance", lambda: simplex_distance(z, label, classes))
    note("simplex_least", lambda: least_simplex_distance(present, dim, classes))
    return {**found, **({"missing": missing} if missing else {})}


def _bits(z: Tensor, label: Tensor, seed: int) -> dict[str, Any]:
    said = class_mean_information(F.normalize(z, dim=1), label, seed)
    numbers = {"bits": said.bits, "low": said.low, "high": said.high, "ceiling": said.ceiling}
    return {**numbers, "kind": said.kind}


def sampled(label: Tensor, most: int, seed: int) -> Tensor:
    """(M,) at most `most` rows, in order: classes drawn by the seed, and of each class some rows.

    Of a class at most 20 rows, or most / classes where that is more, so that there are many classes
    with several rows each. Classes of a single row come last: they have no pair.
    """
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(label))
    code = np.unique(label.numpy(), return_inverse=True)[1][order]
    sizes = np.bincount(code)
    limit = max(PER_CLASS, most // len(sizes))
    drawn = generator.permutation(len(sizes))
    drawn = drawn[np.argsort(sizes[drawn] < 2, kind="stable")]
    by_class = np.split(order[np.argsort(code, kind="stable")], sizes.cumsum()[:-1])
    chosen: list[np.ndarray] = []
    left = most
    for each in drawn:
        rows = by_class[each][: min(limit, left)]
        left -= len(rows)
        chosen.append(rows)
        if left < 2:
            break
    return torch.from_numpy(np.sort(np.concatenate(chosen)))
