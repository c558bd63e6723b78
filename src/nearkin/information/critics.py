"""Critics: networks that score every x of a batch against every y. Which bound they raise is said
elsewhere."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from nearkin.critics import DistanceCritic


def network(inputs: int, width: int, layers: int, outputs: int) -> nn.Sequential:
    """`layers` hidden layers of `width` with ReLU."""
    sizes = [inputs, *[width] * layers]
    inner = [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*inner, nn.Linear(sizes[-1], outputs))


class Separable(nn.Module):
    """f(x, y) = g(x)·h(y) + a(x) + b(y): two networks, K + K passes for K·K scores."""

    def __init__(self, dx: int, dy: int, width: int = 256, layers: int = 2, shared: int = 32):
        super().__init__()
        self.left = network(dx, width, layers, shared + 1)
        self.right = network(dy, width, layers, shared + 1)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """x (K, Dx), y (K, Dy) -> (K, K), row i of x_i."""
        left, right = self.left(x), self.right(y)
        # A number for each x and each y beside the product: the bounds that need a critic of the
        # right level find it faster.
        alone = left[:, -1:] + right[:, -1]
        # Not over √shared: with 10 nats scores must reach far from 0 within a few steps.
        return left[:, :-1] @ right[:, :-1].T + alone


class Bilinear(nn.Module):
    """f(x, y) = xᵀ W y + a·x + b·y + c: linear in each."""

    def __init__(self, dx: int, dy: int):
        super().__init__()
        self.product = nn.Parameter(torch.zeros(dx, dy))
        self.left, self.right = nn.Linear(dx, 1), nn.Linear(dy, 1)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """x (K, Dx), y (K, Dy) -> (K, K), row i of x_i."""
        return x @ self.product @ y.T + self.left(x) + self.right(y).T


class Concatenated(nn.Module):
    """f(x, y) = net([x, y]): the most flexible, K·K passes for K·K scores."""

    def __init__(self, dx: int, dy: int, width: int = 64, layers: int = 2):
        super().__init__()
        self.left, self.right = nn.Linear(dx, width), nn.Linear(dy, width, bias=False)
        self.rest = nn.Sequential(nn.ReLU(), network(width, width, layers - 1, 1))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """x (K, Dx), y (K, Dy) -> (K, K), row i of x_i; memory K²·width."""
        # The first layer of a concatenation is a sum of two, which K + K passes give.
        return self.rest(self.left(x)[:, None] + self.right(y)[None])[..., 0]


class OnDistance(nn.Module):
    """f(x, y) = V(d) of the euclidean distance d of x and y over √D, V the curve of RankMI
    (`nearkin.critics.DistanceCritic`), for two views in one space.

    Raises ValueError for x and y of different dimensions.
    """

    def __init__(self, dx: int, dy: int, width: int = 64):
        super().__init__()
        if dx != dy:
            raise ValueError(
                f"a critic on the distance needs x and y in one space, but they have {dx} and {dy} "
                "columns; use 'separable'"
            )
        self.curve = DistanceCritic(width, layers=1)
        self.scale = 1 / math.sqrt(dx)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """x (K, D), y (K, D) -> (K, K), row i of x_i."""
        squared = x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.T
        return self.curve(squared.clamp_min(1e-12).sqrt() * self.scale)


CRITICS = {
    "separable": Separable,
    "bilinear": Bilinear,
    "concatenated": Concatenated,
    "on_distance": OnDistance,
}
