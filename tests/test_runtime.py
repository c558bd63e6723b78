"""Keys and draws, keyed dropout, global BatchNorm in one process, slices, devices, first works."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from nearkin import runtime
from nearkin.core import Batch
from nearkin.runtime import (
    GlobalBatchNorm,
    KeyedDropout,
    Shards,
    begin_step,
    choose_device,
    first_then_all,
    gather,
    keyed,
    mix,
    prepare_encoder,
    row_keys,
    seed_all,
    share,
    uniform,
)

ROWS = torch.arange(20_000)


@given(st.integers(0, 2**40), st.integers(0, 10_000), st.integers(0, 10**9))
@settings(max_examples=50, deadline=None)
def test_a_row_key_is_a_function_of_seed_epoch_and_row_alone(seed, epoch, row):
    alone = row_keys(seed, epoch, torch.tensor([row]))
    among = row_keys(seed, epoch, torch.tensor([row + 5, row, 3]))
    assert alone.dtype == torch.int64
    assert alone[0] == among[1]


def test_row_keys_differ_by_row_by_epoch_and_by_seed():
    keys = torch.cat([row_keys(s, e, ROWS) for s, e in ((0, 0), (0, 1), (1, 0), (1, 1))])
    assert len(keys.unique()) == len(keys)


def test_mix_tells_the_order_and_the_number_of_numbers():
    assert len({mix(1, 2), mix(2, 1), mix(1), mix(1, 2, 0), mix(0, 1, 2)}) == 5
    assert all(0 <= mix(seed, -seed) < 1 << 63 for seed in range(100))


def test_uniform_draws_lie_in_the_unit_interval_with_its_mean_and_variance():
    draws = uniform(row_keys(0, 0, ROWS), 8).double()
    assert draws.shape == (len(ROWS), 8)
    assert draws.min() >= 0
    assert draws.max() < 1
    # Standard errors of 20,000 draws: 0.002 of the mean, 0.0006 of the variance.
    assert draws.mean(0).sub(1 / 2).abs().max() < 0.01
    assert draws.var(0).sub(1 / 12).abs().max() < 0.003
    shares = torch.histc(draws.flatten(), 16, 0, 1) / draws.numel()
    assert shares.sub(1 / 16).abs().max() < 0.003


def test_uniform_draws_of_neighbors_are_uncorrelated():
    keys = row_keys(7, 3, ROWS)
    a, b = uniform(keys, 4, stream=1).double(), uniform(keys, 4, stream=2).double()
    later = uniform(row_keys(7, 4, ROWS), 4, stream=1).double()
    pairs = [(a[:-1], a[1:]), (a[:, :-1], a[:, 1:]), (a, b), (a, later)]
    for x, y in pairs:
        correlation = torch.corrcoef(torch.stack([x.flatten(), y.flatten()]))[0, 1]
        assert correlation.abs() < 0.02


def test_uniform_is_a_function_of_key_and_stream_alone():
    keys = row_keys(0, 0, ROWS[:50])
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    assert torch.equal(uniform(keys, 5)[order], uniform(keys[order], 5))
    assert torch.equal(uniform(keys, 5)[:, :3], uniform(keys, 3))


def dropped(drop: KeyedDropout, x: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    with keyed(keys):
        return drop(x)


def test_keyed_dropout_gives_a_row_the_same_mask_in_every_order_and_split():
    drop, keys, x = KeyedDropout(0.4, 1), row_keys(0, 0, ROWS[:64]), torch.ones(64, 3, 5)
    whole = dropped(drop, x, keys)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(1))
    assert torch.equal(dropped(drop, x, keys[order]), whole[order])
    parts = [dropped(drop, x[s], keys[s]) for s in (slice(0, 10), slice(10, 64))]
    assert torch.equal(torch.cat(parts), whole)


def test_keyed_dropout_zeroes_a_share_of_p_and_scales_the_rest():
    out = dropped(KeyedDropout(0.4, 1), torch.ones(2000, 20), row_keys(0, 0, ROWS[:2000]))
    assert sorted(out.unique().tolist()) == [0.0, pytest.approx(1 / 0.6)]
    assert (out == 0).float().mean() == pytest.approx(0.4, abs=0.01)


def test_two_keyed_dropouts_and_two_uses_of_one_draw_other_masks():
    keys, x = row_keys(0, 0, ROWS[:32]), torch.ones(32, 32)
    first, second = KeyedDropout(0.5, 1), KeyedDropout(0.5, 2)
    with keyed(keys):
        masks = [first(x), first(x), second(x)]
    again = dropped(first, x, keys)
    assert torch.equal(again, masks[0])
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert (masks[a] == masks[b]).float().mean() == pytest.approx(0.5, abs=0.08)


def test_keyed_dropout_of_no_rows_is_no_rows():
    assert dropped(KeyedDropout(0.5, 1), torch.ones(0, 4), ROWS[:0]).shape == (0, 4)


def test_keyed_dropout_does_nothing_in_evaluation_and_is_ordinary_without_keys():
    drop, x = KeyedDropout(0.5, 1), torch.ones(100, 10)
    torch.manual_seed(0)
    assert 300 < int((drop(x) == 0).sum()) < 700
    assert torch.equal(dropped(drop.eval(), x, ROWS[:100]), x)


def test_prepare_encoder_keys_the_dropouts_and_keeps_the_rest():
    inner = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.1), nn.BatchNorm1d(3))
    encoder = prepare_encoder(nn.Sequential(inner, nn.Dropout(0.2)))
    drops = [m for m in encoder.modules() if isinstance(m, KeyedDropout)]
    assert [m.p for m in drops] == [0.1, 0.2]
    assert len({m.stream for m in drops}) == 2
    assert isinstance(inner[2], nn.BatchNorm1d)


def test_a_dropout_that_stands_in_two_places_stays_one_and_is_keyed_in_both():
    drop = nn.Dropout(0.5)
    encoder = prepare_encoder(nn.Sequential(drop, nn.Linear(4, 4), nn.Sequential(drop)))
    assert isinstance(encoder[0], KeyedDropout)
    assert encoder[0] is encoder[2][0]


def test_prepare_encoder_keeps_what_stands_in_no_place_and_the_root():
    module = nn.Module()
    module.register_module("nothing", None)
    assert prepare_encoder(module) is module
    assert isinstance(prepare_encoder(nn.Dropout(0.5).eval()), KeyedDropout)
    assert not prepare_encoder(nn.Dropout(0.5).eval()).training


@pytest.mark.parametrize("shape", [(8, 3), (4, 3, 5), (4, 3, 5, 2)])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_global_batchnorm_in_one_process_is_torchs(shape, momentum):
    torch.manual_seed(0)
    kind = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d}[len(shape)]
    theirs, ours = kind(3, momentum=momentum), GlobalBatchNorm(3, momentum=momentum)
    for _ in range(3):
        x = torch.randn(shape)
        assert torch.equal(ours(x), theirs(x))
    assert torch.equal(ours.eval()(x), theirs.eval()(x))
    for key, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[key], value)


@given(st.integers(0, 300), st.integers(1, 16))
@settings(max_examples=50, deadline=None)
def test_slices_of_all_processes_follow_each_other_and_differ_by_one_at_most(count, processes):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runtime, "world", lambda: processes)
        slices = [share(count, place) for place in range(processes)]
    rows = [row for s in slices for row in range(s.start, s.stop)]
    assert rows == list(range(count))
    sizes = [s.stop - s.start for s in slices]
    assert max(sizes) - min(sizes) <= 1


def test_shards_of_one_process_are_everything():
    values = torch.arange(5.0)
    assert Shards().slice(5) == slice(0, 5)
    assert Shards().concatenate(values) is values


def test_auto_is_a_device_that_computes():
    device = choose_device("auto")
    assert torch.ones(2, device=device).sum().item() == 2


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "meta", "hpu", ""])
def test_a_device_that_is_not_there_raises_one_sentence(name):
    with pytest.raises(ValueError, match="is not to be had here") as raised:
        choose_device(name)
    assert repr(name) in str(raised.value)
    assert len(str(raised.value)) < 250


def test_seeds_decide_the_draws():
    seed_all(1, 2)
    first = torch.rand(4)
    seed_all(1, 3)
    assert not torch.equal(torch.rand(4), first)
    seed_all(1, 2)
    assert torch.equal(torch.rand(4), first)


def test_draws_after_the_gather_hang_on_the_step_and_not_on_what_was_drawn_before():
    z, batch = torch.ones(2, 2), Batch(None, label=torch.tensor([0, 1]))

    def after(step: int, before: int) -> torch.Tensor:
        begin_step(5, step)
        torch.rand(before)
        assert gather(z, batch)[0] is z
        return torch.rand(3)

    assert torch.equal(after(1, 0), after(1, 17))
    assert not torch.equal(after(1, 0), after(2, 0))


def test_one_process_makes_its_own_data_and_raises_its_own_errors():
    assert first_then_all(lambda: [1, 2]) == [1, 2]
    with pytest.raises(ZeroDivisionError):
        first_then_all(lambda: 1 // 0)
