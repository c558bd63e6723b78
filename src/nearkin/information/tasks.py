"""Tasks whose mutual information is known: what an estimator says of them is its calibration.

The families of Czyż et al. 2023 (Beyond normal), the correlated Gaussians of Poole et al. 2019, and
classes that are normal. Transformations that can be undone on each side change no information.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

Numbers = np.ndarray
Draw = Callable[[int, np.random.Generator], tuple[Numbers, Any]]


@dataclass(frozen=True)
class Task:
    """Pairs with known information.

    name    as in a table
    nats    the mutual information
    draw    (N, generator) -> x (N, Dx), y (N, Dy) float64 or (N,) int64 classes
    of      "numbers", or "classes" where y are classes
    """

    name: str
    nats: float
    draw: Draw
    of: str = "numbers"

    def sample(self, count: int, seed: int = 0) -> tuple[Numbers, Any]:
        """N independent pairs by a seed."""
        return self.draw(count, np.random.default_rng(seed))

    def mapped(
        self,
        name: str,
        x: Callable[[Numbers], Numbers],
        y: Callable[[Numbers], Numbers] | None = None,
    ) -> Task:
        """The same information through maps that can be undone."""
        of_y = x if y is None else y

        def draw(count: int, generator: np.random.Generator) -> tuple[Numbers, Any]:
            a, b = self.draw(count, generator)
            return x(a), of_y(b)

        return replace(self, name=name, draw=draw)

    def doubled(self) -> Task:
        """Two independent copies side by side: twice the information."""

        def draw(count: int, generator: np.random.Generator) -> tuple[Numbers, Any]:
            one, two = self.draw(count, generator), self.draw(count, generator)
            return np.hstack((one[0], two[0])), np.hstack((one[1], two[1]))

        return Task(f"{self.name}, twice", 2 * self.nats, draw)


# --- normal pairs


def covariance_information(covariance: Numbers, dx: int) -> float:
    """Nats between the first dx and the other coordinates of a normal vector."""
    log = [np.linalg.slogdet(s)[1] for s in (covariance[:dx, :dx], covariance[dx:, dx:])]
    return float(sum(log) - np.linalg.slogdet(covariance)[1]) / 2


def normal(name: str, covariance: Numbers, dx: int) -> Task:
    """A normal vector with this covariance (D, D), cut after dx coordinates."""
    root = np.linalg.cholesky(covariance)

    def draw(count: int, generator: np.random.Generator) -> tuple[Numbers, Numbers]:
        z = generator.standard_normal((count, len(covariance))) @ root.T
        return z[:, :dx], z[:, dx:]

    return Task(name, covariance_information(covariance, dx), draw)


def gaussian(nats: float, d: int = 20) -> Task:
    """d independent pairs, each of one correlation; together `nats` (Poole et al. 2019)."""
    rho = math.sqrt(-math.expm1(-2 * nats / d))

    def draw(count: int, generator: np.random.Generator) -> tuple[Numbers, Numbers]:
        x = generator.standard_normal((count, d))
        return x, rho * x + math.sqrt(1 - rho**2) * generator.standard_normal((count, d))

    return Task(f"normal {d} x {d}, {nats:g} nats", nats, draw)


def cubic(nats: float, d: int = 20) -> Task:
    """`gaussian` with y cubed."""
    return gaussian(nats, d).mapped(f"cubic {d} x {d}, {nats:g} nats", lambda x: x, lambda y: y**3)


def log_ratio(nats: float, d: int = 20) -> Callable[[Numbers, Numbers], Numbers]:
    """The best critic of `gaussian`: (K, K) log of the density ratio of x_i and y_j."""
    rho2 = -math.expm1(-2 * nats / d)

    def scores(x: Numbers, y: Numbers) -> Numbers:
        squares = (x**2).sum(1)[:, None] + (y**2).sum(1)
        inner = math.sqrt(rho2) * (x @ y.T) - rho2 * squares / 2
        return nats + inner / (1 - rho2)

    return scores


def dense(d: int) -> Task:
    """d + d coordinates, all correlated by 1/2."""
    return normal(f"dense {d} x {d}", 0.5 * np.eye(2 * d) + 0.5, d)


def two_pair(d: int) -> Task:
    """d + d coordinates, the first two of each correlated by 0.8."""
    covariance = np.eye(2 * d)
    for i in range(2):
        covariance[i, d + i] = covariance[d + i, i] = 0.8
    return normal(f"2-pair {d} x {d}", covariance, d)


def pair(rho: float = 0.75) -> Task:
    """One pair of this correlation."""
    return normal("normal 1 x 1", np.array([[1, rho], [rho, 1]]), 1)


# --- maps that can be undone


def normal_cdf(x: Numbers) -> Numbers:
    """Φ of each entry: uniform margins."""
    from scipy.special import ndtr

    return ndtr(x)


def half_cube(x: Numbers) -> Numbers:
    """sign(x)·|x|^{3/2}: longer tails."""
    return np.sign(x) * np.abs(x) ** 1.5


def wiggly(x: Numbers) -> Numbers:
    """x with waves on it that never turn back."""
    return x + 0.4 * np.sin(x) + 0.2 * np.sin(1.7 * x + 1) + 0.03 * np.sin(3.3 * x - 2.5)


def bimodal(x: Numbers) -> Numbers:
    """Normal margins made halves of N(-2, 1/4) and N(2, 1/4)."""
    from scipy.special import ndtr

    grid = np.linspace(-6, 6, 20_001)
    return np.interp(ndtr(x), (ndtr(2 * (grid + 2)) + ndtr(2 * (grid - 2))) / 2, grid)


def swiss_roll(x: Numbers) -> Numbers:
    """Normal margins (N, 1) on a roll in two dimensions."""
    turn = 1.5 * np.pi * (1 + 2 * normal_cdf(x[:, 0]))
    return np.stack((turn * np.cos(turn), turn * np.sin(turn)), 1) / 21


def spiral(first: int, second: int, speed: float = 1 / 3) -> Callable[[Numbers], Numbers]:
    """A turn in the plane of two coordinates by speed·|x|²."""

    def turned(x: Numbers) -> Numbers:
        angle = speed * (x**2).sum(1)
        out = x.copy()
        out[:, first] = np.cos(angle) * x[:, first] - np.sin(angle) * x[:, second]
        out[:, second] = np.sin(angle) * x[:, first] + np.cos(angle) * x[:, second]
        return out

    return turned


# --- others of Czyż et al.


def additive(width: float) -> Task:
    """x uniform on [0, 1], y = x + noise uniform on [-width, width]."""
    nats = -math.log(2 * width) + width if width <= 0.5 else 1 / (4 * width)

    def draw(count: int, generator: np.random.Generator) -> tuple[Numbers, Numbers]:
        x = generator.uniform(0, 1, (count, 1))
        return x, x + generator.uniform(-width, width, (count, 1))

    return Task(f"additive {width:g}", nats, draw)


def student(d: int, freedom: int) -> Task:
    """Student's t in d + d dimensions without correlation: what is shared is how far out it is."""
    from scipy.special import digamma, gammaln

    def entropy_part(dims: int) -> float:
        a = (freedom + dims) / 2
        return float(gammaln(freedom / 2) - gammaln(a) + a * (digamma(a) - digamma(freedom / 2)))

    # The terms in log(π·freedom) cancel between the three entropies.
    nats = 2 * entropy_part(d) - entropy_part(2 * d)

    def draw(count: int, generator: np.random.Generator) -> tuple[Numbers, Numbers]:
        z = generator.standard_normal((count, 2 * d))
        z /= np.sqrt(generator.chisquare(freedom, (count, 1)) / freedom)
        return z[:, :d], z[:, d:]

    return Task(f"student {d} x {d}, {freedom} df", nats, draw)


