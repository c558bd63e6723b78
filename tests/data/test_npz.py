"""The set npz: layouts, columns, splits, and what is wrong with a file."""

from pathlib import Path

import numpy as np
import pytest
import torch

from nearkin.data.npz import npz

_LABELS = np.repeat(np.arange(8), 3)
_FEATURES = np.random.default_rng(0).standard_normal((24, 5))


@pytest.fixture
def write(tmp_path: Path):
    def write(**arrays) -> Path:
        path = tmp_path / "data.npz"
        np.savez(path, **arrays)
        return path

    return write


def test_features_become_float32_rows(write):
    splits = npz(write(embeddings=_FEATURES, labels=_LABELS))
    assert splits.facts == {"features": 5}
    assert splits.test.names == ("6", "7")
    assert splits.test.inputs.dtype == torch.float32  # type: ignore[union-attr]
    np.testing.assert_array_equal(splits.test.inputs, _FEATURES[18:].astype(np.float32))
    assert splits.test.ids == tuple(map(str, range(18, 24)))


@pytest.mark.parametrize(
    ("shape", "channels"),
    [((24, 9, 9), 1), ((24, 3, 9, 9), 3), ((24, 9, 9, 3), 3), ((24, 9, 9, 1), 1)],
)
def test_pictures_of_every_layout_become_channels_first(write, shape, channels):
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    splits = npz(write(images=images, labels=_LABELS))
    assert splits.facts == {"channels": channels, "image_size": 9}
    expected = images.reshape(24, 1, 9, 9) if channels == 1 else images
    if shape == (24, 9, 9, 3):
        expected = np.moveaxis(images, -1, 1)
    np.testing.assert_array_equal(splits.train.inputs, expected[: len(splits.train)])


def test_pictures_that_are_not_square_have_no_side(write):
    images = np.zeros((24, 6, 9), np.uint8)
    assert npz(write(images=images, labels=_LABELS)).facts == {"channels": 1}


def test_text_labels_are_names(write):
    labels = np.array([f"class {i}" for i in _LABELS])
    assert npz(write(inputs=_FEATURES, labels=labels)).test.names == ("class 6", "class 7")
    assert npz(write(inputs=_FEATURES, labels=labels.astype("S"))).test.names[0] == "class 6"


def test_large_integer_labels_stay_apart(write):
    labels = 2**60 + _LABELS
    splits = npz(write(inputs=_FEATURES, labels=labels))
    assert splits.test.names == (str(2**60 + 6), str(2**60 + 7))


@pytest.mark.parametrize("names", [[0, 1, 2], ["train", "val", "test"]])
def test_given_splits_are_kept(write, names):
    split = np.array(names)[np.repeat([2, 1, 0], [6, 6, 12])]
    splits = npz(write(inputs=_FEATURES, labels=_LABELS, split=split))
    assert splits.validation is not None
    assert splits.test.names == ("0", "1")
    assert splits.validation.names == ("2", "3")
    assert splits.train.names == ("4", "5", "6", "7")


def test_validation_is_taken_from_train_where_it_is_missing(write):
    splits = npz(write(inputs=_FEATURES, labels=_LABELS, split=np.repeat([2, 0], [6, 18])))
    assert splits.validation is not None
    assert splits.validation.names == ("6", "7")
    assert splits.train.names == ("2", "3", "4", "5")


def test_columns_follow_their_rows(write):
    query = _LABELS % 2 == 0
    groups = np.array(list("abc") * 8)
    splits = npz(
        write(
            inputs=_FEATURES,
            labels=_LABELS,
            groups=groups,
            is_query=query,
            is_gallery=~query,
            ids=np.array([f"row {i}" for i in range(24)]),
        )
    )
    assert splits.test["group"].tolist() == [0, 1, 2, 0, 1, 2]
    assert splits.test["is_query"].tolist() == [True] * 3 + [False] * 3
    assert splits.test["is_gallery"].tolist() == [False] * 3 + [True] * 3
    assert splits.test.ids[0] == "row 18"


_ROWS = {"inputs": _FEATURES, "labels": _LABELS}


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"x": _FEATURES, "labels": _LABELS}, "no array inputs .*it holds labels, x"),
        ({"inputs": _FEATURES}, "no array labels; it holds inputs"),
        ({**_ROWS, "labels": _LABELS[:-1]}, "inputs 24, labels 23"),
        ({**_ROWS, "ids": np.arange(3)}, "ids 3"),
        ({"inputs": _FEATURES[:0], "labels": _LABELS[:0]}, "lengths are inputs 0, labels 0"),
        ({**_ROWS, "inputs": np.where(_FEATURES > 2, np.nan, _FEATURES)}, "NaN or infinite in row"),
        ({**_ROWS, "labels": _LABELS + 0.5}, "labels in .* must be integers or texts"),
        ({**_ROWS, "inputs": _FEATURES[:, 0]}, r"numbers of shape \(N, \.\.\.\)"),
        ({**_ROWS, "inputs": np.full((24, 2), "x")}, "must be numbers"),
        ({**_ROWS, "inputs": np.zeros((24, 9, 9, 4), np.uint8)}, "needs 1 or 3 channels"),
        ({**_ROWS, "labels": np.array([object()] * 24)}, "holds Python objects in 'labels'"),
        ({**_ROWS, "labels": np.zeros(24, int)}, "one class only, '0'"),
        ({**_ROWS, "split": np.full(24, 3)}, "split in .* holds '3'; expected 0, 1, 2"),
        ({**_ROWS, "split": np.zeros(24, int)}, "has no row of test"),
        ({**_ROWS, "split": np.repeat([0, 2], [3, 21])}, "trains on one class only, '0'"),
        ({**_ROWS, "split": np.arange(24) % 3}, "stands in train and in"),
        ({**_ROWS, "is_query": np.arange(24)}, "is_query in .* true or false"),
        ({**_ROWS, "labels": _LABELS // 3}, "3 classes were seen"),
    ],
)
def test_wrong_arrays_are_refused(write, arrays, said):
    with pytest.raises(ValueError, match=said):
        npz(write(**arrays))


def test_wrong_files_are_refused(tmp_path: Path, write):
    with pytest.raises(FileNotFoundError, match="there is no file"):
        npz(tmp_path / "missing.npz")
    with pytest.raises(IsADirectoryError, match="is a folder"):
        npz(tmp_path)
    np.save(tmp_path / "array.npy", _FEATURES)
    with pytest.raises(ValueError, match=r"is not a \.npz file"):
        npz(tmp_path / "array.npy")


def test_a_damaged_file_is_refused(write):
    path = write(**_ROWS)
    content = bytearray(path.read_bytes())
    content[400] ^= 255
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is damaged"):
        npz(path)
    content[400] ^= 255
    content[content.index(b"PK\x01\x02") + 10] = 99  # how the first array is compressed
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"is damaged .*compression method"):
        npz(path)


def test_what_stands_above_the_classes_orders_the_blocks(write):
    # The first two classes are of the later make, so they test.
    makes = np.array(["b", "b", *"aaaaaa"])[_LABELS]
    splits = npz(write(**_ROWS, super_labels=makes))
    assert set(splits.test.names) == {"0", "1"}
    assert splits.train["super_label"].unique().tolist() == [0]
