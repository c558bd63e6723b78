"""The cache folder: where it is, what survives, what is made again."""

from pathlib import Path

import numpy as np
import pytest

from nearkin.cache import cache_folder, cached_arrays, fingerprint, keep

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


def test_a_failed_write_leaves_nothing_behind(cache: Path):
    def fail(file) -> None:
        file.write(b"half")
        raise OSError("no space left")

    with pytest.warns(UserWarning, match="no space left"):
        assert not keep(cache / "b.npz", fail)
    assert list(cache.iterdir()) == []


def test_fingerprints_tell_settings_apart():
    assert fingerprint(1, "a", [2]) == fingerprint(1, "a", [2])
    assert fingerprint({"b": 1, "a": 2}) == fingerprint({"a": 2, "b": 1})
    assert len({fingerprint(1, 2), fingerprint(12), fingerprint("1", 2), fingerprint([1, 2])}) == 4
