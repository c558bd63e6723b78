"""For a training loop of one's own: criterion, objective, sampler. Nothing here needs a recipe."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nearkin.compare import Compare, Memory
from nearkin.config import build
from nearkin.core import Batch, Comparison, Home, Terms, Turn, home_of, warn_once
from nearkin.mining import Mining
from nearkin.objectives.base import Objective
from nearkin.objectives.compared import CLASS_COLUMNS, Compared
from nearkin.runtime import gather_rows, world
from nearkin.sample import Sampler


def criterion(
    loss: str | Callable[..., Terms],
    *,
    closeness: str | None = None,
    mining: str | Mapping[str, Any] | Mining | None = None,
    memory: int | None = None,
    classes: int | Sequence[str] | None = None,
    dim: int | None = None,
    gather: bool = False,
    **settings: Any,
) -> Criterion:
    """A loss by name, or a function of a Comparison, as an nn.Module for a training loop of one's
    own.

    closeness   cosine, euclidean or inner; default: the loss's own
    mining      a name, {name: settings} or a function Comparison -> Comparison
    memory      so many embeddings of earlier batches are references too (needs dim)
    classes     their number, or their names where labels are strings (losses over proxies or a
                classifier)
    dim         of the embeddings (where something of that width is kept)
    gather      compare with the rows of all processes; right under DistributedDataParallel's
                averaging
    settings    of the loss

    Raises ValueError for unknown names and settings, with the nearest known one.
    """
    chosen = build({loss: settings}, "loss", {}, "criterion") if isinstance(loss, str) else loss
    if not isinstance(loss, str) and settings:
        raise ValueError(
            f"settings {', '.join(settings)} come with a loss by name; bind those of a function "
            "of your own "
            "with functools.partial"
        )
    picked: Any = mining
    if isinstance(mining, (str, Mapping)):
        picked = build(mining, "mining", {}, "criterion.mining")
    names = None if classes is None or isinstance(classes, int) else tuple(classes)
    count = len(names) if names is not None else classes
    compare = _home_compare(chosen, closeness, memory, count, dim)  # type: ignore[arg-type]
    return Criterion(Compared(compare, chosen, picked), names, gather)


def _home_compare(
    loss: Any, closeness: str | None, memory: int | None, classes: int | None, dim: int | None
) -> Compare:
    home = home_of(loss) or Home("in_batch", closeness or "cosine")
    facts = {k: v for k, v in {"classes": classes, "dim": dim}.items() if v is not None}
    settings = dict(home.settings)
    if closeness is not None:
        settings["closeness"] = closeness
    if memory is not None:
        if home.compare in CLASS_COLUMNS:
            raise ValueError(
                f"a memory keeps rows, but this loss compares with {home.compare}; leave memory out"
            )
        return build({"memory": {"size": memory, **settings}}, "compare", facts, "criterion")
    return build({home.compare: settings}, "compare", facts, "criterion")


class Criterion(nn.Module):
    """A loss with its home: `criterion(z, labels)` is the loss, `criterion.terms(z, labels)` its
    parts.

    Made by `nearkin.criterion`. What it owns (proxies, a classifier) are parameters: give them to
    an optimizer.
    """

    def __init__(self, compared: Compared, names: tuple[str, ...] | None, gather: bool):
        super().__init__()
        self.compared, self.gather = compared, gather
        self._coder = _Coder(names)
        self._watch = _Unmoved(self)

    def forward(
        self,
        z: Tensor,
        labels: Any,
        references: Tensor | None = None,
        reference_labels: Any = None,
    ) -> Tensor:
        """The loss in nats, a 0-dim tensor; arguments as of `terms`."""
        return self.terms(z, labels, references, reference_labels).total

    def terms(
        self,
        z: Tensor,
        labels: Any,
        references: Tensor | None = None,
        reference_labels: Any = None,
    ) -> Terms:
        """The loss by its parts.

        z                   (N, D) floating
        labels              (N,) integers or strings, or (N, L) multi-hot
        references          (R, D): compare with these rows instead of with the batch itself
        reference_labels    (R,) or (R, L)

        Raises ValueError for NaN or infinite embeddings, other lengths or shapes, labels out of
        range, and for `references` that are `z` itself.
        """
        self._watch.look()
        _check_embeddings(z, "embeddings")
        label = self._coder(labels, z, "labels")
        if references is not None:
            return self._against(z, label, references, reference_labels)
        if self.gather and world() > 1:
            self._coder.must_agree()
            z, label = gather_rows(z), gather_rows(label)
        batch = Batch(None, label=label)
        terms = self.compared(z, batch)
        self.compared.after(z.detach(), batch)
        return terms

    def _against(
        self, z: Tensor, label: Tensor, references: Tensor, reference_labels: Any
    ) -> Terms:
        if references is z:
            raise ValueError(
                "references are the embeddings themselves, so every row would be its own positive; "
                "leave references out"
            )
        if reference_labels is None:
            raise ValueError("references need reference_labels")
        compare = self.compared.compare
        if compare.columns_are != "rows" or isinstance(compare, Memory):
            raise ValueError(
                f"this loss has references of its own ({getattr(compare, 'name', 'compare')}); "
                "leave references out"
            )
        _check_embeddings(references, "references")
        if references.shape[1] != z.shape[1]:
            raise ValueError(
                f"references have {references.shape[1]} dimensions, embeddings {z.shape[1]}"
            )
        other = self._coder(reference_labels, references, "reference_labels")
        if self.gather and world() > 1:
            references, other = gather_rows(references), gather_rows(other)
        c: Comparison = compare.made(
            anchor_label=label,
            reference_label=other,
            anchors=compare.as_compared(z),
            references=compare.as_compared(references),
        )
        mined = c if self.compared.mining is None else self.compared.mining(c)
        return self.compared.loss(mined)


def _check_embeddings(z: Any, what: str) -> None:
    if not isinstance(z, Tensor) or z.ndim != 2 or not z.is_floating_point():
        seen = f"{tuple(z.shape)} {z.dtype}" if isinstance(z, Tensor) else type(z).__name__
        raise ValueError(f"{what} must be a floating tensor (N, D), not {seen}")
    finite = torch.isfinite(z.detach())
    if not bool(finite.all()):
        row = int((~finite).any(1).nonzero()[0, 0])
        raise ValueError(
            f"{what} hold NaN or infinity (first in row {row}); look at the step before: learning "
            "rate, inputs"
        )


class _Coder:
    """Labels of any kind -> int64 codes or a bool (N, L) matrix, the same code for the same
    label."""

    def __init__(self, names: tuple[str, ...] | None):
        self.codes = None if names is None else {name: code for code, name in enumerate(names)}
        self.grown: dict[Any, int] = {}

    def __call__(self, labels: Any, z: Tensor, what: str) -> Tensor:
        label = self._tensor(labels, what).to(z.device)
        if len(label) != len(z):
            raise ValueError(f"{len(label)} {what} for {len(z)} rows; give one for each row")
        return label

    def must_agree(self) -> None:
        if self.grown:
            raise ValueError(
                "strings as labels over several processes need the list of names: criterion(..., "
                "classes=[...])"
            )

    def _tensor(self, labels: Any, what: str) -> Tensor:
        if not isinstance(labels, Tensor):
            array = np.asarray(labels)
            if array.dtype.kind in "OUS":
                return torch.tensor([self._code(x) for x in array.tolist()], dtype=torch.int64)
            if array.dtype == np.uint64:
                array = array.astype(np.int64)
            labels = torch.from_numpy(np.ascontiguousarray(array))
        if labels.is_floating_point() or labels.is_complex():
            raise ValueError(f"{what} must be integers, strings or multi-hot, not {labels.dtype}")
        if labels.ndim == 2:
            if labels.dtype != torch.bool and bool((labels.long() | 1).ne(1).any()):
                raise ValueError(f"multi-hot {what} must hold 0 and 1 only")
            return labels.bool()
        if labels.ndim != 1 or labels.dtype == torch.bool:
            raise ValueError(
                f"{what} must be (N,) class labels or (N, L) multi-hot, not {tuple(labels.shape)} "
                f"{labels.dtype}; "
                "a match bit is no class label"
            )
        return labels.long()

    def _code(self, name: Any) -> int:
        if self.codes is None:
            return self.grown.setdefault(name, len(self.grown))
        if name not in self.codes:
            raise ValueError(f"label {name!r} is none of the {len(self.codes)} classes given")
        return self.codes[name]


class _Unmoved:
    """Warns once of a parameter that got two gradients and never moved: it is in no optimizer."""

    def __init__(self, module: nn.Module):
        self.seen: dict[str, tuple[nn.Parameter, int, int]] = {}
        for name, parameter in module.named_parameters():
            parameter.register_post_accumulate_grad_hook(self._count(name))

    def _count(self, name: str) -> Callable[[Tensor], None]:
        def hook(parameter: Tensor) -> None:
            _, version, times = self.seen.get(name, (parameter, parameter._version, 0))
            self.seen[name] = (parameter, version, times + 1)  # type: ignore[assignment]

        return hook

    def look(self) -> None:
        for name, (parameter, version, times) in self.seen.items():
            if times >= 2 and parameter._version == version:
                warn_once(
                    f"the loss's parameter {name!r} got {times} gradients and never moved; "
                    "is it in your optimizer? add criterion.parameters()"
                )


def objective(name: str | Mapping[str, Any], **settings: Any) -> OwnObjective:
    """An objective by name (or as a recipe's node) whose turns are taken in a loop of one's own.

    settings    of the objective; `classes` and `dim` also go to the comparisons within

    >>> objective = nk.objective("jensen_shannon")
    >>> for turn in objective.turns(z, labels):
    ...     nk.update(turn, optimizers)     # a dict: learner -> optimizer, "encoder" among them
    """
    facts = {key: settings.pop(key) for key in ("classes", "dim") if key in settings}
    node = {name: settings} if isinstance(name, str) else dict(name)
    return OwnObjective(build(node, "objective", facts, "objective"))


class OwnObjective(nn.Module):
    """An objective for a loop of one's own; made by `nearkin.objective`."""

    def __init__(self, inner: Objective):
        super().__init__()
        self.inner = inner
        self._coder = _Coder(None)

    def learners(self) -> dict[str, nn.Module]:
        """The parts that learn beside the encoder, by name: each needs an optimizer if it has
        parameters.
        """
        return self.inner.learners()

    def turns(self, z: Tensor, labels: Any = None, **columns: Tensor) -> Iterator[Turn]:
        """The updates of one batch: (N, D) embeddings with their graph, labels, and further columns
        (N,).
        """
        _check_embeddings(z, "embeddings")
        if labels is not None:
            columns = {"label": self._coder(labels, z, "labels"), **columns}
        yield from self.inner.turns(z, Batch(None, **columns))


def sampler(name: str, labels: Any, *, seed: int = 0, **settings: Any) -> BatchSampler:
    """A batch sampler by name for any DataLoader: `DataLoader(data, batch_sampler=sampler)`.

    labels      (N,) integers or strings; or a dict of columns for samplers that need others
                (paired)
    settings    of the sampler
    """
    columns = labels if isinstance(labels, Mapping) else {"label": labels}
    coded = {key: _Coder(None)._tensor(column, key) for key, column in columns.items()}
    return BatchSampler(build({name: settings}, "sampler", {}, "sampler"), coded, seed)


class BatchSampler:
    """Batches of row numbers, other ones each time it is iterated; made by `nearkin.sampler`."""

    def __init__(self, chosen: Sampler, columns: dict[str, Tensor], seed: int):
        missing = [key for key in chosen.needs if key not in columns]
        if missing:
            raise ValueError(
                f"this sampler needs the column {missing[0]!r}; give it in a dict of columns"
            )
        self.chosen, self.columns, self.seed, self.epoch = chosen, columns, seed, 0
        for remark in chosen.remarks(columns):
            if "repeat" in remark:
                warn_once(remark)

    def set_epoch(self, epoch: int) -> None:
        """Make the next iteration that of the given epoch; iterations count on by themselves."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.chosen.batches(self.columns, self.seed, self.epoch))

    def __iter__(self) -> Iterator[list[int]]:
        batches = self.chosen.batches(self.columns, self.seed, self.epoch)
        self.epoch += 1
        for rows in batches:
            yield rows.tolist()
