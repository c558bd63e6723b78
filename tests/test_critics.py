"""The critic of distances: the paper's network, decreasing from the start."""

import pytest
import torch

from nearkin.critics import DistanceCritic

pytestmark = pytest.mark.usefixtures("one_thread")


def slopes(critic):
    d = torch.linspace(0.001, 2, 200, requires_grad=True)
    (slope,) = torch.autograd.grad(critic(d).sum(), d)
    return slope


@pytest.mark.parametrize("seed", range(20))
def test_it_decreases_from_the_start(seed):
    torch.manual_seed(seed)
    critic = DistanceCritic()
    assert sum(p.numel() for p in critic.parameters()) == 33409
    assert slopes(critic).max().item() < -0.5
    assert slopes(critic).mean().item() == pytest.approx(-1, abs=0.4)


def test_without_biases_its_slope_is_about_minus_one_and_its_zero_is_zero():
    found = []
    for seed in range(200):
        torch.manual_seed(seed)
        critic = DistanceCritic()
        for name, parameter in critic.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.zeros_(parameter)
        found.append(slopes(critic).mean().item())
        with torch.no_grad():
            assert critic(torch.zeros(1)).item() == 0
            # V is positively homogeneous, so that it has no other zero.
            torch.testing.assert_close(critic(torch.tensor([2.0])), 2 * critic(torch.ones(1)))
    found = torch.tensor(found)
    assert found.mean().item() == pytest.approx(-0.995, abs=0.015)
    assert found.std().item() == pytest.approx(0.058, abs=0.012)
    assert found.max() < -0.7


def test_it_keeps_any_shape():
    critic = DistanceCritic(width=8, layers=1)
    d = torch.rand(3, 4)
    torch.testing.assert_close(critic(d)[1, 2], critic(d[1, 2]))
    assert critic(d).shape == (3, 4)


def test_it_is_the_formula():
    critic = DistanceCritic(width=3, layers=1).double()
    first, middle, last = (m for m in critic.net if isinstance(m, torch.nn.Linear))

    def leaky(values):
        return [v if v > 0 else 0.1 * v for v in values]

    def through(linear, values):
        rows = zip(linear.weight.tolist(), linear.bias.tolist(), strict=True)
        return [sum(w * v for w, v in zip(row, values, strict=True)) + b for row, b in rows]

    for d in (0.0, 0.4, 1.7):
        hidden = leaky(through(middle, leaky(through(first, [d]))))
        (expected,) = through(last, hidden)
        found = critic(torch.tensor(d, dtype=torch.float64)).item()
        assert found == pytest.approx(expected - d, abs=1e-12)


@pytest.mark.parametrize(("key", "value"), [("width", 0), ("layers", -1)])
def test_sizes_below_one_are_refused(key, value):
    with pytest.raises(ValueError, match=f"a critic needs {key} of at least 1, not {value}"):
        DistanceCritic(**{key: value})
