"""Rows of classes that can be told apart, and a bound of their information with its error: what the
probes of labels have in common."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nearkin.information.base import Information, unseen_error
from nearkin.information.given import Rows, given_labels


def classified(z: Any, labels: Any) -> tuple[Rows, np.ndarray, np.ndarray]:
    """The rows z (N, D); the places (M,) of those whose class has two rows or more; their classes
    (M,) int64 from 0.

    Raises ValueError for wrong shapes, NaN, multi-hot labels and fewer than two such classes;
    TypeError for other dtypes and for labels that are floats.
    """
    rows = z if isinstance(z, Rows) else Rows(z)
    coded = given_labels(labels, len(rows))
    if coded.hot is not None:
        raise ValueError("label information needs one class a row, but the labels are multi-hot")
    codes = coded.codes.numpy()
    used = np.flatnonzero(np.bincount(codes)[codes] >= 2)
    present, y = np.unique(codes[used], return_inverse=True)
    if len(present) < 2:
        raise ValueError(
            f"label information needs at least two classes of two rows or more, but there are "
            f"{len(present)} such classes among {len(rows)} rows; give more rows of each class"
        )
    return rows, used, y


def bound_of_labels(log_q: np.ndarray, y: np.ndarray, left_out: int) -> Information:
    """H(Y) + mean log q; log_q (N,) in nats."""
    sizes = np.bincount(y)
    gain = torch.from_numpy(log_q - np.log(sizes / len(y))[y])
    ceiling = _entropy(sizes)
    error = max(error_of_labels(gain, torch.from_numpy(y)), unseen_error(ceiling, len(y)))
    return Information.from_nats(float(gain.mean()), error, "lower", ceiling, left_out)


def _entropy(sizes: np.ndarray) -> float:
    """H(Y) in nats of classes of these sizes."""
    share = sizes / sizes.sum()
    return float(-(share * np.log(share)).sum())


def error_of_labels(each: Tensor, y: Tensor) -> float:
    """Standard error of the mean of values (N,) of rows of the classes y (N,): that over rows or
    that over classes, whichever is larger, as the rows of a class are alike."""
    off = each - each.mean()
    by_row = float(each.std()) / math.sqrt(len(each))
    sums = torch.zeros(int(y.max()) + 1, dtype=each.dtype).index_add_(0, y, off)
    classes = len(y.unique())
    by_class = math.sqrt(float(sums.square().sum()) * classes / max(classes - 1, 1)) / len(each)
    return max(by_row, by_class)
