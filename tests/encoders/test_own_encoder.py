"""An encoder of one's own that extends ImageEncoder: sizes, crops and a run by its name."""

import numpy as np
import pytest
import torch
from torch import nn

import nearkin
from nearkin.catalog import RecipeError

CODE = """
from torch import nn

from nearkin.crops import Crop
from nearkin.encoders.base import ImageEncoder, Standardized
from nearkin.pixels import Size


class Mine(ImageEncoder):
    '''Averages of a convolution.'''

    name = "mine"

    def __init__(self, dim: int = 3, *, resize: int = 12, crop: Crop | None = None):
        super().__init__(8, 3, None, Size(resize), crop)
        self.dim = dim
        self.pixels = Standardized((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
        self.net = nn.Sequential(
            nn.Conv2d(3, dim, 3), nn.BatchNorm2d(dim), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )

    def forward(self, x):
        return self.net(self.pixels(x))
"""


@pytest.fixture
def recipe(photos, tmp_path, monkeypatch):
    (tmp_path / "mine_of_a_user.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path)
    folder = photos(dict.fromkeys("abcd", 6))
    return {
        "data": {"folder": {"path": str(folder)}},
        "encoder": {
            "mine_of_a_user:Mine": {"crop": {"random_resized_crop": {"smallest": 0.5}}},
        },
        "sampler": {"uniform": {"batch": 4}},
        "objective": {
            "compared": {"compare": {"classifier": {}}, "loss": {"cross_entropy": {}}},
        },
        "optim": {"default": {"sgd": {"lr": 0.01}}},
        "train": {"epochs": 2, "select": "last"},
        "evaluate": ["recall@1"],
    }


def test_an_encoder_of_ones_own_trains_with_crops_and_is_loaded(recipe, tmp_path, one_thread):
    with pytest.raises(RecipeError, match="trust"):
        nearkin.train(recipe, out=tmp_path / "run")
    run = nearkin.train(recipe, out=tmp_path / "run", trust_code=True)
    model = nearkin.load(run.folder, trust_code=True)
    assert model.encoder.size.resize == 12
    assert type(model.encoder).__name__ == "Mine"
    folder = recipe["data"]["folder"]["path"]
    with np.load(run.folder / "embeddings.npz") as held:
        paths = [f"{folder}/{name}" for name in held["ids"]]
        np.testing.assert_allclose(model.embed(paths), held["embeddings"], rtol=1e-4, atol=1e-5)


def test_crops_are_for_training_and_the_middle_is_for_evaluation(recipe, photo, tmp_path):
    from mine_of_a_user import Mine

    from nearkin.crops import random_resized_crop

    encoder = Mine(crop=random_resized_crop)
    assert isinstance(encoder.net, nn.Sequential)
    paths = [photo(tmp_path / f"{i}.png", i) for i in range(3)]
    inputs = encoder.prepare(paths)
    rows, keys = torch.arange(3), torch.tensor([5, 6, 7])
    assert inputs.shape == (3, 3, 8, 8)
    assert torch.equal(inputs.take(rows), inputs.take(rows))
    assert torch.equal(inputs.take(rows, keys), inputs.take(rows, keys))
    assert not torch.equal(inputs.take(rows, keys), inputs.take(rows))
