"""The commands as a person uses them: what they print, write, refuse, and with which exit code."""

import contextlib
import errno
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tiny_runs
import yaml

from nearkin import catalog, cli, console
from nearkin.config import load_recipe
from nearkin.run_folder import RunFolder

SMALL = (
    "encoder.small_cnn.width=8",
    "encoder.small_cnn.dim=8",
    "train.epochs=1",
    "evaluate=[recall@1,map@r]",
)


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("NEARKIN_DEBUG", raising=False)


@pytest.fixture
def call(capsys):
    """Runs a command: exit code, stdout, stderr."""

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


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(folder, stdout, stderr) of one `nearkin train digits --json`."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    out, err = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as stop,
    ):
        patch.setenv("NEARKIN_HOME", str(folder.parent / "home"))
        cli.main(["train", "digits", *SMALL, "--out", str(folder), "--json"])
    assert stop.value.code == 0, err.getvalue()
    return folder, out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
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


def files_below(folder):
    return sorted(p.relative_to(folder).as_posix() for p in Path(folder).rglob("*") if p.is_file())


# --- help and lists


def test_help_names_every_command_and_imports_no_torch():
    code = (
        "import sys\n"
        "from nearkin import cli\n"
        "try:\n    cli.main(['--help'])\n"
        "except SystemExit as stop:\n    assert stop.code == 0\n"
        "assert not {'torch', 'numpy', 'sklearn'} & set(sys.modules), 'heavy'\n"
    )
    said = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ}
    )
    for command in ("train", "evaluate", "embed", "report", "data", "list", "show", "recipe"):
        assert re.search(rf"^\W*{command} ", said.stdout, re.MULTILINE), command


@pytest.mark.parametrize(
    "command", [[], ["train"], ["evaluate"], ["embed"], ["report"], ["data"], ["data", "check"]]
)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_every_command_has_help(good, command, flag):
    assert "Usage: nearkin" in good(*command, flag)


def test_the_version_is_told(good):
    from nearkin import __version__

    assert good("--version") == f"nearkin {__version__}\n"


@pytest.mark.parametrize("command", [[], ["data"]])
def test_without_a_command_the_help_is_shown(call, command):
    code, out, err = call(*command)
    assert code == 2
    assert "Usage: nearkin" in out + err


@pytest.mark.parametrize("kind", [kind.plural for kind in catalog.KINDS.values()])
def test_lists_say_name_summary_and_source(good, kind):
    items = json.loads(good("list", kind, "--json"))["items"]
    assert [item["name"] for item in items] == [entry.name for entry in catalog.members(kind)]
    for item in items:
        assert set(item) == {"name", "summary", "source"}
        assert item["summary"]
        assert item["source"]
        assert f"({item['source']})" not in item["summary"]


@pytest.mark.parametrize("kind", [kind.plural for kind in catalog.KINDS.values()])
def test_lists_fit_eighty_columns_and_lose_no_word(good, kind):
    text = good("list", kind)
    assert max(map(len, text.splitlines())) <= 80
    words = " ".join(text.split())
    for item in json.loads(good("list", kind, "--json"))["items"]:
        for word in f"{item['summary']} {item['source']}".split():
            assert word in words


def test_the_list_of_kinds(good):
    items = json.loads(good("list", "--json"))["items"]
    assert [item["name"] for item in items] == [kind.plural for kind in catalog.KINDS.values()]
    assert "nearkin list losses" in good("list")


def test_data_list_is_the_list_of_data_sets(good):
    assert good("data", "list") == good("list", "data")
    names = [item["name"] for item in json.loads(good("data", "list", "--json"))["items"]]
    assert {"digits", "folder", "glyphs", "halves", "npz"} <= set(names)


def test_show_tells_formula_settings_and_source(good):
    text = good("show", "infonce")
    assert "infonce(temperature: float = 0.1)" in text
    assert "van den Oord et al. 2018" in text
    assert "tightness" in text
    (item,) = json.loads(good("show", "infonce", "--json"))["items"]
    assert item["kind"] == "loss"
    assert item["signature"] == "infonce(temperature: float = 0.1)"
    both = json.loads(good("show", "multi_similarity", "--json"))["items"]
    assert [item["kind"] for item in both] == ["mining", "loss"]
    assert "recall@K" in good("show", "recall@5")
    assert "collections.abc" not in good("show", "digits")


