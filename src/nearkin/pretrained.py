"""Weights that others trained, read from a file into a module. Which module, and where a file comes
from, the encoders decide."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from nearkin.cache import cache_folder

_WRAPPERS = ("state_dict", "model", "model_state_dict")
_PREFIXES = ("module.", "_orig_mod.")  # of DistributedDataParallel and of torch.compile


def weights_folder() -> Path:
    """Where downloaded weights are kept: `weights` in the cache folder. It may not exist yet."""
    return cache_folder() / "weights"


def load_pretrained(
    module: nn.Module, path: str | os.PathLike[str], ignore: Sequence[str] = ()
) -> None:
    """Load the weights in a file into the module, all of them.

    path     .safetensors, or what torch.save wrote: tensors by name, also under state_dict or model
    ignore   names of layers in the file that the module does without: its classifier

    Raises FileNotFoundError, and ValueError for a file that holds more than tensors, and where a
    weight is missing, too many or of another shape.
    """
    put(module, read_weights(path), f"the weights in {os.fspath(path)}", ignore)


def read_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Name -> tensor of a .safetensors or torch file, on the CPU; no code of the file is run."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; give weights that are there")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{path} is no safetensors file ({_first_line(error)})") from None
    try:
        held = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(
            f"{path} is no torch file of tensors alone ({_first_line(error)}); save its weights as "
            ".safetensors"
        ) from None
    return _tensors(held, path)


def _first_line(error: BaseException) -> str:
    lines = str(error).splitlines() or [type(error).__name__]
    return lines[0].split(". ")[0][:120]


def _tensors(held: object, path: Path) -> dict[str, Tensor]:
    while isinstance(held, Mapping):
        inside = next((held[w] for w in _WRAPPERS if isinstance(held.get(w), Mapping)), None)
        if inside is None:
            break
        held = inside
    if not isinstance(held, Mapping) or not all(isinstance(v, Tensor) for v in held.values()):
        raise ValueError(f"{path} holds no weights by name; save module.state_dict()")
    return {_bare(str(name)): value for name, value in held.items()}


def _bare(name: str) -> str:
    found = next((prefix for prefix in _PREFIXES if name.startswith(prefix)), None)
    return name if found is None else _bare(name.removeprefix(found))


def put(
    module: nn.Module, weights: Mapping[str, Tensor], whence: str, ignore: Sequence[str] = ()
) -> None:
    """Copy weights by name into the module; raises ValueError where the two do not fit.

    whence   what the sentence of an error begins with
    """
    own = module.state_dict()
    left = tuple(f"{name}." for name in ignore)
    given = {name: value for name, value in weights.items() if not name.startswith(left)}
    # Files of old versions of torch do not count batches.
    missing = [name for name in own if name not in given and "num_batches_tracked" not in name]
    _refuse(whence, "lack", missing)
    _refuse(whence, "hold what this network has not:", [name for name in given if name not in own])
    other = [
        f"{name} {tuple(value.shape)} for {tuple(own[name].shape)}"
        for name, value in given.items()
        if value.shape != own[name].shape
    ]
    _refuse(whence, "are of another shape:", other)
    module.load_state_dict(given, strict=False)


def _refuse(whence: str, what: str, names: list[str]) -> None:
    if names:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise ValueError(
            f"{whence} {what} {', '.join(names[:3])}{more}; give those of this network"
        )
