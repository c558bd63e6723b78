"""What holds for every test: what is said once is said once a test, and caches live in a folder of
their own."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny_runs
import torch
from PIL import Image

from nearkin import core


def pytest_collection_modifyitems(items):
    """Files with slow tests first: the one that is begun last keeps all processes waiting."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session", autouse=True)
def _compiled_once(tmp_path_factory):
    """Compiled loops are shared by all processes of the session, those that tests start too."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NUMBA_CACHE_DIR", str(shared / "numba"))
        yield


@pytest.fixture(autouse=True)
def _alone(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(core, "_said", set())
    monkeypatch.setenv("NEARKIN_HOME", str(tmp_path_factory.getbasetemp() / "home"))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of this test alone."""
    home = tmp_path / "home"
    monkeypatch.setenv("NEARKIN_HOME", str(home))
    return home


@pytest.fixture
def photo() -> Callable[..., Path]:
    """Writes one image of random pixels; the same seed gives the same bytes."""

    def write(path: Path, seed: int = 0, side: int = 20, mode: str = "RGB") -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        shape = (side, side, 3) if mode == "RGB" else (side, side)
        pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
        Image.fromarray(pixels).save(path)
        return path

    return write


@pytest.fixture
def photos(tmp_path: Path, photo: Callable[..., Path]) -> Callable[..., Path]:
    """Writes a folder of classes: photos({"a": 3, "b": 2}) or photos({"train/a": 3, ...})."""

    def write(classes: dict[str, int], name: str = "photos") -> Path:
        root, seed = tmp_path / name, 0
        for each, count in classes.items():
            for i in range(count):
                photo(root / each / f"{i}.png", seed)
                seed += 1
        return root

    return write


@pytest.fixture
def one_thread():
    """Tiny runs are faster on one thread, and two of them agree to the last digit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    """The rows that tiny runs train on."""
    return tiny_runs.write_rows(tmp_path_factory.mktemp("rows") / "rows.npz")