@pytest.mark.parametrize("name", ["digits", "folder", "glyphs", "halves"])
def test_a_recipe_is_printed_to_copy(good, name, tmp_path):
    text = good("recipe", name)
    (tmp_path / "mine.yaml").write_text(text)
    assert load_recipe(tmp_path / "mine.yaml") == load_recipe(name)
    assert json.loads(good("recipe", name, "--json")) == load_recipe(name)
    assert good("recipe", tmp_path / "mine.yaml") == text


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["trian"], "No such command 'trian'.*train"),
        (["train", "--rseume"], "No such option: --rseume"),
        (["train", "digits", "--out"], "requires an argument"),
        (["embed"], "Missing argument 'RUN'"),
        (["show"], "Missing argument"),
        (["list", "loses"], "no kind 'loses'; did you mean 'losses'"),
        (["show", "infonc"], "nothing named 'infonc'; did you mean 'infonce'"),
        (["recipe", "digts"], "'digts' is no recipe and no file; did you mean 'digits'"),
        (["data", "chek"], "No such command 'chek'"),
    ],
)
def test_wrong_use_is_told(bad, arguments, says):
    bad(*arguments, says=says)


# --- train


def test_train_prints_one_json_object_and_nothing_else(finished):
    folder, out, err = finished
    said = json.loads(out)
    assert out.count("\n") == 1
    assert said.pop("run") == str(folder)
    assert said == json.loads((folder / "metrics.json").read_text())
    assert "epoch 1  recall@1" in err
    assert "measuring the untrained encoder" in err


def test_train_writes_the_run_folder(trained):
    assert files_below(trained) == [
        "checkpoint/state.safetensors",
        "embeddings.npz",
        "environment.json",
        "log.jsonl",
        "metrics.json",
        "model/encoder.safetensors",
        "model/model.json",
        "model/objective.safetensors",
        "recipe.yaml",
        "report.html",
    ]


def test_a_finished_run_is_told_and_shown_again(call, trained):
    code, out, err = call("train", trained / "recipe.yaml", "--out", trained, "--resume")
    assert code == 0
    assert "is finished; nothing is left to do" in err
    assert "untrained encoder" in out
    assert out.splitlines()[-1] == f"report: {trained / 'report.html'}"
    assert max(map(len, out.splitlines()[:-1])) <= 80


def test_a_folder_of_photos_trains_into_runs(call, photos, tmp_path):
    folder = photos({f"kind {i}": 4 for i in range(8)})
    (folder / "kind 1" / "broken.png").write_bytes(b"broken")
    small = (*SMALL, "encoder.small_cnn.image_size=16", "encoder.small_cnn.augmentation=affine")
    code, out, err = call("train", f"{folder.name}/", *small)
    assert code == 0, err
    assert "retrieval on classes never seen in training" in out
    assert "runs/photos/report.html" in out
    assert "broken.png" in (tmp_path / "runs" / "photos" / "left_out.txt").read_text()


def test_the_first_argument_may_be_a_setting(bad, tmp_path):
    bad("train", "train.epohs=3", says="train takes no 'epohs'; did you mean 'epochs'")
    bad("train", "x=1", says="a recipe takes no 'x'")
    assert files_below(tmp_path) == []


def test_an_existing_run_is_kept_resumed_or_replaced(good, bad, blink, tmp_path):
    good("train", blink, "--out", "r")
    before = {name: (tmp_path / "r" / name).read_bytes() for name in files_below("r")}
    bad("train", blink, "--out", "r", says="the run folder r exists; go on with --resume")
    assert {name: (tmp_path / "r" / name).read_bytes() for name in files_below("r")} == before
    bad("train", blink, "seed=1", "--out", "r", "--resume", says="differ in 'seed'")
    good("train", blink, "seed=1", "--out", "r", "--force")
    assert load_recipe("r/recipe.yaml")["seed"] == 1


def test_resume_without_a_run_starts(good, blink):
    good("train", blink, "--out", "r", "--resume")
    assert "report.html" in files_below("r")


WRONG_RECIPES = [
    (["digts"], "'digts' is no recipe and no file; did you mean 'digits'"),
    (["digits", "train.epchs=1"], "train takes no 'epchs'; did you mean 'epochs'"),
    (["digits", "train.epochs=0"], "train.epochs: expected at least 1, got 0"),
    (["digits", "train.epochs=many"], "train.epochs: expected an integer, got 'many'"),
    (["digits", "train.epochs"], "sets nothing; write key=value"),
    (["digits", "evaluate=[recal@1]"], "'recal@1' is no metric; did you mean 'recall@1'"),
    (["digits", "encoder=smal_cnn"], "no encoder 'smal_cnn'; did you mean 'small_cnn'"),
    (["digits", "data=digtis"], "no data set 'digtis'; did you mean 'digits'"),
    (["digits", "objective.compared.loss=triplt"], "did you mean 'triplet'"),
    (["digits", "data={folder: {path: nowhere}}"], "there is no folder nowhere"),
    (["digits", "encoder=my.module:Net"], "runs only with --trust-code"),
    (["digits", "train.device=gpu"], "device 'gpu' is not to be had here"),
    (["halves", "encoder=small_cnn"], "image_size"),
    (["digits", "objective.compared.compare=proxies"], "rows of data as columns, but proxies"),
    (["digits", "--resume", "--force"], "give one of them"),
    (["digits", "sampler.balanced.classes=9"], "but the table has 5"),
]


