"""Model: a trained encoder with its preprocessing, saved without pickles and loaded by
`nearkin.load`."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from nearkin import checkpoint
from nearkin.config import build
from nearkin.encoders.base import Encoder, Given
from nearkin.encoders.head import Head
from nearkin.extraction import extract
from nearkin.run_folder import FORMAT, RunFolder, RunFolderError
from nearkin.runtime import autocast, choose_device

if TYPE_CHECKING:
    from nearkin.search import Index

WEIGHTS, CARD = "encoder.safetensors", "model.json"
PRECISIONS = ("float32", "bfloat16")
CHUNK = 1024  # items that are decoded and embedded at a time


class Model:
    """A trained encoder. `embed` maps items to (N, D) float32.

    encoder     the module, in evaluation mode
    card        what model.json says: encoder, facts, precision, names of the training classes
    precision   float32 or bfloat16, in which it embeds; as in training unless it is set. Once set,
                it holds for a frozen trunk below a head too
    """

    def __init__(self, encoder: Encoder, card: Mapping[str, Any], device: torch.device):
        self.encoder, self.card, self.device = encoder.to(device).eval(), dict(card), device
        self._precision: str = self.card.get("precision", "float32")

    @property
    def precision(self) -> str:
        """float32 or bfloat16; raises ValueError where it is set to another."""
        return self._precision

    @precision.setter
    def precision(self, precision: Literal["float32", "bfloat16"]) -> None:
        """Also of every frozen trunk inside."""
        if precision not in PRECISIONS:
            raise ValueError(f"precision is {' or '.join(PRECISIONS)}, not {precision!r}")
        self._precision = precision
        for part in self.encoder.modules():
            if isinstance(part, Head):
                part.precision = precision

    @property
    def dim(self) -> int:
        """Dimensions of an embedding."""
        return self.encoder.dim

    def embed(
        self,
        items: Any,
        *,
        workers: int = 2,
        progress: Callable[[int, int], None] | None = None,
    ) -> np.ndarray:
        """(N, D) float32 embeddings of N items, not normalized.

        items      image paths or PIL images; one of them; a folder of images (all below it,
                   sorted); or an array or tensor of what the encoder takes (pixels 0..255 or
                   feature rows)
        workers    threads that decode images
        progress   told of (done, N) items, now and then

        Raises ValueError for items that cannot be read or do not fit the encoder, and where an
        embedding is no number.
        """
        inputs = as_inputs(items)
        parts = []
        for start in range(0, max(len(inputs), 1), CHUNK):
            part = self.encoder.prepare(inputs[start : start + CHUNK], workers, keep=False)
            if isinstance(part, Tensor) and part.is_floating_point():
                part = part.to(self._dtype())  # numpy's own float64 meets float32 weights
            z = extract(self.encoder, self._embed, part, self.device, self.precision)
            _check_numbers(z, start)
            parts.append(z.numpy().astype(np.float32))
            if progress is not None:
                progress(start + len(z), len(inputs))
        return np.concatenate(parts)

    def index(
        self,
        items: Any,
        *,
        ids: Sequence[Any] | None = None,
        labels: Sequence[Any] | None = None,
        closeness: str = "cosine",
        workers: int = 2,
        progress: Callable[[int, int], None] | None = None,
    ) -> Index:
        """An exact index of N items, that is searched with items of the same kind.

        items      as `embed` takes them; they are embedded block by block
        ids        (N,) texts or integers; default: the paths, where items are paths, else 0..N-1
        labels     (N,) texts or integers
        closeness  cosine, euclidean or inner

        Raises as `embed` and `nearkin.Index.add` do.
        """
        from nearkin.search import Index

        inputs = as_inputs(items)
        if ids is None and not isinstance(inputs, Tensor):
            paths = [os.fspath(x) for x in inputs if isinstance(x, (str, os.PathLike))]
            ids = paths if len(paths) == len(inputs) else None
        index = Index(closeness, embed=self.embed)
        index.add(self.embed(inputs, workers=workers, progress=progress), ids, labels)
        return index

    def _dtype(self) -> torch.dtype:
        kinds = [p.dtype for p in self.encoder.parameters() if p.is_floating_point()]
        return kinds[0] if kinds else torch.float32

    def _embed(self, x: Tensor) -> Tensor:
        with autocast(self.device, self.precision):
            return self.encoder(x).float()

    def __repr__(self) -> str:
        return f"Model({type(self.encoder).__name__}, dim={self.dim}, device={self.device})"


def _check_numbers(z: Tensor, start: int) -> None:
    broken = (~z.isfinite()).any(1).nonzero()[:, 0]
    if len(broken):
        raise ValueError(
            f"the embedding of item {start + int(broken[0])} is NaN or infinite; look at its input"
        )


def as_inputs(items: Any) -> Tensor | Sequence[Any]:
    """Items of a person, in any of the forms that `Model.embed` names, as what an encoder
    prepares."""
    if isinstance(items, (str, os.PathLike)):
        return image_files(Path(items))
    if isinstance(items, (Tensor, np.ndarray)) and (items.ndim == 0 or not len(items)):
        raise ValueError("there are no items to embed; give at least one, in the first axis")
    if isinstance(items, Tensor):
        return items
    if isinstance(items, np.ndarray) and items.dtype.kind in "biuf":
        return torch.from_numpy(np.ascontiguousarray(items))
    if hasattr(items, "convert"):  # one Pillow image
        return [items]
    if not isinstance(items, Iterable):
        raise ValueError(f"items to embed are images or an array, not {type(items).__name__}")
    listed = list(items)
    if not listed:
        raise ValueError("there are no items to embed; give at least one")
    if all(isinstance(item, (Tensor, np.ndarray)) for item in listed):
        if len({tuple(item.shape) for item in listed}) > 1:
            raise ValueError("arrays to embed together must have one shape")
        return torch.stack([torch.as_tensor(item) for item in listed])
    return listed


def image_files(path: Path) -> list[str]:
    """One image, or all images below a folder, sorted."""
    from nearkin.data.images import find_images

    if path.is_file():
        return [str(path)]
    if not path.is_dir():
        raise FileNotFoundError(f"there is no file or folder {path}")
    found = [str(p) for p in find_images(path)]
    if not found:
        raise ValueError(f"the folder {path} holds no images")
    return found


def save(
    folder: RunFolder,
    encoder: Encoder,
    objective: nn.Module,
    node: Mapping[str, Any] | None,
    facts: Mapping[str, int],
    precision: str,
    classes: Sequence[str],
) -> None:
    """Write model/: the encoder's and the objective's weights as safetensors, and the card."""
    inside = folder.path / "model"
    checkpoint.save(inside / WEIGHTS, encoder.state_dict(), {})
    checkpoint.save(inside / "objective.safetensors", objective.state_dict(), {})
    card = {
        "format": FORMAT,
        "encoder": None if node is None else encoder.saved_node(node),
        "facts": dict(facts),
        "dim": encoder.dim,
        "precision": precision,
        "classes": list(classes),
    }
    folder.write_text(f"model/{CARD}", json.dumps(card, indent=1) + "\n")


def load(
    run: str | os.PathLike[str],
    *,
    encoder: nn.Module | None = None,
    device: str = "auto",
    trust_code: bool = False,
) -> Model:
    """The trained model of a run folder.

    encoder      the module, where the run was trained with one of your own
    trust_code   whether the recipe may import a module of your own (`package.module:Name`)

    Raises ValueError (RunFolderError) for a folder that is no finished run or of another format.
    """
    folder = RunFolder(run)
    folder.check_format()
    inside = folder.path / "model"
    if not (inside / CARD).is_file():
        raise RunFolderError(f"the run in {folder.path} is not finished; end it with --resume")
    card = folder.json(f"model/{CARD}")
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        raise RunFolderError(f"{inside / CARD} is damaged, or of another version of nearkin")
    built = _built(card, encoder, trust_code)
    weights(built, inside / WEIGHTS)
    return Model(built, card, choose_device(device))


def _built(card: Mapping[str, Any], encoder: nn.Module | None, trust_code: bool) -> Encoder:
    if encoder is not None:
        return encoder if isinstance(encoder, Encoder) else Given(encoder, card["dim"])
    if card["encoder"] is None:
        raise ValueError(
            "this run was trained with an encoder given in Python; pass it: nearkin.load(run, "
            "encoder=...)"
        )
    # When the run built its encoder, its width was not known: `dim: null` of a trunk means its own.
    facts = {name: fact for name, fact in card["facts"].items() if name not in ("dim", "classes")}
    return build(card["encoder"], "encoder", facts, "encoder", trust_code=trust_code)


def weights(module: nn.Module, path: Path) -> None:
    """Load weights saved by `save` into a module of the same shape; raises ValueError where they
    differ."""
    try:
        module.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        first = " ".join(str(error).split())[:300]
        raise ValueError(f"the weights in {path} do not fit this encoder: {first}") from None
