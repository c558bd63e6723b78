"""The commands as a person uses them: what they print, write, refuse, and with which exit code."""

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

import pytest
import tiny_runs

from nearkin import catalog, cli, console
from nearkin.config import load_recipe
from nearkin.run_folder import RunFolder

pytest_plugins = ["commands"]


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
    for command in (
        "train",
        "evaluate",
        "embed",
        "report",
        "information",
        "data",
        "list",
        "show",
        "recipe",
    ):
        assert re.search(rf"^\W*{command} ", said.stdout, re.MULTILINE), command


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["train"],
        ["evaluate"],
        ["embed"],
        ["report"],
        ["information"],
        ["data"],
        ["data", "check"],
    ],
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
    assert "infonce(temperature: float | Tensor = 0.1)" in text
    assert "van den Oord et al. 2018" in text
    assert "tightness" in text
    item, estimator = json.loads(good("show", "infonce", "--json"))["items"]
    assert estimator["kind"] == "estimator"
    assert item["kind"] == "loss"
    assert item["signature"] == "infonce(temperature: float | Tensor = 0.1)"
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


def test_train_writes_the_run_folder(trained, files_below):
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


def test_a_folder_of_photos_trains_into_runs(call, photos, tmp_path, small):
    folder = photos({f"kind {i}": 4 for i in range(8)})
    (folder / "kind 1" / "broken.png").write_bytes(b"broken")
    small = (*small, "encoder.small_cnn.image_size=16", "encoder.small_cnn.augmentation=affine")
    code, out, err = call("train", f"{folder.name}/", *small)
    assert code == 0, err
    assert "retrieval on classes never seen in training" in out
    assert "runs/photos/report.html" in out
    assert "broken.png" in (tmp_path / "runs" / "photos" / "left_out.txt").read_text()


def test_the_first_argument_may_be_a_setting(bad, tmp_path, files_below):
    bad("train", "train.epohs=3", says="train takes no 'epohs'; did you mean 'epochs'")
    bad("train", "x=1", says="a recipe takes no 'x'")
    assert files_below(tmp_path) == []


def test_an_existing_run_is_kept_resumed_or_replaced(good, bad, blink, tmp_path, files_below):
    good("train", blink, "--out", "r")
    before = {name: (tmp_path / "r" / name).read_bytes() for name in files_below("r")}
    bad("train", blink, "--out", "r", says="the run folder r exists; go on with --resume")
    assert {name: (tmp_path / "r" / name).read_bytes() for name in files_below("r")} == before
    bad("train", blink, "seed=1", "--out", "r", "--resume", says="differ in 'seed'")
    good("train", blink, "seed=1", "--out", "r", "--force")
    assert load_recipe("r/recipe.yaml")["seed"] == 1


def test_resume_without_a_run_starts(good, blink, files_below):
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
    (["digits", "encoder={mlp: {hidden: [0]}}"], "hidden of mlp must be at least 1, not 0"),
    (["digits", "objective.compared.compare=proxies"], "rows of data as columns, but proxies"),
    (["digits", "--resume", "--force"], "give one of them"),
    (["digits", "sampler.balanced.classes=9"], "but the table has 5"),
]


@pytest.mark.parametrize(("arguments", "says"), WRONG_RECIPES)
def test_a_wrong_recipe_is_told_and_nothing_is_written(bad, arguments, says, tmp_path, files_below):
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
    bad("train", "empty/", says="the folder .*empty is empty")
    photos({"only": 5}, "single")
    bad("train", "single/", says="holds one class only, 'only'")
    photos({".": 5}, "flat")
    bad("train", "flat/", says="5 images lie directly in .*flat")
    broken = photos({"a": 2, "b": 2, "c": 2, "d": 2}, "broken")
    for path in (broken / "c").iterdir():
        path.write_bytes(b"broken")
    bad("train", "broken/", says="no image of the class 'c' can be read")
    assert not (tmp_path / "runs").exists()


def test_a_place_that_cannot_be_written_is_told(bad, tmp_path, blink, files_below):
    (tmp_path / "file").write_text("mine")
    bad("train", blink, "--out", "file/run", says="file/run cannot be made: file is a file")
    bad("train", blink, "--out", "file", says="file is a file; give a folder")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letters.txt").write_text("mine")
    for flag in ([], ["--force"], ["--resume"]):
        bad("train", blink, "--out", "full", *flag, says="holds other files and is no run folder")
    assert files_below(tmp_path / "full") == ["letters.txt"]


def test_a_run_of_another_format_is_told(bad, blink, tmp_path, files_below):
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


def test_a_full_disk_is_told_and_the_run_goes_on_later(bad, good, blink, monkeypatch, files_below):
    write = RunFolder.write_json

    def full(self, name, value):
        if name == "metrics.json":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path / name))
        write(self, name, value)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "write_json", full)
        says = r"No space left on device: r/metrics\.json; make room"
        bad("train", blink, "--out", "r", says=says, notes=True)
    assert "metrics.json" not in files_below("r")
    assert not [name for name in files_below("r") if "/." in f"/{name}"]
    good("train", blink, "--out", "r", "--resume")
    assert "metrics.json" in files_below("r")


def test_ctrl_c_saves_and_says_how_to_go_on(call, good, blink, monkeypatch, files_below):
    def interrupting(self, epochs, steps):
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
def test_ctrl_c_in_another_process_exits_130(tmp_path, good, blink, files_below):
    # So many epochs that it is not done before it is told.
    settings = ["train", str(blink), "train.epochs=4000", "--out", "r"]
    command = [sys.executable, "-m", "nearkin", *settings]
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
    good(*settings, "--resume")
    assert "report.html" in files_below("r")


def test_debugging_shows_where(call, monkeypatch):
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


def test_a_terminal_sees_a_bar(call, blink, monkeypatch, capsys):
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
