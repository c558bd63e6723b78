"""`check`: what it counts, what it finds, what it calls a problem."""

import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest

from nearkin.data.check import SplitSummary, check, check_set
from nearkin.data.npz import npz


def test_a_good_folder_is_counted_and_ok(photos):
    report = check(photos({"a": 3, "b": 2, "c": 1, "d": 5, "e": 2, "f": 2, "g": 2, "h": 2}))
    assert report.ok
    assert report.splits == {
        "train": SplitSummary(11, 4, 1, 2.5, 5, 1),
        "validation": SplitSummary(4, 2, 2, 2.0, 2, 0),
        "test": SplitSummary(4, 2, 2, 2.0, 2, 0),
    }
    assert (report.tiny, report.gray, report.duplicates, report.problems) == ((), (), (), ())


def test_unreadable_tiny_and_gray_images_are_listed_and_no_problem(photos, photo):
    root = photos({f"c{i}": 3 for i in range(8)})
    (root / "c0" / "0.png").write_bytes(b"broken")
    photo(root / "c0" / "1.png", 100, side=15)
    photo(root / "c0" / "2.png", 101, mode="L")
    report = check(root)
    assert report.ok
    assert report.unreadable == ((str(root / "c0" / "0.png"), "not an image that Pillow can read"),)
    assert (report.tiny, report.gray) == (("train: c0/1.png",), ("train: c0/2.png",))
    assert "  1 images under 16 pixels, 1 gray images" in report.lines()
    assert "  tiny: train: c0/1.png" in report.lines()
    assert "  gray: train: c0/2.png" in report.lines()


def test_duplicates_across_splits_are_a_problem(photos):
    root = photos({f"c{i}": 3 for i in range(8)})
    shutil.copy(root / "c0" / "0.png", root / "c7" / "copy.png")
    report = check(root)
    assert not report.ok
    assert report.duplicates == (("train: c0/0.png", "test: c7/copy.png"),)
    assert "1 groups of equal rows reach across splits, such as c0/0.png" in report.problems[0]


def test_duplicates_inside_a_split_are_a_note(photos):
    root = photos({f"c{i}": 3 for i in range(8)})
    shutil.copy(root / "c0" / "0.png", root / "c0" / "copy.png")
    shutil.copy(root / "c0" / "1.png", root / "c1" / "copy.png")
    report = check(root)
    assert report.ok
    assert len(report.duplicates) == 2
    assert "1 groups of equal rows have several labels, such as ['c0', 'c1']" in report.notes
    assert "1 groups of equal rows stand within one class" in report.notes


@pytest.mark.parametrize(
    ("classes", "said"),
    [
        ({"a": 3}, "one class only"),
        ({"": 3}, "images lie directly in"),
        ({"train/a": 2, "train/b": 2, "test/a": 2, "test/c": 2}, "stands in train and in test"),
        ({"a": 2, "b": 2, "c": 2}, "3 classes were seen"),
    ],
)
def test_what_would_stop_training_is_a_problem(photos, classes, said):
    report = check(photos(classes))
    assert not report.ok
    assert report.splits == {}
    assert said in report.problems[0]


def test_too_few_classes_for_validation_are_a_note(photos):
    report = check(photos({"a": 2, "b": 2, "c": 2, "d": 2}))
    assert report.ok
    assert report.notes == ("the classes are too few for a validation split",)


def test_npz_files_are_checked_too(tmp_path: Path):
    x = np.random.default_rng(0).standard_normal((24, 4))
    x[23] = x[0]
    np.savez(tmp_path / "x.npz", embeddings=x, labels=np.repeat(np.arange(8), 3))
    report = check(tmp_path / "x.npz")
    assert report.kind == "npz"
    assert report.duplicates == (("train: 0", "test: 23"),)
    assert not report.ok
    np.savez(tmp_path / "y.npz", embeddings=x)
    assert "no array labels" in check(tmp_path / "y.npz").problems[0]


