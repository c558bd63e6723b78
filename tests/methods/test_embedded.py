"""EmbeddedRounds: when the table is embedded anew, what the samplers see, and exact resume."""

import itertools

import pytest
import tiny_runs
import torch
import torch.nn.functional as F
from tiny_runs import assert_identical
from torch import nn

import nearkin as nk
from nearkin.compare import InBatch
from nearkin.console import Reporter
from nearkin.data.base import Table
from nearkin.encoders.base import Given
from nearkin.loop import Interrupted, Loop
from nearkin.losses.pairwise import contrastive
from nearkin.methods.embedded import EmbeddedRounds
from nearkin.objectives.compared import Compared
from nearkin.sample import HardClasses


def method(every=1, dropout=0.0):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Dropout(dropout))
    return EmbeddedRounds(Given(network, 4), Compared(InBatch(), contrastive), 5, 4, every)


def table(rows=40):
    random = torch.Generator().manual_seed(1)
    label = torch.arange(rows) % 5
    x = torch.randn(5, 6, generator=random)[label] + torch.randn(rows, 6, generator=random)
    return Table(x, label, tuple("abcde"), tuple(map(str, range(rows))))


def moved(chosen):
    with torch.no_grad():
        for parameter in chosen.encoder.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))


def test_the_column_holds_the_mean_of_the_unit_rows_of_each_class():
    chosen, rows = method(), table()
    given = chosen.round(rows, 0)
    z = chosen.eval().encoder(rows.inputs)
    for k in range(5):
        mean = F.normalize(z[rows.label == k], dim=1).mean(0)
        for row in given["embedding"][rows.label == k]:
            torch.testing.assert_close(row, mean)
    assert set(chosen.gives) == set(given.columns) - set(rows.columns)
    assert torch.equal(given.inputs, rows.inputs)
    assert "embedding" not in rows.columns


def test_embedding_disturbs_neither_statistics_nor_modes_nor_random_numbers():
    chosen = method(dropout=0.5).train()
    before = {key: value.clone() for key, value in chosen.encoder.state_dict().items()}
    dice = torch.get_rng_state()
    first = chosen.round(table(200), 0)["embedding"]
    assert torch.equal(torch.get_rng_state(), dice)
    assert all(torch.equal(value, before[k]) for k, value in chosen.encoder.state_dict().items())
    assert all(module.training for module in chosen.modules())
    assert not first.requires_grad
    chosen.embedded_in.fill_(-1)
    assert torch.equal(chosen.round(table(200), 0)["embedding"], first)


def test_the_table_is_embedded_anew_every_so_many_epochs():
    chosen, rows, seen = method(every=3), table(), []
    for epoch in range(7):
        seen.append(chosen.round(rows, epoch)["embedding"])
        moved(chosen)
    same = [torch.equal(a, b) for a, b in itertools.pairwise(seen)]
    assert same == [True, True, False, True, True, False]


def test_an_epoch_that_is_resumed_sees_what_it_began_with():
    chosen, rows = method(), table()
    chosen.round(rows, 0)
    moved(chosen)
    began = chosen.round(rows, 1)["embedding"]
    moved(chosen)
    again = method()
    again.load_state_dict(chosen.state_dict())
    assert torch.equal(again.round(rows, 1)["embedding"], began)
    assert not torch.equal(again.round(rows, 2)["embedding"], began)


def test_classes_without_rows_keep_their_place():
    chosen, rows = method(), table()
    few = chosen.round(rows.select(rows.label != 2), 0)
    assert len(few["embedding"]) == 32
    assert not chosen.means[2].any()
    assert chosen.means[[0, 1, 3, 4]].any(1).all()


def test_samplers_choose_by_it():
    chosen, rows = method(), table()
    first = HardClasses(2, 2).batches({"label": rows.label, **chosen.round(rows, 0).columns}, 0, 0)
    direct = {"label": rows.label, "embedding": chosen.eval().encoder(rows.inputs).detach()}
    assert all(map(torch.equal, first, HardClasses(2, 2).batches(direct, 0, 0)))


def test_it_counts_epochs_from_one():
    with pytest.raises(ValueError, match="every counts epochs, at least 1, not 0"):
        method(every=0)


# --- by recipe


def said(path, sampler="nearest_classes", every=1, **changes):
    """A recipe whose batches hang on the embeddings."""
    recipe = tiny_runs.recipe(path, **changes)
    del recipe["objective"]
    objective = {"compared": {"compare": {"in_batch": {}}, "loss": {"contrastive": {}}}}
    recipe["method"] = {"embedded": {"objective": objective, "every": every}}
    recipe["sampler"] = {sampler: {"classes": 3, "per_class": 4}}
    return recipe


def train(recipe, out, stop_at=None, **settings):
    class Stopping(Reporter):
        def step(self, epochs, steps):
            def hear(state, batches):
                if state.step == stop_at:
                    raise KeyboardInterrupt

            return hear

    return nk.train(recipe, out=out, reporter=Stopping(None), **settings)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(("sampler", "every"), [("nearest_classes", 1), ("hard_classes", 2)])
def test_a_run_that_was_interrupted_within_an_epoch_ends_the_same(
    tmp_path, rows, monkeypatch, sampler, every
):
    monkeypatch.setattr(Loop, "save_seconds", 0.0)  # or it would resume where the epoch began
    recipe = said(rows, sampler, every, optim={"default": {"adamw": {"lr": 0.1}}})
    train(recipe, tmp_path / "whole")
    for at in (4, 13):
        with pytest.raises(Interrupted):
            train(recipe, tmp_path / "broken", stop_at=at, resume=True)
    train(recipe, tmp_path / "broken", resume=True)
    assert_identical(tmp_path / "whole", tmp_path / "broken")


def test_a_sampler_by_embeddings_needs_a_method_that_gives_them(tmp_path, rows):
    recipe = said(rows)
    recipe["objective"] = recipe.pop("method")["embedded"]["objective"]
    with pytest.raises(ValueError, match="sampler: it reads the column 'embedding'"):
        train(recipe, tmp_path / "run")
