"""Information: a mutual information as estimators report it; the estimators stand beside it."""

from __future__ import annotations

import math
from dataclasses import dataclass

KINDS = ("lower", "upper", "neither")
_WORDS = {"lower": "lower bound", "upper": "upper bound", "neither": "no bound"}


@dataclass(frozen=True)
class Information:
    """An estimate of a mutual information in bits, with its 95 % interval.

    bits      the estimate; a lower bound may be slightly negative: it says no more than 0 does
    low       lower end of the interval, bits, at most `bits`
    high      upper end of the interval, bits, at least `bits`
    ceiling   what the information cannot exceed, bits; infinite where nothing is known
    kind      "lower" or "upper" (a bound of the true value, but for sampling error) or "neither"
    left_out  rows of the input that the estimate could not use

    Raises ValueError for numbers that contradict each other.
    """

    bits: float
    low: float
    high: float
    ceiling: float = math.inf
    kind: str = "lower"
    left_out: int = 0

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

    @property
    def nats(self) -> float:
        """The estimate in nats: bits · ln 2."""
        return self.bits * math.log(2)

    def __repr__(self) -> str:
        of = "" if math.isinf(self.ceiling) else f" of {self.ceiling:.2f}"
        interval = f"95 % {self.low:.2f}..{self.high:.2f}"
        left_out = f", {self.left_out} rows left out" if self.left_out else ""
        return f"{self.bits:.2f} bits{of} ({_WORDS[self.kind]}, {interval}{left_out})"
