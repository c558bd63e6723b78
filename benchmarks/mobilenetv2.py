"""An encoder of one's own: MobileNetV2 from a file of quantized weights, for the Cars-196 run.

The file holds 52 convolutions with BatchNorm folded in: `w{i}` int8, `s{i}` the scale of each
output channel, `b{i}` the bias (weight = w * s), in the order of the network.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nearkin.crops import Crop
from nearkin.encoders.base import ImageEncoder
from nearkin.pixels import Size

# expansion, channels, blocks, stride of the first block (Sandler et al. 2018, table 2)
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
DIM = 1280


class SameConv(nn.Conv2d):
    """A convolution padded as TensorFlow's "same": what is odd goes to the right and below."""

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        if kernel > 1:
            total = [
                max((-(-n // stride) - 1) * stride + kernel - n, 0) for n in x.shape[:1:-1]
            ]  # width, height
            x = F.pad(x, [part for t in total for part in (t // 2, t - t // 2)])
        return super().forward(x)


class Block(nn.Sequential):
    """An inverted residual."""

    def __init__(self, expansion: int, before: int, after: int, stride: int):
        inside = expansion * before
        widen = [SameConv(before, inside, 1), nn.ReLU6()] if expansion > 1 else []
        deep = [SameConv(inside, inside, 3, stride, groups=inside), nn.ReLU6()]
        super().__init__(*widen, *deep, SameConv(inside, after, 1))
        self.skips = stride == 1 and before == after

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return x + y if self.skips else y


class MobileNetV2(ImageEncoder):
    """ImageNet's MobileNetV2 as an encoder of 1280 dimensions.

    weights      the .npz file; None: random, as where a run's own weights are loaded next
    image_size   side of the square that the network sees
    resize       the whole picture is resized to this square first, and cut to image_size
    batchnorm    BatchNorm without scale and bias on the features
    frozen       so many of the first layers do not learn; 8: down to an 8th of the side
    """

    name = "mobilenetv2"
    loaded_with: ClassVar[Mapping[str, Any]] = {"weights": None}

    def __init__(
        self,
        weights: str | None = None,
        *,
        image_size: int = 128,
        resize: int = 144,
        crop: Crop | None = None,
        batchnorm: bool = True,
        frozen: int = 0,
    ):
        super().__init__(image_size, 3, size=Size(resize, keep_aspect=False), crop=crop)
        self.dim = DIM
        self.trunk = nn.Sequential(*_layers())
        self.norm = nn.BatchNorm1d(DIM, affine=False) if batchnorm else nn.Identity()
        if weights is not None:
            self._read(Path(weights))
        self.trunk[:frozen].requires_grad_(False)
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, S, S) pixels 0..255 -> (N, 1280)."""
        x = (x.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)
        return self.norm(self.trunk(x).mean((2, 3)))

    def _read(self, path: Path) -> None:
        convolutions = [m for m in self.modules() if isinstance(m, SameConv)]
        with np.load(path, allow_pickle=False) as file, torch.no_grad():
            for i, m in enumerate(convolutions):
                scaled = file[f"w{i}"].astype(np.float32) * file[f"s{i}"][:, None, None, None]
                m.weight.copy_(torch.from_numpy(scaled))
                m.bias.copy_(torch.from_numpy(file[f"b{i}"]))


def _layers() -> list[nn.Module]:
    layers: list[nn.Module] = [SameConv(3, 32, 3, 2), nn.ReLU6()]
    widths = [32]
    for expansion, channels, blocks, stride in STAGES:
        widths = [widths[-1], *[channels] * blocks]
        steps = [stride] + [1] * (blocks - 1)
        pairs = zip(pairwise(widths), steps, strict=True)
        layers += [Block(expansion, before, after, step) for (before, after), step in pairs]
    return [*layers, SameConv(widths[-1], DIM, 1), nn.ReLU6()]
