"""Encoder: a row's input to its embedding, with the preprocessing that belongs to it. Members stand
beside."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from nearkin.core import warn_once
from nearkin.crops import DRAWS, Crop
from nearkin.inputs import Inputs, Taken
from nearkin.pictures import Pictures, read_pictures
from nearkin.pixels import Size, read_images, resized
from nearkin.whitening import Score

Progress = Callable[[int, int], None]


class Encoder(nn.Module):
    """(N, ...) inputs -> (N, dim) embeddings.

    `prepare` is the preprocessing of evaluation, made once for a table; `augment` is what training
    adds, keyed by row; whatever scales or centers the inputs stands in `forward`, so that a saved
    model cannot lose it.
    """

    dim: int
    # Settings that stand in for a run's own where the weights are loaded afterwards.
    loaded_with: ClassVar[Mapping[str, Any]] = {}

    def prepare(
        self,
        inputs: Inputs | Sequence[Any],
        workers: int = 1,
        progress: Progress | None = None,
        keep: bool = True,
    ) -> Inputs:
        """What a table holds -> the rows (N, ...) that `forward` takes: a tensor, or a `Taken` that
        makes its rows when they are taken.

        workers    threads that decode
        progress   told of (done, N) items
        keep       whether what was decoded may be kept in the cache folder for the next time
        """
        if not isinstance(inputs, Inputs):
            seen = type(inputs[0]).__name__ if len(inputs) else "nothing"
            raise ValueError(
                f"the encoder {type(self).__name__} takes arrays of numbers, not {seen}; use an "
                "image encoder such as small_cnn for files"
            )
        return inputs

    def augment(self, x: Tensor, keys: Tensor) -> Tensor:
        """Training only: (N, ...) prepared inputs and a key for each row -> inputs of the same
        form."""
        return x

    def begin(
        self,
        inputs: Inputs,
        label: Tensor,
        validation: Inputs | None = None,
        score: Score | None = None,
    ) -> str:
        """Called once before the first step of a fresh run, in every process: what the encoder
        takes from the data other than by steps. Returns a sentence on it; empty: nothing was done.

        inputs       the prepared training rows, with their labels (N,)
        validation   the prepared validation rows
        score        embeddings of them -> (recall@1, map@r); raises ValueError where no row has a
                     relevant one
        """
        return ""

    def fixed(self) -> nn.Module | None:
        """What `prepare` computes with and training leaves as it is; None: there is no such
        part."""
        return None

    def saved_node(self, node: str | Mapping[str, Any]) -> dict[str, Any]:
        """The node of a recipe that made this encoder -> one that makes it where its weights are
        loaded afterwards, without looking for those that it started from."""
        ((name, settings),) = ({node: {}} if isinstance(node, str) else node).items()
        below = {
            key: inner.saved_node(value)
            for key, value in (settings or {}).items()
            if isinstance(inner := getattr(self, key, None), Encoder)
        }
        return {name: {**(settings or {}), **below, **self.loaded_with}}

    def seen(self, inputs: Inputs | Sequence[Any], workers: int = 1) -> Inputs:
        """What a table holds -> rows that a person may look at: those that `prepare` gives."""
        return self.prepare(inputs, workers)


class ImageEncoder(Encoder):
    """An encoder of pictures: uint8 (N, channels, image_size, image_size), pixels 0..255.

    Files are decoded, turned upright and converted to `channels`. Without `size` they are resized
    whole to a square. With it they are kept at that size, evaluation sees the middle square, and
    training what `crop` cuts; so it is with uint8 pictures (N, channels, H, W) in a tensor.
    """

    def __init__(
        self,
        image_size: int,
        channels: int,
        augmentation: Any = None,
        size: Size | None = None,
        crop: Crop | None = None,
    ):
        super().__init__()
        if image_size < 4:
            raise ValueError(f"image_size must be at least 4 pixels, not {image_size}")
        if channels not in (1, 3):
            raise ValueError(f"channels must be 1 (gray) or 3 (color), not {channels}")
        if size is not None and size.resize < image_size:
            raise ValueError(
                f"pictures resized to {size.resize} pixels cannot be cut to {image_size}; make "
                f"resize at least {image_size}"
            )
        self.image_size, self.channels, self.augmentation = image_size, channels, augmentation
        self.size, self.crop = size, crop
        if size is not None and crop is not None:
            # Tried once, so that settings that do not fit are told before any training.
            side = size.resize
            crop(torch.zeros(channels, side, side, dtype=torch.uint8), [0.5] * DRAWS, image_size)

    def prepare(
        self,
        inputs: Inputs | Sequence[Any],
        workers: int = 1,
        progress: Progress | None = None,
        keep: bool = True,
    ) -> Inputs:
        """Pictures as a tensor (N, C, H, W), image paths or PIL images -> uint8 (N, C, S, S).

        Tensors of another dtype stay as they are; they, and without `size` all tensors, must be of
        (C, S, S) already. Raises ValueError for pictures that do not fit.
        """
        if isinstance(inputs, Taken):
            return inputs
        if not isinstance(inputs, Tensor):
            if self.size is None:
                return read_images(inputs, self.image_size, self.channels, workers, progress, keep)
            side, crop = self.image_size, self.crop
            return read_pictures(inputs, self.size, side, crop, workers, progress, keep)
        if self.size is not None:
            if inputs.dtype == torch.uint8:
                return self._pictures(inputs, self.size, workers)
            self._tell_of_crop(inputs.dtype)
        wanted = (self.channels, self.image_size, self.image_size)
        if inputs.ndim != 4 or inputs.shape[1:] != wanted:
            raise ValueError(
                f"pictures of shape {tuple(inputs.shape[1:])} do not fit an encoder of {wanted} "
                "(channels, height, width); set image_size and channels of the encoder"
            )
        if inputs.is_floating_point() and len(inputs) and 0 < float(inputs.max()) <= 1:
            warn_once(
                "the pictures hold numbers up to 1, but pixels go from 0 to 255; multiply them by "
                "255"
            )
        return inputs

    def _tell_of_crop(self, dtype: torch.dtype) -> None:
        if self.crop is not None:
            name = str(dtype).removeprefix("torch.")
            warn_once(
                f"training cuts no crops out of pictures that come as {name}; give them as uint8, "
                "or leave crop out"
            )

    def _pictures(self, pixels: Tensor, size: Size, workers: int) -> Pictures:
        """Pictures of uint8 (N, C, H, W), resized when they are taken."""
        if pixels.ndim != 4 or pixels.shape[1] != self.channels or 0 in pixels.shape[2:]:
            raise ValueError(
                f"pictures of shape {tuple(pixels.shape[1:])} do not fit an encoder of "
                f"{self.channels} channels; give (channels, height, width)"
            )
        return Pictures(
            lambda number: fitted(pixels[number], size),
            torch.arange(len(pixels)),
            self.channels,
            self.image_size,
            self.crop,
            workers,
        )

    def augment(self, x: Tensor, keys: Tensor) -> Tensor:
        """Pictures changed at random by row, if an augmentation was given."""
        return x if self.augmentation is None else self.augmentation(x, keys)


def fitted(picture: Tensor, size: Size) -> Tensor:
    """(C, H, W) uint8 at the size asked for, as `nearkin.pixels.read_resized` makes it of a
    file."""
    high, wide = picture.shape[1:]
    height = width = size.resize
    if size.keep_aspect:
        short = min(high, wide)
        height, width = size.resize * high // short, size.resize * wide // short
    return resized(picture, height, width, size.interpolation)


class Given(Encoder):
    """Any module of one's own that maps (N, ...) tensors to (N, dim), as an Encoder."""

    def __init__(self, module: nn.Module, dim: int):
        super().__init__()
        self.module, self.dim = module, dim

    def forward(self, x: Tensor) -> Tensor:
        """(N, ...) -> (N, dim)."""
        z = self.module(x)
        if not isinstance(z, Tensor):
            raise ValueError(
                f"the encoder gave {type(z).__name__}; expected a tensor (N, {self.dim})"
            )
        if z.ndim != 2 or z.shape[1] != self.dim:
            raise ValueError(f"the encoder gave shape {tuple(z.shape)}; expected (N, {self.dim})")
        return z


