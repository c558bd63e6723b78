"""head: on rows, on frozen and on learning trunks; where it starts; what is kept and loaded."""

import math

import numpy as np
import pytest
import tiny_runs
import torch
from torch import nn

import nearkin as nk
from nearkin import assemble, extraction, folding
from nearkin import features as module
from nearkin.config import build
from nearkin.console import Reporter
from nearkin.embed_files import embed
from nearkin.encoders.base import Encoder
from nearkin.encoders.head import Head
from nearkin.encoders.small import MLP, SmallCNN
from nearkin.features import features as features_of
from nearkin.features import identity, identity_of, kept_features
from nearkin.runtime import row_keys
from nearkin.whitening import scatter, whitening

pytestmark = pytest.mark.usefixtures("one_thread")

SUPCON = {"compared": {"compare": "in_batch", "loss": "supcon"}}


def cnn(seed=0, dim=6, **settings):
    torch.manual_seed(seed)
    return SmallCNN(dim, image_size=16, channels=3, width=4, layers=2, grid=2, **settings)


def pictures(n=10, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 3, 16, 16), generator=generator, dtype=torch.uint8)


def labelled(n=60, dim=5):
    generator = torch.Generator().manual_seed(3)
    label = torch.arange(n) % 6
    centers = torch.randn(6, dim, generator=generator)
    return 4 + centers[label] + torch.randn(n, dim, generator=generator), label


# On rows of features


def test_without_a_trunk_rows_are_projected():
    head = Head(3, features=5)
    x, _ = labelled()
    assert head.prepare(x) is x
    linear = head.head[-1]
    assert torch.equal(head(x), linear(x))
    assert head(x.to(torch.uint8)).shape == (60, 3)
    assert Head(features=5).dim == 5


def test_hidden_layers_dropout_and_batchnorm_are_there():
    head = Head(3, features=5, hidden=[8, 7], dropout=0.5, batchnorm=True)
    kinds = [type(layer).__name__ for layer in head.head]
    assert kinds == ["Dropout", "Linear", "ReLU"] * 2 + ["Dropout", "Linear"]
    assert [layer.out_features for layer in head.head if isinstance(layer, nn.Linear)] == [8, 7, 3]
    x, _ = labelled()
    z = head(x)
    assert torch.allclose(z.mean(0), torch.zeros(3), atol=1e-5)
    head.eval()
    assert torch.equal(head(x), head(x))


def test_the_identity_gives_the_features_back():
    x, _ = labelled()
    assert torch.allclose(Head(features=5, start="identity")(x), x)


def test_a_whitened_start_is_the_whitening_up_to_scale():
    x, label = labelled()
    head = Head(features=5, start="whitened", shrinkage=0.2)
    assert head.begin(x, label) == "the head starts whitened, with shrinkage 0.2 (the recipe)"
    wanted = whitening(scatter(x, label), 0.2)(x)
    z = head(x)
    assert torch.allclose(z / z.norm(), wanted / wanted.norm(), atol=1e-6)
    # As large as the identity.
    assert float(head.head[-1].weight.detach().square().sum()) == pytest.approx(5, rel=1e-5)


def test_a_whitened_start_of_fewer_dimensions_keeps_those_of_greatest_variance():
    x, label = labelled()
    head = Head(2, features=5, start="whitened", shrinkage=0.2)
    head.begin(x, label)
    wanted = whitening(scatter(x, label), 0.2, 2)(x)
    z = head(x)
    assert torch.allclose(z / z.norm(), wanted / wanted.norm(), atol=1e-6)


def test_validation_chooses_the_shrinkage_of_a_start_and_is_not_fitted():
    x, label = labelled()
    other, _ = labelled(30)
    seen = []

    def score(z):
        """Likes the third that it sees."""
        seen.append(z)
        return (float(len(seen) == 3), 0.0)

    head = Head(features=5, start="whitened")
    assert head.begin(x, label, other, score) == (
        "the head starts whitened, with shrinkage 0.05 (validation)"
    )
    found = scatter(x, label)
    assert torch.equal(seen[2], whitening(found, 0.05)(other))
    assert "0.3 (default)" in Head(features=5, start="whitened").begin(x, label)


