"""`nearkin data prepare` and `data check` of named sets, as a person uses them; no test leaves this
machine."""

import http.server
import importlib
import json
import os
import shutil
import threading
from dataclasses import replace

import layouts
import pytest

from nearkin import preparing
from nearkin.archives import digest
from nearkin.preparing import SOURCES, Remote

pytest_plugins = ["commands"]

COUNTS = {
    "cub": {"train": (8, 4), "test": (6, 3)},
    "cars": {"train": (8, 4), "test": (6, 3)},
    "sop": {"train": (12, 6), "test": (8, 4)},
    "inshop": {"train": (8, 4), "query": (3, 3), "gallery": (3, 3)},
    "omniglot": {"train": (18, 9), "test": (12, 6)},
}


@pytest.fixture(autouse=True)
def _tiny(monkeypatch, cache):
    for name, counts in COUNTS.items():
        monkeypatch.setattr(importlib.import_module(f"nearkin.data.{name}"), "OFFICIAL", counts)


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Serves the files of a folder."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    shelf = tmp_path / "shelf"
    shelf.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(shelf))

        def log_message(self, *_):
            return

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        running.shelf, running.url = shelf, f"http://127.0.0.1:{running.server_port}"
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def birds_online(server, monkeypatch):
    """cub can be downloaded from a server on this machine."""
    archive = layouts.tarred(layouts.cub(server.shelf / "birds"), server.shelf / "birds.tgz")
    remote = Remote(f"{server.url}/birds.tgz", digest(archive, "md5:"), 1)
    monkeypatch.setitem(preparing.SOURCES, "cub", replace(SOURCES["cub"], remotes=(remote,)))
    return archive


# --- downloads


def test_a_set_is_downloaded_extracted_and_read(good, birds_online, cache):
    said = json.loads(good("data", "prepare", "cub", "--yes", "--json"))
    folder = cache / "data" / "cub"
    assert said == {
        "name": "cub",
        "path": str(folder),
        "prepared": True,
        "splits": {"train": {"rows": 8, "classes": 4}, "test": {"rows": 6, "classes": 3}},
    }
    assert sorted(os.listdir(folder)) == ["CUB_200_2011", "attributes.txt"]
    assert os.listdir(cache / "downloads") == []
    assert good("data", "prepare", "cub") == (
        f"cub is ready in {folder}: train 8 of 4 classes, test 6 of 3 classes\n"
    )
    assert json.loads(good("data", "prepare", "cub", "--json"))["prepared"] is False


def test_a_download_asks_first(call, bad, birds_online, cache, monkeypatch):
    says = r"download cub \(1 MB\) from http.*birds.tgz into .*data/cub\? There is nobody .* --yes"
    bad("data", "prepare", "cub", says=says)
    from nearkin import cli

    monkeypatch.setattr(cli, "_confirmed", lambda text: False)
    bad("data", "prepare", "cub", says="cub was not downloaded")
    assert not (cache / "data").exists()
    monkeypatch.setattr(cli, "_confirmed", lambda text: True)
    assert call("data", "prepare", "cub")[0] == 0


def test_without_a_network_one_sentence_says_so(bad, cache, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr("nearkin.archives.time.sleep", lambda seconds: None)
    remote = Remote("http://127.0.0.1:9/a.tgz", "md5:00", 1)
    monkeypatch.setitem(preparing.SOURCES, "cub", replace(SOURCES["cub"], remotes=(remote,)))
    says = (
        r"http://127.0.0.1:9/a.tgz cannot be downloaded \(.*refused\); try again later, .*, or get "
        "the file by hand and give it with --archive"
    )
    bad("data", "prepare", "cub", "--yes", says=says, notes=True)
    assert not (cache / "data" / "cub").exists()


@pytest.mark.slow
def test_official_checksums_are_those_of_the_publishers():
    assert [remote.checksum for remote in SOURCES["cub"].remotes] == [
        "md5:97eceeb196236b17998738112f37df78"
    ]
    torchvision = pytest.importorskip("torchvision")
    known = torchvision.datasets.Omniglot
    for remote in SOURCES["omniglot"].remotes:
        prefix, _, file = remote.url.rpartition("/")
        assert prefix == known.download_url_prefix
        assert remote.checksum == f"md5:{known.zips_md5[file.removesuffix('.zip')]}"


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("cars", "--archive car_ims.tgz --archive cars_annos.mat"),
        ("sop", "--archive Stanford_Online_Products.zip"),
        ("inshop", "--archive img.zip --archive list_eval_partition.txt"),
    ],
)
def test_what_no_program_can_download_is_told_with_its_place(bad, cache, name, files):
    says = rf"{name} cannot be downloaded by a program. .* run: nearkin data prepare {name} {files}"
    error = bad("data", "prepare", name, "--yes", says=says)
    assert str(cache / "data" / name) in error


