"""What tells modules apart: all that decides what they give, and nothing else."""

import importlib.util
from collections import OrderedDict
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nearkin import identities
from nearkin.identities import identity_of


@dataclass
class Way:
    """Settings in a class."""

    size: int


class Plain:
    """Settings in an object."""

    def __init__(self, size):
        self.size = size

    def grown(self, x):
        return x * self.size


class Net(nn.Module):
    """Holds anything."""

    def __init__(self, held=None, **more):
        super().__init__()
        self.held = held
        for name, value in more.items():
            setattr(self, name, value)

    def forward(self, x):
        return x


def net(held=None, **more):
    return identity_of(Net(held, **more))


def times(factor):
    return lambda x: x * factor


def buffered(value):
    made = Net()
    made.register_buffer("scale", torch.tensor(value), persistent=False)
    return identity_of(made)


def hooked(hook):
    made = Net()
    if hook is not None:
        made.register_forward_hook(hook)
    return identity_of(made)


def double(module, x, y):
    return 2 * y


PAIRS = {
    "numbers": (lambda: 1, lambda: 2),
    "kinds of numbers": (lambda: 1, lambda: 1.0),
    "texts": (lambda: "1", lambda: 1),
    "tensors": (lambda: torch.tensor([1.0]), lambda: torch.tensor([2.0])),
    "shapes": (lambda: torch.zeros(2, 3), lambda: torch.zeros(3, 2)),
    "bfloat16": (
        lambda: torch.ones(2, dtype=torch.bfloat16),
        lambda: torch.zeros(2, dtype=torch.bfloat16),
    ),
    "arrays": (lambda: np.ones(2), lambda: np.zeros(2)),
    "kinds of arrays": (lambda: np.zeros(2, np.int32), lambda: np.zeros(2, np.float32)),
    "dicts": (lambda: {"k": 1}, lambda: {"k": 2}),
    "keys": (lambda: {"k": 1}, lambda: {"l": 1}),
    "ordered dicts": (lambda: OrderedDict(a=[1]), lambda: OrderedDict(a=[2])),
    "nested": (lambda: [{"k": (torch.ones(1),)}], lambda: [{"k": (torch.zeros(1),)}]),
    "sets": (lambda: {"a", "b"}, lambda: {"a", "c"}),
    "functions of torch": (lambda: torch.relu, lambda: torch.sin),
    "functions with a source": (lambda: F.relu, lambda: F.gelu),
    "functions of one's own": (lambda: double, lambda: times),
    "closures": (lambda: times(1), lambda: times(2)),
    "partials": (lambda: partial(F.leaky_relu, negative_slope=1), lambda: partial(F.leaky_relu)),
    "numpy functions": (lambda: np.exp, lambda: np.log),
    "methods": (lambda: torch.Tensor.sin, lambda: torch.Tensor.cos),
    "bound methods": (lambda: Plain(1).grown, lambda: Plain(2).grown),
    "classes": (lambda: nn.ReLU, lambda: nn.GELU),
    "dataclasses": (lambda: Way(1), lambda: Way(2)),
    "objects": (lambda: Plain(1), lambda: Plain(2)),
    "modules in a list": (lambda: [nn.Dropout(0.1)], lambda: [nn.Dropout(0.2)]),
    "weights in a list": (lambda: [scaled(1.0)], lambda: [scaled(2.0)]),
    "parts": (nn.ReLU, nn.GELU),
    "dtypes": (lambda: torch.float32, lambda: torch.float64),
}


def scaled(factor):
    made = nn.Linear(1, 1)
    nn.init.constant_(made.weight, factor)
    nn.init.zeros_(made.bias)
    return made


@pytest.mark.parametrize("name", PAIRS)
def test_another_value_is_another_module_and_the_same_is_the_same(name):
    one, other = PAIRS[name]
    assert net(one()) is not None
    assert net(other()) is not None
    assert net(one()) == net(one())
    assert net(one()) != net(other())


def test_the_name_of_a_setting_counts_also_where_it_is_private():
    assert net(_scale=1.0) != net(_scale=2.0)
    assert net(a=1, b=2) != net(a=2, b=1)


def test_buffers_that_are_not_saved_count():
    assert buffered(1.0) == buffered(1.0)
    assert buffered(1.0) != buffered(2.0)


def test_hooks_count():
    assert hooked(double) == hooked(double)
    assert hooked(double) != hooked(None)


def test_the_mode_does_not_count_and_modules_in_cycles_are_told():
    made = Net([1])
    made.held.append(made.held)
    made.owner = [made]
    assert identity_of(made) == identity_of(made.eval()) is not None


@pytest.mark.parametrize("odd", [torch.Generator(), iter([1]), np.array([object()], object)])
def test_what_nobody_can_tell_has_no_identity(odd):
    assert net(odd) is None
    assert net({"deep": [odd]}) is None


CODE = """
from torch import nn
class Own(nn.Module):
    {constant}
    def forward(self, x):
        return x * {factor}
"""


def own(tmp_path, factor=1, constant="kind = 1", name="own"):
    path = tmp_path / f"{factor}{constant[-1]}" / f"{name}.py"
    path.parent.mkdir(exist_ok=True)
    path.write_text(CODE.format(factor=factor, constant=constant))
    spec = importlib.util.spec_from_file_location(name, path)
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made, path


def test_the_code_of_a_class_of_ones_own_counts(tmp_path, monkeypatch):
    def told(*settings):
        made, _ = own(tmp_path, *settings)
        monkeypatch.setitem(identities.sys.modules, made.__name__, made)
        return identity_of(made.Own())

    assert told() == told() is not None
    assert len({told(), told(2), told(1, "kind = 2"), told(1, "kind = 1", "else")}) == 4


def test_a_forward_that_is_put_into_a_class_counts(tmp_path, monkeypatch):
    made, _ = own(tmp_path)
    monkeypatch.setitem(identities.sys.modules, made.__name__, made)
    before = identity_of(made.Own())
    made.Own.forward = lambda self, x: x * 0
    assert identity_of(made.Own()) not in (before, None)


def test_without_a_source_the_file_counts_and_without_a_file_nothing_is_told(tmp_path, monkeypatch):
    def hidden(_):
        raise OSError

    made, path = own(tmp_path)
    monkeypatch.setattr(identities.inspect, "getsource", hidden)
    monkeypatch.setitem(identities.sys.modules, made.__name__, made)
    before = identity_of(made.Own())
    assert before is not None
    path.write_text(path.read_text() + "# longer")
    assert identity_of(made.Own()) not in (before, None)
    monkeypatch.delitem(identities.sys.modules, made.__name__)
    assert identity_of(made.Own()) is None
    assert identity_of(nn.Linear(1, 1)) is not None


@pytest.mark.parametrize("package", ["timm", "torchvision", "pillow"])
def test_the_versions_of_what_computes_count(package, monkeypatch):
    module, versions = scaled(1.0), identities.versions
    before = identity_of(module)
    monkeypatch.setattr(
        identities,
        "versions",
        lambda *names: ["0.1" if n == package else versions(n)[0] for n in names],
    )
    assert identity_of(module) != before


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_vit"])
def test_networks_of_timm_are_the_same_when_they_are_made_again(name):
    import timm

    def told():
        torch.manual_seed(0)
        return identity_of(timm.create_model(name, pretrained=False, num_classes=0))

    assert told() == told() is not None
