"""For a training loop of one's own: criterion and objective; sampler stands in batches. Nothing
here needs a recipe."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from nearkin.batches import sampler
from nearkin.catalog import KINDS, REQUIRED, constructor, did_you_mean, scan, slots_of
from nearkin.checks import (
    check_embeddings,
    check_place,
    check_references,
    check_said,
    check_widths,
    checked_terms,
    count,
)
from nearkin.compare import Compare, Memory
from nearkin.config import build
from nearkin.core import Batch, Comparison, Home, Terms, Turn, home_of, warn_once
from nearkin.guards import Watch, warn_of_match_bits
from nearkin.information.codes import Coder, coded, holds_texts
from nearkin.mining import Mining
from nearkin.objectives.base import Objective
from nearkin.objectives.compared import CLASS_COLUMNS, Compared
from nearkin.runtime import gather_rows, world

__all__ = ["Criterion", "OwnObjective", "criterion", "objective", "sampler"]

_OF_HOME = ("closeness", "mining", "memory", "learn")  # where a loss lives and what of it learns


def criterion(
    loss: str | Callable[..., Terms],
    *,
    closeness: str | None = None,
    mining: str | Mapping[str, Any] | Mining | None = None,
    memory: int | None = None,
    classes: int | Sequence[str] | None = None,
    dim: int | None = None,
    gather: bool = False,
    learn: Mapping[str, Any] | None = None,
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
    learn       settings of the loss that learn, as parameters of the criterion:
                {"beta": {"start": 1.2}}, or with "per": "class" one for each class (needs classes)
    settings    of the loss

    Raises ValueError for unknown names and settings, with the nearest known one.
    """
    if not isinstance(gather, bool):
        raise ValueError(f"gather is True or False, not {gather!r:.60}")
    names, number = _classes(classes)
    compared = _at_home(
        loss,
        settings,
        _facts(number, dim),
        "criterion",
        closeness=closeness,
        mining=mining,
        memory=memory,
        learn=learn,
    )
    return Criterion(compared, names, gather, number, count(dim, "dim"))


def _at_home(
    loss: Any,
    settings: Mapping[str, Any],
    facts: Mapping[str, int],
    where: str,
    *,
    closeness: str | None = None,
    mining: Any = None,
    memory: int | None = None,
    learn: Mapping[str, Any] | None = None,
) -> Compared:
    """A loss in its home."""
    if learn is not None and not isinstance(learn, Mapping):
        raise ValueError(f'learn takes {{"setting": {{"start": 1.2}}}}, not {learn!r:.60}')
    for key in learn or {}:
        if key in settings:
            raise ValueError(
                f"{key} is given and learned at once; leave {key}=... out and say where it begins "
                f'with learn={{"{key}": {{"start": ...}}}}'
            )
    chosen = _loss(loss, settings, where)
    compare = _home_compare(chosen, closeness, memory, facts, where)
    picked = None if mining is None else _mining(mining, where)
    return Compared(compare, chosen, picked, dict(learn or {}), facts.get("classes"))


def _loss(loss: Any, settings: Mapping[str, Any], where: str) -> Any:
    if isinstance(loss, str):
        if ":" in loss:
            raise ValueError(f"{loss!r} is code of your own; import it and give the function")
        if loss in scan(KINDS["objective"]) and loss not in scan(KINDS["loss"]):
            raise ValueError(
                f"{loss!r} is an objective, with turns of its own; use nearkin.objective({loss!r})"
            )
        return build({loss: settings}, "loss", {}, where)
    if not callable(loss):
        raise ValueError(f"a loss is a name or a function of a Comparison, not {loss!r:.60}")
    if settings:
        raise ValueError(
            f"settings ({', '.join(settings)}) come with a loss by name; bind those of a function "
            "of your own with functools.partial"
        )
    _check_called(loss, "a loss")
    return loss


def _mining(mining: Any, where: str) -> Mining:
    if callable(mining):
        _check_called(mining, "a mining")
    return build(mining, "mining", {}, f"{where}.mining")


def _check_called(own: Any, what: str) -> None:
    """Raise ValueError unless a function of one's own takes one Comparison."""
    try:
        inspect.signature(getattr(own, "forward", own)).bind(None)
    except TypeError as error:
        raise ValueError(
            f"{what} is called with one Comparison, but {_name_of(own)} does not fit: {error}; "
            "bind its settings with functools.partial"
        ) from None


def _name_of(loss: Any) -> str:
    return getattr(getattr(loss, "func", loss), "__name__", type(loss).__name__)


