"""torchrun end to end: as one process, one writer, resume, interruption; nobody waits for ever."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tiny_runs
import yaml
from tiny_runs import assert_identical

from nearkin import checkpoint

pytestmark = pytest.mark.slow

DIGITS = ["digits", "train.epochs=3", "train.select=last", "evaluate=[recall@1, map@r]"]
PATIENCE = 300


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def environment(home, **more):
    said = {"OMP_NUM_THREADS": "1", "NEARKIN_HOME": str(home), "TORCH_CPP_LOG_LEVEL": "ERROR"}
    return {**os.environ, **said, **more}


def started(home, processes, *arguments):
    command = [sys.executable, "-m", "nearkin", *map(str, arguments)]
    if processes > 1:
        how = ["--nproc-per-node", str(processes), "--master-port", str(free_port())]
        command = [sys.executable, "-m", "torch.distributed.run", *how, *command[1:]]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(home),
        start_new_session=True,
    )


def ended(process):
    try:
        out, errors = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return process.returncode, out, errors


def trained(home, processes, *arguments):
    code, out, errors = ended(started(home, processes, "train", *arguments))
    assert code == 0, errors
    return out, errors


def numbers(value, path=""):
    if isinstance(value, dict):
        for key, inner in value.items():
            if key != "seconds":
                yield from numbers(inner, f"{path}/{key}")
    elif isinstance(value, int | float):
        yield path, value


def test_two_processes_measure_what_one_measures_and_one_of_them_writes(tmp_path):
    trained(tmp_path, 1, *DIGITS, "--out", tmp_path / "one")
    out, errors = trained(tmp_path, 2, *DIGITS, "--out", tmp_path / "two", "--json")
    one, two = (
        dict(numbers(json.loads((tmp_path / name / "metrics.json").read_text())))
        for name in ("one", "two")
    )
    assert one.keys() == two.keys()
    for path, value in one.items():
        assert two[path] == pytest.approx(value, abs=1e-3), path
    said = json.loads(out)
    assert said["run"] == str(tmp_path / "two")
    assert errors.count("measuring the untrained encoder") == 1
    environment = json.loads((tmp_path / "two" / "environment.json").read_text())
    assert environment["processes"] == 2
    steps = [tiny_runs.lines(tmp_path / name, "step") for name in ("one", "two")]
    assert [r["step"] for r in steps[0]] == [r["step"] for r in steps[1]]
    for a, b in zip(*steps, strict=True):
        assert b["terms"] == pytest.approx(a["terms"], abs=1e-3)
    panels = [tiny_runs.lines(tmp_path / name, "panel") for name in ("one", "two")]
    assert [(r["of"], r["step"]) for r in panels[0]] == [(r["of"], r["step"]) for r in panels[1]]
    for a, b in zip(*panels, strict=True):
        # A cosine in its last digit may change its bin.
        assert dict(numbers(b)) == pytest.approx(dict(numbers(a)), abs=1e-2)


def wait_for(state, step):
    began = time.monotonic()
    while time.monotonic() - began < PATIENCE:
        if state.is_file() and checkpoint.load(state)[1]["state"]["step"] >= step:
            return
        time.sleep(0.02)
    raise AssertionError("the checkpoint never came")


def children(number):
    """torchrun gives its processes sessions of their own, and they outlive it."""
    return [
        int(each) for each in Path(f"/proc/{number}/task/{number}/children").read_text().split()
    ]


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="looks for processes in /proc")
def test_two_processes_that_were_interrupted_and_killed_end_like_those_that_were_not(tmp_path):
    data = tiny_runs.write_rows(tmp_path / "rows.npz", per_class=40)
    said = tiny_runs.recipe(data, train={"epochs": 24}, objective=tiny_runs.ALTERNATING)
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(yaml.safe_dump(said))
    trained(tmp_path, 2, recipe, "--out", tmp_path / "whole")

    out = tmp_path / "run"
    state = out / "checkpoint" / "state.safetensors"
    process = started(tmp_path, 2, "train", recipe, "--out", out)
    wait_for(state, 40)
    os.killpg(process.pid, signal.SIGINT)
    code, _, errors = ended(process)
    assert code != 0
    assert "interrupted at step" in errors
    assert "--resume" in errors
    assert not (out / "metrics.json").exists()

    process = started(tmp_path, 2, "train", recipe, "--out", out, "--resume")
    wait_for(state, checkpoint.load(state)[1]["state"]["step"] + 40)
    for number in [*children(process.pid), process.pid]:
        os.kill(number, signal.SIGKILL)
    ended(process)
    assert not (out / "metrics.json").exists()

    trained(tmp_path, 2, recipe, "--out", out, "--resume")
    assert_identical(tmp_path / "whole", out)


def test_wrong_input_ends_all_processes_with_one_sentence(tmp_path):
    process = started(
        tmp_path, 2, "train", "digits", "train.device=cuda:9", "--out", tmp_path / "x"
    )
    code, out, errors = ended(process)
    assert code != 0
    assert out == ""
    assert errors.count("nearkin: device 'cuda:9' is not to be had here") == 1
    assert not (tmp_path / "x").exists()


ONE_FAILS = """
import os, sys
import torch
from torch import nn
import nearkin as nk
from nearkin.console import Reporter

class Breaks(nn.Module):
    dim = 4

    def __init__(self):
        super().__init__()
        self.net, self.calls = nn.Linear(6, 4), 0

    def forward(self, x):
        self.calls += self.training
        if self.calls == 5 and os.environ["RANK"] == "1":
            raise ZeroDivisionError("this process alone")
        return self.net(x)

nk.train(sys.argv[1], encoder=Breaks(), out=sys.argv[2], reporter=Reporter(None))
"""


def test_when_one_process_fails_the_others_do_not_wait_for_ever(tmp_path):
    data = tiny_runs.write_rows(tmp_path / "rows.npz")
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(yaml.safe_dump(tiny_runs.recipe(data)))
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    both = [
        subprocess.Popen(
            [sys.executable, "-c", ONE_FAILS, str(recipe), str(tmp_path / "run")],
            stderr=subprocess.PIPE,
            text=True,
            env=environment(tmp_path, RANK=str(place), **where),
            start_new_session=True,
        )
        for place in range(2)
    ]
    (first, _, said), (second, _, cause) = map(ended, both)
    assert first == second == 1
    assert "ZeroDivisionError: this process alone" in cause
    assert "ConnectionError: process 0 lost the others" in said
    assert Path(tmp_path / "run" / "checkpoint" / "state.safetensors").is_file()


@pytest.mark.parametrize(
    ("rows", "dim", "classes"), [(61, 5, 9), (2600, 64, 650)], ids=("float64", "screened")
)
def test_two_processes_evaluate_as_one_and_one_of_them_speaks(tmp_path, rows, dim, classes):
    generator = np.random.default_rng(0)
    file = tmp_path / "rows.npz"
    labels = np.arange(rows) % classes
    np.savez(file, embeddings=generator.normal(size=(rows, dim)), labels=labels)
    both = [started(tmp_path, processes, "evaluate", file, "--json") for processes in (1, 2)]
    said = []
    for code, out, errors in map(ended, both):
        assert code == 0, errors
        said.append(json.loads(out))
    assert said[0] == said[1]
