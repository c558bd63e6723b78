"""Tables by class and group; wrong neighbors and thieves against a slow loop."""

import pickle

import numpy as np
import pytest
import torch

from nearkin.evaluation import evaluate, mistakes

GENERATOR = np.random.default_rng(0)
Y = np.r_[GENERATOR.integers(0, 12, 100), 50]
CAMERA = GENERATOR.integers(0, 4, 101)
Z = GENERATOR.standard_normal((12, 4))[Y % 12] + GENERATOR.standard_normal((101, 4))
X, YX = GENERATOR.standard_normal((70, 4)), GENERATOR.integers(0, 14, 70)


def slowly(z, x, relevant, skipped, closeness):
    """(query, neighbor, similarity, rank) where an item of another class stands first."""
    if closeness == "euclidean":
        similarity = -np.linalg.norm(z[:, None] - x[None], axis=2)
    else:
        if closeness == "cosine":
            z, x = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (z, x))
        similarity = z @ x.T
    found = []
    for i, row in enumerate(similarity):
        own = [row[j] for j in range(len(x)) if relevant[i, j] and not skipped[i, j]]
        other = [
            (-round(row[j], 9), j) for j in range(len(x)) if not relevant[i, j] | skipped[i, j]
        ]
        if own and other and -min(other)[0] >= max(own) - 1e-9:
            nearest = min(other)[1]
            rank = 1 + sum(-value >= max(own) - 1e-9 for value, _ in other)
            found.append((i, nearest, row[nearest], rank))
    return found


@pytest.mark.parametrize("closeness", ["cosine", "euclidean", "inner"])
@pytest.mark.parametrize("gallery", [False, True])
@pytest.mark.parametrize("exclude", [False, True])
@pytest.mark.parametrize("grid", [False, True])
@pytest.mark.parametrize("small", [False, True])
def test_wrong_neighbors_equal_a_slow_loop(closeness, gallery, exclude, grid, small, monkeypatch):
    if not small:
        monkeypatch.setattr(mistakes, "SMALL", 0)
    monkeypatch.setattr(mistakes, "FEW", 1)  # most queries look again, at more
    z, x = (np.round(rows) + 0.25 for rows in (Z, X)) if grid else (Z, X)
    x, yx = (x, YX) if gallery else (z, Y)
    relevant = Y[:, None] == yx[None]
    skipped = np.zeros(relevant.shape, bool) if gallery else np.eye(101, dtype=bool)
    arguments = {"gallery": x, "gallery_labels": yx} if gallery else {}
    if exclude:
        other = np.arange(70) % 4 if gallery else CAMERA
        skipped |= CAMERA[:, None] == other[None]
        arguments["exclude"] = (CAMERA, other) if gallery else CAMERA
    result = evaluate(z, Y, closeness=closeness, metrics="recall@1", **arguments)
    expected = slowly(z, x, relevant, skipped, closeness)
    found = sorted(result.wrong(1000))
    assert [(w.query, w.neighbor, w.rank) for w in found] == [(a, b, d) for a, b, _, d in expected]
    np.testing.assert_allclose([w.similarity for w in found], [c for *_, c, _ in expected])
    assert all((w.label, w.neighbor_label) == (Y[w.query], yx[w.neighbor]) for w in found)
    assert len(found) == round((1 - result["recall@1"]) * result.queries)


def test_the_worst_come_first():
    result = evaluate(Z, Y, metrics="recall@1")
    similar, far = result.wrong(1000), result.wrong(1000, by="rank")
    assert [w.similarity for w in similar] == sorted((w.similarity for w in similar), reverse=True)
    assert [w.rank for w in far] == sorted((w.rank for w in far), reverse=True)
    assert set(similar) == set(far)
    assert result.wrong(3) == similar[:3]


def test_ranks_are_those_of_mrr():
    result = evaluate(Z, Y, metrics=("recall@1", "mrr"))
    for found in result.wrong(1000):
        assert 1 / found.rank == result.per_query("mrr")[found.query]


