"""The set `npz`: anybody's features or small pictures, from one .npz file without pickle."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nearkin.data.base import Splits, Table
from nearkin.data.splits import hold_out, split_classes

_INPUTS = ("inputs", "embeddings", "images")
_SPLITS = {
    "0": "train",
    "1": "validation",
    "2": "test",
    "train": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}


def npz(
    path: str | Path,
    validation: float = 0.2,
    test: float = 0.25,
    seed: int = 0,
    contiguous: bool = True,
) -> Splits:
    """Arrays in a .npz file: features or small pictures with labels.

    Source: the file. License: that of its data. A class is a value of `labels`. Arrays, one entry a
    row:

    inputs      (or embeddings, or images) numbers (N, ...), read as float32; or pictures of uint8,
                (N, H, W), (N, C, H, W) or (N, H, W, C) with 1 or 3 channels
    labels      (N,) integers or texts
    split       optional (N,): 0, 1, 2 or train, validation, test. Without 1, validation classes are
                taken from train; without the array, the classes are split as `split_classes` does
    groups      optional (N,) integers or texts; becomes the column `group`
    super_labels  optional (N,) integers or texts: what stands above the classes (makes, families);
                becomes the column `super_label`, by which a contiguous block is ordered first
    is_query, is_gallery   optional (N,) bool columns
    ids         optional (N,) texts or integers that name the rows; row numbers by default

    validation, test, seed, contiguous  as in `folder`

    Raises FileNotFoundError or IsADirectoryError; ValueError for a file that is not .npz, missing
    arrays, lengths that differ, NaN or infinite inputs, and arrays of Python objects.
    """
    arrays = read_arrays(path)
    every = _table(arrays, Path(path))
    if every.classes < 2:
        raise ValueError(
            f"{path} holds one class only, {every.names[0]!r}; retrieval needs several"
        )
    facts = _facts(every.inputs) if isinstance(every.inputs, Tensor) else {}
    if "split" not in arrays:
        parts = split_classes(
            every, validation=validation, test=test, seed=seed, contiguous=contiguous
        )
        return Splits(*parts, facts=facts)
    rows = _rows_by_split(arrays["split"], path)
    train, tested = every.select(rows["train"]), every.select(rows["test"])
    if train.classes < 2:
        raise ValueError(
            f"{path} trains on one class only, {min(train.class_names)!r}; it needs several"
        )
    validated = every.select(rows["validation"]) if "validation" in rows else None
    if validated is None:
        train, validated = hold_out(train, validation, seed=seed, contiguous=contiguous)
    return Splits(train.compact(), validated and validated.compact(), tested.compact(), facts=facts)


def read_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """All arrays of a .npz file, as they are.

    Raises as `npz` does where the file is not one, or holds objects.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; give a .npz file, or use the data set folder")
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}; give a .npz file with inputs and labels")
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is not a .npz file; write one with numpy.savez")
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            return {name: _member(file, name, path) for name in file.files}
    except (OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} is damaged ({error}); write it anew") from error


def _member(file: Mapping[str, np.ndarray], name: str, path: Path) -> np.ndarray:
    try:
        return file[name]
    except ValueError as error:
        if "allow_pickle" not in str(error):
            raise ValueError(f"{name!r} in {path} is damaged ({error}); write it anew") from error
        raise ValueError(
            f"{path} holds Python objects in {name!r}, which could run code when read; "
            f"save it as an array of numbers or texts"
        ) from None


def _table(arrays: Mapping[str, np.ndarray], path: Path) -> Table:
    given = next((name for name in _INPUTS if name in arrays), None)
    if given is None or "labels" not in arrays:
        need = "labels" if given else "inputs (or embeddings, or images)"
        there = ", ".join(sorted(arrays)) or "nothing"
        raise ValueError(f"{path} has no array {need}; it holds {there}")
    lengths = {
        name: len(arrays[name]) if arrays[name].ndim else 0
        for name in (
            given,
            "labels",
            "split",
            "groups",
            "super_labels",
            "is_query",
            "is_gallery",
            "ids",
        )
        if name in arrays
    }
    if len(set(lengths.values())) > 1 or not lengths["labels"]:
        said = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise ValueError(
            f"the arrays of {path} need one entry a row each; their lengths are {said}"
        )
    names, label = _codes(arrays["labels"], "labels", path)
    ids = arrays.get("ids", np.arange(len(label)))
    return Table(
        inputs=_inputs(arrays[given], given, path),
        label=label,
        names=names,
        ids=tuple(str(each) for each in _texts(ids).tolist()),
        columns=_columns(arrays, path),
    )


