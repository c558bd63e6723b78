"""Fixtures of the report's tests: a finished run folder, its view, a quick UMAP."""

import sys
import types

import numpy as np
import pytest
from made_up_run import write_run

from nearkin.report import read_run


@pytest.fixture
def run_folder(tmp_path):
    return write_run(tmp_path / "glyphs")


@pytest.fixture
def view(run_folder):
    return read_run(run_folder)


@pytest.fixture
def umap(monkeypatch):
    """A stand-in for the library: it keeps what it was asked and gives the first two columns."""
    asked = []

    class UMAP:
        def __init__(self, **settings):
            asked.append(settings)

        def fit_transform(self, rows):
            return rows[:, :2].astype(np.float32)

    module = types.ModuleType("umap")
    module.UMAP = UMAP
    module.__spec__ = types.SimpleNamespace(name="umap")
    monkeypatch.setitem(sys.modules, "umap", module)
    return asked
