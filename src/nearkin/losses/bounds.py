"""Variational bounds on a divergence between same and different pairs, as losses: -total is the
bound."""

from __future__ import annotations

from nearkin.core import Comparison, Terms, home
from nearkin.reduce import mean, softplus


@home("in_batch", "cosine")
def jsd(c: Comparison) -> Terms:
    """Jensen-Shannon bound, a class-balanced logistic loss (Kemertas et al. 2020, eq. 10).

    tightness = mean_same softplus(-s)          contrast = mean_different softplus(s)

    2 log 2 - total is a lower bound on twice the Jensen-Shannon divergence between the similarities
    of same and of different pairs, in nats. The similarity is usually a critic's; cosines are too
    narrow for it, their sigmoid never leaves 0.27 to 0.73.

    Use it with a critic that learns (the objectives jensen_shannon and alternating_jensen_shannon),
    or on similarities that are already logits.

    Equals the binomial deviance at cost 1 of a critic that is linear in the similarity, α(s - β).

    Memory O(A·R).
    """
    return Terms(
        tightness=mean(softplus(-c.similarity), c.same),
        contrast=mean(softplus(c.similarity), c.different),
    )