def _inputs(array: np.ndarray, name: str, path: Path) -> Tensor:
    if array.dtype.kind not in "fiub" or array.ndim < 2:
        raise ValueError(
            f"{name} in {path} must be numbers of shape (N, ...), but it is {array.dtype} of "
            f"{array.shape}"
        )
    if array.dtype == np.uint8 and array.ndim in (3, 4):
        return _pictures(array, name, path)
    if not np.isfinite(array).all():
        row = int(np.argwhere(~np.isfinite(array))[0, 0])
        raise ValueError(f"{name} in {path} is NaN or infinite in row {row}; remove or repair it")
    return torch.from_numpy(array.astype(np.float32))


def _pictures(array: np.ndarray, name: str, path: Path) -> Tensor:
    """(N, C, H, W) of pictures in any of the three layouts."""
    if array.ndim == 3:
        array = array[:, None]
    elif array.shape[1] not in (1, 3):
        if array.shape[3] not in (1, 3):
            raise ValueError(
                f"{name} in {path} needs 1 or 3 channels, in the second or last place, "
                f"but it is {array.shape}"
            )
        array = array.transpose(0, 3, 1, 2)
    return torch.from_numpy(np.ascontiguousarray(array))


def _facts(inputs: Tensor) -> dict[str, int]:
    if inputs.dtype != torch.uint8:
        return {"features": inputs.shape[1]} if inputs.ndim == 2 else {}
    facts = {"channels": inputs.shape[1]}
    # One number can only name the side of a square.
    return facts | ({"image_size": inputs.shape[2]} if inputs.shape[2] == inputs.shape[3] else {})


def _columns(arrays: Mapping[str, np.ndarray], path: Path) -> dict[str, Tensor]:
    columns = {}
    for name, column in (("groups", "group"), ("super_labels", "super_label")):
        if name in arrays:
            columns[column] = _codes(arrays[name], name, path)[1]
    for name in ("is_query", "is_gallery"):
        if name in arrays:
            if not np.isin(arrays[name], (0, 1)).all():
                raise ValueError(f"{name} in {path} must be true or false in every row")
            columns[name] = torch.from_numpy(arrays[name].astype(bool))
    return columns


def _codes(array: np.ndarray, name: str, path: Path) -> tuple[tuple[str, ...], Tensor]:
    """The distinct values as text, and the code of each row."""
    if array.ndim != 1 or array.dtype.kind not in "iubUS":
        raise ValueError(
            f"{name} in {path} must be integers or texts of shape (N,), "
            f"but it is {array.dtype} of {array.shape}"
        )
    values, code = np.unique(_texts(array), return_inverse=True)
    return tuple(str(value) for value in values.tolist()), torch.from_numpy(code.astype(np.int64))


def _texts(array: np.ndarray) -> np.ndarray:
    return np.char.decode(array, "utf-8") if array.dtype.kind == "S" else array


def _rows_by_split(split: np.ndarray, path: str | Path) -> dict[str, Tensor]:
    said = [str(value).lower() for value in _texts(split).tolist()]
    unknown = sorted(set(said) - set(_SPLITS))
    if unknown:
        raise ValueError(
            f"split in {path} holds {unknown[0]!r}; expected 0, 1, 2 or train, validation, test"
        )
    names = np.array([_SPLITS[value] for value in said])
    rows = {str(name): torch.from_numpy(names == name) for name in np.unique(names)}
    for name in ("train", "test"):
        if name not in rows:
            raise ValueError(
                f"split in {path} has no row of {name}; it needs rows of train and test"
            )
    return rows
