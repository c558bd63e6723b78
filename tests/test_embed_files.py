"""`nearkin embed`: folders, lists, tables and arrays into one file, whole or not at all."""

import errno
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest

pytest_plugins = ["commands"]


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


def test_suffixes_may_be_capitals(good, trained, photos, tmp_path):
    photos({"a": 2}, "p")
    (tmp_path / "LIST.TXT").write_text("p/a/0.png\np/a/1.png\n")
    (tmp_path / "TABLE.CSV").write_text("path,label\np/a/0.png,a\np/a/1.png,a\n")
    for source in ("LIST.TXT", "TABLE.CSV"):
        said = json.loads(good("embed", trained, source, "--out", f"{source}.NPZ", "--json"))
        assert said["rows"] == 2
        with np.load(f"{source}.NPZ") as file:
            assert file["ids"].tolist() == ["p/a/0.png", "p/a/1.png"]


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


def test_tables_name_boxes_and_may_be_parquet(call, trained, photos, tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    photos({"a": 2})
    paths = ["photos/a/0.png"] * 3 + ["photos/a/1.png"]
    boxes = [[0, 0, 20, 20], None, [0, 0, 9, 9], [90, 90, 99, 99]]
    listed = pyarrow.table({"path": paths, "box": boxes, "label": [7, 7, 8, 9]})
    parquet.write_table(listed, tmp_path / "t.parquet")
    code, _, err = call("embed", trained, "t.parquet", "--out", "z.npz")
    assert code == 0, err
    assert err.startswith("left out photos/a/1.png[90,90,99,99]: the box (90, 90, 99, 99) lies out")
    with np.load("z.npz") as z:
        assert z["ids"].tolist() == [
            *("photos/a/0.png[0,0,20,20]", "photos/a/0.png", "photos/a/0.png[0,0,9,9]")
        ]
        assert z["labels"].tolist() == ["7", "7", "8"]
        np.testing.assert_allclose(z["embeddings"][0], z["embeddings"][1], atol=1e-6)
        assert np.abs(z["embeddings"][0] - z["embeddings"][2]).max() > 1e-3


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


def test_parquet_holds_the_same(good, trained, photos, files_below):
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


def test_wrong_embeds_are_told_before_anything_is_written(
    bad, trained, photos, tmp_path, files_below
):
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
        ("plain.csv", "z.npz", "has no column 'path'; it has file"),
        ("short.csv", "z.npz", r"row 1 \(line 2\) of short.csv has 1 cells, but the header has 2"),
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


def test_bfloat16_changes_the_embeddings_a_little_and_no_file_form(good, bad, trained, photos):
    folder = photos({"a": 3, "b": 2})
    good("embed", trained, folder, "--out", "usual.npz")
    good("embed", trained, folder, "--out", "fast.npz", "--precision", "bfloat16")
    with np.load("usual.npz") as usual, np.load("fast.npz") as fast:
        off = np.linalg.norm(fast["embeddings"] - usual["embeddings"])
        assert 0 < off < 0.05 * np.linalg.norm(usual["embeddings"])
        assert fast["embeddings"].dtype == np.float32
    says = "--precision is float32 or bfloat16, not 'float16'"
    bad("embed", trained, folder, "--out", "z.npz", "--precision", "float16", says=says)
