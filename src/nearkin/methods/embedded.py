"""EmbeddedRounds: an encoder and its objective, with samplers that see where the classes lie. How
they choose stands in sample.near."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from nearkin.encoders.base import Encoder
from nearkin.extraction import extract
from nearkin.inputs import Inputs, take
from nearkin.methods.base import Supervised
from nearkin.objectives.base import Objective
from nearkin.runtime import gather_rows, share, world
from nearkin.sample.near import class_means


class EmbeddedRounds(Supervised):
    """Supervised, with the training table embedded anew in rounds for samplers of near classes (Ge
    et al. 2018, Sohn 2016).

    objective   what the encoder minimizes
    every       epochs from one embedding to the next, of all training rows as retrieval sees them

    The table gets a column `embedding` (N, D): for each row the mean of the unit rows of its class,
    all that nearest_classes and hard_classes read. The means are kept (classes, dim), so that a
    resumed run goes on with the batches that it had. The first epoch sees the encoder as it starts.

    >>> # in a recipe, in place of objective:
    >>> # method: {embedded: {objective: {compared: ...}, every: 1}}
    >>> # sampler: {nearest_classes: {classes: 32, per_class: 4}}
    """

    name: ClassVar[str] = "embedded"
    gives: ClassVar[tuple[str, ...]] = ("embedding",)

    def __init__(
        self,
        encoder: Encoder,
        objective: Objective,
        classes: int,
        dim: int,
        every: int = 1,
        precision: str | None = None,
    ):
        if every < 1:
            raise ValueError(f"every counts epochs, at least 1, not {every}")
        super().__init__(encoder, objective, precision or "float32")
        self.every = every
        self.register_buffer("means", torch.zeros(classes, dim))
        self.register_buffer("embedded_in", torch.tensor(-1))
        self.means: Tensor
        self.embedded_in: Tensor

    def round(self, table: Any, epoch: int) -> Any:
        """The table with the column `embedding`; where this epoch's turn has come, of now."""
        # An epoch that is resumed in its middle has moved on from the weights that it began with.
        if epoch % self.every == 0 and int(self.embedded_in) != epoch:
            present = torch.unique(table.label)
            self.means[present] = class_means(table.label, self._embedded(table)).to(self.means)
            self.embedded_in.fill_(epoch)
        return table.with_columns(embedding=self.means.cpu()[table.label])

    def _embedded(self, table: Any) -> Tensor:
        """(N, D) of all rows, in every process; each embeds its share."""
        inputs: Inputs = table.inputs
        count = len(inputs)
        if world() > 1:
            rows = torch.arange(count)[share(count)]
            inputs = take(inputs, rows) if isinstance(inputs, Tensor) else inputs.select(rows)
        device, precision = self.means.device, self.precision
        return gather_rows(extract(self, self.embed, inputs, device, precision, count=count))