@pytest.mark.parametrize(("arguments", "says"), WRONG_RECIPES)
def test_a_wrong_recipe_is_told_and_nothing_is_written(bad, arguments, says, tmp_path):
    bad("train", *arguments, says=says)
    assert files_below(tmp_path) == []


def test_a_wrong_recipe_file_is_told(bad, tmp_path):
    (tmp_path / "a.yaml").write_text("train: {epochs: 3")
    bad("train", "a.yaml", says="recipe 'a.yaml', line 1")
    (tmp_path / "b.yaml").write_text("- 1\n")
    bad("train", "b.yaml", says="must hold 'key: value' lines")
    (tmp_path / "c.yaml").write_bytes(b"\xff\xfe\x00")
    bad("train", "c.yaml", says="cannot be read as text")


def test_a_folder_without_what_training_needs_is_told(bad, photos, tmp_path):
    (tmp_path / "empty").mkdir()
    bad("train", "empty/", says="the folder empty/? is empty")
    photos({"only": 5}, "single")
    bad("train", "single/", says="holds one class only, 'only'")
    photos({".": 5}, "flat")
    bad("train", "flat/", says="5 images lie directly in flat/?")
    broken = photos({"a": 2, "b": 2, "c": 2, "d": 2}, "broken")
    for path in (broken / "c").iterdir():
        path.write_bytes(b"broken")
    bad("train", "broken/", says="no image of the class 'c' can be read")
    assert not (tmp_path / "runs").exists()


def test_a_place_that_cannot_be_written_is_told(bad, tmp_path, blink):
    (tmp_path / "file").write_text("mine")
    bad("train", blink, "--out", "file/run", says="file/run cannot be written")
    bad("train", blink, "--out", "file", says="file is a file; give a folder")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letters.txt").write_text("mine")
    for flag in ([], ["--force"], ["--resume"]):
        bad("train", blink, "--out", "full", *flag, says="holds other files and is no run folder")
    assert files_below(tmp_path / "full") == ["letters.txt"]


def test_a_run_of_another_format_is_told(bad, blink, tmp_path):
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "environment.json").write_text('{"format": 9}')
    for command in (
        ["train", blink, "--out", "r", "--resume"],
        ["evaluate", "r"],
        ["embed", "r", "rows.npz", "--out", "z.npz"],
        ["report", "r"],
    ):
        bad(*command, says="format 9")
    assert files_below(tmp_path / "r") == ["environment.json"]


def test_a_loss_that_is_no_number_exits_1(call, blink):
    code, out, err = call("train", blink, "optim.default.adamw.lr=1e30", "--out", "r")
    assert (code, out) == (1, "")
    assert re.search(r"nearkin: the loss is (nan|inf).*lower the learning rate", err)
    assert "Traceback" not in err


def test_a_full_disk_is_told_and_the_run_goes_on_later(bad, good, blink, monkeypatch):
    write = RunFolder.write_json

    def full(self, name, value):
        if name == "metrics.json":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path / name))
        write(self, name, value)

    monkeypatch.setattr(RunFolder, "write_json", full)
    says = r"No space left on device: r/metrics\.json; make room"
    bad("train", blink, "--out", "r", says=says, notes=True)
    assert not [name for name in files_below("r") if "/." in f"/{name}"]
    monkeypatch.undo()
    monkeypatch.setenv("NEARKIN_HOME", "home")
    good("train", blink, "--out", "r", "--resume")
    assert "metrics.json" in files_below("r")


def test_ctrl_c_saves_and_says_how_to_go_on(call, good, blink, monkeypatch):
    def interrupting(self, epochs):
        return lambda state, batches: state.step == 3 and signal.raise_signal(signal.SIGINT)

    good("train", blink, "--out", "whole")
    with monkeypatch.context() as patch:
        patch.setattr(console.Reporter, "step", interrupting)
        code, out, err = call("train", blink, "--out", "r")
    assert (code, out) == (130, "")
    said = err.splitlines()[-1]
    assert re.search(r"^nearkin: interrupted at step 3; the state is saved; go on with: ", said)
    assert "metrics.json" not in files_below("r")
    command = said.partition("go on with: nearkin ")[2].split()
    good(*command)
    tiny_runs.assert_identical(Path("whole"), Path("r"))