def asinh_student(d: int, freedom: int) -> Task:
    """`student` with its tails taken in by asinh."""
    return student(d, freedom).mapped(f"asinh student {d} x {d}, {freedom} df", np.arcsinh)


def independent(d: int = 5) -> Task:
    """Nothing is shared."""
    return normal(f"independent {d} x {d}", np.eye(2 * d), d)


def processed(nats: float, d: int, noise: float = 1.0) -> Task:
    """`gaussian` with more noise on y: less information, never more (data processing)."""
    rho = math.sqrt(-math.expm1(-2 * nats / d) / (1 + noise**2))
    left = -d / 2 * math.log1p(-(rho**2))
    whole = gaussian(nats, d)

    def draw(count: int, generator: np.random.Generator) -> tuple[Numbers, Numbers]:
        x, y = whole.draw(count, generator)
        return x, y + noise * generator.standard_normal(y.shape)

    return Task(f"{whole.name}, y with noise", left, draw)


# --- numbers and classes


def classes(apart: float, count: int = 2, d: int = 1) -> Task:
    """Equally likely classes, normal with deviation 1, their means `apart` on a line; d - 1 more
    coordinates are noise and all are turned by one rotation. The truth is integrated."""
    means = apart * (np.arange(count) - (count - 1) / 2)
    grid = np.linspace(means[0] - 12, means[-1] + 12, 40_001)
    each = np.exp(-((grid[:, None] - means) ** 2) / 2) / math.sqrt(2 * math.pi)
    whole = each.mean(1)
    step = grid[1] - grid[0]
    h = -step * (whole * np.log(np.maximum(whole, 1e-300))).sum()  # vanishes at both ends
    turned = np.linalg.qr(np.random.default_rng(d).standard_normal((d, d)))[0]

    def draw(rows: int, generator: np.random.Generator) -> tuple[Numbers, Numbers]:
        y = generator.integers(0, count, rows)
        z = generator.standard_normal((rows, d))
        z[:, 0] += means[y]
        return z @ turned, y

    nats = float(h) - (1 + math.log(2 * math.pi)) / 2
    return Task(f"{count} classes {apart:g} apart, {d} dims", nats, draw, "classes")


