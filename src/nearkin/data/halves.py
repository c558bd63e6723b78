"""The set `halves`: the left and right half of a handwritten digit, two views of one thing."""

from __future__ import annotations

import numpy as np
import torch

from nearkin.data.base import Splits, Table

_TRAIN, _VALIDATION, _TEST = (0, 1, 2, 3, 4), (5, 6), (7, 8, 9)


def halves() -> Splits:
    """Left and right halves of handwritten digits: find the half that belongs to a half.

    Source: scikit-learn's load_digits (see digits). License: CC BY 4.0. Every picture of 8 by 8
    pixels makes two rows, its left half and its right half, each column doubled so that a half is 8
    by 8 again. Labels are the digits: 0-4 train (1,802 rows), 5 and 6 validate (726), 7, 8 and 9
    test (1,066).

    Columns of every table, one entry a row:
    view     int64, 0 the left half and 1 the right one
    pair     int64, the picture; the rows of a pair stand next to each other, the left half first

    Columns of validation and test, where the right halves are searched by the left ones:
    is_query, is_gallery   bool, view 0 and view 1
    relevant               int64, equal to `pair`: what is relevant to a query is the other half of
                           the same picture, not another picture of the same digit. Evaluation takes
                           this column, where a table has it, in place of the label
    """
    from sklearn.datasets import load_digits

    images, target = load_digits(return_X_y=True)
    pictures = np.rint(images * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8)
    sides = np.stack([pictures[:, :, :4], pictures[:, :, 4:]], 1)  # (N, 2, 8, 4)
    count = len(pictures)
    every = Table(
        inputs=torch.from_numpy(sides.repeat(2, axis=3).reshape(2 * count, 1, 8, 8)),
        label=torch.from_numpy(target.astype(np.int64)).repeat_interleave(2),
        names=tuple(str(digit) for digit in range(10)),
        ids=tuple(f"digit/{row}/{side}" for row in range(count) for side in ("left", "right")),
        columns={
            "view": torch.arange(2).repeat(count),
            "pair": torch.arange(count).repeat_interleave(2),
        },
    )
    return Splits(
        train=_of(every, _TRAIN),
        validation=_searched(_of(every, _VALIDATION)),
        test=_searched(_of(every, _TEST)),
        facts={"image_size": 8, "channels": 1},
    )


def _of(every: Table, digits: tuple[int, ...]) -> Table:
    return every.select(torch.isin(every.label, torch.tensor(digits))).compact()


def _searched(table: Table) -> Table:
    view = table["view"]
    return table.with_columns(is_query=view == 0, is_gallery=view == 1, relevant=table["pair"])