class Standardized(nn.Module):
    """Pixels by channel, less their mean and over their deviation, both for pixels 0..1."""

    shift: Tensor
    scale: Tensor

    def __init__(self, mean: Sequence[float], deviation: Sequence[float]):
        super().__init__()
        center, width = (torch.tensor(x, dtype=torch.float64) for x in (mean, deviation))
        self.register_buffer("shift", (-center / width).float()[:, None, None])
        self.register_buffer("scale", (1 / (255 * width)).float()[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) pixels 0..255 of any dtype -> the same shape, floating, channels last."""
        # Whole rows of pixels, in place: settings that repeat every three numbers take three times
        # as long, and a second batch of floats as much memory again.
        wide = x.shape[3]
        shift, scale = (each.flatten().repeat(wide) for each in (self.shift, self.scale))
        kind = torch.result_type(x, self.scale)
        rows = x.permute(0, 2, 3, 1).flatten(2).to(kind, copy=True).mul_(scale).add_(shift)
        return rows.unflatten(2, (wide, -1)).permute(0, 3, 1, 2)


def scaled(pictures: Tensor) -> Tensor:
    """Pixels 0..255 of any dtype -> about -2..2, as float32 (or wider, where they came wider)."""
    x = pictures if pictures.is_floating_point() else pictures.float()
    return (x - 127.5) / 63.75


def feature_norm(dim: int, wanted: bool) -> nn.Module:
    """BatchNorm without scale and bias on the features (Boudiaf et al. 2020, code), or nothing."""
    return nn.BatchNorm1d(dim, affine=False) if wanted else nn.Identity()
