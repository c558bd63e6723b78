"""`nearkin index` and `nearkin search`, end to end; what wrong use gets."""

import json
from pathlib import Path

import numpy as np
import pytest

import nearkin as nk

pytest_plugins = ["commands"]


@pytest.fixture
def indexed(good, trained, photos):
    folder = photos({"ant": 3, "bee": 2})
    good("index", trained, folder, "--out", "deep/index")
    return folder


def test_items_find_themselves(good, trained, photos):
    folder = photos({"ant": 3, "bee": 2})
    said = json.loads(good("index", trained, folder, "--out", "index", "--json"))
    assert said == {"index": "index", "rows": 5, "dim": 8, "kind": "exact", "left_out": 0}
    found = json.loads(
        good("search", "index", folder / "bee/0.png", folder / "ant", "-k", 2, "--json")
    )
    assert set(found) == {"hits"}
    assert [len(hits) for hits in found["hits"]] == [2, 2, 2, 2]
    first = [hits[0] for hits in found["hits"]]
    assert [hit["id"] for hit in first] == ["bee/0.png", "ant/0.png", "ant/1.png", "ant/2.png"]
    assert [hit["label"] for hit in first] == ["bee", "ant", "ant", "ant"]
    assert all(hit["distance"] < 1e-6 for hit in first)


def test_hits_are_printed_below_their_query(good, indexed):
    said = good("search", "deep/index", indexed / "bee/0.png", "-k", 1)
    assert said == "0.png\n  0.0000  bee/0.png  bee\n"


def test_the_model_gives_the_same(good, trained, indexed):
    model = nk.load(trained)
    files = sorted(str(p) for p in indexed.rglob("*.png"))
    index = model.index(files, labels=[Path(f).parent.name for f in files])
    hits = index.search(files[:2], k=5)
    found = json.loads(good("search", "deep/index", *files[:2], "--json"))["hits"]
    for mine, theirs in zip(hits, found, strict=True):
        assert [h["label"] for h in mine] == [h["label"] for h in theirs]
        np.testing.assert_allclose(
            [h["distance"] for h in mine], [h["distance"] for h in theirs], atol=1e-6
        )
    assert hits[0][0]["id"] == files[0]


def test_wrong_use_is_told(bad, good, trained, indexed, tmp_path):
    bad("index", trained, indexed, "--out", "deep/index", says="exists; replace it with --force")
    good("index", trained, indexed, "--out", "deep/index", "--force", "--closeness", "euclidean")
    (tmp_path / "notes").mkdir()
    bad("index", trained, indexed, "--out", "notes", "--force", says="is no index")
    bad("index", trained, indexed, "--out", "x", "--kind", "tree", says="--kind is exact, not 'tr")
    bad("index", trained, indexed, "--out", "x", "--closeness", "cosin", says="did you mean 'cosi")
    bad("search", "nowhere", indexed, says="there is no index nowhere")
    bad("search", "deep/index", indexed, "-k", 9, says=r"k must be 1\.\.5")
    bad("search", "deep/index", indexed, "--run", "gone", says="gone, which embedded")
    assert not (tmp_path / "x").exists()
