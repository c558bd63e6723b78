"""Fixtures of the report's tests: a finished run folder, and its view."""

import pytest
from made_up_run import write_run

from nearkin.report import read_run


@pytest.fixture
def run_folder(tmp_path):
    return write_run(tmp_path / "glyphs")


@pytest.fixture
def view(run_folder):
    return read_run(run_folder)
