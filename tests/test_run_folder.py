"""The run folder: what is replaced, what is never touched, formats, and its log."""

import json
import os

import pytest
import tiny_runs
from tiny_runs import recipe

import nearkin as nk
from nearkin.console import Reporter
from nearkin.run_folder import Log, RunFolder, RunFolderError

pytestmark = pytest.mark.usefixtures("one_thread")


def train(said, out, **settings):
    return nk.train(said, out=out, reporter=Reporter(None), **settings)


def test_an_existing_run_is_replaced_with_force_alone(tmp_path, rows):
    out = tmp_path / "run"
    train(recipe(rows), out)
    stamp = (out / "metrics.json").stat().st_mtime_ns
    with pytest.raises(RunFolderError, match="exists; go on with --resume, replace it with"):
        train(recipe(rows), out)
    assert (out / "metrics.json").stat().st_mtime_ns == stamp
    train(recipe(rows, seed=3), out, force=True)
    assert json.loads((out / "environment.json").read_text())["seed"] == 3
    with pytest.raises(ValueError, match="ask for one of them"):
        train(recipe(rows), out, force=True, resume=True)


def test_a_recipe_that_fails_does_not_touch_the_run_it_would_replace(tmp_path, rows):
    out = tmp_path / "run"
    train(recipe(rows), out)
    with pytest.raises(ValueError, match="names no learner"):
        train(
            recipe(rows, optim={"default": tiny_runs.ADAMW, "x": tiny_runs.ADAMW}), out, force=True
        )
    assert RunFolder(out).finished


@pytest.mark.parametrize("how", [{}, {"force": True}, {"resume": True}])
def test_a_folder_with_other_files_is_never_touched(tmp_path, rows, how):
    out = tmp_path / "mine"
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    (out / "environment.json").write_text('{"name": "of another program"}')
    with pytest.raises(RunFolderError, match="holds other files and is no run folder"):
        train(recipe(rows), out, **how)
    assert sorted(os.listdir(out)) == ["environment.json", "thesis.tex"]


def test_a_run_folder_with_a_file_of_ones_own_is_not_replaced(tmp_path, rows):
    out = tmp_path / "run"
    train(recipe(rows), out)
    (out / "notes.txt").write_text("mine")
    with pytest.raises(RunFolderError, match=r"not the run's \(notes\.txt\)"):
        train(recipe(rows), out, force=True)
    assert RunFolder(out).finished
    assert (out / "notes.txt").read_text() == "mine"


def test_an_empty_folder_is_as_good_as_none(tmp_path, rows):
    (tmp_path / "run").mkdir()
    assert train(recipe(rows, train={"epochs": 1}), tmp_path / "run").folder == tmp_path / "run"


def test_a_file_in_place_of_the_folder_raises(tmp_path, rows):
    (tmp_path / "run").write_text("x")
    with pytest.raises(RunFolderError, match="is a file"):
        train(recipe(rows), tmp_path / "run")


def test_a_run_of_another_format_raises(tmp_path, rows):
    out = tmp_path / "run"
    train(recipe(rows, train={"epochs": 1}), out)
    (out / "environment.json").write_text('{"format": 99}')
    for act in (lambda: train(recipe(rows), out, resume=True), lambda: nk.load(out)):
        with pytest.raises(
            RunFolderError, match="format 99; this version of nearkin reads format 1"
        ):
            act()


def test_an_unfinished_run_has_no_model_to_load(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.open("seed: 0\n", 0, 1)
    with pytest.raises(RunFolderError, match="is not finished; end it with --resume"):
        nk.load(tmp_path / "run")


def test_a_run_is_cleared_without_what_is_not_its_own(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.open("seed: 0\n", 0, 1)
    (folder.path / "mine").mkdir()
    (folder.path / ".metrics.json.77").write_text("half")
    (folder.path / "model").mkdir()
    (folder.path / "model" / "encoder.safetensors").write_text("x")
    folder.clear()
    assert os.listdir(folder.path) == ["mine"]


def test_json_has_no_place_for_nan(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        RunFolder(tmp_path).write_json("metrics.json", {"x": float("nan")})
    assert os.listdir(tmp_path) == []


def test_the_log_never_says_nan(tmp_path):
    log = Log(tmp_path / "log.jsonl")
    length = log({"value": float("nan"), "more": [1.5, float("inf")]})
    log.close()
    assert length == (tmp_path / "log.jsonl").stat().st_size
    assert json.loads((tmp_path / "log.jsonl").read_text()) == {"value": None, "more": [1.5, None]}
