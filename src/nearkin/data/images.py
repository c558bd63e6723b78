"""Image files under a folder: finding them with class and split, and those that are unreadable.
No pixels are kept.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from nearkin.cache import cache_folder, fingerprint, keep
from nearkin.data.splits import natural

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff")

Progress = Callable[[int, int], None]

SPLIT_NAMES = {
    "train": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}
_CHUNK = 256


@dataclass(frozen=True)
class ImageFile:
    """One image file: `id` is its path below the folder searched, `split` what folders say."""

    path: str
    id: str
    name: str
    split: str | None


@dataclass(frozen=True)
class Found:
    """The image files below a folder, in order, and (path, reason) of what was passed over."""

    files: tuple[ImageFile, ...]
    passed_over: tuple[tuple[str, str], ...]

    @property
    def by_split(self) -> bool:
        """Whether folders named train, test and so on stand above the class folders."""
        return self.files[0].split is not None


def find_classes(root: str | Path) -> Found:
    """The images below `root`: one sub-folder a class, or train, val and test above such.

    Images deeper inside a class folder belong to it. Hidden files and folders and __MACOSX are
    passed over. Raises FileNotFoundError, NotADirectoryError, PermissionError, or ValueError where
    no class is found.
    """
    root = Path(root)
    if not root.exists():
        raise FileNotFoundError(
            f"there is no folder {root}; give a folder with one sub-folder a class"
        )
    if not root.is_dir():
        raise NotADirectoryError(
            f"{root} is a file; give a folder with one sub-folder of images a class"
        )
    folders, strays = _listing(root)
    if not folders:
        raise ValueError(_no_classes(root, len(strays)))
    passed = [(str(root / name), "lies beside the class folders, not in one") for name in strays]
    files: list[ImageFile] = []
    for folder, split in _class_folders(root, folders):
        found = [
            ImageFile(path, Path(path).relative_to(root).as_posix(), folder.name, split)
            for path in find_images(folder)
        ]
        files += found
        if not found:
            passed.append((str(folder), "a class folder without images"))
    if not files:
        raise ValueError(
            f"no images were found below {root}; expected files ending in {', '.join(EXTENSIONS)}"
        )
    return Found(tuple(files), tuple(passed))


def find_images(folder: str | Path) -> list[str]:
    """All images in a folder and below it, in natural order; what is hidden is passed over.

    Every real folder is visited once, so that links in a circle end.
    """
    paths, visited, waiting = [], set(), [Path(folder)]
    while waiting:
        here = waiting.pop()
        status = here.stat()
        if (status.st_dev, status.st_ino) in visited:
            continue
        visited.add((status.st_dev, status.st_ino))
        folders, images = _listing(here)
        paths += [str(here / name) for name in images]
        waiting += [here / name for name in reversed(folders)]
    return paths


def find_faults(
    root: str | Path, files: Sequence[ImageFile], progress: Progress | None = None
) -> dict[str, str]:
    """Path -> reason of the images that cannot be decoded.

    Remembered by path, size and time in the cache folder.

    `progress(done, total)` is told of the images that had to be decoded.
    """
    store = cache_folder() / f"readable-{fingerprint(os.path.realpath(root))}.json"
    known, seen = _known(store), {}
    for file in files:
        stamp = _stamp(file.path)
        entry = known.get(file.path)
        if stamp and isinstance(entry, list) and entry[:2] == stamp and len(entry) == 3:
            seen[file.path] = entry
    fresh = [file.path for file in files if file.path not in seen]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(fresh), _CHUNK):
            chunk = fresh[start : start + _CHUNK]
            for path, reason in zip(chunk, pool.map(fault, chunk), strict=True):
                seen[path] = [*(_stamp(path) or (-1, -1)), reason]
            if progress:
                progress(min(start + _CHUNK, len(fresh)), len(fresh))
    if fresh:
        text = json.dumps(seen)
        keep(store, lambda stream: stream.write(text.encode()))
    return {path: entry[2] for path, entry in seen.items() if entry[2] is not None}


def fault(path: str) -> str | None:
    """Why an image cannot be decoded, in a few words; None where it can."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as picture:
            # A small JPEG scale still reads every byte, at a fraction of the work.
            picture.draft("RGB", (64, 64))
            picture.load()
    except UnidentifiedImageError:
        return "not an image that Pillow can read" if os.path.getsize(path) else "an empty file"
    except PermissionError:
        return "no permission to read it"
    except Exception as error:  # Decoders answer broken bytes with whatever went wrong inside.
        return " ".join(str(error).split())[:200] or type(error).__name__
    return None


def _class_folders(root: Path, folders: list[str]) -> list[tuple[Path, str | None]]:
    """The class folders with their splits.

    Only where every sub-folder names a split do names mean splits.
    """
    if not all(name.lower() in SPLIT_NAMES for name in folders):
        return [(root / name, None) for name in folders]
    found: dict[str, str] = {}
    for name in folders:
        split = SPLIT_NAMES[name.lower()]
        if split in found:
            raise ValueError(f"{found[split]}/ and {name}/ in {root} both name the {split} split")
        found[split] = name
    for split in ("train", "test"):
        if split not in found:
            raise ValueError(
                f"{root} has {', '.join(name + '/' for name in folders)} but no {split}/; "
                f"give train/ and test/, or class folders alone, which are then split by class"
            )
    pairs: list[tuple[Path, str | None]] = []
    for split in sorted(found, key=list(SPLIT_NAMES.values()).index):
        name = found[split]
        classes, _ = _listing(root / name)
        if not classes:
            raise ValueError(
                f"{root / name} has no class folders; put one sub-folder a class there"
            )
        pairs += [(root / name / each, split) for each in classes]
    return pairs


def _listing(folder: Path) -> tuple[list[str], list[str]]:
    """The names of the folders and of the images directly in a folder, in natural order."""
    folders, images = [], []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith(".") or entry.name == "__MACOSX":
                    continue
                if entry.is_dir():
                    folders.append(entry.name)
                elif entry.name.lower().endswith(EXTENSIONS):
                    images.append(entry.name)
    except PermissionError:
        raise PermissionError(
            f"there is no permission to read the folder {folder}; change its rights or give "
            "another folder"
        ) from None
    return sorted(folders, key=natural), sorted(images, key=natural)


def _no_classes(root: Path, images: int) -> str:
    if images:
        return (
            f"{images} images lie directly in {root}, so their classes are unknown; "
            f"put the images of each class into a sub-folder of its own"
        )
    return f"the folder {root} is empty; give a folder with one sub-folder of images a class"


def _stamp(path: str) -> list[int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]


def _known(store: Path) -> dict[str, list]:
    try:
        known = json.loads(store.read_bytes())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}