@pytest.mark.parametrize("start", ["random", "identity"])
def test_other_starts_take_nothing_from_the_data(start):
    x, label = labelled()
    head = Head(features=5, start=start)
    before = {name: p.clone() for name, p in head.state_dict().items()}
    assert head.begin(x, label) == ""
    assert all(torch.equal(p, before[name]) for name, p in head.state_dict().items())


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({}, "head needs a trunk for pictures"),
        ({"features": 5, "dim": 0}, "must be at least 1, not 0"),
        ({"features": 5, "hidden": [0]}, "must be at least 1, not 0"),
        ({"features": 5, "dropout": 1.0}, r"dropout must be in \[0, 1\), not 1.0"),
        ({"features": 5, "hidden": [4], "start": "identity"}, "leave hidden out"),
        ({"features": 5, "dim": 4, "start": "identity"}, "keeps the 5 dimensions .* not 4"),
        ({"features": 5, "dim": 6, "start": "whitened"}, "at most 5 dimensions, not 6"),
        ({"features": 5, "shrinkage": 0.1}, "for start whitened"),
        ({"features": 5, "start": "whitened", "shrinkage": 1.5}, "1.5 was given"),
        ({"features": 5, "start": "whitened", "shrinkage": math.nan}, "nan was given"),
    ],
)
def test_wrong_settings_are_told(settings, says):
    with pytest.raises(ValueError, match=says):
        Head(**settings)


def test_rows_that_do_not_fit_are_told():
    head = Head(features=5)
    with pytest.raises(ValueError, match=r"takes rows of 5 numbers, not inputs of shape \(3, 4\)"):
        head.prepare(torch.ones(3, 4))
    with pytest.raises(ValueError, match=r"shape \(10, 3, 16, 16\); give it a trunk"):
        head.prepare(pictures())
    with pytest.raises(ValueError, match="takes arrays of numbers, not str"):
        head.prepare(["a.jpg"])


# On a frozen trunk


def test_a_frozen_trunk_is_run_once_in_evaluation_mode(cache):
    trunk = cnn()
    head = Head(4, trunk=trunk).train()
    x = pictures()
    prepared = head.prepare(x)
    assert prepared.shape == (10, 6)
    assert torch.allclose(prepared, cnn().eval()(x), atol=1e-6)
    assert torch.equal(head(prepared), head.head(prepared))
    assert head.augment(prepared, torch.arange(10)) is prepared
    assert not trunk.training
    assert not any(p.requires_grad for p in trunk.parameters())
    assert all(p.requires_grad for p in head.head.parameters())
    before = {name: value.clone() for name, value in trunk.state_dict().items()}
    head.prepare(pictures(seed=1))
    assert all(torch.equal(v, before[name]) for name, v in trunk.state_dict().items())


class Counting(Encoder):
    """A trunk that counts the rows it has seen."""

    dim = 2

    def __init__(self, factor=1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([factor, 2.0]))
        self.rows, self.prepared = torch.zeros(()), 0

    def prepare(self, inputs, workers=1, progress=None, keep=True):
        self.prepared += 1
        return inputs if isinstance(inputs, torch.Tensor) else torch.arange(len(inputs))[:, None]

    def forward(self, x):
        self.rows += len(x)
        return x.float()[:, :1] * self.weight


def test_features_are_kept_for_the_same_weights_and_items(cache):
    x = torch.arange(6.0)[:, None]
    trunk = Counting()
    first = Head(trunk=trunk).prepare(x)
    assert int(trunk.rows) == 6
    again = Counting()
    assert torch.equal(Head(trunk=again).prepare(x), first)
    assert (int(again.rows), again.prepared) == (0, 0)
    for other, items in ((Counting(1.5), x), (Counting(), x + 1), (Counting(), x.double())):
        Head(trunk=other).prepare(items)
        assert int(other.rows) == 6
    bfloat = Counting()
    Head(trunk=bfloat, precision="bfloat16").prepare(x)
    assert int(bfloat.rows) == 6
    assert len(list(cache.glob("features-*.npy"))) == 5


