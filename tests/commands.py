"""Fixtures of the tests that call commands: in this process, in a folder of their own."""

import contextlib
import io
import re
from pathlib import Path

import numpy as np
import pytest
import tiny_runs
import yaml

from nearkin import cli

SMALL = (
    "encoder.small_cnn.width=8",
    "encoder.small_cnn.dim=8",
    "train.epochs=1",
    "evaluate=[recall@1,map@r]",
)


@pytest.fixture
def files_below():
    """Paths of all files in a folder and below it."""

    def listed(folder):
        files = (path for path in Path(folder).rglob("*") if path.is_file())
        return sorted(path.relative_to(folder).as_posix() for path in files)

    return listed


@pytest.fixture
def small():
    """Settings of a run on pictures that take seconds."""
    return SMALL


@pytest.fixture
def call(capsys, tmp_path, monkeypatch):
    """Runs a command, in a folder of its own: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("NEARKIN_DEBUG", raising=False)

    def run(*arguments):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        return stop.value.code, said.out, said.err

    return run


@pytest.fixture
def good(call):
    """Runs a command that must succeed: its stdout."""

    def run(*arguments):
        code, out, err = call(*arguments)
        assert code == 0, err
        return out

    return run


@pytest.fixture
def bad(call):
    """Runs a command that must fail with one sentence and nothing on stdout."""

    def run(*arguments, says, code=2, notes=False):
        seen, out, err = call(*arguments)
        assert seen == code, (out, err)
        assert out == ""
        assert "Traceback" not in err
        assert re.search(says, err), err
        lines = err.splitlines()
        assert lines[-1].startswith("nearkin: ")
        assert notes or len(lines) == 1
        return err

    return run


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """(folder, stdout, stderr) of one `nearkin train digits --json`."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    out, err = io.StringIO(), io.StringIO()
    command = ["train", "digits", *SMALL, "--out", str(folder), "--json"]
    to_text = contextlib.redirect_stdout(out), contextlib.redirect_stderr(err)
    with to_text[0], to_text[1], pytest.raises(SystemExit, match=r"^0$"):
        cli.main(command)
    return folder, out.getvalue(), err.getvalue()


@pytest.fixture(scope="session")
def trained(finished):
    """A run that is only read."""
    return finished[0]


@pytest.fixture
def blink(tmp_path):
    """The path of a recipe that trains in a blink."""
    rows = tiny_runs.write_rows(tmp_path / "rows.npz")
    recipe = tiny_runs.recipe(rows, train={"epochs": 2})
    path = tmp_path / "blink.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


@pytest.fixture
def vectors(tmp_path):
    """Writes an .npz of embeddings: 4 classes of 10 rows, with changes."""

    def write(name="z.npz", **changes):
        random = np.random.default_rng(0)
        label = np.repeat(np.arange(4), 10)
        z = np.eye(4)[label] + 0.3 * random.normal(size=(40, 4))
        arrays = {"embeddings": z.astype(np.float32), "labels": label, **changes}
        path = tmp_path / name
        np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
        return path

    return write