# --- archives at hand


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("pack", [layouts.zipped, layouts.tarred])
def test_an_archive_at_hand_is_extracted_and_checked(good, cache, tmp_path, name, pack):
    archive = pack(layouts.ALL[name](tmp_path / "x"), tmp_path / "archive")
    said = json.loads(good("data", "prepare", name, "--archive", archive, "--json"))
    assert said["path"] == str(cache / "data" / name)
    trained = [part["classes"] for split, part in said["splits"].items() if split != "test"]
    assert sum(trained) == COUNTS[name]["train"][1]
    assert archive.exists()
    checked = json.loads(good("data", "check", name, "--json"))
    assert checked["kind"] == name
    assert checked["splits"]["train"]["rows"] == said["splits"]["train"]["rows"]


def test_pictures_and_their_list_may_come_apart(good, tmp_path, cache):
    root = layouts.inshop(tmp_path / "clothes")
    pictures = layouts.zipped(root / "Img", tmp_path / "img.zip")
    listing = root / "Eval" / "list_eval_partition.txt"
    out = good("data", "prepare", "inshop", "--archive", pictures, "--archive", listing)
    assert "inshop is ready" in out
    assert sorted(os.listdir(cache / "data" / "inshop")) == ["img", "list_eval_partition.txt"]


def test_another_folder_is_named_for_the_recipe(good, tmp_path):
    archive = layouts.zipped(layouts.sop(tmp_path / "x"), tmp_path / "a.zip")
    out = good("data", "prepare", "sop", "--archive", archive, "--to", "mine")
    mine = tmp_path / "mine"
    assert out.splitlines()[-1] == f"name the folder in a recipe: data.sop.path={mine}"
    out = good("data", "check", "sop", "--path", "mine")
    assert out.splitlines()[0] == "mine (sop)"


def test_an_archive_of_something_else_leaves_nothing(bad, tmp_path, cache):
    archive = layouts.zipped(layouts.sop(tmp_path / "x"), tmp_path / "a.zip")
    says = r"a.zip cannot be read as cub: there is no images.txt in what was extracted"
    bad("data", "prepare", "cub", "--archive", archive, says=says, notes=True)
    assert os.listdir(cache / "data") == []
    (tmp_path / "b.tgz").write_bytes(b"no archive")
    says = "b.tgz is no tar or zip archive and no list"
    bad("data", "prepare", "cub", "--archive", tmp_path / "b.tgz", says=says, notes=True)
    bad("data", "prepare", "cub", "--archive", "gone.tgz", says="there is no file gone.tgz")
    assert os.listdir(cache / "data") == []


def test_an_incomplete_archive_is_noticed(bad, tmp_path):
    root = layouts.cub(tmp_path / "x")
    shutil.rmtree(root / "CUB_200_2011" / "images" / "200.Bird_200")
    archive = layouts.zipped(root, tmp_path / "a.zip")
    says = "2 of the 14 images in images.txt are missing"
    bad("data", "prepare", "cub", "--archive", archive, says=says, notes=True)


def test_an_archive_without_its_list_asks_for_all_files_in_one_command(bad, tmp_path, cache):
    root = layouts.inshop(tmp_path / "clothes")
    pictures = layouts.zipped(root / "Img", tmp_path / "img.zip")
    says = (
        "img.zip cannot be read as inshop: there is no list_eval_partition.txt in what was "
        "extracted; give all files in one command: nearkin data prepare inshop --archive img.zip "
        "--archive list_eval_partition.txt$"
    )
    bad("data", "prepare", "inshop", "--archive", pictures, says=says, notes=True)
    assert os.listdir(cache / "data") == []


def test_a_set_of_other_counts_is_not_ready(bad, tmp_path, cache):
    root = layouts.cub(tmp_path / "x", classes=(1, 2, 3, 100, 101, 102))
    archive = layouts.tarred(root, tmp_path / "a.tgz")
    says = "not the official cub: test has 4 images of 2 classes instead of 6 of 3; get the file"
    for _ in range(2):
        bad("data", "prepare", "cub", "--archive", archive, says=says, notes=True)
        assert os.listdir(cache / "data") == []
    shutil.copytree(root, cache / "data" / "cub")
    bad("data", "prepare", "cub", says="cannot be read as cub .*instead of 6 of 3.* move it away")


def test_an_archive_is_not_passed_over_where_the_set_is_there(good, bad, tmp_path, cache):
    archive = layouts.tarred(layouts.cub(tmp_path / "x"), tmp_path / "a.tgz")
    good("data", "prepare", "cub", "--archive", archive)
    says = r"data/cub holds cub already; move it away to use .*a.tgz"
    bad("data", "prepare", "cub", "--archive", archive, says=says)
    bad("data", "prepare", "cub", "--archive", "gone.tgz", says="there is no file gone.tgz")


def test_the_folder_under_the_shell_is_filled(good, tmp_path, monkeypatch):
    archive = layouts.zipped(layouts.sop(tmp_path / "x"), tmp_path / "a.zip")
    (tmp_path / "here").mkdir()
    good("data", "list")  # the fixture changes the folder on its first use
    monkeypatch.chdir(tmp_path / "here")
    good("data", "prepare", "sop", "--archive", archive, "--to", ".")
    assert os.listdir(".") == ["Stanford_Online_Products"]