def test_thieves_count_the_wrong_neighbors():
    result = evaluate(Z, Y, metrics="map@r")
    pairs = [(w.label, w.neighbor_label) for w in result.wrong(1000)]
    found = result.thieves(1000)
    assert {(t.label, t.thief): t.queries for t in found} == {p: pairs.count(p) for p in pairs}
    assert sum(t.queries for t in found) == len(pairs)
    assert [t.queries for t in found] == sorted((t.queries for t in found), reverse=True)
    scored = Y[~np.isnan(result.per_query("map@r"))]
    assert all(t.of == (scored == t.label).sum() for t in found)


def test_thieves_by_hand():
    angles = np.radians([0, 10, 4, 90, 95, 180, 181])
    z = np.stack([np.cos(angles), np.sin(angles)], 1)
    # "a" at 0° and 10° find "b" at 4°, which finds "a"; "c" and "d" are alone with their own.
    labels = ["a", "a", "b", "b", "c", "d", "d"]
    result = evaluate(z, labels, metrics="recall@1")
    assert result.thieves() == [("a", "b", 2, 2), ("b", "a", 1, 2), ("b", "c", 1, 2)]
    assert result.wrong(1)[0][:4] == (2, 0, "b", "a")
    assert result.wrong(1)[0].similarity == pytest.approx(np.cos(np.radians(4)))
    assert result.without_relevant == 1


def test_several_labels_are_wrong_where_no_label_is_shared():
    hot = GENERATOR.random((60, 5)) < 0.3
    hot[:, 0] |= ~hot.any(1)
    result = evaluate(Z[:60], hot, metrics="recall@1")
    relevant = (hot[:, None] & hot[None]).any(2)
    expected = slowly(Z[:60], Z[:60], relevant, np.eye(60, dtype=bool), "cosine")
    assert sorted(w[:2] for w in result.wrong(100)) == [w[:2] for w in expected]
    first = result.wrong(1)[0]
    assert first.label == tuple(np.flatnonzero(hot[first.query]))
    values = result.per_query("recall@1")
    table = result.by_class("recall@1")
    assert [part.name for part in table] == [0, 1, 2, 3, 4]
    for part in table:
        own = values[hot[:, part.name]]
        assert part.value == pytest.approx(np.nanmean(own))
        assert part.queries == (~np.isnan(own)).sum()


def test_a_perfect_embedding_has_no_wrong_neighbors():
    result = evaluate(np.eye(4)[np.arange(12) % 4] + 0.01, np.arange(12) % 4)
    assert (result.wrong(), result.thieves()) == ([], [])


@pytest.mark.parametrize("small", [0, mistakes.SMALL])
def test_a_collapsed_embedding_looks_at_as_many_as_it_must(monkeypatch, small):
    monkeypatch.setattr(mistakes, "SMALL", small)
    labels = np.r_[np.zeros(300, int), 1, 1]
    result = evaluate(np.ones((302, 2)), labels, metrics="recall@1")
    found = result.wrong(1000)
    assert len(found) == 302
    assert {(w.label, w.neighbor) for w in found} == {(0, 300), (1, 0)}
    assert {w.rank for w in found if w.label == 1} == {301}


@pytest.mark.parametrize("closeness", ["cosine", "euclidean"])
def test_rows_as_tensors_and_of_few_digits(closeness):
    expected = evaluate(Z, Y, metrics="recall@1", closeness=closeness).wrong(1000)
    for rows in (torch.from_numpy(Z), Z.tolist()):
        assert evaluate(rows, Y, metrics="recall@1", closeness=closeness).wrong(1000) == expected
    half = evaluate(Z.astype(np.float16), Y, metrics="recall@1", closeness=closeness)
    wide = Z.astype(np.float16).astype(float)
    wide = evaluate(wide, Y, metrics="recall@1", closeness=closeness).wrong(1000)
    assert [w[:2] for w in half.wrong(1000)] == [w[:2] for w in wide]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_memory_maps_are_searched(tmp_path, monkeypatch, dtype):
    z = Z.astype(dtype)
    expected = evaluate(z, Y, metrics="recall@1").wrong(1000)
    monkeypatch.setattr(mistakes, "SMALL", 0)
    np.save(tmp_path / "z.npy", z)
    mapped = np.load(tmp_path / "z.npy", mmap_mode="r")
    found = evaluate(mapped, Y, metrics="recall@1").wrong(1000)
    assert [w[:2] for w in found] == [w[:2] for w in expected]


