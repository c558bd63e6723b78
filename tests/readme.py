"""Runs the README: every bash line and every block of Python, in a folder with a few photos.

Not a test module: `.ci/run` calls it. Lines of `make` and `torchrun` are left to `.ci/run` and the
tests.
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
SKIPPED = ("make ",)


def photos(folder: Path, classes: int = 12, each: int = 8) -> None:
    """Noisy color patches: each class has a pattern of its own."""
    random = np.random.default_rng(0)
    for c in range(classes):
        pattern = random.uniform(0, 255, (6, 6, 3))
        (folder / f"kind-{c:02d}").mkdir(parents=True)
        for i in range(each):
            pixels = (pattern + random.normal(0, 40, pattern.shape)).clip(0, 255).astype(np.uint8)
            picture = Image.fromarray(pixels).resize((90, 70), Image.Resampling.BICUBIC)
            picture.save(folder / f"kind-{c:02d}" / f"{i}.jpg")


def blocks(text: str) -> list[tuple[str, str]]:
    """(language, code) of every fenced block."""
    return re.findall(r"^```(\w+)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def main() -> None:
    """Run all blocks in order; the first failure ends it."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with tempfile.TemporaryDirectory() as folder:
        photos(Path(folder) / "photos")
        for language, code in blocks(text):
            if language == "python":
                commands = [[sys.executable, "-c", code]]
            else:
                lines = [line for line in code.splitlines() if not line.startswith(SKIPPED)]
                commands = [["bash", "-c", line] for line in lines if line.strip()]
            for command in commands:
                print("$", command[-1], flush=True)
                subprocess.run(command, cwd=folder, check=True, env={**os.environ, "PATH": path})


if __name__ == "__main__":
    main()
