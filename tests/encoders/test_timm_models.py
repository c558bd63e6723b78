"""timm networks: fed as they were trained, saved whole, and clear about what is not to be had."""

import json

import huggingface_hub.constants
import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

import nearkin
from nearkin.catalog import RecipeError
from nearkin.config import build
from nearkin.encoders.timm_models import Timm

TINY = "test_resnet"  # 160 pixels, crop_pct 0.95


@pytest.fixture
def offline(monkeypatch):
    """A hub that says at once that there is no network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


folders = []


@pytest.fixture
def at_random(monkeypatch):
    """timm's download replaced by weights that a seed decides; counts how often it is asked."""
    make, asked = timm.create_model, []
    folders.clear()

    def create(name, pretrained=False, **options):
        if pretrained:
            asked.append(name)
            folders.append(options["cache_dir"])
            torch.manual_seed(7)
        return make(name, pretrained=False, **options)

    monkeypatch.setattr(timm, "create_model", create)
    return asked


def built(facts=None, **settings):
    node = {"timm": {"model": TINY, "pretrained": False, **settings}}
    return build(node, "encoder", facts or {}, "encoder")


def test_size_cut_and_colors_are_the_models_own():
    encoder = built()
    own = timm.data.resolve_model_data_config(encoder.trunk)
    assert encoder.image_size == own["input_size"][-1] == 160
    assert encoder.size.resize == int(160 / own["crop_pct"])
    assert encoder.size.interpolation == own["interpolation"] == "bilinear"
    assert encoder.size.keep_aspect
    pixels = torch.randint(0, 256, (2, 3, 160, 160), dtype=torch.uint8)
    mean, std = (torch.tensor(own[key])[:, None, None] for key in ("mean", "std"))
    torch.testing.assert_close(encoder.pixels(pixels), (pixels / 255 - mean) / std)
    encoder.eval()
    expected = encoder.trunk((pixels / 255 - mean) / std)
    torch.testing.assert_close(encoder(pixels), expected, rtol=1e-3, atol=1e-4)
    assert encoder.dim == expected.shape[1]


def test_a_photo_is_cut_as_timms_own_evaluation_cuts_it():
    encoder = built()
    generator = np.random.default_rng(0)
    small = generator.integers(0, 256, (8, 6, 3), dtype=np.uint8)
    photo = Image.fromarray(small).resize((330, 250), Image.Resampling.BICUBIC)
    ours = encoder.pixels(encoder.prepare([photo]).take(torch.tensor([0])))[0]
    own = timm.data.resolve_model_data_config(encoder.trunk)
    theirs = timm.data.create_transform(**own, is_training=False)(photo)
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() < 0.05


def test_the_size_of_a_data_set_does_not_replace_the_models_own():
    facts = {"image_size": 64, "channels": 3, "classes": 9}
    assert built(facts).image_size == 160
    assert built(facts, image_size=96).image_size == 96
    assert built(facts, image_size="own").image_size == 160
    with pytest.raises(
        RecipeError, match=r"encoder\.timm\.image_size: expected an integer or 'own"
    ):
        built(facts, image_size="big")


def test_an_image_size_of_ones_own_is_cut_alike_and_fixed_networks_are_built_for_it():
    encoder = built(image_size=96)
    assert encoder.size.resize == int(96 / 0.95)
    assert built(image_size=96, resize=120, keep_aspect=False).size.resize == 120
    vision = build(
        {"timm": {"model": "test_vit", "pretrained": False, "image_size": 64}}, "encoder", {}, "e"
    )
    assert vision.eval()(torch.zeros(2, 3, 64, 64, dtype=torch.uint8)).shape == (2, vision.dim)


def test_dim_adds_a_head_and_batchnorm_a_norm_without_scale():
    encoder = built(dim=5, batchnorm=True)
    assert encoder(torch.zeros(2, 3, 160, 160, dtype=torch.uint8)).shape == (2, 5)
    assert isinstance(encoder.head, nn.Linear)
    assert not list(encoder.norm.parameters())
    assert isinstance(built().head, nn.Identity)
    with pytest.raises(RecipeError, match="dim must be at least 1, not 0"):
        built(dim=0)


