"""Where references come from: the batch, the other view, a memory, proxies, centers, a classifier.

Everything that a pair loss remembers lives here; losses stay functions.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from nearkin.closed import UnitRows, unit_rows
from nearkin.core import Batch, Comparison, at_least_float32, warn_once

Closeness = Literal["cosine", "euclidean", "inner"]
LONGEST = 1e15  # squares of longer rows leave float32 in a sum, and inf - inf is NaN


def unit(x: Tensor) -> Tensor:
    """(N, D) rows of length 1, float32 or wider; a zero row stays zero with gradient 0 (warned of
    once)."""
    rows, empty = unit_rows(at_least_float32(x))
    if empty is not None and bool(empty.any()):
        warn_once(
            "an embedding row is all zeros: it has no direction, gets similarity 0 and learns "
            "nothing; look for dead units or empty inputs"
        )
    return rows


def bounded(x: Tensor) -> Tensor:
    """(N, D) rows as they are, float32 or wider; one with an entry beyond 1e15 is scaled down to it
    (warned of once)."""
    x = at_least_float32(x)
    if not x.numel() or max(abs(float(end)) for end in x.detach().aminmax()) <= LONGEST:
        return x
    largest = torch.linalg.vector_norm(x.detach(), torch.inf, dim=1, keepdim=True)
    warn_once(
        f"an embedding row has entries beyond {LONGEST:g}; it is compared as if they ended there. "
        "Lower the learning rate or compare by cosine"
    )
    return x * (LONGEST / largest).clamp_max(1)


class Compare(nn.Module):
    """Embeddings and their batch in, a Comparison out.

    `needs` names the columns read; `columns_are` says what the references are; `closeness` may be
    left to the loss (None until `settle`).
    """

    needs: tuple[str, ...] = ("label",)
    columns_are: ClassVar[str] = "rows"

    def __init__(self, closeness: Closeness | None):
        super().__init__()
        self.closeness: str | None = closeness

    def settle(self, closeness: str) -> None:
        """Take a loss's own closeness where none was asked for."""
        if self.closeness is None:
            self.closeness = closeness

    def forward(self, z: Tensor, batch: Batch) -> Comparison:
        """(N, D) embeddings and their columns -> the Comparison."""
        raise TypeError(
            f"{type(self).__name__} says no forward; a Compare must return a Comparison"
        )

    def remember(self, z: Tensor, batch: Batch) -> None:
        """Take notes after the encoder's update; z has no gradient. Most comparisons have none to
        take."""
        return

    def as_compared(self, x: Tensor) -> Tensor:
        """Rows as they are compared: unit rows under cosine, float32 or wider."""
        return unit(x) if self.closeness in (None, "cosine") else bounded(x)

    def columns_as_compared(self, x: Tensor) -> Tensor | UnitRows:
        """Rows that may be very many: unit rows are made only if somebody reads them."""
        if self.closeness in (None, "cosine"):
            return UnitRows(at_least_float32(x), unit)
        return self.as_compared(x)

    def made(self, **fields: Any) -> Comparison:
        """A Comparison of this kind and closeness."""
        return Comparison(
            columns_are=self.columns_are, closeness=self.closeness or "cosine", **fields
        )

    def extra_repr(self) -> str:
        """The closeness, for print(model)."""
        return f"closeness={self.closeness!r}"


class InBatch(Compare):
    """Every row of the batch against every other."""

    name: ClassVar[str] = "in_batch"

    def __init__(self, closeness: Closeness | None = None):
        super().__init__(closeness)

    def forward(self, z: Tensor, batch: Batch) -> Comparison:
        """A = R = N; a row is never compared with itself."""
        rows, label = self.as_compared(z), batch["label"]
        return self.made(
            anchor_label=label,
            reference_label=label,
            anchors=rows,
            references=rows,
            oneself=torch.arange(len(z), device=z.device),
        )


