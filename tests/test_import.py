"""`import nearkin`: quick, lazy, and every name is to be had."""

import subprocess
import sys

import pytest

import nearkin as nk

HEAVY = ("torch", "numpy", "sklearn", "scipy", "matplotlib", "PIL", "plotly", "jinja2", "pydantic")


@pytest.mark.parametrize("name", nk.__all__)
def test_every_public_name_is_to_be_had(name):
    thing = getattr(nk, name)
    assert thing is getattr(nk, name)
    assert name == "__version__" or thing.__name__ == name


def test_all_and_the_places_agree():
    assert sorted(nk.__all__) == sorted([*nk._PLACES, "__version__"])
    assert set(nk.__all__) <= set(dir(nk))


def test_names_that_are_not_there_are_told_with_the_nearest():
    with pytest.raises(AttributeError, match="no 'critrion'; did you mean 'criterion'"):
        _ = nk.critrion
    with pytest.raises(AttributeError, match="no 'xyz'; it has Batch, Comparison"):
        _ = nk.xyz
    assert not hasattr(nk, "zzz")
    with pytest.raises(ImportError, match="cannot import name 'sampleer'"):
        exec("from nearkin import sampleer")


def test_importing_it_imports_nothing_heavy():
    code = f"import sys, nearkin; print([n for n in {HEAVY} if n in sys.modules])"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"


def test_importing_what_trains_leaves_plots_and_pictures_for_later():
    late = ("sklearn", "scipy", "matplotlib", "PIL", "plotly", "jinja2", "typer")
    code = (
        "import sys, nearkin.standalone, nearkin.model, nearkin.evaluation; "
        f"print([n for n in {late} if n in sys.modules])"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"
