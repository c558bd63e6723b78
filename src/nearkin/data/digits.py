"""The set `digits`: handwritten digits as small pictures.
Their two halves as views are in halves.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from nearkin.data.base import Splits, Table


def digits(validation: Sequence[int] = (5, 6), test: Sequence[int] = (7, 8, 9)) -> Splits:
    """Handwritten digits of 8 by 8 pixels: small, and at hand without a download.

    Source: scikit-learn's load_digits, the test part of Alpaydin and Kaynak's Optical Recognition
    of Handwritten Digits (UCI, 1998). License: CC BY 4.0. A class is a digit; 1,797 rows, 174 to
    183 a class. By default 0-4 train (901 rows), 5 and 6 validate (363), 7, 8 and 9 test (533).

    validation, test  the digits that validate and test; the others train

    Inputs are (N, 1, 8, 8) uint8, the ink of 0..16 scaled to 0..255.
    """
    from sklearn.datasets import load_digits

    images, target = load_digits(return_X_y=True)
    every = Table(
        inputs=torch.from_numpy(np.rint(images * (255 / 16)).astype(np.uint8)).view(-1, 1, 8, 8),
        label=torch.from_numpy(target.astype(np.int64)),
        names=tuple(str(digit) for digit in range(10)),
        ids=tuple(f"digit/{row}" for row in range(len(target))),
    )
    train, validated, tested = _by_digit(every, validation, test)
    return Splits(train, validated, tested, facts={"image_size": 8, "channels": 1})


def _by_digit(every: Table, validation: Sequence[int], test: Sequence[int]) -> list[Table]:
    train = [digit for digit in range(10) if digit not in {*validation, *test}]
    named = {"train": train, "validation": validation, "test": test}
    for name, chosen in named.items():
        if len(set(chosen)) < 2 or not set(chosen) <= set(range(10)):
            raise ValueError(
                f"digits needs at least two of the digits 0..9 in {name}, but it has {list(chosen)}"
            )
    return [
        every.select(torch.isin(every.label, torch.tensor(list(chosen)))).compact()
        for chosen in named.values()
    ]
