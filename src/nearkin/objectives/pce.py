"""Pairwise cross-entropy: what is left of cross-entropy once its classifier is minimized away, in
class sums, never in pairs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from nearkin.compare import Classifier
from nearkin.core import Batch, Terms, Turn, at_least_float32
from nearkin.losses.classification import cross_entropy
from nearkin.objectives.base import Objective, pull_and_push
from nearkin.reduce import positive


class PairwiseCrossEntropy(Objective):
    """Pairwise cross-entropy (Boudiaf et al. 2020, eq. 12; its table 2 misprints the last factor).

    tightness = -1/(2 lam) Σ_k |m_k|²
    contrast  = mean_i log Σ_k e^{z_i·c_k / lam} - 1/(2 lam) Σ_k |c_k|²

    m_k = (1/n) Σ_{i in k} z_i are the hard sums (0 for a class that the batch lacks), c_k = (1/n)
    Σ_i p_ik z_i the soft ones, p the softmax of a linear classifier without bias that starts at 0
    and learns by cross-entropy in a turn of its own, before the encoder's. Rows count as they are:
    on unit rows the sums are about 1/K long and little happens.

    lam      a number above 0, or block_min_eig: min_k of the smallest eigenvalue of
             A_k = (1/n) Σ_i p_ik (1 - p_ik) z_i z_iᵀ, a constant for the gradient. Up to it the
             convex part of cross-entropy stays convex in each class's weights; it needs more rows
             than dimensions and costs O(K·(N·D² + D³)) a batch
    detach   whether p is a constant for the encoder

    Their sum bounds cross-entropy from below near a classifier of 0 alone; at the minimum of
    cross-entropy it lies above. While the classifier lags behind, longer rows lower it without end:
    give the encoder weight decay or rows of bounded length. Memory O(N·(D + K) + K·D), and O(D·(N +
    D)) for block_min_eig.

    Raises ValueError for settings out of range, multi-label rows, labels without a class, and where
    block_min_eig gives nothing above 0.
    """

    name: ClassVar[str] = "pce"

    def __init__(
        self,
        classes: int,
        dim: int,
        lam: float | Literal["block_min_eig"],
        detach: bool = True,
    ):
        super().__init__()
        if isinstance(lam, str):
            if lam != "block_min_eig":
                raise ValueError(f"lam must be a number above 0 or block_min_eig, not {lam!r}")
        else:
            positive(lam=lam)
        self.lam, self.detach = lam, detach
        self.classifier = Classifier(classes, dim, bias=False, closeness="inner")

    def forward(self, z: Tensor, batch: Batch) -> Terms:
        """The loss of the rows, by the classifier as it stands."""
        if batch["label"].ndim > 1:
            raise ValueError(
                "pce needs rows of one class each; use a loss over pairs for multi-label rows"
            )
        logits = self.classifier(z, batch).similarity
        p = (logits.detach() if self.detach else logits).softmax(1)
        return pairwise_cross_entropy(z, batch["label"], p, self._lam(z, logits))

    def before(self, z: Tensor, batch: Batch) -> Iterator[Turn]:
        """The classifier's turn."""
        yield Turn(cross_entropy(self.classifier(z, batch)), learns=("classifier",))

    def learners(self) -> dict[str, nn.Module]:
        """The classifier alone."""
        return {"classifier": self.classifier}

    def joint(self) -> tuple[str, ...]:
        """Nobody: the classifier is fixed in the encoder's turn."""
        return ()

    @torch.no_grad()
    def diagnosis(self, z: Tensor, batch: Batch) -> dict[str, float]:
        """lam as this batch has it; pull and push of pairs of rows by their inner products, p
        held."""
        logits, label = self.classifier(z, batch).similarity, batch["label"]
        lam, p, n = self._lam(z, logits), logits.softmax(1), max(len(z), 1)
        alike = label[:, None] == label

        def total(inner: Tensor) -> Tensor:
            """The loss in pairs, (N, N): what the class sums are made of."""
            soft = inner @ p / n  # (N, K)
            own = (inner * alike).sum() + (p * (inner @ p)).sum()
            return (soft / lam).logsumexp(1).sum() / n - own / (2 * lam * n * n)

        rows = at_least_float32(z)
        same = alike & ~torch.eye(len(z), dtype=torch.bool, device=z.device)
        return {"lam": lam, **pull_and_push(rows @ rows.T, same, ~alike, total)}

    def _lam(self, z: Tensor, logits: Tensor) -> float:
        return smallest_curvature(z, logits) if isinstance(self.lam, str) else self.lam


def pairwise_cross_entropy(z: Tensor, label: Tensor, p: Tensor, lam: float) -> Terms:
    """Both parts of pairwise cross-entropy, in O(N·D·K) (Boudiaf et al. 2020, eq. 12).

    z (N, D), label (N,) in 0..K-1, p (N, K) rows of probabilities.
    """
    with torch.autocast(z.device.type, enabled=False):
        rows = at_least_float32(z)
        n, classes = max(len(rows), 1), p.shape[1]
        hard = rows.new_zeros(classes, rows.shape[1]).index_add(0, label, rows) / n  # (K, D)
        soft = p.to(rows.dtype).T @ rows / n  # (K, D)
        everyone = (rows @ soft.T / lam).logsumexp(1).sum() / n
        return Terms(
            tightness=-hard.square().sum() / (2 * lam),
            contrast=everyone - soft.square().sum() / (2 * lam),
        )


@torch.no_grad()
def smallest_curvature(z: Tensor, logits: Tensor) -> float:
    """min_k λ_min(A_k), A_k = (1/n) Σ_i p_ik (1 - p_ik) z_i z_iᵀ: how strictly cross-entropy is
    convex in the weights of one class (Boudiaf et al. 2020, proposition 1).

    z (N, D), logits (N, K). Raises ValueError where an A_k is singular to rounding, as all are with
    fewer rows than dimensions.
    """
    n, d = z.shape
    with torch.autocast(z.device.type, enabled=False):
        rows, log_p = z.double(), logits.double().log_softmax(1)
        uncertain = log_p.exp() * -torch.expm1(log_p)  # p (1 - p), (N, K)
        # One class at a time: K matrices of D² would not fit.
        ends = [
            torch.linalg.eigvalsh((rows * share[:, None]).T @ rows / max(n, 1))[[0, -1]]
            for share in uncertain.T
        ]
    smallest, largest = torch.stack(ends).unbind(1)
    # An eigenvalue is a squared singular value of rows that were rounded to z's precision.
    rounding = max((max(n, d) * torch.finfo(z.dtype).eps) ** 2, d * torch.finfo(rows.dtype).eps)
    if bool((smallest <= rounding * largest).any()):
        raise ValueError(
            f"block_min_eig finds no curvature in {n} rows of {d} dimensions, so that lam would be "
            "0: they are too few, or the classifier is certain of them; project to fewer "
            "dimensions, take a larger batch or give lam a number"
        )
    return float(smallest.min())
