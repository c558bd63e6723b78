"""Class-disjoint splits: shares, blocks, draws, minimums."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nearkin.data.base import Table
from nearkin.data.splits import hold_out, natural, split_classes


def _table(sizes: list[int], names: list[str] | None = None) -> Table:
    label = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    names = names or [f"c{i}" for i in range(len(sizes))]
    rows = len(label)
    return Table(torch.arange(rows)[:, None], label, tuple(names), tuple(map(str, range(rows))))


def test_the_last_classes_test_and_those_before_validate():
    train, validation, test = split_classes(_table([3] * 20), validation=0.2, test=0.25)
    assert validation is not None
    assert train.names == tuple(f"c{i}" for i in range(12))
    assert validation.names == ("c12", "c13", "c14")
    assert test.names == ("c15", "c16", "c17", "c18", "c19")
    assert test.label.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4]
    assert test.inputs[:, 0].tolist() == list(range(45, 60))  # type: ignore[index]


def test_numbers_in_names_are_in_the_order_of_numbers():
    assert sorted(["c10", "c2", "b7", "c2a", "2", "10"], key=natural) == [
        "2",
        "10",
        "b7",
        "c2",
        "c2a",
        "c10",
    ]


def test_a_draw_depends_on_the_seed_alone():
    table = _table([3] * 20)
    draws = [split_classes(table, seed=s, contiguous=False)[2].names for s in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
    assert draws[0] != split_classes(table)[2].names


@settings(max_examples=50)
@given(
    st.lists(st.integers(2, 4), min_size=6, max_size=20),
    st.floats(0.01, 0.4),
    st.floats(0.01, 0.4),
    st.integers(0, 5),
    st.booleans(),
)
def test_splits_share_no_class_and_lose_no_row(sizes, validation, test, seed, contiguous):
    table = _table(sizes)
    parts = split_classes(table, validation=validation, test=test, seed=seed, contiguous=contiguous)
    present = [part for part in parts if part is not None]
    rows = sorted(row for part in present for row in part.inputs[:, 0].tolist())  # type: ignore
    assert rows == list(range(len(table)))
    names = [name for part in present for name in part.names]
    assert len(names) == len(set(names)) == len(sizes)
    assert present[0].classes >= 2
    for held in present[1:]:
        assert (torch.bincount(held.label) > 1).sum() >= 2


def test_a_block_of_singletons_grows_until_it_can_be_searched():
    _, validation, test = split_classes(_table([2] * 10 + [1] * 5), validation=0, test=0.2)
    assert validation is None
    assert test.names == tuple(f"c{i}" for i in range(8, 15))


def test_four_classes_train_and_test_but_do_not_validate():
    train, validation, test = split_classes(_table([2] * 4))
    assert (train.classes, validation, test.classes) == (2, None, 2)


@pytest.mark.parametrize("sizes", [[5, 5, 5], [1, 1, 1, 1, 9], [4]])
def test_too_few_classes_are_counted_in_the_error(sizes):
    repeated = sum(size > 1 for size in sizes)
    with pytest.raises(ValueError, match=f"{len(sizes)} classes were seen, {repeated} of them"):
        split_classes(_table(sizes))


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_shares_outside_their_range_are_refused(share):
    with pytest.raises(ValueError, match="test must be a share"):
        split_classes(_table([2] * 9), test=share)
    with pytest.raises(ValueError, match="validation must be a share"):
        split_classes(_table([2] * 9), validation=share)


def test_hold_out_keeps_codes():
    rest, held = hold_out(_table([2] * 10), 0.3)
    assert held is not None
    assert held.label.unique().tolist() == [7, 8, 9]
    assert rest.label.unique().tolist() == list(range(7))


def test_blocks_follow_the_super_label_before_the_names():
    table = _table([2] * 8).with_columns(
        super_label=torch.tensor([1, 1, 0, 0, 1, 1, 0, 0]).repeat_interleave(2)
    )
    _, held = hold_out(table, 0.25)
    assert held is not None
    assert [held.names[code] for code in held.label.unique().tolist()] == ["c4", "c5"]


def test_whole_groups_are_held_out_and_never_all():
    groups = torch.tensor([0, 0, 1, 1, 1, 2, 2, 2]).repeat_interleave(2)
    table = _table([2] * 8).with_columns(super_label=groups)
    for share, classes in ((0.25, 3), (0.375, 3), (0.5, 6), (0.75, 6)):
        rest, held = hold_out(table, share, whole="super_label")
        assert held is not None
        assert (rest.classes, held.classes) == (8 - classes, classes)
    assert hold_out(table, 0.9, whole="super_label")[1] is None