def test_pooling_is_that_which_is_said():
    encoder = built(pooling="catavgmax").eval()
    average = built().eval()
    assert encoder.dim == 2 * average.dim
    with pytest.raises(RecipeError, match="pooling: avg"):
        built(pooling="")


def test_names_that_timm_has_not_are_answered_with_near_ones():
    with pytest.raises(RecipeError, match=r"no model 'resnet5o'; did you mean resnet50"):
        build({"timm": {"model": "resnet5o"}}, "encoder", {}, "encoder")
    with pytest.raises(ValueError, match=r"no weights 'best' of test_resnet; it has r160_in1k"):
        Timm("test_resnet.best")
    with pytest.raises(ValueError, match=r"timm\.list_models\(\) names them"):
        Timm("!!")


def test_without_a_network_one_sentence_says_what_to_give(offline, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(RecipeError) as told:
        build({"timm": {"model": TINY}}, "encoder", {}, "encoder")
    said = str(told.value)
    assert said.startswith("encoder.timm: the pretrained weights of test_resnet are not to be had")
    assert said.endswith("give a file with weights: FILE, or say pretrained: false")
    assert "\n" not in said


def test_pretrained_weights_go_to_the_cache_folder_and_one_line_says_so(cache, at_random, capsys):
    for _ in range(2):
        build({"timm": {"model": TINY}}, "encoder", {}, "encoder")
        (cache / "weights" / "models--timm--test_resnet.r160_in1k" / "snapshots").mkdir(
            parents=True, exist_ok=True
        )
    assert folders == [cache / "weights"] * 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines() == [
        "downloading the weights timm/test_resnet.r160_in1k from the hub of Hugging Face into "
        f"{cache / 'weights'}"
    ]


def test_weights_of_a_file_are_loaded_without_their_classifier(tmp_path):
    torch.manual_seed(3)
    whole = timm.create_model(TINY, pretrained=False, num_classes=11)
    torch.save({"state_dict": whole.state_dict()}, tmp_path / "weights.pth")
    encoder = built(pretrained=True, weights=str(tmp_path / "weights.pth"))
    for name, value in encoder.trunk.state_dict().items():
        assert torch.equal(value, whole.state_dict()[name]), name
    with pytest.raises(RecipeError, match=r"weights\.pth (lack|are|hold)"):
        build(
            {"timm": {"model": "test_vit", "weights": str(tmp_path / "weights.pth")}},
            *("encoder", {}, "encoder"),
        )


RECIPE = {
    "encoder": {"timm": {"model": TINY, "image_size": 32}},
    "sampler": {"uniform": {"batch": 4}},
    "objective": {
        "compared": {"compare": {"classifier": {}}, "loss": {"cross_entropy": {}}},
    },
    "optim": {"default": {"sgd": {"lr": 0.01}}},
    "train": {"epochs": 1, "select": "last"},
    "evaluate": ["recall@1"],
}


@pytest.mark.parametrize("headed", [False, True])
def test_a_finished_run_is_loaded_without_asking_for_pretrained_weights(
    headed, photos, tmp_path, at_random, one_thread
):
    encoder = RECIPE["encoder"]
    if headed:
        encoder = {"head": {"trunk": encoder, "frozen": False}}
    folder = photos({"a": 4, "b": 4, "c": 4, "d": 4})
    recipe = {**RECIPE, "data": {"folder": {"path": str(folder)}}, "encoder": encoder}
    nearkin.train(recipe, out=tmp_path / "run")
    assert at_random == [TINY]
    card = json.loads((tmp_path / "run" / "model" / "model.json").read_text())
    node = card["encoder"]["head"]["trunk"] if headed else card["encoder"]
    assert node["timm"]["pretrained"] is False
    assert node["timm"]["weights"] is None
    model = nearkin.load(tmp_path / "run")
    assert at_random == [TINY]
    with np.load(tmp_path / "run" / "embeddings.npz") as held:
        paths = [folder / name for name in held["ids"]]
        np.testing.assert_allclose(model.embed(paths), held["embeddings"], rtol=1e-4, atol=1e-5)
