"""The set inshop: queries and gallery of the official list."""

import layouts
import pytest
import torch

from nearkin.data import inshop as module
from nearkin.data.inshop import inshop
from nearkin.measure import evaluate_table


@pytest.fixture
def clothes(tmp_path, monkeypatch):
    official = {"train": (8, 4), "query": (3, 3), "gallery": (3, 3)}
    monkeypatch.setattr(module, "OFFICIAL", official)
    return layouts.inshop(tmp_path / "inshop")


def test_items_train_or_are_searched_in_the_gallery(clothes):
    splits = inshop(clothes)
    assert splits.train.names == tuple(f"id_{i:08d}" for i in (1, 2, 3, 4))
    assert splits.train.label.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert not splits.train.columns
    assert splits.test["is_query"].tolist() == [True, False] * 3
    assert splits.test["is_gallery"].tolist() == [False, True] * 3
    assert splits.test.ids[0] == f"img/{layouts.CLOTHES}/id_00000005/00_1_front.jpg"
    assert splits.test.inputs[0] == str(clothes / "Img" / splits.test.ids[0])


def test_a_query_is_compared_with_the_gallery_alone(clothes):
    test = inshop(clothes).test
    # Queries equal each other and are far from their gallery rows but for the first.
    z = torch.tensor([[1.0, 0], [1, 0], [1, 0], [0, 1], [1, 0], [0, -1]])
    result = evaluate_table(z, test, ["recall@1"], "cosine", 0)
    assert result.queries == 3
    assert result["recall@1"] == pytest.approx(1 / 3)


def test_validation_items_are_ordinary_rows(clothes):
    splits = inshop(clothes, validation=0.5)
    assert splits.validation is not None
    assert splits.validation.names == ("id_00000003", "id_00000004")
    assert not splits.validation.columns


def test_a_list_cut_short_or_with_another_word_is_refused(clothes):
    listing = clothes / "Eval" / "list_eval_partition.txt"
    lines = listing.read_text().splitlines()
    listing.write_text("\n".join(lines[:-2]))
    with pytest.raises(ValueError, match="has 12 rows, but its first line says '14'"):
        inshop(clothes)
    listing.write_text("\n".join([*lines[:3], lines[3].replace("train", "trian"), *lines[4:]]))
    with pytest.raises(ValueError, match=r"line 4 of .*trian"):
        inshop(clothes)


def test_missing_images_are_told(clothes):
    name = f"img/{layouts.CLOTHES}/id_00000005/01_1_front.jpg"
    (clothes / "Img" / name).unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of the 14 images .*id_00000005/01_1_front"):
        inshop(clothes)