class AcrossViews(Compare):
    """Rows of one view against rows of the other; the two rows of one `pair` are the positives.

    anchors   which view asks: first (view 0 against view 1), second, or both, each against the
              other. A loss over anchors is then the mean of both directions, as in CLIP (Radford et
              al. 2021); it costs four times the similarities

    Two augmented views, two modalities and two sentences are alike here. Columns: view (0 or 1),
    pair.
    """

    name: ClassVar[str] = "across_views"
    needs = ("view", "pair")

    def __init__(
        self,
        closeness: Closeness | None = None,
        anchors: Literal["first", "second", "both"] = "first",
    ):
        super().__init__(closeness)
        if anchors not in ("first", "second", "both"):
            raise ValueError(f"anchors must be first, second or both, not {anchors!r}")
        self.anchors = anchors

    def forward(self, z: Tensor, batch: Batch) -> Comparison:
        """A rows of the view that asks against R rows of the other; all against all, only across
        views, where both ask."""
        first, second = batch["view"] == 0, batch["view"] == 1
        if not bool((first | second).all()):
            raise ValueError(
                "column 'view' must hold 0 and 1 only; across_views compares two views"
            )
        rows, pair = self.as_compared(z), batch["pair"]
        if self.anchors == "both":
            return self.made(
                anchor_label=pair,
                reference_label=pair,
                anchors=rows,
                references=rows,
                oneself=torch.arange(len(z), device=z.device),
                allowed=first[:, None] == second,
            )
        if self.anchors == "second":
            first, second = second, first
        return self.made(
            anchor_label=pair[first],
            reference_label=pair[second],
            anchors=rows[first],
            references=rows[second],
        )


class Memory(Compare):
    """The batch and the last `size` embeddings before it (Wang et al. 2020, cross-batch memory).

    The memory takes the batch in after scoring, while training; its buffers have a fixed shape.
    Until it is full, the empty places are not compared.
    """

    name: ClassVar[str] = "memory"

    def __init__(self, dim: int, size: int = 1024, closeness: Closeness | None = None):
        super().__init__(closeness)
        if size < 1:
            raise ValueError(f"a memory needs size >= 1, not {size}")
        self.size = size
        self.register_buffer("kept", torch.zeros(size, dim))
        self.register_buffer("kept_label", torch.zeros(size, dtype=torch.int64))
        self.register_buffer("written", torch.zeros((), dtype=torch.int64))
        self.kept: Tensor
        self.kept_label: Tensor
        self.written: Tensor

    def forward(self, z: Tensor, batch: Batch) -> Comparison:
        """A = N anchors against R = N + size references."""
        label = batch["label"]
        if label.ndim > 1:
            raise ValueError("a memory keeps one label a row; compare multi-label rows in_batch")
        rows = self.as_compared(of_width(z, self.kept))
        filled = torch.arange(self.size, device=z.device) < self.written
        here = torch.ones(len(z), dtype=torch.bool, device=z.device)
        return self.made(
            anchor_label=label,
            reference_label=torch.cat([label, self.kept_label]),
            anchors=rows,
            references=torch.cat([rows, self.as_compared_kept(rows.dtype)]),
            oneself=torch.arange(len(z), device=z.device),
            allowed=torch.cat([here, filled])[None].expand(len(z), -1),
        )

    def as_compared_kept(self, dtype: torch.dtype) -> Tensor:
        """(size, D) what is remembered; rows are stored as they were compared."""
        return self.kept.to(dtype)

    @torch.no_grad()
    def remember(self, z: Tensor, batch: Batch) -> None:
        """Overwrite the oldest rows with this batch, while training."""
        if not self.training:
            return
        rows, label = self.as_compared(z)[-self.size :], batch["label"][-self.size :]
        place = (self.written + torch.arange(len(rows), device=z.device)) % self.size
        self.kept[place] = rows.to(self.kept.dtype)
        self.kept_label[place] = label
        self.written += len(rows)


class Proxies(Compare):
    """`per_class` learned vectors for each class."""

    name: ClassVar[str] = "proxies"
    columns_are: ClassVar[str] = "classes"

    def __init__(
        self, classes: int, dim: int, per_class: int = 1, closeness: Closeness | None = None
    ):
        super().__init__(closeness)
        _check_counts(type(self).__name__, classes=classes, dim=dim, per_class=per_class)
        self.vectors = nn.Parameter(torch.randn(classes * per_class, dim) / dim**0.5)
        self.register_buffer(
            "proxy_label", torch.arange(classes).repeat_interleave(per_class), persistent=False
        )
        self.proxy_label: Tensor

    def forward(self, z: Tensor, batch: Batch) -> Comparison:
        """A = N anchors against R = classes x per_class proxies."""
        label = batch["label"]
        return self.made(
            anchor_label=label,
            reference_label=classes_of(label, self.proxy_label),
            anchors=self.as_compared(of_width(z, self.vectors)),
            references=self.columns_as_compared(self.vectors),
        )


