"""A resolved recipe to the objects of a run: data prepared, encoder, method, optimizers, sampler,
schedule."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nearkin.config import Train, build, build_train
from nearkin.data.base import Splits, Table
from nearkin.encoders.base import Encoder, Given
from nearkin.floors import validation_score
from nearkin.inputs import Inputs
from nearkin.learners import Optimizers, optimizers_of
from nearkin.methods.base import Method, Supervised
from nearkin.model import CARD, WEIGHTS, weights
from nearkin.run_folder import RunFolder
from nearkin.runtime import (
    as_in_first,
    choose_device,
    first_then_all,
    prepare_encoder,
    seed_all,
)
from nearkin.sample import Sampler

OWN = "(an object given in Python)"
Say = Callable[[str], None]


@dataclass(frozen=True)
class Parts:
    """All that a run is made of. Tables hold prepared inputs; labels of `train` are 0..C-1."""

    splits: Splits
    facts: dict[str, int]
    encoder_node: dict[str, Any] | None
    method: Method
    optimizers: Optimizers
    schedule: Callable[[int], float]
    sampler: Sampler
    train: Train
    device: torch.device
    freeze: list[nn.Module]
    given: Table  # the test split as the data set gave it, for those who look at pictures

    @property
    def encoder(self) -> Encoder:
        """The encoder that the run trains."""
        return self.method.learners()["encoder"]  # type: ignore[return-value]


def assemble(
    recipe: Mapping[str, Any],
    *,
    data: Splits | None = None,
    encoder: nn.Module | None = None,
    trust_code: bool = False,
    fresh: bool = True,
    say: Say = lambda text: None,
    progress: Any = None,
) -> Parts:
    """Build what the recipe names, in order: data, encoder, prepared inputs, objective, optimizers.

    fresh   whether the encoder may begin with what it takes from the data; a resumed run has its
            weights already

    Raises ValueError with the place in the recipe for whatever does not fit.
    """
    train = build_train(recipe["train"], trust_code=trust_code)
    device = choose_device(train.device)
    splits = data or first_then_all(
        lambda: build(recipe["data"], "data", {}, "data", trust_code=trust_code)
    )
    if splits.train.classes < 2:
        raise ValueError(
            f"training needs at least two classes, but the train split has {splits.train.classes}"
        )
    facts = _facts(splits)
    seed_all(recipe["seed"], 1)
    node = recipe["encoder"] if encoder is None else None
    # The first process alone downloads weights.
    built = first_then_all(lambda: _encoder(node, encoder, facts, trust_code)).to(device)
    if train.start is not None:
        _start_from(built, Path(train.start))
    as_in_first(built)  # a frozen trunk makes the features that all processes train on
    given = splits.test
    splits = first_then_all(lambda: prepared(splits, built, train.workers, progress))
    facts |= {"dim": built.dim, "classes": splits.train.classes}
    freeze = _frozen(built) if train.freeze_batchnorm else []
    ready: Any = prepare_encoder(built, freeze)
    method = _method(recipe, ready, facts, train, trust_code)
    sampler = build(recipe["sampler"], "sampler", facts, "sampler", trust_code=trust_code)
    _check_columns(splits.train, sampler, method)
    for remark in sampler.remarks({"label": splits.train.label, **splits.train.columns}):
        say(remark)
    if fresh and train.start is None:
        _begin(built, splits, recipe["seed"], say)
    as_in_first(method.to(device))
    return Parts(
        splits=splits,
        facts=facts,
        encoder_node=node,
        method=method,
        optimizers=_optimizers(recipe, method, train, trust_code),
        schedule=_schedule(train, sampler, splits.train, recipe["seed"]),
        sampler=sampler,
        train=train,
        device=device,
        freeze=freeze,
        given=given,
    )


def _facts(splits: Splits) -> dict[str, int]:
    facts = dict(splits.facts)
    if isinstance(splits.train.inputs, Inputs):
        facts.setdefault("features", math.prod(splits.train.inputs.shape[1:]))
    return facts


def _encoder(
    node: Any, given: nn.Module | None, facts: Mapping[str, int], trust_code: bool
) -> Encoder:
    if given is None:
        return build(node, "encoder", facts, "encoder", trust_code=trust_code)
    if isinstance(given, Encoder):
        return given
    dim = getattr(given, "dim", None)
    if not isinstance(dim, int):
        raise ValueError(
            "an encoder of your own needs an attribute `dim`, the width of its embeddings; set "
            "it, for example encoder.dim = 128"
        )
    return Given(given, dim)


def _begin(encoder: Encoder, splits: Splits, seed: int, say: Say) -> None:
    train, validation = splits.train, splits.validation
    assert isinstance(train.inputs, Inputs)
    rows = score = None
    if validation is not None:
        rows, score = validation.inputs, validation_score(validation, seed)
        assert isinstance(rows, Inputs)
    if remark := encoder.begin(train.inputs, train.label, rows, score):
        say(remark)


def prepared(splits: Splits, encoder: Encoder, workers: int = 1, progress: Any = None) -> Splits:
    """The splits with the inputs that the encoder takes; labels of `train` are 0..C-1."""

    def ready(table: Table | None) -> Table | None:
        if table is None:
            return None
        return replace(table, inputs=encoder.prepare(table.inputs, workers, progress))

    train, test = ready(splits.train), ready(splits.test)
    assert train is not None
    assert test is not None
    return replace(splits, train=train.compact(), validation=ready(splits.validation), test=test)


def _method(
    recipe: Mapping[str, Any],
    encoder: Encoder,
    facts: Mapping[str, int],
    train: Train,
    trust_code: bool,
) -> Method:
    if recipe.get("method") is not None:
        node = recipe["method"]
        own = {**facts, "encoder": encoder, "precision": train.precision}
        return build(node, "method", own, "method", trust_code=trust_code)
    objective = build(recipe["objective"], "objective", facts, "objective", trust_code=trust_code)
    return Supervised(encoder, objective, train.precision)


def _check_columns(table: Table, sampler: Sampler, method: Method) -> None:
    objective = getattr(method, "objective", None)
    for who, part in (("sampler", sampler), ("objective", objective)):
        for column in getattr(part, "needs", ()):
            if column not in ("label", *method.gives, *table.columns):
                known = ", ".join(["label", *sorted(table.columns)])
                raise ValueError(
                    f"{who}: it reads the column {column!r}, but the data have {known}; take "
                    "another one, or data with that column"
                )


def _optimizers(
    recipe: Mapping[str, Any], method: Method, train: Train, trust_code: bool
) -> Optimizers:
    makers = {
        learner: build(node, "optimizer", {}, f"optim.{learner}", trust_code=trust_code)
        for learner, node in recipe["optim"].items()
    }
    return optimizers_of(method.learners(), makers, train.factors)


def _schedule(train: Train, sampler: Sampler, table: Table, seed: int) -> Callable[[int], float]:
    columns = {"label": table.label, **table.columns}
    batches = sampler.count(columns, seed, 0)
    if batches == 0:
        raise ValueError("the sampler makes no batch from the train split; make batches smaller")
    return (lambda i: 1.0) if train.schedule is None else train.schedule(train.length(batches)[1])


def _frozen(encoder: nn.Module) -> list[nn.Module]:
    """The BatchNorms of the trunk: they stay in eval mode, scale and shift still learn.

    The BatchNorm1d on the features is not among them (Boudiaf et al. 2020, code).
    """
    return [m for m in encoder.modules() if isinstance(m, (nn.BatchNorm2d, nn.BatchNorm3d))]


def _start_from(encoder: Encoder, path: Path) -> None:
    folder = RunFolder(path)
    folder.check_format()
    if not (path / "model" / CARD).is_file():
        raise ValueError(
            f"train.start: the run in {path} is not finished, so it has no model to start from"
        )
    weights(encoder, path / "model" / WEIGHTS)
