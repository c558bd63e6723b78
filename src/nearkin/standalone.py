"""For a training loop of one's own: criterion, objective, sampler. Nothing here needs a recipe."""

from __future__ import annotations

import inspect
import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nearkin.catalog import KINDS, REQUIRED, constructor, did_you_mean, scan, slots_of
from nearkin.compare import Compare, Memory
from nearkin.config import build
from nearkin.core import Batch, Comparison, Home, Terms, Turn, home_of, warn_once
from nearkin.information.codes import Coder, coded
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

    closeness   cosine, euclidean or inner; default: the loss's own. A classifier compares by inner
                products; by another closeness its columns are proxies
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
    chosen = _loss(loss, settings)
    names, count = _classes(classes)
    compare = _home_compare(chosen, closeness, memory, _facts(count, dim))
    picked = None if mining is None else build(mining, "mining", {}, "criterion.mining")
    return Criterion(Compared(compare, chosen, picked), names, gather)


def _loss(loss: Any, settings: Mapping[str, Any]) -> Any:
    if isinstance(loss, str):
        if ":" in loss:
            raise ValueError(f"{loss!r} is code of your own; import it and give the function")
        return build({loss: settings}, "loss", {}, "criterion")
    if not callable(loss):
        raise ValueError(f"a loss is a name or a function of a Comparison, not {loss!r:.60}")
    if settings:
        raise ValueError(
            f"settings ({', '.join(settings)}) come with a loss by name; bind those of a function "
            "of your own with functools.partial"
        )
    try:
        inspect.signature(getattr(loss, "forward", loss)).bind(None)
    except TypeError as error:
        raise ValueError(
            f"a loss is called with one Comparison, but {_name_of(loss)} does not fit: {error}; "
            "bind its settings with functools.partial"
        ) from None
    return loss


def _name_of(loss: Any) -> str:
    return getattr(getattr(loss, "func", loss), "__name__", type(loss).__name__)


def _classes(classes: Any) -> tuple[tuple[str, ...] | None, int | None]:
    """Names of the classes, where names are given, and their number."""
    if classes is None or isinstance(classes, (str, bytes)) or not np.iterable(classes):
        return None, _count(classes, "classes")
    names = tuple(classes)
    if not all(isinstance(name, str) for name in names):
        raise ValueError(
            "a list of classes holds names, for labels that are strings; for integers give the "
            "number of classes, and number the labels from 0"
        )
    if len(set(names)) < len(names):
        raise ValueError("classes names one class twice; give each name once")
    return names, _count(len(names), "the number of classes")


def _facts(classes: int | None, dim: Any) -> dict[str, int]:
    return {k: v for k, v in (("classes", classes), ("dim", _count(dim, "dim"))) if v is not None}


def _count(value: Any, what: str, least: int = 1) -> int | None:
    if value is None:
        return None
    try:
        count = operator.index(value)
    except TypeError:
        count = None
    if count is None or isinstance(value, bool):
        raise ValueError(f"{what} must be a whole number, not {value!r:.60}")
    if count < least:
        raise ValueError(f"{what} must be at least {least}, not {count}")
    return count


def _home_compare(
    loss: Any, closeness: str | None, memory: int | None, facts: Mapping[str, int]
) -> Compare:
    home = home_of(loss) or Home("in_batch", closeness or "cosine")
    name, settings = home.compare, dict(home.settings)
    if closeness is not None:
        settings["closeness"] = closeness
        # A classifier's bias and its start at 0 make sense for inner products alone.
        name = "proxies" if name == "classifier" and closeness != "inner" else name
    if memory is not None:
        if name in CLASS_COLUMNS:
            raise ValueError(
                f"a memory keeps rows, but {_name_of(loss)} compares with {name}; leave memory out"
            )
        name, settings = "memory", {"size": memory, **settings}
    slots = slots_of(constructor(KINDS["compare"], name, "criterion"), KINDS["compare"])
    needed = [key for key, slot in slots.items() if slot.default is REQUIRED]
    missing = [key for key in needed if key not in facts and key not in settings]
    if missing:
        said = " and ".join(f"{key}=..." for key in missing)
        raise ValueError(f"{_name_of(loss)} compares with {name}, so criterion needs {said}")
    return build({name: settings}, "compare", facts, "criterion")


