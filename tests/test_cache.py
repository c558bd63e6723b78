"""The cache folder: where it is, what survives, what is made again."""

import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

from nearkin.cache import cache_folder, cached_arrays, fingerprint, keep, versions

pytestmark = pytest.mark.usefixtures("cache")


def _counted(made: list[int]):
    def make() -> dict[str, np.ndarray]:
        made.append(1)
        return {"x": np.arange(1000), "y": np.array([len(made)])}

    return make


def test_the_folder_is_nearkin_home(cache: Path):
    assert cache_folder() == cache


def test_without_nearkin_home_the_folder_is_in_the_home(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("NEARKIN_HOME")
    assert cache_folder() == Path.home() / ".cache" / "nearkin"


def test_arrays_are_made_once(cache: Path):
    made: list[int] = []
    first = cached_arrays("a", _counted(made))
    second = cached_arrays("a", _counted(made))
    assert len(made) == 1
    np.testing.assert_array_equal(first["x"], second["x"])
    assert [path.name for path in cache.iterdir()] == ["a.npz"]


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "text"])
def test_a_corrupt_file_is_made_again(cache: Path, damage: str):
    made: list[int] = []
    cached_arrays("a", _counted(made))
    path = cache / "a.npz"
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        content[len(content) // 2] ^= 255
    whole = {"cut": content[:500], "flipped": content, "empty": b"", "text": b"no archive"}
    path.write_bytes(whole[damage])
    again = cached_arrays("a", _counted(made))
    assert len(made) == 2
    np.testing.assert_array_equal(again["x"], np.arange(1000))
    assert cached_arrays("a", _counted(made))["y"] == [2]


def test_a_folder_that_cannot_be_written_costs_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("NEARKIN_HOME", str(tmp_path / "file" / "below"))
    with pytest.warns(UserWarning, match="cannot be written.*NEARKIN_HOME"):
        arrays = cached_arrays("a", _counted([]))
    assert len(arrays["x"]) == 1000


FULL_DISK = """
import resource, sys, warnings
from pathlib import Path
import numpy as np
from nearkin.cache import cached_arrays, keep

# No file can grow beyond 1000 bytes; of this process alone, which writes to a pipe.
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
warnings.simplefilter("always")
folder = Path(sys.argv[1])
for size in (1001, 100_000):
    assert not keep(folder / f"{size}.npz", lambda file: file.write(bytes(size)))
arrays = cached_arrays("a", lambda: {"x": np.arange(1000)})
assert arrays["x"].tolist() == list(range(1000))
assert keep(folder / "small", lambda file: file.write(b"whole"))
"""


def test_a_full_disk_costs_a_warning_and_leaves_nothing_behind(cache: Path):
    pytest.importorskip("resource")
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(cache)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert re.search("cannot be written.*too large.*NEARKIN_HOME", done.stderr)
    assert [path.name for path in cache.iterdir()] == ["small"]


def test_a_name_that_is_taken_by_a_folder_costs_a_warning(cache: Path):
    (cache / "b.npz").mkdir(parents=True)
    with pytest.warns(UserWarning, match="cannot be written"):
        assert not keep(cache / "b.npz", lambda file: file.write(b"whole"))
    assert [path.name for path in cache.iterdir()] == ["b.npz"]


@pytest.mark.parametrize("error", [FileNotFoundError("lost"), OSError("no such disk"), ValueError])
def test_an_error_of_what_is_written_is_raised_and_leaves_nothing_behind(cache: Path, error):
    def fail(file) -> None:
        file.write(b"half")
        raise error

    with pytest.raises(error if isinstance(error, type) else type(error)):
        keep(cache / "b.npz", fail)
    assert list(cache.iterdir()) == []


def test_versions_are_those_of_the_installed_packages():
    torch, lost = versions("torch", "nearkin-that-is-not-there")
    assert torch == metadata.version("torch")
    assert lost is None


def test_fingerprints_tell_settings_apart():
    assert fingerprint(1, "a", [2]) == fingerprint(1, "a", [2])
    assert fingerprint({"b": 1, "a": 2}) == fingerprint({"a": 2, "b": 1})
    assert len({fingerprint(1, 2), fingerprint(12), fingerprint("1", 2), fingerprint([1, 2])}) == 4
