"""The set `halves`: the left and the right half of each handwritten digit, two views of one
thing."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from nearkin.data.base import Splits, Table


def halves(validation: int = 300, test: int = 497, seed: int = 0) -> Splits:
    """Left and right halves of handwritten digits: find the half that belongs to a half.

    Source: scikit-learn's load_digits (see digits). License: CC BY 4.0. Every picture of 8 by 8
    pixels makes two rows, its left half and its right half, each column doubled so that a half is
    8 by 8 again. A class is a picture: 1,797 classes of two rows, of which `validation` and `test`
    are held out by `seed`, so that retrieval is measured on pictures never seen.

    Columns of every table, one entry a row:
    view     int64, 0 the left half and 1 the right one
    pair     int64, the picture; the rows of a pair stand next to each other, the left half first

    Columns of validation and test, where the right halves are searched by the left ones:
    is_query, is_gallery   bool, view 0 and view 1

    Raises ValueError where fewer than two pictures would be left for a split.
    """
    from sklearn.datasets import load_digits

    source: Any = load_digits()
    pictures = np.rint(source.images * (255 / 16)).astype(np.uint8)  # (N, 8, 8)
    count = len(pictures)
    train = count - validation - test
    if min(train, validation, test) < 2:
        raise ValueError(
            f"halves has {count} pictures, and {validation} for validation with {test} for test "
            f"leave {train} to train; each split needs at least 2"
        )
    every = _table(pictures, source.target)
    parts = np.split(np.random.default_rng(seed).permutation(count), [train, train + validation])
    first, second, third = (every.select(_rows_of(part)).compact() for part in parts)
    return Splits(
        train=first,
        validation=_searched(second),
        test=_searched(third),
        facts={"image_size": 8, "channels": 1},
    )


def _table(pictures: np.ndarray, digits: np.ndarray) -> Table:
    count = len(pictures)
    sides = np.stack([pictures[:, :, :4], pictures[:, :, 4:]], 1)  # (N, 2, 8, 4)
    picture = torch.arange(count).repeat_interleave(2)
    return Table(
        inputs=torch.from_numpy(sides.repeat(2, axis=3).reshape(2 * count, 1, 8, 8)),
        label=picture,
        names=tuple(f"picture {row}, a {digit}" for row, digit in enumerate(digits.tolist())),
        ids=tuple(f"digit/{row}/{side}" for row in range(count) for side in ("left", "right")),
        columns={"view": torch.arange(2).repeat(count), "pair": picture},
    )


def _rows_of(pictures: np.ndarray) -> Tensor:
    rows = np.sort(pictures)
    return torch.from_numpy(np.stack([2 * rows, 2 * rows + 1], 1).ravel())


def _searched(table: Table) -> Table:
    view = table["view"]
    return table.with_columns(is_query=view == 0, is_gallery=view == 1)
