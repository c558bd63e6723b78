"""One file, whole or not at all, that gives back exactly what it took."""

import json
import os

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from nearkin import checkpoint

FACTS = {"state": {"step": 3, "best": None}, "list": [1.5, "é"]}


def test_tensors_of_every_kind_and_facts_come_back_as_they_were(tmp_path):
    tensors = {
        "a/weight": torch.randn(3, 4),
        "double": torch.randn(2, dtype=torch.float64),
        "count": torch.tensor(7),
        "flags": torch.tensor([True, False]),
        "narrow": torch.randn(4).bfloat16(),
        "empty": torch.zeros(0, 3),
        "turned": torch.randn(3, 5).T,
    }
    tensors["shared"] = tensors["a/weight"]
    checkpoint.save(tmp_path / "new" / "state", tensors, FACTS)
    read, facts = checkpoint.load(tmp_path / "new" / "state")
    assert set(read) == set(tensors)
    for name, value in tensors.items():
        assert read[name].dtype == value.dtype
        assert torch.equal(read[name], value)
    assert facts == {"format": 1, **FACTS}


def test_nothing_but_the_file_is_left_and_others_may_read_it(tmp_path):
    before = os.umask(0o022)
    try:
        checkpoint.save(tmp_path / "state", {"x": torch.ones(1)}, {})
    finally:
        os.umask(before)
    assert os.listdir(tmp_path) == ["state"]
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o644


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    checkpoint.save(tmp_path / "state", {"x": torch.ones(1)}, {})

    def broken(tensors, path, header):
        path.write_bytes(b"half")
        raise checkpoint.SafetensorError("I/O error: No space left on device")

    monkeypatch.setattr(checkpoint.safetensors.torch, "save_file", broken)
    with pytest.raises(OSError, match=r"cannot be written .*No space left"):
        checkpoint.save(tmp_path / "state", {"x": torch.zeros(1)}, {})
    assert os.listdir(tmp_path) == ["state"]
    assert checkpoint.load(tmp_path / "state")[0]["x"].item() == 1


def test_the_file_is_replaced_by_renaming(tmp_path, monkeypatch):
    checkpoint.save(tmp_path / "state", {"x": torch.ones(1)}, {})
    seen = {}
    replace = os.replace

    def watched(source, target):
        seen["old"] = checkpoint.load(target)[0]["x"].item()
        seen["new"] = checkpoint.load(source)[0]["x"].item()
        replace(source, target)

    monkeypatch.setattr(os, "replace", watched)
    checkpoint.save(tmp_path / "state", {"x": torch.zeros(1)}, {})
    assert seen == {"old": 1.0, "new": 0.0}


def test_sweep_removes_what_killed_processes_left_and_nothing_else(tmp_path):
    kept = ["state", ".hidden", ".git.ignore", "state.123"]
    for name in [*kept, ".state.safetensors.4321", ".metrics.json.9"]:
        (tmp_path / name).write_text("x")
    checkpoint.sweep(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted(kept)
    checkpoint.sweep(tmp_path / "nowhere")


@pytest.mark.parametrize("cut", [0, 5, 60, -1])
def test_a_damaged_file_raises_one_sentence(tmp_path, cut):
    path = tmp_path / "state"
    checkpoint.save(path, {"x": torch.ones(100)}, {})
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ValueError, match=r"state cannot be read .*damaged or of another kind"):
        checkpoint.load(path)


def test_a_missing_file_raises_one_sentence(tmp_path):
    with pytest.raises(ValueError, match="cannot be read"):
        checkpoint.load(tmp_path / "state")


@pytest.mark.parametrize(
    ("header", "seen"),
    [
        (None, "None"),
        ({"nearkin": json.dumps({"format": 99})}, "99"),
        ({"nearkin": "[1]"}, "None"),
        ({"format": "pt"}, "None"),
    ],
)
def test_another_format_raises_and_is_named(tmp_path, header, seen):
    save_file({"x": torch.ones(1)}, tmp_path / "state", header)
    with pytest.raises(ValueError, match=rf"has format {seen}; this version .* reads format 1"):
        checkpoint.load(tmp_path / "state")


MAKERS = {
    "sgd": lambda ps: torch.optim.SGD(ps, lr=0.1),
    "momentum": lambda ps: torch.optim.SGD(ps, lr=0.1, momentum=0.9, nesterov=True),
    "adam": lambda ps: torch.optim.Adam(ps, lr=0.1),
    "adamw": lambda ps: torch.optim.AdamW(ps, lr=0.1, amsgrad=True),
}


def stepped(net, optimizer, seed):
    torch.manual_seed(seed)
    net(torch.randn(5, 3)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("name", MAKERS)
def test_an_optimizer_goes_on_as_if_it_had_never_stopped(tmp_path, name):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    optimizer = MAKERS[name](net.parameters())
    for seed in range(3):
        stepped(net, optimizer, seed)
    tensors, plain = checkpoint.pack("optimizer/a", optimizer.state_dict())
    path = tmp_path / "state"
    checkpoint.save(path, {**tensors, "optimizer/ab/0/x": torch.ones(1)}, {"plain": plain})

    again = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    again.load_state_dict(net.state_dict())
    resumed = MAKERS[name](again.parameters())
    read, facts = checkpoint.load(path)
    checkpoint.unpack("optimizer/a", read, facts["plain"], resumed)
    for seed in range(3, 6):
        stepped(net, optimizer, seed)
        stepped(again, resumed, seed)
    for p, q in zip(net.parameters(), again.parameters(), strict=True):
        assert torch.equal(p, q)


def test_a_parameter_that_never_had_a_gradient_has_no_state(tmp_path):
    net = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
    net[0](torch.ones(1, 2)).sum().backward()
    optimizer.step()
    tensors, plain = checkpoint.pack("o", optimizer.state_dict())
    assert {name.split("/")[1] for name in tensors} == {"0", "1"}
    checkpoint.unpack("o", tensors, plain, optimizer)
    assert net[1].weight not in optimizer.state
