"""The set glyphs: scripts, look-alikes, determinism, cache."""

from pathlib import Path

import numpy as np
import pytest
import torch

from nearkin.data.base import Splits
from nearkin.data.glyphs import glyphs
from nearkin.data.rendering import STYLES, clean

_SMALL = {"samples": 1, "evaluation_samples": 1, "image_size": 12, "styles": ["Sans"]}


@pytest.fixture(scope="module")
def every(tmp_path_factory: pytest.TempPathFactory) -> Splits:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NEARKIN_HOME", str(tmp_path_factory.mktemp("home")))
        return glyphs(samples=1, evaluation_samples=1)


def _characters(splits: Splits) -> dict[str, list[str]]:
    return {
        split: [chr(int(name.split()[0][2:], 16)) for name in table.names]
        for split, table in splits.tables().items()
    }


def test_each_script_stands_in_one_split(every: Splits):
    scripts = {
        split: {name.split()[2] for name in table.names} for split, table in every.tables().items()
    }
    assert scripts == {
        "train": {"LATIN", "DIGIT"},
        "validation": {"GREEK"},
        "test": {"CYRILLIC", "ARMENIAN", "GEORGIAN"},
    }
    assert "U+0416 Ж CYRILLIC CAPITAL LETTER ZHE" in every.test.names


def test_every_class_has_every_style(every: Splits):
    assert {name: table.classes for name, table in every.tables().items()} == {
        "train": 289,
        "validation": 116,
        "test": 228,
    }
    for table in every.tables().values():
        pairs = torch.stack([table.label, table["style"]], 1)
        assert len(pairs.unique(dim=0)) == len(table) == table.classes * len(STYLES)
        assert len(set(table.ids)) == len(table)


def test_inputs_are_small_gray_pictures(every: Splits):
    assert every.facts == {"image_size": 32, "channels": 1}
    assert isinstance(every.test.inputs, torch.Tensor)
    assert every.test.inputs.shape == (228 * 12, 1, 32, 32)
    assert every.test.inputs.dtype == torch.uint8
    assert (every.test.inputs.flatten(1).max(1).values > 80).all()


def test_no_two_classes_look_alike(every: Splits):
    characters = [each for some in _characters(every).values() for each in some]
    alike = np.zeros((len(characters), len(characters)))
    for style in STYLES:
        alike += np.corrcoef(clean(characters, style).reshape(len(characters), -1)) / 12
    np.fill_diagonal(alike, 0)
    assert alike.max() <= 0.85


def test_of_a_shape_in_several_scripts_the_test_keeps_it(every: Splits):
    characters = _characters(every)
    for latin, greek, cyrillic in ("AΑА", "OΟО", "TΤТ"):
        assert latin not in characters["train"]
        assert greek not in characters["validation"]
        assert cyrillic in characters["test"]
    assert "R" in characters["train"]
    assert "Ω" in characters["validation"]


def test_raw_pixels_do_poorly_but_not_by_chance(every: Splits):
    x = every.test.inputs.flatten(1).float()  # type: ignore[union-attr]
    x = x / x.norm(dim=1, keepdim=True)
    similarity = x @ x.T
    nearest = similarity.fill_diagonal_(-1).argmax(1)
    recall = (every.test.label[nearest] == every.test.label).double().mean()
    assert 0.2 < recall < 0.4


def test_the_same_seed_gives_the_same_pixels_without_the_cache(
    cache: Path, monkeypatch: pytest.MonkeyPatch
):
    first = glyphs(**_SMALL)
    monkeypatch.setenv("NEARKIN_HOME", str(cache) + "-of-another")
    second, other = glyphs(**_SMALL), glyphs(**_SMALL, seed=1)
    for name, table in first.tables().items():
        assert torch.equal(table.inputs, second.tables()[name].inputs)  # type: ignore[arg-type]
        assert not torch.equal(table.inputs, other.tables()[name].inputs)  # type: ignore[arg-type]
        assert table.names == other.tables()[name].names


def test_the_cache_gives_what_was_rendered_and_survives_damage(cache: Path):
    rendered = glyphs(**_SMALL).test.inputs
    (path,) = cache.glob("glyphs-*.npz")
    before = path.stat().st_mtime_ns
    assert torch.equal(glyphs(**_SMALL).test.inputs, rendered)  # type: ignore[arg-type]
    assert path.stat().st_mtime_ns == before
    path.write_bytes(path.read_bytes()[:1000])
    assert torch.equal(glyphs(**_SMALL).test.inputs, rendered)  # type: ignore[arg-type]
    assert path.stat().st_size > 1000


def test_settings_have_caches_of_their_own(cache: Path):
    glyphs(**_SMALL)
    assert glyphs(**{**_SMALL, "image_size": 10}).test.inputs.shape[2:] == (10, 10)  # type: ignore
    assert len(list(cache.glob("glyphs-*.npz"))) == 2


def test_samples_count_per_style():
    splits = glyphs(**{**_SMALL, "samples": 3, "evaluation_samples": 2})
    assert torch.bincount(splits.train.label).unique().tolist() == [3]
    assert torch.bincount(splits.test.label).unique().tolist() == [2]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"samples": 0}, "samples of at least 1, but 0"),
        ({"evaluation_samples": -1}, "evaluation_samples of at least 1"),
        ({"image_size": 4}, "image_size of at least 8, but 4"),
        ({"styles": ["Sans-Blod"]}, "did you mean 'Sans-Bold'"),
        ({"styles": []}, "at least one style"),
        ({"styles": ["Sans", "Sans"]}, "each once"),
    ],
)
def test_wrong_settings_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        glyphs(**settings)
