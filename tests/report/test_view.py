"""What is read from a run folder, and what wrong folders are told."""

import json
import subprocess
import sys
from random import Random

import numpy as np
import pytest
from made_up_run import log, write_run

from nearkin.report import read_run


def test_a_run_is_read_as_it_stands_in_its_folder(run_folder):
    (run_folder / "left_out.txt").write_text("a.jpg: truncated\nb.jpg: empty\n")
    view = read_run(run_folder)
    assert view.name == "glyphs"
    assert view.recipe["encoder"] == {"small_cnn": {"dim": 64}}
    assert view.recipe_text == (run_folder / "recipe.yaml").read_text()
    assert view.environment["hardware"]["threads"] == 2
    assert view.metrics["test"]["cosine"]["recall@1"]["value"] == 0.612
    assert view.log == log()
    assert view.embeddings.shape == (240, 16)
    assert view.embeddings.dtype == np.float32
    assert view.labels.dtype == view.relevant.dtype == np.int64
    assert view.names[:2] == ["А", "Б"]
    assert view.ids[7] == "test/1/7.png"
    assert view.is_query.dtype == view.is_gallery.dtype == bool
    assert view.left_out == ["a.jpg: truncated", "b.jpg: empty"]
    assert view.picture is None


def test_reading_and_reporting_need_no_torch(run_folder, tmp_path):
    code = (
        "import sys\n"
        "class NoTorch:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] == 'torch':\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, NoTorch())\n"
        "from nearkin.report import read_run, write_report\n"
        f"write_report([read_run({str(run_folder)!r})], {str(tmp_path / 'r.html')!r})"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert (tmp_path / "r.html").exists()


def test_relevance_is_the_class_unless_the_run_says_otherwise(run_folder, tmp_path):
    assert not read_run(run_folder).of_instances
    other = write_run(tmp_path / "halves", relevant=np.arange(240) // 2)
    assert read_run(other).of_instances


def test_a_torn_last_line_of_the_log_is_passed_over(run_folder):
    with (run_folder / "log.jsonl").open("a") as file:
        file.write('{"event": "step", "ste')
    assert read_run(run_folder).log == log()


def test_a_torn_line_in_the_middle_becomes_a_warning(run_folder):
    (run_folder / "log.jsonl").write_text('{"event": "start"}\n{"event": "st\n{"event": "epoch"}\n')
    events = [line["event"] for line in read_run(run_folder).log]
    assert events == ["start", "warning", "epoch"]
    assert "line 2" in read_run(run_folder).events("warning")[0]["message"]


def test_a_run_without_a_log_is_read(run_folder):
    (run_folder / "log.jsonl").unlink()
    assert read_run(run_folder).log == []


def test_a_missing_folder_is_told_with_the_nearest_there_is(run_folder):
    with pytest.raises(FileNotFoundError, match=r"no run folder .*glyps; did you mean .*glyphs\?"):
        read_run(run_folder.parent / "glyps")


def test_another_folder_is_told_that_it_is_no_run(tmp_path):
    with pytest.raises(ValueError, match=r"not a run folder: it has no environment\.json"):
        read_run(tmp_path)


@pytest.mark.parametrize("number", [2, None, "1"])
def test_another_format_is_refused_with_both_numbers(run_folder, number):
    (run_folder / "environment.json").write_text(json.dumps({"format": number}))
    with pytest.raises(ValueError, match=rf"format {number!r}, and this version reads format 1"):
        read_run(run_folder)


def test_an_unfinished_run_is_told_how_to_be_finished(run_folder):
    (run_folder / "metrics.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"not finished: it has no metrics\.json.*--resume"):
        read_run(run_folder)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("metrics.json", '{"test": ', r"metrics\.json is not JSON"),
        ("metrics.json", "[1]", r"metrics\.json holds a list"),
        ("recipe.yaml", "a: [1", r"recipe\.yaml is not YAML"),
        ("recipe.yaml", "only words", r"recipe\.yaml holds a str"),
        ("embeddings.npz", "nothing of the kind", r"embeddings\.npz cannot be read"),
    ],
)
def test_an_unreadable_file_is_named(run_folder, name, text, said):
    (run_folder / name).write_text(text)
    with pytest.raises(ValueError, match=said):
        read_run(run_folder)


def test_whatever_is_cut_off_or_flipped_in_the_embeddings_is_said_or_harmless(run_folder):
    path = run_folder / "embeddings.npz"
    content, random = path.read_bytes(), Random(0)
    said = 0
    for turn in range(60):
        at = random.randrange(len(content))
        path.write_bytes(content[:at] if turn % 2 else content[:at] + b"#" + content[at + 1 :])
        try:
            read_run(run_folder)
        except ValueError:
            said += 1
    assert said > 40


@pytest.mark.parametrize("name", ["recipe.yaml", "embeddings.npz"])
def test_a_missing_file_is_named(run_folder, name):
    (run_folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"has no {name}"):
        read_run(run_folder)


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"embeddings": np.full((240, 16), np.nan, np.float32)}, "NaN or infinity"),
        ({"embeddings": np.zeros(240, np.float32)}, r"shape \(240,\)"),
        ({"labels": np.zeros(239, np.int64)}, "240 embeddings but 239 labels"),
        ({"labels": np.full(240, 40)}, r"names for 0\.\.39"),
        ({"labels": np.zeros(240, np.float32)}, "integer codes were expected"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path, arrays, said):
    with pytest.raises(ValueError, match=said):
        read_run(write_run(tmp_path / "run", **arrays))


def test_pickled_objects_are_never_loaded(tmp_path):
    folder = write_run(tmp_path / "run", names=None, ids=np.array([{}] * 240, dtype=object))
    with pytest.raises(ValueError, match="cannot be read"):
        read_run(folder)
