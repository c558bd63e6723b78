"""What an evaluation says that it will take, and what it does where memory is short."""

import numpy as np
import pytest
import torch

from nearkin.evaluation import evaluate, plan

GENERATOR = np.random.default_rng(0)
Z, Y = GENERATOR.standard_normal((1500, 64)).astype(np.float32), np.arange(1500) % 300


def told(**arguments):
    plans, blocks = [], []
    result = evaluate(
        Z, Y, planned=plans.append, progress=lambda *at: blocks.append(at), **arguments
    )
    return result, plans, blocks


def test_it_is_told_before_and_while_it_runs():
    _, (made,), blocks = told()
    assert (made.queries, made.gallery, made.dim, made.screened) == (1500, 1500, 64, 1500)
    assert made.tiles == 3
    assert blocks[-1] == (3, 3)
    assert "1,500 queries x 1,500 items x 64 dimensions: 3 blocks of 1,024 x 1,024" in str(made)
    assert "MB beside them, about " in str(made)


def test_queries_in_a_gallery_take_every_block():
    _, (made,), blocks = told(gallery=Z, gallery_labels=Y)
    assert made.tiles == 4
    assert blocks[-1] == (4, 4)


def test_little_memory_keeps_less(monkeypatch):
    wide, (before,), _ = told()
    tile = 2 * 1024**2 * 4
    monkeypatch.setattr(plan, "available", lambda: before.bytes - before.held // 2)
    before_threads = torch.get_num_threads()
    narrow, (made,), _ = told()
    assert (made.held, made.threads) == (0, 1)
    assert made.bytes < before.bytes <= made.bytes + before.held + before_threads * tile
    assert narrow.to_dict() == wide.to_dict()


def test_too_little_memory_says_how_much_is_needed(monkeypatch):
    monkeypatch.setattr(plan, "available", lambda: 1_000_000)
    with pytest.raises(MemoryError, match=r"takes at least \d+ MB beside them, but 1 MB are free"):
        evaluate(Z, Y)


def test_the_memory_that_is_free_is_known_on_linux():
    free = plan.available()
    assert free is None or free > 1 << 20


def test_processes_of_one_machine_share_its_memory(monkeypatch):
    alone = plan.available()
    if alone is None:
        pytest.skip("this system does not say what is free")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert plan.available() < alone / 2


@pytest.mark.parametrize("said", ["", "0", "abc", "²", "-3"])
def test_a_number_of_processes_that_is_none_is_one(monkeypatch, said):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", said)
    assert plan._processes() == 1


@pytest.mark.slow
def test_thresholds_of_large_classes_are_planned_for():
    """The kernel saw 199 to 219 MB for this size."""
    made, z = [], np.random.default_rng(0).standard_normal((12_000, 64)).astype(np.float32)
    metrics = ("recall@1", "map@r")
    evaluate(z, np.arange(12_000) % 12, metrics=metrics, planned=made.append)
    assert 219e6 < made[0].bytes < 400e6


def test_a_command_says_the_plan_and_too_little_memory(tmp_path, monkeypatch, capsys):
    from nearkin.cli import main

    path = tmp_path / "z.npz"
    np.savez(path, embeddings=Z, labels=Y)
    with pytest.raises(SystemExit) as done:
        main(["evaluate", str(path), "--closeness", "cosine", "--json"])
    said = capsys.readouterr()
    assert done.value.code == 0
    assert said.err.startswith("1,500 queries x 1,500 items x 64 dimensions: 3 blocks")
    assert said.out.startswith("{")
    monkeypatch.setattr(plan, "available", lambda: 1_000_000)
    with pytest.raises(SystemExit) as done:
        main(["evaluate", str(path)])
    assert done.value.code == 2
    assert "1 MB are free" in capsys.readouterr().err
