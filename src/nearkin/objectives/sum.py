"""Sum: several objectives at once, each with a weight."""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce
from typing import Any, ClassVar

from torch import Tensor, nn

from nearkin.core import Batch, Terms, Turn
from nearkin.objectives.base import Objective

_SLOPES = ("pull", "push")  # of the loss, and so they add as it does


class Sum(Objective):
    """Objectives added with weights (1 where none is given).

    Their own turns come first, one part after the other; then one common turn of the encoder with
    the parts that have terms for this batch. Learners are named `part.learner`.
    """

    name: ClassVar[str] = "sum"

    def __init__(self, parts: dict[str, Objective], weights: dict[str, float] | None = None):
        super().__init__()
        if not parts:
            raise ValueError("a sum needs at least one part")
        for key in parts:
            if not key.isidentifier() or hasattr(nn.ModuleDict, key):
                raise ValueError(
                    f"{key!r} cannot name a part of a sum; take a plain word, such as a"
                )
        unknown = sorted(set(weights or {}) - set(parts))
        if unknown:
            raise ValueError(
                f"there is a weight for {unknown[0]!r}, but the parts are {', '.join(parts)}"
            )
        self.parts = nn.ModuleDict(parts)
        self.weights = {key: (weights or {}).get(key, 1.0) for key in parts}
        self.needs = tuple(sorted({column for part in parts.values() for column in part.needs}))
        self._spoke: tuple[str, ...] = ()

    def forward(self, z: Tensor, batch: Batch) -> Terms | None:
        """The weighted sum; None if no part has terms for this batch."""
        said = {key: part(z, batch) for key, part in self._named()}
        said = {key: terms for key, terms in said.items() if terms is not None}
        self._spoke = tuple(said)
        if not said:
            return None
        first, *rest = [self.weights[key] * terms.named(key) for key, terms in said.items()]
        return reduce(Terms.__add__, rest, first)

    def before(self, z: Tensor, batch: Batch) -> Iterator[Turn]:
        """The parts' own turns."""
        for key, part in self._named():
            for turn in part.before(z, batch):
                yield Turn(turn.terms, tuple(f"{key}.{learner}" for learner in turn.learns))

    def after(self, z: Tensor, batch: Batch) -> None:
        """The parts' notes."""
        for _, part in self._named():
            part.after(z, batch)

    def learners(self) -> dict[str, nn.Module]:
        """part.learner -> its module."""
        return {
            f"{key}.{learner}": module
            for key, part in self._named()
            for learner, module in part.learners().items()
        }

    def joint(self) -> tuple[str, ...]:
        """The joint learners of the parts that spoke in this batch."""
        return tuple(
            f"{key}.{learner}"
            for key, part in self._named()
            if key in self._spoke
            for learner in part.joint()
        )

    def diagnosis(self, z: Tensor, batch: Batch) -> dict[str, float]:
        """pull and push of the weighted sum; what else a part notes, as `part.what`."""
        total: dict[str, float] = {}
        for key, part in self._named():
            for what, value in part.diagnosis(z, batch).items():
                if what in _SLOPES:
                    total[what] = total.get(what, 0.0) + self.weights[key] * value
                else:
                    total[f"{key}.{what}"] = value
        return total

    def recorded(self) -> dict[str, Any]:
        """What the parts record, as `part.what`."""
        return {
            f"{key}.{what}": value
            for key, part in self._named()
            for what, value in part.recorded().items()
        }

    def _named(self) -> Iterator[tuple[str, Objective]]:
        for key, part in self.parts.items():
            assert isinstance(part, Objective)
            yield key, part
