"""What the information panel costs: its share of the time of training, for whole runs.

Prints for each recipe the seconds of training, of the panels (their rows embedded and measured) and
of the diagnosis every 50 steps (pull, push, mean cosine and effective rank of the batch), in CPU
time of this process, so that other work on the machine does not count.

    python benchmarks/panel.py [glyphs halves digits ...]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import nearkin as nk
from nearkin.console import Reporter
from nearkin.loop import Loop
from nearkin.methods import base
from nearkin.objectives.compared import Compared
from nearkin.panel import Panel


def counted(owner: Any, name: str, into: Counter[str], key: str) -> None:
    """Count the CPU time of a function from here on."""
    plain: Callable[..., Any] = getattr(owner, name)

    def timed(*given: Any, **named: Any) -> Any:
        began = time.process_time()
        try:
            return plain(*given, **named)
        finally:
            into[key] += time.process_time() - began  # type: ignore[assignment]

    setattr(owner, name, timed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipes", nargs="*", default=["glyphs", "halves", "digits"])
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    spent: Counter[str] = Counter()
    counted(Panel, "_draw", spent, "panel")
    counted(Loop, "_step", spent, "training")
    counted(Compared, "diagnosis", spent, "diagnosis")
    counted(base, "spread", spent, "diagnosis")
    print(
        "| recipe | steps | training, s | panels | panels, s | diagnosis, s | share of training |"
    )
    print("|---|---|---|---|---|---|---|")
    for recipe in chosen.recipes:
        spent.clear()
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "run"
            nk.train(recipe, out=out, reporter=Reporter(None))
            log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
        steps = next(line["steps"] for line in log if line["event"] == "start")
        panels = len({line["step"] for line in log if line["event"] == "panel"})
        training, panel, diagnosis = (spent[key] for key in ("training", "panel", "diagnosis"))
        share = (panel + diagnosis) / (training - diagnosis)
        print(
            f"| {recipe} | {steps} | {training:.2f} | {panels} | {panel:.2f} | {diagnosis:.2f} | "
            f"{100 * share:.1f} % |"
        )


if __name__ == "__main__":
    main()
