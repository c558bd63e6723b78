"""Index: build in blocks, search, save, load; what wrong input gets."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import nearkin as nk
from nearkin.search.index import CARD, VECTORS, Index

GENERATOR = np.random.default_rng(0)
Z = GENERATOR.standard_normal((300, 12)).astype(np.float32)
Q = GENERATOR.standard_normal((7, 12)).astype(np.float32)


def filled(closeness="cosine"):
    index = Index(closeness)
    for start in range(0, 300, 70):
        part = Z[start : start + 70]
        index.add(part, [f"{start + i}.jpg" for i in range(len(part))], labels=[start] * len(part))
    return index


def distances(closeness):
    q, g = Q.astype(float), Z.astype(float)
    if closeness == "euclidean":
        return np.linalg.norm(q[:, None] - g[None], axis=2)
    if closeness == "inner":
        return -q @ g.T
    return 1 - (q / np.linalg.norm(q, axis=1)[:, None]) @ (g / np.linalg.norm(g, axis=1)[:, None]).T


@pytest.mark.parametrize("closeness", ["cosine", "euclidean", "inner"])
def test_blocks_are_searched_as_one_matrix(closeness):
    expected = distances(closeness)
    order = expected.argsort(1)[:, :6]
    hits = filled(closeness).search(Q, k=6)
    assert [[hit["id"] for hit in row] for row in hits] == [
        [f"{j}.jpg" for j in row] for row in order
    ]
    found = [[hit["distance"] for hit in row] for row in hits]
    np.testing.assert_allclose(found, np.take_along_axis(expected, order, 1), atol=1e-12)
    assert hits[0][0]["label"] == int(order[0, 0]) // 70 * 70


def test_saved_and_loaded_it_gives_the_same(tmp_path):
    index = filled("euclidean")
    index.about["run"] = "runs/glyphs"
    index.save(tmp_path / "deep" / "index")
    again = nk.Index.load(tmp_path / "deep" / "index")
    assert again.search(Q, k=9) == index.search(Q, k=9)
    assert (again.about, len(again), again.dim) == ({"run": "runs/glyphs"}, 300, 12)
    assert sorted(p.name for p in (tmp_path / "deep").iterdir()) == ["index"]
    again.add(Q, [f"q{i}" for i in range(7)])
    assert [row[0]["id"] for row in again.search(Q, k=1)] == [f"q{i}" for i in range(7)]


def test_what_is_there_is_replaced_only_when_asked_for(tmp_path):
    index = filled()
    index.save(tmp_path / "index")
    with pytest.raises(FileExistsError, match="force"):
        index.save(tmp_path / "index")
    index.add(Q)
    index.save(tmp_path / "index", force=True)
    assert len(Index.load(tmp_path / "index")) == 307
    (tmp_path / "notes").mkdir()
    with pytest.raises(ValueError, match="no index"):
        index.save(tmp_path / "notes", force=True)


def test_a_saved_index_has_the_mode_of_other_folders(tmp_path):
    (tmp_path / "usual").mkdir()
    path = filled().save(tmp_path / "index")
    assert path.stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_the_old_index_comes_back_where_the_new_one_fails(tmp_path, monkeypatch):
    index = filled()
    path = index.save(tmp_path / "index")
    index.add(Q)
    rename = Path.rename

    def failing(self, target):
        if Path(target) == path and not self.name.endswith(".old"):
            raise OSError("no room")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="no room"):
        index.save(path, force=True)
    assert [p.name for p in tmp_path.iterdir()] == ["index"]
    assert len(Index.load(path)) == 300


def test_an_id_that_comes_twice_among_many_is_found_at_once():
    index, ids = Index(), [*range(60_000), 5]
    began = time.perf_counter()
    with pytest.raises(ValueError, match="5 comes twice"):
        index.add(np.ones((60_001, 1), np.float32), ids)
    assert time.perf_counter() - began < 5


def test_a_damaged_index_is_refused(tmp_path):
    path = filled().save(tmp_path / "index")
    with pytest.raises(FileNotFoundError, match="there is no index"):
        Index.load(tmp_path / "other")
    card = json.loads((path / CARD).read_text())
    (path / CARD).write_text(json.dumps({**card, "rows": 3}))
    with pytest.raises(ValueError, match="damaged"):
        Index.load(path)
    (path / CARD).write_text(json.dumps({**card, "kind": "hnsw"}))
    with pytest.raises(ValueError, match="of this version"):
        Index.load(path)
    (path / CARD).write_text(json.dumps(card))
    (path / VECTORS).write_bytes(b"\x80\x04pickled")
    with pytest.raises(ValueError, match="damaged"):
        Index.load(path)


def test_wrong_input_says_what_to_do():
    index = filled()
    with pytest.raises(ValueError, match=r"12 dimensions but z has 3"):
        index.add(np.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"12 dimensions but queries have 3"):
        index.search(np.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"k must be 1\.\.300, the items of the index, not 301"):
        index.search(Q, k=301)
    with pytest.raises(ValueError, match="not True"):
        index.search(Q, k=True)
    with pytest.raises(ValueError, match=r"'0\.jpg' comes twice"):
        index.add(Q[:1], ["0.jpg"])
    with pytest.raises(ValueError, match="'a' comes twice"):
        index.add(Q[:2], ["a", "a"])
    with pytest.raises(ValueError, match="ids has 1 entries but z has 2 rows"):
        index.add(Q[:2], ["a"])
    with pytest.raises(TypeError, match=r"entry 0 is 0\.5"):
        index.add(Q[:1], ["a"], [0.5])
    with pytest.raises(ValueError, match="NaN"):
        index.add(np.full((1, 12), np.nan), ["a"])
    with pytest.raises(ValueError, match="did you mean 'cosine'"):
        Index("cosin")
    assert len(index) == 300
    with pytest.raises(ValueError, match="empty"):
        Index().search(Q)
    with pytest.raises(ValueError, match="empty"):
        Index().save("never")


def test_huge_queries_meet_small_items():
    index = Index("inner")
    index.add(np.eye(4) * 1e-3)
    found = index.search(np.eye(4)[:1] * 1e200, k=2)[0]
    assert (found[0]["id"], found[0]["distance"]) == (0, pytest.approx(-1e197))
    assert index.search(np.eye(4)[1:2], k=1)[0][0] == {
        "id": 1, "distance": pytest.approx(-1e-3), "label": None,
    }  # fmt: skip


def test_float64_and_torch_rows_are_kept_as_they_are():
    z = np.array([[1.0, 0.0], [1.0, 1e-9]])
    index = Index("euclidean")
    index.add(torch.from_numpy(z))
    assert index.search(z[1:], k=1)[0][0]["id"] == 1
    half = Index()
    half.add(torch.eye(3).bfloat16())
    assert half.search(torch.eye(3).bfloat16(), k=1)[2][0]["distance"] == 0
