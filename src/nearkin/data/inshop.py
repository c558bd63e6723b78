"""The set `inshop`: In-Shop Clothes Retrieval with the split of its authors."""

from __future__ import annotations

from pathlib import Path

import torch

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

OFFICIAL = {"train": (25882, 3997), "query": (14218, 3985), "gallery": (12612, 3985)}


def inshop(
    path: str | Path | None = None,
    validation: float = 0.0,
    contiguous: bool = True,
    seed: int = 0,
) -> Splits:
    """Photos of 7,982 clothes in a shop (Liu et al. 2016): queries look for theirs in a gallery.

    Source: DeepFashion, In-Shop Clothes Retrieval; `nearkin data prepare inshop` says where it is.
    License: for research only. The authors' split: 3,997 items train (25,882 images); 14,218 images
    of 3,985 other items are queries, 12,612 more of them the gallery. Published figures are of
    img.zip (256 x 256), not of img_highres.

    path        the folder with list_eval_partition.txt and img/, or one above them; default:
                data/inshop in the cache folder
    validation  share of the training items that validate, each image left out once; 0, the papers'
                protocol, holds out none
    contiguous  True: the last items in the order of their numbers validate; False: drawn at random
    seed        decides the draw of items where they are not contiguous

    Inputs are paths of color pictures; ids are paths as in the list. The test table has the bool
    columns `is_query` and `is_gallery`; no row is both. Raises FileNotFoundError where the set or a
    listed image is missing, ValueError for damaged lists; warns where the counts are not the
    official ones.
    """
    folder = set_folder("inshop", path)
    listing = find("inshop", folder, "list_eval_partition.txt")
    root = find("inshop", folder, "img").parent
    rows = _rows(listing)
    refuse_missing("inshop", root, [file for file, *_ in rows], listing.name)
    trained = [(file, item) for file, item, part in rows if part == "train"]
    tested = [row for row in rows if row[2] != "train"]
    train = image_table(root, [file for file, _ in trained], [item for _, item in trained])
    query = torch.tensor([part == "query" for *_, part in tested], dtype=torch.bool)
    test = image_table(
        root,
        [file for file, *_ in tested],
        [item for _, item, _ in tested],
        {"is_query": query, "is_gallery": ~query},
    )
    parts = {"train": train, "query": test.select(query), "gallery": test.select(~query)}
    note_counts("inshop", parts, OFFICIAL)
    train, validated = hold_out(train, validation, seed=seed, contiguous=contiguous)
    return Splits(train.compact(), validated and validated.compact(), test, facts=FACTS)


def _rows(listing: Path) -> list[tuple[str, str, str]]:
    """(file, item, train | query | gallery) of the list, as many as its first line says."""
    with listing.open(encoding="utf-8") as lines:
        said = lines.readline().strip()
    rows = read_lines(listing, (str, str, _part), header=2)
    if said != str(len(rows)):
        raise ValueError(
            f"{listing} has {len(rows)} rows, but its first line says {said!r}; get the file anew"
        )
    return rows  # type: ignore[return-value]


def _part(text: str) -> str:
    if text not in ("train", "query", "gallery"):
        raise ValueError(text)
    return text
