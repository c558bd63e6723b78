"""`nearkin evaluate`: runs and anybody's embeddings, and what is wrong with them."""

import json
import shutil

import numpy as np
import pytest
import tiny_runs
import torch

import nearkin as nk
from nearkin.console import Reporter
from nearkin.data.npz import npz
from nearkin.measured import measure
from nearkin.whitening import scatter, whitening

pytest_plugins = ["commands"]


def test_evaluating_a_run_gives_what_its_training_gave(good, trained):
    said = json.loads(good("evaluate", trained, "--json"))
    assert said == json.loads((trained / "metrics.json").read_text())["test"]


def test_evaluating_a_run_shows_both_tables(good, trained):
    out = good("evaluate", trained)
    assert f"{trained} (cosine, %)" in out
    assert f"{trained} (euclidean, %)" in out
    assert out.splitlines()[-1] == "533 queries"
    assert "never seen in training" not in out


def test_metrics_and_closeness_are_chosen(good, vectors):
    path = vectors()
    chosen = ("--metrics", "recall@1,mrr", "--metrics", "nmi")
    said = json.loads(good("evaluate", path, *chosen, "--closeness", "euclidean", "--json"))
    assert set(said) == {"euclidean", "queries", "without_relevant"}
    assert list(said["euclidean"])[:3] == ["recall@1", "mrr", "nmi"]
    assert said["queries"] == 40
    inner = good("evaluate", path, "--closeness", "inner", "--metrics", "recall@1")
    assert "z.npz (inner, %)" in inner


def test_information_stands_beside(good, vectors):
    said = json.loads(good("evaluate", vectors(), "--metrics", "information", "--json"))
    assert 0 < said["information"]["bits"] <= said["information"]["ceiling"] == 2
    assert "I(Z;Y) >= " in good("evaluate", vectors(), "--metrics", "recall@1,information")


def test_a_gallery_and_groups_are_read(good, vectors):
    label = np.repeat(np.arange(4), 10)
    gallery = np.eye(4, dtype=np.float32)
    path = vectors(gallery_embeddings=gallery, gallery_labels=np.arange(4))
    said = json.loads(good("evaluate", path, "--json"))
    assert said["cosine"]["recall@4"]["value"] == 1
    # Only the class's own gallery item is in another group for class 0.
    path = vectors(
        gallery_embeddings=gallery,
        gallery_labels=np.arange(4),
        groups=label,
        gallery_groups=np.array([9, 1, 2, 3]),
    )
    said = json.loads(good("evaluate", path, "--json"))
    assert (said["queries"], said["without_relevant"]) == (10, 30)
    alone = vectors(groups=np.arange(40))
    assert json.loads(good("evaluate", alone, "--json"))["queries"] == 40


