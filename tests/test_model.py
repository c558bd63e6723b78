"""Model: saved without pickles, loaded anywhere, embeds what a person has at hand."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import nearkin as nk
from nearkin import model as models
from nearkin.config import build
from nearkin.encoders.base import Given
from nearkin.run_folder import RunFolder, RunFolderError

CNN = {"small_cnn": {"dim": 5, "width": 4, "layers": 2, "grid": 2}}
PIXELS = {"image_size": 8, "channels": 3}


def saved(path: Path, node=CNN, facts=PIXELS, encoder=None, precision="float32") -> Path:
    """A run folder with a model of random weights, as a run writes it."""
    torch.manual_seed(0)
    encoder = encoder or build(node, "encoder", facts, "encoder")
    folder = RunFolder(path)
    folder.open("seed: 0\n", 0, 1)
    objective = nn.ModuleDict({"objective": nn.Linear(5, 3)})
    models.save(folder, encoder, objective, node, facts, precision, ("ant", "bee"))
    return path


@pytest.fixture
def run(tmp_path) -> Path:
    return saved(tmp_path / "run")


@pytest.fixture
def pictures(tmp_path, photo) -> list[Path]:
    return [photo(tmp_path / "some" / f"{i}.png", i) for i in range(4)]


def damaged(run: Path, **changes) -> None:
    path = run / "model" / "model.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


# --- what it embeds


def test_a_model_embeds_images_in_every_form(run, pictures):
    model = nk.load(run)
    z = model.embed(pictures)
    assert z.shape == (4, 5)
    assert z.dtype == np.float32
    opened = [Image.open(path) for path in pictures]
    for items in (
        [str(path) for path in pictures],
        tuple(pictures),
        np.array([str(path) for path in pictures]),
        iter(pictures),
        opened,
        pictures[0].parent,
        str(pictures[0].parent),
        model.encoder.prepare(pictures),
        model.encoder.prepare(pictures).numpy(),
        list(model.encoder.prepare(pictures)),
        list(model.encoder.prepare(pictures).numpy()),
        model.encoder.prepare(pictures).double(),
    ):
        np.testing.assert_allclose(model.embed(items), z, atol=1e-6)
    np.testing.assert_allclose(model.embed(pictures[2]), z[2:3], atol=1e-6)
    np.testing.assert_allclose(model.embed(opened[2]), z[2:3], atol=1e-6)


def test_a_folder_is_embedded_whole_and_in_order(run, photo, tmp_path):
    names = ["b/2.png", "a/10.png", "a/9.png", "c.png"]
    paths = {name: photo(tmp_path / "photos" / name, i) for i, name in enumerate(names)}
    model = nk.load(run)
    z = model.embed(tmp_path / "photos")
    ordered = model.embed([paths[name] for name in ["c.png", "a/9.png", "a/10.png", "b/2.png"]])
    np.testing.assert_array_equal(z, ordered)


def test_many_items_are_embedded_in_parts_and_told_of(run, monkeypatch):
    model = nk.load(run)
    x = torch.randint(0, 256, (23, 3, 8, 8), dtype=torch.uint8)
    whole, told = model.embed(x), []
    monkeypatch.setattr(models, "CHUNK", 10)
    parts = model.embed(x, progress=lambda done, total: told.append((done, total)))
    np.testing.assert_allclose(parts, whole, atol=1e-6)
    assert told == [(10, 23), (20, 23), (23, 23)]


def test_embedding_leaves_no_graph_and_no_training_mode(run):
    model = nk.load(run)
    model.encoder.train()
    model.embed(torch.zeros(2, 3, 8, 8, dtype=torch.uint8))
    assert model.encoder.training
    assert all(p.grad is None for p in model.encoder.parameters())


def test_feature_rows_are_embedded_by_an_mlp(tmp_path):
    run = saved(tmp_path / "run", {"mlp": {"dim": 5, "hidden": [8]}}, {"features": 6})
    model = nk.load(run)
    x = np.random.default_rng(0).normal(size=(7, 6))
    assert model.embed(x).shape == (7, 5)
    np.testing.assert_array_equal(model.embed(x.astype(np.float32)), model.embed(x.astype("f4")))
    with pytest.raises(ValueError, match="rows of 6 numbers, not inputs of shape"):
        model.embed(x[:, :5])
    with pytest.raises(ValueError, match="use an image encoder"):
        model.embed(["a.png"])
    x[4, 2] = np.nan
    with pytest.raises(ValueError, match="the embedding of item 4 is NaN"):
        model.embed(x.astype(np.float32))


def test_bfloat16_gives_float32_embeddings(tmp_path):
    run = saved(tmp_path / "run", precision="bfloat16")
    x = torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8)
    z = nk.load(run).embed(x)
    assert z.dtype == np.float32
    full = nk.load(saved(tmp_path / "full")).embed(x)
    assert not np.array_equal(z, full)
    np.testing.assert_allclose(z, full, atol=0.2)


def test_it_tells_what_it_is(run):
    model = nk.load(run)
    assert model.dim == 5
    assert repr(model) == "Model(SmallCNN, dim=5, device=cpu)"
    assert model.card["classes"] == ["ant", "bee"]


@pytest.mark.parametrize(
    ("items", "said"),
    [
        ([], "no items to embed"),
        (np.zeros((0, 3, 8, 8)), "no items to embed"),
        (np.array(3), "no items to embed"),
        (5, "are images or an array, not int"),
        (None, "not NoneType"),
        ([1, 2], "a path or a Pillow image, not int"),
        (np.zeros((2, 8, 8, 3), np.uint8), r"\(8, 8, 3\) do not fit an encoder of \(3, 8, 8\)"),
        ([np.zeros((3, 8, 8)), np.zeros((3, 8, 9))], "must have one shape"),
    ],
)
def test_other_items_are_refused(run, items, said):
    with pytest.raises(ValueError, match=said):
        nk.load(run).embed(items)


def test_missing_and_broken_files_are_named(run, tmp_path, pictures):
    model = nk.load(run)
    with pytest.raises(FileNotFoundError, match=r"there is no file or folder .*lost"):
        model.embed(tmp_path / "lost")
    with pytest.raises(FileNotFoundError, match=r"there is no image .*lost\.png"):
        model.embed([pictures[0], tmp_path / "lost.png"])
    pictures[1].write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"1\.png cannot be read"):
        model.embed(pictures)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no images"):
        model.embed(tmp_path / "empty")


# --- saving and loading


def test_the_folder_holds_no_pickle_and_loads_elsewhere(run, tmp_path):
    files = sorted(path.name for path in (run / "model").iterdir())
    assert files == ["encoder.safetensors", "model.json", "objective.safetensors"]
    x = torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8)
    z = nk.load(run).embed(x)
    moved = shutil.move(run, tmp_path / "moved")
    np.testing.assert_array_equal(nk.load(moved).embed(x), z)
    np.testing.assert_array_equal(nk.load(str(moved), device="cpu").embed(x), z)


class Own(nn.Module):
    dim = 5

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 5)

    def forward(self, x):
        return self.linear(x)


def test_an_encoder_of_ones_own_is_given_again(tmp_path):
    torch.manual_seed(1)
    own = Own()
    run = saved(tmp_path / "run", node=None, facts={}, encoder=Given(own, 5))
    with pytest.raises(ValueError, match=r"pass it: nearkin.load\(run, encoder=\.\.\.\)"):
        nk.load(run)
    x = torch.randn(3, 4)
    z = nk.load(run, encoder=Own()).embed(x)
    np.testing.assert_allclose(z, own(x).detach().numpy(), atol=1e-6)
    np.testing.assert_array_equal(nk.load(run, encoder=Given(Own(), 5)).embed(x), z)
    with pytest.raises(ValueError, match="do not fit this encoder"):
        nk.load(run, encoder=nn.Linear(3, 5))


def test_code_of_others_does_not_run_by_itself(run):
    damaged(run, encoder={"os:getcwd": {}})
    with pytest.raises(ValueError, match="runs only with --trust-code"):
        nk.load(run)


def test_what_is_no_finished_run_is_told(run, tmp_path):
    with pytest.raises(RunFolderError, match="there is no run folder"):
        nk.load(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunFolderError, match="is no run folder"):
        nk.load(tmp_path / "empty")
    shutil.rmtree(run / "model")
    with pytest.raises(RunFolderError, match="is not finished; end it with --resume"):
        nk.load(run)


def test_another_format_is_told(run):
    damaged(run, format=2)
    with pytest.raises(RunFolderError, match=r"model\.json is damaged, or of another version"):
        nk.load(run)
    (run / "environment.json").write_text('{"format": 7}')
    with pytest.raises(RunFolderError, match="format 7"):
        nk.load(run)


def test_damaged_files_are_told(run):
    weights = run / "model" / "encoder.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:100])
    with pytest.raises(ValueError, match=r"encoder\.safetensors do not fit this encoder"):
        nk.load(run)
    weights.unlink()
    with pytest.raises(ValueError, match=r"encoder\.safetensors"):
        nk.load(run)
    (run / "model" / "model.json").write_text("{")
    with pytest.raises(RunFolderError, match=r"model\.json cannot be read"):
        nk.load(run)


def test_an_unknown_device_is_told(run):
    with pytest.raises(ValueError, match="device 'gpu' is not to be had here"):
        nk.load(run, device="gpu")
