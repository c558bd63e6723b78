"""Exact resume: however a run was stopped, it ends as if it had not been."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny_runs
from tiny_runs import assert_identical, recipe, write_rows

import nearkin as nk
from nearkin import checkpoint, run
from nearkin.console import Reporter
from nearkin.loop import Interrupted, Loop

KINDS = {
    "adamw": {},
    "momentum": {"optim": {"default": tiny_runs.MOMENTUM}},
    "memory": {"objective": tiny_runs.MEMORY},
    "sum": {
        "objective": {
            "sum": {
                "parts": {"a": tiny_runs.CRITIC, "b": tiny_runs.COMPARED},
                "weights": {"a": 0.3},
            }
        },
        "optim": {"default": tiny_runs.ADAMW, "critic": tiny_runs.MOMENTUM},
    },
    "alternating": {"objective": tiny_runs.ALTERNATING},
    "steps": {"train": {"steps": 15}},
    "rankmi": {
        "objective": tiny_runs.RANKMI,
        "sampler": {"balanced": {"classes": 4, "per_class": 4}},
        "optim": {"default": tiny_runs.ADAMW, "statistics": {"adam": {"lr": 0.01}}},
    },
    "head": {"encoder": {"head": {"dim": 4, "start": "whitened", "dropout": 0.2}}},
}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def whole(tmp_path_factory, rows):
    """Uninterrupted runs, each trained once."""
    trained = {}

    def run_of(name, **changes):
        if name not in trained:
            out = tmp_path_factory.mktemp("whole") / "run"
            train(recipe(rows, **changes), out)
            trained[name] = out
        return trained[name]

    return run_of


class Hook(Reporter):
    """Does something to the run after a step."""

    def __init__(self, at, act):
        super().__init__(None)
        self.at, self.act, self.said = at, act, []

    def say(self, text):
        self.said.append(text)

    def step(self, epochs, steps):
        def hear(state, batches):
            if state.step == self.at:
                self.act()

        return hear


def train(said, out, reporter=None, **settings):
    return nk.train(said, out=out, reporter=reporter or Reporter(None), **settings)


def break_off():
    raise KeyboardInterrupt


def press():
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("select", ["last", "validation"])
def test_an_epoch_that_steps_cut_short_is_validated_after_an_interruption(
    tmp_path, rows, whole, select
):
    cut = {"train": {"steps": 4, "select": select, "schedule": None}}
    said, out = recipe(rows, **cut), tmp_path / "run"
    with pytest.raises(Interrupted):
        train(said, out, Hook(4, press))
    assert not tiny_runs.lines(out, "epoch")
    train(said, out, resume=True)
    assert_identical(whole(f"cut {select}", **cut), out)
    assert [r["step"] for r in tiny_runs.lines(out, "epoch")] == [4]


def test_a_run_of_a_version_that_knew_fewer_settings_goes_on(tmp_path, rows, whole):
    said, out = recipe(rows), tmp_path / "run"
    with pytest.raises(Interrupted):
        train(said, out, Hook(9, press))
    kept = out / "recipe.yaml"
    lines = kept.read_text(encoding="utf-8").splitlines(keepends=True)
    older = [line for line in lines if line.strip() != "steps: null"]
    assert len(older) == len(lines) - 1
    kept.write_text("".join(older), encoding="utf-8")
    train(said, out, resume=True)
    kept.write_text("".join(lines), encoding="utf-8")
    assert_identical(whole("adamw"), out)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(("at", "act"), [(9, break_off), (14, press)])
def test_an_interrupted_run_ends_like_an_uninterrupted_one(tmp_path, rows, whole, name, at, act):
    said, out = recipe(rows, **KINDS[name]), tmp_path / "run"
    with pytest.raises(Interrupted):
        train(said, out, Hook(at, act))
    assert not (out / "metrics.json").exists()
    train(said, out, resume=True)
    assert_identical(whole(name, **KINDS[name]), out)


def test_a_run_interrupted_again_and_again_ends_the_same(tmp_path, rows, whole, monkeypatch):
    monkeypatch.setattr(Loop, "save_seconds", 0.0)
    said, out = recipe(rows), tmp_path / "run"
    for at in (1, 2, 8, 16, 17, 23, 24):
        with pytest.raises(Interrupted):
            train(said, out, Hook(at, break_off), resume=True)
    train(said, out, resume=True)
    assert_identical(whole("adamw"), out)


SELECTED = {
    "train": {"select": "validation", "epochs": 6, "schedule": None},
    "optim": {"default": {"adamw": {"lr": 0.1}}},
}


def test_the_best_epoch_before_the_interruption_is_remembered(tmp_path, rows, whole):
    before = whole("selected", **SELECTED)
    selected = json.loads((before / "metrics.json").read_text())["selected"]
    assert selected["epoch"] < 4, "the test needs a best epoch before the last"
    said, out = recipe(rows, **SELECTED), tmp_path / "run"
    with pytest.raises(Interrupted):
        train(said, out, Hook(5 * 6 - 1, break_off))
    train(said, out, resume=True)
    assert_identical(before, out)


@pytest.mark.parametrize("file", ["embeddings.npz", "metrics.json", "report.html"])
def test_a_run_stopped_while_it_writes_the_end_ends_the_same(
    tmp_path, rows, whole, monkeypatch, file
):
    said, out = recipe(rows, **SELECTED), tmp_path / "run"

    def broken(*_, **__):
        (out / f".{file}.1234").write_text("half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if file == "report.html":
            patch.setattr(run, "write_report", broken)
        else:
            name = "write_arrays" if file == "embeddings.npz" else "write_json"
            real = getattr(run.RunFolder, name)
            patch.setattr(
                run.RunFolder,
                name,
                lambda self, at, *a, **k: broken() if at == file else real(self, at, *a, **k),
            )
        with pytest.raises(Interrupted):
            train(said, out)
    train(said, out, resume=True)
    assert_identical(whole("selected", **SELECTED), out)
    assert not list(out.glob(".*"))


def test_an_interruption_says_how_to_go_on_and_the_sentence_works(tmp_path, rows, whole):
    out = tmp_path / "a run"
    with pytest.raises(Interrupted) as raised:
        train(recipe(rows), out, Hook(7, press))
    text = str(raised.value)
    assert text.startswith("interrupted at step 7; the state is saved; go on with: nearkin train ")
    assert text.endswith(f"--out '{out}' --resume")
    reporter = Hook(0, break_off)
    nk.train(out / "recipe.yaml", out=out, resume=True, reporter=reporter)
    assert any("going on at step 7" in line for line in reporter.said)
    assert_identical(whole("adamw"), out)


def test_resume_without_a_run_starts_one(tmp_path, rows, whole):
    train(recipe(rows), tmp_path / "run", resume=True)
    assert_identical(whole("adamw"), tmp_path / "run")


def test_resume_of_a_finished_run_says_so_and_changes_nothing(tmp_path, rows, whole):
    out = tmp_path / "run"
    shutil.copytree(whole("adamw"), out)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    reporter = Hook(0, break_off)
    done = train(recipe(rows), out, reporter, resume=True)
    assert reporter.said == [f"the run in {out} is finished; nothing is left to do"]
    assert done.metrics == json.loads((out / "metrics.json").read_text())
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_resume_with_another_recipe_raises_and_names_the_difference(tmp_path, rows, whole):
    out = tmp_path / "run"
    shutil.copytree(whole("adamw"), out)
    with pytest.raises(ValueError, match=r"started with another recipe \(they differ in 'optim'\)"):
        train(recipe(rows, optim={"default": tiny_runs.MOMENTUM}), out, resume=True)
    with pytest.raises(ValueError, match="they differ in 'train'"):
        train(recipe(rows, train={"epochs": 5}), out, resume=True)


def test_resume_may_change_the_device_and_the_workers(tmp_path, rows, whole):
    out = tmp_path / "run"
    with pytest.raises(Interrupted):
        train(recipe(rows), out, Hook(3, press))
    train(recipe(rows, train={"device": "cpu", "workers": 1}), out, resume=True)
    assert_identical(whole("adamw"), out)


def test_resume_says_where_the_last_digits_may_differ(tmp_path, rows):
    out = tmp_path / "run"
    with pytest.raises(Interrupted):
        train(recipe(rows), out, Hook(20, press))
    environment = json.loads((out / "environment.json").read_text())
    (out / "environment.json").write_text(json.dumps({**environment, "threads": 64}))
    reporter = Hook(0, break_off)
    train(recipe(rows), out, reporter, resume=True)
    assert any("started with 64 threads and goes on with 1" in line for line in reporter.said)


def test_a_damaged_checkpoint_raises_and_stays(tmp_path, rows):
    out = tmp_path / "run"
    with pytest.raises(Interrupted):
        train(recipe(rows), out, Hook(3, press))
    state = out / "checkpoint" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:100])
    with pytest.raises(ValueError, match="damaged"):
        train(recipe(rows), out, resume=True)
    assert state.stat().st_size == 100


def test_a_run_killed_before_its_first_checkpoint_starts_again(tmp_path, rows, whole):
    out = tmp_path / "run"
    with pytest.raises(Interrupted):
        train(recipe(rows), out, Hook(3, press))
    shutil.rmtree(out / "checkpoint")
    with pytest.raises(ValueError, match="they differ in 'seed'"):
        train(recipe(rows, seed=1), out, resume=True)
    (out / "recipe.yaml").unlink()  # the folder was not yet whole
    train(recipe(rows), out, resume=True)
    assert_identical(whole("adamw"), out)


KILLED = """
import json, sys
import torch
torch.set_num_threads(1)
import nearkin as nk
from nearkin.console import Reporter
from nearkin.loop import Loop
Loop.save_seconds = float(sys.argv[3])

