"""small_cnn and mlp: shapes, modes, settings, and what they refuse."""

import pytest
import torch
from torch import nn

from nearkin.augment import affine
from nearkin.config import build
from nearkin.encoders.small import MLP, SmallCNN
from nearkin.runtime import row_keys


def pictures(n, channels, size):
    generator = torch.Generator().manual_seed(size)
    return torch.randint(0, 256, (n, channels, size, size), generator=generator, dtype=torch.uint8)


def cnn(**settings):
    torch.manual_seed(0)
    return SmallCNN(**{"dim": 7, "width": 8, "image_size": 8, "channels": 1, **settings})


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [8, 9, 16, 28, 32, 47, 64, 96])
def test_pictures_of_every_size_become_rows(size, channels):
    encoder = cnn(image_size=size, channels=channels)
    x = pictures(3, channels, size)
    for mode in (True, False):
        z = encoder.train(mode)(encoder.prepare(x))
        assert z.shape == (3, 7)
        assert z.dtype == torch.float32
        assert z.isfinite().all()


@pytest.mark.parametrize("layers", [1, 2, 6])
@pytest.mark.parametrize("grid", [1, 3, 8])
def test_layers_and_grid_may_be_any(layers, grid):
    assert cnn(image_size=12, layers=layers, grid=grid)(pictures(2, 1, 12)).shape == (2, 7)


def test_the_map_is_never_pooled_below_the_grid():
    encoder = cnn(image_size=64, layers=8, grid=4)
    inside = encoder.trunk[:-1](torch.zeros(1, 1, 64, 64))
    assert inside.shape[2:] == (4, 4)


def test_preprocessing_is_inside_the_model():
    encoder = cnn().eval()
    x = pictures(4, 1, 8)
    assert torch.equal(encoder(x), encoder(x.float()))
    assert not torch.equal(encoder(x), encoder(x.float() / 255))


def test_evaluation_looks_at_each_row_alone_and_training_at_the_batch():
    encoder = cnn()
    x = pictures(6, 1, 8)
    assert not torch.allclose(encoder(x)[:3], encoder(x[:3]), atol=1e-3)
    encoder.eval()
    assert torch.allclose(encoder(x)[:3], encoder(x[:3]), atol=1e-5)


def test_batchnorm_on_the_embedding_can_be_left_out():
    x = pictures(6, 1, 8)
    z = cnn()(x)
    assert torch.allclose(z.mean(0), torch.zeros(7), atol=1e-5)
    assert isinstance(cnn(batchnorm=False).norm, nn.Identity)


def test_gradients_reach_every_parameter():
    encoder = cnn(batchnorm=False)
    encoder(pictures(4, 1, 8)).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in encoder.parameters())


def test_augmentation_is_keyed_by_row():
    encoder = cnn(image_size=16, augmentation=affine)
    x, keys = pictures(6, 1, 16), row_keys(0, 0, torch.arange(6))
    whole = encoder.augment(x, keys)
    assert not torch.equal(whole, x.float())
    assert torch.equal(encoder.augment(x[2:4], keys[2:4]), whole[2:4])
    assert torch.equal(encoder.augment(x, keys), whole)
    assert not torch.equal(encoder.augment(x, row_keys(0, 1, torch.arange(6))), whole)


def test_a_recipe_builds_it_with_facts():
    facts = {"image_size": 20, "channels": 3}
    node = {"small_cnn": {"dim": 5, "width": 4, "augmentation": {"affine": {"rotation": 5}}}}
    encoder = build(node, "encoder", facts, "encoder")
    assert encoder(pictures(2, 3, 20)).shape == (2, 5)


@pytest.mark.parametrize("setting", ["dim", "width", "layers", "grid"])
def test_sizes_of_nothing_are_refused(setting):
    with pytest.raises(ValueError, match=f"{setting} of small_cnn must be at least 1, not 0"):
        cnn(**{setting: 0})


# --- mlp


def mlp(**settings):
    torch.manual_seed(0)
    return MLP(**{"dim": 3, "features": 4, **settings})


def test_mlp_without_hidden_layers_is_linear():
    encoder = mlp(hidden=[], batchnorm=False).eval()
    a, b = torch.randn(5, 4), torch.randn(5, 4)
    middle = encoder((a + b) / 2)
    assert torch.allclose(middle, (encoder(a) + encoder(b)) / 2, atol=1e-6)
    hidden = mlp(hidden=[16], batchnorm=False).eval()
    assert not torch.allclose(hidden((a + b) / 2), (hidden(a) + hidden(b)) / 2, atol=1e-3)


def test_mlp_has_one_hidden_layer_by_default():
    assert [m.out_features for m in mlp().net if isinstance(m, nn.Linear)] == [256, 3]
    assert [m.out_features for m in mlp(hidden=[9, 8]).net if isinstance(m, nn.Linear)] == [9, 8, 3]


def test_mlp_standardizes_its_inputs():
    encoder = mlp(hidden=[], batchnorm=False)
    x = torch.randn(50, 4)
    assert torch.allclose(encoder(x), encoder(1000 * x + 7), atol=1e-4)


def test_mlp_takes_pictures_and_whole_numbers():
    encoder = mlp(features=64)
    assert encoder(encoder.prepare(pictures(5, 1, 8))).shape == (5, 3)
    assert encoder(torch.randn(5, 64).double().float()).dtype == torch.float32
    assert mlp(features=64).double()(torch.randn(5, 64).double()).dtype == torch.float64


def test_mlp_drops_out_while_training_only():
    encoder = mlp(dropout=0.5)
    x = torch.randn(8, 4)
    assert not torch.equal(encoder(x), encoder(x))
    encoder.eval()
    assert torch.equal(encoder(x), encoder(x))


@pytest.mark.parametrize("shape", [(2, 5), (4,), (2, 2, 3)])
def test_mlp_refuses_rows_of_another_length(shape):
    with pytest.raises(ValueError, match="rows of 4 numbers, not inputs of shape"):
        mlp().prepare(torch.zeros(shape))


def test_mlp_refuses_files():
    with pytest.raises(ValueError, match=r"MLP takes arrays of numbers, not str.*small_cnn"):
        mlp().prepare(["a.png"])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"dim": 0}, "dim of mlp must be at least 1"),
        ({"features": 0}, "features of mlp must be at least 1"),
        ({"hidden": [8, 0]}, "hidden of mlp must be at least 1"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), not 1.0"),
        ({"dropout": -0.1}, "dropout must be in"),
    ],
)
def test_mlp_refuses_wrong_settings(settings, said):
    with pytest.raises(ValueError, match=said):
        mlp(**settings)
