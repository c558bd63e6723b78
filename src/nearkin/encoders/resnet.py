"""resnet50_paper: the ResNet-50 of the published comparisons, without an embedding layer."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from nearkin.augment import Augmentation
from nearkin.crops import Crop
from nearkin.encoders.base import ImageEncoder, Standardized, feature_norm
from nearkin.pixels import Size
from nearkin.pretrained import put, read_weights, weights_folder

IMAGENET = "imagenet_v1"


class ResNet50Paper(ImageEncoder):
    """ResNet-50 up to its average pooling (He et al. 2016), as Boudiaf et al. (2020) use it.

    The paper's dropout stands before the classifier only: compare: {classifier: {dropout: 0.5}};
    its frozen BatchNorm is train.freeze_batchnorm, which leaves the one on the embedding as it is.

    weights         imagenet_v1: torchvision's of 2020, downloaded once into the cache folder, with
                    a line on stderr; a file (.safetensors or torch) of torchvision's names; null:
                    at random
    image_size      side of the square that the network sees
    resize          side to which pictures are resized before they are cut
    keep_aspect     whether that is the shorter side of a picture, or both
    batchnorm       BatchNorm without scale and bias on the embedding
    crop            how training cuts a picture; null: the middle, as evaluation
    augmentation    what training does to the pixels
    """

    name: ClassVar[str] = "resnet50_paper"
    loaded_with: ClassVar[Mapping[str, Any]] = {"weights": None}
    dim = 2048

    def __init__(
        self,
        *,
        weights: str | None = IMAGENET,
        image_size: int = 224,
        resize: int = 256,
        keep_aspect: bool = True,
        batchnorm: bool = False,
        crop: Crop | None = None,
        augmentation: Augmentation | None = None,
    ):
        super().__init__(image_size, 3, augmentation, Size(resize, keep_aspect), crop)
        self.pixels = Standardized((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        self.trunk = _resnet50(weights).to(memory_format=torch.channels_last)
        self.norm = feature_norm(self.dim, batchnorm)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, S, S) pixels 0..255 -> (N, 2048)."""
        return self.norm(self.trunk(self.pixels(x)))


def _resnet50(weights: str | None) -> nn.Module:
    try:
        from torchvision.models import ResNet50_Weights, resnet50
    except ImportError:
        raise ImportError(
            "the encoder resnet50_paper needs torchvision: pip install 'nearkin[images]'"
        ) from None
    trunk = resnet50(weights=None)
    trunk.fc = nn.Identity()  # type: ignore[assignment]
    if weights == IMAGENET:
        held = _downloaded(ResNet50_Weights.IMAGENET1K_V1)
        put(trunk, held, "torchvision's weights", ignore=["fc"])
    elif weights is not None:
        put(trunk, read_weights(weights), f"the weights in {weights}", ignore=["fc"])
    return trunk


def _downloaded(named: Any) -> Mapping[str, Tensor]:
    asked = {"progress": False, "check_hash": True, "weights_only": True}
    try:
        # torch says on stdout what it downloads, where nothing but results belong.
        with contextlib.redirect_stdout(sys.stderr):
            return named.get_state_dict(model_dir=os.fspath(weights_folder()), **asked)
    except (OSError, RuntimeError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{named.url} is not to be had here ({first}); give its file with weights: FILE, or "
            "say weights: null"
        ) from None
