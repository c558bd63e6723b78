"""The page is one file, needs no network, escapes what it is given and shows what the run holds."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from made_up_run import block, letter, metrics, write_run
from PIL import Image

from nearkin.report import read_run, write_report

HOSTILE = "</script><script>alert('1')</script><img src=x onerror=alert(1)>&\u2028\""

# A stand-in lays out the maps here; t-SNE itself is tried in test_projection.
pytestmark = pytest.mark.usefixtures("umap")

VOID = {"meta", "img", "line", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Elements, attributes and texts of a page; complains of elements that do not nest."""

    def __init__(self, text):
        super().__init__()
        self.text, self.open, self.elements, self.said = text, [], [], []
        self.scripts = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)
        elif self.open and self.open[-1] != "style":
            self.said.append(data)

    @property
    def words(self):
        return " ".join(" ".join(self.said).replace("\u00a0", " ").split())

    def count(self, tag, word=""):
        return sum(
            name == tag and word in [*(attributes.get("class") or "").split(), ""]
            for name, attributes in self.elements
        )

    @property
    def figures(self):
        return [json.loads(script) for script in self.scripts if script.startswith('{"data"')]


@pytest.fixture
def page(tmp_path):
    def write(*views):
        return Page(write_report(list(views), tmp_path / "report.html").read_text("utf-8"))

    return write


def test_the_page_shows_every_part_of_the_run(run_folder, page):
    (run_folder / "left_out.txt").write_text("".join(f"{i}.jpg: torn\n" for i in range(60)))
    shown = page(read_run(run_folder, picture=letter))
    words = shown.words
    for said in (
        "the nearest neighbor is of the same class for 61.2 % (59.2–63.2) of queries",
        "chosen by validation map@r",
        "By cosine similarity",
        "By euclidean distance",
        "random 0.541",
        "3.18 of 5.32 bits",
        "240 queries; 3 of them have no relevant item",
        "share of queries with at least one relevant item among the 8 nearest",
        "nearkin train recipe.yaml",
        "12 batches had no positive pair (2 times)",
        "60 items could not be read; the first 50 are listed",
        "49.jpg: torn",
        "versions.torch 2.13.0",
        "cross_entropy (label_smoothing 0.1) against classifier",
        "5,120 rows, 128 classes, 10 epochs, 400 steps",
    ):
        assert said in words
    assert "50.jpg" not in words
    assert "Selected on the test classes" not in words
    assert len(shown.figures) == shown.count("div", "plot") == 17
    assert shown.count("div", "plane") == 1


def test_nothing_is_loaded_from_anywhere(run_folder, page):
    shown = page(read_run(run_folder, picture=letter))
    for tag, attributes in shown.elements:
        assert tag not in ("link", "iframe", "base", "object", "embed")
        for name in ("src", "href", "srcset", "action", "data"):
            assert (attributes.get(name) or "data:").startswith(("data:", "#"))
    policy = next(a["content"] for t, a in shown.elements if t == "meta" and "http-equiv" in a)
    assert policy.startswith("default-src 'none';")
    style = shown.text[shown.text.index("<style>") : shown.text.index("</style>")]
    assert not re.search(r"url\(|@import", style)
    assert "prefers-color-scheme: dark" in style
    assert "@media print" in style


def test_plotly_stands_in_the_page_once_and_the_page_stays_under_ten_megabytes(view, page):
    shown = page(view, view)
    large = [script for script in shown.scripts if len(script) > 1_000_000]
    assert len(large) == 1
    assert len(shown.text.encode()) < 10_000_000


def test_galleries_mark_right_and_wrong_by_sign_and_say_names(run_folder, page):
    view = read_run(run_folder, picture=letter)
    shown = page(view)
    assert shown.count("ul", "gallery") == 10 + 6 + 6
    right, wrong = shown.count("li", "right"), shown.count("li", "wrong")
    assert right + wrong == shown.said.count("✓") + shown.said.count("✗")
    assert right == shown.said.count("✓") > 0
    pairs = 2 * shown.count("span", "example")
    assert shown.count("img", "pixelated") == right + wrong + 22 + pairs
    first = re.search(
        r'aria-label="Query ([^;]+); its best relevant item has rank (\d+)', shown.text
    )
    ranks = re.findall(r"best relevant item has rank (\d+)", shown.text)[:10]
    assert first
    assert first[1] in view.ids
    assert [int(rank) for rank in ranks] == sorted(map(int, ranks), reverse=True)


