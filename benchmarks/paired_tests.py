"""How often paired tests find a difference at p < 0.05 where there is none, by number of classes.

    python benchmarks/paired_tests.py [repetitions]

Ten queries a class, whose differences share what is common to their class; 0.05 is right.
"""

from __future__ import annotations

import sys

import numpy as np

from nearkin.evaluation.intervals import TESTS, difference

EACH = 10


def main() -> None:
    repetitions = int(sys.argv[1]) if len(sys.argv) > 1 else 500
    print("classes  " + "  ".join(TESTS))
    for count in (6, 10, 40, 100):
        generator, classes = np.random.default_rng(1), np.arange(EACH * count) % count
        found = dict.fromkeys(TESTS, 0)
        for seed in range(repetitions):
            shared = generator.standard_normal(count)[classes]
            gain = shared + generator.standard_normal(len(classes))
            for test in TESTS:
                p = difference(gain, np.zeros(len(gain)), classes, seed, test=test).p
                found[test] += p < 0.05
        shares = (f"{found[test] / repetitions:{len(test)}.3f}" for test in TESTS)
        print(f"{count:7}  " + "  ".join(shares))


if __name__ == "__main__":
    main()
