"""Small encoders that train from scratch on a laptop: small_cnn for pictures, mlp for rows of
features."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from nearkin.augment import Augmentation
from nearkin.encoders.base import Encoder, ImageEncoder, Progress, feature_norm, scaled
from nearkin.inputs import Inputs


class SmallCNN(ImageEncoder):
    """A few convolutions, good for pictures of 28 to 96 pixels.

    dim             dimensions of the embedding
    image_size      pictures are squares of this many pixels
    channels        1 (gray) or 3 (color)
    width           channels of the convolutions
    layers          convolutions; the first has 5x5 kernels and stride 2
    grid            the last feature map is pooled to grid x grid places
    batchnorm       BatchNorm without scale and bias on the embedding
    augmentation    what training does to a picture
    """

    name: ClassVar[str] = "small_cnn"

    def __init__(
        self,
        dim: int = 64,
        *,
        image_size: int,
        channels: int,
        width: int = 64,
        layers: int = 4,
        grid: int = 4,
        batchnorm: bool = True,
        augmentation: Augmentation | None = None,
    ):
        super().__init__(image_size, channels, augmentation)
        _check_positive("small_cnn", dim=dim, width=width, layers=layers, grid=grid)
        self.dim = dim
        self.trunk = _convolutions(channels, width, layers, image_size, grid)
        self.head = nn.Linear(width * grid**2, dim)
        self.norm = feature_norm(dim, batchnorm)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, S, S) pixels 0..255 -> (N, dim)."""
        x = scaled(x).contiguous(memory_format=torch.channels_last)
        return self.norm(self.head(self.trunk(x).flatten(1)))


def _check_positive(name: str, **settings: int) -> None:
    for key, value in settings.items():
        if value < 1:
            raise ValueError(f"{key} of {name} must be at least 1, not {value}")


def _convolutions(channels: int, width: int, layers: int, size: int, grid: int) -> nn.Sequential:
    parts: list[nn.Module] = []
    for i in range(layers):
        first = i == 0
        parts.append(
            nn.Conv2d(
                channels if first else width,
                width,
                5 if first else 3,
                stride=2 if first else 1,
                padding=2 if first else 1,
                bias=False,
            )
        )
        size = -(-size // 2) if first else size
        # Pooling stops where the map would become smaller than the grid that the head reads.
        if not first and size // 2 >= grid:
            parts.append(nn.MaxPool2d(2))
            size //= 2
        parts += [nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(grid))


class MLP(Encoder):
    """A perceptron on rows of features, standardized by a BatchNorm at its input.

    features    length of an input row; pictures are flattened
    dim         dimensions of the embedding
    hidden      widths of the hidden layers; an empty list gives a linear map
    dropout     after each hidden layer
    batchnorm   BatchNorm without scale and bias on the embedding
    """

    name: ClassVar[str] = "mlp"

    def __init__(
        self,
        dim: int = 64,
        *,
        features: int,
        hidden: list[int] | None = None,
        dropout: float = 0.0,
        batchnorm: bool = True,
    ):
        super().__init__()
        widths = [features, *([256] if hidden is None else hidden)]
        _check_positive("mlp", dim=dim, features=features, hidden=min(widths))
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), not {dropout}")
        self.dim, self.features = dim, features
        parts: list[nn.Module] = [nn.BatchNorm1d(features, affine=False)]
        for before, after in itertools.pairwise(widths):
            parts += [nn.Linear(before, after), nn.ReLU(inplace=True), nn.Dropout(dropout)]
        self.net = nn.Sequential(*parts, nn.Linear(widths[-1], dim))
        self.norm = feature_norm(dim, batchnorm)

    def prepare(
        self,
        inputs: Inputs | Sequence[Any],
        workers: int = 1,
        progress: Progress | None = None,
        keep: bool = True,
    ) -> Inputs:
        """Rows as they are; raises ValueError for files and for rows of another length."""
        rows = super().prepare(inputs, workers, progress, keep)
        if len(rows.shape) < 2 or math.prod(rows.shape[1:]) != self.features:
            raise ValueError(
                f"mlp takes rows of {self.features} numbers, not inputs of shape "
                f"{tuple(rows.shape)}"
            )
        return rows

    def forward(self, x: Tensor) -> Tensor:
        """(N, ...) with `features` numbers a row -> (N, dim)."""
        rows = x.flatten(1)
        return self.norm(self.net(rows if rows.is_floating_point() else rows.float()))
