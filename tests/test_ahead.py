"""Work in threads: the same as one after the other, ahead of time, and gone when it is left."""

import threading
import time
from contextlib import closing

import pytest
import torch

from nearkin import ahead
from nearkin.ahead import DEPTH, each, taken, threads
from nearkin.inputs import Taken


class Slow(Taken):
    """Row i is i, made in 10 ms; the row `broken` is not made."""

    def __init__(self, count, broken=-1):
        self.shape, self.dtype = (count, 1), torch.int64
        self.broken, self.begun, self.makers = broken, [], set()

    def take(self, rows, keys=None):
        self.makers.add(threading.current_thread())
        self.begun.append(rows.tolist())
        time.sleep(0.01)
        if self.broken in rows:
            raise ValueError(f"row {self.broken} is broken")
        return rows[:, None] if keys is None else keys[:, None]


def makers():
    return [t for t in threading.enumerate() if t.name.startswith("nearkin-ahead")]


def test_batches_come_in_order_and_ahead_of_time():
    inputs = Slow(20)
    with closing(taken(inputs, torch.arange(20).split(2))) as batches:
        first = next(batches)
        assert first.tolist() == [[0], [1]]
        time.sleep(0.1)
        assert len(inputs.begun) == 1 + DEPTH  # those, and no more
        rest = torch.cat(list(batches))
    assert rest[:, 0].tolist() == list(range(2, 20))
    assert inputs.makers.isdisjoint({threading.current_thread()})
    assert makers() == []


def test_keys_go_with_their_rows():
    keys = torch.arange(100, 120)
    for inputs in (Slow(20), torch.arange(20)[:, None]):
        made = list(taken(inputs, iter([torch.tensor([3, 1]), torch.tensor([19])]), keys))
        wanted = [[[103], [101]], [[119]]] if isinstance(inputs, Slow) else [[[3], [1]], [[19]]]
        assert [x.tolist() for x in made] == wanted


def test_a_tensor_is_taken_where_it_is_asked_for():
    x = torch.arange(6)
    batches = taken(x, torch.arange(6).split(2))
    assert next(batches).tolist() == [0, 1]
    x += 10
    assert next(batches).tolist() == [12, 13]
    assert makers() == []


def test_no_batches_are_no_work():
    assert list(taken(Slow(3), ())) == []
    assert makers() == []


def test_an_error_is_raised_where_its_batch_is_asked_for():
    with closing(taken(Slow(20, broken=5), torch.arange(20).split(2))) as batches:
        assert next(batches).tolist() == [[0], [1]]
        assert next(batches).tolist() == [[2], [3]]
        with pytest.raises(ValueError, match="row 5 is broken"):
            next(batches)
    assert makers() == []


@pytest.mark.parametrize("stop", [KeyboardInterrupt, RuntimeError])
def test_work_that_is_left_ends_with_the_batch_in_hand(stop):
    inputs = Slow(100)

    def step():
        with closing(taken(inputs, torch.arange(100).split(2))) as batches:
            next(batches)
            raise stop

    with pytest.raises(stop):
        step()
    assert len(inputs.begun) <= 1 + DEPTH
    assert makers() == []


def test_batches_that_nobody_asked_for_start_no_thread():
    taken(Slow(4), torch.arange(4).split(2)).close()
    assert makers() == []


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("count", [0, 1, 7, 64])
def test_each_is_worked_on_once(workers, count):
    done = [0] * count

    def work(i):
        done[i] += 1

    each(work, count, workers)
    assert done == [1] * count


def test_the_first_error_is_raised_after_all_have_ended():
    done = []

    def work(i):
        if i in (3, 40):
            raise ValueError(f"item {i}")
        time.sleep(0.001)
        done.append(i)

    with pytest.raises(ValueError, match="item 3"):
        each(work, 64, 2)
    so_far = len(done)
    time.sleep(0.05)
    assert len(done) == so_far


def test_torch_does_not_split_what_one_of_several_threads_does():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        threads.cache_clear()
        seen = set()
        each(lambda i: seen.add(torch.get_num_threads()), 4, 2)
        assert seen == {1}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
        threads.cache_clear()


def test_threads_of_one_number_are_shared():
    assert threads(3) is threads(3)
    assert threads(3) is not threads(2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batches_for_a_gpu_are_pinned():
    (x,) = taken(Slow(2), [torch.arange(2)], pinned=True)
    assert x.is_pinned()


def test_a_fork_starts_threads_of_its_own():
    import os

    each(lambda i: None, 4, 2)
    child = os.fork()
    if child == 0:
        each(lambda i: None, 4, 2)
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert ahead.threads.cache_info().currsize > 0