def test_an_interruption_before_training_leaves_nothing(call, blink, monkeypatch):
    def interrupting(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("nearkin.run.assemble", interrupting)
    code, out, err = call("train", blink, "--out", "r")
    assert (code, out, err) == (130, "", "nearkin: interrupted\n")
    assert not Path("r").exists()


@pytest.mark.slow
def test_ctrl_c_in_another_process_exits_130(tmp_path, good):
    command = [sys.executable, "-m", "nearkin", "train", "digits", *SMALL, "--out", "r"]
    command[command.index("train.epochs=1")] = "train.epochs=60"
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path
    ) as process:
        log = tmp_path / "r" / "log.jsonl"
        end = time.monotonic() + 120
        while time.monotonic() < end and not (log.exists() and '"epoch"' in log.read_text()):
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert out == ""
    assert "Traceback" not in err
    assert "--resume" in err.splitlines()[-1]
    assert "metrics.json" not in files_below("r")
    changed = [*command[3:-2], "--out", "r", "--resume"]
    good(*changed)
    assert "report.html" in files_below("r")


def test_debugging_shows_where(monkeypatch):
    monkeypatch.setenv("NEARKIN_DEBUG", "1")
    with pytest.raises(ValueError, match="no recipe"):
        cli.main(["train", "digts"])


def test_what_nobody_foresaw_is_told_as_such(bad, monkeypatch):
    def broken(kind):
        raise RuntimeError("a wheel\ncame off")

    monkeypatch.setattr("nearkin.catalog.members", broken)
    says = r"this should not happen \(RuntimeError: a wheel came off\); NEARKIN_DEBUG=1"
    bad("list", "losses", says=says, code=1)


def test_warnings_are_sentences(call, monkeypatch):
    import warnings

    def warning(name):
        warnings.warn("mind the\n gap", UserWarning, stacklevel=1)
        return []

    monkeypatch.setattr("nearkin.catalog.find", warning)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        code, out, err = call("show", "infonce")
    assert (code, out, err) == (0, "", "nearkin: warning: mind the gap\n")


def test_a_reader_that_leaves_is_no_error(tmp_path):
    code = "from nearkin import cli; cli.main(['list', 'losses'])"
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as process:
        process.stdout.close()
        err = process.stderr.read()
        assert process.wait() == 0
    assert err == ""


def test_other_processes_keep_silent(call, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    code, out, err = call("train", "digts")
    assert (code, out, err) == (2, "", "")


def test_code_of_ones_own_needs_trust(good, bad, blink, tmp_path, monkeypatch):
    (tmp_path / "own_net.py").write_text(
        "from nearkin.encoders.small import MLP\n\n\nclass Net(MLP):\n    name = 'net'\n"
    )
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(tmp_path))])
    change = "encoder={own_net:Net: {dim: 4, hidden: []}}"
    bad("train", blink, change, "--out", "r", says="runs only with --trust-code")
    good("train", blink, change, "--out", "r", "--trust-code")
    bad("embed", "r", "rows.npz", "--out", "z.npz", says="--trust-code")
    good("embed", "r", "rows.npz", "--out", "z.npz", "--trust-code")
    sys.modules.pop("own_net", None)


# --- evaluate


def test_evaluating_a_run_gives_what_its_training_gave(good, trained):
    said = json.loads(good("evaluate", trained, "--json"))
    assert said == json.loads((trained / "metrics.json").read_text())["test"]


def test_evaluating_a_run_shows_both_tables(good, trained):
    out = good("evaluate", trained)
    assert f"{trained} (cosine, %)" in out
    assert f"{trained} (euclidean, %)" in out
    assert out.splitlines()[-1] == "533 queries"
    assert "never seen in training" not in out


def test_metrics_and_closeness_are_chosen(good, vectors):
    path = vectors()
    chosen = ("--metrics", "recall@1,mrr", "--metrics", "nmi")
    said = json.loads(good("evaluate", path, *chosen, "--closeness", "euclidean", "--json"))
    assert set(said) == {"euclidean", "queries", "without_relevant"}
    assert list(said["euclidean"])[:3] == ["recall@1", "mrr", "nmi"]
    assert said["queries"] == 40
    inner = good("evaluate", path, "--closeness", "inner", "--metrics", "recall@1")
    assert "z.npz (inner, %)" in inner


