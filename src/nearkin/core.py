"""The nouns: Batch, Comparison, Terms, Turn, Loss. Every other file may import this one."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor

from nearkin.closed import (
    Keep,
    UnitRows,
    all_but,
    distances,
    gram,
    masked,
    picked,
    without_autocast,
)
from nearkin.multiply import is_large, times
from nearkin.positives import Positives, mates_of, positives_of

CLOSENESS = ("cosine", "euclidean", "inner", "given")

_said: set[str] = set()


def warn_once(message: str) -> None:
    """Warn, but only the first time in this process that this very sentence is said."""
    if message not in _said:
        _said.add(message)
        warnings.warn(message, UserWarning, stacklevel=3)


class Batch(Mapping[str, Tensor]):
    """Rows of a table: `inputs` is what the encoder eats; every column is a tensor with one entry
    per row."""

    def __init__(self, inputs: Any, **columns: Tensor):
        self.inputs = inputs
        self._columns = columns

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._columns:
            known = ", ".join(sorted(self._columns)) or "none"
            raise KeyError(f"this batch has no column {name!r}; its columns: {known}")
        return self._columns[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)

    def with_columns(self, **columns: Tensor) -> Batch:
        """The same rows with more columns, or with other values in the columns named."""
        return Batch(self.inputs, **{**self._columns, **columns})

    def without_inputs(self) -> Batch:
        """The columns alone: what an objective may see."""
        return Batch(None, **self._columns)


class _ZeroUnlessGiven:
    """A part of a loss: 0 where none was given, and then nothing that the total has to add."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._key = f"_{name}"

    def __get__(self, terms: Any, owner: type | None = None) -> Tensor | None:
        if terms is None:
            return None  # the default
        given = vars(terms)[self._key]
        return torch.zeros(()) if given is None else given

    def __set__(self, terms: Any, value: Tensor | None) -> None:
        vars(terms)[self._key] = value


@dataclass(frozen=True)
class Terms:
    """A loss in nats, kept in its parts; `total` is what is minimized. Every part is a 0-dim
    tensor.

    `tightness` gathers each class, `contrast` spreads the classes; what couples the two stands in
    `other`. `parts` says what a sum was added from, by name, each with its weight: it is in the
    three already.
    """

    tightness: Tensor = _ZeroUnlessGiven()  # type: ignore[assignment]
    contrast: Tensor = _ZeroUnlessGiven()  # type: ignore[assignment]
    other: Mapping[str, Tensor] = field(default_factory=dict)
    parts: Mapping[str, Terms] = field(default_factory=dict)

    @cached_property
    def total(self) -> Tensor:
        """tightness + contrast + the sum of `other`."""
        own = (vars(self)["_tightness"], vars(self)["_contrast"])
        given = [*(part for part in own if part is not None), *self.other.values()]
        return sum(given, torch.zeros(()))  # a tensor of its own

    def __add__(self, more: Terms) -> Terms:
        other, parts = dict(self.other), dict(self.parts)
        for key, value in more.other.items():
            other[key] = other[key] + value if key in other else value
        for key, part in more.parts.items():
            parts[key] = parts[key] + part if key in parts else part
        tightness, contrast = self.tightness + more.tightness, self.contrast + more.contrast
        return Terms(tightness, contrast, other, parts)

    def __rmul__(self, weight: float) -> Terms:
        other = {key: weight * value for key, value in self.other.items()}
        parts = {key: weight * part for key, part in self.parts.items()}
        return Terms(weight * self.tightness, weight * self.contrast, other, parts)

    def named(self, prefix: str) -> Terms:
        """The same terms as a part of this name: the keys of `other` are prefixed, and the whole is
        kept in `parts`, so that several objectives can be added without mixing."""
        other = {f"{prefix}.{key}": value for key, value in self.other.items()}
        return replace(self, other=other, parts={prefix: self})

    def floats(self) -> dict[str, float]:
        """Every part and the total as Python numbers, for a log; those of a sum's parts are keyed
        part.total, part.tightness and so on."""
        own = {"total": self.total, "tightness": self.tightness, "contrast": self.contrast}
        said = {key: float(value.detach()) for key, value in {**own, **self.other}.items()}
        for name, part in self.parts.items():
            said |= {f"{name}.{key}": value for key, value in part.floats().items()}
        return said


