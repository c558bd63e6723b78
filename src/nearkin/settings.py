"""Train: the settings of a recipe's `train`, each with its range. Who reads them stands in
config."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from nearkin.catalog import Schedule

AtLeastOne = Annotated[int, Field(ge=1)]


@dataclass(frozen=True)
class Train:
    """How a run trains; a recipe's `train`.

    epochs           passes over the sampler, at least 1
    steps            batches after which training ends, also within an epoch, if the epochs have as
                     many; None: the epochs say when
    schedule         total steps -> factor of the learning rate at a step; None: constant
    precision        of the encoder; losses are float32 or wider always
    select           which weights are kept: the best on validation, or the last. best_on_test keeps
                     the last and reports the epoch that the test classes like best beside it, as
                     papers do
    select_by        the metric that selects
    clip             largest gradient norm of a learner; None: no clipping
    device           "auto", "cpu", "cuda", "cuda:1", "mps"
    workers          threads that decode images, at least 1
    start            a run whose encoder this one starts from
    early_stop       stop after so many epochs without improvement on validation
    freeze_batchnorm BatchNorm in evaluation mode; its scale and shift still learn
    factors          of the learning rate, by pattern of "learner.parameter": `encoder.stem.*`
    """

    epochs: AtLeastOne = 10
    steps: AtLeastOne | None = None
    schedule: Callable[[int], Schedule] | None = None
    precision: Literal["float32", "bfloat16"] = "float32"
    select: Literal["validation", "last", "best_on_test"] = "validation"
    select_by: str = "map@r"
    clip: Annotated[float, Field(gt=0)] | None = None
    device: str = "auto"
    workers: AtLeastOne = 2
    start: str | None = None
    early_stop: AtLeastOne | None = None
    freeze_batchnorm: bool = False
    factors: dict[str, Annotated[float, Field(ge=0)]] = field(default_factory=dict)

    def length(self, batches: int) -> tuple[int, int]:
        """How many epochs, the last perhaps cut short, and how many steps, with so many batches an
        epoch. Raises ValueError for more steps than the epochs have."""
        if self.steps is None:
            return self.epochs, self.epochs * batches
        if self.steps > self.epochs * batches:
            raise ValueError(
                f"train.steps is {self.steps}, but {self.epochs} epochs of {batches} batches are "
                "over before; raise train.epochs too"
            )
        return -(-self.steps // batches), self.steps
