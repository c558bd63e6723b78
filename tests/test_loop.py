"""The loop: updates at the yield, guards, schedules, selection, frozen BatchNorm, interruption."""

import math
import os
import signal
import threading
from dataclasses import replace

import pytest
import torch
from torch import nn

from nearkin import loop as loops
from nearkin.compare import Classifier, InBatch
from nearkin.core import Terms, Turn
from nearkin.data.base import Table
from nearkin.encoders.base import Given
from nearkin.inputs import Taken
from nearkin.learners import optimizers_of
from nearkin.loop import Interrupted, Loop, TrainingError, update
from nearkin.losses.classification import cross_entropy
from nearkin.losses.pairwise import contrastive
from nearkin.methods.base import Method, Supervised
from nearkin.objectives.compared import Compared
from nearkin.sample import Uniform

CPU = torch.device("cpu")


def table(rows=24, classes=3):
    generator = torch.Generator().manual_seed(0)
    return Table(
        inputs=torch.randn(rows, 4, generator=generator),
        label=torch.arange(rows) % classes,
        names=tuple(map(str, range(classes))),
        ids=tuple(map(str, range(rows))),
    )


def sgd(groups):
    return torch.optim.SGD(groups, lr=0.1, weight_decay=0.01)


def loop_of(method, make=sgd, schedule=lambda i: 1.0, batch=8, epochs=1, **settings):
    optimizers = optimizers_of(method.learners(), {"default": make})
    sampler = Uniform(batch)
    return Loop(
        method, optimizers, schedule, sampler, epochs=epochs, seed=0, device=CPU, **settings
    )


def trained(method, **settings):
    loop = loop_of(method, **settings)
    loop.run(table(), lambda epoch: {}, None)
    return loop


def encoder():
    torch.manual_seed(0)
    return Given(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)), 3)


def copied(module):
    return {name: p.detach().clone() for name, p in module.state_dict().items()}


def unmoved(before, module):
    after = module.state_dict()
    return {name for name, value in before.items() if torch.equal(value, after[name])}


class Own(Method):
    """A method whose turns are given as a function of itself and the batch."""

    def __init__(self, turns):
        super().__init__()
        self.weight, self.other = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
        for part in (self.weight, self.other):
            nn.init.ones_(part.weight)
        self._turns, self.seen = turns, []

    def learners(self):
        return {"weight": self.weight, "other": self.other}

    def turns(self, batch):
        return self._turns(self, batch)


def bare(groups):
    return torch.optim.SGD(groups, lr=0.1)


def half_square(method):
    return Terms(other={"joint": method.weight.weight.square().sum() / 2})


# Turns


def test_the_update_happens_at_the_yield():
    def turns(method, batch):
        before = method.weight.weight.item()
        yield Turn(half_square(method), ("weight",))
        method.seen.append((before, method.weight.weight.item()))
        yield Turn(half_square(method), ("weight",))
        method.seen.append(method.weight.weight.item())

    method = Own(turns)
    trained(method, make=bare, batch=24)
    assert method.seen == [(1.0, pytest.approx(0.9)), pytest.approx(0.81)]
    assert method.other.weight.item() == 1.0


def test_only_the_learners_named_move_though_the_loss_reaches_all():
    def turns(method, batch):
        both = (method.weight.weight * method.other.weight).sum()
        yield Turn(Terms(tightness=both), ("other",))
        method.seen.append(method.weight.weight.grad)

    method = Own(turns)
    trained(method, make=bare, batch=24)
    assert (method.weight.weight.item(), method.other.weight.item()) == (1.0, pytest.approx(0.9))
    assert method.seen == [None]


def test_gradients_of_one_turn_do_not_reach_the_next():
    def turns(method, batch):
        for _ in range(3):
            yield Turn(Terms(contrast=method.weight.weight.sum()), ("weight",))

    method = Own(turns)
    trained(method, make=bare, batch=24)
    assert method.weight.weight.item() == pytest.approx(0.7)