def test_features_of_a_file_that_changed_are_made_anew(cache, photo, tmp_path):
    paths = [str(photo(tmp_path / f"{i}.png", i)) for i in range(3)]
    head = Head(trunk=cnn())
    before = head.prepare(paths).clone()
    photo(tmp_path / "1.png", 7, side=33)
    after = head.prepare(paths)
    assert [torch.equal(a, b) for a, b in zip(before, after, strict=True)] == [True, False, True]
    (tmp_path / "2.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"there is no image .*2\.png"):
        head.prepare(paths)


def test_a_damaged_file_is_written_anew(cache):
    x = torch.arange(6.0)[:, None]
    first = Head(trunk=Counting()).prepare(x).clone()
    (kept,) = cache.glob("features-*.npy")
    kept.write_bytes(kept.read_bytes()[:-9])
    trunk = Counting()
    assert torch.equal(Head(trunk=trunk).prepare(x), first)
    assert int(trunk.rows) == 6


def test_pictures_in_memory_and_what_is_not_to_be_kept_leave_no_file(cache):
    from PIL import Image

    head = Head(trunk=cnn())
    shown = [Image.fromarray(np.full((20, 20, 3), i, np.uint8)) for i in range(3)]
    assert head.prepare(shown).shape == (3, 6)
    assert head.prepare(pictures(), keep=False).shape == (10, 6)
    assert not list(cache.glob("features-*"))
    assert identity(shown) is None


def test_features_come_in_batches_and_tell_how_many_are_done(cache, monkeypatch):
    monkeypatch.setattr(extraction, "BATCH", 4)
    told = []
    x = torch.arange(10.0)[:, None]
    trunk = Counting()
    z = kept_features(trunk, 2, x, lambda: x, progress=lambda *said: told.append(said))
    assert torch.equal(z, x * torch.tensor([1.0, 2.0]))
    assert told == [(4, 10), (8, 10), (10, 10)]


def test_a_trunk_is_traced_once_for_all_its_rows(cache, monkeypatch):
    traced = []
    traces = folding._traced
    monkeypatch.setattr(folding, "_traced", lambda part: traced.append(part) or traces(part))
    monkeypatch.setattr(module, "CHUNK", 64)
    monkeypatch.setattr(extraction, "BATCH", 50)
    trunk, x = convolution(), torch.randn(200, 3, 8, 8)
    z = kept_features(trunk, 4, x, lambda: x)
    with torch.no_grad():
        torch.testing.assert_close(z, trunk.eval()(x), rtol=1e-5, atol=1e-5)
    assert len(traced) == len(set(traced))


def convolution():
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    return nn.Sequential(trunk, nn.AdaptiveAvgPool2d(1), nn.Flatten())


class Odd(Counting):
    """A trunk that holds something of which nobody can say what it is."""

    def __init__(self):
        super().__init__()
        self.generator = torch.Generator()


def test_features_of_a_module_without_a_name_are_not_kept(cache):
    trunk, x = Odd(), torch.arange(6.0)[:, None]
    for _ in range(2):
        z = kept_features(trunk, 2, x, lambda: x)
        assert torch.equal(z, x * torch.tensor([1.0, 2.0]))
    assert int(trunk.rows) == 12
    assert not list(cache.glob("features-*"))


def test_a_row_that_is_no_number_is_named_by_its_place_among_all(cache, monkeypatch):
    monkeypatch.setattr(extraction, "BATCH", 4)
    x = torch.arange(10.0)[:, None]
    x[9] = math.nan
    with pytest.raises(ValueError, match="features of row 9 are NaN or infinite"):
        kept_features(Counting(), 2, x, lambda: x)


def test_features_that_are_no_numbers_and_a_wrong_width_are_told(cache):
    x = torch.tensor([[1.0], [math.inf], [2]])
    with pytest.raises(ValueError, match="features of row 1 are NaN or infinite"):
        Head(trunk=Counting()).prepare(x)
    with pytest.raises(ValueError, match=r"gave shape \(6, 2\); expected \(N, 3\)"):
        kept_features(Counting(), 3, torch.ones(6, 1), lambda: torch.ones(6, 1))
    assert not list(cache.glob("features-*"))


def test_the_identity_of_a_module_hangs_on_weights_and_settings():
    same = identity_of(cnn())
    assert identity_of(cnn()) == same
    assert identity_of(cnn().eval()) == same
    assert identity_of(cnn(seed=1)) != same
    torch.manual_seed(0)
    assert identity_of(nn.Conv2d(3, 3, 3)) != identity_of(nn.Conv2d(3, 3, 3, stride=2))
    changed = cnn()
    changed.image_size = 17
    assert identity_of(changed) != same


def test_pictures_of_a_frozen_trunk_can_still_be_seen():
    head = Head(trunk=cnn())
    x = pictures()
    assert torch.equal(head.seen(x), x)
    rows, _ = labelled()
    assert head.trunk is not None
    assert torch.equal(Head(features=5).seen(rows), rows)


# On a trunk that learns


def test_a_learning_trunk_augments_trains_and_sees_pictures():
    def negative(x, keys):
        """Photographs."""
        return 255 - x

    head = Head(4, trunk=cnn(augmentation=negative), frozen=False).train()
    x = pictures()
    assert torch.equal(head.prepare(x), x)
    assert torch.equal(head.augment(x, row_keys(0, 0, torch.arange(10))), 255 - x)
    assert head.trunk is not None
    assert head.trunk.training
    head(x).sum().backward()
    assert all(p.grad is not None for p in head.head.parameters())
    assert any(p.grad is not None for p in head.trunk.parameters())


def test_a_whitened_start_on_a_learning_trunk_whitens_its_features():
    x, label = pictures(30), torch.arange(30) % 3
    head = Head(trunk=cnn(), frozen=False, start="whitened", shrinkage=0.3).train()
    head.begin(x, label)
    assert head.trunk is not None
    assert head.trunk.training
    features = cnn().eval()(x).detach()
    wanted = whitening(scatter(features, label), 0.3)(features)
    z = head.eval()(x)
    assert torch.allclose(z / z.norm(), wanted / wanted.norm(), atol=1e-5)


# In recipes and runs


def test_a_recipe_builds_a_head_on_a_trunk():
    node = {"head": {"dim": 8, "trunk": {"small_cnn": {"dim": 6, "width": 4}}}}
    made = build(node, "encoder", {"image_size": 16, "channels": 3, "features": 768}, "encoder")
    assert made.features == made.trunk.dim == 6
    assert made.frozen
    rows = build({"head": {"hidden": [4]}}, "encoder", {"features": 9}, "encoder")
    assert isinstance(rows, Head)
    assert (rows.dim, rows.features) == (9, 9)
    mlp = build({"head": {"trunk": {"mlp": {"dim": 7}}}}, "encoder", {"features": 9}, "encoder")
    assert isinstance(mlp.trunk, MLP)
    assert mlp.dim == 7


def train(made, out):
    return nk.train(made, out=out, reporter=Reporter(None))


def photo_recipe(folder, **encoder):
    trunk = {"small_cnn": {"dim": 6, "width": 4, "layers": 2, "image_size": 16, "channels": 3}}
    return {
        "seed": 0,
        "data": {"folder": {"path": str(folder), "validation": 0}},
        "encoder": {"head": {"dim": 4, "trunk": trunk, **encoder}},
        "sampler": {"uniform": {"batch": 8}},
        "objective": SUPCON,
        "optim": {"default": {"adamw": {"lr": 0.01}}},
        "train": {"epochs": 2, "select": "last"},
        "evaluate": ["recall@1", "map@r"],
    }


@pytest.fixture
def folder(photos):
    return photos({f"c{i}": 6 for i in range(6)})


def test_a_run_on_a_frozen_trunk_loads_and_embeds_pictures(folder, tmp_path, cache):
    done = train(photo_recipe(folder, start="whitened"), tmp_path / "run")
    assert list(done.metrics["floors"]) == ["raw", "standardized", "whitened"]
    model = nk.load(tmp_path / "run", device="cpu")
    assert isinstance(model.encoder, Head)
    with np.load(tmp_path / "run" / "embeddings.npz") as held:
        paths = [str(folder / name) for name in held["ids"].tolist()]
        assert np.allclose(model.embed(paths), held["embeddings"], atol=1e-5)
    # The pictures are on the page though no step has seen one.
    assert "data:image/" in (tmp_path / "run" / "report.html").read_text()
    again = train(photo_recipe(folder, start="whitened"), tmp_path / "again")
    assert again.metrics["test"] == done.metrics["test"]
    assert len(list(cache.glob("features-*.npy"))) == 2  # train and test, once


def test_the_trunk_of_a_frozen_run_does_not_move_and_that_of_a_learning_one_does(folder, tmp_path):
    for frozen in (True, False):
        made = photo_recipe(folder, frozen=frozen)
        if not frozen:
            sgd = {"sgd": {"lr": 0.01}}
            made["optim"] = {"default": sgd, "encoder.trunk": sgd, "encoder.head": sgd}
        ends = []
        for epochs in (1, 3):
            made["train"]["epochs"] = epochs
            run = train(made, tmp_path / f"{frozen}{epochs}")
            ends.append(nk.load(run.folder, device="cpu").encoder.state_dict())
        moved = {n for n, value in ends[0].items() if not torch.equal(value, ends[1][n])}
        assert "head.1.weight" in moved
        assert any(name.startswith("trunk.") for name in moved) == (not frozen)
        assert ("floors" in run.metrics) == frozen


def test_an_optimizer_for_a_frozen_trunk_is_told(folder, tmp_path):
    made = photo_recipe(folder)
    made["optim"]["encoder.trunk"] = {"sgd": {"lr": 0.01}}
    with pytest.raises(ValueError, match=r"optim\.encoder\.trunk is for what is frozen"):
        train(made, tmp_path / "run")


def test_a_head_that_starts_whitened_starts_at_the_floor_of_what_it_was_fitted_on(tmp_path, rows):
    made = tiny_runs.recipe(rows, encoder={"head": {"start": "whitened"}}, objective=SUPCON)
    with np.load(rows) as held:
        only = held["split"] != 1
        np.savez(tmp_path / "two.npz", **{name: held[name][only] for name in held.files})
    made["data"] = {"npz": {"path": str(tmp_path / "two.npz"), "validation": 0}}
    run = train(made, tmp_path / "run")
    assert run.metrics["floors"]["whitened"]["chosen_on"] == "default"
    assert run.metrics["untrained"]["cosine"] == run.metrics["floors"]["whitened"]["cosine"]


def test_a_run_started_from_another_takes_its_trunk_before_it_looks_at_features(folder, tmp_path):
    first = train(photo_recipe(folder, frozen=False), tmp_path / "first")
    made = {**photo_recipe(folder), "seed": 5}
    made["train"]["start"] = str(tmp_path / "first")
    second = train(made, tmp_path / "second")
    assert second.metrics["untrained"]["cosine"]["map@r"]["value"] == pytest.approx(
        first.metrics["test"]["cosine"]["map@r"]["value"], abs=0.02
    )
    one, two = (nk.load(run.folder, device="cpu").encoder.state_dict() for run in (first, second))
    assert all(torch.equal(one[n], two[n]) for n in one if n.startswith("trunk."))


def test_what_a_head_prepares_with_is_its_frozen_trunk():
    trunk = cnn()
    assert Head(trunk=trunk).fixed() is trunk
    assert Head(trunk=trunk, frozen=False).fixed() is None
    assert Head(features=4).fixed() is None
    assert Head(trunk=Head(trunk=trunk), frozen=False).fixed() is trunk


class Breaks(Reporter):
    """Ends a run after its first epoch."""

    def epoch(self, epoch, scores):
        if epoch == 0:
            raise KeyboardInterrupt


def test_a_run_on_a_frozen_trunk_is_resumed_with_the_weights_that_made_its_features(tmp_path, rows):
    made = tiny_runs.recipe(rows, objective=SUPCON)

    def go(out, seed, reporter=None, resume=False):
        torch.manual_seed(seed)
        head = Head(trunk=MLP(5, features=6), start="identity")
        reporter = reporter or Reporter(None)
        return nk.train(made, encoder=head, out=out, resume=resume, reporter=reporter)

    whole = go(tmp_path / "whole", 1)
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "run", 1, Breaks(None))
    with pytest.raises(ValueError, match="the frozen trunk has other weights than when the run in"):
        go(tmp_path / "run", 2, resume=True)
    resumed = go(tmp_path / "run", 1, resume=True)
    assert resumed.metrics["test"] == whole.metrics["test"]


