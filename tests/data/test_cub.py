"""The set cub: the split of metric learning on the official layout."""

from pathlib import Path

import layouts
import pytest

from nearkin.data import cub as module
from nearkin.data.cub import cub


@pytest.fixture
def birds(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "OFFICIAL", {"train": (8, 4), "test": (6, 3)})
    return layouts.cub(tmp_path / "birds")


def test_the_first_hundred_classes_train_and_the_others_test(birds):
    splits = cub(birds)
    assert splits.train.names == ("001.Bird_1", "002.Bird_2", "003.Bird_3", "100.Bird_100")
    assert splits.test.names == ("101.Bird_101", "102.Bird_102", "200.Bird_200")
    assert splits.validation is None
    assert splits.train.label.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert splits.facts == {"channels": 3, "image_size": 224}


def test_inputs_are_files_and_ids_are_listed_paths(birds):
    test = cub(birds).test
    assert test.ids[0] == "101.Bird_101/Bird_101_0.jpg"
    assert test.inputs[0] == str(birds / "CUB_200_2011" / "images" / test.ids[0])
    assert all(Path(file).is_file() for file in test.inputs)


def test_the_folder_itself_or_one_above_it_is_found(birds):
    assert cub(birds / "CUB_200_2011").test.ids == cub(birds).test.ids
    assert cub(str(birds)).test.inputs == cub(birds).test.inputs


def test_validation_is_a_block_of_the_last_training_classes(birds):
    splits = cub(birds, validation=0.5)
    assert splits.validation is not None
    assert splits.train.names == ("001.Bird_1", "002.Bird_2")
    assert splits.validation.names == ("003.Bird_3", "100.Bird_100")
    assert splits.test.names == cub(birds).test.names
    draws = {cub(birds, validation=0.5, contiguous=False, seed=s).train.names for s in range(8)}
    assert len(draws) > 1


def test_the_default_folder_is_in_the_cache_and_how_to_fill_it_is_said(cache, birds):
    with pytest.raises(FileNotFoundError) as error:
        cub()
    said = str(error.value)
    assert f"there is no images.txt in {cache / 'data' / 'cub'}" in said
    assert "nearkin data prepare cub" in said
    assert "data.cub.path=" in said
    layouts.cub(cache / "data" / "cub")
    assert len(cub().train) == 8


def test_an_archive_instead_of_a_folder_is_told(tmp_path):
    (tmp_path / "CUB.tgz").write_bytes(b"")
    with pytest.raises(NotADirectoryError, match=r"data prepare cub --archive .*CUB.tgz"):
        cub(tmp_path / "CUB.tgz")


def test_missing_images_are_counted_and_one_is_named(birds):
    for k in (0, 1):
        (birds / "CUB_200_2011" / "images" / "002.Bird_2" / f"Bird_2_{k}.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"2 of the 14 images .*002.Bird_2/Bird_2_0.jpg"):
        cub(birds)


def test_lists_that_do_not_fit_each_other_are_refused(birds):
    labels = birds / "CUB_200_2011" / "image_class_labels.txt"
    rows = labels.read_text().splitlines()
    labels.write_text("\n".join(rows[:-1]))
    with pytest.raises(ValueError, match=r"number different images \(14 and 13\)"):
        cub(birds)
    labels.write_text("\n".join([*rows[:2], "3 two"]))
    with pytest.raises(ValueError, match=r"line 3 of .*image_class_labels.txt is '3 two'"):
        cub(birds)


def test_other_counts_than_the_official_ones_are_warned_of(birds, monkeypatch):
    monkeypatch.setattr(module, "OFFICIAL", {"train": (5864, 100), "test": (6, 3)})
    said = "not the official cub: train has 8 images of 4 classes instead of 5864 of 100; figures"
    with pytest.warns(UserWarning, match=said):
        cub(birds)