def test_other_kinds_of_files_are_told_what_is_read(tmp_path: Path):
    (tmp_path / "y.tsv").write_text("path\tlabel\n")
    with pytest.raises(ValueError, match=r"y.tsv is of no kind .* ends in .csv, .parquet or .npz"):
        check(tmp_path / "y.tsv")


def test_progress_is_told_of_the_images_of_a_table(tmp_path: Path, photo):
    for i in range(16):
        photo(tmp_path / f"{i}.png", i)
    rows = [f"{i}.png,c{i % 8}" for i in range(16)]
    (tmp_path / "t.csv").write_text("\n".join(["path,label", *rows]))
    seen = []
    assert check(tmp_path / "t.csv", lambda *told: seen.append(told)).ok
    assert seen == [(16, 16)]
    (tmp_path / "t.csv").write_text("\n".join(["path,label", *rows, "gone.png,c0"]))
    assert "there is no file" in check(tmp_path / "t.csv").problems[0]


def test_tables_are_checked_with_their_boxes(tmp_path: Path, photo):
    for i in range(8):
        photo(tmp_path / f"{i}.png", i)
    photo(tmp_path / "9.png", 9, mode="L")
    rows = [f'{i}.png,c{i},"0,0,{side},20"' for i in range(8) for side in (10, 20)]
    rows += ['0.png,c7,"0,0,20,20"', "9.png,c7,", "9.png,c7,"]
    (tmp_path / "t.csv").write_text("\n".join(["path,label,box", *rows]))
    report = check(tmp_path / "t.csv")
    assert report.kind == "table"
    assert report.across_splits == (("train: 0.png[0,0,20,20]", "test: 0.png[0,0,20,20]"),)
    assert report.different_labels == (
        ("train: 0.png[0,0,20,20] (c0)", "test: 0.png[0,0,20,20] (c7)"),
    )
    assert report.duplicates[1:] == (("test: 9.png", "test: 9.png"),)
    assert report.tiny == tuple(
        f"{'train' if i < 4 else 'validation' if i < 6 else 'test'}: {i}.png[0,0,10,20]"
        for i in range(8)
    )
    assert report.gray == ("test: 9.png", "test: 9.png")
    assert not report.ok
    (tmp_path / "t.csv").write_text("path,label\n0.png,\n")
    assert "row 1 (line 2)" in check(tmp_path / "t.csv").problems[0]


def test_a_set_is_checked_by_its_function(tmp_path: Path):
    x = np.random.default_rng(0).standard_normal((24, 4))
    np.savez(tmp_path / "x.npz", embeddings=x, labels=np.repeat(np.arange(8), 3))

    def mine():
        warnings.warn("half of it is missing", UserWarning, stacklevel=1)
        return npz(tmp_path / "x.npz")

    report = check_set(mine)
    assert (report.path, report.kind, report.ok) == ("mine", "mine", True)
    assert (report.tiny, report.gray) == (None, None)
    assert report.notes == ("half of it is missing",)
    assert check_set(npz, tmp_path / "x.npz").splits == report.splits
    with pytest.raises(ValueError, match="npz reads files of your own; give their path"):
        check_set(npz)
    with pytest.raises(ValueError, match="mine takes no path"):
        check_set(mine, tmp_path)


def test_nothing_there_is_an_error(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="there is nothing at"):
        check(tmp_path / "missing")


def test_the_report_is_json_and_lines(photos):
    root = photos({f"c{i}": 15 for i in range(8)})
    for i in range(12):
        (root / "c0" / f"{i}.png").write_bytes(b"broken")
    report = check(root)
    read = json.loads(json.dumps(report.to_dict()))
    assert read["ok"] is True
    assert read["splits"]["test"] == {
        "rows": 30,
        "classes": 2,
        "smallest": 15,
        "median": 15.0,
        "largest": 15,
        "singletons": 0,
    }
    assert len(read["unreadable"]) == 12
    lines = report.lines()
    assert lines[0] == f"{root} (folder)"
    assert "  test: 30 rows, 2 classes of 15 to 15 rows (median 15), 0 of one row" in lines
    assert sum("unreadable: " in line for line in lines) == 11
    assert "  unreadable: 2 more" in lines
    assert lines[-1] == "  ok"