def test_information_stands_beside(good, vectors):
    said = json.loads(good("evaluate", vectors(), "--metrics", "information", "--json"))
    assert 0 < said["information"]["bits"] <= said["information"]["ceiling"] == 2
    assert "I(Z;Y) >= " in good("evaluate", vectors(), "--metrics", "recall@1,information")


def test_a_gallery_and_groups_are_read(good, vectors):
    label = np.repeat(np.arange(4), 10)
    gallery = np.eye(4, dtype=np.float32)
    path = vectors(gallery_embeddings=gallery, gallery_labels=np.arange(4))
    said = json.loads(good("evaluate", path, "--json"))
    assert said["cosine"]["recall@4"]["value"] == 1
    # Only the class's own gallery item is in another group for class 0.
    path = vectors(
        gallery_embeddings=gallery,
        gallery_labels=np.arange(4),
        groups=label,
        gallery_groups=np.array([9, 1, 2, 3]),
    )
    said = json.loads(good("evaluate", path, "--json"))
    assert (said["queries"], said["without_relevant"]) == (10, 30)
    alone = vectors(groups=np.arange(40))
    assert json.loads(good("evaluate", alone, "--json"))["queries"] == 40


def test_a_run_is_measured_on_other_data(good, bad, trained, photos, tmp_path):
    again = json.loads(good("evaluate", trained, "--data", "digits", "--json"))
    first = json.loads((trained / "metrics.json").read_text())["test"]
    assert again["queries"] == first["queries"]
    assert again["cosine"]["recall@1"]["value"] == pytest.approx(
        first["cosine"]["recall@1"]["value"], abs=0.01
    )
    folder = photos({"a": 4, "b": 3, "c": 1})
    (folder / "a" / "broken.png").write_bytes(b"broken")
    said = json.loads(good("evaluate", trained, "--data", folder, "--json"))
    assert (said["queries"], said["without_relevant"]) == (7, 1)
    split = photos({"train/a": 4, "train/b": 3, "test/c": 3, "test/d": 2}, "split")
    assert json.loads(good("evaluate", trained, "--data", split, "--json"))["queries"] == 5
    pixels = np.random.default_rng(0).integers(0, 256, (30, 8, 8), dtype=np.uint8)
    split = np.repeat([0, 2], 15)
    np.savez(tmp_path / "p.npz", images=pixels, labels=np.arange(30) // 5, split=split)
    said = json.loads(good("evaluate", trained, "--data", "p.npz", "--json"))
    assert said["queries"] == 15
    bad("evaluate", trained, "--data", "no/where", says="there is no folder no/where")
    bad("evaluate", trained, "--data", "digts", says="no data set 'digts'; did you mean 'digits'")
    bad("evaluate", trained, "--data", "glyphs.npz", says=r"there is no file glyphs\.npz")
    for path in folder.rglob("*.png"):
        path.write_bytes(b"broken")
    bad("evaluate", trained, "--data", folder, says="no image below .*photos can be read")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"labels": np.arange(39)}, "labels has 39 entries but z has 40 rows"),
        ({"embeddings": np.full((40, 4), np.nan)}, "NaN or infinite entries in 40 of 40 rows"),
        ({"embeddings": np.ones((40, 4), int)}, "floating-point numbers, not int64"),
        ({"embeddings": np.ones(40)}, r"must be a matrix \(N, D\)"),
        ({"embeddings": np.array([{}] * 40)}, "holds Python objects in 'embeddings'"),
        ({"labels": np.array([None] * 40)}, "holds Python objects in 'labels'"),
        ({"labels": np.linspace(0, 1, 40)}, "labels must be integers or texts"),
        ({"labels": np.zeros((40, 1), int)}, r"labels must be \(N,\)"),
        ({"labels": np.arange(40)}, "none of the 40 queries has a relevant item"),
        ({"labels": None}, "has no array 'labels'; it has embeddings"),
        ({"embeddings": None}, "has no array 'embeddings'; it has labels"),
        ({"gallery_embeddings": np.ones((2, 4))}, "needs gallery_labels"),
        (
            {"gallery_embeddings": np.ones((2, 3)), "gallery_labels": np.arange(2)},
            "z has 4 dimensions but gallery has 3",
        ),
        (
            {
                "gallery_embeddings": np.ones((2, 4)),
                "gallery_labels": np.arange(2),
                "groups": np.arange(40),
            },
            "need gallery_groups too",
        ),
        ({"groups": np.arange(7)}, "exclude has 7 entries"),
    ],
)
def test_wrong_embeddings_are_told(bad, vectors, changes, says):
    path = vectors(**changes)
    assert str(path) in bad("evaluate", path, says=says)