def test_a_run_is_measured_on_other_data(good, bad, trained, photos, tmp_path):
    again = json.loads(good("evaluate", trained, "--data", "digits", "--json"))
    first = json.loads((trained / "metrics.json").read_text())["test"]
    assert again["queries"] == first["queries"]
    assert again["cosine"]["recall@1"]["value"] == pytest.approx(
        first["cosine"]["recall@1"]["value"], abs=0.01
    )
    folder = photos({"a": 4, "b": 3, "c": 1})
    (folder / "a" / "broken.png").write_bytes(b"broken")
    said = json.loads(good("evaluate", trained, "--data", folder, "--json"))
    assert (said["queries"], said["without_relevant"]) == (7, 1)
    split = photos({"train/a": 4, "train/b": 3, "test/c": 3, "test/d": 2}, "split")
    assert json.loads(good("evaluate", trained, "--data", split, "--json"))["queries"] == 5
    pixels = np.random.default_rng(0).integers(0, 256, (30, 8, 8), dtype=np.uint8)
    split = np.repeat([0, 2], 15)
    np.savez(tmp_path / "p.npz", images=pixels, labels=np.arange(30) // 5, split=split)
    said = json.loads(good("evaluate", trained, "--data", "p.npz", "--json"))
    assert said["queries"] == 15
    bad("evaluate", trained, "--data", "no/where", says="there is no folder no/where")
    bad("evaluate", trained, "--data", "digts", says="no data set 'digts'; did you mean 'digits'")
    bad("evaluate", trained, "--data", "glyphs.npz", says=r"there is no file glyphs\.npz")
    for path in folder.rglob("*.png"):
        path.write_bytes(b"broken")
    bad("evaluate", trained, "--data", folder, says="no image below .*photos can be read")


def test_a_run_is_measured_on_the_test_rows_of_a_table(good, bad, trained, photos):
    folder = photos({"a": 3, "b": 3, "c": 2})
    rows = [f"{p.relative_to(folder)},{p.parent.name}" for p in sorted(folder.rglob("*.png"))]
    parts = ["train" if row.endswith("c") else "test" for row in rows]
    lines = [f"{row},{part}" for row, part in zip(rows, parts, strict=True)]
    # Training needs two classes of its own.
    lines.append(f"{rows[-1].split(',')[0]},d,train")
    table = folder / "photos.csv"
    table.write_text("\n".join(["path,label,split", *lines]) + "\n")
    said = json.loads(good("evaluate", trained, "--data", table, "--json"))
    assert said["queries"] == 6
    bad("evaluate", trained, "--data", folder / "lost.csv", says=r"there is no file .*lost\.csv")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"labels": np.arange(39)}, "labels has 39 entries but z has 40 rows"),
        ({"embeddings": np.full((40, 4), np.nan)}, "NaN or infinite entries in 40 of 40 rows"),
        ({"embeddings": np.ones((40, 4), int)}, "floating-point numbers, not int64"),
        ({"embeddings": np.ones(40)}, r"must be a matrix \(N, D\)"),
        ({"embeddings": np.array([{}] * 40)}, "holds Python objects in 'embeddings'"),
        ({"labels": np.array([None] * 40)}, "holds Python objects in 'labels'"),
        ({"labels": np.linspace(0, 1, 40)}, "labels must be integers or texts"),
        ({"labels": np.zeros((40, 1), int)}, r"labels must be \(N,\)"),
        ({"labels": np.arange(40)}, "none of the 40 queries has a relevant item"),
        ({"labels": None}, "has no array 'labels'; it has embeddings"),
        ({"embeddings": None}, "has no array 'embeddings'; it has labels"),
        ({"gallery_embeddings": np.ones((2, 4))}, "needs gallery_labels"),
        (
            {"gallery_embeddings": np.ones((2, 3)), "gallery_labels": np.arange(2)},
            "z has 4 dimensions but gallery has 3",
        ),
        (
            {
                "gallery_embeddings": np.ones((2, 4)),
                "gallery_labels": np.arange(2),
                "groups": np.arange(40),
            },
            "need gallery_groups too",
        ),
        ({"groups": np.arange(7)}, "exclude has 7 entries"),
    ],
)
def test_wrong_embeddings_are_told(bad, vectors, changes, says):
    path = vectors(**changes)
    assert str(path) in bad("evaluate", path, says=says)


def test_wrong_evaluations_are_told(bad, vectors, trained, tmp_path):
    path = vectors()
    bad("evaluate", path, "--metrics", "recal@1", says="did you mean 'recall@1'")
    bad("evaluate", path, "--closeness", "cosin", says="did you mean 'cosine'")
    bad("evaluate", path, "--data", "digits", says="--data goes with a run")
    bad("evaluate", "none.npz", says=r"there is no file none\.npz")
    bad("evaluate", "nowhere", says="there is no run folder nowhere")
    (tmp_path / "text.npz").write_text("text")
    bad("evaluate", "text.npz", says=r"text\.npz is not a \.npz file")
    (tmp_path / "cut.npz").write_bytes(path.read_bytes()[:-40])
    bad("evaluate", "cut.npz", says=r"cut\.npz is (not a \.npz file|damaged)")
    bad("evaluate", "text.npz/", says="text.npz")
    (tmp_path / "z.csv").write_text("1,2")
    bad("evaluate", "z.csv", says=r"z\.csv is a file; give a run folder")
    bad("evaluate", tmp_path, says="is no run folder")
    bad("evaluate", trained, "--metrics", "recal@1", says="did you mean 'recall@1'")


def test_an_unfinished_run_is_told(bad, trained, tmp_path):
    run = shutil.copytree(trained, tmp_path / "r")
    (run / "metrics.json").unlink()
    bad("report", "r", says="is not finished")
    np.savez(run / "embeddings.npz", embeddings=np.ones((2, 2)), labels=np.arange(2))
    bad("evaluate", "r", says=r"embeddings\.npz has no array 'names'")
    (run / "embeddings.npz").unlink()
    bad("evaluate", "r", says="is not finished; end it with --resume")
    shutil.rmtree(run / "model")
    bad("embed", "r", tmp_path, "--out", "z.npz", says="is not finished; end it with --resume")


def test_queries_and_gallery_of_a_run_are_kept_apart(good, trained, tmp_path):
    run = shutil.copytree(trained, tmp_path / "r")
    with np.load(run / "embeddings.npz") as file:
        held = {name: file[name] for name in file.files}
    held["is_query"] = np.arange(len(held["labels"])) < 100
    held["is_gallery"] = ~held["is_query"]
    np.savez(run / "embeddings.npz", **held)
    assert json.loads(good("evaluate", "r", "--json"))["queries"] == 100


