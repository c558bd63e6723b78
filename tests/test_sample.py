"""Samplers: what stands in a batch, what an epoch covers, and that seed and epoch say it all."""

import warnings
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nearkin import catalog
from nearkin.sample import (
    Balanced,
    DistinctPairs,
    HardClasses,
    Hierarchical,
    NearestClasses,
    Paired,
    Sampler,
    Uniform,
)
from nearkin.sample.base import generator
from nearkin.sample.pairs import _disjoint
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
    "hierarchical": Hierarchical(2, 3, 2),
    "distinct_pairs": DistinctPairs(3),
    "nearest_classes": NearestClasses(2, 3),
    "hard_classes": HardClasses(2, 3),
}
COLUMNS = {
    "label": torch.tensor([0] * 9 + [1] * 2 + [2] * 5 + [3] * 7),
    "super_label": torch.tensor([4] * 9 + [2] * 2 + [4] * 5 + [4] * 7),
    "pair": torch.arange(23) // 2,
    "embedding": torch.randn(23, 5, generator=torch.Generator().manual_seed(0)),
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

    def test_it_counts_and_remarks_without_vectors(self, name):
        chosen = EXAMPLES[name]
        assert set(chosen.vectors) <= set(chosen.needs)
        few = {key: COLUMNS[key] for key in chosen.needs if key not in chosen.vectors}
        assert chosen.count(few, 0, 1) == len(chosen.batches(COLUMNS, 0, 1))
        assert chosen.remarks(few)
        assert all(isinstance(remark, str) for remark in chosen.remarks(few))

    @pytest.mark.filterwarnings("ignore:.*repeat them within a batch")
    def test_a_loop_of_ones_own_gets_the_same_batches(self, name):
        chosen = EXAMPLES[name]
        sizes = ("batch", "classes", "per_class", "super_classes", "pairs")
        said = {key: value for key, value in vars(chosen).items() if key in sizes}
        own = sampler(name, COLUMNS, seed=5, **said)
        assert len(own) == len(own.chosen.batches(COLUMNS, 5, 0))
        for epoch in range(2):
            assert list(own) == [rows.tolist() for rows in chosen.batches(COLUMNS, 5, epoch)]


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
    pair=st.lists(st.integers(0, 12), min_size=2, max_size=50).filter(
        lambda x: 1 < len(set(x)) < len(x)
    ),
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


# --- hierarchical


def nested(families, rows=3):
    """Columns of super-classes with so many classes each, `rows` rows a class, shuffled."""
    above = torch.repeat_interleave(torch.arange(len(families)), torch.tensor(families))
    order = torch.randperm(len(above) * rows, generator=torch.Generator().manual_seed(0))
    label = torch.arange(len(above)).repeat(rows)[order]
    return {"label": label, "super_label": above[label] * 7}


def test_hierarchical_batches_hold_half_of_each_of_two_super_classes():
    columns, pairs = nested([6, 6, 6, 6]), set()
    for epoch in range(40):
        for rows in Hierarchical(4, 2).batches(columns, 0, epoch):
            label = columns["label"][rows]
            assert set(Counter(label.tolist()).values()) == {2}
            held = Counter(columns["super_label"][rows].tolist())
            assert list(held.values()) == [4, 4]
            pairs.add(frozenset(held))
    assert len(pairs) == 6, "every pair of super-classes meets"


@quick
@given(
    families=st.lists(st.integers(1, 7), min_size=1, max_size=6),
    super_classes=st.integers(1, 4),
    share=st.integers(1, 3),
    per_class=st.integers(1, 3),
    seed=SEEDS,
)
def test_hierarchical_batches_have_their_size_whatever_the_super_classes(
    families, super_classes, share, per_class, seed
):
    columns, classes = nested(families), super_classes * share
    chosen = Hierarchical(classes, per_class, super_classes)
    if len(families) < super_classes or sum(min(n, share) for n in families) < classes:
        with pytest.raises(ValueError, match=r"lower|or less"):
            chosen.batches(columns, seed, 0)
        return
    batches = chosen.batches(columns, seed, 0)
    rows = len(columns["label"])
    assert len(batches) == max(rows // (classes * per_class), -(-sum(families) // classes))
    for one in batches:
        assert set(Counter(columns["label"][one].tolist()).values()) == {per_class}
        assert len(one) == classes * per_class
        held = Counter(columns["super_label"][one].tolist())
        assert max(held.values()) <= share * per_class
        if min(families) >= share:
            assert len(held) == super_classes


def test_hierarchical_visits_small_and_large_super_classes_alike():
    columns = nested([4, 8, 20, 12])
    batches = Hierarchical(4, 1).batches(columns, 3, 0)
    assert len(batches) == 33
    visits = Counter(columns["label"][rows_of(batches)].tolist())
    assert min(visits.values()) >= 2
    assert max(visits.values()) <= 4
    assert len(visits) == 44


def test_hierarchical_says_which_super_classes_are_small():
    said = Hierarchical(6, 4).remarks(nested([2, 5, 5]))
    assert said[0].endswith("of 36 rows")
    assert said[1].startswith("1 of 3 super-classes have fewer than 3 classes; more than 2 of them")
    assert said[2].startswith("12 of 12 classes have fewer than 4 rows and repeat them")
    assert len(Hierarchical(4, 3).remarks(nested([2, 5, 5]))) == 1


def test_hierarchical_refuses_a_class_in_two_super_classes():
    columns = labelled([0, 0, 1, 1]) | {"super_label": torch.tensor([5, 5, 5, 6])}
    with pytest.raises(ValueError, match="class of row 2 has 5 and 6"):
        Hierarchical(2, 1, 1).batches(columns, 0, 0)


def test_hierarchical_refuses_too_few_super_classes():
    with pytest.raises(ValueError, match="2 classes from each of 3 super-classes, but the table h"):
        Hierarchical(6, 1, 3).batches(nested([9, 9]), 0, 0)


# --- distinct pairs


def pairs_of(label):
    """Pairs of two rows, by the label of each pair; the second rows come after the first."""
    label = torch.as_tensor(label)
    return {"pair": torch.arange(len(label)).repeat(2), "label": label.repeat(2)}


PAIRS = st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), min_size=2, max_size=60)


