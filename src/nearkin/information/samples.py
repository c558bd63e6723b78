"""Paired samples as estimators of mutual information take them: checked, without constant columns,
standardized. Labels stay classes and never become numbers."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nearkin.information.given import Rows, given_labels


@dataclass(frozen=True, eq=False)
class Samples:
    """N pairs drawn independently from a joint distribution.

    x         (N, Dx) float64, every column of mean 0 and deviation 1
    y         (N, Dy) float64 likewise; None where classes were given
    classes   (N,) int64 from 0; None where y are numbers
    scales    (Dy,) float64: the deviations of y as given, in its units
    seed      of whatever an estimator draws
    """

    x: Tensor
    y: Tensor | None
    classes: Tensor | None = None
    scales: Tensor | None = None
    seed: int = 0

    def __len__(self) -> int:
        return len(self.x)

    def numbers(self, name: str) -> tuple[Tensor, Tensor]:
        """x and y for an estimator between numbers; raises TypeError where y are classes."""
        if self.y is None:
            raise TypeError(
                f"y holds classes, but {name} is between numbers; use 'mixed' or "
                "nk.label_information for classes, or convert y to floats if they are quantities"
            )
        return self.x, self.y

    def labelled(self, name: str) -> tuple[Tensor, Tensor]:
        """x and the classes for an estimator of labels; raises TypeError where y are numbers."""
        if self.classes is None:
            raise TypeError(
                f"y holds floating-point numbers, but {name} needs classes (integers or texts); "
                "use 'ksg' for a continuous y"
            )
        return self.x, self.classes

    def at(self, rows: Tensor) -> Samples:
        """Some of the pairs, as they are standardized here."""
        y = None if self.y is None else self.y[rows]
        classes = None if self.classes is None else self.classes[rows]
        return Samples(self.x[rows], y, classes, self.scales, self.seed)

    def generator(self) -> torch.Generator:
        """A fresh generator by the seed."""
        return torch.Generator().manual_seed(self.seed)


def samples(x: Any, y: Any, seed: int = 0) -> Samples:
    """Check and standardize N pairs.

    x   (N,) or (N, Dx) floats, numpy or torch
    y   (N,) or (N, Dy) floats; or (N,) classes: integers, truth values or texts

    Raises ValueError for different lengths, NaN, or no column that varies; TypeError for an x that
    is no float. Constant columns are left out with a warning: they tell nothing. Warns of pairs
    that are copies of others, which are no independent draws.
    """
    check_seed(seed)
    first = _matrix(x, "x")
    if len(first) < 2:
        raise ValueError(f"x has {len(first)} row, but pairs are compared; give two or more")
    if _is_float(y):
        second = _matrix(y, "y")
        _check_lengths(len(first), len(second))
        rows, _ = _standardized(first, "x")
        partners, scales = _standardized(second, "y")
        _warn_of_copies(rows, partners)
        return Samples(rows, partners, None, scales, seed)
    if hasattr(y, "__len__"):
        _check_lengths(len(first), len(y))
    coded = given_labels(y, len(first), "y", "x")
    if coded.hot is not None:
        raise ValueError("y must be one class a row, but it is multi-hot")
    rows, _ = _standardized(first, "x")
    _warn_of_copies(rows, coded.codes[:, None].double())
    return Samples(rows, None, coded.codes, None, seed)


def check_count(name: str, value: Any, least: int, of: str) -> None:
    """Raise ValueError where a setting that counts is no integer of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ValueError(
            f"{name} counts {of}, so it must be an integer of {least} or more, not {value!r}"
        )


def check_number(name: str, value: Any) -> None:
    """Raise ValueError where a setting is no number."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise ValueError(f"{name} must be a number, not {value!r:.60}")


def check_seed(seed: Any) -> None:
    """Raise ValueError where a seed is no integer of 0 or more."""
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise ValueError(f"seed must be an integer of 0 or more, not {seed!r:.60}")


def _is_float(values: Any) -> bool:
    if isinstance(values, Tensor):
        return values.dtype.is_floating_point
    if isinstance(values, list | tuple):
        return np.asarray(values).dtype.kind == "f"
    return getattr(getattr(values, "dtype", None), "kind", "") == "f"


def _matrix(values: Any, name: str) -> Rows:
    if not isinstance(values, Tensor):
        values = np.asarray(values)
    return Rows(values[:, None] if values.ndim == 1 else values, name)


def _check_lengths(rows: int, partners: int) -> None:
    if rows != partners:
        raise ValueError(
            f"x has {rows} rows but y has {partners}; they are paired row by row, so give as many"
        )


def _warn_of_copies(x: Tensor, y: Tensor) -> None:
    copies = len(x) - len(np.unique(torch.cat((x, y), 1).numpy(), axis=0))
    if copies:
        warnings.warn(
            f"{copies} of {len(x)} pairs are copies of others, but pairs must be independent "
            "draws: copied ones make estimates wrong and intervals too narrow. Remove them, unless "
            "the data are discrete",
            UserWarning,
            stacklevel=3,
        )


def _standardized(given: Rows, name: str) -> tuple[Tensor, Tensor]:
    """(N, D) without constant columns, and the deviations of the columns kept."""
    rows = torch.cat([block.cpu() for block in given.blocks()])
    largest = rows.abs().amax(0).clamp_min(1e-300)  # squares of large entries would overflow
    scaled = rows / largest
    centered = scaled - scaled.mean(0)
    deviation = centered.square().mean(0).sqrt()
    varies = deviation > 1e-12
    constant = (~varies).nonzero()[:, 0].tolist()
    if len(constant) == rows.shape[1]:
        raise ValueError(f"{name} is constant, so it can tell nothing; look at how it was made")
    if constant:
        warnings.warn(
            f"{name} has {len(constant)} constant columns (first: column {constant[0]}), which "
            "tell nothing; they are left out",
            UserWarning,
            stacklevel=4,
        )
    return centered[:, varies] / deviation[varies], (deviation * largest)[varies]