def _classes(classes: Any) -> tuple[tuple[str, ...] | None, int | None]:
    """Names of the classes, where names are given, and their number."""
    if classes is None or isinstance(classes, (str, bytes)) or not np.iterable(classes):
        return None, count(classes, "classes")
    names = tuple(classes)
    if not all(isinstance(name, str) for name in names):
        raise ValueError(
            "a list of classes holds names, for labels that are strings; for integers give the "
            "number of classes, and number the labels from 0"
        )
    if len(set(names)) < len(names):
        raise ValueError("classes names one class twice; give each name once")
    return names, count(len(names), "the number of classes")


def _facts(classes: int | None, dim: Any) -> dict[str, int]:
    return {k: v for k, v in (("classes", classes), ("dim", count(dim, "dim"))) if v is not None}


def _home_compare(
    loss: Any, closeness: str | None, memory: int | None, facts: Mapping[str, int], where: str
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
    slots = slots_of(constructor(KINDS["compare"], name, where), KINDS["compare"])
    needed = [key for key, slot in slots.items() if slot.default is REQUIRED]
    missing = [key for key in needed if key not in facts and key not in settings]
    if missing:
        said = " and ".join(f"{key}=..." for key in missing)
        raise ValueError(f"{_name_of(loss)} compares with {name}, so {where} needs {said}")
    return build({name: settings}, "compare", facts, where)


class Criterion(nn.Module):
    """A loss with its home: `criterion(z, labels)` is the loss, `criterion.terms(z, labels)` its
    parts.

    Made by `nearkin.criterion`. What it owns (proxies, a classifier) are parameters: give them to
    an optimizer.
    """

    def __init__(
        self,
        compared: Compared,
        names: tuple[str, ...] | None = None,
        gather: bool = False,
        classes: int | None = None,
        dim: int | None = None,
    ):
        super().__init__()
        others = [column for column in compared.needs if column != "label"]
        if others:
            raise ValueError(
                f"a criterion knows labels alone, but this loss reads {', '.join(others)}; use "
                "nearkin.objective(...).turns(z, labels, column=...), or references=..."
            )
        self.compared, self.gather = compared, gather
        self._coder = _coder(names, compared)
        self._watch = Watch()
        self._suspects_bits = classes is None and _compares_rows(compared)
        rows = compared.compare.columns_are == "rows"
        self._classes = classes if rows else None
        # A memory says itself which width it keeps.
        self._dim = dim if rows and not isinstance(compared.compare, Memory) else None

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
        check_embeddings(z, "embeddings")
        check_place(self, z)
        self._watch.look(self, z)
        label = self._coder(labels, "labels", len(z)).to(z.device)
        check_said(z, label, None if holds_texts(labels) else self._classes, self._dim)
        if self._suspects_bits:
            self._suspects_bits = not warn_of_match_bits(label)
        if references is not None:
            return self._against(z, label, references, labels, reference_labels)
        if reference_labels is not None:
            raise ValueError("reference_labels come with references; give both or neither")
        if self.gather and world() > 1:
            z, label = gather_rows(z), gather_rows(label)
        batch = Batch(None, label=label)
        terms = checked_terms(self.compared(z, batch), _name_of(self.compared.loss))
        self.compared.after(z.detach(), batch)
        return terms

    def _against(
        self, z: Tensor, label: Tensor, references: Tensor, labels: Any, reference_labels: Any
    ) -> Terms:
        if reference_labels is None:
            raise ValueError("references need reference_labels, one for each of their rows")
        compare = self.compared.compare
        if compare.columns_are != "rows" or isinstance(compare, Memory):
            own = getattr(compare, "name", "compare")
            raise ValueError(f"this loss has references of its own ({own}); leave references out")
        check_references(references, z)
        other = self._coder(reference_labels, "reference_labels", len(references)).to(z.device)
        self._coder.check_kinds(labels, reference_labels, "reference_labels")
        check_widths(label, other)
        if self.gather and world() > 1:
            references, other = gather_rows(references), gather_rows(other)
        c: Comparison = compare.made(
            anchor_label=label,
            reference_label=other,
            anchors=compare.as_compared(z),
            references=compare.as_compared(references),
        )
        if not c.positives.columns.numel():
            warn_once(
                "no row shares its label with a reference, so nothing gathers a class; number both "
                "labels alike, and choose references of the classes in the batch"
            )
        scored = self.compared.scored(self.compared.mined(c))
        return checked_terms(scored, _name_of(self.compared.loss))

    def extra_repr(self) -> str:
        """The loss and its settings, for print(criterion)."""
        settings = getattr(self.compared.loss, "keywords", {})
        said = ", ".join(f"{key}={value!r}" for key, value in settings.items())
        return f"{_name_of(self.compared.loss)}({said})"


def _compares_rows(inner: Objective) -> bool:
    """Whether labels say which rows go together, here or in a part of a sum."""
    parts = [part for part in inner.modules() if isinstance(part, Compared)]
    return any(part.compare.columns_are == "rows" and "label" in part.needs for part in parts)


def _coder(names: Sequence[str] | None, module: nn.Module) -> Coder:
    """Labels to numbers; strings must be named where a module keeps something for each class."""

    def numbers_classes(part: nn.Module) -> bool:
        if isinstance(part, Compare):
            return part.columns_are == "classes" and next(part.parameters(), None) is not None
        return isinstance(part, Compared) and any(p.ndim for p in part.learned.values())

    return Coder(names, needs_names=any(map(numbers_classes, module.modules())))


def objective(name: str | Mapping[str, Any], **settings: Any) -> OwnObjective:
    """An objective by name (or as a recipe's node) whose turns are taken in a loop of one's own.

    name        of an objective, or of a loss, which then lives in its home: as in `criterion`, with
                closeness, mining, memory and learn among the settings
    settings    of the objective; `classes` (a number, or names) and `dim` also go to the
                comparisons within

    Raises ValueError for unknown names and settings, with the nearest known one.

    >>> objective = nk.objective("jensen_shannon")
    >>> for turn in objective.turns(z, labels):
    ...     nk.update(turn, optimizers)     # a dict: learner -> optimizer, "encoder" among them
    """
    names, number = _classes(settings.pop("classes", None))
    facts = _facts(number, settings.pop("dim", None))
    if isinstance(name, str):
        if name == "sum":
            _check_no_loss({name: settings})
        return OwnObjective(_objective_named(name, settings, facts), names, number)
    if settings:
        raise ValueError(f"settings ({', '.join(settings)}) go into the node {name}")
    _check_no_loss(name)
    return OwnObjective(build(name, "objective", facts, "objective"), names, number)


def _check_no_loss(node: Any) -> None:
    """Raise ValueError for the node of a loss where that of an objective stands, in a sum too."""
    if not isinstance(node, Mapping) or len(node) != 1:
        return
    ((name, settings),) = node.items()
    losses = scan(KINDS["loss"])
    if name in losses and name not in scan(KINDS["objective"]):
        home = home_of(losses[name])
        compare = "in_batch" if home is None else home.compare
        raise ValueError(
            f"{name} is a loss; write {{compared: {{compare: {{{compare}: {{}}}}, "
            f"loss: {{{name}: {{}}}}}}}}"
        )
    parts = settings.get("parts") if name == "sum" and isinstance(settings, Mapping) else None
    for part in parts.values() if isinstance(parts, Mapping) else ():
        _check_no_loss({part: None} if isinstance(part, str) else part)


def _objective_named(name: str, settings: dict[str, Any], facts: Mapping[str, int]) -> Objective:
    objectives, losses = scan(KINDS["objective"]), scan(KINDS["loss"])
    if name in losses and name not in objectives:
        home = {key: settings.pop(key) for key in _OF_HOME if key in settings}
        return _at_home(name, settings, facts, "objective", **home)
    if name not in objectives and ":" not in name:
        nearest = did_you_mean(name, [*objectives, *losses])
        raise ValueError(f"there is no objective and no loss {name!r}; {nearest}")
    own = slots_of(objectives[name]) if name in objectives else {}
    taken = {key: value for key, value in facts.items() if key in own}
    return build({name: {**settings, **taken}}, "objective", facts, "objective")


class OwnObjective(nn.Module):
    """An objective for a loop of one's own; made by `nearkin.objective`."""

    def __init__(
        self, inner: Objective, names: tuple[str, ...] | None = None, classes: int | None = None
    ):
        super().__init__()
        self.inner = inner
        self._coder = _coder(names, inner)
        self._watch = Watch()
        self._suspects_bits = classes is None and _compares_rows(inner)
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
        check_embeddings(z, "embeddings")
        check_place(self, z)
        self._watch.look(self.inner, z)
        if labels is not None:
            columns = {"label": labels, **columns}
        taken = {key: self._column(key, value, z) for key, value in columns.items()}
        for key in self.inner.needs:
            if key not in taken:
                given = "labels" if key == "label" else f"{key}=..."
                raise ValueError(f"this objective reads the column {key!r}: turns(z, {given})")
        if self._suspects_bits:
            self._suspects_bits = not warn_of_match_bits(taken["label"])
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
