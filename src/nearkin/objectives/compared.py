"""Compared: compare, mine, score. The home of every loss that is a function of one Comparison."""

from __future__ import annotations

import difflib
import inspect
import math
import typing
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from nearkin.compare import Compare
from nearkin.core import Batch, Comparison, Loss, Terms, home_of
from nearkin.guards import (
    EARLY,
    warn_of_large_logits,
    warn_of_no_pair,
    warn_of_one_class,
)
from nearkin.mining import Mining
from nearkin.mining import all as every_pair
from nearkin.objectives.base import Objective, pull_and_push

CLASS_COLUMNS = ("proxies", "centers", "classifier")
WATCHED = 50_000_000  # similarities; above this the diagnosis would cost more than the step


class Compared(Objective):
    """A comparison, perhaps mined, and a loss on it.

    learn     settings of the loss that learn: {beta: {start: 1.2, per: class}}; `per` is all
              (default) or class. They are parameters of the objective
    classes   their number, for what is learned per class; a recipe fills it in

    Raises ValueError for a comparison of the other kind than the loss needs, and for settings that
    cannot learn.
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
        _check_mining(compare, loss, mining)
        home = home_of(loss)
        compare.settle(home.closeness if home else "cosine")
        for key in learn or {}:
            _check_setting(loss, key)
        self.learned = nn.ParameterDict(
            {key: _learned(key, said, classes) for key, said in (learn or {}).items()}
        )
        for key, value in self.learned.items():
            if value.ndim:
                _check_per_class(compare, loss, key, value)
        meant_for_cosines = home is not None and home.closeness == "cosine"
        self._early = EARLY if meant_for_cosines and compare.closeness != "cosine" else 0

    def forward(self, z: Tensor, batch: Batch) -> Terms:
        """Score the batch."""
        c = self.comparison(z, batch)
        if c.columns_are == "rows":
            if not c.positives.columns.numel():
                warn_of_no_pair(batch.get("label"))
            else:
                warn_of_one_class(c)
        return self.scored(c)

    def comparison(self, z: Tensor, batch: Batch) -> Comparison:
        """Who is compared with whom in this batch, after mining."""
        return self.mined(self.compare(z, batch))

    def mined(self, c: Comparison) -> Comparison:
        """What mining leaves of a comparison; raises ValueError where it returns no Comparison."""
        if self.mining is None:
            return c
        left = self.mining(c)
        if not isinstance(left, Comparison):
            raise ValueError(
                f"{_name_of(self.mining, 'the mining')} returned {type(left).__name__}; a mining "
                "returns a nearkin.Comparison, for example c.narrowed(allowed)"
            )
        return left

    def scored(self, c: Comparison) -> Terms:
        """The loss of a comparison, with what it has learned."""
        terms = self.loss(c, **self.learned) if len(self.learned) else self.loss(c)
        # Only now: where the loss refuses the closeness, its error says what to do.
        if self._early:
            now = {key: float(value.detach().mean()) for key, value in self.learned.items()}
            said = warn_of_large_logits(c, partial(self.loss, **now))
            self._early = 0 if said else self._early - 1
        return terms

    def after(self, z: Tensor, batch: Batch) -> None:
        """Let the comparison remember the batch."""
        self.compare.remember(z, batch)

    def diagnosis(self, z: Tensor, batch: Batch) -> dict[str, float]:
        """pull and push of the comparison; nothing where it is too large to ask."""
        with torch.no_grad():
            c = self.comparison(z, batch)
            if c.shape[0] * c.shape[1] > WATCHED:
                return {}
            similarity = c.similarity
        return pull_and_push(
            similarity, c.same, c.different, lambda leaf: self.scored(replace(c, given=leaf)).total
        )


def _learned(key: str, said: Any, classes: int | None) -> nn.Parameter:
    if not isinstance(said, Mapping) or set(said) - {"start", "per"} or "start" not in said:
        seen = ", ".join(sorted(map(str, said))) if isinstance(said, Mapping) else repr(said)
        raise ValueError(f"learn.{key} takes start and per, not {seen}; write {{start: 1.2}}")
    start, per = said["start"], said.get("per", "all")
    if per not in ("all", "class"):
        raise ValueError(f"learn.{key}.per must be all or class, not {per!r}")
    if per == "class" and classes is None:
        raise ValueError(f"learn.{key} is learned per class; say how many with classes")
    number = isinstance(start, int | float) and not isinstance(start, bool)
    if not number or not math.isfinite(start):
        raise ValueError(f"learn.{key}.start must be a finite number, not {start!r}")
    value = torch.tensor(float(start))
    return nn.Parameter(value if per == "all" else value.repeat(classes or 0))


def _check_setting(loss: Loss, key: str) -> None:
    """What learns must be a setting of the loss that may be a tensor."""
    parameters = inspect.signature(loss).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    known = list(parameters)[1:]
    if key not in known:
        near = difflib.get_close_matches(key, known, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known) or 'none'}"
        raise ValueError(f"learn.{key}: the loss has no such setting; {hint}")
    hints = _hints(loss)
    able = [name for name in known if _may_learn(hints.get(name, Any))]
    if key not in able:
        instead = f"those that learn: {', '.join(able)}" if able else "none of its settings learns"
        raise ValueError(f"learn.{key}: {_name_of(loss)} takes {key} as a fixed number; {instead}")


def _hints(loss: Loss) -> Mapping[str, Any]:
    """Annotations of the settings; none where a function of one's own has them unreadable."""
    made = getattr(loss, "func", loss)
    try:
        return typing.get_type_hints(made if inspect.isfunction(made) else type(made).__call__)
    except (AttributeError, NameError, TypeError):
        return {}


