"""The cache folder: arrays that are slow to make, kept between runs.
What is cached is decided by those who make it.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import IO, Any

import numpy as np

from nearkin.core import warn_once

_UNREADABLE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)


def cache_folder() -> Path:
    """The folder of all caches: `NEARKIN_HOME` where it is set, else ~/.cache/nearkin.

    It may not exist yet.
    """
    home = os.environ.get("NEARKIN_HOME")
    return Path(home).expanduser() if home else Path("~/.cache/nearkin").expanduser()


def fingerprint(*parts: Any) -> str:
    """16 hexadecimal digits that name the parts: numbers, texts, lists and dicts of them."""
    text = json.dumps(parts, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def versions(*packages: str) -> list[str | None]:
    """Those of installed packages, by the names that pip knows; None for others. Nothing is
    imported."""
    return [_version(package) for package in packages]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def cached_arrays(
    name: str, make: Callable[[], Mapping[str, np.ndarray]]
) -> Mapping[str, np.ndarray]:
    """The arrays of `name`.npz in the cache folder; made and kept if missing or corrupt.

    A folder that cannot be written costs a warning and the making, nothing else.
    """
    path = cache_folder() / f"{name}.npz"
    if path.is_file():
        try:
            return _read(path)
        except _UNREADABLE:
            pass  # A file cut short by a full disk or a killed machine: made again below.
    arrays = make()
    keep(path, lambda file: np.savez(file, **arrays))  # type: ignore[arg-type]
    return arrays


class UnwritableError(OSError):
    """A file of the cache cannot be written: no room, no right, a disk that is gone."""


def keep(path: Path, write: Callable[[IO[bytes]], Any]) -> bool:
    """Write a cache file whole or not at all; False, after a warning, where that is impossible.

    What `write` raises for reasons of its own is raised: a file that it reads may be missing.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with _of_the_cache():
            path.parent.mkdir(parents=True, exist_ok=True)
            file = io.BufferedWriter(_Told(temporary, "wb"))
        try:
            with file:
                write(file)
            with _of_the_cache():
                os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except UnwritableError as error:
        warn_once(
            f"the cache {path.parent} cannot be written ({error.strerror or error}), so the "
            f"next run does this work again; set NEARKIN_HOME to a folder that can be written"
        )
        return False
    return True


@contextlib.contextmanager
def _of_the_cache() -> Iterator[None]:
    """Within, an error is one of the cache file."""
    try:
        yield
    except OSError as error:
        raise UnwritableError(error.errno, error.strerror or str(error)) from error


class _Told(io.FileIO):
    """A file whose errors are told from those of what is written into it."""

    def write(self, data: Any, /) -> int | None:
        """The bytes that found room."""
        with _of_the_cache():
            return super().write(data)

    def close(self) -> None:
        """Some disks say only now that there was no room."""
        with _of_the_cache():
            super().close()


def _read(path: Path) -> dict[str, np.ndarray]:
    # Reading a member checks its CRC: a flipped byte raises, and does not turn up as a picture.
    # Opened here because numpy leaves the file open where it is no archive.
    with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}
