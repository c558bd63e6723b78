"""Labels as numbers: exact, the same everywhere, and refused where they are none."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nearkin.information.codes import Coder, coded, hashed


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=20))
def test_integers_stand_for_themselves(ids):
    assert coded(ids, "labels", len(ids)).tolist() == ids
    assert coded(np.array(ids), "labels", len(ids)).tolist() == ids
    assert coded(torch.tensor(ids), "labels", len(ids)).tolist() == ids


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=20, unique=True))
def test_unsigned_ids_stay_different(ids):
    numbers = coded(np.array(ids, dtype=np.uint64), "labels", len(ids))
    assert len(set(numbers.tolist())) == len(ids)


@given(st.lists(st.text(max_size=4) | st.just("a\ud800"), min_size=1, max_size=20))
def test_texts_are_equal_where_their_numbers_are(names):
    numbers = coded(names, "labels", len(names)).tolist()
    assert [[a == b for b in names] for a in names] == [[a == b for b in numbers] for a in numbers]


def test_a_text_has_the_same_number_in_every_process():
    assert hashed("fox") == 1360376345364951991


def test_an_empty_batch_has_no_numbers():
    for empty in ([], torch.zeros(0, dtype=torch.int64)):
        numbers = coded(empty, "labels", 0)
        assert numbers.dtype == torch.int64
        assert len(numbers) == 0


def test_names_say_which_number_a_text_has():
    coder = Coder(["b", "a"])
    assert coder(["a", "b", "a"], "labels", 3).tolist() == [1, 0, 1]
    assert coder([b"a"], "labels", 1).tolist() == [1]
    assert coder([5], "labels", 1).tolist() == [5]
    with pytest.raises(ValueError, match=r"'x' is none of the 2 classes given$"):
        coder(["x"], "labels", 1)


def test_texts_without_names_may_be_refused():
    assert Coder(needs_names=True)([3, 4], "labels", 2).tolist() == [3, 4]
    with pytest.raises(ValueError, match="must be named"):
        Coder(needs_names=True)(["a"], "labels", 1)


def test_texts_and_numbers_are_two_kinds_unless_the_classes_are_named():
    texts, numbers = ["a", "b"], [0, 1]
    for labels, others in (
        (numbers, texts),
        (torch.tensor(numbers), np.array(texts)),
        (np.array(numbers), [b"a"]),
    ):
        with pytest.raises(ValueError, match="labels are integers, but others are texts; give bo"):
            Coder().check_kinds(labels, others, "others")
        with pytest.raises(ValueError, match="labels are texts, but others are integers"):
            Coder().check_kinds(others, labels, "others")
        Coder(["a", "b"]).check_kinds(labels, others, "others")
    Coder().check_kinds([b"a"], texts, "others")
    Coder().check_kinds([], texts, "others")


def test_multi_hot_becomes_bool():
    hot = coded([[1, 0], [0, 1]], "labels", 2)
    assert hot.dtype == torch.bool
    assert torch.equal(coded(torch.tensor([[1, 0], [0, 1]]), "labels", 2), hot)