def test_wrong_evaluations_are_told(bad, vectors, trained, tmp_path):
    path = vectors()
    bad("evaluate", path, "--metrics", "recal@1", says="did you mean 'recall@1'")
    bad("evaluate", path, "--closeness", "cosin", says="did you mean 'cosine'")
    bad("evaluate", path, "--data", "digits", says="--data goes with a run")
    bad("evaluate", "none.npz", says=r"there is no file none\.npz")
    bad("evaluate", "nowhere", says="there is no run folder nowhere")
    (tmp_path / "text.npz").write_text("text")
    bad("evaluate", "text.npz", says=r"text\.npz is not a \.npz file")
    (tmp_path / "cut.npz").write_bytes(path.read_bytes()[:-40])
    bad("evaluate", "cut.npz", says=r"cut\.npz is (not a \.npz file|damaged)")
    bad("evaluate", "text.npz/", says="text.npz")
    (tmp_path / "z.csv").write_text("1,2")
    bad("evaluate", "z.csv", says=r"z\.csv is a file; give a run folder")
    bad("evaluate", tmp_path, says="is no run folder")
    bad("evaluate", trained, "--metrics", "recal@1", says="did you mean 'recall@1'")


def test_an_unfinished_run_is_told(bad, trained, tmp_path):
    run = shutil.copytree(trained, tmp_path / "r")
    (run / "metrics.json").unlink()
    bad("report", "r", says="is not finished")
    np.savez(run / "embeddings.npz", embeddings=np.ones((2, 2)), labels=np.arange(2))
    bad("evaluate", "r", says=r"embeddings\.npz has no array 'names'")
    (run / "embeddings.npz").unlink()
    bad("evaluate", "r", says="is not finished; end it with --resume")
    shutil.rmtree(run / "model")
    bad("embed", "r", tmp_path, "--out", "z.npz", says="is not finished; end it with --resume")


def test_queries_and_gallery_of_a_run_are_kept_apart(good, trained, tmp_path):
    run = shutil.copytree(trained, tmp_path / "r")
    with np.load(run / "embeddings.npz") as file:
        held = {name: file[name] for name in file.files}
    held["is_query"] = np.arange(len(held["labels"])) < 100
    held["is_gallery"] = ~held["is_query"]
    np.savez(run / "embeddings.npz", **held)
    assert json.loads(good("evaluate", "r", "--json"))["queries"] == 100


# --- embed


def test_a_folder_is_embedded_with_ids_and_labels(good, trained, photos, tmp_path):
    folder = photos({"ant": 3, "bee": 2})
    said = json.loads(good("embed", trained, folder, "--out", "deep/z.npz", "--json"))
    assert said == {"file": "deep/z.npz", "rows": 5, "dim": 8, "left_out": 0}
    with np.load("deep/z.npz", allow_pickle=False) as file:
        assert file["embeddings"].shape == (5, 8)
        assert file["embeddings"].dtype == np.float32
        assert file["ids"].tolist() == [
            "ant/0.png",
            "ant/1.png",
            "ant/2.png",
            "bee/0.png",
            "bee/1.png",
        ]
        assert file["labels"].tolist() == ["ant"] * 3 + ["bee"] * 2
    assert json.loads(good("evaluate", "deep/z.npz", "--json"))["queries"] == 5
    assert good("embed", trained, folder, "--out", "y.npz") == (
        "5 embeddings of 8 dimensions in y.npz\n"
    )


def test_classes_are_those_below_train_and_test(good, trained, photos):
    folder = photos({"train/a": 2, "train/b": 2, "test/c": 1})
    good("embed", trained, folder, "--out", "z.npz")
    with np.load("z.npz") as file:
        assert dict(zip(file["ids"].tolist(), file["labels"].tolist(), strict=True)) == {
            "test/c/0.png": "c",
            "train/a/0.png": "a",
            "train/a/1.png": "a",
            "train/b/0.png": "b",
            "train/b/1.png": "b",
        }


def test_images_without_classes_have_no_labels(good, trained, photos):
    flat = photos({".": 3}, "flat")
    mixed = photos({"a": 2, "b": 1, ".": 1}, "mixed")
    for source, rows in ((flat, 3), (mixed, 4), (flat / "1.png", 1)):
        good("embed", trained, source, "--out", "z.npz", "--force")
        with np.load("z.npz") as file:
            assert len(file["embeddings"]) == rows
            assert "labels" not in file.files