def test_without_pictures_ids_stand_in_their_place(view, page):
    shown = page(view)
    assert shown.count("img") == 0
    assert shown.count("span", "id") > 100
    assert "test/1/7.png" in shown.text


def test_hostile_text_is_text(tmp_path, page):
    lines = [
        {"event": "start", "coverage": HOSTILE},
        {"event": "step", "step": 0, "terms": {"total": 1.0, HOSTILE: 0.5, "b": 0.5}},
        {"event": "epoch", "epoch": 0, "validation": {HOSTILE: 0.5}},
        {"event": "warning", "message": HOSTILE},
    ]
    folder = write_run(
        tmp_path / "<b>run",
        lines=lines,
        names=[f"{HOSTILE} {c}" for c in range(40)],
        ids=np.array([f"{HOSTILE}/{row}" for row in range(240)]),
    )
    (folder / "recipe.yaml").write_text(json.dumps({"data": {HOSTILE: {HOSTILE: HOSTILE}}}))
    (folder / "left_out.txt").write_text(HOSTILE)
    told = metrics()
    told["test"]["cosine"][HOSTILE] = {"value": 0.5}
    told["selected"]["by"] = HOSTILE
    (folder / "metrics.json").write_text(json.dumps(told))
    (folder / "environment.json").write_text(json.dumps({"format": 1, HOSTILE: HOSTILE}))
    shown = page(read_run(folder))
    plots = len(shown.figures)
    assert plots == 4
    assert shown.count("script") == plots + 4, "and the map's points, tables, plotly, plots"
    assert shown.count("img") == 0
    assert not any(name.startswith("on") for _, found in shown.elements for name in found)
    assert "<script>alert" not in shown.text
    assert "</script><script>alert('1')" in shown.words


def test_selection_on_the_test_classes_is_marked(view, page):
    told = metrics() | {"best_on_test": block(0.65) | {"epoch": 3}}
    told["selected"] = {"epoch": 3, "by": "best_on_test"}
    words = page(replace(view, metrics=told)).words
    assert "⚠ Selected on the test classes , as the paper did; not an honest estimate" in words
    assert "the epoch was selected on the test classes, as the paper did; not an honest" in words
    assert "⚠ best on test (epoch 3)" in words
    assert "65.0 %" in words


def test_several_runs_stand_in_one_table(tmp_path, view, page):
    other = read_run(write_run(tmp_path / "other", spread=2.0))
    shown = page(view, other)
    assert shown.count("header") == 1
    assert shown.count("table", "metrics") == 3
    assert "2 training runs Of 2 runs," in shown.words
    assert "Against glyphs, query by query" in shown.words
    assert "The recipes are the same." in shown.words
    assert "glyphs trained" in shown.words
    assert "other untrained" in shown.words
    assert {found.get("id") for tag, found in shown.elements if tag == "div"} >= {
        "run-1",
        "run-2",
    }


def test_a_run_with_little_in_it_still_has_a_report(tmp_path, page):
    nothing = np.zeros(240, bool)
    folder = write_run(tmp_path / "bare", lines=[], is_gallery=nothing, is_query=nothing)
    (folder / "metrics.json").write_text("{}")
    (folder / "recipe.yaml").write_text("{}")
    shown = page(read_run(folder))
    assert "no metric was measured" in shown.words
    assert "The log of this run holds no steps." in shown.words
    assert "No query of this run has a relevant item" in shown.words
    assert len(shown.text) < 100_000, "no plots, so no plotly"


def test_a_run_named_like_another_is_named_with_its_folder(tmp_path, page):
    folders = [write_run(tmp_path / above / "glyphs") for above in ("one", "two")]
    words = page(*map(read_run, [*folders, folders[0]])).words
    for name in ("one/glyphs", "two/glyphs", "one/glyphs (2)"):
        assert f"{name} trained" in words


def test_floors_and_the_paper_stand_in_table_and_bars_and_faults_are_told(view, page):
    view.metrics["floors"] = {"whitened": block(0.7) | {"shrinkage": 0.1}}
    view.recipe["paper"] = {"source": "Somebody 2020", "cosine": {"recall@1": 0.6, "map@r": 45}}
    shown = page(view)
    assert shown.count("tr", "floor") == 2
    assert shown.count("tr", "paper") == 1
    assert shown.count("div", "paper") == 1
    for said in (
        "That is less than whitening alone gives without any training.",
        "within-class whitening alone, a closed form, no training; shrinkage 0.1.",
        "paper : printed in Somebody 2020.",
        "`paper.cosine` says map@r: 45; a share from 0 to 1 was expected",
    ):
        assert said in shown.words
    both = page(view, replace(view, name="other"))
    assert both.count("tr", "paper") == 1, "one paper, told by both"