def test_a_batch_holds_the_rows_their_columns_their_index_and_a_key_of_each():
    data = table().with_columns(pair=torch.arange(24) * 10, index=torch.zeros(24))
    said = []

    def turns(method, batch):
        said.append(batch)
        yield Turn(half_square(method), ("weight",))

    loop_of(Own(turns), make=bare).run(data, lambda epoch: {}, None)
    rows = torch.cat([batch["index"] for batch in said])
    assert sorted(rows.tolist()) == list(range(24))
    assert torch.equal(torch.cat([batch["pair"] for batch in said]), rows * 10)
    assert torch.equal(torch.cat([batch["label"] for batch in said]), rows % 3)
    assert torch.equal(torch.cat([batch.inputs for batch in said]), data.inputs[rows])
    assert len(torch.cat([batch["key"] for batch in said]).unique()) == 24


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_stops_with_its_parts(value):
    def turns(method, batch):
        w = method.weight.weight.sum()
        yield Turn(Terms(tightness=w * value, contrast=w * 2), ("weight",))

    method = Own(turns)
    with pytest.raises(TrainingError, match=rf"the loss is {value} \(.*contrast 2.*clip"):
        trained(method)
    assert method.weight.weight.item() == 1.0


def test_a_total_of_zero_without_a_graph_is_skipped_counted_and_warned_of_once():
    def turns(method, batch):
        yield Turn(Terms(), ("weight",))

    method = Own(turns)
    with pytest.warns(UserWarning, match="nothing to learn from") as said:
        loop = trained(method)
    assert len(said) == 1
    assert loop.state.idle == 3
    assert loop.state.step == 3
    assert method.weight.weight.item() == 1.0


def test_a_total_without_a_graph_that_is_not_zero_raises():
    def turns(method, batch):
        yield Turn(Terms(tightness=torch.tensor(0.5)), ("weight",))

    with pytest.raises(TrainingError, match=r"total 0\.5 but no graph to learn from"):
        trained(Own(turns))


def test_a_turn_whose_loss_does_not_depend_on_its_learners_raises():
    def turns(method, batch):
        yield Turn(half_square(method), ("other",))

    with pytest.raises(TrainingError, match="trains other, but its loss does not depend on them"):
        trained(Own(turns))


def test_an_unknown_learner_in_a_turn_raises_and_names_the_known():
    def turns(method, batch):
        yield Turn(half_square(method), ("weight", "wieght"))

    with pytest.raises(TrainingError, match=r"'wieght', which is no learner.* are weight, other"):
        trained(Own(turns))


def test_update_in_a_loop_of_ones_own_names_the_optimizers_it_knows():
    method = Own(None)
    turn = Turn(half_square(method), ("weight",))
    with pytest.raises(TrainingError, match=r"trains weight, .* the optimizers are net"):
        update(turn, {"net": bare(method.other.parameters())})
    assert update(turn, {"weight": bare(method.weight.parameters())})
    assert method.weight.weight.item() == pytest.approx(0.9)


def test_a_learner_without_parameters_may_take_part_in_a_turn():
    method = Supervised(encoder(), Compared(InBatch(), contrastive))
    before = copied(method)
    trained(method)
    assert unmoved(before, method) == set()


def test_a_parameter_that_a_turn_does_not_reach_stays_even_under_adamw():
    def turns(method, batch):
        yield Turn(half_square(method), ("weight", "other"))

    method = Own(turns)
    trained(method, make=lambda groups: torch.optim.AdamW(groups, lr=0.1, weight_decay=0.5))
    assert method.other.weight.item() == 1.0
    assert method.weight.weight.item() < 0.9