def test_lists_and_tables_name_paths_beside_themselves(good, trained, photos, tmp_path):
    photos({"a": 2, "b": 1})
    (tmp_path / "list.txt").write_text("photos/b/0.png\n\nphotos/a/1.png\n")
    (tmp_path / "table.csv").write_text(
        "﻿label,path\nfox,photos/a/0.png\n,photos/b/0.png\n", encoding="utf-8"
    )
    good("embed", trained, "list.txt", "--out", "z.npz")
    good("embed", trained, "table.csv", "--out", "y.npz")
    with np.load("z.npz") as z, np.load("y.npz") as y:
        assert z["ids"].tolist() == ["photos/b/0.png", "photos/a/1.png"]
        assert y["labels"].tolist() == ["fox", ""]
        np.testing.assert_allclose(z["embeddings"][0], y["embeddings"][1], atol=1e-6)


def test_arrays_are_embedded(good, bad, trained, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 8), dtype=np.uint8)
    forms = {
        "gray": {"images": pixels},
        "last": {"images": pixels[..., None], "labels": np.arange(6), "ids": np.arange(6) + 10},
        "first": {"inputs": pixels[:, None].astype(np.float64)},
    }
    rows = []
    for name, arrays in forms.items():
        np.savez(tmp_path / f"{name}.npz", **arrays)
        good("embed", trained, f"{name}.npz", "--out", f"z-{name}.npz")
        with np.load(f"z-{name}.npz") as file:
            rows.append(file["embeddings"])
    np.testing.assert_allclose(rows[1], rows[0], atol=1e-6)
    np.testing.assert_allclose(rows[2], rows[0], atol=1e-6)
    with np.load("z-last.npz") as file:
        assert file["ids"].tolist() == [str(i + 10) for i in range(6)]
        assert file["labels"].tolist() == [str(i) for i in range(6)]
    wrong = {
        "few": ({"images": pixels, "labels": np.arange(5)}, "6 items need one each"),
        "texts": ({"inputs": np.array(["a", "b"])}, "must be numbers"),
        "other": ({"x": pixels}, "has no array 'inputs'; it has x"),
        "large": ({"images": np.zeros((2, 9, 9), np.uint8)}, "do not fit an encoder"),
        "nan": ({"inputs": np.full((2, 1, 8, 8), np.nan)}, "the embedding of item 0 is NaN"),
    }
    for name, (arrays, says) in wrong.items():
        np.savez(tmp_path / f"{name}.npz", **arrays)
        bad("embed", trained, f"{name}.npz", "--out", "no.npz", says=says)
        assert not Path("no.npz").exists()


def test_unreadable_images_are_left_out_and_told(call, trained, photos):
    folder = photos({"a": 2, "b": 1})
    (folder / "a" / "0.png").write_bytes(b"broken")
    code, out, err = call("embed", trained, folder, "--out", "z.npz", "--json")
    assert code == 0
    assert json.loads(out)["left_out"] == 1
    assert err == "left out a/0.png: not an image that Pillow can read\n"
    with np.load("z.npz") as file:
        assert file["ids"].tolist() == ["a/1.png", "b/0.png"]
        assert file["labels"].tolist() == ["a", "b"]


def test_parquet_holds_the_same(good, trained, photos):
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    folder = photos({"ant": 2, "bee": 1})
    good("embed", trained, folder, "--out", "z.npz")
    good("embed", trained, folder, "--out", "z.parquet")
    table = parquet.read_table("z.parquet").to_pydict()
    with np.load("z.npz") as file:
        np.testing.assert_array_equal(np.array(table["embedding"], np.float32), file["embeddings"])
        assert table["id"] == file["ids"].tolist()
        assert table["label"] == file["labels"].tolist()
    assert files_below(".")[-2:] == ["z.npz", "z.parquet"]


