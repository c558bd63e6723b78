"""The state of a training run in one file, replaced atomically: tensors as safetensors, the rest as
its header."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

FORMAT = 1


def save(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write to a temporary name beside `path`, force it to disk, rename: a killed run has the old
    or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = aside(path)
    header = {"nearkin": json.dumps({"format": FORMAT, **facts})}
    try:
        # A copy of each tensor: safetensors refuses views that share memory.
        safetensors.torch.save_file(
            {k: v.detach().cpu().clone().contiguous() for k, v in tensors.items()},
            temporary,
            header,
        )
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # safetensors lets nobody but the owner read
        os.replace(temporary, path)
    except SafetensorError as error:
        raise OSError(f"{path} cannot be written ({error}); is there space?") from None
    finally:
        temporary.unlink(missing_ok=True)


def aside(path: Path) -> Path:
    """The temporary name under which this process writes what will be `path`."""
    return path.with_name(f".{path.name}.{os.getpid()}")


def sweep(folder: Path) -> None:
    """Remove what killed processes left in a folder under temporary names."""
    for left in folder.glob(".*.*"):
        if left.suffix[1:].isdecimal() and left.is_file():
            left.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and facts of a file written by `save`. Raises ValueError for any other file."""
    try:
        # Read at once: a run that goes on replaces the file, also between its opening and mapping.
        content = Path(path).read_bytes()
        tensors = safetensors.torch.load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        facts = json.loads(header.get("__metadata__", {}).get("nearkin", "null"))
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path} cannot be read ({error}); the file is damaged or of another kind"
        ) from None
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        seen = facts.get("format") if isinstance(facts, dict) else None
        raise ValueError(
            f"{path} has format {seen}; this version of nearkin reads format {FORMAT}: "
            "use the version that wrote it"
        )
    return tensors, facts


def pack(name: str, state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's state_dict as tensors, named under `name`, and the plain values that are
    left."""
    tensors: dict[str, Tensor] = {}
    plain: dict[str, Any] = {}
    for number, entries in state["state"].items():
        for key, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{name}/{number}/{key}"] = value
            else:
                plain[f"{number}/{key}"] = value
    return tensors, plain


def unpack(
    name: str,
    tensors: Mapping[str, Tensor],
    plain: Mapping[str, Any],
    optimizer: torch.optim.Optimizer,
) -> None:
    """Give an optimizer back what `pack` took; its parameter groups stay as the recipe made
    them."""
    entries: dict[int, dict[str, Any]] = {}
    for full, value in tensors.items():
        if full.startswith(f"{name}/"):
            number, key = full[len(name) + 1 :].split("/", 1)
            entries.setdefault(int(number), {})[key] = value
    for full, value in plain.items():
        number, key = full.split("/", 1)
        entries.setdefault(int(number), {})[key] = value
    optimizer.load_state_dict(
        {"state": entries, "param_groups": optimizer.state_dict()["param_groups"]}
    )