@dataclass(frozen=True)
class Turn:
    """One update: minimize `terms.total` over the learners named in `learns`.

    The contract of a generator of turns. The loop performs the update *at the yield*; the code
    after it sees updated parameters. A turn's graph is used once. A learner that moved invalidates
    the graphs built on it: a second turn for the encoder needs a fresh embedding, everything else
    works on `z.detach()`. No grad mode and no autocast is left open across a yield. A total without
    a graph is skipped, counted and warned of once if it is 0 (a batch without positives), and an
    error otherwise.
    """

    terms: Terms
    learns: tuple[str, ...]


class _MadeWhenRead:
    """A field that may be given as unit rows which nobody has made yet; reading it makes them."""

    def __get__(self, c: Any, owner: type | None = None) -> Tensor | None:
        if c is None:
            return None  # the default
        value = vars(c)["_references"]
        return value.made() if isinstance(value, UnitRows) else value

    def __set__(self, c: Any, value: Tensor | UnitRows | None) -> None:
        vars(c)["_references"] = value


@dataclass(frozen=True, eq=False)
class Comparison:
    """Anchors against references: who is compared with whom, how close they are, who is the same.

    Made by `nearkin.compare`, narrowed by `nearkin.mining`, read by losses. Letters: A anchors, R
    references, D dimensions, L labels of a multi-label set.

    anchor_label     (A,) int64, or (A, L) bool for multi-label rows
    reference_label  (R,) or (R, L); (A, R) or (A, R, L) where mining chose columns row by row
    columns_are      "rows" of data, or "classes" (proxies, centers, classifier weights)
    closeness        "cosine", "euclidean", "inner" or "given" (a critic's)
    anchors          (A, D) as compared (unit rows for cosine); None where the similarity is given
    references       (R, D); the same object as `anchors` where a batch meets itself. May be given
                     as closed.UnitRows, which are made when they are read
    bias             (R,) of a classifier
    oneself          (A,) int64: the column that is the anchor itself; -1 where there is none
    allowed          (A, R) bool left by mining; None: all but oneself
    given            (A, R) a similarity that is already computed
    """

    anchor_label: Tensor
    reference_label: Tensor
    columns_are: str = "rows"
    closeness: str = "cosine"
    anchors: Tensor | None = None
    references: Tensor | None = _MadeWhenRead()  # type: ignore[assignment]
    bias: Tensor | None = None
    oneself: Tensor | None = None
    allowed: Tensor | None = None
    given: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(A, R)."""
        return len(self.anchor_label), self.reference_label.shape[1 if self.mined else 0]

    @property
    def mined(self) -> bool:
        """Whether mining chose the columns row by row, so that each anchor has references of its
        own."""
        return self.reference_label.ndim == self.anchor_label.ndim + 1

    @property
    def unmade(self) -> UnitRows | None:
        """The references where they are unit rows that were not given as a tensor."""
        given = vars(self)["_references"]
        return given if isinstance(given, UnitRows) else None

    @cached_property
    def similarity(self) -> Tensor:
        """(A, R), larger is closer, float32 or wider: cosine; 1 - d²/2 (euclidean); a·r + bias
        (inner).

        The losses send their gradient to the rows at once. Who wants that to this matrix itself
        calls `retain_grad` or registers a hook before the loss, or gives a leaf as `given`.
        """
        if self.given is not None:
            return at_least_float32(self.given)
        if self.anchors is None or self.references is None:
            raise ValueError(
                "a comparison needs anchors and references, or a given similarity; it has neither"
            )
        with without_autocast(self.anchors.device.type):
            return _similarity(
                at_least_float32(self.anchors),
                at_least_float32(self.references),
                self.closeness,
                self.bias,
            )

    @cached_property
    def distance(self) -> Tensor:
        """(A, R) euclidean distance, of unit rows under cosine. Raises where closeness is no
        distance."""
        return self.distance_of(self.similarity)

    def distance_of(self, similarity: Tensor) -> Tensor:
        """Any shape: the distance that belongs to a similarity here. Raises where closeness is no
        distance."""
        if self.closeness not in ("cosine", "euclidean"):
            raise ValueError(
                f"a comparison by {self.closeness!r} has no distance; compare by 'cosine' or "
                "'euclidean'"
            )
        return distances(similarity)

    @cached_property
    def same(self) -> Tensor:
        """(A, R) bool: the pair shares a label, is allowed and is not an item with itself."""
        return self._compared(self._equal.clone())

    @cached_property
    def different(self) -> Tensor:
        """(A, R) bool: the pair shares no label and is allowed."""
        if self.anchor_label.ndim == 1 and self.allowed is None and not self.mined:
            return ~self._equal  # an item has its own label
        return self._compared(~self._equal)

    @cached_property
    def compared(self) -> Tensor:
        """(A, R) bool: the pair is allowed and is not an item with itself: same or different."""
        everyone = torch.ones(self.shape, dtype=torch.bool, device=self.anchor_label.device)
        return self._compared(everyone)

    @cached_property
    def positives(self) -> Positives:
        """The columns of `same`, side by side: few where classes are many."""
        return mates_of(self.anchor_label) if self._whole_batch else positives_of(self.same)

    @cached_property
    def keep_different(self) -> Keep:
        """Keeps the entries of a matrix (A, R) whose pairs are different; many times faster than a
        mask where few are not."""
        few = self._few_same
        if few is None:
            return masked(self.different)
        return all_but(few)

    @cached_property
    def keep_compared(self) -> Keep:
        """As `keep_different`, for pairs that are compared: same or different."""
        if not self._whole_batch:
            return masked(self.compared)
        return all_but(self.oneself[:, None])  # type: ignore[index]

    @cached_property
    def _few_same(self) -> Tensor | None:
        """(A, P + 1) the positives of each anchor and itself, if these are few."""
        if not self._whole_batch or 8 * self.positives.columns.shape[1] > self.shape[1]:
            return None
        columns, itself = self.positives.columns, self.oneself[:, None]  # type: ignore[index]
        if self.positives.valid is not None:
            columns = torch.where(self.positives.valid, columns, itself)
        return torch.cat([columns, itself], 1)

    @cached_property
    def negatives(self) -> Tensor:
        """(A,) int64: how many different columns each anchor has."""
        if self._whole_batch:
            return len(self.anchor_label) - 1 - self.positives.count
        return self.different.sum(1)

    @property
    def negative_pairs(self) -> int | Tensor:
        """How many different pairs there are: a number where it is known without looking at them,
        else 0-dim int64."""
        if self._whole_batch:
            rows = len(self.anchor_label)
            return rows * (rows - 1) - self.positives.pairs
        return self.negatives.sum()

    @cached_property
    def _whole_batch(self) -> bool:
        """Whether rows of one label each meet each other, all but themselves."""
        itself = self.reference_label is self.anchor_label and self.anchor_label.ndim == 1
        return itself and self.allowed is None and self.oneself is not None and self._diagonal

    @cached_property
    def _equal(self) -> Tensor:
        anchor, reference = self.anchor_label, self.reference_label
        if anchor.ndim == 1:
            return anchor[:, None] == (reference if self.mined else reference[None])
        # Counts of shared labels are small integers, exact in float32.
        if self.mined:
            return torch.einsum("al,arl->ar", anchor.float(), reference.float()) > 0
        return anchor.float() @ reference.float().T > 0

    def _compared(self, mask: Tensor) -> Tensor:
        """`mask` (A, R), changed in place, without what is not compared."""
        if self.allowed is not None:
            mask &= self.allowed
        if self.oneself is not None:
            if self._diagonal:
                return mask.fill_diagonal_(False)
            itself = self.oneself.clamp_min(0)[:, None]
            mask.scatter_(1, itself, mask.gather(1, itself) & (self.oneself < 0)[:, None])
        return mask

    @cached_property
    def _diagonal(self) -> bool:
        """Whether column i is anchor i itself."""
        assert self.oneself is not None
        rows, columns = self.shape
        first = torch.arange(rows, device=self.oneself.device)
        return rows <= columns and torch.equal(self.oneself, first)

    def pairs(self) -> tuple[Tensor, Tensor]:
        """(P,), (P,): anchors and columns of the positive pairs, in row order."""
        rows, columns = self.same.nonzero(as_tuple=True)
        return rows, columns

    def columns(self, rows: Tensor, columns: Tensor) -> Comparison:
        """For each entry of `rows` (P,) the references `columns` (P, K) alone: one row a positive
        pair.

        The home of mining that picks row by row (semi-hard triplets, distance-weighted negatives).
        """
        if self.mined:
            raise ValueError(
                "this comparison was mined row by row already; mine the comparison it came from"
            )
        return replace(
            self,
            anchor_label=self.anchor_label[rows],
            reference_label=self.reference_label[columns],
            given=picked(self.similarity, rows, columns),
            anchors=None,
            references=None,
            bias=None,
            oneself=None,
            allowed=None,
        )

    def narrowed(self, allowed: Tensor) -> Comparison:
        """The same anchors and references with `allowed` (A, R) bool in place of its own; the views
        that were computed are kept, with their graphs.

        The home of mining that picks among what is compared (hard, multi-similarity).
        """
        narrow = replace(self, allowed=allowed)
        kept = vars(self).keys() & {"similarity", "distance", "_equal"}
        vars(narrow).update({view: vars(self)[view] for view in kept})
        return narrow

    def square(self) -> Comparison:
        """Itself, if a batch meets itself; raises otherwise. For losses that read both rows of a
        pair."""
        if self.references is None or self.references is not self.anchors:
            raise ValueError(
                "this loss reads the negatives of both ends of a pair, so references must be the "
                "anchors: compare in_batch, and leave out memory, references and mining that picks "
                "pairs (semi_hard, distance_weighted)"
            )
        return self


def at_least_float32(x: Tensor) -> Tensor:
    """`x` itself if float32 or float64, else as float32: exponentials of bfloat16 lose the loss."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def _similarity(anchors: Tensor, references: Tensor, closeness: str, bias: Tensor | None) -> Tensor:
    itself = anchors is references
    if closeness == "euclidean":
        # Distances do not see a common shift; without it the expansion below cancels
        # catastrophically.
        middle = references.detach().sum(0) / max(len(references), 1)
        a = anchors - middle
        r = a if itself else references - middle
        inner = gram(a) if itself else cross(a, r)
        return 1 - (a.square().sum(1)[:, None] + r.square().sum(1)[None] - 2 * inner) / 2
    inner = gram(anchors) if itself else cross(anchors, references)
    return inner if bias is None else inner + bias


