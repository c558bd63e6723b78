"""Tables embedded and measured: modes, blocks, queries and galleries, raw rows, distances."""

import numpy as np
import pytest
import torch

from nearkin.data.base import Table
from nearkin.measure import (
    block,
    distances,
    evaluate_table,
    information,
    raw_rows,
)


def table(label, **columns):
    label = torch.tensor(label)
    return Table(
        inputs=torch.zeros(len(label), 1),
        label=label,
        names=tuple(map(str, range(int(label.max()) + 1))),
        ids=tuple(map(str, range(len(label)))),
        columns={key: torch.tensor(value) for key, value in columns.items()},
    )


Z = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]])


def test_without_queries_every_row_searches_the_others():
    assert evaluate_table(Z, table([0, 0, 1, 1]), ["recall@1"], "cosine", 0)["recall@1"] == 1
    assert evaluate_table(Z, table([0, 1, 1, 0]), ["recall@1"], "cosine", 0)["recall@1"] == 0


def test_queries_search_the_gallery_alone_and_groups_are_skipped():
    query, gallery = [True, False, True, False], [False, True, False, True]
    found = table([0, 0, 1, 1], is_query=query, is_gallery=gallery)
    result = evaluate_table(Z, found, ["recall@1"], "cosine", 0)
    assert (result["recall@1"], result.queries) == (1, 2)
    grouped = table([0, 0, 1, 1], is_query=query, is_gallery=gallery, group=[0, 0, 1, 2])
    result = evaluate_table(Z, grouped, ["recall@1"], "cosine", 0)
    assert (result.queries, result.without_relevant) == (1, 1)


def test_relevance_is_the_column_of_that_name_where_there_is_one():
    rows = table([0, 0, 0, 0], relevant=[0, 1, 1, 0])
    assert evaluate_table(Z, rows, ["recall@1"], "cosine", 0)["recall@1"] == 0


def test_a_block_has_each_closeness_the_information_and_the_counts():
    rows = table([0, 0, 1, 1, 2])
    z = torch.cat([Z, -Z[:1]])
    said = block(z, rows, ["recall@1", "nmi", "information"], 0)
    assert set(said) == {"cosine", "euclidean", "information", "queries", "without_relevant"}
    assert (said["queries"], said["without_relevant"]) == (4, 1)
    assert said["cosine"]["recall@1"]["value"] == 1
    assert "nmi" in said["cosine"]
    assert "information" not in said["cosine"]
    assert set(block(z, rows, ["information"], 0, ("cosine",))["cosine"]) >= {"recall@1", "map@r"}


def test_information_without_a_meaning_is_none_with_a_reason():
    said = information(Z, torch.arange(4), 0)
    assert said["bits"] is None
    assert "at least two classes" in said["reason"]


def test_raw_rows_are_the_inputs_flattened_and_large_pictures_are_averaged():
    small = torch.arange(24, dtype=torch.uint8).view(2, 1, 3, 4)
    assert torch.equal(raw_rows(small), torch.arange(24.0).view(2, 12))
    large = torch.full((2, 3, 64, 64), 7, dtype=torch.uint8)
    large[:, :, ::2] = 9
    assert torch.equal(raw_rows(large), torch.full((2, 3 * 32 * 32), 8.0))


def test_distances_are_densities_of_pairs_of_unit_rows():
    z = torch.tensor([[2.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 3.0]])
    said = distances(z, torch.tensor([0, 0, 1, 1]), 0, bins=4)
    assert said["edges"] == [0, 0.5, 1, 1.5, 2]
    assert said["same"] == [2, 0, 0, 0]  # density times the width of 0.5 is 1
    assert said["different"] == [0, 0, 2, 0]
    none = distances(z, torch.arange(4), 0, bins=4)
    assert none["same"] == [0.0] * 4


def test_distances_take_so_many_rows_by_the_seed():
    z = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    relevant = torch.arange(50) % 5
    few = [distances(z, relevant, seed, rows=20) for seed in (0, 0, 1)]
    assert few[0] == few[1] != few[2]
    width = few[0]["edges"][1]
    assert np.sum(few[0]["different"]) * width == pytest.approx(1, abs=1e-3)
