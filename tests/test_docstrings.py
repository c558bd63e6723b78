"""The site's docstrings: two columns become lists, formulas keep their lines."""

import importlib.util
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def markdown():
    pytest.importorskip("griffe")
    spec = importlib.util.spec_from_file_location("docstrings", DOCS / "docstrings.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.markdown


def test_settings_become_a_list_with_their_continuations(markdown):
    said = "What it is.\n\nitems      paths or\n           arrays\nk, n       numbers"
    assert markdown(said) == "What it is.\n\n- **items**: paths or arrays\n- **k, n**: numbers"


def test_formulas_keep_their_lines(markdown):
    said = "tightness = -mean s          contrast = log Σ e^s"
    assert markdown(said) == f"```text\n{said}\n```"
    assert markdown("as in\n    x = y") == "```text\nas in\n    x = y\n```"


def test_plain_words_stay(markdown):
    said = "One sentence. Another,\nthat goes on."
    assert markdown(said) == said