def test_clip_bounds_the_norm_of_the_gradient_of_a_turn():
    def turns(method, batch):
        total = 30 * method.weight.weight.sum() + 40 * method.other.weight.sum()
        yield Turn(Terms(tightness=total), ("weight", "other"))

    method = Own(turns)
    trained(method, make=bare, batch=24, clip=0.5)
    moved = 1 - method.weight.weight.item(), 1 - method.other.weight.item()
    assert moved == (pytest.approx(0.1 * 0.3, rel=1e-3), pytest.approx(0.1 * 0.4, rel=1e-3))


def test_a_parameter_that_no_optimizer_holds_stops_before_the_first_batch():
    method = Own(None)
    optimizers = optimizers_of({"weight": method.weight}, {"default": sgd})
    with pytest.raises(ValueError, match=r"other\.weight would never learn"):
        Loop(method, optimizers, lambda i: 1.0, Uniform(8), epochs=1, seed=0, device=CPU)


# Schedules, guards, BatchNorm


def test_the_schedule_scales_every_learning_rate_at_every_step():
    rates = []

    def turns(method, batch):
        yield Turn(half_square(method), ("weight",))
        rates.append([o.param_groups[0]["lr"] for o in method.optimizers.values()])

    method = Own(turns)
    loop = loop_of(method, make=bare, schedule=lambda i: (i + 1) / 10)
    loop.optimizers["other"].param_groups[0]["initial_lr"] = 1.0
    object.__setattr__(method, "optimizers", loop.optimizers)
    loop.run(table(), lambda epoch: {}, None)
    assert rates == [pytest.approx([k / 100, k / 10]) for k in (1, 2, 3)]


def test_a_step_uses_the_rate_of_its_own_number():
    def turns(method, batch):
        yield Turn(Terms(tightness=method.weight.weight.sum()), ("weight",))

    method = Own(turns)
    trained(method, make=bare, schedule=lambda i: 1.0 if i == 1 else 0.0)
    assert method.weight.weight.item() == pytest.approx(0.9)


def test_collapse_is_warned_of_once_a_run(monkeypatch):
    monkeypatch.setattr(loops, "DIAGNOSE_EVERY", 1)
    method = Supervised(encoder(), Compared(Classifier(3, 3), cross_entropy))
    with torch.no_grad():
        method.encoder.module[2].weight.zero_()
    for _ in range(2):
        with pytest.warns(UserWarning, match="the embeddings have collapsed: at step 0") as said:
            trained(method, make=lambda groups: torch.optim.SGD(groups, lr=1e-6))
        assert len(said) == 1


def test_records_are_written_every_seven_steps_and_at_every_epoch():
    records = []

    def log(record):
        records.append(record)
        return len(records)

    method = Supervised(encoder(), Compared(Classifier(3, 3), cross_entropy))
    loop = loop_of(method, batch=2, epochs=2, log=log)
    loop.run(table(), lambda epoch: {"validation": {"recall@1": epoch}}, None)
    steps = [r for r in records if r["event"] == "step"]
    assert [r["step"] for r in steps] == [0, 7, 14, 21]
    assert all(r["learns"] == ["encoder", "objective"] and r["turns"] == 1 for r in steps)
    assert {"total", "tightness", "contrast"} <= set(steps[0]["terms"])
    assert {"pull", "push", "cosine_mean", "effective_rank"} <= set(steps[0])
    assert "pull" not in steps[1]
    epochs = [r for r in records if r["event"] == "epoch"]
    assert [(r["epoch"], r["step"]) for r in epochs] == [(0, 12), (1, 24)]
    assert [r["validation"]["recall@1"] for r in epochs] == [0, 1]
    assert loop.state.logged == len(records)


class Made(Taken):
    """The rows of a tensor, made when they are taken; the row `broken` is not."""

    def __init__(self, rows, broken=-1):
        self.rows, self.shape, self.dtype, self.broken = rows, rows.shape, rows.dtype, broken

    def take(self, rows, keys=None):
        if self.broken in rows:
            raise ValueError("this row is broken")
        return self.rows[rows]


