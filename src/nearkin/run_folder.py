"""The run folder: names of its files, how they are written and read. The interface between
programs."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from nearkin.checkpoint import aside, sweep

FORMAT = 1
FILES = (
    "environment.json",
    "recipe.yaml",
    "log.jsonl",
    "embeddings.npz",
    "metrics.json",
    "report.html",
    "left_out.txt",
)
FOLDERS = ("checkpoint", "model")


class RunFolderError(ValueError):
    """The folder is in the way, is no run, or cannot be written."""


class RunFolder:
    """A run's files. Nothing is created before `open`; every file is written aside and renamed."""

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)

    @property
    def state(self) -> Path:
        """All that an exact resume needs."""
        return self.path / "checkpoint" / "state.safetensors"

    @property
    def finished(self) -> bool:
        """Whether the run ended: the report is written last."""
        return (self.path / "report.html").is_file() and (self.path / "metrics.json").is_file()

    @property
    def is_run(self) -> bool:
        """Whether a run (finished or not, of any format) lives here."""
        try:
            said = json.loads((self.path / "environment.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return isinstance(said, dict) and "format" in said

    @property
    def is_taken(self) -> bool:
        """Whether something lives here."""
        if not self.path.is_dir():
            return self.path.exists()
        return any(not _is_aside(entry.name) for entry in self.path.iterdir())

    def check_free(self, *, resume: bool, force: bool) -> None:
        """Raise RunFolderError unless a run may be written here."""
        if self.path.exists() and not self.path.is_dir():
            raise RunFolderError(f"{self.path} is a file; give a folder with --out")
        if not self.is_taken:
            self._check_writable()
        elif not self.is_run:
            raise RunFolderError(
                f"{self.path} holds other files and is no run folder; it is never overwritten: "
                "give another folder with --out"
            )
        elif not (resume or force):
            raise RunFolderError(
                f"the run folder {self.path} exists; go on with --resume, replace it with "
                "--force, or give another one with --out"
            )
        elif resume:
            self.check_format()
        elif foreign := self.foreign():
            raise RunFolderError(
                f"the run folder {self.path} holds files that are not the run's "
                f"({', '.join(foreign[:3])}), so it is not replaced; move them, or give another "
                "folder with --out"
            )

    def foreign(self) -> list[str]:
        """Names in the folder that no run writes."""
        names = sorted(entry.name for entry in self.path.iterdir())
        return [n for n in names if n not in (*FILES, *FOLDERS) and not _is_aside(n)]

    def clear(self) -> None:
        """Remove a run: its files and nothing else; the folder too, if it is empty then."""
        self.sweep()
        for folder in (self.path / name for name in FOLDERS):
            shutil.rmtree(folder, ignore_errors=True)
        # environment.json goes last: killed in between, this is still a run that can be replaced.
        for file in (self.path / name for name in reversed(FILES)):
            file.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # other files, or a link to a folder elsewhere
            self.path.rmdir()

    def sweep(self) -> None:
        """Remove what killed processes left half-written."""
        for folder in (self.path, *(self.path / name for name in FOLDERS)):
            sweep(folder)

    def _check_writable(self) -> None:
        parent = self.path
        while not parent.exists():
            parent = parent.parent
        if not parent.is_dir():
            raise RunFolderError(f"{self.path} cannot be made: {parent} is a file; give --out")
        if not os.access(parent, os.W_OK | os.X_OK):
            raise RunFolderError(
                f"{self.path} cannot be written: no permission in {parent}; give --out"
            )

    def check_format(self) -> dict[str, Any]:
        """environment.json, if this is a run folder of the format that this version reads."""
        if not self.path.is_dir():
            raise RunFolderError(f"there is no run folder {self.path}")
        if not self.is_run:
            raise RunFolderError(
                f"{self.path} is no run folder: it has no environment.json that tells its format"
            )
        environment = self.json("environment.json")
        if environment["format"] != FORMAT:
            raise RunFolderError(
                f"{self.path} is a run folder of format {environment['format']!r}; this version "
                f"of nearkin reads format {FORMAT}: use the version that wrote it"
            )
        return environment

    def open(self, recipe: str, seed: int, processes: int) -> None:
        """Make the folder afresh, with its recipe and environment. A run that stood here is
        removed."""
        if self.is_run:
            self.clear()
        self.path.mkdir(parents=True, exist_ok=True)
        self.write_json("environment.json", environment(seed, processes))
        self.write_text("recipe.yaml", recipe)

    def write_text(self, name: str, text: str) -> None:
        """Write a text file, whole or not at all."""
        target = self.path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = aside(target)
        try:
            temporary.write_text(text, encoding="utf-8")
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON file, whole or not at all; NaN has no place in JSON and raises."""
        self.write_text(name, json.dumps(value, indent=1, allow_nan=False) + "\n")

    def write_arrays(self, name: str, **arrays: Any) -> None:
        """Write an .npz without pickles, whole or not at all."""
        write_npz(self.path / name, **arrays)

    def json(self, name: str) -> Any:
        """Read a JSON file of the folder."""
        try:
            return json.loads((self.path / name).read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError) as error:
            raise RunFolderError(f"{self.path / name} cannot be read: {error}") from None

    def text(self, name: str) -> str:
        """Read a text file of the folder."""
        try:
            return (self.path / name).read_text(encoding="utf-8")
        except OSError as error:
            raise RunFolderError(f"{self.path / name} cannot be read: {error}") from None


def _is_aside(name: str) -> bool:
    """Whether a killed process may have left this in place of a file of the run."""
    stem, _, number = name.rpartition(".")
    return number.isdecimal() and stem in {f".{file}" for file in FILES}


class Log:
    """log.jsonl, a line a record. After a resume it goes on at the byte where the saved state
    stood."""

    def __init__(self, path: Path, at: int = 0):
        with open(path, "ab"):  # the file must exist to be cut
            pass
        os.truncate(path, min(at, path.stat().st_size))
        self._file = open(path, "ab")  # noqa: SIM115  open for as long as the run

    def __call__(self, record: dict[str, Any]) -> int:
        """Append a record; returns the length of the log in bytes."""
        self._file.write(json.dumps(_finite(record)).encode() + b"\n")
        self._file.flush()
        return self._file.tell()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _finite(value: Any) -> Any:
    """NaN and infinity as None: JSON has no word for them."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value


def write_npz(path: Path, **arrays: Any) -> None:
    """Write an .npz without pickles, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = aside(path)
    try:
        with open(temporary, "wb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def environment(seed: int, processes: int) -> dict[str, Any]:
    """Versions, hardware, seed and commit: what a person needs to make the run again."""
    import sklearn
    import torch

    import nearkin

    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    return {
        "format": FORMAT,
        "nearkin": nearkin.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "scikit-learn": sklearn.__version__,
        "system": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        "processes": processes,
        "seed": seed,
        "commit": _commit(),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _commit() -> str | None:
    """The commit of nearkin's own source, where it runs from a checkout."""
    here = Path(__file__).resolve().parent
    try:
        said = subprocess.run(
            ["git", "-C", str(here), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return said.stdout.strip() or None
