"""The direction of imports: an arrow that turns back, or goes sideways in a wide folder, fails."""

import ast
from pathlib import Path

import pytest

import nearkin

SOURCE = Path(nearkin.__file__).parent

# Layer of each module or package; a module imports lower layers, and its own package.
LAYERS = {
    "closed": 0,
    "fast": 0,
    "multiply": 0,
    "positives": 0,
    "blocked": 0,
    "ranks": 0,
    "soft_ranks": 0,
    "core": 0,
    "reduce": 0,
    "rows": 0,
    "archives": 1,
    "boxes": 1,
    "cache": 1,
    "jit": 1,
    "passes": 1,  # fast finds them by name where numba is installed
    "cells": 1,
    "checkpoint": 1,
    "checks": 1,
    "compare": 1,
    "critics": 1,
    "guards": 1,
    "mining": 1,
    "sample": 1,
    "runtime": 1,
    "ahead": 1,
    "augment": 1,
    "crops": 1,
    "inputs": 1,
    "whitening": 1,
    "features": 1,
    "identities": 1,
    "folding": 1,
    "extraction": 1,
    "pretrained": 1,
    "pixels": 1,
    "pictures": 1,
    "store": 1,
    "optimizers": 1,
    "schedules": 1,
    "learners": 1,
    "search": 1,
    "losses": 1,
    "information": 2,
    "objectives": 2,
    "encoders": 2,
    "data": 2,
    "evaluation": 2,
    "methods": 3,
    "loop": 4,
    "catalog": 5,
    "settings": 5,
    "config": 5,
    "report": 6,
    "run_folder": 6,
    "measure": 6,
    "panel": 6,
    "console": 6,
    "model": 6,
    "assemble": 6,
    "run": 6,
    "measured": 6,
    "informed": 6,
    "floors": 6,
    "embed_files": 6,
    "preparing": 6,
    "reporting": 6,
    "standalone": 6,
    "batches": 6,
    "cli": 6,
    "cli_evaluate": 6,
    "cli_index": 6,
    "shell": 6,
    "detail": 6,
    "detail_tables": 6,
    "index_files": 6,
}
# Files of a wide folder never import each other, but for the files named here.
WIDE = {
    "losses": set(),
    "objectives": {"base"},
    "encoders": {"base"},
    "methods": {"base"},
    "data": {"base", "splits", "images", "rendering", "official", "listing"},
}
# Within a layer: who may import whom, one way only.
BESIDE = {
    "positives": {"fast"},
    "closed": {"fast", "multiply", "positives"},
    "core": {"closed", "multiply", "positives"},
    "blocked": {"closed", "fast", "multiply"},
    "soft_ranks": {"closed", "positives"},
    "reduce": {"blocked", "closed", "core", "positives"},
    "jit": {"cache"},
    "passes": {"jit"},
    "cells": {"jit", "passes"},
    "augment": {"runtime"},
    "pixels": {"boxes", "cache"},
    "whitening": {"inputs"},
    "features": {"cache", "extraction", "identities", "inputs", "pixels", "runtime"},
    "identities": {"cache"},
    "store": {"cache"},
    "ahead": {"inputs"},
    "folding": {"runtime"},
    "extraction": {"ahead", "folding", "inputs"},
    "crops": {"pixels"},
    "pretrained": {"cache"},
    "pictures": {"ahead", "cache", "crops", "inputs", "pixels", "runtime", "store"},
    "evaluation": {"information"},
    "search": {"cache", "jit"},
    "settings": {"catalog"},
    "config": {"catalog", "settings"},
}


def _imports(path: Path) -> set[tuple[str, ...]]:
    """("losses", "pairwise") for `from nearkin.losses.pairwise import x`; imports for types count
    too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names = [node.module]
            if node.module == "nearkin":
                # `from nearkin import __version__` names no module.
                names = [f"nearkin.{a.name}" for a in node.names if not a.name.startswith("_")]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        found |= {tuple(n.split(".")[1:]) for n in names if n.startswith("nearkin.")}
    return found


def _modules() -> list[Path]:
    inside = [p for p in SOURCE.rglob("*.py") if p.parent != SOURCE or p.stem[0] != "_"]
    return sorted(inside)


def _place(path: Path) -> tuple[str, ...]:
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" else parts


def _allowed(here: tuple[str, ...], there: tuple[str, ...]) -> bool:
    mine, other = here[0], there[0]
    if mine == other:
        # The check of a person's data reads them as the sets do.
        wide = None if here == ("data", "check") else WIDE.get(mine)
        return wide is None or len(there) < 2 or there[1] in wide or there == here
    if other in BESIDE.get(mine, set()) or (LAYERS[mine] == LAYERS[other] == 6):
        return True
    return LAYERS[other] < LAYERS[mine]


@pytest.mark.parametrize("path", _modules(), ids=lambda path: "/".join(_place(path)))
def test_imports_never_turn_back(path):
    here = _place(path)
    assert here[0] in LAYERS, f"{here[0]} has no layer; give it one"
    wrong = [".".join(there) for there in _imports(path) if not _allowed(here, there)]
    assert not wrong, f"{'.'.join(here)} may not import {', '.join(wrong)}"


def test_losses_import_core_and_what_computes_only():
    for path in (SOURCE / "losses").glob("*.py"):
        assert {there[0] for there in _imports(path)} <= {
            "closed",
            "core",
            "fast",
            "positives",
            "ranks",
            "reduce",
            "soft_ranks",
        }, path.name


def test_the_loop_knows_no_loss_encoder_or_data_set():
    known = {there[0] for there in _imports(SOURCE / "loop.py")}
    assert known.isdisjoint({"losses", "encoders", "data", "objectives", "methods"})


def test_no_module_shares_a_name_with_a_public_function():
    modules = {_place(path)[0] for path in _modules()} - {"run", "model"}
    functions = {name for name in nearkin.__all__ if name[0].islower()}
    assert modules.isdisjoint(functions)


def test_importing_the_package_does_not_import_torch():
    import subprocess
    import sys

    code = "import sys, nearkin, nearkin.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
