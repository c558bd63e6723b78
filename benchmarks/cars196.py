"""Cars-196 end to end: real pictures and a pretrained network of one's own, fine-tuned.

    python benchmarks/cars196.py PICTURES.npz WEIGHTS.npz [--out DIR] [key=value ...]

PICTURES.npz  a bag of JPEGs: `data` uint8, all files back to back; `start` (n + 1,); `label`;
              `split`, 0 for classes to train on, 1 for those to test on; `class_names`
WEIGHTS.npz   MobileNetV2 as in mobilenetv2.py

Trains by cars196.yaml and prints the run's table: the trained figure beside the pretrained network
as it is ("untrained").
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import nearkin as nk  # noqa: E402
from nearkin.console import fitting, scores_table  # noqa: E402


def unpack(bag: Path, folder: Path) -> Path:
    """The pictures of a bag as FOLDER/train/CLASS/... and FOLDER/test/CLASS/..., made once."""
    if folder.is_dir():
        return folder
    unfinished = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(unfinished, ignore_errors=True)
    with np.load(bag, allow_pickle=False) as file:
        data, start, label, split = (file[k] for k in ("data", "start", "label", "split"))
        names = [re.sub(r"[^\w.-]+", "_", str(name)) for name in file["class_names"]]
    for i, (code, part) in enumerate(zip(label.tolist(), split.tolist(), strict=True)):
        # The class number first: the order of the classes is the order of the set.
        place = unfinished / ("train", "test")[part] / f"{code:03d}_{names[code]}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{i:05d}.jpg").write_bytes(data[start[i] : start[i + 1]].tobytes())
    os.replace(unfinished, folder)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("pictures", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/cars196"))
    parser.add_argument("--resume", action="store_true", help="go on where a run stopped")
    parser.add_argument("--force", action="store_true", help="replace the run that is there")
    parser.add_argument("settings", nargs="*", help="key=value, changes to the recipe")
    given = parser.parse_intermixed_args()
    given.out.parent.mkdir(parents=True, exist_ok=True)
    status = given.pictures.stat()
    name = f"cars196_pictures_{status.st_size}_{status.st_mtime_ns}"
    folder = unpack(given.pictures, given.out.with_name(name))
    run = nk.train(
        HERE / "cars196.yaml",
        set=[
            f"data.folder.path={folder.resolve()}",
            f"encoder.mobilenetv2:MobileNetV2.weights={given.weights.resolve()}",
            *given.settings,
        ],
        out=given.out,
        resume=given.resume,
        force=given.force,
        trust_code=True,
        reporter=fitting(),
    )
    print(scores_table(run.metrics))
    print(f"{run.metrics['seconds']:.0f} s of training; report: {run.folder / 'report.html'}")


if __name__ == "__main__":
    main()
