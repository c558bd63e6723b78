"""Objective: what the encoder minimizes, and in whose turns; Critic: what scores pairs in its
stead. The members stand in the files beside."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from nearkin.core import Batch, Comparison, Terms, Turn


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
        """Numbers for the log about this batch (pull, push: see `pull_and_push`); `z` has no
        gradient."""
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


class Critic(nn.Module):
    """Scores pairs of a comparison in place of their similarity: the f of a variational bound.

    `reads_similarity` says whether it sees a pair by its similarity alone; otherwise it sees the
    rows, as they are compared.
    """

    reads_similarity: ClassVar[bool] = False

    def forward(self, c: Comparison) -> Tensor:
        """(A, R) scores, larger for pairs that belong together."""
        raise TypeError(f"{type(self).__name__} says no forward; a Critic must return scores")


def pull_and_push(
    similarity: Tensor, same: Tensor, different: Tensor, total: Callable[[Tensor], Tensor]
) -> dict[str, float]:
    """How strongly a loss draws same pairs together and different pairs apart, the same diagnosis
    for every loss that reads the similarity.

    With g = ∂total/∂similarity:
    pull = -Σ_same g          push = Σ_different g

    similarity        (A, R) where the slope is asked for
    same, different   (A, R) bool
    total             similarity (A, R) -> the loss, 0-dim

    Both are in nats for each unit of similarity. No gradient is left behind.
    """
    leaf = similarity.detach().clone()
    with torch.enable_grad():
        leaf.requires_grad_()
        value = total(leaf)
        if not value.requires_grad:
            return {"pull": 0.0, "push": 0.0}
        (slope,) = torch.autograd.grad(value, leaf)
    pull, push = -(slope * same).sum(), (slope * different).sum()
    return {"pull": float(pull), "push": float(push)}
