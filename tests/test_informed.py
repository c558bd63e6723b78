"""`nearkin information`: bits of a run or of any embeddings, the calibration, wrong input."""

import json
import math
import re

import numpy as np
import pytest

pytest_plugins = ["commands"]


@pytest.fixture
def file(tmp_path):
    """Writes an .npz of ten classes in eight dimensions, with arrays replaced or left out."""

    def write(**arrays):
        generator = np.random.default_rng(0)
        y = np.repeat(np.arange(10), 30)
        z = 3 * generator.standard_normal((10, 8))[y] + generator.standard_normal((300, 8))
        held = {"embeddings": z.astype(np.float32), "labels": y, **arrays}
        path = tmp_path / "z.npz"
        np.savez(path, **{key: value for key, value in held.items() if value is not None})
        return path

    return write


def test_a_file_of_embeddings(good, file):
    said = json.loads(good("information", file(), "--json"))
    assert set(said) == {"rows", "classes", "ceiling", "probe", "neighbors", "generative"}
    assert (said["rows"], said["classes"]) == (300, 10)
    assert said["ceiling"] == pytest.approx(math.log2(10))
    assert said["probe"]["kind"] == "lower"
    assert said["neighbors"]["kind"] == said["generative"]["kind"] == "neither"
    for view in ("probe", "neighbors"):
        assert 2.5 < said[view]["bits"] < said["ceiling"] + 0.05
    for view in ("probe", "neighbors", "generative"):
        assert said[view]["low"] < said[view]["bits"] < said[view]["high"]


def test_the_table_says_what_each_figure_is(good, file):
    text = good("information", file())
    assert "I(Z;Y), bits" in text
    for line in ("probe .* lower bound", "neighbors .* no bound", "generative .* monitor only"):
        assert any(_matches(line, row) for row in text.splitlines()), line
    assert text.splitlines()[-1] == "300 rows, 10 classes; ceiling H(Y) 3.32"


def _matches(pattern, text):
    return re.search(pattern, text)


def test_texts_are_labels_and_rows_alone_are_left_out(good, file):
    names = np.array([f"kind {c}" for c in np.repeat(np.arange(10), 30)])
    names[0] = "alone"
    text = good("information", file(labels=names))
    assert text.splitlines()[-1].endswith("; 1 rows alone in their class left out")


def test_a_seed_changes_the_folds(good, file):
    path = file()
    one, two, other = (good("information", path, "--seed", s, "--json") for s in ("1", "1", "2"))
    assert one == two != other


def test_a_run_is_measured_on_its_test_classes(good, trained):
    said = json.loads(good("information", trained, "--json"))
    told = json.loads((trained / "metrics.json").read_text())["test"].get("information")
    if told:
        assert said["probe"]["bits"] == pytest.approx(told["bits"])
    assert 0 < said["probe"]["bits"] <= said["ceiling"]


@pytest.mark.filterwarnings("ignore:300 of 300 rows coincide:UserWarning")
def test_a_view_that_says_nothing_gives_its_reason(good, file):
    y = np.repeat(np.arange(10), 30)
    path = file(embeddings=np.eye(10, dtype=np.float32)[y])
    said = json.loads(good("information", path, "--json"))
    assert said["generative"]["bits"] is None
    assert "coincide" in said["generative"]["reason"]
    assert "coincide" in good("information", path)


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"labels": None}, "has no array 'labels'; it has embeddings"),
        (
            {"labels": np.linspace(0, 1, 300)},
            "integers or texts, but label 0 is 0.0",
        ),
        ({"labels": np.zeros(300, int)}, "at least two classes of two rows or more"),
        ({"labels": np.arange(300)}, "at least two classes of two rows or more"),
        ({"labels": np.arange(299) % 3}, "labels has 299 entries but z has 300 rows"),
        ({"embeddings": np.full((300, 2), np.nan, np.float32)}, "first in row 0"),
        ({"embeddings": np.zeros((300, 2, 2), np.float32)}, "z must be a matrix (N, D)"),
    ],
)
def test_wrong_files_are_told_in_a_sentence(bad, file, arrays, said):
    bad("information", file(**arrays), says=re.escape(said))


def test_wrong_sources_and_options_are_told(bad, file, tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    for arguments, said in (
        ((), "give a run or an .npz file with embeddings and labels, or --calibrate"),
        ((file(), "--calibrate"), "or --calibrate; not both"),
        ((file(), "--full"), "--estimators and --full go with --calibrate"),
        ((file(), "--estimators", "ksg"), "go with --calibrate"),
        ((tmp_path / "no.npz",), "there is no file"),
        ((tmp_path / "notes.txt",), "is a file; give a run folder"),
        ((tmp_path / "nowhere",), "nowhere"),
        (("--calibrate", "--estimators", "ksgg"), "there is no estimator 'ksgg'"),
    ):
        bad("information", *arguments, says=re.escape(said))


def test_calibrating_two_estimators(good):
    said = json.loads(good("information", "--calibrate", "--estimators", "cca,mixed", "--json"))
    assert said["rows"] == 2000
    cells = {(cell["estimator"], cell["task"]): cell for cell in said["cells"]}
    normal = cells["cca", "normal 5 x 5, 1 nats"]
    assert normal["truth"] == 1
    assert abs(normal["estimate"] - 1) < 3 * normal["error"]
    assert not normal["broken"]
    assert ("mixed", "normal 5 x 5, 1 nats") not in cells
    assert said["consistency"]["cca"]["doubled"] == pytest.approx(2, abs=0.15)


def test_the_calibration_is_a_table(good):
    text = good("information", "--calibrate", "--estimators", "cca, mixed")
    assert text.startswith("2000 pairs a task, 300 steps of 64 at most, seed 0; nats")
    for line in ("truth .*0.00 .*1.00", r"cca +neither .*± 0.0", r"mixed +neither"):
        assert any(_matches(line, row) for row in text.splitlines()), line


def test_a_broken_bound_is_marked():
    from nearkin.informed import calibration_table

    cell = {"estimator": "club", "task": "t", "truth": 2.0, "kind": "upper", "error": 0.1}
    cells = [{**cell, "estimate": 1.0, "broken": True}]
    cells.append({"estimator": "cca", "task": "t", "truth": 2.0, "estimate": None, "reason": "few"})
    found = {"rows": 9, "steps": 1, "batch": 2, "seed": 0, "cells": cells, "consistency": {}}
    text = calibration_table(found)
    assert "1.00 ± 0.10 !" in text
    assert "no estimate" in text
    assert text.endswith("cca on t: few")
