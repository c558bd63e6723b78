"""Embeddings of many rows: equal to the plain ones, in order, and all as before at the end."""

import contextlib

import pytest
import torch
from torch import nn

from nearkin import extraction
from nearkin.encoders.base import Given
from nearkin.extraction import extract, extracted
from nearkin.inputs import Taken

CPU = torch.device("cpu")


@pytest.fixture
def net():
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3))
    net = nn.Sequential(trunk, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(4))
    net(torch.randn(32, 3, 12, 12))
    return net


def pictures(rows):
    return torch.randn(rows, 3, 12, 12, generator=torch.Generator().manual_seed(1))


def plain(net, x):
    with torch.no_grad():
        z = net.eval()(x)
    net.train()
    return z


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_rows_are_embedded_in_evaluation_mode_and_every_mode_is_restored():
    net = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5), nn.Linear(3, 2)).train()
    net[0].eval()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    inputs = torch.randn(600, 3, generator=torch.Generator().manual_seed(0))
    z = extract(net, net, inputs, CPU)
    assert [m.training for m in net.modules()] == [True, False, True, True]
    assert all(torch.equal(value, net.state_dict()[key]) for key, value in before.items())
    assert not z.requires_grad
    torch.testing.assert_close(z, net.eval()(inputs).detach())


@pytest.mark.parametrize("rows", [0, 1, 63, 64, 300])
def test_extraction_equals_the_plain_module_in_order(net, rows, two_threads, monkeypatch):
    monkeypatch.setattr(extraction, "_NUMBERS", 7 * 3 * 12 * 12)
    x, told = pictures(rows), []
    z = extract(net, net, x, CPU, progress=lambda *said: told.append(said))
    torch.testing.assert_close(z, plain(net, x), rtol=1e-5, atol=1e-5)
    assert told[-1] == (rows, rows)
    assert torch.get_num_threads() == 2


def test_the_number_of_threads_changes_nothing(net, two_threads):
    x = pictures(700)
    two = extract(net, net, x, CPU)
    torch.set_num_threads(1)
    assert torch.equal(extract(net, net, x, CPU), two)


def test_bfloat16_is_near_and_float32_wide(net):
    def embed(x):
        with torch.autocast("cpu", torch.bfloat16):
            return net(x).float()

    x = pictures(200)
    z, exact = extract(net, embed, x, CPU, "bfloat16"), plain(net, x)
    assert z.dtype == torch.float32
    assert not torch.equal(z, exact)
    assert (z - exact).norm() < 0.02 * exact.norm()


class Made(Taken):
    """Pictures that are made when they are taken."""

    def __init__(self, x):
        self.x, self.shape, self.dtype = x, tuple(x.shape), x.dtype

    def take(self, rows, keys=None):
        assert keys is None
        return self.x[rows]


def test_rows_that_are_made_when_they_are_taken_are_embedded_in_order(net, two_threads):
    x = pictures(150)
    torch.testing.assert_close(extract(net, net, Made(x), CPU), extract(net, net, x, CPU))


def test_a_module_that_folds_to_something_else_is_embedded_plainly(net):
    class Moody(nn.Module):
        """Gives something else whenever it is folded."""

        def __init__(self):
            super().__init__()
            self.trunk = net

        def forward(self, x):
            folded = x.sum() > -1e9 and "forward" in vars(self.trunk)
            return self.trunk(x) * (3.0 if folded else 1.0)

    x = pictures(100)
    moody = Moody()
    assert torch.equal(extract(moody, moody, x, CPU), plain(net, x))


def test_an_error_or_a_stop_half_way_restores_modes_threads_and_forward(net, two_threads):
    def broken(x):
        if len(x) != 2:
            raise ZeroDivisionError
        return net(x)

    net.train()
    with pytest.raises(ZeroDivisionError):
        extract(net, broken, pictures(100), CPU)
    with contextlib.closing(extracted(net, net, pictures(600), CPU)) as parts:
        next(parts)
        assert not net.training
    assert net.training
    assert torch.get_num_threads() == 2
    assert all("forward" not in vars(part) for part in net.modules())


class Hooked(nn.Module):
    """Reads a layer inside by a hook that keeps its output."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        self.deep, self.last = nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3)
        self.deep.register_forward_hook(lambda module, x, y: setattr(self, "kept", y))

    def forward(self, x):
        self.last(self.deep(self.stem(x)))
        return self.kept.mean((2, 3))


class Stateful(nn.Module):
    """Keeps a map for a later part, and cannot be traced."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.last = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x):
        self.skip = self.stem(x)
        if not isinstance(x, torch.Tensor):
            raise TypeError
        return (self.last(self.skip) + self.skip).mean((2, 3))


