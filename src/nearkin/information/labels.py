"""How much embeddings tell about their labels: by a probe, by neighbors, by their spread; nothing
to train with.

I(Z;Y) = H(Y) - H(Y|Z) >= H(Y) - E[-log q(Y|Z)] for every predictor q that has not seen the row,
because the cross-entropy exceeds H(Y|Z) by E KL(p(Y|Z) || q(Y|Z)) (Boudiaf et al. 2020, Lemma 2).
It is a lower bound only: classes in an XOR layout have 1 bit and a linear probe finds 0.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nearkin.information.base import Information
from nearkin.information.class_means import class_mean_log_likelihoods
from nearkin.information.classified import bound_of_labels, classified, error_of_labels
from nearkin.information.entropy import contraction
from nearkin.information.given import BLOCK, Rows
from nearkin.information.nearest import by_class_neighbors
from nearkin.information.probe import log_likelihoods
from nearkin.information.samples import check_count, check_seed

VIEWS = ("probe", "neighbors", "generative")
MOST_CLASSES = 1_000  # above it, logistic regression costs more than it tells


def label_information(
    z: Any, labels: Any, seed: int = 0, folds: int = 5, *, by: str = "probe"
) -> Information:
    """The mutual information of embeddings and labels in bits, with its ceiling H(Y).

    z       (N, D) numpy or torch, any float dtype; labels (N,) integers, texts or categories
    seed    of the folds, and of the rows and pairs that are drawn
    folds   how often a probe is fitted on the rest and scored on a fold, at least 2
    by      probe: a lower bound, H(Y) less the cross-entropy of a calibrated classifier on rows it
            has not seen. neighbors: an estimate, no bound, by the rows within the distance to the
            third neighbor of the class (Ross 2014); it also sees what is not linear. generative:
            H(Z) - H(Z|Y) by mean log distances (Boudiaf et al. 2020, eq. 6, its factor put right),
            a monitor of how classes contract: not consistent, no amount of information, and
            without a ceiling

    Up to 1,000 classes the probe is a multinomial logistic regression on standardized features; its
    strength of regularization, temperature and share of the prior are fitted within the training
    folds. Above, it is the softmax over squared distances to class means, each row taken out of its
    own mean, its sharpness and share of the prior fitted on one half of the rows and used on the
    other. Rows of
    classes with a single row cannot be predicted and are left out (`left_out`). H(Y) is the plug-in
    entropy of the rows used. The interval is normal, 1.96 standard errors of the mean over classes
    or over rows, whichever is larger, and at least what one row not seen may change, about H(Y)/N;
    it does not say how far the probe is from the truth. Above 10,000 rows the other two are means
    over 10,000 of them, compared with all.

    Never read information off a training loss instead: label smoothing, dropout and weight decay
    change it.

    Raises ValueError for wrong shapes, NaN, multi-hot labels, fewer than two classes of two rows,
    folds that are no integer of 2 or more, another `by`, a seed that is no integer of 0 or more;
    TypeError for other dtypes and for labels that are floats. Warns where all rows are the same.
    """
    if by not in VIEWS:
        raise ValueError(f"by must be one of {', '.join(VIEWS)}, not {by!r}")
    check_seed(seed)
    check_count("folds", folds, 2, "parts, of which a probe has not seen one")
    rows, used, y = classified(z, labels)
    left_out = len(rows) - len(used)
    if by != "probe":  # both say themselves where rows coincide
        found = _by_distances(by, _scaled(rows, used), torch.from_numpy(y), seed)
        return replace(found, left_out=left_out)
    _warn_of_collapse(rows, used)
    if int(y.max()) < MOST_CLASSES:
        log_q = log_likelihoods(_standardized(rows, used), y, folds, seed)
    else:
        log_q = class_mean_log_likelihoods(rows, used, y, seed)
    return bound_of_labels(log_q, y, left_out)


def _by_distances(by: str, z: Tensor, y: Tensor, seed: int) -> Information:
    """The views that train nothing: rows z (N, D), classes y (N,) of two rows or more."""
    if by == "neighbors":
        return by_class_neighbors(z, y, seed=seed, error=error_of_labels)
    each, classes = contraction(z, y, seed)
    # A pair moves the mean of its two rows: the spread counts twice.
    error = 2 * error_of_labels(each, classes)
    # No ceiling: it is no information, and H(Y) does not end it.
    return Information.from_nats(float(each.mean()), error, "neither")


def _warn_of_collapse(rows: Rows, used: np.ndarray) -> None:
    """Warn where all rows are one: they tell nothing, and a figure alone does not say why."""
    index = torch.from_numpy(used)
    first = rows.block(index[:1])
    if all(bool((rows.block(part) == first).all()) for part in index.split(BLOCK)):
        warnings.warn(
            f"all {len(used)} rows of z are the same, so that they tell nothing of the labels; the "
            "embedding has collapsed, or is not what it should be",
            UserWarning,
            stacklevel=3,
        )


def _scaled(rows: Rows, used: np.ndarray) -> Tensor:
    """(N, D) float32: the rows used over the largest entry, so that no square overflows."""
    scale, index = rows.largest or 1.0, torch.from_numpy(used)
    out = torch.empty(len(used), rows.dim)
    for start in range(0, len(used), BLOCK):
        part = slice(start, start + BLOCK)
        out[part] = (rows.block(index[part]) / scale).cpu()
    return out


def _standardized(rows: Rows, used: np.ndarray) -> np.ndarray:
    """(N, D) float32 rows, every feature of mean 0 and deviation 1; constant ones become 0."""
    index = torch.from_numpy(used)
    total, count = torch.zeros(rows.dim, dtype=torch.float64), len(used)
    largest = rows.largest or 1.0
    parts = [(rows.block(part) / largest).cpu() for part in index[: 4 * 2048].split(2048)]
    middle = torch.cat(parts).mean(0)
    spread = torch.zeros_like(total)
    out = np.empty((count, rows.dim), dtype=np.float32)
    for part in index.split(2048):
        block = (rows.block(part) / largest).cpu() - middle
        total += block.sum(0)
        spread += block.square().sum(0)
    mean = total / count
    deviation = (spread / count - mean.square()).clamp_min(0).sqrt()
    # What rounding leaves of a constant feature is no feature.
    inverse = torch.where(deviation > 1e-12, 1 / deviation.clamp_min(1e-12), 0.0)
    start = 0
    for part in index.split(2048):
        block = ((rows.block(part) / largest).cpu() - middle - mean) * inverse
        out[start : start + len(block)] = block.numpy()
        start += len(block)
    return out
