"""The set folder: one's own images as splits."""

import pytest

from nearkin.data.folder import folder


def test_classes_are_split_in_blocks(photos):
    splits = folder(photos({f"c{i}": 2 for i in range(12)}))
    assert splits.validation is not None
    assert splits.train.names == tuple(f"c{i}" for i in range(7))
    assert splits.validation.names == ("c7", "c8")
    assert splits.test.names == ("c9", "c10", "c11")
    assert splits.test.ids == tuple(f"c{i}/{k}.png" for i in (9, 10, 11) for k in (0, 1))
    assert splits.facts == {"image_size": 64, "channels": 3}
    assert splits.left_out == ()


def test_inputs_are_paths_of_files(photos):
    root = photos({f"c{i}": 2 for i in range(6)})
    test = folder(root).test
    assert list(test.inputs) == [str(root / each) for each in test.ids]


def test_train_val_and_test_folders_are_kept(photos):
    root = photos({"train/a": 2, "train/b": 2, "val/c": 2, "val/d": 2, "test/e": 2, "test/f": 1})
    splits = folder(root)
    assert {name: table.names for name, table in splits.tables().items()} == {
        "train": ("a", "b"),
        "validation": ("c", "d"),
        "test": ("e", "f"),
    }


def test_validation_is_taken_from_train_where_it_is_missing(photos):
    root = photos({**{f"train/{i}": 2 for i in range(10)}, "test/x": 2, "test/y": 2})
    splits = folder(root)
    assert splits.validation is not None
    assert splits.validation.names == ("8", "9")
    assert splits.train.names == tuple(map(str, range(8)))
    assert splits.test.names == ("x", "y")
    assert folder(root, validation=0).validation is None


def test_a_class_in_train_and_test_is_refused(photos):
    root = photos({"train/a": 2, "train/b": 2, "test/a": 2, "test/c": 2})
    with pytest.raises(ValueError, match="'a' stands in train and in test"):
        folder(root)


def test_unreadable_images_are_left_out_with_reasons(photos):
    root = photos({f"c{i}": 3 for i in range(8)})
    (root / "c7" / "0.png").write_bytes(b"broken")
    splits = folder(root)
    assert splits.left_out == ((str(root / "c7" / "0.png"), "not an image that Pillow can read"),)
    assert sum(len(table) for table in splits.tables().values()) == 23


def test_a_class_without_a_readable_image_is_refused(photos):
    root = photos({**{f"c{i}": 3 for i in range(8)}, "bad": 1})
    (root / "bad" / "0.png").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"no image of the class 'bad' can be read \(.*0.png: not"):
        folder(root)


def test_classes_of_one_image_train_and_stand_in_the_gallery(photos):
    root = photos({**{f"c{i}": 1 for i in range(5)}, **{f"c{i}": 2 for i in range(5, 12)}, "z": 1})
    splits = folder(root)
    assert {"c0", "c4"} <= set(splits.train.names)
    assert "z" in splits.test.names


def test_one_class_only_is_refused_and_a_wrapping_folder_guessed(photos):
    with pytest.raises(ValueError, match=r"holds one class only, 'a'; retrieval needs several$"):
        folder(photos({"a": 4}, "one"))
    with pytest.raises(ValueError, match="has 3 sub-folders: was it meant"):
        folder(photos({"wrap/a": 2, "wrap/b": 2, "wrap/c": 2}, "two"))
    with pytest.raises(ValueError, match="train holds one class only"):
        folder(photos({"train/a": 4, "test/b": 2, "test/c": 2}, "three"))


def test_too_few_classes_are_counted(photos):
    with pytest.raises(ValueError, match="3 classes were seen"):
        folder(photos({"a": 4, "b": 4, "c": 4}))


def test_a_draw_depends_on_the_seed(photos):
    root = photos({f"c{i}": 2 for i in range(12)})
    draws = [folder(root, seed=s, contiguous=False).test.names for s in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
