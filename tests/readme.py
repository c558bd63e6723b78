"""Runs the README and the pages of docs/: every bash line, block of Python and recipe.

Each page has a folder of its own with a few photos.

Not a test module: `.ci/run` calls it. Lines of `make` are left to `.ci/run`; what needs a network
or an archive stands in blocks of text.

    python tests/readme.py [PAGE.md ...]
"""

import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
SKIPPED = ("make ",)
RESOLVE = (
    "import sys, yaml; from nearkin.config import resolve; resolve(yaml.safe_load(sys.argv[1]))"
)


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


def commands(language: str, code: str) -> list[list[str]]:
    """What to run for a block; a recipe is read and resolved."""
    if language == "python":
        return [[sys.executable, "-c", code]]
    if language == "yaml":
        return [[sys.executable, "-c", RESOLVE, code]]
    if language == "bash":
        lines = [line for line in code.splitlines() if not line.startswith(SKIPPED)]
        return [["bash", "-c", line] for line in lines if line.strip()]
    return []


def run(page: Path) -> bool:
    """Run all blocks of a page in order; the first failure ends it and is False."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    # Pages run beside one another: one thread each.
    inside = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        photos(Path(folder) / "photos")
        for language, code in blocks(page.read_text(encoding="utf-8")):
            for command in commands(language, code):
                done = subprocess.run(
                    command,
                    cwd=folder,
                    env=inside,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                    check=False,
                )
                print(f"{page.name} $ {command[-1]}\n{done.stdout}", flush=True)
                if done.returncode:
                    print(f"{page.name}: exit {done.returncode}", flush=True)
                    return False
    return True


def main() -> None:
    """Run the pages named, or all; exits 1 where one failed."""
    pages = [Path(name) for name in sys.argv[1:]]
    pages = pages or [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        sys.exit(not all(list(pool.map(run, pages))))


if __name__ == "__main__":
    main()