def test_an_archive_far_beyond_its_set_is_refused(bad, tmp_path, monkeypatch):
    archive = layouts.zipped(layouts.sop(tmp_path / "x"), tmp_path / "a.zip")
    monkeypatch.setitem(SOURCES, "sop", replace(SOURCES["sop"], gigabytes=1e-6))
    says = "a.zip would fill more than 2.79e-06 GB"
    bad("data", "prepare", "sop", "--archive", archive, says=says, notes=True)


@pytest.mark.parametrize("start", [b"\x1f\x8b", b"BZh9", b"\xfd7zXZ\0", b"PK\3\4"])
def test_damaged_archives_end_in_a_sentence(bad, tmp_path, start):
    (tmp_path / "a").write_bytes(start + bytes(700))
    says = "a is no tar or zip archive, or damaged"
    bad("data", "prepare", "cub", "--archive", tmp_path / "a", says=says, notes=True)


def test_ctrl_c_in_a_download_says_where_it_goes_on(call, birds_online, cache, monkeypatch):
    from nearkin.console import Reporter

    def stop(reporter, what, done, total):
        assert what == "downloading birds.tgz"
        raise KeyboardInterrupt

    monkeypatch.setattr(Reporter, "megabytes", stop)
    code, _, err = call("data", "prepare", "cub", "--yes")
    assert code == 130
    assert err.splitlines()[-1] == "nearkin: interrupted; the same command goes on at 0 MB"


def test_progress_is_told_of_downloads_and_extraction(birds_online, cache):
    seen = []
    preparing.prepare("cub", ask=lambda text: True, progress=lambda *told: seen.append(told))
    size = os.path.getsize(birds_online)
    last = {what: (done, total) for what, done, total in seen}
    assert last == {"downloading birds.tgz": (size,) * 2, "extracting birds.tgz": (size,) * 2}


def test_a_folder_of_something_else_is_left_alone(bad, cache, tmp_path):
    place = cache / "data" / "cub"
    place.mkdir(parents=True)
    (place / "mine.txt").write_text("1")
    archive = layouts.zipped(layouts.cub(tmp_path / "x"), tmp_path / "a.zip")
    says = "is there, but cannot be read as cub .* move it away, or give another folder with --to"
    bad("data", "prepare", "cub", "--archive", archive, says=says)
    assert os.listdir(place) == ["mine.txt"]


def test_names_that_need_or_have_no_preparing(bad):
    bad("data", "prepare", "cbu", says="no data set 'cbu'; did you mean 'cub'?")
    bad("data", "prepare", "digits", says="digits needs no preparing: it is made on this machine")
    bad("data", "prepare", "table", says="table needs no preparing: it reads files of your own")


# --- use


def test_named_sets_are_checked_by_name(call, bad, cache):
    root = layouts.cub(cache / "data" / "cub") / "CUB_200_2011" / "images"
    shutil.copy(root / "001.Bird_1" / "Bird_1_0.jpg", root / "200.Bird_200" / "Bird_200_0.jpg")
    code, out, err = call("data", "check", "cub", "--json")
    said = json.loads(out)
    assert (code, err) == (1, "")
    one, two = "001.Bird_1/Bird_1_0.jpg", "200.Bird_200/Bird_200_0.jpg"
    assert said["across_splits"] == [[f"train: {one}", f"test: {two}"]]
    assert said["different_labels"] == [
        [f"train: {one} (001.Bird_1)", f"test: {two} (200.Bird_200)"]
    ]
    assert said["gray"] == ["train: 002.Bird_2/Bird_2_1.jpg"]
    assert len(said["tiny"]) == 14
    (root / "001.Bird_1" / "Bird_1_0.jpg").write_bytes(b"broken")
    code, out, _ = call("data", "check", "cub")
    assert code == 1
    assert "problem: 1 images cannot be read, such as" in out
    assert "nearkin data prepare sop" in call("data", "check", "sop")[1]
    bad("data", "check", "table", says="table reads files of your own")
    bad("data", "check", "digits", "--path", "x", says="digits takes no path")
    bad("data", "check", "nowhere", "--path", "x", says="'nowhere' is none")


def test_a_recipe_trains_on_a_named_set(good, cache, small):
    layouts.cub(cache / "data" / "cub")
    settings = (
        "data={cub: {validation: 0.5}}",
        "encoder.small_cnn.channels=3",
        "encoder.small_cnn.image_size=16",
        "sampler={uniform: {batch: 4}}",
    )
    said = json.loads(good("train", "digits", *small, *settings, "--out", "r", "--json"))
    assert said["test"]["queries"] == 6


def test_a_recipe_without_the_set_says_how_to_get_it(bad):
    says = "there is no images.txt in .*; run nearkin data prepare cub"
    bad("train", "digits", "data=cub", "--out", "r", says=says)