def test_a_run_is_measured_with_the_groups_it_was_trained_with(tmp_path):
    data = tiny_runs.write_rows(tmp_path / "rows.npz")
    with np.load(data) as held:
        arrays = dict(held)
    arrays["groups"] = np.arange(len(arrays["labels"])) // 2  # neighbors of one shot
    np.savez(data, **arrays)
    made = tiny_runs.recipe(data, train={"epochs": 1})
    done = nk.train(made, out=tmp_path / "run", reporter=Reporter(None))
    again = measure(tmp_path / "run")
    assert again["cosine"] == done.metrics["test"]["cosine"]
    with np.load(tmp_path / "run" / "embeddings.npz") as held:
        assert "group" in held.files
        bare = nk.evaluate(held["embeddings"], held["labels"])
    assert bare["map@r"] != again["cosine"]["map@r"]["value"]


# Floors


def rows_to_fit(count=30, seed=1):
    """Rows of ten other classes, for the floors of `vectors`."""
    random = np.random.default_rng(seed)
    return random.normal(size=(count, 4)).astype(np.float32), np.arange(count) % 10 + 4


def test_floors_of_a_run_are_those_of_its_training(good, bad, tmp_path):
    data = tiny_runs.write_rows(tmp_path / "rows.npz")
    made = tiny_runs.recipe(data, train={"epochs": 1})
    done = nk.train(made, out=tmp_path / "run", reporter=Reporter(None))
    said = json.loads(good("evaluate", "run", "--floors", "--json"))
    assert said == {**done.metrics["test"], "floors": done.metrics["floors"]}
    assert "floors" not in json.loads(good("evaluate", "run", "--json"))
    out = good("evaluate", "run", "--floors")
    assert "the features without training (cosine, %)" in out
    assert "whitened within classes, shrinkage" in out
    # Other metrics are measured now, and so are the floors of a run that has none.
    other = json.loads(good("evaluate", "run", "--floors", "--metrics", "recall@2", "--json"))
    assert list(other["floors"]["whitened"]["cosine"]) == ["recall@2"]
    bare = {name: block for name, block in done.metrics.items() if name != "floors"}
    (tmp_path / "run" / "metrics.json").write_text(json.dumps(bare))
    assert json.loads(good("evaluate", "run", "--floors", "--json")) == said
    bad("evaluate", "run", "--floors", "--data", "digits", says="leave --data out")


def test_a_run_without_features_has_no_floors(bad, trained, tmp_path):
    bad("evaluate", trained, "--floors", says="does not stand on fixed features")
    data = tiny_runs.write_rows(tmp_path / "rows.npz")
    splits = npz(data)
    made = tiny_runs.recipe(data, train={"epochs": 1})
    nk.train(made, data=splits, out=tmp_path / "own", reporter=Reporter(None))
    held = json.loads((tmp_path / "own" / "metrics.json").read_text())
    assert measure(tmp_path / "own", with_floors=True)["floors"] == held.pop("floors")
    (tmp_path / "own" / "metrics.json").write_text(json.dumps(held))
    bad("evaluate", "own", "--floors", says="given in Python")


def test_floors_of_embeddings_are_fitted_on_the_rows_beside_them(good, vectors):
    z, label = rows_to_fit()
    more, names = rows_to_fit(seed=2)
    path = vectors(
        train_embeddings=z,
        train_labels=label.astype(str),
        validation_embeddings=more,
        validation_labels=names + 10,
    )
    said = json.loads(good("evaluate", path, "--floors", "--json"))
    assert said["floors"]["raw"]["cosine"] == said["cosine"]
    assert said["floors"]["whitened"]["chosen_on"] == "validation"
    with np.load(path) as held:
        embeddings, labels = torch.from_numpy(held["embeddings"]), held["labels"]
    found = scatter(torch.from_numpy(z), torch.from_numpy(label))
    alone = vectors(train_embeddings=z, train_labels=label)
    said = json.loads(good("evaluate", alone, "--floors", "--metrics", "map@r", "--json"))
    assert said["floors"]["whitened"]["chosen_on"] == "default"
    white = nk.evaluate(whitening(found)(embeddings), labels, metrics=["map@r"])
    assert said["floors"]["whitened"]["cosine"] == white.to_dict()


