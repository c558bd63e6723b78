"""The set `folder`: one's own images, one sub-folder a class.
How the files are found and verified stands in images.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from nearkin.data.base import Splits, Table
from nearkin.data.images import ImageFile, find_classes, find_faults
from nearkin.data.splits import hold_out, natural, split_classes


def folder(
    path: str | Path,
    validation: float = 0.2,
    test: float = 0.25,
    seed: int = 0,
    contiguous: bool = True,
    image_size: int = 64,
) -> Splits:
    """A folder of one's own images: one sub-folder a class, or train, val and test above such.

    Source: the folder. License: that of its images. A class is a sub-folder, with the images in it
    and below it (jpg, jpeg, png, bmp, webp, gif, tif, tiff). Where every sub-folder is named train,
    test or val (valid, validation), these are the splits; train and test must then be there, and
    validation classes are taken from train where val is missing. Else the classes are split as
    `split_classes` does.

    validation  share of the classes that do not test, 0 for none; None is returned for too few
                classes
    test        share of the classes, without effect on a folder that has train and test
    seed        decides the draw of classes where they are not contiguous
    contiguous  whether validation and test are blocks in the order of names, or drawn at random
    image_size  side in pixels at which an encoder may read the pictures; only a fact that is passed
                on

    Inputs are paths, ids are paths below the folder. Every image is decoded once before training;
    what cannot be decoded is left out and stands in `left_out`. Raises FileNotFoundError,
    NotADirectoryError, PermissionError, or ValueError for a folder without classes, of one class
    only, or with a class whose images are all unreadable.
    """
    found = find_classes(path)
    faults = find_faults(path, found.files)
    _refuse_empty_classes(found.files, faults)
    files = [file for file in found.files if file.path not in faults]
    facts = {"image_size": image_size, "channels": 3}
    left_out = (*found.passed_over, *faults.items())
    if not found.by_split:
        every = _table(files)
        if every.classes == 1:
            raise ValueError(_one_class(Path(path), every.names[0]))
        parts = split_classes(
            every, validation=validation, test=test, seed=seed, contiguous=contiguous
        )
        return Splits(*parts, facts=facts, left_out=left_out)
    tables = {split: _part(files, split) for split in ("train", "validation", "test")}
    train, validated, tested = tables["train"], tables["validation"], tables["test"]
    if train is None or tested is None:
        raise ValueError(f"{path} has no images in its {'test' if train else 'train'} folder")
    if train.classes == 1:
        raise ValueError(_one_class(Path(path) / "train", train.names[0]))
    if validated is None:
        train, validated = hold_out(train, validation, seed=seed, contiguous=contiguous)
    return Splits(
        train.compact(),
        validated and validated.compact(),
        tested,
        facts=facts,
        left_out=left_out,
    )


def _part(files: Sequence[ImageFile], split: str) -> Table | None:
    chosen = [file for file in files if file.split == split]
    return _table(chosen) if chosen else None


def _table(files: Sequence[ImageFile]) -> Table:
    names = sorted({file.name for file in files}, key=natural)
    code = {name: i for i, name in enumerate(names)}
    return Table(
        inputs=tuple(file.path for file in files),
        label=torch.tensor([code[file.name] for file in files], dtype=torch.int64),
        names=tuple(names),
        ids=tuple(file.id for file in files),
    )


def _refuse_empty_classes(files: Sequence[ImageFile], faults: dict[str, str]) -> None:
    readable = {(file.split, file.name) for file in files if file.path not in faults}
    for file in files:
        if (file.split, file.name) not in readable:
            raise ValueError(
                f"no image of the class {file.name!r} can be read ({file.path}: "
                f"{faults[file.path]}); repair its images or remove its folder"
            )


def _one_class(path: Path, name: str) -> str:
    text = f"{path} holds one class only, {name!r}; retrieval needs several"
    inside = [each for each in (path / name).iterdir() if each.is_dir()]
    if len(inside) > 1:
        text += f"; {path / name} has {len(inside)} sub-folders: was it meant?"
    return text