def test_without_pyarrow_the_extra_is_named(bad, trained, photos, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    folder = photos({"a": 1})
    says = r"needs pyarrow: pip install 'nearkin\[tables\]'"
    bad("embed", trained, folder, "--out", "z.parquet", says=says)


def test_wrong_embeds_are_told_before_anything_is_written(bad, trained, photos, tmp_path):
    folder = photos({"a": 2})
    (tmp_path / "old.npz").write_text("mine")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\xff")
    (tmp_path / "none.txt").write_text("\n")
    (tmp_path / "gone.txt").write_text("gone.png\n")
    (tmp_path / "plain.csv").write_text("file\na.png\n")
    (tmp_path / "short.csv").write_text("label,path\nfox\n")
    (tmp_path / "hollow").mkdir()
    (tmp_path / "folder.npz").mkdir()
    before = files_below(tmp_path)
    for source, out, says in [
        (folder, "z.csv", r"must end in \.npz or \.parquet, not 'z\.csv'"),
        (folder, "old.npz", r"old\.npz exists; replace it with --force"),
        (folder, "old.npz/z.npz", "old.npz is a file; give another --out"),
        (folder, "folder.npz", "folder.npz is a folder; give a file"),
        ("gone", "z.npz", "there is no file or folder gone"),
        ("hollow", "z.npz", "the folder hollow holds no images"),
        ("old.npz", "z.npz", r"old\.npz is not a \.npz file"),
        ("bytes.txt", "z.npz", "is no text in UTF-8"),
        ("none.txt", "z.npz", "lists no paths"),
        ("gone.txt", "z.npz", r"can be embedded \(gone\.png: there is no such file\)"),
        ("plain.csv", "z.npz", "needs a header with a column 'path'"),
        ("short.csv", "z.npz", "a path in every row"),
        ("plain.png", "z.npz", "there is no file or folder"),
    ]:
        bad("embed", trained, source, "--out", out, says=says)
    bad("embed", "gone", folder, "--out", "z.npz", says="there is no run folder gone")
    assert files_below(tmp_path) == before


def test_a_full_disk_leaves_no_half_of_the_embeddings(bad, trained, photos, monkeypatch):
    folder = photos({"a": 2})

    def full(file, **_):
        file.write(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(np, "savez_compressed", full)
    bad("embed", trained, folder, "--out", "z.npz", says="No space left on device; make room")
    assert [name for name in os.listdir() if "z.npz" in name] == []


# --- report


def test_reports_of_one_and_of_several_runs(good, trained, tmp_path):
    run = shutil.copytree(trained, tmp_path / "one")
    (run / "report.html").unlink()
    assert good("report", "one") == "one/report.html\n"
    page = (run / "report.html").read_text()
    assert page.startswith("<!doctype html>") or page.startswith("<!DOCTYPE html>")
    assert "data:image" in page
    said = json.loads(good("report", "one", trained, "--out", "both.html", "--json"))
    assert said == {"report": "both.html"}
    assert "one" in Path("both.html").read_text()


def test_a_report_without_its_data_says_so(call, trained, tmp_path):
    run = shutil.copytree(trained, tmp_path / "r")
    recipe = load_recipe(run / "recipe.yaml")
    for data, says in (
        ({"folder": {"path": "gone"}}, "there is no folder gone"),
        ("(an object given in Python)", "they were given in Python"),
        ({"digits": {"test": [8, 9]}}, "the data have changed since the run"),
    ):
        (run / "recipe.yaml").write_text(yaml.safe_dump({**recipe, "data": data}))
        code, out, err = call("report", "r")
        assert code == 0
        assert "a report without pictures" in err
        assert says in err
        assert out == "r/report.html\n"


def test_wrong_reports_are_told(bad, trained, tmp_path):
    bad("report", "nowhere", says="there is no run folder nowhere")
    bad("report", trained, tmp_path, says="is not a run folder")
    (tmp_path / "file").write_text("mine")
    bad("report", trained, "--out", "file/page.html", says="file")
    assert files_below(tmp_path) == ["file"]


# --- data check


def test_good_data_pass_the_check(good, photos):
    folder = photos({f"kind {i}": 3 for i in range(8)})
    said = json.loads(good("data", "check", folder, "--json"))
    assert said["ok"]
    assert set(said["splits"]) == {"train", "validation", "test"}
    assert good("data", "check", folder).splitlines()[-1] == "  ok"


def test_bad_data_exit_1_and_say_why(call, photos, tmp_path):
    folder = photos({f"kind {i}": 3 for i in range(8)})
    shutil.copy(folder / "kind 0" / "0.png", folder / "kind 7" / "twin.png")
    code, out, err = call("data", "check", folder, "--json")
    said = json.loads(out)
    assert (code, err, said["ok"]) == (1, "", False)
    assert said["problems"]
    (tmp_path / "empty").mkdir()
    code, out, _ = call("data", "check", "empty")
    assert code == 1
    assert "the folder empty is empty" in out


def test_nothing_to_check_is_wrong_use(bad):
    bad("data", "check", "nowhere", says="there is nothing at nowhere")


# --- a terminal


def test_a_terminal_sees_a_bar(blink, monkeypatch, capsys):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", terminal)
        with pytest.raises(SystemExit) as stop:
            cli.main(["train", str(blink), "--out", "r"])
    assert stop.value.code == 0
    assert "epoch 2/2" in terminal.getvalue()
    assert "12/12" in terminal.getvalue()
    assert capsys.readouterr().out.splitlines()[-1] == "report: r/report.html"
