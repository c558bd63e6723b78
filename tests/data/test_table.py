"""The set table: splits, roles, groups and boxes from a CSV or Parquet file."""

import csv

import pytest
import torch

from nearkin.boxes import Boxed
from nearkin.data.table import table
from nearkin.measure import evaluate_table


@pytest.fixture
def listed(tmp_path, photo):
    """Writes images and a CSV with the columns given; `path` a.png, b.png ... by default."""

    def write(**columns):
        count = len(next(iter(columns.values())))
        columns = {"path": [f"{i}.png" for i in range(count)], **columns}
        for i, name in enumerate(columns["path"]):
            if not (tmp_path / name).exists():
                photo(tmp_path / name, i)
        with (tmp_path / "t.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerows(zip(*columns.values(), strict=True))
        return tmp_path / "t.csv"

    return write


LABELS = [f"c{i // 2}" for i in range(16)]
SPLIT = ["train"] * 8 + ["val"] * 4 + ["test"] * 4


def test_classes_are_split_where_no_column_says_how(listed, tmp_path):
    splits = table(listed(label=LABELS), image_size=32)
    assert [part.names for part in splits.tables().values()] == [
        ("c0", "c1", "c2", "c3"),
        ("c4", "c5"),
        ("c6", "c7"),
    ]
    assert splits.test.ids == ("12.png", "13.png", "14.png", "15.png")
    assert splits.test.inputs[0] == str(tmp_path / "12.png")
    assert splits.facts == {"image_size": 32, "channels": 3}


def test_the_column_split_is_kept(listed):
    splits = table(listed(label=LABELS, split=SPLIT))
    assert {name: part.names for name, part in splits.tables().items()} == {
        "train": ("c0", "c1", "c2", "c3"),
        "validation": ("c4", "c5"),
        "test": ("c6", "c7"),
    }
    numbered = table(listed(label=LABELS, split=[0] * 8 + [1] * 4 + [2] * 4))
    assert numbered.test.names == ("c6", "c7")
    held = table(listed(label=LABELS, split=["train"] * 12 + ["TEST"] * 4), validation=0.3)
    assert held.validation is not None
    assert held.validation.names == ("c4", "c5")


def test_labels_are_texts_and_never_numbers(listed):
    splits = table(listed(label=["1", "01", "1.0", "10", "2", "02", "x", "y"] * 2))
    every = {name for part in splits.tables().values() for name in part.names}
    assert every == {"1", "01", "1.0", "10", "2", "02", "x", "y"}


def test_contiguous_blocks_follow_the_super_labels(listed):
    above = ["b", "b", "b", "b", "a", "a", "a", "a"]
    splits = table(listed(label=LABELS[:8] * 2, super_label=above * 2), validation=0)
    assert splits.test.names == ("c0", "c1")
    assert splits.test["super_label"].tolist() == [1] * 8
    assert splits.train["super_label"].tolist() == [0] * 8


def test_parquet_reads_the_same(listed, tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")

    by_csv = table(listed(label=LABELS, split=SPLIT))
    columns = {"path": [f"{i}.png" for i in range(16)], "label": LABELS, "split": SPLIT}
    parquet.write_table(pyarrow.table(columns), tmp_path / "t.parquet")
    by_parquet = table(tmp_path / "t.parquet")
    for one, two in zip(by_csv.tables().values(), by_parquet.tables().values(), strict=True):
        assert (one.inputs, one.ids, one.names) == (two.inputs, two.ids, two.names)
        assert torch.equal(one.label, two.label)


def test_paths_start_at_the_root(listed, tmp_path):
    path = listed(label=LABELS)
    (tmp_path / "deep").mkdir()
    path = path.rename(tmp_path / "deep" / "t.csv")
    assert table(path, root=tmp_path).test.inputs[0] == str(tmp_path / "12.png")
    with pytest.raises(
        FileNotFoundError, match=r"row 1 \(line 2\) .*'path': there is no file .*/de"
    ):
        table(path)


# --- roles


def test_queries_look_in_the_gallery(listed):
    roles = {"is_query": [""] * 12 + [1, 0, 1, 0], "is_gallery": [""] * 12 + [0, 1, 0, 1]}
    splits = table(listed(label=LABELS, split=SPLIT, **roles))
    assert splits.test["is_query"].tolist() == [True, False] * 2
    assert splits.validation is not None
    assert "is_query" not in splits.train.columns
    assert "is_query" not in splits.validation.columns
    z = torch.eye(4)[[0, 0, 1, 1]]
    assert evaluate_table(z, splits.test, ["recall@1"], "cosine", 0)["recall@1"] == 1


def test_a_row_of_both_roles_never_finds_itself(listed):
    roles = {"is_query": [0] * 12 + [1, 1, 0, 0], "is_gallery": [0] * 12 + [1] * 4}
    test = table(listed(label=LABELS, split=SPLIT, **roles)).test
    # Each row is nearest to a row of the other class, once it is not compared with itself.
    z = torch.tensor([[1.0, 0], [0, 1], [1, 0.1], [0.1, 1]])
    assert evaluate_table(z, test, ["recall@1"], "cosine", 0)["recall@1"] == 0


def test_roles_that_make_no_retrieval_are_refused(listed):
    with pytest.raises(ValueError, match="column 'is_query', which needs 'is_gallery' too"):
        table(listed(label=LABELS, is_query=[0] * 16))
    none = {"is_query": [1] * 16, "is_gallery": [0] * 16}
    with pytest.raises(
        ValueError, match=r"validation rows of .* true in column 'is_query', but no"
    ):
        table(listed(label=LABELS, split=SPLIT, **none))


def test_rows_of_a_group_do_not_find_each_other(listed):
    test = table(listed(label=LABELS, split=SPLIT, group=[*"aabb" * 3, "q", "q", "", ""])).test
    groups = test["group"].tolist()
    assert groups[0] == groups[1]
    assert len(set(groups)) == 3
    z = torch.eye(2)[[0, 0, 1, 1]]
    result = evaluate_table(z, test, ["recall@1"], "cosine", 0)
    assert (result.queries, result.without_relevant) == (2, 2)


# --- boxes


def test_boxes_become_inputs(listed, tmp_path):
    boxes = ["0,0,9,9", "10,10,20,20"] * 8
    paths = [f"{i // 2}.png" for i in range(16)]
    test = table(listed(path=paths, label=LABELS, box=boxes)).test
    assert test.inputs[0] == Boxed(str(tmp_path / "6.png"), (0, 0, 9, 9))
    assert test.ids[:2] == ("6.png[0,0,9,9]", "6.png[10,10,20,20]")


def test_a_box_outside_its_picture_is_told_with_its_row(listed):
    boxes = ["", "20,0,25,9", *[""] * 14]
    with pytest.raises(ValueError, match=r"row 2 \(line 3\) .*'box': .*outside .*1.png of 20 x 20"):
        table(listed(label=LABELS, box=boxes))


# --- what is wrong


def test_unreadable_images_are_left_out_with_reasons(listed, tmp_path):
    (tmp_path / "3.png").write_bytes(b"broken")
    splits = table(listed(label=LABELS, split=SPLIT))
    assert splits.left_out == ((str(tmp_path / "3.png"), "not an image that Pillow can read"),)
    assert len(splits.train) == 7
    assert "3.png" not in splits.train.ids


def test_missing_images_are_counted(listed, tmp_path):
    path = listed(label=LABELS)
    for i in (4, 5):
        (tmp_path / f"{i}.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"row 5 .*4.png, and 1 more are missing"):
        table(path)


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"label": ["", *LABELS[1:]]}, r"row 1 \(line 2\) .*column 'label': the cell is empty"),
        ({"path": ["", "b.png"], "label": ["a", "b"]}, "column 'path': the cell is empty"),
        ({"label": LABELS, "split": ["dev", *SPLIT[1:]]}, "'split': expected train, .* got 'dev'"),
        ({"label": LABELS, "split": ["train"] * 16}, "has no row of test"),
        ({"label": LABELS, "split": ["train"] * 2 + ["test"] * 14}, "trains on one class only"),
        ({"label": LABELS, "super_label": [""] * 16}, "column 'super_label': the cell is empty"),
        ({"label": ["a"] * 16}, "holds one class at most, 'a'"),
        ({"name": LABELS}, "has no column 'label'; it has path, name"),
        ({"label": ["c6", *LABELS[1:]], "split": SPLIT}, "'c6' stands in train and in test"),
    ],
)
def test_wrong_tables_are_told(listed, columns, says, tmp_path):
    if "" in columns.get("path", ()):
        (tmp_path / "t.csv").write_text("path,label\n,a\nb.png,b\n")
        path = tmp_path / "t.csv"
    else:
        path = listed(**columns)
    with pytest.raises(ValueError, match=says):
        table(path)
