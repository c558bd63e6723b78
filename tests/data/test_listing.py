"""Listings: cells of CSV and Parquet, each error with row and column."""

import pytest

from nearkin.boxes import Boxed
from nearkin.data.listing import exact, filled, flag, read_listing


@pytest.fixture
def listed(tmp_path):
    def write(text, name="t.csv"):
        path = tmp_path / name
        path.write_bytes(text.encode())
        return read_listing(path)

    return write


@pytest.fixture
def parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")

    def write(**columns):
        parquet.write_table(pyarrow.table(columns), tmp_path / "t.parquet")
        return read_listing(tmp_path / "t.parquet")

    return write


def test_quotes_blank_lines_and_byte_order_marks(listed):
    listing = listed('\ufeffpath , label\r\n"a,1.jpg","two\nlines"\r\n\r\nb.jpg,01\r\n')
    assert listing.columns == {"path": ("a,1.jpg", "b.jpg"), "label": ("two\nlines", "01")}
    assert listing.where(1, "label") == f"row 2 (line 5) of {listing.path}, column 'label'"


def test_labels_are_exact(listed, parquet):
    assert listed("label\n1\n01\n 1\n").read("label", filled) == ["1", "01", " 1"]
    assert parquet(label=[1, 20, 2**53 + 1]).read("label", filled) == ["1", "20", str(2**53 + 1)]
    assert parquet(label=["a", "A"]).read("label", filled) == ["a", "A"]


def test_floating_and_empty_labels_are_refused_with_their_place(listed, parquet):
    with pytest.raises(
        ValueError, match=r"row 2 of .*t.parquet, column 'label': 2.0 is a floating"
    ):
        parquet(label=[None, 2.0]).read("label", exact)
    with pytest.raises(ValueError, match=r"row 2 \(line 3\) of .*, column 'label': the cell is em"):
        listed("path,label\na,1\nb, \n").read("label", filled)
    with pytest.raises(ValueError, match=r"row 1 of .*: expected a text or an integer, got True"):
        parquet(label=[True]).read("label", filled)


@pytest.mark.parametrize(
    ("cell", "meant"),
    [
        *(("1", True), (" TRUE", True), ("yes", True), (True, True), (1, True)),
        *(("0", False), ("no", False), ("", False), (None, False), (False, False)),
    ],
)
def test_flags(cell, meant):
    assert flag(cell) is meant


def test_other_words_are_no_flags(listed):
    with pytest.raises(ValueError, match=r"row 1 .*'is_query': expected true or false, got 'ja'"):
        listed("is_query\nja\n").read("is_query", flag)


def test_boxes_in_one_column_or_in_four(listed, parquet):
    boxes = [(1, 2, 3, 4), None, (-1, 0, 9, 7)]
    assert listed('path,box\na,"1,2,3,4"\nb,\nc,-1 0 8.6 7\n').boxes() == boxes
    assert listed("x0,y0,x1,y1\n1,2,3,4\n,,,\n-1,0,8.6,7\n").boxes() == boxes
    assert parquet(box=[[1, 2, 3, 4], None, [-1.0, 0, 8.6, 7]]).boxes() == boxes
    assert listed("path\na\nb\n").boxes() == [None, None]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('path,box\na,"1,2,3"', r"row 1 .*column 'box': expected four numbers"),
        ('path,box\na,"1,2,3,x"', "column 'box': expected a number of pixels, got 'x'"),
        ('path,box\na,"1,2,nan,9"', "column 'box': expected a number of pixels, got 'nan'"),
        ('path,box\na,"3,0,3,5"', "column 'box': the box 3,0,3,5 holds no pixel"),
        ("x0,y0,x1,y1\n1,2,3,4\n1,,3,4", r"row 2 .*column 'x0': a box needs all of x0, y0"),
        ("x0,y0,x1\n1,2,3", "has no column 'y1'; it has x0, y0, x1"),
        ('box,x0\n"1,2,3,4",1', "has a column 'box' and 'x0'; give one of them"),
    ],
)
def test_wrong_boxes_are_told_with_their_place(listed, text, says):
    with pytest.raises(ValueError, match=says):
        listed(text).boxes()


def test_images_start_at_the_folder_of_the_listing(listed, tmp_path):
    items, ids = listed(f'path,box\na.jpg,\n{tmp_path}/b.jpg,"0,0,2,2"\n').images()
    assert items == [str(tmp_path / "a.jpg"), Boxed(str(tmp_path / "b.jpg"), (0, 0, 2, 2))]
    assert ids == ["a.jpg", f"{tmp_path}/b.jpg[0,0,2,2]"]


def test_images_start_at_the_root(listed, tmp_path):
    items, _ = listed("path\na.jpg\n").images(tmp_path / "x")
    assert items == [str(tmp_path / "x" / "a.jpg")]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "has no rows"),
        ("path,label\n", "has no rows"),
        ("path,label\na\n", r"row 1 \(line 2\) of .* has 1 cells, but the header has 2"),
        ("path;label\na;b\n", "needs commas .* its header is 'path;label'"),
        ("path,path\na,b\n", "has 'path' twice"),
        ('path,label\na,"b\n', "is no CSV file behind row 0"),
    ],
)
def test_files_that_are_no_listing_are_refused(listed, text, says):
    with pytest.raises(ValueError, match=says):
        listed(text)


def test_other_kinds_of_files_are_refused(tmp_path, listed):
    with pytest.raises(ValueError, match=r"must end in .csv or .parquet, not '.txt'"):
        listed("path\na\n", "t.txt")
    with pytest.raises(ValueError, match="cannot be read as Parquet"):
        listed("path\na\n", "t.parquet")
    with pytest.raises(FileNotFoundError, match="there is no file"):
        read_listing(tmp_path / "gone.csv")
    with pytest.raises(IsADirectoryError, match="is a folder"):
        read_listing(tmp_path)
    (tmp_path / "l.csv").write_bytes(b"path\n\xff\xfe\n")
    with pytest.raises(ValueError, match="is no text in UTF-8"):
        read_listing(tmp_path / "l.csv")


def test_further_columns_of_parquet_are_named_and_not_read(parquet):
    listing = parquet(label=["a"], picture=[b"0" * 100])
    assert list(listing.columns) == ["label"]
    with pytest.raises(ValueError, match="has no column 'path'; it has label, picture"):
        listing.files()
    with pytest.raises(ValueError, match="has no column 'path'; it has picture"):
        parquet(picture=[b"0"])