def cross(anchors: Tensor, references: Tensor) -> Tensor:
    """(A, R) anchors·referencesᵀ."""
    if is_large(anchors, references.T):
        return _Cross.apply(anchors, references)  # type: ignore[return-value]
    return anchors @ references.T


class _Cross(torch.autograd.Function):
    """Differentiable any number of times, backward and forward, as torch's own product is."""

    @staticmethod
    def forward(anchors: Tensor, references: Tensor) -> Tensor:
        return times(anchors, references.T)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        anchors, references = inputs
        to_anchors, to_references = ctx.needs_input_grad
        ctx.save_for_backward(
            anchors if to_references else None, references if to_anchors else None
        )
        ctx.save_for_forward(anchors, references)

    @staticmethod
    def jvp(ctx: Any, of_anchors: Tensor, of_references: Tensor) -> Tensor:  # type: ignore[override]
        anchors, references = ctx.saved_tensors
        return of_anchors @ references.T + anchors @ of_references.T

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, Tensor | None]:  # type: ignore[override]
        anchors, references = ctx.saved_tensors
        multiply = torch.mm if torch.is_grad_enabled() else times
        with without_autocast(slope.device.type):
            to_anchors = multiply(slope, references) if ctx.needs_input_grad[0] else None
            to_references = multiply(slope.T, anchors) if ctx.needs_input_grad[1] else None
        return to_anchors, to_references


Loss = Callable[[Comparison], Terms]

_Loss = TypeVar("_Loss", bound=Callable[..., Terms])


@dataclass(frozen=True)
class Home:
    """Where a loss lives by default: the name of its comparison, its closeness, settings of the
    comparison."""

    compare: str
    closeness: str
    settings: Mapping[str, Any] = field(default_factory=dict)


def home(compare: str, closeness: str, **settings: Any) -> Callable[[_Loss], _Loss]:
    """Say where a loss lives: `@home("proxies", "cosine")`. `criterion` and `compared` read it."""
    if closeness not in CLOSENESS:
        raise ValueError(f"{closeness!r} is no closeness; expected one of {', '.join(CLOSENESS)}")

    def mark(loss: _Loss) -> _Loss:
        loss.home = Home(compare, closeness, settings)  # type: ignore[attr-defined]
        return loss

    return mark


def home_of(loss: Any) -> Home | None:
    """The home of a loss, also of a partial of one; None where a function of one's own has none."""
    return getattr(getattr(loss, "func", loss), "home", None)
