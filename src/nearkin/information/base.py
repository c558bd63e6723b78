"""Information: a mutual information as estimators report it; the estimators stand beside it."""

from __future__ import annotations

import math
from dataclasses import dataclass

KINDS = ("lower", "upper", "neither")
_WORDS = {
    "lower": "lower bound",
    "upper": "upper bound if its model is right",
    "neither": "no bound",
}


@dataclass(frozen=True)
class Information:
    """An estimate of a mutual information in bits, with its 95 % interval.

    bits      the estimate; a lower bound may be slightly negative: it says no more than 0 does
    low       lower end of the interval, bits, at most `bits`
    high      upper end of the interval, bits, at least `bits`
    ceiling   what the information cannot exceed, bits; infinite where nothing is known
    kind      "lower" (a bound of the true value, but for sampling error), "upper" (likewise, but
              only where the model of y given x that it stands on is right) or "neither"
    left_out  rows of the input that the estimate could not use
    error     standard error of the estimate, bits; None where the interval was found otherwise

    Raises ValueError for numbers that contradict each other.
    """

    bits: float
    low: float
    high: float
    ceiling: float = math.inf
    kind: str = "lower"
    left_out: int = 0
    error: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"{self.kind!r} is no kind; expected one of {', '.join(KINDS)}")
        if not all(map(math.isfinite, (self.bits, self.low, self.high))):
            raise ValueError(
                f"an information must be finite, but bits, low, high are "
                f"{self.bits}, {self.low}, {self.high}"
            )
        if not self.low <= self.bits <= self.high:
            raise ValueError(
                f"the interval {self.low}..{self.high} does not hold the estimate {self.bits}"
            )
        if math.isnan(self.ceiling) or self.ceiling < 0:
            raise ValueError(f"a ceiling must be 0 bits or more, not {self.ceiling}")
        if self.kind == "lower" and self.bits > self.ceiling * (1 + 1e-9) + 1e-9:
            raise ValueError(
                f"a lower bound of {self.bits} bits exceeds its ceiling {self.ceiling}"
            )
        if self.left_out < 0:
            raise ValueError(f"left_out counts rows, so it must be 0 or more, not {self.left_out}")
        if self.error is not None and not 0 <= self.error < math.inf:
            raise ValueError(f"a standard error must be 0 bits or more, not {self.error}")

    @classmethod
    def from_nats(
        cls,
        value: float,
        error: float,
        kind: str,
        ceiling: float = math.inf,
        left_out: int = 0,
    ) -> Information:
        """An estimate, its standard error and its ceiling in nats; the interval is normal, 1.96
        standard errors to each side; that of a lower bound ends at the ceiling."""
        bits, reach = value / math.log(2), 1.96 * error / math.log(2)
        most = max(bits, ceiling / math.log(2)) if kind == "lower" else math.inf
        return cls(
            bits,
            bits - reach,
            min(bits + reach, most),
            ceiling / math.log(2),
            kind,
            left_out,
            error / math.log(2),
        )

    @property
    def nats(self) -> float:
        """The estimate in nats: bits · ln 2."""
        return self.bits * math.log(2)

    @property
    def at_ceiling(self) -> bool:
        """Whether the estimate is within a fifth of its ceiling: the truth may be far above it."""
        return self.bits > 0.8 * self.ceiling

    def to_dict(self) -> dict[str, float | str | int | None]:
        """For JSON: every field but an infinite ceiling, which is null."""
        ceiling = None if math.isinf(self.ceiling) else self.ceiling
        return {
            "bits": self.bits,
            "low": self.low,
            "high": self.high,
            "error": self.error,
            "ceiling": ceiling,
            "kind": self.kind,
            "left_out": self.left_out,
        }

    def __repr__(self) -> str:
        of = "" if math.isinf(self.ceiling) else f" of {self.ceiling:.2f}"
        interval = f"95 % {self.low:.2f}..{self.high:.2f}"
        left_out = f", {self.left_out} rows left out" if self.left_out else ""
        return f"{self.bits:.2f} bits{of} ({_WORDS[self.kind]}, {interval}{left_out})"


def unseen_error(ceiling: float, count: int) -> float:
    """Least standard error of the mean of `count` rows, in the unit of the ceiling: where all rows
    agree the next may still err. It does with p = 1/(N + 2) (Laplace's rule of succession), and
    then loses what the ceiling is: ceiling · sqrt(p (1 - p) / N)."""
    p = 1 / (count + 2)
    return ceiling * math.sqrt(p * (1 - p) / count)


def least_error(count: int) -> float:
    """Least standard error in nats of what a trained model says of `count` pairs: where nothing is
    shared, 2N times the estimate by one free number is chi-squared with one degree of freedom
    (Wilks 1938), whose deviation is sqrt(2). A model that tells nothing says the same of all
    pairs, and their spread alone would call it certain."""
    return 1 / (math.sqrt(2) * count)