def test_every_process_makes_its_features_with_the_trunk_of_the_first(tmp_path, rows, monkeypatch):
    order = []
    prepare = Head.prepare
    monkeypatch.setattr(assemble, "as_in_first", lambda module: order.append(type(module)))

    def seen(self, *args, **settings):
        order.append("prepare")
        return prepare(self, *args, **settings)

    monkeypatch.setattr(Head, "prepare", seen)
    train(tiny_runs.recipe(rows, encoder="head", objective=SUPCON), tmp_path / "run")
    assert order[:2] == [Head, "prepare"]


def test_the_precision_that_is_asked_for_reaches_a_frozen_trunk(folder, tmp_path):
    run = train(photo_recipe(folder), tmp_path / "run")
    paths = sorted(map(str, folder.glob("*/*.png")))
    model = nk.load(run.folder, device="cpu")
    full = model.embed(paths)
    model.precision = "bfloat16"
    half = model.embed(paths)
    rounded = features_of(
        model.encoder.trunk, 6, model.encoder.trunk.prepare(paths, keep=False), "bfloat16"
    )
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = model.encoder(rounded).float().numpy()
    assert np.array_equal(half, expected)
    assert not np.array_equal(half, full)
    model.precision = "float32"
    assert np.array_equal(model.embed(paths), full)
    with pytest.raises(ValueError, match="precision is float32 or bfloat16, not 'float16'"):
        model.precision = "float16"


def test_without_a_word_on_it_a_trunk_embeds_in_its_own_precision(folder, tmp_path):
    run = train(photo_recipe(folder, precision="bfloat16"), tmp_path / "run")
    embed(run.folder, folder, tmp_path / "own.npz")
    embed(run.folder, folder, tmp_path / "full.npz", precision="float32")
    with np.load(tmp_path / "own.npz") as own, np.load(tmp_path / "full.npz") as full:
        assert np.array_equal(own["ids"], full["ids"])
        assert not np.array_equal(own["embeddings"], full["embeddings"])
        paths = [str(folder / name) for name in own["ids"]]
        assert np.array_equal(nk.load(run.folder).embed(paths), own["embeddings"])
