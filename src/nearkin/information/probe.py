"""A cross-fitted linear probe: how likely labels are to a classifier that has not seen the row."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np

STRENGTHS = (0.01, 0.1, 1.0)  # scikit-learn's C: a larger one regularizes less
ITERATIONS = 50
ONE_THREAD = 1 << 28  # products of a step below which one thread is quicker
_WORST = -1e4  # stands for the logit of a class that was not seen in training


@dataclass(frozen=True)
class Calibration:
    """Honest logits: q = (1 - share) · softmax(sharpness · logits + log prior) + share · prior."""

    sharpness: float
    share: float

    def log_likelihood(self, logits: np.ndarray, y: np.ndarray, prior: np.ndarray) -> np.ndarray:
        """(N,) log q(y), from logits (N, C), labels (N,) and the prior (C,)."""
        scaled = logits * self.sharpness + np.log(prior)
        weights = np.exp(scaled - scaled.max(1, keepdims=True))
        chance = weights[np.arange(len(y)), y] / weights.sum(1)
        return np.log((1 - self.share) * chance + self.share * prior[y])


ONLY_PRIOR = Calibration(1.0, 1.0)


def log_likelihoods(x: np.ndarray, y: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """(N,) log q(y|x) in nats, each row scored by a probe fitted on the other folds.

    x (N, D) standardized; y (N,) in 0..C-1, every class at least twice. Everything fitted, also the
    strength of regularization and the calibration, is fitted on the other folds alone.
    """
    generator = np.random.default_rng(seed)
    classes = int(y.max()) + 1
    folds = min(folds, len(y))
    fold = _folds(y, folds, generator)
    log_q = np.empty(len(y))
    for held in range(folds):
        train, test = fold != held, fold == held
        # Half a row more a class, so that no class of the test fold is impossible.
        prior = np.bincount(y[train], minlength=classes) + 0.5
        prior /= prior.sum()
        strength, calibration = _tuned(x[train], y[train], prior, generator)
        if calibration.share == 1.0:
            logits = np.zeros((int(test.sum()), classes))
        else:
            logits = _fitted(x[train], y[train], (strength,), x[test], classes)[0]
        log_q[test] = calibration.log_likelihood(logits, y[test], prior)
    return log_q


def _folds(y: np.ndarray, folds: int, generator: np.random.Generator) -> np.ndarray:
    """(N,) fold of each row: random, of equal sizes, each class spread as evenly as it goes."""
    order = generator.permutation(len(y))
    order = order[np.argsort(y[order], kind="stable")]
    fold = np.empty(len(y), dtype=np.int64)
    fold[order] = np.arange(len(y)) % folds
    return fold


def _tuned(
    x: np.ndarray, y: np.ndarray, prior: np.ndarray, generator: np.random.Generator
) -> tuple[float, Calibration]:
    """Strength and calibration of the least cross-entropy on a part held out of these rows."""
    held = _held_out(y, generator)
    if not held.any() or len(np.unique(y[~held])) < 2:
        return STRENGTHS[0], ONLY_PRIOR
    best = (np.inf, STRENGTHS[0], ONLY_PRIOR)
    all_logits = _fitted(x[~held], y[~held], STRENGTHS, x[held], len(prior))
    for strength, logits in zip(STRENGTHS, all_logits, strict=True):
        calibration, loss = _calibrated(logits, y[held], prior)
        if loss < best[0]:
            best = (loss, strength, calibration)
    return best[1], best[2]


def _held_out(y: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """(N,) bool: every fifth row of a class; every n-th if the largest class has n < 5 rows."""
    order = generator.permutation(len(y))
    order = order[np.argsort(y[order], kind="stable")]
    sizes = np.bincount(y)
    place = np.arange(len(y)) - np.repeat(sizes.cumsum() - sizes, sizes)
    step = max(2, min(5, int(sizes.max())))
    held = np.empty(len(y), dtype=bool)
    held[order] = place % step == step - 1
    return held


def _fitted(
    x: np.ndarray, y: np.ndarray, strengths: tuple[float, ...], at: np.ndarray, classes: int
) -> list[np.ndarray]:
    """(M, C) logits at `at` of logistic regressions, one a strength, each started at the last."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    # Threads of a small product wait for each other longer than they work.
    threads = 1 if x.size * classes < ONE_THREAD else None
    # The prior is added unsharpened afterwards. Learned, it would be sharpened with the rest; and a
    # class that lent a row to the fold has fewer left, so that it would speak against that row.
    probe = LogisticRegression(
        max_iter=ITERATIONS, tol=1e-3, warm_start=True, class_weight="balanced"
    )
    found = []
    with warnings.catch_warnings(), threadpool_limits(threads):
        # A probe that stopped early is a probe all the same: the bound holds for every one.
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.filterwarnings("ignore", "The number of unique classes", UserWarning)
        for strength in strengths:
            decided = probe.set_params(C=strength).fit(x, y).decision_function(at)
            if decided.ndim == 1:  # two classes
                decided = np.stack([np.zeros_like(decided), decided], 1)
            logits = np.full((len(at), classes), _WORST)
            logits[:, probe.classes_] = decided
            found.append(logits)
    return found


def _calibrated(logits: np.ndarray, y: np.ndarray, prior: np.ndarray) -> tuple[Calibration, float]:
    """The calibration of the least cross-entropy on these rows, and that cross-entropy in nats."""
    from scipy.optimize import minimize
    from scipy.special import expit

    floor = 1 / (len(y) + 2)

    def calibration(free: np.ndarray) -> Calibration:
        """Of two unbounded numbers, as the minimizer moves them."""
        # Rows without an error do not show that there is none: the share is at least one in n + 2
        # (Laplace), which costs 1/n nats and bounds what a single row can cost.
        share = floor + (1 - floor) * expit(free[1])
        return Calibration(float(np.exp(free[0])), float(min(share, 1 - 1e-6)))

    def loss(free: np.ndarray) -> float:
        return -float(calibration(np.clip(free, -20, 20)).log_likelihood(logits, y, prior).mean())

    options = {"maxfev": 50, "xatol": 0.02, "fatol": 1e-5}
    found = minimize(loss, np.array([0.0, -3.0]), method="Nelder-Mead", options=options)
    return calibration(np.clip(found.x, -20, 20)), float(found.fun)
