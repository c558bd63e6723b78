"""Images a second from photos on disk to a batch that a network takes, against torchvision's
pipeline; nothing is learned.

The peer is the usual one: ImageFolder, RandomResizedCrop(224), RandomHorizontalFlip, ToTensor,
Normalize, in a DataLoader. Ours keeps bytes up to the model, which normalizes: both sides are timed
to the normalized float batch, and ours to the bytes too. The photos are 500 x 375 JPEGs of quality
90 that this script makes. Each number of workers has a process of its own, tied to so many cores;
in it the sides take turns (A B C A B C ...), so that a busy machine slows them alike. The target is
a ratio of 1.4 from JPEG and 3.5 from the cache.

    python benchmarks/input.py [--workers 1 2] [--repeats 7] [--photos 256] [--batch 32] [--jitter]

A batch of floats above 32 MB (53 photos) is fresh memory from the system each time, the pages of
which cost more than normalizing them on some machines: --batch 64 shows it.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path

import numpy as np
import PIL
import torch
import torchvision
from PIL import Image, ImageDraw
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from nearkin.ahead import taken
from nearkin.crops import Crop, jittered_crop, random_resized_crop
from nearkin.encoders.base import Standardized
from nearkin.pictures import Pictures, read_pictures
from nearkin.pixels import Size
from nearkin.runtime import row_keys

SIDE, RESIZE = 224, 256
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PEER = "torchvision"

Epoch = Callable[[], None]


def write_photos(root: Path, count: int) -> list[Path]:
    """JPEGs of clouds at four scales with a dozen shapes over them, four to a class."""
    generator = np.random.default_rng(0)
    paths = []
    for i in range(count):
        cloud = np.full((375, 500, 3), 128.0, np.float32)
        for high, wide, strength in ((4, 5, 50), (12, 16, 25), (48, 64, 12), (188, 250, 6)):
            noise = torch.from_numpy(generator.normal(size=(1, 3, high, wide)).astype(np.float32))
            grown = torch.nn.functional.interpolate(noise, (375, 500), mode="bicubic")[0]
            cloud += strength * grown.permute(1, 2, 0).numpy()
        photo = Image.fromarray(np.clip(cloud, 0, 255).astype(np.uint8))
        draw = ImageDraw.Draw(photo)
        for shape in (draw.ellipse, draw.rectangle) * 6:
            x, y, r = (int(generator.integers(n)) for n in (500, 375, 90))
            shape((x, y, x + r, y + r), fill=tuple(generator.integers(0, 255, 3).tolist()))
        paths.append(root / f"{i // 4:03d}" / f"{i}.jpg")
        paths[-1].parent.mkdir(parents=True, exist_ok=True)
        photo.save(paths[-1], quality=90)
    return paths


def peer(root: Path, workers: int, batch: int, before: list[object], smallest: float) -> Epoch:
    """An epoch of torchvision's pipeline; its workers stay alive between epochs."""
    steps = [
        *before,
        transforms.RandomResizedCrop(SIDE, (smallest, 1.0)),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize(MEAN, STD),
    ]
    loader = DataLoader(
        ImageFolder(root, transforms.Compose(steps)),
        batch_size=batch,
        shuffle=True,
        num_workers=workers,
        persistent_workers=True,
    )

    def run() -> None:
        for _ in loader:
            pass

    return run


def ours(pictures: Pictures, batch: int, model: Callable[[Tensor], object]) -> Epoch:
    """An epoch of ours: batches are made ahead by threads, the model gets bytes."""
    epoch = iter(range(1 << 30))

    def run() -> None:
        number = next(epoch)
        order = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(number))
        keys = row_keys(0, number, torch.arange(len(pictures)))
        with closing(taken(pictures, order.split(batch), keys)) as batches:
            for x in batches:
                model(x)

    return run


def sides(
    root: Path, paths: list[Path], workers: int, batch: int, jitter: bool
) -> Iterator[tuple[str, Epoch]]:
    """What is timed, by name; the peer first."""
    normalize = Standardized(MEAN, STD)
    plain: list[tuple[str, Crop, list[object], float]] = [("", random_resized_crop, [], 0.08)]
    if jitter:
        steps = [transforms.Resize(RESIZE), transforms.ColorJitter(0.25, 0.25, 0.25, 0)]
        plain.append((", color jitter", jittered_crop, steps, 0.16))
    for name, crop, before, smallest in plain:
        yield PEER + name, peer(root, workers, batch, before, smallest)
        for where, keep in (("JPEG", False), ("cache", True)):
            pictures = read_pictures(paths, Size(RESIZE), SIDE, crop, workers, keep=keep)
            yield f"nearkin from {where}{name}", ours(pictures, batch, normalize)
            yield f"nearkin from {where}{name}, bytes", ours(pictures, batch, lambda x: x)


def interleaved(epochs: Mapping[str, Epoch], repeats: int) -> dict[str, list[float]]:
    """Seconds of each side in each round, after one round to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in epochs}
    for round_ in range(repeats + 1):
        for name, run in epochs.items():
            began = time.perf_counter()
            run()
            if round_:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def measure(root: Path, workers: int, repeats: int, batch: int, jitter: bool) -> None:
    """Print the table of one number of workers, on as many cores."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:workers])
    torch.set_num_threads(1)  # normalizing is one more thread, beside those of the workers
    paths = sorted(root.rglob("*.jpg"))
    seconds = interleaved(dict(sides(root, paths, workers, batch, jitter)), repeats)
    print(f"\n{workers} workers on {workers} cores, batches of {batch}: images/s and ratios\n")
    print(f"| {'':38} | median | best | ratio | lowest | highest |")
    print(f"|{'-' * 40}|---:|---:|---:|---:|---:|")
    base: list[float] = []
    for name, values in seconds.items():
        base = values if name.startswith(PEER) else base
        ratios = [a / b for a, b in zip(base, values, strict=True)]
        rate, best = len(paths) / statistics.median(values), len(paths) / min(values)
        said = f"{statistics.median(ratios):.2f} | {min(ratios):.2f} | {max(ratios):.2f}"
        print(f"| {name:38} | {rate:.0f} | {best:.0f} | {said} |", flush=True)


def machine() -> str:
    """Processor, cores and versions."""
    said = Path("/proc/cpuinfo")
    lines = said.read_text().splitlines() if said.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if "model name" in line]
    name = (names or [platform.processor() or platform.machine()])[0]
    return (
        f"{name}, {os.cpu_count()} cores; Python {platform.python_version()}, "
        f"torch {torch.__version__}, torchvision {torchvision.__version__}, "
        f"Pillow {PIL.__version__}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--photos", type=int, default=256)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--jitter", action="store_true", help="also with color jitter, as for CUB")
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    said = parser.parse_args()
    if said.root is not None:
        measure(said.root, said.workers[0], said.repeats, said.batch, said.jitter)
        return
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "photos"
        write_photos(root, said.photos)
        for workers in said.workers:
            settings = {"root": root, "workers": workers, "repeats": said.repeats}
            settings["batch"] = said.batch
            words = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
            subprocess.run(
                [sys.executable, __file__, *words, *(["--jitter"] if said.jitter else [])],
                check=True,
                env={**os.environ, "NEARKIN_HOME": str(Path(folder) / "home")},
            )


if __name__ == "__main__":
    main()
