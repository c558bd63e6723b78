"""The set omniglot: torchvision's layout, whole alphabets unseen."""

import layouts
import pytest

from nearkin.data import omniglot as module
from nearkin.data.omniglot import omniglot
from nearkin.pixels import read_images


@pytest.fixture
def characters(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "OFFICIAL", {"train": (18, 9), "test": (12, 6)})
    return layouts.omniglot(tmp_path / "omniglot")


def test_background_trains_and_evaluation_tests(characters):
    splits = omniglot(characters, validation=0)
    assert splits.validation is None
    assert splits.train.names[:3] == tuple(f"Balinese/character{k}" for k in ("01", "02", "10"))
    assert splits.train["super_label"].tolist() == [0] * 6 + [1] * 6 + [2] * 6
    assert {name.partition("/")[0] for name in splits.test.names} == {"Angelic", "Tengwar"}
    assert splits.facts == {"channels": 1, "image_size": 28}
    assert read_images(splits.test.inputs[:2], 28, 1).shape == (2, 1, 28, 28)


def test_validation_is_whole_alphabets(characters):
    splits = omniglot(characters, validation=0.2)
    assert splits.validation is not None
    assert splits.validation.names == tuple(f"Latin/character{k}" for k in ("01", "02", "10"))
    assert splits.train.classes == 6
    wider = omniglot(characters, validation=0.4)
    assert wider.validation is not None
    assert wider.validation.classes == 6
    drawn = omniglot(characters, validation=0.2, contiguous=False)
    assert drawn.validation is not None
    assert drawn.validation.classes == 2


def test_a_missing_part_is_told(characters, tmp_path):
    (characters / "omniglot-py" / "images_evaluation").rename(tmp_path / "away")
    with pytest.raises(FileNotFoundError, match=r"no images_evaluation in .*data prepare omniglot"):
        omniglot(characters)
