"""The critic of a distance, by which RankMI, bounds and estimators judge a pair. Imports torch
only."""

from __future__ import annotations

from torch import Tensor, nn


class DistanceCritic(nn.Module):
    """Distance -> logit of "same class", V(d) = net(d) - d (Kemertas et al. 2020, eq. 7 and 14).

    net is Linear(1, width), LeakyReLU(0.1), `layers` times [Linear(width, width), LeakyReLU(0.1)],
    Linear(width, 1), with Xavier weights and torch's biases; 33,409 parameters as in the paper. The
    residual -d makes V decrease from the start, so that same pairs are pulled and different ones
    pushed. Raises ValueError for a width or layers below 1.
    """

    def __init__(self, width: int = 128, layers: int = 2):
        super().__init__()
        for key, value in (("width", width), ("layers", layers)):
            if value < 1:
                raise ValueError(f"a critic needs {key} of at least 1, not {value}")
        inner = [m for _ in range(layers) for m in (nn.Linear(width, width), nn.LeakyReLU(0.1))]
        self.net = nn.Sequential(
            nn.Linear(1, width), nn.LeakyReLU(0.1), *inner, nn.Linear(width, 1)
        )
        for module in self.net:
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)

    def forward(self, distance: Tensor) -> Tensor:
        """Any shape -> the same shape."""
        return self.net(distance[..., None])[..., 0] - distance
