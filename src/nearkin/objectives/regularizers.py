"""Regularizers, to be added to another objective with `sum`: embedding norm, orthogonality,
uniformity. They read no labels; what gathers and spreads classes stands in losses."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from nearkin.closed import known, log_sum_exp
from nearkin.compare import Closeness, InBatch, bounded
from nearkin.core import Batch, Comparison, Terms
from nearkin.objectives.base import Objective, pull_and_push
from nearkin.reduce import positive


class EmbeddingNorm(Objective):
    """Squared length of the embeddings, as N-pairs regularizes it (Sohn 2016, section 3.2.2).

    norm = mean_i |z_i|²

    The rows as the encoder gives them, never normalized; 0 for a batch without rows. Its weight is
    that of the sum: TensorFlow's N-pairs adds ¼·0.002 of it for each side of a pair.

    Use it beside losses by inner products, which grow without bound, and beside cosine losses,
    which do not see the length and let it drift: long rows learn slowly.

    Memory O(N·D).
    """

    name: ClassVar[str] = "embedding_norm"
    needs = ()

    def forward(self, z: Tensor, batch: Batch) -> Terms:
        """(N, D) embeddings; the batch is not read."""
        rows = bounded(z)
        return Terms(other={"norm": rows.square().sum() / max(len(rows), 1)})


class Orthogonality(Objective):
    """Covariance between the dimensions of the embedding (VICReg: Bardes et al. 2022, eq. 4).

    With C = Σ_i (z_i - m)(z_i - m)ᵀ / (N - 1) and m the mean row:
    covariance = (1/D) Σ_{k≠l} C_kl²

    closeness   cosine: of unit rows. euclidean or inner: of the rows as they are, as in the paper,
                where a term of its own keeps their variance; beside a loss that does not see the
                length, this one would shrink the rows instead

    0 where no two dimensions vary together, so that each carries what the others do not, and for
    fewer than two rows.

    Use it where embeddings lie in few of their dimensions: short codes, whitening afterwards.

    Memory O(N·D + D²).
    """

    name: ClassVar[str] = "orthogonality"
    needs = ()

    def __init__(self, closeness: Closeness = "cosine"):
        super().__init__()
        self.compare = InBatch(closeness)

    def forward(self, z: Tensor, batch: Batch) -> Terms:
        """(N, D) embeddings; the batch is not read."""
        rows = self.compare.as_compared(z)
        rows = rows - rows.sum(0) / max(len(rows), 1)
        with torch.autocast(z.device.type, enabled=False):
            covariance = rows.T @ rows / max(len(rows) - 1, 1)  # (D, D)
        between = covariance - covariance.diagonal().diag()
        return Terms(other={"covariance": between.square().sum() / max(z.shape[1], 1)})


class Uniformity(Objective):
    """How unevenly the rows lie on the sphere: log of the mean Gaussian potential of their pairs
    (Wang & Isola 2020, section 4.1.2).

    contrast = log mean_{i≠j} e^{-t|z_i - z_j|²}

    t           how near two rows must be to repel each other
    closeness   cosine: of unit rows. euclidean: of the rows as they are

    The pairs of one class repel each other too. At most 0; about -2t where unit rows of many
    dimensions are spread out, and 0 for fewer than two rows.

    Use it against collapse, beside a loss that gathers but spreads too little.

    Memory O(N²). Raises ValueError for a t that is not above 0 and for closeness inner, which has
    no distance.
    """

    name: ClassVar[str] = "uniformity"
    needs = ()

    def __init__(self, t: float = 2.0, closeness: Literal["cosine", "euclidean"] = "cosine"):
        super().__init__()
        positive(t=t)
        if closeness == "inner":
            raise ValueError("uniformity needs distances; set closeness to cosine or euclidean")
        self.t, self.compare = t, InBatch(closeness)

    def forward(self, z: Tensor, batch: Batch) -> Terms:
        """(N, D) embeddings; the batch is not read."""
        return self._scored(self._apart(z))

    @torch.no_grad()
    def diagnosis(self, z: Tensor, batch: Batch) -> dict[str, float]:
        """pull, below 0 for it pushes the pairs of one class too, and push; nothing without
        labels."""
        if "label" not in batch:
            return {}
        c, labelled = self._apart(z), self.compare(z, batch)
        return pull_and_push(
            c.similarity,
            labelled.same,
            labelled.different,
            lambda leaf: self._scored(replace(c, given=leaf)).total,
        )

    def _apart(self, z: Tensor) -> Comparison:
        """Every row a class of its own."""
        return self.compare(z, Batch(None, label=torch.arange(len(z), device=z.device)))

    def _scored(self, c: Comparison) -> Terms:
        rows = c.shape[0]
        if rows < 2:
            return Terms(contrast=0 * c.similarity.sum())
        # -t|x - y|² is 2t·s - 2t.
        each = known(c.similarity, log_sum_exp(c.keep_compared, 2 * self.t))  # (N,)
        return Terms(contrast=each.logsumexp(0) - math.log(rows * (rows - 1)) - 2 * self.t)
