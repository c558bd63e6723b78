"""Method: whose turn it is to learn, and Supervised, the method of every plain objective."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nearkin.core import Batch, Turn, at_least_float32
from nearkin.encoders.base import Encoder
from nearkin.evaluation.geometry import rank_of
from nearkin.objectives.base import Objective
from nearkin.runtime import autocast, gather, keyed, seed_shared


class Method(nn.Module):
    """A two-level alternation: `round` chooses the data, `turns` chooses who learns.

    `learners` names the parts that learn; they own disjoint parameters, all of them. The contract
    of turns stands in `core.Turn`. All that `round` needs is in buffers, so that it can be resumed.
    `gives` names the columns that `round` adds to the table.
    """

    gives: ClassVar[tuple[str, ...]] = ()
    watched: bool = False  # whether the next batch is to be diagnosed

    def learners(self) -> dict[str, nn.Module]:
        """The parts that learn, by name."""
        raise TypeError(f"{type(self).__name__} says no learners")

    def turns(self, batch: Batch) -> Iterator[Turn]:
        """The updates of one batch, in order. The batch is this process's slice of the global
        one."""
        raise TypeError(f"{type(self).__name__} says no turns")

    def embed(self, inputs: Any) -> Tensor:
        """(N, D) embeddings, as retrieval uses them."""
        raise TypeError(f"{type(self).__name__} says no embed")

    def round(self, table: Any, epoch: int) -> Any:
        """The table of this epoch: relabelled, clustered, or as it is."""
        return table

    def diagnosis(self) -> dict[str, float]:
        """Numbers for the log about the last batch that was watched."""
        return {}

    def recorded(self) -> dict[str, Any]:
        """What the report draws of the parts that learn, in the log's line of every epoch."""
        return {}


class Supervised(Method):
    """An encoder that minimizes an objective."""

    name: ClassVar[str] = "supervised"

    def __init__(self, encoder: Encoder, objective: Objective, precision: str = "float32"):
        super().__init__()
        self.encoder, self.objective, self.precision = encoder, objective, precision
        self._noted: dict[str, float] = {}

    def learners(self) -> dict[str, nn.Module]:
        """encoder, and the objective's."""
        return {"encoder": self.encoder, **self.objective.learners()}

    def turns(self, batch: Batch) -> Iterator[Turn]:
        """Augment and embed this process's rows, gather all, then the objective's turns."""
        keys, encoder = batch["key"], self.encoder
        with keyed(keys), autocast(keys.device, self.precision):
            z = encoder(encoder.augment(batch.inputs, keys))
        z, columns = gather(at_least_float32(z), batch.without_inputs())
        if self.watched:
            # Before any update and before a memory takes the batch in; then the dice are laid back.
            self._noted = {**self.objective.diagnosis(z.detach(), columns), **spread(z.detach())}
            seed_shared()
        yield from self.objective.turns(z, columns)

    def embed(self, inputs: Any) -> Tensor:
        """(N, D) embeddings, float32 or wider."""
        with autocast(inputs.device, self.precision):
            return at_least_float32(self.encoder(inputs))

    def diagnosis(self) -> dict[str, float]:
        """pull, push, mean pairwise cosine and effective rank of the last batch watched."""
        return self._noted

    def recorded(self) -> dict[str, Any]:
        """What the objective records."""
        return self.objective.recorded()


@torch.no_grad()
def spread(z: Tensor) -> dict[str, float]:
    """How far from collapse (N, D) embeddings are, by their unit rows.

    cosine_mean     mean cosine over ordered pairs of different rows; 1: all point the same way
    effective_rank  exp of the entropy of the normalized singular values (Roy & Vetterli 2007);
                    1: one direction holds everything, D: all directions alike
    """
    u = F.normalize(z.float(), dim=1)
    if not bool(u.isfinite().all()):
        return {}  # the loss says so in a moment, with more to tell
    n = len(u)
    cosine = (u.sum(0).square().sum() - u.square().sum()) / max(n * (n - 1), 1)
    return {"cosine_mean": float(cosine), "effective_rank": rank_of(u)}
