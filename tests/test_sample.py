"""Samplers: what stands in a batch, what an epoch covers, and that seed and epoch say it all."""

import warnings
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nearkin import catalog
from nearkin.sample import Balanced, Paired, Sampler, Uniform
from nearkin.standalone import sampler

SEEDS = st.integers(0, 2**40)
LABELLED = st.lists(st.integers(-3, 9), min_size=2, max_size=80)
quick = settings(deadline=None, max_examples=60)


def labelled(label):
    return {"label": torch.tensor(label)}


def rows_of(batches):
    return torch.cat(batches).tolist()


EXAMPLES = {
    "uniform": Uniform(4),
    "balanced": Balanced(2, 3),
    "paired": Paired(3),
}
COLUMNS = {
    "label": torch.tensor([0] * 9 + [1] * 2 + [2] * 5 + [3] * 7),
    "pair": torch.arange(23) // 2,
}


@pytest.mark.parametrize("name", catalog.scan(catalog.kind_named("sampler")))
class TestEvery:
    def test_seed_and_epoch_say_it_all(self, name):
        chosen = EXAMPLES[name]
        torch.manual_seed(0)
        before = torch.get_rng_state()
        first = [rows.tolist() for rows in chosen.batches(COLUMNS, 5, 2)]
        assert first == [rows.tolist() for rows in chosen.batches(COLUMNS, 5, 2)]
        assert torch.equal(torch.get_rng_state(), before)
        for seed, epoch in ((5, 3), (6, 2), (2, 5)):
            assert first != [rows.tolist() for rows in chosen.batches(COLUMNS, seed, epoch)]

    def test_batches_are_row_numbers(self, name):
        for rows in EXAMPLES[name].batches(COLUMNS, 0, 0):
            assert rows.dtype == torch.int64
            assert rows.ndim == 1
            assert rows.min() >= 0
            assert rows.max() < 23

    def test_it_reads_the_columns_it_needs_alone(self, name):
        chosen = EXAMPLES[name]
        few = {key: COLUMNS[key] for key in chosen.needs}
        assert rows_of(chosen.batches(few, 0, 0)) == rows_of(chosen.batches(COLUMNS, 0, 0))
        assert chosen.remarks(few) == chosen.remarks(COLUMNS)


def test_a_sampler_must_say_its_batches():
    with pytest.raises(TypeError, match="Sampler says no batches"):
        Sampler().batches({}, 0, 0)
    assert Sampler().remarks({}) == []


# --- uniform


