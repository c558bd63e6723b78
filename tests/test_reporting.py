"""`nearkin report`: one run or several, with pictures where their data are to be had."""

import json
import shutil
from pathlib import Path

import yaml

from nearkin.config import load_recipe

pytest_plugins = ["commands"]


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


def test_wrong_reports_are_told(bad, trained, tmp_path, files_below):
    bad("report", "nowhere", says="there is no run folder nowhere")
    bad("report", trained, tmp_path, says="is not a run folder")
    (tmp_path / "file").write_text("mine")
    bad("report", trained, "--out", "file/page.html", says="file")
    assert files_below(tmp_path) == ["file"]