def overlapping(count: int = 5) -> Task:
    """Classes 0..count-1, y uniform on [class, class + 2] (Gao et al. 2017)."""
    nats = math.log(count) - (count - 1) * math.log(2) / count

    def draw(rows: int, generator: np.random.Generator) -> tuple[Numbers, Numbers]:
        y = generator.integers(0, count, rows)
        return (y + generator.uniform(0, 2, rows))[:, None], y

    return Task(f"{count} overlapping uniforms", nats, draw, "classes")


# --- lists


def benchmark() -> list[Task]:
    """The families of Czyż et al. 2023 whose exact values are known."""
    one, uniform_roll = pair(), pair().mapped("swiss roll 2 x 1", swiss_roll, normal_cdf)
    pairs = [two_pair(d) for d in (2, 3, 5, 25)]
    return [
        one,
        one.mapped("normal CDF 1 x 1", normal_cdf),
        one.mapped("bimodal 1 x 1", bimodal),
        one.mapped("wiggly 1 x 1", wiggly),
        one.mapped("half-cube 1 x 1", half_cube),
        uniform_roll,
        additive(0.1),
        additive(0.75),
        *(dense(d) for d in (2, 3, 5, 25, 50)),
        *pairs,
        *(
            task.mapped(task.name.replace("2-pair", "2-pair half-cube"), half_cube)
            for task in pairs[1:]
        ),
        *(task.mapped(task.name.replace("2-pair", "2-pair CDF"), normal_cdf) for task in pairs[1:]),
        *(
            task.mapped(task.name.replace("2-pair", "2-pair spiral"), spiral(0, 1), spiral(1, 2))
            for task in pairs[1:]
        ),
        *(student(d, df) for d, df in STUDENT),
        *(asinh_student(d, df) for d, df in STUDENT),
    ]


STUDENT = ((1, 1), (2, 1), (2, 2), (3, 2), (3, 3), (5, 2), (5, 3))