class Centers(Compare):
    """The classes of the batch, each by the mean or by the sum of its rows over n (the paper's hard
    sums).

    A `sums` center is (1/n) Σ_{i in k} z_i, as in SPCE (Boudiaf et al. 2020, eq. 15). Classes that
    are not in the batch have no column. The centers pass gradients to the rows.
    """

    name: ClassVar[str] = "centers"
    columns_are: ClassVar[str] = "classes"

    def __init__(
        self, kind: Literal["means", "sums"] = "means", closeness: Closeness | None = None
    ):
        super().__init__(closeness)
        self.kind = kind

    def forward(self, z: Tensor, batch: Batch) -> Comparison:
        """A = N anchors against one center for each class present."""
        label = batch["label"]
        if label.ndim > 1:
            raise ValueError(
                "a center needs rows of one class each; compare multi-label rows in_batch"
            )
        present, position, count = torch.unique(label, return_inverse=True, return_counts=True)
        rows = self.as_compared(z)
        sums = rows.new_zeros(len(present), rows.shape[1]).index_add(0, position, rows)
        share = count if self.kind == "means" else torch.full_like(count, max(len(rows), 1))
        centers = sums / share[:, None]
        return self.made(
            anchor_label=label,
            reference_label=present,
            anchors=rows,
            references=unit(centers) if self.closeness in (None, "cosine") else centers,
        )


class Classifier(Compare):
    """A linear classifier's rows; weights and bias start at 0, with dropout on its input (the
    paper's).

    Boudiaf et al. 2020: dropout stands before the classifier alone, so retrieval uses the features
    before it.
    """

    name: ClassVar[str] = "classifier"
    columns_are: ClassVar[str] = "classes"

    def __init__(
        self,
        classes: int,
        dim: int,
        dropout: float = 0.0,
        bias: bool = True,
        closeness: Closeness | None = None,
    ):
        super().__init__(closeness)
        _check_counts(type(self).__name__, classes=classes, dim=dim)
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), not {dropout}")
        self.weight = nn.Parameter(torch.zeros(classes, dim))
        self.bias = nn.Parameter(torch.zeros(classes)) if bias else None
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("class_label", torch.arange(classes), persistent=False)
        self.class_label: Tensor

    def settle(self, closeness: str) -> None:
        """A loss's closeness; a bias is added to inner products only."""
        super().settle(closeness)
        if self.bias is not None and self.closeness != "inner":
            raise ValueError(
                f"a classifier with a bias compares by 'inner', not by {self.closeness!r}; set "
                "bias: false or use proxies"
            )

    def as_compared(self, x: Tensor) -> Tensor:
        """As elsewhere, but without a bound: no row is multiplied with a row of its own kind."""
        return unit(x) if self.closeness in (None, "cosine") else at_least_float32(x)

    def forward(self, z: Tensor, batch: Batch) -> Comparison:
        """A = N anchors against R = classes rows of the weight."""
        return self.made(
            anchor_label=batch["label"],
            reference_label=classes_of(batch["label"], self.class_label),
            anchors=self.as_compared(self.dropout(of_width(z, self.weight))),
            references=self.columns_as_compared(self.weight),
            bias=None if self.bias is None else at_least_float32(self.bias),
        )


def of_width(z: Tensor, kept: Tensor) -> Tensor:
    """`z` itself; raises if its rows are not as long as those that it is compared with."""
    if z.shape[1] != kept.shape[1]:
        raise ValueError(
            f"embeddings of {z.shape[1]} dimensions meet references of {kept.shape[1]}; "
            f"set dim to {z.shape[1]}"
        )
    return z


def _check_counts(name: str, **counts: int) -> None:
    for key, value in counts.items():
        if value < 1:
            raise ValueError(f"{name} needs {key} of at least 1, not {value}")


def classes_of(label: Tensor, columns: Tensor) -> Tensor:
    """Labels of class columns in the form of the rows' labels; raises for a label that has no
    column."""
    classes = int(columns.max()) + 1 if len(columns) else 0
    if label.ndim > 1:
        if label.shape[1] != classes:
            raise ValueError(
                f"multi-hot labels of width {label.shape[1]} meet {classes} classes; make them "
                "equal"
            )
        return torch.nn.functional.one_hot(columns, classes).bool()
    lowest, highest = map(int, label.aminmax()) if len(label) else (0, -1)
    if lowest < 0 or highest >= classes:
        seen = lowest if lowest < 0 else highest
        raise ValueError(
            f"label {seen} is out of range: there are columns for classes 0..{classes - 1}; "
            "give `classes` the number of training classes and number the labels from 0"
        )
    return columns
