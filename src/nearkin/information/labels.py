"""How much embeddings tell about their labels: by a probe, by neighbors, by their spread; nothing
to train with.

I(Z;Y) = H(Y) - H(Y|Z) >= H(Y) - E[-log q(Y|Z)] for every predictor q that has not seen the row,
because the cross-entropy exceeds H(Y|Z) by E KL(p(Y|Z) || q(Y|Z)) (Boudiaf et al. 2020, Lemma 2).
It is a lower bound only: classes in an XOR layout have 1 bit and a linear probe finds 0.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nearkin.information.base import Information, unseen_error
from nearkin.information.entropy import contraction
from nearkin.information.given import BLOCK, Rows, given_labels
from nearkin.information.nearest import by_class_neighbors
from nearkin.information.probe import log_likelihoods

VIEWS = ("probe", "neighbors", "generative")
MOST_CLASSES = 1_000  # above it, logistic regression costs more than it tells
TUNING_ROWS = 1_024  # rows that the temperature of class means is fitted on
_ENTRIES = 1 << 22  # rows x classes held at a time
_MANY = 1 << 26  # rows x classes above which float32 takes half the time


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
    own mean, with one temperature fitted on one half of the rows and used on the other. Rows of
    classes with a single row cannot be predicted and are left out (`left_out`). H(Y) is the plug-in
    entropy of the rows used. The interval is normal, 1.96 standard errors of the mean over classes
    or over rows, whichever is larger, and at least what one row not seen may change, about H(Y)/N;
    it does not say how far the probe is from the truth. Above 10,000 rows the other two are means
    over 10,000 of them, compared with all.

    Never read information off a training loss instead: label smoothing, dropout and weight decay
    change it.

    Raises ValueError for wrong shapes, NaN, multi-hot labels, fewer than two classes of two rows,
    folds < 2, another `by`; TypeError for other dtypes and for labels that are floats.
    """
    if by not in VIEWS:
        raise ValueError(f"by must be one of {', '.join(VIEWS)}, not {by!r}")
    rows = z if isinstance(z, Rows) else Rows(z)
    coded = given_labels(labels, len(rows))
    if coded.hot is not None:
        raise ValueError("label information needs one class a row, but the labels are multi-hot")
    if folds < 2:
        raise ValueError(
            f"folds must be 2 or more, not {folds}; a probe is scored on what it did not see"
        )
    codes = coded.codes.numpy()
    used = np.flatnonzero(np.bincount(codes)[codes] >= 2)
    present, y = np.unique(codes[used], return_inverse=True)
    if len(present) < 2:
        raise ValueError(
            f"label information needs at least two classes of two rows or more, but there are "
            f"{len(present)} such classes among {len(rows)} rows"
        )
    left_out = len(rows) - len(used)
    if by != "probe":
        found = _by_distances(by, _scaled(rows, used), torch.from_numpy(y), seed)
        return replace(found, left_out=left_out)
    if len(present) <= MOST_CLASSES:
        log_q = log_likelihoods(_standardized(rows, used), y, folds, seed)
    else:
        log_q = class_mean_log_likelihoods(rows, used, y, seed)
    return _bound(log_q, y, left_out)


def _by_distances(by: str, z: Tensor, y: Tensor, seed: int) -> Information:
    """The views that train nothing: rows z (N, D), classes y (N,) of two rows or more."""
    if by == "neighbors":
        return by_class_neighbors(z, y, seed=seed, error=_error)
    each, classes = contraction(z, y, seed)
    # A pair moves the mean of its two rows: the spread counts twice.
    error = 2 * _error(each, classes)
    # No ceiling: it is no information, and H(Y) does not end it.
    return Information.from_nats(float(each.mean()), error, "neither")


def _bound(log_q: np.ndarray, y: np.ndarray, left_out: int) -> Information:
    """H(Y) + mean log q; log_q (N,) in nats."""
    sizes = np.bincount(y)
    gain = torch.from_numpy(log_q - np.log(sizes / len(y))[y])
    ceiling = _entropy(sizes)
    error = max(_error(gain, torch.from_numpy(y)), unseen_error(ceiling, len(y)))
    return Information.from_nats(float(gain.mean()), error, "lower", ceiling, left_out)