def _may_learn(hint: Any) -> bool:
    return hint in (Any, Tensor) or Tensor in typing.get_args(hint)


def _name_of(loss: Loss | Mining, unnamed: str = "the loss") -> str:
    return getattr(getattr(loss, "func", loss), "__name__", unnamed)


def _check_per_class(compare: Compare, loss: Loss, key: str, start: Tensor) -> None:
    """Ask the loss with four rows of two classes whether it takes a value for each class."""
    if "label" not in compare.needs:
        own = getattr(compare, "name", type(compare).__name__)
        raise ValueError(
            f"learn.{key} is learned per class, but {own} reads no classes; set per: all"
        )
    columns = compare.columns_are == "classes"
    rows, label = torch.eye(4), torch.tensor([0, 0, 1, 1])
    c = compare.made(
        anchor_label=label,
        reference_label=torch.arange(3) if columns else label,
        anchors=rows,
        references=rows[:3] if columns else rows,
        oneself=None if columns else torch.arange(4),
    )
    try:
        loss(c, **{key: start.detach()[:1].expand(7)})
    except (IndexError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"learn.{key}.per: {_name_of(loss)} takes one {key} for all, not one for each class; "
            "set per: all"
        ) from error


def _check_mining(compare: Compare, loss: Loss, mining: Mining | None) -> None:
    """Rows alone are mined."""
    if mining is None or compare.columns_are == "rows":
        return
    if getattr(mining, "func", mining) is not every_pair:
        raise ValueError(
            f"mining narrows rows compared with rows, but {_name_of(loss)} compares with "
            f"{getattr(compare, 'name', type(compare).__name__)}; leave mining out"
        )


def _check_home(compare: Compare, loss: Loss) -> None:
    """A loss over classes refuses a comparison with rows, and the other way round."""
    home = home_of(loss)
    if home is None:
        return
    wanted = "classes" if home.compare in CLASS_COLUMNS else "rows"
    if compare.columns_are != wanted:
        needed = "one column a class" if wanted == "classes" else "rows of data as columns"
        raise ValueError(
            f"{_name_of(loss)} needs {needed}, but "
            f"{getattr(compare, 'name', type(compare).__name__)} gives "
            f"{compare.columns_are}; use {home.compare}"
        )