@pytest.mark.slow
def test_a_page_that_grows_too_large_has_smaller_pictures_and_then_none(
    run_folder, page, monkeypatch
):
    noise = np.random.default_rng(0).integers(0, 256, (240, 150, 150, 3), dtype=np.uint8)
    view = read_run(run_folder, picture=lambda row: Image.fromarray(noise[row]))
    whole = page(view)
    assert "keep this page under 10 MB" not in whole.words
    monkeypatch.setattr("nearkin.report.page.MOST_BYTES", len(whole.text.encode()))
    smaller = page(view)
    assert "Pictures are smaller than usual" in smaller.words
    assert smaller.count("img") == whole.count("img")
    assert len(smaller.text.encode()) < len(whole.text.encode())
    monkeypatch.setattr("nearkin.report.page.MOST_BYTES", len(smaller.text.encode()))
    none = page(view)
    assert "Pictures are left out" in none.words
    assert none.count("img") == 0
    assert none.count("ul", "gallery") == 22
    monkeypatch.setattr("nearkin.report.page.MOST_BYTES", 1)
    bare = page(view)
    assert "The parts on single runs are left out" in bare.words
    assert bare.count("ul", "gallery") == bare.count("div", "plane") == 0
    assert bare.count("table", "metrics") == 2


def test_points_of_the_map_are_the_rows_with_their_classes(run_folder, page):
    view = read_run(run_folder, picture=letter)
    shown = page(view)
    (points,) = [json.loads(script) for script in shown.scripts if script.startswith('{"codes"')]
    assert points["ids"] == view.ids
    assert [points["codes"][c] for c in points["label"]] == view.labels.tolist()
    assert points["names"] == view.names
    assert all(len(layout["x"]) == len(layout["y"]) == 240 for layout in points["layouts"])
    sheet = points["sheet"]
    assert (sheet["side"], sheet["columns"], sheet["lines"]) == (32, 16, 15)
    assert sheet["address"].startswith("data:image/webp;base64,")


def test_names_that_lead_to_the_map_and_rows_that_the_matrix_leads_to(view, page):
    shown = page(view)
    ids = {found["id"] for _, found in shown.elements if "id" in found}
    leads = [found for _, found in shown.elements if "data-classes" in found]
    assert len(leads) > 20
    for found in leads:
        assert found["data-map"] == "map-1"
        assert all(int(code) < 40 for code in found["data-classes"].split())
    assert any(re.fullmatch(r"pair-1-\d+-\d+", name) for name in ids)
    for _, found in shown.elements:
        assert (found.get("href") or "#scores")[1:] in ids


def test_the_report_changes_nothing_of_the_run(run_folder, page):
    before = {file.name: file.read_bytes() for file in run_folder.iterdir()}
    view = read_run(run_folder, picture=letter)
    copies = [view.embeddings.copy(), view.labels.copy(), json.dumps(view.metrics)]
    page(view, view)
    assert {file.name: file.read_bytes() for file in run_folder.iterdir()} == before
    np.testing.assert_array_equal(view.embeddings, copies[0])
    np.testing.assert_array_equal(view.labels, copies[1])
    assert json.dumps(view.metrics) == copies[2]


def test_the_sentence_on_few_of_many_queries(tmp_path, page):
    view = read_run(write_run(tmp_path / "many", classes=900, each=5, names=["x"] * 900, dim=4))
    assert "Seen from 4,000 of 4,500 queries" in page(view).words


def test_the_same_run_gives_the_same_page(view, page):
    assert page(view).text == page(view).text


def test_nothing_half_written_is_left_behind(view, tmp_path, monkeypatch):
    target = tmp_path / "out" / "report.html"
    with pytest.raises(FileNotFoundError, match=r"no folder .*out to write report\.html"):
        write_report([view], target)
    with pytest.raises(ValueError, match="at least one run"):
        write_report([], tmp_path / "report.html")
    with pytest.raises(
        IsADirectoryError, match=r"is a folder; give a file, such as .*report\.html"
    ):
        write_report([view], tmp_path)
    target.parent.mkdir()
    target.write_text("the old one")

    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="no space"):
        write_report([view], target)
    assert [file.name for file in target.parent.iterdir()] == ["report.html"]
    assert target.read_text() == "the old one"
