"""Critics: what scores the pairs of a bound. What trains them stands in bound."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from nearkin.core import Comparison, at_least_float32
from nearkin.critics import DistanceCritic
from nearkin.objectives.base import Critic
from nearkin.reduce import positive


class Linear(Critic):
    """f = scale · (s - threshold) of the similarity s, both learned: a logistic regression.

    scale       what it starts at, above 0; it stays above 0. 10 is a temperature of 0.1
    threshold   what it starts at: the similarity at which same and different are alike

    Use it where the embedding is searched by its similarity afterwards: what the bound learns is
    then what the search sees. Two parameters.
    """

    name: ClassVar[str] = "linear"
    reads_similarity: ClassVar[bool] = True

    def __init__(self, scale: float = 10.0, threshold: float = 0.5):
        super().__init__()
        positive(scale=scale)
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))
        self.threshold = nn.Parameter(torch.tensor(float(threshold)))

    def forward(self, c: Comparison) -> Tensor:
        """(A, R)."""
        return self.log_scale.exp() * (c.similarity - self.threshold)


class OnDistance(Critic):
    """f = net(d) - d of the distance d, net a small MLP (Kemertas et al. 2020, eq. 14): any curve.
    That of `rankmi` with one hidden layer less.

    width    of its two hidden layers

    The residual -d makes it fall from the start. Use it where a straight line is too stiff; the
    comparison must be by cosine or euclidean.
    """

    name: ClassVar[str] = "on_distance"
    reads_similarity: ClassVar[bool] = True

    def __init__(self, width: int = 128):
        super().__init__()
        self.curve = DistanceCritic(width, layers=1)

    def forward(self, c: Comparison) -> Tensor:
        """(A, R), memory O(A·R·width)."""
        return self.curve(c.distance)


class Bilinear(Critic):
    """f = aᵀWr + b of the rows as they are compared, W learned (van den Oord et al. 2018, eq. 3).

    dim     D of the embedding
    scale   W starts at this times the identity

    Use it between two views that need not lie in the same directions, and beside a loss that looks
    after the similarity itself: a search does not know W. D² parameters.
    """

    name: ClassVar[str] = "bilinear"

    def __init__(self, dim: int, scale: float = 10.0):
        super().__init__()
        _at_least_one(dim=dim)
        positive(scale=scale)
        self.weight = nn.Parameter(scale * torch.eye(dim))
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, c: Comparison) -> Tensor:
        """(A, R)."""
        anchors, references = _rows(c)
        return anchors @ self.weight @ references.T + self.bias


class Separable(Critic):
    """f = g(a)·h(r) + b of the rows as they are compared, g and h two MLPs of their own.

    dim     D of the embedding
    width   of their hidden layer and of what they give

    Use it where the two sides are of different kinds, and beside a loss that looks after the
    similarity itself. Memory O((A + R)·width + A·R).
    """

    name: ClassVar[str] = "separable"

    def __init__(self, dim: int, width: int = 128):
        super().__init__()
        _at_least_one(dim=dim, width=width)
        self.anchor, self.reference = _mlp(dim, width, width), _mlp(dim, width, width)
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, c: Comparison) -> Tensor:
        """(A, R)."""
        anchors, references = _rows(c)
        one, other = self.anchor(anchors), self.reference(references)
        return one @ other.T / math.sqrt(one.shape[1]) + self.bias


class Concatenated(Critic):
    """f = net([a, r]) of the two rows as they are compared, net an MLP (MINE: Belghazi et al.
    2018).

    dim     D of the embedding
    width   of its two hidden layers

    The most that a critic can see, and the dearest. Memory O(A·R·width).
    """

    name: ClassVar[str] = "concatenated"

    def __init__(self, dim: int, width: int = 64):
        super().__init__()
        _at_least_one(dim=dim, width=width)
        self.anchor, self.reference = nn.Linear(dim, width), nn.Linear(dim, width, bias=False)
        self.net = nn.Sequential(nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1))

    def forward(self, c: Comparison) -> Tensor:
        """(A, R)."""
        anchors, references = _rows(c)
        # The first layer of the two rows side by side is the sum of a layer of each.
        both = self.anchor(anchors)[:, None] + self.reference(references)[None]  # (A, R, width)
        return self.net(both)[..., 0]


def _mlp(inputs: int, width: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, width),
        nn.ReLU(),
        nn.Linear(width, width),
        nn.ReLU(),
        nn.Linear(width, outputs),
    )


def _rows(c: Comparison) -> tuple[Tensor, Tensor]:
    if c.anchors is None or c.references is None:
        raise ValueError(
            "this critic reads the rows of a pair, but the comparison gives their similarity "
            "alone; take the critic linear or on_distance"
        )
    if c.bias is not None:
        raise ValueError("a critic has a bias of its own; set bias: false in the classifier")
    return at_least_float32(c.anchors), at_least_float32(c.references)


def _at_least_one(**counts: int) -> None:
    for key, value in counts.items():
        if value < 1:
            raise ValueError(f"{key} must be at least 1, not {value}")