def order_of(labels, seed):
    return generator(seed, 0).permutation(len(labels)).tolist()


@quick
@given(labels=PAIRS, pairs=st.integers(2, 5), seed=SEEDS)
def test_distinct_pairs_have_no_label_in_common_within_a_batch(labels, pairs, seed):
    label = torch.tensor(labels).flatten()
    columns = {"pair": torch.arange(len(label)) // 2, "label": label}
    chosen = DistinctPairs(pairs)
    if len(label.unique()) < pairs:
        with pytest.raises(ValueError, match="needs as many labels"):
            chosen.batches(columns, seed, 0)
        return
    if not [*_disjoint(order_of(labels, seed), [frozenset(pair) for pair in labels], pairs)]:
        with pytest.raises(ValueError, match="can be filled"):
            chosen.batches(columns, seed, 0)
        return
    batches = chosen.batches(columns, seed, 0)
    seen = rows_of(batches)
    assert len(set(seen)) == len(seen), "no pair twice in an epoch"
    for rows in batches:
        held = columns["pair"][rows]
        assert held.tolist() == held[::2].repeat_interleave(2).tolist(), "pairs are whole"
        taken = [frozenset(labels[k]) for k in held[::2].tolist()]
        assert len(taken) == pairs
        assert sum(map(len, taken)) == len(frozenset.union(*taken))


@quick
@given(label=st.lists(st.integers(0, 6), min_size=2, max_size=60), seed=SEEDS)
def test_distinct_pairs_leave_nothing_from_which_a_batch_could_be_made(label, seed):
    if len(set(label)) < 2:
        return
    columns = pairs_of(label)
    seen = rows_of(DistinctPairs(2).batches(columns, seed, 0))
    rest = {k for i, k in enumerate(label) if i not in seen}  # the first rows of the pairs
    assert len(rest) < 2


def test_distinct_pairs_cover_every_pair_in_time():
    columns = pairs_of([0] * 20 + [*range(1, 21)])
    chosen = DistinctPairs(4)
    seen = set()
    for epoch in range(20):
        seen |= set(rows_of(chosen.batches(columns, 0, epoch)))
    assert len(seen) == 80
    assert chosen.remarks(columns)[0].endswith("of 40 pairs")


def test_a_label_of_half_of_all_pairs_costs_no_time():
    count = 40_000
    label = torch.where(torch.arange(count) % 2 == 0, 0, torch.arange(count))
    batches = DistinctPairs(64).batches(pairs_of(label), 0, 0)
    assert len(batches) == count // 2 // 63


def test_distinct_pairs_refuse_what_they_cannot_fill():
    columns = pairs_of([0, 1])
    with pytest.raises(ValueError, match="the table has 2; set pairs to 2 or less"):
        DistinctPairs(3).batches(columns, 0, 0)
    with pytest.raises(ValueError, match=r"not labels of shape \(4, 2\)"):
        DistinctPairs(2).batches(columns | {"label": torch.ones(4, 2).bool()}, 0, 0)
    crossed = {"pair": torch.tensor([0, 0, 1, 1]), "label": torch.tensor([0, 1, 1, 2])}
    with pytest.raises(
        ValueError, match=r"no batch of pairs=2 .* from the 2 pairs.*; set pairs lo"
    ):
        DistinctPairs(2).batches(crossed, 0, 0)


@pytest.mark.parametrize("name", ["paired", "distinct_pairs"])
def test_a_column_that_joins_no_rows_is_refused(name):
    columns = {"pair": torch.arange(6), "label": torch.arange(6)}
    with pytest.raises(ValueError, match="'pair' joins no two rows: its 6 values all differ"):
        sampler(name, columns, pairs=2)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Hierarchical(4, 0), "hierarchical needs classes and per_class >= 1, not 4, 0"),
        (lambda: Hierarchical(5, 2), "a multiple of super_classes, not 5 and 2"),
        (lambda: Hierarchical(4, 2, 0), "a multiple of super_classes, not 4 and 0"),
        (lambda: DistinctPairs(1), "a batch needs at least 2 pairs, not 1"),
        (lambda: NearestClasses(0), "nearest_classes needs classes and per_class >= 1, not 0, 4"),
        (lambda: NearestClasses(5, 2, 2), "a multiple of anchors, not 5 and 2"),
        (lambda: HardClasses(2, 0), "hard_classes needs classes and per_class >= 1, not 2, 0"),
        (lambda: Uniform(1), "a batch needs at least 2 rows, not 1"),
        (lambda: Paired(1), "a batch needs at least 2 pairs, not 1"),
        (lambda: Balanced(0, 4), "classes and per_class >= 1, not 0, 4"),
        (lambda: Balanced(4, 0), "classes and per_class >= 1, not 4, 0"),
    ],
)
def test_batches_of_nothing_are_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()
