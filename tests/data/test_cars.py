"""The set cars: the split of metric learning on both layouts that people have."""

import layouts
import pytest

from nearkin.data import cars as module
from nearkin.data.cars import cars


@pytest.fixture(autouse=True)
def _counts(monkeypatch):
    monkeypatch.setattr(module, "OFFICIAL", {"train": (8, 4), "test": (6, 3)})


def test_classes_split_at_98_whatever_the_archive_says(tmp_path):
    splits = cars(layouts.cars(tmp_path / "cars"))
    assert splits.train.names == ("Acura 001", "Acura 002", "Acura 097", "Acura 098")
    assert splits.test.names == ("Ram C/V 099", "Ram C/V 100", "Ram C/V 196")
    assert splits.train.label.tolist() == [0, 1, 2, 3, 3, 2, 1, 0]
    assert splits.test.ids[:2] == ("car_ims/000005.jpg", "car_ims/000006.jpg")
    assert splits.test.inputs[0] == str(tmp_path / "cars" / "car_ims" / "000005.jpg")


def test_both_parts_of_the_mirrors_are_taken_together(tmp_path):
    root = layouts.cars_in_parts(tmp_path / "cars")
    splits = cars(root)
    assert splits.train.names == ("Acura 001", "Acura 002", "Acura 097", "Acura 098")
    assert splits.train.label.tolist() == [0, 1, 2, 3] * 2
    assert splits.train.ids[0] == "cars_train/cars_train/00001.jpg"
    assert splits.train.ids[4] == "cars_test/cars_test/00001.jpg"
    (root / "cars_test_annos_withlabels.mat").unlink()
    with pytest.raises(FileNotFoundError, match=r"no cars_annos.mat in .*data prepare cars"):
        cars(root)


def test_a_block_of_makes_validates(tmp_path):
    splits = cars(layouts.cars(tmp_path / "cars"), validation=0.5)
    assert splits.validation is not None
    assert splits.validation.names == ("Acura 097", "Acura 098")


def test_missing_and_damaged_parts_are_told(tmp_path):
    root = layouts.cars(tmp_path / "cars")
    (root / "car_ims" / "000003.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of the 14 images .*car_ims/000003.jpg"):
        cars(root)
    (root / "cars_annos.mat").write_bytes(b"no matrix at all" * 20)
    with pytest.raises(ValueError, match=r"cars_annos.mat cannot be read"):
        cars(root)
    from scipy.io import savemat

    savemat(root / "cars_annos.mat", {"other": 1})
    with pytest.raises(ValueError, match="holds no annotations"):
        cars(root)


def test_classes_beyond_the_names_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(layouts, "CARS", layouts.CARS[:99])
    with pytest.raises(ValueError, match=r"classes beyond 1\.\.99"):
        cars(layouts.cars(tmp_path / "cars"))
