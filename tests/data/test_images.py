"""Image files under a folder: classes, splits, order, and what is wrong with a folder."""

import json
import os
from pathlib import Path

import pytest

from nearkin.data import images
from nearkin.data.images import fault, find_classes, find_faults, find_images


def test_sub_folders_are_classes_in_natural_order(photos):
    root = photos({"c10": 1, "c2": 2, "a": 1})
    assert [(file.id, file.name, file.split) for file in find_classes(root).files] == [
        ("a/0.png", "a", None),
        ("c2/0.png", "c2", None),
        ("c2/1.png", "c2", None),
        ("c10/0.png", "c10", None),
    ]


def test_deeper_images_belong_to_their_class_folder(photos):
    found = find_classes(photos({"a/x/y": 1, "a": 1, "b": 1}))
    assert [(file.id, file.name) for file in found.files] == [
        ("a/0.png", "a"),
        ("a/x/y/0.png", "a"),
        ("b/0.png", "b"),
    ]


def test_folders_named_train_and_test_are_splits(photos):
    found = find_classes(photos({"Train/a": 1, "valid/b": 1, "test/c": 1}))
    assert found.by_split
    assert [(file.name, file.split) for file in found.files] == [
        ("a", "train"),
        ("b", "validation"),
        ("c", "test"),
    ]


def test_a_class_named_train_among_others_is_a_class(photos):
    found = find_classes(photos({"train": 1, "car": 1}))
    assert not found.by_split
    assert [file.name for file in found.files] == ["car", "train"]


def test_every_extension_counts_in_any_case(photos, photo, tmp_path):
    root = photos({"a": 1})
    for i, extension in enumerate(["JPG", "jpeg", "Bmp", "webp", "gif", "tif", "TIFF"]):
        photo(root / "a" / f"x{i}.{extension}")
    (root / "a" / "notes.txt").write_text("no image")
    assert len(find_classes(root).files) == 8


def test_hidden_and_archive_leftovers_are_passed_over(photos):
    root = photos({"a": 1, ".git": 1, "__MACOSX/a": 1, "b/.thumbnails": 1, "b": 1})
    (root / "a" / "._0.png").write_bytes(b"resource fork")
    assert [file.id for file in find_classes(root).files] == ["a/0.png", "b/0.png"]


def test_links_in_a_circle_end(photos):
    root = photos({"a": 1, "b": 1})
    (root / "a" / "again").symlink_to(root / "a")
    (root / "b" / "up").symlink_to(root)
    found = [file.id for file in find_classes(root).files if file.name == "a"]
    assert found == ["a/0.png"]
    assert len(find_images(root)) == 2


def test_strays_and_empty_class_folders_are_reported(photos, photo):
    root = photos({"a": 1, "b": 1})
    photo(root / "stray.png")
    (root / "empty").mkdir()
    assert find_classes(root).passed_over == (
        (str(root / "stray.png"), "lies beside the class folders, not in one"),
        (str(root / "empty"), "a class folder without images"),
    )


@pytest.mark.parametrize(
    ("classes", "said"),
    [
        ({"train/a": 1}, "has train/ but no test/"),
        ({"test/a": 1, "val/b": 1}, "but no train/"),
        ({"train/a": 1, "val/b": 1, "valid/c": 1, "test/d": 1}, "both name the validation split"),
        ({"train/a": 1, "test": 1}, "has no class folders"),
        ({"": 3}, "3 images lie directly in"),
    ],
)
def test_folders_of_another_shape_are_refused(photos, classes, said):
    with pytest.raises(ValueError, match=said):
        find_classes(photos(classes))


def test_what_is_no_folder_is_refused(tmp_path: Path, photo):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        find_classes(tmp_path / "missing")
    with pytest.raises(NotADirectoryError, match="is a file"):
        find_classes(photo(tmp_path / "x.png"))
    (tmp_path / "empty" / "class").mkdir(parents=True)
    with pytest.raises(ValueError, match="no images were found"):
        find_classes(tmp_path / "empty")
    with pytest.raises(ValueError, match="is empty"):
        find_classes(tmp_path / "empty" / "class")


def test_a_folder_without_permission_is_named(photos, monkeypatch):
    root = photos({"a": 1, "b": 1})
    scan = os.scandir

    def refuse(folder):
        if Path(folder).name == "b":
            raise PermissionError(13, "Permission denied")
        return scan(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(PermissionError, match=r"no permission to read the folder .*b;"):
        find_classes(root)


def test_faults_say_why(photo, tmp_path: Path):
    whole = photo(tmp_path / "whole.jpg", side=60)
    assert fault(str(whole)) is None
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(whole.read_bytes()[:-400])
    assert "truncated" in str(fault(str(cut)))
    (tmp_path / "empty.png").touch()
    assert fault(str(tmp_path / "empty.png")) == "an empty file"
    (tmp_path / "text.png").write_text("hello")
    assert fault(str(tmp_path / "text.png")) == "not an image that Pillow can read"
    (tmp_path / "lost.png").symlink_to(tmp_path / "nowhere")
    assert "No such file" in str(fault(str(tmp_path / "lost.png")))


def test_faults_are_remembered_until_a_file_changes(photos, photo, monkeypatch):
    root = photos({"a": 3, "b": 3})
    bad = root / "a" / "1.png"
    bad.write_bytes(b"broken")
    files = find_classes(root).files
    looked: list[str] = []
    monkeypatch.setattr(images, "fault", lambda path: looked.append(path) or fault(path))
    told: list[tuple[int, int]] = []
    first = find_faults(root, files, lambda done, total: told.append((done, total)))
    assert first == {str(bad): "not an image that Pillow can read"}
    assert (len(looked), told) == (6, [(6, 6)])
    assert find_faults(root, files) == first
    assert len(looked) == 6
    photo(bad)
    assert find_faults(root, files) == {}
    assert looked[6:] == [str(bad)]


@pytest.mark.parametrize("text", ["{", "[]", json.dumps({"x": 1})])
def test_a_damaged_memory_of_faults_is_made_again(photos, cache: Path, text):
    root = photos({"a": 2, "b": 2})
    files = find_classes(root).files
    find_faults(root, files)
    (store,) = cache.glob("readable-*.json")
    store.write_text(text)
    assert find_faults(root, files) == {}
    assert len(json.loads(store.read_text())) == 4
