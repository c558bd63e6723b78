"""Objective: what the encoder minimizes, and in whose turns. The members stand in the files
beside."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from nearkin.core import Batch, Terms, Turn


class Objective(nn.Module):
    """What the encoder minimizes.

    A subclass says `forward`. It may train parts of its own `before` the encoder's turn and take
    notes `after` it; both see the embedding without its gradient. `learners` names the parts that
    learn: they own disjoint parameters, all of them. The contract of turns stands in `core.Turn`.
    """

    needs: tuple[str, ...] = ("label",)

    def forward(self, z: Tensor, batch: Batch) -> Terms | None:
        """(N, D) embeddings and their columns -> Terms; None: this batch gives the encoder no
        turn."""
        raise TypeError(f"{type(self).__name__} says no forward; an Objective must return Terms")

    def before(self, z: Tensor, batch: Batch) -> Iterator[Turn]:
        """Turns of the objective's own parts, before the encoder's."""
        return iter(())

    def after(self, z: Tensor, batch: Batch) -> None:
        """Notes, after the encoder's update (or after the batch that gave it none)."""
        return

    def learners(self) -> dict[str, nn.Module]:
        """The parts that learn, by name. An objective without parameters names itself all the
        same."""
        return {"objective": self}

    def joint(self) -> tuple[str, ...]:
        """The learners that take the encoder's turn with it."""
        return ("objective",)

    def diagnosis(self, z: Tensor, batch: Batch) -> dict[str, float]:
        """Numbers for the log about this batch (pull, push); no gradient is asked for."""
        return {}

    def recorded(self) -> dict[str, Any]:
        """What the report draws of the objective's own parts, as plain numbers and lists; it stands
        in the log's line of every epoch."""
        return {}

    def turns(self, z: Tensor, batch: Batch) -> Iterator[Turn]:
        """The updates of one batch, in order; `z` (N, D) carries the encoder's graph."""
        detached = z.detach()
        yield from self.before(detached, batch)
        terms = self(z, batch)
        if terms is not None:
            yield Turn(terms, learns=("encoder", *self.joint()))
        self.after(detached, batch)