def threads_ahead():
    return [t for t in threading.enumerate() if t.name.startswith("nearkin-ahead")]


def on_made_rows(broken=-1, **settings):
    chosen = Supervised(encoder(), Compared(Classifier(3, 3, dropout=0.5), cross_entropy))
    loop = loop_of(chosen, epochs=2, **settings)
    rows = table()
    return loop, replace(rows, inputs=Made(rows.inputs, broken)), rows


def test_rows_made_ahead_train_as_rows_in_memory():
    (one, made, _), (two, _, held) = on_made_rows(), on_made_rows()
    one.run(made, lambda epoch: {}, None)
    two.run(held, lambda epoch: {}, None)
    for a, b in zip(one.method.parameters(), two.method.parameters(), strict=True):
        assert torch.equal(a, b)
    assert one.state.rows == two.state.rows == 2 * 24
    assert threads_ahead() == []


def test_a_row_that_cannot_be_made_stops_the_step_it_belongs_to():
    batches = Uniform(8).batches({"label": table().label}, 0, 0)
    loop, made, _ = on_made_rows(broken=int(batches[1][0]))
    with pytest.raises(ValueError, match="this row is broken"):
        loop.run(made, lambda epoch: {}, None)
    assert loop.state.step == 1
    assert threads_ahead() == []


def test_an_interruption_ends_what_was_made_ahead(tmp_path):
    loop, made, _ = on_made_rows(path=tmp_path / "state.safetensors")
    loop.on_step = lambda state, batches: os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(Interrupted):
        loop.run(made, lambda epoch: {}, None)
    assert loop.state.step == 1
    assert threads_ahead() == []


