"""Folded convolutions: equal to the plain ones, from the weights as they are, and gone at the
end."""

import operator

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nearkin.folding import folded

CPU = torch.device("cpu")


def settle(net):
    """Statistics and scales as training leaves them, then evaluation mode."""
    generator = torch.Generator().manual_seed(0)
    for part in net.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.running_mean.normal_(0, 0.3, generator=generator)
            part.running_var.uniform_(0.5, 2, generator=generator)
            if part.affine:
                nn.init.uniform_(part.weight, 0.5, 1.5, generator=generator)
                nn.init.normal_(part.bias, generator=generator)
    return net.eval()


class Block(nn.Module):
    """Two convolutions around a shortcut; `act` after each, `join` at the end."""

    def __init__(self, act=F.relu, join=operator.add, shortcut=True):
        super().__init__()
        self.one = nn.Conv2d(6, 6, 3, padding=1, bias=False)
        self.norm_one = nn.BatchNorm2d(6)
        self.two = nn.Conv2d(6, 6, 3, padding=1)
        self.norm_two = nn.BatchNorm2d(6, affine=False)
        self.across = nn.Conv2d(6, 6, 1) if shortcut else nn.Identity()
        self.act, self.join = act, join

    def forward(self, x):
        y = self.act(self.norm_one(self.one(x)))
        return self.act(self.join(self.norm_two(self.two(y)), self.across(x)))


def pictures(rows=5, channels=6, side=9):
    return torch.randn(rows, channels, side, side, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def assert_equal_and_folded(net, x, tolerance=1e-5):
    before = x.clone()
    plain = net(x)
    with folded(net, CPU) as anything:
        assert anything
        fast = net(x)
        again = net(x)
    assert torch.equal(fast, again)
    assert torch.equal(x, before)
    torch.testing.assert_close(fast, plain, rtol=tolerance, atol=tolerance)
    assert torch.equal(net(x), plain)


@pytest.mark.parametrize("act", [F.relu, F.relu6, F.silu, F.hardswish, torch.tanh, nn.ReLU6()])
@pytest.mark.parametrize("shortcut", [True, False])
def test_folding_changes_float32_in_the_last_digits_only(act, shortcut):
    torch.manual_seed(0)
    assert_equal_and_folded(settle(Block(act, shortcut=shortcut)), pictures())


@pytest.mark.parametrize("join", [operator.iadd, torch.add, lambda a, b: b + a, torch.maximum])
def test_any_way_to_join_two_maps_keeps_its_value(join):
    torch.manual_seed(0)
    assert_equal_and_folded(settle(nn.Sequential(Block(join=join), Block(join=join))), pictures())


def test_a_map_that_is_read_again_is_not_overwritten():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.third = (nn.Conv2d(6, 6, 1) for _ in range(3))

        def forward(self, x):
            y = self.first(x)
            z = self.second(y) + y
            return z * y + self.third(z)

    torch.manual_seed(0)
    assert_equal_and_folded(Net().eval(), pictures())


def test_a_convolution_whose_output_others_read_keeps_its_norm():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(6, 6, 3), nn.BatchNorm2d(6)

        def forward(self, x):
            y = self.conv(x)
            return self.norm(y) * y.sigmoid()

    torch.manual_seed(0)
    assert_equal_and_folded(settle(Net()), pictures())


def test_a_convolution_that_is_used_twice_is_folded_into_neither_norm():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.deep = nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 1)
            self.one, self.two, self.three = (nn.BatchNorm2d(6) for _ in range(3))

        def forward(self, x):
            return self.three(self.deep(self.two(self.conv(self.one(self.conv(x))))))

    torch.manual_seed(0)
    assert_equal_and_folded(settle(Net()), pictures())


@pytest.mark.parametrize("settings", [{"groups": 6}, {"stride": 2}, {"dilation": 2}])
def test_groups_strides_and_dilations_stay(settings):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(6, 12, 3, **settings), nn.BatchNorm2d(12), nn.ReLU())
    assert_equal_and_folded(settle(net), pictures(side=11))


def test_float64_and_one_dimension_fold_to_their_own_rounding():
    torch.manual_seed(0)
    net = settle(nn.Sequential(nn.Conv2d(6, 4, 3), nn.BatchNorm2d(4), nn.ReLU())).double()
    assert_equal_and_folded(net, pictures().double(), 1e-13)
    line = settle(nn.Sequential(nn.Conv1d(6, 4, 3), nn.BatchNorm1d(4)))
    assert_equal_and_folded(line, pictures()[:, :, 0])


