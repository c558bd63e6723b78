"""What is read of embeddings and labels as users give them."""

import numpy as np
import pytest
import torch

from nearkin.information.given import Rows, given_labels, labels_together


def test_codes_count_up_in_the_order_of_first_appearance():
    labels = given_labels(["b", "a", "b", "c"], 4)
    assert labels.codes.tolist() == [0, 1, 0, 2]
    assert labels.names == ("b", "a", "c")


@pytest.mark.parametrize(
    "labels",
    [
        [2**70, 5, 2**70, -1],
        (2**70, 5, 2**70, -1),
        np.array([2**63 + 1, 2**63, 2**63 + 1, 0], np.uint64),
        np.array([True, False, True, False])[[0, 1, 0, 1]],
        np.array(["b", "a", "b", "c"]),
        np.array(["b", "a", "b", "c"], object),
        [np.int64(4), 3, torch.tensor(4), np.uint8(7)],
        torch.tensor([9, 4, 9, 2], dtype=torch.int32),
        [b"b", b"a", b"b", b"c"],
    ],
)
def test_labels_of_every_kind_are_compared_exactly(labels):
    codes = given_labels(labels, 4).codes.tolist()
    assert codes in ([0, 1, 0, 2], [0, 1, 0, 1])
    assert (codes[3] == 1) == (labels[3] == labels[1])


def test_a_column_with_an_array_protocol_is_read():
    class Column:
        """As a column of a table: a length and a conversion, no more."""

        def __len__(self):
            return 3

        def __array__(self, dtype=None, copy=None):
            return np.array(["x", "y", "x"], object)

    assert given_labels(Column(), 3).codes.tolist() == [0, 1, 0]


def test_sets_share_one_code():
    first, second = labels_together([([5, 6], 2, "a", "z"), ([7, 6, 5], 3, "b", "gallery")])
    assert (first.codes.tolist(), second.codes.tolist()) == ([0, 1], [2, 1, 0])
    unsigned = np.array([2**63, 6], np.uint64)
    first, second = labels_together([([5, 6], 2, "a", "z"), (unsigned, 2, "b", "gallery")])
    assert second.codes.tolist() == [2, 1]


@pytest.mark.parametrize("kind", [np.array, torch.tensor, list])
def test_multi_hot_labels_are_coded_by_their_sets(kind):
    labels = given_labels(kind([[1, 0, 1], [0, 0, 0], [1, 0, 1]]), 3)
    assert labels.codes.tolist() == [0, 1, 0]
    assert labels.names == ((0, 2), ())
    assert labels.hot.tolist() == [[True, False, True], [False] * 3, [True, False, True]]


@pytest.mark.parametrize(
    ("labels", "error", "said"),
    [
        ("ab", TypeError, "sequence"),
        (3, TypeError, "sequence"),
        ([1, None], TypeError, "label 1 is None"),
        ([1, float("nan")], TypeError, "label 1 is nan"),
        (np.array([1.0, 2.0]), TypeError, "label 0 is 1.0"),
        (torch.tensor([1.0, 2.0]), TypeError, "label 0 is 1.0"),
        ([1, "1"], TypeError, "all integers or all texts"),
        ([[1, 0], [2, 0]], TypeError, "multi-hot"),
        (np.zeros((2, 2, 2), int), ValueError, "multi-hot"),
        ([1, 2, 3], ValueError, "3 entries but z has 2 rows"),
    ],
)
def test_other_labels_are_refused(labels, error, said):
    with pytest.raises(error, match=said):
        given_labels(labels, 2)


def test_blocks_join_to_the_rows_in_float64():
    values = torch.randn(10, 3, generator=torch.Generator().manual_seed(0)).bfloat16()
    rows = Rows(values)
    assert torch.equal(torch.cat(list(rows.blocks(4))), values.double())
    assert torch.equal(rows.block(torch.tensor([7, 2])), values[[7, 2]].double())
    assert rows.largest == float(values.abs().max())
    assert (len(rows), rows.dim) == (10, 3)


def test_a_memory_map_is_read_and_not_changed(tmp_path):
    path = tmp_path / "rows.npy"
    np.save(path, np.arange(6, dtype=np.float32).reshape(3, 2))
    rows = Rows(np.load(path, mmap_mode="r"))
    rows.block(slice(0, 2)).zero_()
    assert rows.block(slice(0, 2)).tolist() == [[0.0, 1.0], [2.0, 3.0]]
