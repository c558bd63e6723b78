"""Embeddings of many rows: equal to the plain ones, in order, and all as before at the end."""

import contextlib

import pytest
import torch
from torch import nn

from nearkin import extraction
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
