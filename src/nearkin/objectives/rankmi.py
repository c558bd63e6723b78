"""RankMI: a statistics network learns which distances tell same pairs from different ones, and the
encoder moves both sides apart by its word. Nothing of the loop, the recipes or the report is here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from nearkin.compare import Compare, InBatch
from nearkin.core import Batch, Comparison, Terms, Turn, warn_once
from nearkin.critics import DistanceCritic
from nearkin.guards import warn_of_no_pair, warn_of_one_class
from nearkin.mining import distance_weighted
from nearkin.objectives.base import Objective
from nearkin.reduce import softplus

LOG_2 = math.log(2)
FARTHEST = 2.0  # no two unit rows lie farther apart
GRID, MOST, CLOSE, FLAT = 257, 20, 1e-6, 1e-12  # of the search for the zero of V
PATIENCE = 20  # so many failures in a row are said
WATCHED = 50_000_000  # pairs; above this the diagnosis would cost more than the step
SHOWN = 81  # distances at which V is written to the log

Judge = Callable[[Tensor], Tensor]


class RankMI(Objective):
    """Ranking by mutual information (Kemertas et al. 2020, eq. 10 and 14, algorithm 1).

    d = |z_i - z_j| of unit rows, V(d) = net(d) - d the statistics network, T = log 2 - log(1+e^-V):

    tightness = -mean_same T                     = mean_same softplus(-V(d)) - log 2
    contrast  = -mean_different log(2 - e^T)     = mean_different softplus(V(d)) - log 2

    Over all pairs -total / 2 is a lower bound on the Jensen-Shannon divergence between the
    distances of same and of different pairs, in nats, at most log 2. 2 - e^T is never formed: in
    float32 its logarithm is -inf from V = 17 on.

    One update a batch. t counts batches; at t mod (k + 1) = 0 the encoder has its turn, V fixed:
    positives with d > β - margin, negatives with d < β + margin, of which as many as the anchor has
    positives are drawn. In the k batches after it V has its turn on all pairs, the encoder fixed,
    and β moves to the zero of V nearest to the last β. Those batches pass through the encoder as
    any other does, so that BatchNorm takes note of them and dropout applies.

    k          batches of V for each one of the encoder; 0: V learns in the warm-up alone
    margin     α of the paper, in distances of unit rows, 0 to 2; null: every pair counts
    beta       β to begin with, 0 to 2
    warmup     batches of V alone before t = 0. By the paper's text (0) V is random at the first
               batch, and so is its zero: mostly near 0, where hardly a negative is near enough, so
               that the encoder draws everything together; 50 to 100 batches put β where the
               distances are. Where V has no zero from 0 to 2, β stays as it began
    cutoff     negatives are drawn so that all distances are as likely (mining.distance_weighted),
               those below the cutoff as at it; null: all negatives within the margin count
    farthest   no negative from there on counts; null: the margin alone decides. Wu et al. (2017)
               have 1.4
    monotone   weight of mean [V'(d) + slope]₊² over the batch in the turns of V: where V rises,
               positives are pushed and negatives pulled; ours, the paper has no formula for it
    slope      how steeply V is to fall
    width, layers   of V
    compare    whose rows are compared, by cosine: in_batch (default), across_views, memory

    Its learner is `statistics`; the paper gives it and the embedding layer Adam at 1e-3, a
    pretrained trunk 1e-5, weight decay 1e-4 to all. Draws come from torch's default generator,
    which the loop seeds for each step. Memory O(N² + P·width), P pairs.

    Raises ValueError for settings out of range, and for a comparison that is not of rows by cosine.
    Warns once of a batch without a positive or without a negative pair, whose turn of V is skipped;
    of 20 estimates of β in a row in which V has no zero (β stays); and of 20 turns of the encoder
    in a row without a negative.
    """

    name: ClassVar[str] = "rankmi"

    def __init__(
        self,
        k: int = 1,
        margin: float | None = 0.2,
        beta: float = 1.0,
        warmup: int = 0,
        cutoff: float | None = 0.5,
        farthest: float | None = None,
        monotone: float = 0.0,
        slope: float = 0.0,
        width: int = 128,
        layers: int = 2,
        compare: Compare | None = None,
    ):
        super().__init__()
        _check_steps(k, warmup)
        _check_distances(margin, beta, cutoff, farthest)
        _check_penalty(monotone, slope)
        self.compare = InBatch("cosine") if compare is None else compare
        _check_compare(self.compare)
        self.compare.settle("cosine")
        self.needs = self.compare.needs
        self.k, self.margin, self.warmup = k, margin, warmup
        self.cutoff, self.farthest = cutoff, farthest
        self.monotone, self.slope = monotone, slope
        self.statistics = DistanceCritic(width, layers)
        self.register_buffer("time", torch.zeros((), dtype=torch.int64))  # batches so far
        self.register_buffer("beta", torch.tensor(float(beta)))
        self.register_buffer("lost", torch.zeros((), dtype=torch.int64))  # estimates without a zero
        self.register_buffer("alone", torch.zeros((), dtype=torch.int64))  # turns without negatives
        self.time: Tensor
        self.beta: Tensor
        self.lost: Tensor
        self.alone: Tensor
        self._negatives = -1  # of the encoder's turn in this batch; -1: it had none
        self.estimate_beta()  # line 2

    def forward(self, z: Tensor, batch: Batch) -> Terms | None:
        """The loss of the pairs near β in the encoder's batches (lines 19 to 24), None in those of
        the statistics network."""
        if not self._is_encoders():
            return None
        same, different = self.chosen(self.comparison(z, batch))
        self._negatives = len(different) if len(same) else -1
        return self.scored(same, different)

    def before(self, z: Tensor, batch: Batch) -> Iterator[Turn]:
        """The turn of the statistics network, in its batches, and β after it (lines 10 to 13)."""
        if not self._is_encoders():
            yield Turn(self.bound(self.comparison(z, batch)), learns=("statistics",))
            self.estimate_beta()

    def after(self, z: Tensor, batch: Batch) -> None:
        """Count the batch."""
        if self._is_encoders():
            self._note_negatives()
        self.time += 1
        self.compare.remember(z, batch)

    def learners(self) -> dict[str, nn.Module]:
        """The statistics network alone."""
        return {"statistics": self.statistics}

    def joint(self) -> tuple[str, ...]:
        """Nobody: the statistics network is fixed in the encoder's turn."""
        return ()

    def diagnosis(self, z: Tensor, batch: Batch) -> dict[str, float]:
        """Of this batch: pull and push of the pairs that the encoder's turn takes; the bound on the
        Jensen-Shannon divergence over all pairs, in nats, negative where V is worse than nothing;
        β; and which share of the same and of the different pairs the margin leaves.
        """
        with torch.no_grad():
            c = self.compare(z, batch)
            found = {"beta": float(self.beta)}
            if c.shape[0] * c.shape[1] > WATCHED:
                return found
            leaf = c.similarity.clone()
            same, different = self.all_pairs(c)
            if len(same) and len(different):
                found["jsd_bound"] = -float(self.scored(same, different).total) / 2
            near, far = self.near(c)
            for key, kept, every in (("same", near, c.same), ("different", far, c.different)):
                found[f"kept_{key}"] = float(kept.sum() / every.sum().clamp_min(1))
        with torch.enable_grad():
            total = self.scored(*self.chosen(replace(c, given=leaf.requires_grad_()))).total
            if not total.requires_grad:
                return {**found, "pull": 0.0, "push": 0.0}
            (slope,) = torch.autograd.grad(total, leaf)
        pull, push = -(slope * c.same).sum(), (slope * c.different).sum()
        return {**found, "pull": float(pull), "push": float(push)}

    @torch.no_grad()
    def recorded(self) -> dict[str, Any]:
        """V over the distances 0 to 2, β and the margin, as the report draws them."""
        d = torch.linspace(0, FARTHEST, SHOWN, dtype=self.beta.dtype, device=self.beta.device)
        with torch.autocast(d.device.type, enabled=False):
            v = self.statistics(d)
        shown = {"distance": _rounded(d), "V": _rounded(v), "beta": float(self.beta)}
        return {"rankmi": {**shown, "margin": self.margin}}

    def comparison(self, z: Tensor, batch: Batch) -> Comparison:
        """Who is compared with whom in this batch."""
        c = self.compare(z, batch)
        if not c.positives.columns.numel():
            warn_of_no_pair(batch.get("label"))
        else:
            warn_of_one_class(c)
        return c

    def bound(self, c: Comparison) -> Terms:
        """The loss of all pairs, for the statistics network; nothing where one side is missing, for
        then there is nothing to tell apart."""
        same, different = (d.detach() for d in self.all_pairs(c))
        if not (len(same) and len(different)):
            return Terms()
        if not self.monotone:
            return self.scored(same, different)
        d = torch.cat([same, different]).requires_grad_()
        v = self._judged(d)
        (slope,) = torch.autograd.grad(v.sum(), d, create_graph=True)
        rising = (slope + self.slope).clamp_min(0).square().mean()
        terms = loss_of(v[: len(same)], v[len(same) :])
        return replace(terms, other={"monotone": self.monotone * rising})

    def scored(self, same: Tensor, different: Tensor) -> Terms:
        """The loss of pairs at these distances (P,) and (Q,)."""
        v = self._judged(torch.cat([same, different]))
        return loss_of(v[: len(same)], v[len(same) :])

    def all_pairs(self, c: Comparison) -> tuple[Tensor, Tensor]:
        """(P,), (Q,): the distances of same and of different pairs, each once."""
        return c.distance[_once(c, c.same)], c.distance[_once(c, c.different)]

    def near(self, c: Comparison) -> tuple[Tensor, Tensor]:
        """(A, R) bool: the same and the different pairs that the margin leaves (lines 19, 20)."""
        d, near, far = c.distance.detach(), c.same, c.different
        if self.margin is not None:
            near = near & (d > self.beta - self.margin)
            far = far & (d < self.beta + self.margin)
        return near, far if self.farthest is None else far & (d < self.farthest)

    def chosen(self, c: Comparison) -> tuple[Tensor, Tensor]:
        """(P,), (Q,): the distances that the encoder's turn takes (lines 19 to 21)."""
        near, far = self.near(c)
        same = c.distance[_once(c, near)]
        if self.cutoff is None:
            return same, c.distance[_once(c, far)]
        # All positives stay, for they say how many negatives an anchor draws.
        within = c.narrowed(c.same | far)
        drawn = distance_weighted(within, cutoff=self.cutoff, farthest=FARTHEST)
        return same, drawn.distance[:, 1]

    def estimate_beta(self) -> None:
        """Move β to the zero of V in [0, 2] that is nearest to it; keep it where V has none."""
        with torch.autocast(self.beta.device.type, enabled=False):
            found = zero_of(self.statistics, self.beta)
        if found is not None:
            self.beta.fill_(found)
            self.lost.zero_()
            return
        self.lost += 1
        if int(self.lost) == PATIENCE:
            warn_once(
                f"for {PATIENCE} estimates in a row the statistics network of rankmi takes all "
                f"distances from 0 to 2 for the same side, so that beta stays at "
                f"{float(self.beta):.3g}; raise its learning rate or k, begin with warmup batches, "
                "and look whether the embeddings have collapsed"
            )

    def _judged(self, d: Tensor) -> Tensor:
        with torch.autocast(d.device.type, enabled=False):
            return self.statistics(d)

    def _is_encoders(self) -> bool:
        """Whether this batch is the encoder's: t mod (k + 1) = 0, after the warm-up."""
        t = int(self.time) - self.warmup
        return t >= 0 and t % (self.k + 1) == 0

    def _note_negatives(self) -> None:
        """Count turns of the encoder that had positives and no negative, and say where all do."""
        if self._negatives >= 0:
            self.alone.copy_((self.alone + 1) * (self._negatives == 0))
            if int(self.alone) == PATIENCE:
                edge = float(self.beta) + (FARTHEST if self.margin is None else self.margin)
                warn_once(
                    f"{PATIENCE} turns of the encoder in a row had no negative nearer than beta + "
                    f"margin = {edge:.3g}, so that rankmi only draws rows together; begin with "
                    "warmup batches of the statistics network, raise k, or widen the margin"
                )
        self._negatives = -1


def loss_of(same: Tensor, different: Tensor) -> Terms:
    """RankMI's loss of V (P,) of same and V (Q,) of different pairs, by its parts (Kemertas et al.
    2020, eq. 10). A side without pairs is dropped: 0 without a graph."""
    return Terms(
        tightness=softplus(-same).mean() - LOG_2 if len(same) else same.new_zeros(()),
        contrast=softplus(different).mean() - LOG_2 if len(different) else same.new_zeros(()),
    )


def zero_of(judge: Judge, near: Tensor) -> float | None:
    """The zero of V in [0, 2] that is nearest to `near` (0-dim); None where V has one sign on a
    grid of 257 distances.

    judge   V: (M,) -> (M,), differentiable
    """
    grid = torch.linspace(0, FARTHEST, GRID, dtype=near.dtype, device=near.device)
    with torch.no_grad():
        v = judge(grid)
    (changes,) = (v[:-1].sign() * v[1:].sign() <= 0).nonzero(as_tuple=True)
    if not len(changes):
        return None
    low, high = grid[changes], grid[changes + 1]
    nearest = int(torch.maximum(low - near, near - high).clamp_min(0).argmin())
    return newton(judge, near, float(low[nearest]), float(high[nearest]))


def newton(judge: Judge, near: Tensor, low: float, high: float) -> float:
    """A zero of V between `low` and `high`, at which V has different signs, begun at `near`.

    Newton's steps, halving where one would leave what is known to hold the zero, or is more than
    half as long as the one before it: V is piecewise linear, and plain steps can go round in
    circles for ever, also without leaving it. At most 20.
    """
    below, _ = _value_and_slope(judge, low, near)
    above, _ = _value_and_slope(judge, high, near)
    if below == 0 or above == 0:
        return low if below == 0 else high
    x, last = min(max(float(near), low), high), math.inf
    for _ in range(MOST):
        value, slope = _value_and_slope(judge, x, near)
        if value == 0:
            break
        if (value > 0) == (above > 0):
            high = x
        else:
            low = x
        step = x - value / slope if abs(slope) > FLAT else math.inf
        taken = low <= step <= high and abs(step - x) <= last / 2
        before, x = x, step if taken else (low + high) / 2
        last = abs(x - before)
        if taken and last <= CLOSE:
            break
    return x


def _value_and_slope(judge: Judge, x: float, like: Tensor) -> tuple[float, float]:
    with torch.enable_grad():
        d = torch.tensor([x], dtype=like.dtype, device=like.device, requires_grad=True)
        value = judge(d)
        (slope,) = torch.autograd.grad(value.sum(), d)
    return float(value.detach()), float(slope)


def _once(c: Comparison, mask: Tensor) -> Tensor:
    """(A, R) bool: each pair of the mask once, also where a batch meets itself."""
    return mask.triu() if c.references is c.anchors else mask


def _rounded(values: Tensor) -> list[float]:
    return [round(value, 6) for value in values.tolist()]


def _check_steps(k: int, warmup: int) -> None:
    for key, value in (("k", k), ("warmup", warmup)):
        if value < 0:
            raise ValueError(f"{key} of rankmi is a number of batches, at least 0, not {value}")
    if k == 0 and warmup == 0:
        raise ValueError(
            "with k=0 the statistics network of rankmi learns in the warm-up alone; set warmup to "
            "100, or k to 1 as in the paper"
        )


def _check_distances(
    margin: float | None, beta: float, cutoff: float | None, farthest: float | None
) -> None:
    for key, value in (("margin", margin), ("beta", beta)):
        if value is not None and not 0 <= value <= FARTHEST:
            raise ValueError(
                f"{key} of rankmi is a distance of unit rows, from 0 to 2, not {value}"
            )
    if cutoff is not None and not 0 < cutoff < FARTHEST:
        raise ValueError(f"cutoff of rankmi is a distance above 0 and below 2, not {cutoff}")
    if farthest is not None and not (cutoff or 0) < farthest <= FARTHEST:
        raise ValueError(
            f"farthest of rankmi is a distance above the cutoff ({cutoff}), up to 2, not {farthest}"
        )


def _check_penalty(monotone: float, slope: float) -> None:
    for key, value in (("monotone", monotone), ("slope", slope)):
        if not 0 <= value < math.inf:
            raise ValueError(f"{key} of rankmi must be at least 0, not {value}")
    if slope and not monotone:
        raise ValueError(
            f"slope={slope} is what the penalty of rankmi asks for, but its weight monotone is 0; "
            "give monotone a weight, or leave slope out"
        )


def _check_compare(compare: Compare) -> None:
    own = getattr(compare, "name", type(compare).__name__)
    if compare.columns_are != "rows":
        raise ValueError(
            f"rankmi tells same pairs of rows from different ones, but {own} gives classes; use "
            "in_batch, across_views or memory"
        )
    if compare.closeness not in (None, "cosine"):
        raise ValueError(
            f"rankmi reads distances of unit rows, from 0 to 2, but {own} compares by "
            f"{compare.closeness!r}; leave closeness out, or say cosine"
        )
