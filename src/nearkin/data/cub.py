"""The set `cub`: CUB-200-2011 with the split of metric learning."""

from __future__ import annotations

from pathlib import Path

from nearkin.data.base import Splits
from nearkin.data.official import (
    FACTS,
    find,
    image_table,
    note_counts,
    read_lines,
    refuse_missing,
    set_folder,
)
from nearkin.data.splits import hold_out

OFFICIAL = {"train": (5864, 100), "test": (5924, 100)}
_TRAINED = 100


def cub(
    path: str | Path | None = None,
    validation: float = 0.0,
    contiguous: bool = True,
    seed: int = 0,
) -> Splits:
    """Photos of 200 kinds of birds (Wah et al. 2011): the first hundred train, the others test.

    Source: Caltech-UCSD Birds-200-2011, `nearkin data prepare cub`. License: pictures of Flickr,
    for research and education only. The split of metric learning (Song et al. 2016): classes 1-100
    train (5,864 images), 101-200 test (5,924); the archive's own train_test_split is for
    classification and is not used.

    path        the folder with images.txt, or one above it; default: data/cub in the cache folder
    validation  share of the training classes that validate; 0, the papers' protocol, holds out none
    contiguous  True: the last classes in the order of their numbers validate; False: drawn at
                random
    seed        decides the draw of classes where they are not contiguous

    Inputs are paths of color pictures, a few of them gray; ids are paths as in images.txt. Raises
    FileNotFoundError where the set or a listed image is missing, ValueError for damaged lists;
    warns where the counts are not the official ones.
    """
    listing = find("cub", set_folder("cub", path), "images.txt")
    root = listing.parent / "images"
    files = dict(read_lines(listing, (int, str)))
    classes = dict(read_lines(listing.with_name("image_class_labels.txt"), (int, int)))
    if files.keys() != classes.keys():
        raise ValueError(
            f"images.txt and image_class_labels.txt in {listing.parent} number different images "
            f"({len(files)} and {len(classes)}); extract the archive anew"
        )
    refuse_missing("cub", root, list(files.values()), "images.txt")
    parts = {}
    for part, tests in (("train", False), ("test", True)):
        chosen = [file for i, file in files.items() if (classes[i] > _TRAINED) == tests]
        # The folder of an image is its class with its number: 001.Black_footed_Albatross.
        parts[part] = image_table(root, chosen, [file.rpartition("/")[0] for file in chosen])
    note_counts("cub", parts, OFFICIAL)
    train, validated = hold_out(parts["train"], validation, seed=seed, contiguous=contiguous)
    return Splits(train.compact(), validated and validated.compact(), parts["test"], facts=FACTS)