class WithNorm(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv2d(1, 3, 2), nn.BatchNorm2d(3)
        self.last = nn.BatchNorm1d(3)

    def forward(self, x):
        return self.last(self.norm(self.conv(x.view(-1, 1, 2, 2))).tanh().flatten(1))


def test_frozen_batchnorm_keeps_its_statistics_while_scale_and_shift_learn_without_decay():
    net = WithNorm()
    with torch.no_grad():
        net.norm.running_mean.fill_(0.3)
    method = Supervised(Given(net, 3), Compared(Classifier(3, 3), cross_entropy))
    before = copied(net)
    modes = []
    loop = loop_of(method, freeze=[net.norm], batch=8, epochs=2)
    loop.on_step = lambda state, batches: modes.append((net.norm.training, net.last.training))

    def validate(epoch):
        method.eval()  # whatever a measurement does, the next epoch trains as it should
        return {}

    loop.run(table(), validate, None)
    assert set(modes) == {(False, True)}
    still = unmoved(before, net)
    assert still == {"norm.running_mean", "norm.running_var", "norm.num_batches_tracked"}
    groups = loop.optimizers["encoder"].param_groups
    (decay,) = {g["weight_decay"] for g in groups for p in g["params"] if p is net.norm.weight}
    assert decay == 0


# Selection


def selecting(scores, select="validation recall@1", **settings):
    """A loop whose epochs have these scores; the method's weight is the epoch's number after it."""

    def turns(method, batch):
        yield Turn(Terms(tightness=-10 * method.weight.weight.sum()), ("weight",))

    method = Own(turns)
    with torch.no_grad():
        method.weight.weight.fill_(-1)
    loop = loop_of(method, make=bare, batch=24, epochs=len(scores), **settings)
    loop.run(table(), lambda epoch: {"score": scores[epoch]}, select)
    return loop, round(method.weight.weight.item())


def test_the_best_epoch_on_validation_is_put_back_and_the_earlier_of_equals():
    loop, epoch = selecting([0.1, 0.5, 0.3, 0.5, 0.2])
    assert epoch == 1
    assert loop.state.best == {"epoch": 1, "score": 0.5}
    assert loop.state.finished


def test_best_on_test_takes_the_later_of_equals():
    loop, epoch = selecting([0.1, 0.5, 0.3, 0.5, 0.2], later_wins=True)
    assert epoch == loop.state.best["epoch"] == 3


def test_what_is_selected_need_not_be_put_back():
    loop, epoch = selecting([0.1, 0.5, 0.3], put_back=False)
    assert epoch == 2
    assert loop.state.best["epoch"] == 1
    assert round(loop.selected["weight.weight"].item()) == 1


def test_without_selection_the_last_epoch_stays():
    loop, epoch = selecting([0.9, 0.1, 0.2], select=None)
    assert epoch == 2
    assert loop.state.best is None


def test_patience_ends_training_after_so_many_epochs_without_a_better_score():
    loop, epoch = selecting([0.1, 0.5, 0.4, 0.5, 0.9, 1.0], patience=2)
    assert loop.state.epoch == 4
    assert epoch == 1


def test_steps_end_training_within_an_epoch():
    seen = []

    def schedule(i):
        seen.append(i)
        return 1.0

    loop = loop_of(Supervised(encoder(), Compared(Classifier(3, 3), cross_entropy)), epochs=9,
                   steps=7, schedule=schedule)  # fmt: skip
    epochs = []
    state = loop.run(table(), lambda epoch: epochs.append(epoch) or {}, None)
    assert (state.step, state.epoch, state.finished) == (7, 3, True)
    assert seen == list(range(7))
    assert epochs == [0, 1, 2]  # the one cut short is scored too


def test_a_score_that_is_no_number_stops():
    with pytest.raises(TrainingError, match="the selection score is NaN"):
        selecting([math.nan])


# Interruption


def test_control_c_lets_the_step_end_saves_and_says_where(tmp_path):
    method = Supervised(encoder(), Compared(Classifier(3, 3), cross_entropy))
    loop = loop_of(method, epochs=3, path=tmp_path / "state")

    def press(state, batches):
        if state.step == 4:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)  # as torchrun repeats it: no second thought

    loop.on_step = press
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted, match="interrupted at step 4; the state is saved"):
        loop.run(table(), lambda epoch: {}, None)
    assert signal.getsignal(signal.SIGINT) is before
    again = loop_of(method, epochs=3)
    again.resume(tmp_path / "state")
    assert (again.state.step, again.state.epoch, again.state.batch) == (4, 1, 1)


def test_control_c_during_the_last_validation_is_heard(tmp_path):
    method = Supervised(encoder(), Compared(Classifier(3, 3), cross_entropy))
    loop = loop_of(method, path=tmp_path / "state")

    def validate(epoch):
        os.kill(os.getpid(), signal.SIGTERM)
        return {}

    with pytest.raises(Interrupted):
        loop.run(table(), validate, None)
    assert not loop.state.finished


def test_a_second_control_c_later_breaks_the_step(monkeypatch):
    monkeypatch.setattr(loops, "DELIBERATE", -1.0)

    def turns(method, batch):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        yield Turn(half_square(method), ("weight",))

    with pytest.raises(KeyboardInterrupt) as raised:
        trained(Own(turns))
    assert not isinstance(raised.value, Interrupted)


def test_the_state_is_saved_as_often_as_asked(tmp_path, monkeypatch):
    method = Supervised(encoder(), Compared(Classifier(3, 3), cross_entropy))
    counts = {}
    for seconds in (0.0, 3600.0):
        loop = loop_of(method, epochs=2, path=tmp_path / "state")
        loop.save_seconds, saves = seconds, []
        save = loop.save
        monkeypatch.setattr(loop, "save", lambda save=save, saves=saves: (saves.append(1), save()))
        loop.run(table(), lambda epoch: {}, None)
        counts[seconds] = len(saves)
    assert counts[3600.0] == 3  # two epochs and the end
    assert counts[0.0] >= 6 + 3
