"""The set `sop`: Stanford Online Products with the split of its authors."""

from __future__ import annotations

from pathlib import Path

import torch

from nearkin.data.base import Splits, Table
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

OFFICIAL = {"train": (59551, 11318), "test": (60502, 11316)}


def sop(
    path: str | Path | None = None,
    validation: float = 0.0,
    contiguous: bool = True,
    seed: int = 0,
) -> Splits:
    """Photos of 22,634 products in twelve categories (Song et al. 2016): half of them test.

    Source: Stanford Online Products, pictures of eBay; `nearkin data prepare sop` says where it is.
    License: for research only. The authors' split: 11,318 products train (59,551 images), 11,316
    test (60,502), both in all categories; 2 to 12 images a product.

    path        the folder with Ebay_train.txt, or one above it; default: data/sop in the cache
                folder
    validation  share of the training classes that validate; 0, the papers' protocol, holds out none
    contiguous  True: the last classes in the order of category and number validate; False: drawn at
                random
    seed        decides the draw of classes where they are not contiguous

    Inputs are paths of color pictures, a few of them gray; ids are paths as in the lists; the
    column `super_label` is the category, from 0. Raises FileNotFoundError where the set or a listed
    image is missing, ValueError for damaged lists; warns where the counts are not the official
    ones.
    """
    folder = set_folder("sop", path)
    parts = {part: _part(find("sop", folder, f"Ebay_{part}.txt")) for part in ("train", "test")}
    note_counts("sop", parts, OFFICIAL)
    train, validated = hold_out(parts["train"], validation, seed=seed, contiguous=contiguous)
    return Splits(train.compact(), validated and validated.compact(), parts["test"], facts=FACTS)


def _part(listing: Path) -> Table:
    rows = read_lines(listing, (int, int, int, str), header=1)
    files = [file for *_, file in rows]
    refuse_missing("sop", listing.parent, files, listing.name)
    # bicycle_final/111085122871_0.JPG of class 1 is of the class "bicycle 1".
    classes = [
        f"{file.partition('/')[0].removesuffix('_final')} {code}" for _, code, _, file in rows
    ]
    category = torch.tensor([number - 1 for _, _, number, _ in rows], dtype=torch.int64)
    return image_table(listing.parent, files, classes, {"super_label": category})
