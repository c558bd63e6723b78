"""The set sop: the authors' lists, categories as super labels."""

import layouts
import pytest

from nearkin.data import sop as module
from nearkin.data.sop import sop


@pytest.fixture
def products(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "OFFICIAL", {"train": (12, 6), "test": (8, 4)})
    return layouts.sop(tmp_path / "sop")


def test_lists_are_read_with_categories(products):
    splits = sop(products)
    assert splits.train.names == tuple(
        f"{c} {i}" for c, i in zip(["bicycle"] * 3 + ["lamp"] * 3, (2, 4, 6, 1, 3, 5), strict=True)
    )
    assert splits.train.ids[0] == "lamp_final/1001_0.JPG"
    assert splits.train.names[splits.train.label[0]] == "lamp 1"
    assert splits.train["super_label"].tolist() == [6, 6, 0, 0] * 3
    assert splits.test.classes == 4
    assert splits.validation is None


def test_validation_is_a_block_by_category_and_number(products):
    validation = sop(products, validation=1 / 3).validation
    assert validation is not None
    assert validation.names == ("lamp 3", "lamp 5")


def test_a_missing_image_or_list_is_told(products):
    inside = products / "Stanford_Online_Products"
    (inside / "bicycle_final" / "1002_0.JPG").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of the 12 images in Ebay_train.txt"):
        sop(products)
    (inside / "Ebay_train.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"no Ebay_train.txt in .*data prepare sop"):
        sop(products)


def test_a_broken_line_is_named(products):
    listing = products / "Stanford_Online_Products" / "Ebay_test.txt"
    listing.write_text(listing.read_text() + "21 11 lamp_final/1.JPG\n")
    with pytest.raises(ValueError, match=r"line 10 of .*Ebay_test.txt .* 4 entries"):
        sop(products)