class Criterion(nn.Module):
    """A loss with its home: `criterion(z, labels)` is the loss, `criterion.terms(z, labels)` its
    parts.

    Made by `nearkin.criterion`. What it owns (proxies, a classifier) are parameters: give them to
    an optimizer.
    """

    def __init__(self, compared: Compared, names: tuple[str, ...] | None, gather: bool):
        super().__init__()
        others = [column for column in compared.needs if column != "label"]
        if others:
            raise ValueError(
                f"a criterion knows labels alone, but this loss reads {', '.join(others)}; use "
                "nearkin.objective(...).turns(z, labels, column=...), or references=..."
            )
        self.compared, self.gather = compared, gather
        self._coder = _coder(names, compared)
        self._watch = _Watch(self)

    def forward(
        self, z: Tensor, labels: Any, references: Any = None, reference_labels: Any = None
    ) -> Tensor:
        """The loss in nats, a 0-dim tensor; arguments as of `terms`."""
        return self.terms(z, labels, references, reference_labels).total

    def terms(
        self, z: Tensor, labels: Any, references: Any = None, reference_labels: Any = None
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
        _check_place(self, z)
        label = self._coder(labels, "labels", len(z)).to(z.device)
        if references is not None:
            return self._against(z, label, references, reference_labels)
        if reference_labels is not None:
            raise ValueError("reference_labels come with references; give both or neither")
        if self.gather and world() > 1:
            z, label = gather_rows(z), gather_rows(label)
        batch = Batch(None, label=label)
        terms = _checked_terms(self.compared(z, batch), self.compared.loss)
        self.compared.after(z.detach(), batch)
        return terms

    def _against(
        self, z: Tensor, label: Tensor, references: Tensor, reference_labels: Any
    ) -> Terms:
        if reference_labels is None:
            raise ValueError("references need reference_labels, one for each of their rows")
        compare = self.compared.compare
        if compare.columns_are != "rows" or isinstance(compare, Memory):
            own = getattr(compare, "name", "compare")
            raise ValueError(f"this loss has references of its own ({own}); leave references out")
        _check_references(references, z)
        other = self._coder(reference_labels, "reference_labels", len(references)).to(z.device)
        if other.shape[1:] != label.shape[1:]:
            raise ValueError(
                f"labels of shape {tuple(label.shape)} meet reference_labels of "
                f"{tuple(other.shape)}; both must be classes, or multi-hot of one width"
            )
        if self.gather and world() > 1:
            references, other = gather_rows(references), gather_rows(other)
        c: Comparison = compare.made(
            anchor_label=label,
            reference_label=other,
            anchors=compare.as_compared(z),
            references=compare.as_compared(references),
        )
        if not c.positives.columns.numel():
            warn_once("no row shares its label with a reference, so nothing gathers a class")
        mined = c if self.compared.mining is None else self.compared.mining(c)
        return _checked_terms(self.compared.loss(mined), self.compared.loss)

    def extra_repr(self) -> str:
        """The loss and its settings, for print(criterion)."""
        settings = getattr(self.compared.loss, "keywords", {})
        said = ", ".join(f"{key}={value!r}" for key, value in settings.items())
        return f"{_name_of(self.compared.loss)}({said})"


def _check_embeddings(z: Any, what: str) -> None:
    if not isinstance(z, Tensor) or z.ndim != 2 or not z.is_floating_point():
        seen = f"{tuple(z.shape)} {z.dtype}" if isinstance(z, Tensor) else type(z).__name__
        raise ValueError(f"{what} must be a floating tensor (N, D), not {seen}")
    # NaN passes through both ends: one pass over the rows, and no mask where all is well.
    if z.numel() and not all(map(math.isfinite, map(float, z.detach().aminmax()))):
        finite = torch.isfinite(z.detach())
        row = int((~finite).any(1).nonzero()[0, 0])
        raise ValueError(
            f"{what} hold NaN or infinity (first in row {row}); look at the step before: learning "
            "rate, inputs"
        )


def _check_place(module: nn.Module, z: Tensor) -> None:
    """What a module keeps must lie where the embeddings lie, and learn in float64 if they do."""
    for kept in (*module.parameters(), *module.buffers()):
        learns = isinstance(kept, nn.Parameter)
        if kept.device != z.device or (learns and _is_double(kept) != _is_double(z)):
            raise ValueError(
                f"embeddings of {z.dtype} on {z.device} meet parameters of {kept.dtype} on "
                f"{kept.device}; bring them together with .to({str(z.device)!r}, {z.dtype})"
            )


def _is_double(x: Tensor) -> bool:
    return x.dtype == torch.float64


def _check_references(references: Any, z: Tensor) -> None:
    _check_embeddings(references, "references")
    if len(z) and references.data_ptr() == z.data_ptr() and references.shape == z.shape:
        raise ValueError(
            "references are the embeddings themselves, so every row would be its own positive; "
            "leave references out"
        )
    kinds = [(x.shape[1], x.device, _is_double(x)) for x in (references, z)]
    if kinds[0] != kinds[1]:
        said = [f"{x.shape[1]} dimensions, {x.dtype} on {x.device}" for x in (references, z)]
        raise ValueError(f"references ({said[0]}) do not go with embeddings ({said[1]})")


def _checked_terms(terms: Any, loss: Any) -> Terms:
    """What a function of a person's own returned, if it is Terms of 0-dim tensors."""
    if not isinstance(terms, Terms):
        raise ValueError(
            f"{_name_of(loss)} returned {type(terms).__name__}; a loss returns nearkin.Terms, for "
            "example Terms(other={'joint': value})"
        )
    total = terms.total.detach()
    if total.ndim:
        raise ValueError(
            f"{_name_of(loss)} returned terms of shape {tuple(total.shape)}; each part of Terms is "
            "a 0-dim tensor: take the mean"
        )
    if not math.isfinite(float(total)):
        raise ValueError(
            f"{_name_of(loss)} is {float(total)} though the embeddings are finite; look at its "
            "settings"
        )
    return terms


def _coder(names: Sequence[str] | None, module: nn.Module) -> Coder:
    """Labels to numbers; strings must be named where a module keeps something for each class."""

    def numbers_classes(part: nn.Module) -> bool:
        if isinstance(part, Compare):
            return part.columns_are == "classes" and next(part.parameters(), None) is not None
        return isinstance(part, Compared) and any(p.ndim for p in part.learned.values())

    return Coder(names, needs_names=any(map(numbers_classes, module.modules())))


class _Watch:
    """Notes which parameters get gradients; warns once of one that got two and did not move."""

    def __init__(self, module: nn.Module):
        self.reached: set[str] = set()
        self._first: dict[str, tuple[nn.Parameter, tuple[float, float]]] = {}
        self._again: set[str] = set()
        self._settled: set[str] = set()
        for name, parameter in module.named_parameters():
            parameter.register_post_accumulate_grad_hook(self._noting(name))

    def _noting(self, name: str) -> Callable[[Tensor], None]:
        def note(parameter: Tensor) -> None:
            self.reached.add(name)
            # A gradient of zeros moves nothing and says nothing.
            if name in self._settled or parameter.grad is None or not bool(parameter.grad.any()):
                return
            if name in self._first:
                self._again.add(name)
            else:
                self._first[name] = (parameter, _values(parameter))  # type: ignore[assignment]

        return note

    def look(self) -> None:
        """Say once which parameters got two gradients and have the values that they had before."""
        for name in sorted(self._again):
            parameter, before = self._first.pop(name)
            if _values(parameter) == before:
                warn_once(
                    f"the parameter {name!r} of the loss got two gradients and did not move; is it "
                    "in your optimizer? add criterion.parameters()"
                )
        self._settled |= self._again
        self._again.clear()


def _values(parameter: Tensor) -> tuple[float, float]:
    """Sums that change when a parameter moves; fused optimizers do not count its versions."""
    whole = parameter.detach().double()
    return float(whole.sum()), float(whole.square().sum())


def objective(name: str | Mapping[str, Any], **settings: Any) -> OwnObjective:
    """An objective by name (or as a recipe's node) whose turns are taken in a loop of one's own.

    settings    of the objective; `classes` (a number, or names) and `dim` also go to the
                comparisons within

    Raises ValueError for unknown names and settings, with the nearest known one.

    >>> objective = nk.objective("jensen_shannon")
    >>> for turn in objective.turns(z, labels):
    ...     nk.update(turn, optimizers)     # a dict: learner -> optimizer, "encoder" among them
    """
    names, count = _classes(settings.pop("classes", None))
    facts = _facts(count, settings.pop("dim", None))
    if isinstance(name, str):
        known = scan(KINDS["objective"]).get(name)
        own = {} if known is None else slots_of(known)
        settings |= {key: value for key, value in facts.items() if key in own}
        node: Mapping[str, Any] = {name: settings}
    else:
        node = name
        if settings:
            raise ValueError(f"settings ({', '.join(settings)}) go into the node {name}")
    return OwnObjective(build(node, "objective", facts, "objective"), names)


class OwnObjective(nn.Module):
    """An objective for a loop of one's own; made by `nearkin.objective`."""

    def __init__(self, inner: Objective, names: tuple[str, ...] | None = None):
        super().__init__()
        self.inner = inner
        self._coder = _coder(names, inner)
        self._watch = _Watch(inner)
        self._left_out: dict[str, int] = {}

    def learners(self) -> dict[str, nn.Module]:
        """The parts that learn beside the encoder, by name: each needs an optimizer if it has
        parameters.
        """
        return self.inner.learners()

    def turns(self, z: Tensor, labels: Any = None, **columns: Any) -> Iterator[Turn]:
        """The updates of one batch: (N, D) embeddings with their graph, labels, and further columns
        (N,).

        Raises ValueError as `Criterion.terms` does, and for a learner with parameters that no
        optimizer moved in two of its turns.
        """
        self._watch.look()
        _check_embeddings(z, "embeddings")
        _check_place(self, z)
        if labels is not None:
            columns = {"label": labels, **columns}
        taken = {key: self._column(key, value, z) for key, value in columns.items()}
        for key in self.inner.needs:
            if key not in taken:
                given = "labels" if key == "label" else f"{key}=..."
                raise ValueError(f"this objective reads the column {key!r}: turns(z, {given})")
        encoder: list[int] = []
        if z.requires_grad:
            z.register_hook(lambda slope: encoder.append(1))
        for turn in self.inner.turns(z, Batch(None, **taken)):
            self._watch.reached.clear()
            encoder.clear()
            yield turn
            if encoder or self._watch.reached:
                self._check_learned(turn)

    def _column(self, key: str, values: Any, z: Tensor) -> Tensor:
        if key == "label":
            return self._coder(values, "labels", len(z)).to(z.device)
        if isinstance(values, Tensor) and values.shape[:1] == z.shape[:1]:
            return values.to(z.device)
        return coded(values, key, len(z)).to(z.device)

    def _check_learned(self, turn: Turn) -> None:
        """Raise for a learner of the turn that the update left out twice."""
        names = {parameter: name for name, parameter in self.inner.named_parameters()}
        learners = self.learners()
        for learner in turn.learns:
            module = learners.get(learner)
            own = [] if module is None else [p for p in module.parameters() if p.requires_grad]
            if not own or any(names[p] in self._watch.reached for p in own):
                continue
            self._left_out[learner] = self._left_out.get(learner, 0) + 1
            if self._left_out[learner] == 2:
                raise ValueError(
                    f"the learner {learner!r} has parameters that no optimizer holds; give "
                    f"nearkin.update one for objective.learners()[{learner!r}].parameters(), "
                    f"under the name {learner!r}"
                )


def sampler(name: str, labels: Any, *, seed: int = 0, **settings: Any) -> BatchSampler:
    """A batch sampler by name for any DataLoader: `DataLoader(data, batch_sampler=sampler)`.

    labels      (N,) integers or strings; or a dict of columns, for samplers that read others
    seed        at least 0; batches are a function of the seed and the epoch
    settings    of the sampler

    Raises ValueError for unknown names and settings, with the nearest known one, and for labels
    that do not go with them.
    """
    columns = labels if isinstance(labels, Mapping) else {"label": labels}
    chosen: Sampler = build({name: settings}, "sampler", {}, "sampler")
    for key in chosen.needs:
        if key not in columns:
            raise ValueError(
                f"the sampler {name!r} reads the column {key!r}; give it in a dict of columns "
                f"({did_you_mean(key, columns)})"
            )
    rows = {
        str(key): np.shape(column)[0] if np.ndim(column) else 0 for key, column in columns.items()
    }
    if len(set(rows.values())) > 1 or not min(rows.values()):
        said = ", ".join(f"{key} {count}" for key, count in rows.items())
        raise ValueError(f"a sampler needs one entry a row in every column; these have {said}")
    read = {key: _ordered(columns[key], key, rows[key]) for key in chosen.needs}
    return BatchSampler(chosen, read, _count(seed, "seed", 0) or 0)


def _ordered(column: Any, what: str, length: int) -> Tensor:
    """Labels as integers; strings by their place in the alphabet."""
    texts: list[str] = []
    place = coded(column, what, length, lambda name: (texts.append(name), len(texts) - 1)[1])
    if not texts:
        return place.cpu()
    return torch.from_numpy(np.argsort(np.argsort(texts)))[place]


class BatchSampler:
    """Batches of row numbers, other ones each time it is iterated; made by `nearkin.sampler`."""

    def __init__(self, chosen: Sampler, columns: dict[str, Tensor], seed: int):
        self.chosen, self.columns, self.seed, self.epoch = chosen, columns, seed, 0
        for remark in chosen.remarks(columns):
            if "repeat" in remark:
                warn_once(remark)

    def set_epoch(self, epoch: int) -> None:
        """Make the next iteration that of the given epoch; iterations count on by themselves."""
        self.epoch = _count(epoch, "epoch", 0) or 0

    def __len__(self) -> int:
        return len(self.chosen.batches(self.columns, self.seed, self.epoch))

    def __iter__(self) -> Iterator[list[int]]:
        batches = self.chosen.batches(self.columns, self.seed, self.epoch)
        self.epoch += 1
        for rows in batches:
            yield rows.tolist()
