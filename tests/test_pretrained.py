"""Weights of others: read without running code, and refused where they do not fit."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from nearkin.pretrained import load_pretrained


def net(seed, width=3):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.Flatten())


def assert_same(one, two):
    for key, value in one.state_dict().items():
        assert torch.equal(value, two.state_dict()[key]), key


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda held: held,
        lambda held: {"state_dict": held, "epoch": 3},
        lambda held: {"model": {f"module.{k}": v for k, v in held.items()}},
        lambda held: {"state_dict": {f"module._orig_mod.{k}": v for k, v in held.items()}},
        lambda held: {**held, "fc.weight": torch.ones(5, 3), "fc.bias": torch.ones(5)},
        lambda held: {k: v for k, v in held.items() if "num_batches" not in k},
    ],
)
def test_common_wrappings_of_a_torch_file_are_seen_through(tmp_path, wrapped):
    torch.save(wrapped(net(1).state_dict()), tmp_path / "weights.pth")
    here = net(2)
    load_pretrained(here, tmp_path / "weights.pth", ignore=["fc"])
    assert_same(here, net(1))


def test_safetensors_are_read(tmp_path):
    save_file(net(1).state_dict(), tmp_path / "weights.safetensors")
    here = net(2)
    load_pretrained(here, tmp_path / "weights.safetensors")
    assert_same(here, net(1))


def without(name):
    return {key: value for key, value in net(1).state_dict().items() if key != name}


@pytest.mark.parametrize(
    ("held", "said"),
    [
        (without("1.running_mean"), r"weights\.pth lack 1\.running_mean; give"),
        ({}, r"lack 0\.weight, 0\.bias, 1\.weight and 3 more"),
        ({**net(1).state_dict(), "9.weight": torch.ones(1)}, r"has not: 9\.weight;"),
        (net(1, width=4).state_dict(), r"shape: 0\.weight \(4, 1, 3, 3\) for \(3, 1, 3, 3\)"),
        ({"epoch": 3}, "holds no weights by name"),
        ([1, 2], "holds no weights by name"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name_and_nothing_is_loaded(tmp_path, held, said):
    torch.save(held, tmp_path / "weights.pth")
    here = net(2)
    with pytest.raises(ValueError, match=said):
        load_pretrained(here, tmp_path / "weights.pth")
    assert_same(here, net(2))


def test_files_that_are_not_weights_say_so_and_run_no_code(tmp_path):
    (tmp_path / "text.pth").write_text("not weights")
    (tmp_path / "text.safetensors").write_text("not weights")
    torch.save(net(1), tmp_path / "module.pth")
    with pytest.raises(ValueError, match="no torch file of tensors alone"):
        load_pretrained(net(2), tmp_path / "text.pth")
    with pytest.raises(ValueError, match=r"tensors alone .* save its weights as \.safetensors"):
        load_pretrained(net(2), tmp_path / "module.pth")
    with pytest.raises(ValueError, match="no safetensors file"):
        load_pretrained(net(2), tmp_path / "text.safetensors")
    with pytest.raises(FileNotFoundError, match="there is no file"):
        load_pretrained(net(2), tmp_path / "none.pth")