def test_weights_and_state_are_untouched_and_the_graph_follows_the_weights_of_now():
    torch.manual_seed(0)
    net = settle(Block())
    pointers = {k: (v.data_ptr(), v.clone()) for k, v in net.state_dict().items()}
    with folded(net, CPU):
        assert list(net.state_dict()) == list(pointers)
        net(pictures())
    for key, value in net.state_dict().items():
        assert value.data_ptr() == pointers[key][0]
        assert torch.equal(value, pointers[key][1])
    with torch.no_grad():
        net.one.weight.mul_(-1)
    assert_equal_and_folded(net, pictures())


def test_under_autocast_the_result_is_as_near_as_the_plain_one():
    torch.manual_seed(0)
    net, x = settle(nn.Sequential(*(Block() for _ in range(3)))), pictures()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        plain = net(x)
        with folded(net, CPU) as anything:
            assert anything
            fast = net(x)
    exact = net(x)
    assert fast.dtype == plain.dtype == torch.bfloat16
    assert (fast - exact).norm() < 1.5 * (plain - exact).norm() + 1e-3 * exact.norm()


class Choosy(nn.Module):
    """Decides by its numbers, so that it cannot be traced; its trunk can."""

    def __init__(self, trunk):
        super().__init__()
        self.trunk = trunk

    def forward(self, x):
        return self.trunk(x) if x.sum() > -1e9 else x


def test_what_cannot_be_traced_runs_as_before_around_parts_that_can():
    torch.manual_seed(0)
    net = settle(Choosy(Block()))
    assert_equal_and_folded(net, pictures())
    with folded(net, CPU):
        assert "forward" in vars(net.trunk)
        assert "forward" not in vars(net)
    assert "forward" not in vars(net.trunk)


def test_modules_with_hooks_and_without_convolutions_are_left_alone():
    torch.manual_seed(0)
    net, seen = settle(Block()), []
    net.one.register_forward_hook(lambda *_: seen.append(1))
    with folded(net, CPU):
        net(pictures())
    assert seen == [1]
    with folded(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).eval(), CPU) as anything:
        assert not anything


class Keeping(nn.Module):
    """Keeps its map in one of several ways, and may fail after it."""

    def __init__(self, way, fails=False):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(6, 6, 3), nn.BatchNorm2d(6))
        self.last, self.maps, self.named, self.way, self.fails = None, [], {}, way, fails

    def forward(self, x):
        y = self.stem(x)
        if self.way == "attribute":
            self.last = y
        elif self.way == "list":
            self.maps.append(y)
        elif self.way == "dict":
            self.named["y"] = y
        elif self.way == "new":
            self.fresh = y
        elif self.way == "part":
            self.stem[0].seen = y
        if self.fails and y.sum() > 0:
            raise ZeroDivisionError
        return y * 2


@pytest.mark.parametrize("way", ["attribute", "list", "dict", "new", "part"])
@pytest.mark.parametrize("fails", [True, False])
def test_tracing_leaves_no_trace_and_what_keeps_its_maps_still_does(way, fails):
    torch.manual_seed(0)
    net = settle(Keeping(way, fails))
    before = {name: dict(vars(part)) for name, part in net.named_modules()}
    with folded(net, CPU) as parts:
        assert parts == [net.stem]
    assert {name: vars(part) for name, part in net.named_modules()} == before
    assert (net.last, net.maps, net.named) == (None, [], {})


def test_a_constant_made_in_forward_is_folded_and_leaves_nothing():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(6, 6, 3)

        def forward(self, x):
            return self.conv(x) * torch.tensor([2.0])

    torch.manual_seed(0)
    net = Net().eval()
    before = set(vars(net))
    assert_equal_and_folded(net, pictures())
    assert set(vars(net)) == before


def test_a_batchnorm_of_ones_own_that_keeps_something_is_no_part_of_a_graph():
    class Noting(nn.BatchNorm2d):
        def forward(self, x):
            self.seen = x
            return super().forward(x)

    torch.manual_seed(0)
    net = settle(nn.Sequential(nn.Conv2d(6, 6, 3), Noting(6)))
    with folded(net, CPU) as parts:
        assert net not in parts


def test_an_error_within_leaves_the_module_as_it_was():
    net = settle(Block())
    with pytest.raises(ZeroDivisionError), folded(net, CPU):
        raise ZeroDivisionError
    assert "forward" not in vars(net)


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_convnext", "test_vit"])
def test_networks_of_timm_fold_to_themselves(name):
    import timm

    torch.manual_seed(0)
    net = settle(timm.create_model(name, pretrained=False, num_classes=0))
    assert_equal_and_folded(net, torch.randn(2, 3, 160, 160), 1e-4)