class Slow(Reporter):
    def say(self, text):
        print("ready", flush=True)

    def step(self, epochs, steps):
        import time
        return lambda state, batches: time.sleep(0.02)

nk.train(json.loads(sys.argv[1]), out=sys.argv[2], resume=True, reporter=Slow(None))
print("done", flush=True)
"""


def killed_until_done(said, out, seconds, seed, kills=2):
    """Start again and again, kill at random moments from the first measurement on, then wait."""
    chance, arguments = random.Random(seed), [json.dumps(said), str(out), str(seconds)]
    home = {**os.environ, "NEARKIN_HOME": str(Path(out).parent / "home")}
    killed = 0
    for turn in range(kills + 1):
        command = [sys.executable, "-c", KILLED, *arguments]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=home) as process:
            assert process.stdout is not None
            if process.stdout.readline().strip() == "ready" and turn < kills:
                time.sleep(chance.uniform(0, 0.9))
                process.kill()
            rest = process.stdout.read()
        killed += process.returncode == -signal.SIGKILL
        if "done" in rest:
            return killed
    raise AssertionError(f"the last start ended with {process.returncode}")


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_a_run_killed_at_random_moments_ends_like_an_uninterrupted_one(tmp_path, rows, whole, name):
    said, out = recipe(rows, **KINDS[name]), tmp_path / "run"
    often = name != "sum"  # else only the checkpoints of epochs are there
    killed = killed_until_done(said, out, 0.05 if often else 60, seed=len(name))
    assert killed >= 1
    assert_identical(whole(name, **KINDS[name]), out)
    left = [p.name for p in out.rglob("*") if p.name.startswith(".")]
    assert left == []


def test_a_checkpoint_stands_at_every_epoch(tmp_path, rows):
    out, seen = tmp_path / "run", []

    class Watch(Reporter):
        def epoch(self, epoch, scores):
            seen.append(checkpoint.load(out / "checkpoint" / "state.safetensors")[1]["state"])

    train(recipe(rows), out, Watch(None))
    assert [state["step"] for state in seen] == [0, 6, 12, 18]
    last = checkpoint.load(out / "checkpoint" / "state.safetensors")[1]["state"]
    assert (last["step"], last["finished"]) == (24, True)


def test_a_finished_run_without_its_checkpoint_is_still_finished(tmp_path, rows, whole):
    out = tmp_path / "run"
    shutil.copytree(whole("adamw"), out)
    shutil.rmtree(out / "checkpoint")
    reporter = Hook(0, break_off)
    train(recipe(rows), out, reporter, resume=True)
    assert reporter.said == [f"the run in {out} is finished; nothing is left to do"]
    assert (out / "model" / "encoder.safetensors").is_file()


def test_resume_on_other_training_rows_raises(tmp_path):
    out, data = tmp_path / "run", write_rows(tmp_path / "rows.npz")
    with pytest.raises(Interrupted):
        train(recipe(data), out, Hook(3, press))
    write_rows(data, per_class=13)
    with pytest.raises(ValueError, match="the training data have changed"):
        train(recipe(data), out, resume=True)
