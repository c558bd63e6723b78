"""Bound: a variational bound of mutual information, raised by the encoder and a critic together."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from nearkin.compare import Compare
from nearkin.core import Batch, Comparison, Loss, Terms, Turn, home_of
from nearkin.guards import warn_of_no_pair
from nearkin.objectives.base import Critic, Objective, pull_and_push


class Bound(Objective):
    """A bound of mutual information between the two sides of a comparison, to be maximized (Poole
    et al. 2019; Hjelm et al. 2019).

    compare        whose information: in_batch (rows of one class), across_views (two views),
                   proxies (embeddings and labels)
    loss           the bound, with its sign turned: a loss of `bounds`, infonce, or one of your own
    critic         what scores a pair; without one its similarity does
    critic_steps   turns of the critic alone before the encoder's, each on its updated parameters;
                   0: it learns in the encoder's turn

    A pair counts as drawn jointly where the labels (the pair, across views) agree, and else as
    drawn from the product of the marginals. Pairs that agree by chance are not among the latter:
    where classes are few, the divergence from different pairs is larger than the one from all
    pairs, which the information is. The encoder raises the bound and the critic tightens
    it: one direction for both, so that no turn works against another. Its value in nats stands in
    the docstring of each bound; jsd and infonce have theirs in the log, in bits (`bound_bits`).
    What a bound says of one batch while it is trained is no estimate: that is
    `nearkin.mutual_information` on rows held out.

    Learners: critic, where there is one, and objective, the references (proxies).

    Raises ValueError for critic_steps below 0 or without a critic.
    """

    name: ClassVar[str] = "bound"

    def __init__(
        self,
        compare: Compare,
        loss: Loss,
        critic: Critic | None = None,
        critic_steps: int = 0,
    ):
        super().__init__()
        if critic_steps < 0:
            raise ValueError(f"critic_steps must be at least 0, not {critic_steps}")
        if critic_steps and critic is None:
            raise ValueError(
                f"critic_steps is {critic_steps}, but there is no critic; name one, for example "
                "critic: {linear: {}}"
            )
        home = home_of(loss)
        compare.settle(home.closeness if home else "cosine")
        self.compare, self.loss, self.needs = compare, loss, compare.needs
        self.critic, self.critic_steps = critic, critic_steps

    def forward(self, z: Tensor, batch: Batch) -> Terms:
        """The loss of the batch, by the critic as it stands."""
        c = self.compare(z, batch)
        if c.columns_are == "rows" and not c.positives.columns.numel():
            warn_of_no_pair(batch.get("label"))
        return self.loss(self.judged(c))

    def judged(self, c: Comparison) -> Comparison:
        """The comparison by the critic's scores."""
        if self.critic is None:
            return c
        with torch.autocast(c.anchor_label.device.type, enabled=False):
            return replace(c, given=self.critic(c), closeness="given", bias=None)

    def before(self, z: Tensor, batch: Batch) -> Iterator[Turn]:
        """The critic's turns."""
        for _ in range(self.critic_steps):
            yield Turn(self.loss(self.judged(self.compare(z, batch))), learns=("critic",))

    def after(self, z: Tensor, batch: Batch) -> None:
        """Let the comparison remember the batch."""
        self.compare.remember(z, batch)

    def learners(self) -> dict[str, nn.Module]:
        """The references, and the critic where there is one."""
        own: dict[str, nn.Module] = {"objective": self.compare}
        return own if self.critic is None else {**own, "critic": self.critic}

    def joint(self) -> tuple[str, ...]:
        """The references, and a critic that has no turns of its own."""
        joins = self.critic is not None and not self.critic_steps
        return ("objective", "critic") if joins else ("objective",)

    @torch.no_grad()
    def diagnosis(self, z: Tensor, batch: Batch) -> dict[str, float]:
        """pull and push, by the similarity where the critic reads it and by its score elsewhere;
        the bound in bits, of jsd and infonce."""
        c = self.compare(z, batch)
        judged = self.judged(c)
        by_similarity = self.critic is None or self.critic.reads_similarity

        def total(leaf: Tensor) -> Tensor:
            """The loss, where this stands in for what it or the critic reads."""
            seen = replace(c if by_similarity else judged, given=leaf)
            return self.loss(self.judged(seen) if by_similarity else seen).total

        start = c.similarity if by_similarity else judged.similarity
        said = pull_and_push(start, c.same, c.different, total)
        return {**said, **_in_bits(self.loss, judged)}


def _in_bits(loss: Loss, c: Comparison) -> dict[str, float]:
    """The value of a bound that is known by its name, and what it cannot exceed."""
    name = getattr(getattr(loss, "func", loss), "__name__", "")
    if name not in ("jsd", "infonce") or not bool(c.same.any()):
        return {}
    total = float(loss(c).total)
    if name == "jsd":
        # 2 log 2 - total bounds twice the divergence, in nats.
        return {"bound_bits": 1 - total / (2 * math.log(2)), "bound_ceiling": 1.0}
    # The mean of log(1 + negatives) over positive pairs: each pair is one choice among so many.
    choices = torch.log2(1 + c.negatives.double())
    pairs = c.same.sum(1)
    ceiling = float((choices * pairs).sum() / pairs.sum())
    return {"bound_bits": ceiling - total / math.log(2), "bound_ceiling": ceiling}
