"""The set `omniglot`: handwritten characters of fifty alphabets."""

from __future__ import annotations

from pathlib import Path

import torch

from nearkin.data.base import Splits, Table
from nearkin.data.images import find_images
from nearkin.data.official import find, image_table, note_counts, set_folder
from nearkin.data.splits import hold_out

OFFICIAL = {"train": (19280, 964), "test": (13180, 659)}


def omniglot(
    path: str | Path | None = None,
    validation: float = 0.2,
    contiguous: bool = True,
    seed: int = 0,
) -> Splits:
    """Characters of fifty alphabets, each drawn by twenty people (Lake et al. 2015): 20 test.

    Source: Omniglot, `nearkin data prepare omniglot`; the layout is that of torchvision. License:
    MIT. The authors' split: 30 alphabets of images_background train (964 characters, 19,280
    drawings), 20 of images_evaluation test (659 characters, 13,180 drawings).

    path        the folder with images_background and images_evaluation, or one above them; default:
                data/omniglot in the cache folder
    validation  share of the training characters that validate, 0 for none
    contiguous  True: whole alphabets validate, the last ones that reach the share; False:
                characters drawn at random, with siblings in training
    seed        decides the draw of characters where they are not contiguous

    Inputs are paths of gray pictures of 105 x 105 pixels; ids are paths below the parts; the column
    `super_label` is the alphabet. Raises FileNotFoundError where the set is missing; warns where
    the counts are not the official ones.
    """
    folder = set_folder("omniglot", path)
    parts = {
        "train": _part(find("omniglot", folder, "images_background")),
        "test": _part(find("omniglot", folder, "images_evaluation")),
    }
    note_counts("omniglot", parts, OFFICIAL)
    train, validated = hold_out(
        parts["train"], validation, seed=seed, contiguous=contiguous, whole="super_label"
    )
    facts = {"channels": 1, "image_size": 28}
    return Splits(train.compact(), validated and validated.compact(), parts["test"], facts=facts)


def _part(root: Path) -> Table:
    """Alphabet/character01/0001_01.png and so on."""
    files = [Path(file).relative_to(root).as_posix() for file in find_images(root)]
    if not files:
        raise FileNotFoundError(f"{root} holds no images; extract {root.name}.zip there")
    alphabets = [file.partition("/")[0] for file in files]
    code = {name: i for i, name in enumerate(sorted(set(alphabets)))}
    alphabet = torch.tensor([code[name] for name in alphabets], dtype=torch.int64)
    classes = [file.rpartition("/")[0] for file in files]
    return image_table(root, files, classes, {"super_label": alphabet})