@quick
@given(rows=st.integers(2, 60), batch=st.integers(2, 20), seed=SEEDS)
def test_uniform_visits_no_row_twice_and_drops_the_rest(rows, batch, seed):
    batches = Uniform(batch).batches(labelled([0] * rows), seed, 1)
    seen = rows_of(batches)
    assert len(set(seen)) == len(seen)
    size = min(batch, rows)
    assert [len(b) for b in batches] == [size] * (rows // size)


def test_uniform_covers_everything_if_the_batch_divides_it():
    assert sorted(rows_of(Uniform(4).batches(labelled([0] * 12), 0, 0))) == list(range(12))


def test_uniform_says_what_it_covers():
    assert Uniform(4).remarks(labelled([0] * 11)) == ["an epoch of 2 batches covers 8 of 11 rows"]
    assert Uniform(16).remarks(labelled([0] * 11)) == [
        "the table has 11 rows, so each batch holds 11 and not 16"
    ]


# --- balanced


@quick
@given(label=LABELLED, per_class=st.integers(1, 5), seed=SEEDS, data=st.data())
def test_balanced_batches_are_p_classes_by_k_rows(label, per_class, seed, data):
    sizes = Counter(label)
    classes = data.draw(st.integers(1, len(sizes)))
    batches = Balanced(classes, per_class).batches(labelled(label), seed, 0)
    assert len(batches) == max(len(label) // (classes * per_class), -(-len(sizes) // classes))
    for rows in batches:
        drawn = [label[i] for i in rows.tolist()]
        assert len(set(drawn)) == classes
        assert set(Counter(drawn).values()) == {per_class}
        for k in set(drawn):
            taken = Counter(i for i in rows.tolist() if label[i] == k)
            # Rows repeat only where there are too few, and then as evenly as can be.
            assert max(taken.values()) == -(-per_class // sizes[k])
            assert len(taken) == min(per_class, sizes[k])
    assert {label[i] for i in rows_of(batches)} == set(label)


@quick
@given(label=LABELLED, seed=SEEDS, data=st.data())
def test_balanced_visits_a_class_again_only_after_all_others(label, seed, data):
    present = len(set(label))
    classes = data.draw(st.integers(1, present))
    batches = Balanced(classes, 2).batches(labelled(label), seed, 0)
    visits = Counter(k for rows in batches for k in {label[i] for i in rows.tolist()})
    assert max(visits.values()) - min(visits.values()) <= 1


def test_balanced_takes_the_rows_of_a_class_in_turns():
    label = [0] * 12 + [1] * 12
    batches = Balanced(2, 4).batches(labelled(label), 3, 0)
    assert sorted(rows_of(batches)) == list(range(24))


def test_balanced_covers_a_large_class_over_epochs():
    label = [0] * 40 + [1] * 2 + [2] * 2
    chosen = Balanced(3, 2)
    seen = [set(rows_of(chosen.batches(labelled(label), 0, epoch))) for epoch in range(12)]
    assert len(set.union(*seen)) == 44
    assert len(set(map(frozenset, seen))) > 1


def test_balanced_refuses_more_classes_than_there_are():
    with pytest.raises(ValueError, match="the table has 2; set classes to 2 or less"):
        Balanced(3, 2).batches(labelled([5, 5, 9]), 0, 0)
    with pytest.raises(ValueError, match="the table has 2; set classes to 2 or less"):
        Balanced(3, 2).remarks(labelled([5, 5, 9]))


def test_balanced_refuses_multi_hot_labels():
    with pytest.raises(ValueError, match=r"one label a row, not labels of shape \(4, 3\)"):
        Balanced(2, 2).batches({"label": torch.ones(4, 3).bool()}, 0, 0)


def test_balanced_says_what_it_covers_and_that_rows_repeat():
    said = Balanced(2, 3).remarks(labelled([0] * 6 + [1] * 2 + [2]))
    assert said[0].startswith("an epoch of 2 batches covers ")
    assert said[1:] == ["2 of 3 classes have fewer than 3 rows and repeat them within a batch"]
    assert len(Balanced(2, 3).remarks(labelled([0] * 6 + [1] * 3))) == 1


def test_repeats_are_said_once_in_a_loop_of_ones_own():
    label = [0] * 6 + [1]
    with pytest.warns(UserWarning, match="1 of 2 classes have fewer than 2 rows and repeat them"):
        sampler("balanced", label, classes=2, per_class=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = sampler("balanced", label, classes=2, per_class=2)
        assert len(list(again)) == len(again)


# --- paired


@quick
@given(
    pair=st.lists(st.integers(0, 12), min_size=2, max_size=50).filter(lambda x: len(set(x)) > 1),
    pairs=st.integers(2, 9),
    seed=SEEDS,
)
def test_paired_batches_hold_whole_pairs(pair, pairs, seed):
    batches = Paired(pairs).batches({"pair": torch.tensor(pair)}, seed, 0)
    size = min(pairs, len(set(pair)))
    assert len(batches) == len(set(pair)) // size
    seen = rows_of(batches)
    assert len(set(seen)) == len(seen)
    for rows in batches:
        held = {pair[i] for i in rows.tolist()}
        assert len(held) == size
        assert sorted(rows.tolist()) == [i for i, k in enumerate(pair) if k in held]


def test_paired_says_what_it_covers():
    columns = {"pair": torch.arange(14) // 2}
    assert Paired(3).remarks(columns) == ["an epoch of 2 batches covers 6 of 7 pairs"]
    assert Paired(30).remarks(columns) == ["an epoch of 1 batches covers 7 of 7 pairs"]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Uniform(1), "a batch needs at least 2 rows, not 1"),
        (lambda: Paired(1), "a batch needs at least 2 pairs, not 1"),
        (lambda: Balanced(0, 4), "classes and per_class >= 1, not 0, 4"),
        (lambda: Balanced(4, 0), "classes and per_class >= 1, not 4, 0"),
    ],
)
def test_batches_of_nothing_are_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()
