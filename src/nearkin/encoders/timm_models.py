"""timm: any network of the library timm, with its own pictures, pretrained or not."""

from __future__ import annotations

import contextlib
import difflib
import logging
import math
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from nearkin.augment import Augmentation
from nearkin.crops import Crop
from nearkin.encoders.base import ImageEncoder, Standardized, feature_norm
from nearkin.pixels import Size
from nearkin.pretrained import load_pretrained, weights_folder


class Timm(ImageEncoder):
    """A network of timm (Wightman 2019), fed as it was trained: size, cut, mean and deviation.

    model           its name, as timm.list_models() says it; a tag chooses the weights, as in
                    resnet50.a1_in1k
    pretrained      begin with timm's weights, which are downloaded once into the cache folder, with
                    a line on stderr
    weights         begin with those of this file instead: .safetensors or a torch file
    dim             dimensions of the embedding, by a linear layer `head`; null: the network's own
    image_size      side of the square that the network sees; own: that of its training
    resize          side to which pictures are resized before they are cut; null: image_size by the
                    model's crop_pct
    keep_aspect     whether that is the shorter side of a picture, or both; null: the model's way
    pooling         of the last map: avg, max, avgmax, token ...; null: the model's own
    batchnorm       BatchNorm without scale and bias on the embedding
    crop            how training cuts a picture; null: the middle, as evaluation
    augmentation    what training does to the pixels
    """

    name: ClassVar[str] = "timm"
    loaded_with: ClassVar[Mapping[str, Any]] = {"pretrained": False, "weights": None}

    def __init__(
        self,
        model: str,
        *,
        pretrained: bool = True,
        weights: str | None = None,
        dim: int | None = None,
        # No null: the image_size of a data set would stand in for it.
        image_size: int | Literal["own"] = "own",
        resize: int | None = None,
        keep_aspect: bool | None = None,
        pooling: str | None = None,
        batchnorm: bool = False,
        crop: Crop | None = None,
        augmentation: Augmentation | None = None,
    ):
        if dim is not None and dim < 1:
            raise ValueError(f"dim must be at least 1, not {dim}")
        library = _timm()
        _check_name(library, model)
        options = _options(library, model, image_size, pooling)
        trunk = _trunk(library, model, pretrained and weights is None, options)
        way = library.data.resolve_model_data_config(trunk)
        side = way["input_size"][-1] if image_size == "own" else image_size
        if resize is None:
            resize = math.floor(side / way["crop_pct"])  # as timm's own evaluation does it
        kept = way["crop_mode"] != "squash" if keep_aspect is None else keep_aspect
        # Of the other ways to resize, bicubic is the nearest.
        interpolation = "bilinear" if way["interpolation"] == "bilinear" else "bicubic"
        channels = way["input_size"][0]
        size = Size(resize, kept, channels, interpolation)
        super().__init__(side, channels, augmentation, size, crop)
        if weights is not None:
            load_pretrained(trunk, weights, ignore=_classifiers(trunk))
        self.pixels = Standardized(way["mean"], way["std"])
        self.trunk = trunk.to(memory_format=torch.channels_last)
        width = _width(trunk, model, channels, side)
        self.dim = width if dim is None else dim
        self.head = nn.Identity() if dim is None else nn.Linear(width, dim)
        self.norm = feature_norm(self.dim, batchnorm)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, S, S) pixels 0..255 -> (N, dim)."""
        return self.norm(self.head(self.trunk(self.pixels(x))))


def _timm() -> ModuleType:
    try:
        import timm
    except ImportError:
        raise ImportError("the encoder timm needs timm: pip install 'nearkin[images]'") from None
    return timm


def _check_name(timm: ModuleType, model: str) -> None:
    name, _, tag = model.partition(".")
    known = timm.list_models()
    if name not in known:
        near = difflib.get_close_matches(name, known, 3)
        instead = f"did you mean {' or '.join(near)}?" if near else "timm.list_models() names them"
        raise ValueError(f"timm has no model {name!r}; {instead}")
    tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{name}.*")]
    if tag and tag not in tags:
        said = ", ".join(tags) or "none"
        raise ValueError(f"timm has no weights {tag!r} of {name}; it has {said}")


def _options(
    timm: ModuleType, model: str, image_size: int | Literal["own"], pooling: str | None
) -> dict[str, Any]:
    options: dict[str, Any] = {} if pooling is None else {"global_pool": pooling}
    told = timm.get_pretrained_cfg(model)
    if image_size != "own" and told is not None and told.fixed_input_size:
        options["img_size"] = image_size
    return options


def _trunk(timm: ModuleType, model: str, pretrained: bool, options: Mapping[str, Any]) -> nn.Module:
    folder = weights_folder()
    if pretrained:
        _tell(timm, model, folder)
    try:
        # stdout is for results, and torch says there what it downloads.
        with _quiet(), contextlib.redirect_stdout(sys.stderr):
            return timm.create_model(
                model, pretrained=pretrained, num_classes=0, cache_dir=folder, **options
            )
    except (TypeError, ValueError, AssertionError, KeyError) as error:
        said = ", ".join(f"{key} {value}" for key, value in options.items()) or "these settings"
        raise ValueError(f"timm cannot build {model} with {said}: {error}") from None
    except Exception as error:  # Each way to download fails in its own way.
        if not pretrained:
            raise
        first = str(error).splitlines()[0].split(". ")[0] if str(error) else type(error).__name__
        raise ValueError(
            f"the pretrained weights of {model} are not to be had here ({first}); give a file with "
            "weights: FILE, or say pretrained: false"
        ) from None


def _tell(timm: ModuleType, model: str, folder: Path) -> None:
    """Say on stderr what comes from the hub of timm's weights, unless it is there already."""
    told = timm.get_pretrained_cfg(model)
    name = told.hf_hub_id if told is not None else None
    if name and not (folder / f"models--{name.replace('/', '--')}" / "snapshots").is_dir():
        sys.stderr.write(
            f"downloading the weights {name} from the hub of Hugging Face into {folder}\n"
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without a line for each attempt to reach a network that is not there."""
    loggers = [logging.getLogger(name) for name in ("huggingface_hub", "timm")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def _classifiers(trunk: Any) -> tuple[str, ...]:
    said = trunk.pretrained_cfg.get("classifier") or ()
    return (said,) if isinstance(said, str) else tuple(said)


@torch.no_grad()
def _width(trunk: nn.Module, model: str, channels: int, side: int) -> int:
    """Dimensions of what the network gives; raises ValueError where it gives no rows."""
    try:
        z = trunk.eval()(torch.zeros(1, channels, side, side))
    except (RuntimeError, ValueError, AssertionError) as error:
        first = str(error).splitlines()[0]
        raise ValueError(f"{model} cannot see pictures of {side} pixels: {first}") from None
    trunk.train()
    if z.ndim != 2:
        raise ValueError(
            f"{model} gives {tuple(z.shape[1:])} for a picture and not one row; say pooling: avg"
        )
    return z.shape[1]
