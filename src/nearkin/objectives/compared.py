"""Compared: compare, mine, score. The home of every loss that is a function of one Comparison."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from nearkin.compare import Compare
from nearkin.core import Batch, Comparison, Loss, Terms, home_of, warn_once
from nearkin.mining import Mining
from nearkin.objectives.base import Objective

CLASS_COLUMNS = ("proxies", "centers", "classifier")
WATCHED = 50_000_000  # similarities; above this the diagnosis would cost more than the step


class Compared(Objective):
    """A comparison, perhaps mined, and a loss on it.

    learn     settings of the loss that learn: {beta: {start: 1.2, per: class}}; `per` is all or
              class
    classes   their number, for what is learned per class; a recipe fills it in
    """

    name: ClassVar[str] = "compared"

    def __init__(
        self,
        compare: Compare,
        loss: Loss,
        mining: Mining | None = None,
        learn: dict[str, dict[str, Any]] | None = None,
        classes: int | None = None,
    ):
        super().__init__()
        self.compare, self.loss, self.mining = compare, loss, mining
        self.needs = compare.needs
        _check_home(compare, loss)
        _check_settings(loss, learn or {})
        home = home_of(loss)
        compare.settle(home.closeness if home else "cosine")
        self.learned = nn.ParameterDict(
            {key: _learned(key, said, classes) for key, said in (learn or {}).items()}
        )

    def forward(self, z: Tensor, batch: Batch) -> Terms:
        """Score the batch."""
        c = self.comparison(z, batch)
        if c.columns_are == "rows" and not c.positives.columns.numel():
            warn_once(
                "a batch holds no positive pair, so nothing gathers a class; use the balanced "
                "sampler, larger batches or a memory"
            )
        return self._score(c)

    def comparison(self, z: Tensor, batch: Batch) -> Comparison:
        """Who is compared with whom in this batch, after mining."""
        c = self.compare(z, batch)
        return c if self.mining is None else self.mining(c)

    def after(self, z: Tensor, batch: Batch) -> None:
        """Let the comparison remember the batch."""
        self.compare.remember(z, batch)

    def diagnosis(self, z: Tensor, batch: Batch) -> dict[str, float]:
        """pull and push: with g = ∂loss/∂similarity, -Σ_same g and Σ_different g."""
        with torch.no_grad():
            c = self.comparison(z, batch)
            if c.shape[0] * c.shape[1] > WATCHED:
                return {}
            leaf = c.similarity.clone()
        with torch.enable_grad():
            leaf.requires_grad_()
            total = self._score(replace(c, given=leaf)).total
            if not total.requires_grad:
                return {"pull": 0.0, "push": 0.0}
            (slope,) = torch.autograd.grad(total, leaf)
        pull, push = -(slope * c.same).sum(), (slope * c.different).sum()
        return {"pull": float(pull), "push": float(push)}

    def _score(self, c: Comparison) -> Terms:
        return self.loss(c, **self.learned) if len(self.learned) else self.loss(c)


def _learned(key: str, said: Mapping[str, Any], classes: int | None) -> nn.Parameter:
    unknown = set(said) - {"start", "per"}
    if unknown or "start" not in said:
        raise ValueError(f"learn.{key} takes start and per, not {', '.join(sorted(said))}")
    per = said.get("per", "all")
    if per not in ("all", "class"):
        raise ValueError(f"learn.{key}.per must be all or class, not {per!r}")
    if per == "class" and classes is None:
        raise ValueError(f"learn.{key} is learned per class; say how many with classes")
    start = torch.tensor(float(said["start"]))
    return nn.Parameter(start if per == "all" else start.repeat(classes or 0))


def _check_settings(loss: Loss, learn: Mapping[str, Any]) -> None:
    """What learns must be a setting of the loss."""
    if not learn:
        return
    _, *parameters = inspect.signature(loss).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return
    known = [parameter.name for parameter in parameters]
    for key in learn:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known) or 'none'}"
            raise ValueError(f"learn.{key}: the loss has no such setting; {hint}")


def _check_home(compare: Compare, loss: Loss) -> None:
    """A loss over classes refuses a comparison with rows, and the other way round."""
    home = home_of(loss)
    if home is None:
        return
    wanted = "classes" if home.compare in CLASS_COLUMNS else "rows"
    if compare.columns_are != wanted:
        label = getattr(getattr(loss, "func", loss), "__name__", "this loss")
        needed = "one column a class" if wanted == "classes" else "rows of data as columns"
        raise ValueError(
            f"{label} needs {needed}, but {getattr(compare, 'name', type(compare).__name__)} gives "
            f"{compare.columns_are}; use {home.compare}"
        )