def _entropy(sizes: np.ndarray) -> float:
    """H(Y) in nats of classes of these sizes."""
    share = sizes / sizes.sum()
    return float(-(share * np.log(share)).sum())


def _error(each: Tensor, y: Tensor) -> float:
    """Standard error of the mean of values (N,) of rows of the classes y (N,): that over rows or
    that over classes, whichever is larger, as the rows of a class are alike."""
    off = each - each.mean()
    by_row = float(each.std()) / math.sqrt(len(each))
    sums = torch.zeros(int(y.max()) + 1, dtype=each.dtype).index_add_(0, y, off)
    classes = len(y.unique())
    by_class = math.sqrt(float(sums.square().sum()) * classes / max(classes - 1, 1)) / len(each)
    return max(by_row, by_class)


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


def class_mean_log_likelihoods(
    rows: Rows, used: np.ndarray, y: np.ndarray, seed: int
) -> np.ndarray:
    """(N,) log q(y|z) in nats of q ∝ n_c exp(-β |z - mean of c without the row|²).

    β is fitted on up to 1,024 rows of one half and scores the other half, both ways. Time N x C x
    D; above 2²⁶ pairs of a row and a class the products are in float32.
    """
    index, label = torch.from_numpy(used), torch.from_numpy(y)
    sizes = torch.bincount(label).double()
    centers = torch.zeros(len(sizes), rows.dim, dtype=torch.float64)
    scale = rows.largest or 1.0
    for part, classes in zip(index.split(2048), label.split(2048), strict=True):
        centers.index_add_(0, classes, rows.block(part).cpu() / scale)
    centers /= sizes[:, None]
    middle = centers.mean(0)
    centers -= middle
    wide = torch.float32 if len(index) * len(sizes) > _MANY else torch.float64
    turned, squares = centers.T.to(wide), centers.square().sum(1).to(wide)

    def distances(at: Tensor) -> Tensor:
        """(B, C) squared distances of the rows at places `at` to the means without themselves."""
        x = rows.block(index[at]).cpu() / scale - middle
        squared = torch.addmm(squares, x.to(wide), turned, alpha=-2)
        squared += x.square().sum(1)[:, None]
        own, n = label[at], sizes[label[at]]
        alone = (x - centers[own]).square().sum(1) * (n / (n - 1)) ** 2
        squared[torch.arange(len(at)), own] = alone.to(wide)
        return squared.clamp_min_(0)

    generator = torch.Generator().manual_seed(seed)
    halves = torch.randperm(len(index), generator=generator).tensor_split(2)
    log_q = torch.empty(len(index), dtype=torch.float64)
    at_once, log_sizes = max(1, _ENTRIES // len(sizes)), sizes.log().to(wide)
    for fitted, scored in (halves, halves[::-1]):
        tuning = fitted[: min(TUNING_ROWS, 4 * at_once)]
        beta = _inverse_temperature(distances(tuning), label[tuning], log_sizes)
        for at in scored.split(at_once):
            log_q[at] = _log_softmax_at(distances(at), label[at], log_sizes, beta).double()
    return log_q.numpy()


def _log_softmax_at(squared: Tensor, label: Tensor, log_sizes: Tensor, beta: float) -> Tensor:
    logits = torch.add(log_sizes, squared, alpha=-beta)
    return logits.gather(1, label[:, None])[:, 0] - logits.logsumexp(1)


def _inverse_temperature(squared: Tensor, label: Tensor, log_sizes: Tensor) -> float:
    """The β >= 0 of the least cross-entropy on these rows."""
    from scipy.optimize import minimize_scalar

    typical = float(squared.mean()) or 1.0

    def loss(log_beta: float) -> float:
        beta = math.exp(log_beta) / typical
        return -float(_log_softmax_at(squared, label, log_sizes, beta).mean())

    found = minimize_scalar(loss, bounds=(-7.0, 12.0), method="bounded", options={"xatol": 0.01})
    return math.exp(float(found.x)) / typical  # type: ignore[attr-defined]