def test_floors_search_the_gallery_and_skip_the_groups(vectors):
    z, label = rows_to_fit()
    gallery, groups = np.eye(4, dtype=np.float32)[[0, 0, 1, 2, 3]], np.arange(5) + 100
    groups[0] = 0
    path = vectors(
        train_embeddings=z,
        train_labels=label,
        gallery_embeddings=gallery,
        gallery_labels=np.array([0, 0, 1, 2, 3]),
        groups=np.repeat(np.arange(4), 10),
        gallery_groups=groups,
    )
    said = measure(path, with_floors=True)
    assert said["floors"]["raw"]["cosine"] == said["cosine"]
    assert said["floors"]["whitened"]["queries"] == 40


def test_a_file_of_features_is_measured_on_its_test_split(good, tmp_path, rows):
    said = json.loads(good("evaluate", rows, "--floors", "--metrics", "recall@1", "--json"))
    with np.load(rows) as held:
        test = held["split"] == 2
        raw = nk.evaluate(held["inputs"][test], held["labels"][test], metrics=["recall@1"])
    assert said["cosine"] == said["floors"]["raw"]["cosine"] == raw.to_dict()
    assert said["floors"]["whitened"]["chosen_on"] == "validation"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, "add the arrays train_embeddings and train_labels"),
        ({"train_embeddings": rows_to_fit()[0]}, "train_embeddings needs train_labels too"),
        (
            {"train_embeddings": np.ones((3, 5)), "train_labels": np.arange(3)},
            "train_embeddings must be rows of 4 numbers like embeddings",
        ),
        (
            {"train_embeddings": np.ones((3, 4)), "train_labels": np.arange(2)},
            "train_labels needs one entry a row of train_embeddings, which has 3",
        ),
        (
            {"train_embeddings": np.full((3, 4), np.nan), "train_labels": np.full(3, 7)},
            "NaN or infinite",
        ),
        (
            {"train_embeddings": np.ones((3, 4)), "train_labels": np.array([7, 3, 8])},
            "class '3' stands in train and in test",
        ),
        (
            {
                "train_embeddings": np.ones((2, 4)),
                "train_labels": np.array([7, 8]),
                "validation_embeddings": np.ones((2, 4)),
                "validation_labels": np.array([8, 9]),
            },
            "class '8' stands in train and in validation",
        ),
        ({"split": np.repeat([0, 2], 20)[:39]}, "need one entry a row each"),
    ],
)
def test_rows_that_floors_cannot_be_fitted_on_are_told(bad, vectors, changes, says):
    path = vectors(**changes)
    assert str(path) in bad("evaluate", path, "--floors", says=says)


def test_floors_of_pictures_are_refused(bad, tmp_path):
    pixels = np.zeros((30, 8, 8), dtype=np.uint8)
    split = np.repeat([0, 2], 15)
    np.savez(tmp_path / "p.npz", images=pixels, labels=np.arange(30) // 5, split=split)
    bad("evaluate", "p.npz", "--floors", says=r"inputs of shape \(1, 8, 8\); floors are of flat")


def test_what_is_hardly_meant_is_said_beside_the_result(vectors, call):
    code, out, err = call("evaluate", vectors(group=np.arange(40) % 2), "--json")
    assert code == 0
    assert json.loads(out)["queries"] == 40
    assert "the array 'group' is not read; is 'groups' meant?" in err
    code, _, err = call("evaluate", vectors(embeddings=np.ones((40, 4))))
    assert code == 0
    assert "all 40 rows are equal: the embedding has collapsed to one point" in err
    gallery = {"gallery_embeddings": np.ones((5, 4)), "gallery_labels": np.arange(5)}
    code, _, err = call("evaluate", vectors(**gallery))
    assert code == 0
    assert "all 5 rows are equal: the gallery's embedding has collapsed" in err
    assert call("evaluate", vectors(remarks=np.arange(3)))[2] == ""


def test_what_is_meant_is_not_doubted(vectors, call):
    ids = np.arange(40) % 2
    code, _, err = call("evaluate", vectors(group=ids, groups=ids))
    assert code == 0
    assert "is not read" not in err
    one = {"embeddings": np.ones((1, 4)), "labels": np.zeros(1, int)}
    gallery = {"gallery_embeddings": np.eye(4), "gallery_labels": np.arange(4)}
    code, _, err = call("evaluate", vectors(**one, **gallery))
    assert code == 0
    assert "collapsed" not in err


def test_floors_are_not_set_beside_graded_rankings(vectors, bad):
    above = np.arange(40) // 20
    rows = {"train_embeddings": np.eye(4), "train_labels": np.arange(4) + 100}
    path = vectors(super_labels=above, **rows)
    bad("evaluate", path, "--floors", "--metrics", "ndcg@5", says="floors know one grade")


def test_metrics_without_a_name_are_refused(vectors, bad):
    bad("evaluate", vectors(), "--metrics", " ,", says="--metrics names none")
