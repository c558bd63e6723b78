"""What holds for every test: what is said once is said once a test, and caches live in a folder of
their own."""

import pytest

from nearkin import core


@pytest.fixture(autouse=True)
def _alone(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(core, "_said", set())
    monkeypatch.setenv("NEARKIN_HOME", str(tmp_path_factory.getbasetemp() / "home"))
