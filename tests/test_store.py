"""The file that pictures are kept in: what comes back, what is refused."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nearkin.store import Store, write


def random_pictures(sizes, channels, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randint(0, 256, (channels, *size), generator=generator, dtype=torch.uint8)
        for size in sizes
    ]


def written(path: Path, pictures, channels):
    with path.open("wb") as file:
        write(file, iter(pictures), len(pictures), channels)
    return path


@given(
    sizes=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=12),
    channels=st.sampled_from([1, 3]),
)
@settings(max_examples=30, deadline=None)
def test_what_is_written_comes_back_in_any_order(tmp_path_factory, sizes, channels):
    pictures = random_pictures(sizes, channels)
    store = Store(written(tmp_path_factory.mktemp("s") / "s.bin", pictures, channels))
    assert len(store) == len(sizes)
    for i in reversed(range(len(sizes))):
        assert torch.equal(store[i], pictures[i])


def test_pictures_have_their_channels_last_and_may_be_written_to(tmp_path: Path):
    pictures = random_pictures([(4, 6), (5, 3)], 3)
    path = written(tmp_path / "s.bin", pictures, 3)
    store = Store(path)
    assert store[0].stride() == (1, 18, 3)
    store[1].zero_()
    assert torch.equal(store[1], pictures[1])
    assert path.stat().st_size == 3 * (24 + 15) + 2 * 2 * 4 + 4 * 8


@pytest.mark.parametrize("damage", ["empty", "cut", "cut at the end", "text", "longer", "count"])
def test_a_damaged_file_is_refused(tmp_path: Path, damage):
    path = written(tmp_path / "s.bin", random_pictures([(8, 8)] * 5, 3), 3)
    content = path.read_bytes()
    changed = {
        "empty": b"",
        "cut": content[:500],
        "cut at the end": content[:-1],
        "text": b"x" * 1000,
        "longer": b"xy" + content,
        "count": content[:-8] + np.array([4], "<i8").tobytes(),
    }[damage]
    path.write_bytes(changed)
    with pytest.raises(ValueError, match=r"s\.bin is no whole store|[Ee]mpty"):
        Store(path)
    with pytest.raises(OSError, match="lost"):
        Store(tmp_path / "lost.bin")


def test_a_disk_without_room_is_told_before_it_is_full(tmp_path: Path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=2_000_000)
    monkeypatch.setattr("nearkin.store.shutil.disk_usage", lambda path: usage)
    made = []

    def pictures(count):
        for _ in range(count):
            made.append(1)
            yield torch.zeros(3, 20, 20, dtype=torch.uint8)

    with (tmp_path / "s.bin").open("wb") as file:
        with pytest.raises(OSError, match=r"2000 pictures need 2\.4 MB, and 2\.\d MB are free"):
            write(file, pictures(2000), 2000, 3)
        assert len(made) == 256
        file.seek(0)
        write(file, pictures(1000), 1000, 3)
    assert len(Store(tmp_path / "s.bin")) == 1000