class Traceable(Stateful):
    """The same, but it can be traced."""

    def forward(self, x):
        self.skip = self.stem(x)
        return (self.last(self.skip) + self.skip).mean((2, 3))


@pytest.fixture
def ways(monkeypatch):
    """The way in which rows were embedded."""
    seen = []

    def watch(name):
        way = getattr(extraction, name)

        def noted(*args):
            seen.append(name)
            return way(*args)

        monkeypatch.setattr(extraction, name, noted)

    watch("_side_by_side")
    watch("_one_by_one")
    return seen


@pytest.mark.parametrize("kind", [Hooked, Stateful, Traceable])
@pytest.mark.parametrize("inside", [False, True])
def test_what_keeps_something_in_its_forward_gives_its_own_rows(kind, inside, two_threads, ways):
    torch.manual_seed(0)
    net = kind()
    whole = Given(net, 8) if inside else net
    x = torch.randn(588, 3, 16, 16)
    with torch.no_grad():
        wanted = torch.cat([net.eval()(part) for part in x.split(50)])
    torch.testing.assert_close(extract(whole, whole, x, CPU), wanted, rtol=1e-4, atol=1e-5)
    assert ways == ["_one_by_one"]


def test_what_an_encoder_keeps_can_be_read_after_each_batch(two_threads):
    torch.manual_seed(0)
    net, x = Traceable(), torch.randn(200, 3, 16, 16)
    with torch.no_grad():
        wanted = net.eval().stem(x).mean((2, 3))

    def embed(x):
        net(x)
        return net.skip.mean((2, 3))

    torch.testing.assert_close(extract(net, embed, x, CPU), wanted, rtol=1e-4, atol=1e-5)


def test_graphs_and_modules_of_this_package_are_run_side_by_side(net, two_threads, ways):
    x = pictures(100)
    for module in (net, Given(net, 4), nn.ModuleDict({"encoder": net, "other": nn.Linear(2, 2)})):
        embed = module["encoder"] if isinstance(module, nn.ModuleDict) else module
        torch.testing.assert_close(
            extract(module, embed, x, CPU), plain(net, x), rtol=1e-5, atol=1e-5
        )
    assert ways == ["_side_by_side"] * 3


def test_a_module_beside_those_given_is_not_run_by_two_threads(net, two_threads, ways):
    class Beside(nn.Module):
        def forward(self, x):
            self.x = x
            return self.x + 1

    beside, x = Beside(), pictures(100)
    z = extract(net, lambda x: beside(net(x)), x, CPU)
    torch.testing.assert_close(z, plain(net, x) + 1, rtol=1e-5, atol=1e-5)
    assert ways == ["_one_by_one"]


def test_a_forward_that_is_called_by_that_name_is_seen(two_threads, ways):
    torch.manual_seed(0)
    net, x = Stateful(), torch.randn(100, 3, 16, 16)
    extract(net, net.forward, x, CPU)
    assert ways == ["_one_by_one"]


@pytest.mark.parametrize("rows", [1, 5, 97, 700, 1003])
def test_no_row_is_lost_or_moved_by_threads(rows, two_threads, monkeypatch, ways):
    monkeypatch.setattr(extraction, "_NUMBERS", 8)
    monkeypatch.setattr(extraction, "_ENOUGH", 1)
    net = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Flatten())
    nn.init.ones_(net[0].weight)
    nn.init.zeros_(net[0].bias)
    x = torch.arange(float(rows)).view(-1, 1, 1, 1)
    assert torch.equal(extract(net, net, x, CPU), x[:, :, 0, 0])
    assert ways == ["_side_by_side"]


def test_rows_are_not_pinned_for_a_cpu(net, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.Tensor, "pin_memory", None)
    assert extract(net, net, Made(pictures(20)), CPU).shape == (20, 4)


def test_a_share_of_many_rows_is_embedded_as_all_of_them_are(net):
    x = pictures(80)
    whole = extract(net, net, x, CPU)
    shares = [extract(net, net, part, CPU, count=80) for part in (x[:40], x[40:79], x[79:])]
    assert torch.equal(torch.cat(shares), whole)
    assert extract(net, net, x[:0], CPU, count=80).shape == (0, 4)
    few = extract(net, net, x[:40], CPU)
    assert torch.equal(few, plain(net, x[:40]))
    assert not torch.equal(few, whole[:40])
