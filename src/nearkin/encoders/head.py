"""head: a projection on any trunk, frozen or learning, or on rows of features."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from nearkin.encoders.base import Encoder, Progress, feature_norm
from nearkin.features import features as features_of
from nearkin.features import kept_features
from nearkin.inputs import Inputs
from nearkin.whitening import Affine, Score, choose_shrinkage, scatter, whitening


class Head(Encoder):
    """A linear map, or a perceptron, on the outputs of a trunk or on rows of features.

    With a frozen trunk its outputs are computed once, in evaluation mode, kept in the cache folder,
    and training never looks at a picture again. Optimizers may be named for `encoder.trunk` and
    `encoder.head`.

    dim         dimensions of the embedding; default: those of the features
    features    length of a row, without a trunk
    trunk       an encoder below; None: the data are rows of features
    hidden      widths of hidden layers, with ReLU; none: a linear map
    frozen      the trunk does not learn; False: its crops and augmentation apply, and it learns
    start       of a linear map: random; identity; or whitened, the within-class whitening of the
                training features (nearkin.whitening.whitening), which alone beats many a trained
                head on unseen classes. It is scaled to the size of the identity, so that a learning
                rate means the same
    shrinkage   of the whitening, in 0..1; default: chosen on the validation classes, without such
                0.3
    dropout     before each layer
    batchnorm   BatchNorm without scale and bias on the embedding
    precision   float32 or bfloat16, of a frozen trunk
    """

    name: ClassVar[str] = "head"

    def __init__(
        self,
        dim: int | None = None,
        *,
        features: int | None = None,
        trunk: Encoder | None = None,
        hidden: list[int] | None = None,
        frozen: bool = True,
        start: Literal["random", "identity", "whitened"] = "random",
        shrinkage: float | None = None,
        dropout: float = 0.0,
        batchnorm: bool = False,
        precision: Literal["float32", "bfloat16"] = "float32",
    ):
        super().__init__()
        width = features if trunk is None else trunk.dim
        if width is None:
            raise ValueError(
                "head needs a trunk for pictures; give it one, as trunk: {small_cnn: }"
            )
        self.dim, self.features = width if dim is None else dim, width
        widths = [width, *(hidden or []), self.dim]
        _check(widths, start, shrinkage, dropout)
        self.start, self.shrinkage, self.precision = start, shrinkage, precision
        self.frozen = frozen and trunk is not None
        self.trunk = trunk
        if trunk is not None and frozen:
            trunk.requires_grad_(False).eval()
        self.head = _layers(widths, dropout)
        self.norm = feature_norm(self.dim, batchnorm)
        if start == "identity":
            self._lay(Affine(torch.zeros(width), torch.eye(width)))

    def train(self, mode: bool = True) -> Head:
        """A frozen trunk stays in evaluation mode."""
        super().train(mode)
        if self.trunk is not None and self.frozen:
            self.trunk.eval()
        return self

    def prepare(
        self,
        inputs: Inputs | Sequence[Any],
        workers: int = 1,
        progress: Progress | None = None,
        keep: bool = True,
    ) -> Inputs:
        """(N, features) float32 of a frozen trunk; else what the trunk takes, or rows as they
        are."""
        trunk = self.trunk
        if trunk is None:
            return self._rows(super().prepare(inputs, workers, progress, keep))
        if not self.frozen:
            return trunk.prepare(inputs, workers, progress, keep)
        if not keep:
            prepared = trunk.prepare(inputs, workers, progress, keep)
            return features_of(trunk, self.features, prepared, self.precision, progress)
        return kept_features(
            trunk,
            self.features,
            inputs,
            lambda: trunk.prepare(inputs, workers, progress, keep),
            self.precision,
            progress,
        )

    def fixed(self) -> nn.Module | None:
        """A frozen trunk, or what is fixed in one that learns."""
        return self.trunk if self.trunk is None or self.frozen else self.trunk.fixed()

    def seen(self, inputs: Inputs | Sequence[Any], workers: int = 1) -> Inputs:
        """What the trunk takes, also of a frozen one."""
        if self.trunk is None:
            return self.prepare(inputs, workers)
        return self.trunk.seen(inputs, workers)

    def augment(self, x: Tensor, keys: Tensor) -> Tensor:
        """The trunk's, where it learns."""
        return x if self.trunk is None or self.frozen else self.trunk.augment(x, keys)

    def begin(
        self,
        inputs: Inputs,
        label: Tensor,
        validation: Inputs | None = None,
        score: Score | None = None,
    ) -> str:
        """Lay the whitening of the training features into the linear map, if it starts so.

        Validation chooses the shrinkage and nothing else: what selects an epoch must not be fitted.
        """
        if self.start != "whitened":
            return ""
        found = scatter(self._features(inputs), label)
        shrinkage, on = self.shrinkage, "the recipe"
        if shrinkage is None:
            rows = None if validation is None else self._features(validation)
            shrinkage, on = choose_shrinkage(found, rows, score)
        self._lay(whitening(found, shrinkage, self.dim))
        return f"the head starts whitened, with shrinkage {shrinkage:g} ({on})"

    def forward(self, x: Tensor) -> Tensor:
        """(N, features), or what a learning trunk takes -> (N, dim)."""
        if self.trunk is not None and not self.frozen:
            x = self.trunk(x)
        return self.norm(self.head(x if x.is_floating_point() else x.float()))

    def _rows(self, rows: Inputs) -> Inputs:
        if len(rows.shape) != 2 or rows.shape[1] != self.features:
            raise ValueError(
                f"head without a trunk takes rows of {self.features} numbers, not inputs of shape "
                f"{tuple(rows.shape)}; give it a trunk for pictures"
            )
        return rows

    def _features(self, inputs: Inputs) -> Inputs:
        if self.trunk is None or self.frozen:
            return inputs
        return features_of(self.trunk, self.features, inputs, self.precision)

    @torch.no_grad()
    def _lay(self, affine: Affine) -> None:
        """The affine map as weights of the linear one, of mean square 1 / dim as the identity's."""
        linear = self.head[-1]
        assert isinstance(linear, nn.Linear)
        matrix = affine.matrix * (self.dim**0.5 / affine.matrix.norm())
        linear.weight.copy_(matrix.T)
        linear.bias.copy_(-affine.mean @ matrix)


def _layers(widths: list[int], dropout: float) -> nn.Sequential:
    parts: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        parts += [nn.Dropout(dropout), nn.Linear(before, after), nn.ReLU(inplace=True)]
    return nn.Sequential(*parts[:-1])


def _check(widths: list[int], start: str, shrinkage: float | None, dropout: float) -> None:
    if min(widths) < 1:
        raise ValueError(f"dim, features and hidden of head must be at least 1, not {min(widths)}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be in [0, 1), not {dropout}")
    if start != "random" and len(widths) > 2:
        raise ValueError(
            f"start {start} is that of a linear map; leave hidden out, or start random"
        )
    if start == "identity" and widths[0] != widths[-1]:
        raise ValueError(
            f"the identity keeps the {widths[0]} dimensions of the features, not {widths[-1]}; "
            f"leave dim out, or start whitened"
        )
    if start == "whitened" and widths[-1] > widths[0]:
        raise ValueError(f"whitening keeps at most {widths[0]} dimensions, not {widths[-1]}")
    if shrinkage is not None and (start != "whitened" or not 0 <= shrinkage <= 1):
        raise ValueError(
            f"shrinkage is a number in 0..1 for start whitened, but {shrinkage} was given for "
            f"start {start}"
        )
