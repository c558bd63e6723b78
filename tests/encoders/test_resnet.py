"""resnet50_paper: its size and colors, its weights, and what learns under the paper's recipe."""

import sys
import urllib.error

import pytest
import torch
from torch import nn
from torchvision.models import ResNet50_Weights, resnet50

from nearkin.assemble import _frozen
from nearkin.catalog import RecipeError
from nearkin.compare import Classifier
from nearkin.config import build
from nearkin.core import Batch
from nearkin.encoders.resnet import ResNet50Paper
from nearkin.learners import held, optimizers_of
from nearkin.losses.classification import cross_entropy
from nearkin.methods.base import Supervised
from nearkin.objectives.compared import Compared


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return ResNet50Paper(weights=None, batchnorm=True, image_size=64)


def test_pictures_are_standardized_as_imagenet_and_pooled_to_2048_numbers(encoder):
    own = ResNet50_Weights.IMAGENET1K_V1.transforms()
    pixels = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    mean, std = torch.tensor(own.mean)[:, None, None], torch.tensor(own.std)[:, None, None]
    encoder.eval()
    with torch.no_grad():
        z = encoder(pixels)
        expected = encoder.norm(encoder.trunk((pixels / 255 - mean) / std))
    assert z.shape == (2, encoder.dim) == (2, 2048)
    torch.testing.assert_close(z, expected, rtol=1e-3, atol=1e-4)


def test_the_defaults_are_those_of_the_card():
    encoder = ResNet50Paper(weights=None)
    assert (encoder.image_size, encoder.size.resize, encoder.size.keep_aspect) == (224, 256, True)
    assert encoder.crop is None
    assert isinstance(encoder.norm, nn.Identity)


def test_the_recipe_of_the_paper_freezes_the_trunks_norms_and_decays_no_vector(encoder):
    encoder.train()
    for part in _frozen(encoder):
        part.eval()
    norms = [part for part in encoder.modules() if isinstance(part, nn.BatchNorm2d)]
    assert len(norms) == 53
    assert not any(part.training for part in norms)
    assert encoder.norm.training
    assert all(part.weight.requires_grad for part in norms)

    method = Supervised(encoder, Compared(Classifier(5, 2048, dropout=0.5), cross_entropy))
    makers = {"default": lambda groups: torch.optim.SGD(groups, lr=0.02, weight_decay=5e-4)}
    optimizers = optimizers_of(method.learners(), makers)
    held(method.learners(), method, optimizers)
    groups = [group for made in optimizers.values() for group in made.param_groups]
    for group in groups:
        vectors = {parameter.ndim == 1 for parameter in group["params"]}
        assert vectors == {group["weight_decay"] == 0}
    assert sum(len(group["params"]) for group in groups) == len(list(method.parameters())) == 161

    before = {name: buffer.clone() for name, buffer in encoder.named_buffers()}
    pixels = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8)
    batch = Batch(pixels, label=torch.tensor([0, 1, 2, 3]), key=torch.arange(4))
    for _ in range(2):  # the classifier begins at zero, and tells the encoder nothing yet
        for turn in method.turns(batch):
            turn.terms.total.backward()
        for made in optimizers.values():
            made.step()
    moved = {name for name, buffer in encoder.named_buffers() if not buffer.equal(before[name])}
    assert moved == {"norm.running_mean", "norm.running_var", "norm.num_batches_tracked"}
    assert all(part.weight.grad.abs().sum() > 0 for part in norms)


def test_weights_come_from_torchvision_or_a_file_of_its_names(tmp_path, monkeypatch, cache, capsys):
    torch.manual_seed(1)
    weights = resnet50(weights=None).state_dict()
    asked = []

    def state_dict(self, *args, **settings):
        asked.append(
            (self, *(settings[key] for key in ("check_hash", "weights_only", "model_dir")))
        )
        sys.stdout.write("Downloading\n")  # as torch does
        return weights

    monkeypatch.setattr(ResNet50_Weights, "get_state_dict", state_dict)
    torch.save(weights, tmp_path / "weights.pth")
    named, read = ResNet50Paper(), ResNet50Paper(weights=str(tmp_path / "weights.pth"))
    assert asked == [(ResNet50_Weights.IMAGENET1K_V1, True, True, str(cache / "weights"))]
    assert capsys.readouterr() == ("", "Downloading\n")
    for encoder in (named, read):
        for name, value in encoder.trunk.state_dict().items():
            assert torch.equal(value, weights[name]), name


def test_without_a_network_one_sentence_says_what_to_give(monkeypatch):
    def state_dict(self, *args, **settings):
        raise urllib.error.URLError("no route")

    monkeypatch.setattr(ResNet50_Weights, "get_state_dict", state_dict)
    with pytest.raises(RecipeError, match=r"resnet50-0676ba61\.pth .*no route.* say weights: null"):
        build("resnet50_paper", "encoder", {}, "encoder")
    with pytest.raises(FileNotFoundError, match=r"there is no file none\.pth"):
        ResNet50Paper(weights="none.pth")


def test_a_saved_node_looks_for_no_weights(encoder):
    node = {"resnet50_paper": {"weights": "imagenet_v1", "resize": 256}}
    assert encoder.saved_node(node) == {"resnet50_paper": {"weights": None, "resize": 256}}
    assert encoder.saved_node("resnet50_paper") == {"resnet50_paper": {"weights": None}}