@pytest.mark.parametrize("small", [0, mistakes.SMALL])
def test_blocks_of_queries_find_the_same(monkeypatch, small):
    expected = evaluate(Z, Y, metrics="recall@1").wrong(1000)
    monkeypatch.setattr(mistakes, "SMALL", small)
    monkeypatch.setattr(mistakes, "QUERIES", 7)
    monkeypatch.setattr(mistakes, "PLACES", 12)
    monkeypatch.setattr(mistakes, "PAIRS", 5)
    assert evaluate(Z, Y, metrics="recall@1").wrong(1000) == expected


def test_a_table_by_class_holds_every_class_and_its_mean():
    result = evaluate(Z, Y, metrics=("recall@1", "map@r"))
    values, table = result.per_query("map@r"), result.by_class("map@r")
    assert [part.name for part in table] == list(dict.fromkeys(Y.tolist()))
    for part in table[:-1]:
        assert part.value == pytest.approx(np.nanmean(values[part.name == Y]))
        assert part.queries == (part.name == Y).sum()
    assert table[-1][:2] == (50, 0)
    assert np.isnan(table[-1].value)
    scored = [part for part in table if part.queries]
    mean = sum(part.value * part.queries for part in scored) / result.queries
    assert mean == pytest.approx(result["map@r"])
    worst = result.worst_classes("map@r", 4)
    assert worst == sorted(scored, key=lambda part: part.value)[:4]
    assert len(result.worst_classes("map@r", 1000)) == 12


def test_of_equal_classes_the_larger_is_worse():
    z = np.eye(3)[[0, 1, 0, 1, 2, 0, 1, 2, 2]]
    result = evaluate(z, list("aabbbccdd"), metrics="recall@1")
    worst = result.worst_classes("recall@1", 3)
    assert [part.value for part in worst] == [0, 0, 0]
    assert worst[0].name == "b"


def test_names_of_a_gallery_alone_are_no_classes_of_queries():
    result = evaluate(Z[:100], Y[:100], X, YX, metrics="recall@1")
    assert {part.name for part in result.by_class("recall@1")} == set(Y[:100].tolist())


def test_a_table_by_group_takes_any_groups_or_those_excluded():
    names = np.array(["north", "south", "east", "west"])[CAMERA]
    result = evaluate(Z, Y, metrics="recall@1", exclude=names)
    values = result.per_query("recall@1")
    table = result.by_group("recall@1")
    assert table == result.by_group("recall@1", names)
    assert [part.name for part in table] == list(dict.fromkeys(names.tolist()))
    for part in table:
        assert part.value == pytest.approx(np.nanmean(values[names == part.name]))
    with pytest.raises(ValueError, match="there are no groups"):
        evaluate(Z, Y).by_group("recall@1")
    with pytest.raises(ValueError, match="groups has 3 entries but the result has 101 rows"):
        result.by_group("recall@1", [1, 2, 3])
    with pytest.raises(KeyError, match="no 'recall@9'"):
        result.by_class("recall@9")


def test_what_cannot_be_asked_is_told():
    result = evaluate(Z, Y)
    with pytest.raises(ValueError, match="n must be a whole number of 1 or more, not 0"):
        result.wrong(0)
    with pytest.raises(ValueError, match=r"not 2\.5"):
        result.worst_classes("recall@1", 2.5)
    with pytest.raises(ValueError, match="by must be similarity or rank, not 'margin'"):
        result.wrong(by="margin")
    result.forget_rows()
    assert result["recall@1"] > 0
    with pytest.raises(ValueError, match="this result has no rows"):
        result.thieves()
    with pytest.raises(ValueError, match="no metric of a ranking"):
        evaluate(Z, Y, metrics="nmi").wrong()


def test_a_pickled_result_leaves_its_rows_behind():
    result = evaluate(Z, Y)
    again = pickle.loads(pickle.dumps(result))
    assert again.to_dict() == result.to_dict()
    with pytest.raises(ValueError, match="has no rows"):
        again.wrong()
