"""A critic that tells same from different distances, trained in turns of its own: two shapes of
alternation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from nearkin.compare import InBatch
from nearkin.core import Batch, Comparison, Terms, Turn
from nearkin.critics import DistanceCritic
from nearkin.losses.bounds import jsd
from nearkin.objectives.base import Objective, pull_and_push


class JensenShannon(Objective):
    """The encoder and a critic raise one Jensen-Shannon bound; the critic has `critic_steps` turns
    a batch."""

    name: ClassVar[str] = "jensen_shannon"

    def __init__(self, critic_steps: int = 2, width: int = 128):
        super().__init__()
        if critic_steps < 1:
            raise ValueError(f"critic_steps must be at least 1, not {critic_steps}")
        self.compare, self.critic_steps = InBatch("cosine"), critic_steps
        self.critic = DistanceCritic(width)

    def forward(self, z: Tensor, batch: Batch) -> Terms | None:
        """The bound's loss, 2 log 2 above -2 x the divergence in nats."""
        return jsd(self.judged(z, batch))

    def judged(self, z: Tensor, batch: Batch) -> Comparison:
        """The batch against itself, by the critic's similarity; the pairs' own column is not
        judged."""
        c = self.compare(z, batch)
        with torch.autocast(z.device.type, enabled=False):
            return self._given(c, c.distance)

    @torch.no_grad()
    def diagnosis(self, z: Tensor, batch: Batch) -> dict[str, float]:
        """pull and push, by the cosine: the critic stands between it and the loss."""
        c = self.compare(z, batch)
        return pull_and_push(
            c.similarity,
            c.same,
            c.different,
            lambda leaf: jsd(self._given(c, c.distance_of(leaf))).total,
        )

    def _given(self, c: Comparison, distance: Tensor) -> Comparison:
        return replace(c, given=self.critic(distance), closeness="given")

    def before(self, z: Tensor, batch: Batch) -> Iterator[Turn]:
        """The critic's turns, each on its updated parameters."""
        for _ in range(self.critic_steps):
            yield Turn(jsd(self.judged(z, batch)), learns=("critic",))

    def learners(self) -> dict[str, nn.Module]:
        """The critic alone."""
        return {"critic": self.critic}

    def joint(self) -> tuple[str, ...]:
        """Nobody: the critic is fixed in the encoder's turn."""
        return ()


class AlternatingJensenShannon(JensenShannon):
    """One turn a batch: the encoder, then `critic_steps` batches of the critic (Kemertas et al.
    2020, alg. 1).

    With critic_steps = 2 the turns are E, S, S, E, S, S, ... where S is the critic's (statistics)
    step.
    """

    name: ClassVar[str] = "alternating_jensen_shannon"

    def __init__(self, critic_steps: int = 1, width: int = 128):
        super().__init__(critic_steps, width)
        self.register_buffer("time", torch.zeros((), dtype=torch.int64))
        self.time: Tensor

    def forward(self, z: Tensor, batch: Batch) -> Terms | None:
        """The bound's loss in the encoder's batches, None in the critic's."""
        return super().forward(z, batch) if self._for_encoder() else None

    def before(self, z: Tensor, batch: Batch) -> Iterator[Turn]:
        """The critic's turn, in its batches."""
        if not self._for_encoder():
            yield Turn(jsd(self.judged(z, batch)), learns=("critic",))

    def after(self, z: Tensor, batch: Batch) -> None:
        """Count the batch."""
        self.time += 1

    def _for_encoder(self) -> bool:
        return int(self.time) % (self.critic_steps + 1) == 0
