"""`nearkin evaluate --by, --thieves, --wrong, --against, --gains`: figures, tables, wrong input."""

import json
import shutil

import numpy as np
import pytest

import nearkin as nk

pytest_plugins = ["commands"]

GENERATOR = np.random.default_rng(0)
LABELS = np.repeat(["ant", "bee", "cat", "dog", "eel", "fox"], 10)
SUPER = np.repeat(["insect", "insect", "pet", "pet", "wild", "wild"], 10)
CAMERA = np.arange(60) % 3
Z = (GENERATOR.standard_normal((6, 5)).repeat(10, 0) + GENERATOR.standard_normal((60, 5))).astype(
    np.float32
)
OTHER = (Z + GENERATOR.standard_normal((60, 5))).astype(np.float32)
IDS = np.array([f"pictures/{i:02}.jpg" for i in range(60)])


@pytest.fixture
def file(vectors):
    return vectors("a.npz", embeddings=Z, labels=LABELS, super_labels=SUPER, groups=CAMERA, ids=IDS)


def result_of(metrics="recall@1", z=Z, **more):
    return nk.evaluate(z, LABELS, metrics=metrics, exclude=CAMERA, **more)


def test_details_are_those_of_python(good, file):
    names = ("recall@1", "map@r")
    asked = ("--metrics", "recall@1,map@r", "--by", "class", "--thieves", 3, "--wrong", 4)
    said = json.loads(good("evaluate", file, *asked, "--json"))
    result, found = result_of(names), said["details"]
    assert found["closeness"] == "cosine"
    assert {"cosine", "euclidean", "queries", "without_relevant", "details"} == set(said)
    worst = result.worst_classes("recall@1", 6)
    assert [(p["name"], p["queries"], p["recall@1"]) for p in found["parts"]] == worst
    by_class = {part.name: part.value for part in result.by_class("map@r")}
    assert {part["name"]: part["map@r"] for part in found["parts"]} == by_class
    assert [tuple(theft.values()) for theft in found["thieves"]] == result.thieves(3)
    for one, expected in zip(found["wrong"], result.wrong(4), strict=True):
        ids = {"query_id": IDS[expected.query], "neighbor_id": IDS[expected.neighbor]}
        assert one == {**expected._asdict(), **ids}


def test_tables_by_group_and_super_label(good, file):
    result = result_of()
    for by, groups in (("group", CAMERA), ("super", SUPER)):
        said = json.loads(good("evaluate", file, "--metrics", "recall@1", "--by", by, "--json"))
        found = {p["name"]: (p["queries"], p["recall@1"]) for p in said["details"]["parts"]}
        assert found == {p.name: tuple(p[1:]) for p in result.by_group("recall@1", groups)}
    shown = good("evaluate", file, "--by", "super", "--closeness", "euclidean")
    assert "by super-label (euclidean, %), the lowest recall@1 first" in shown
    assert {"insect", "pet", "wild"} < set(shown.split())


def test_tables_are_shown(good, file):
    asked = ("--closeness", "cosine", "--worst", 2, "--thieves", 2, "--wrong", 1)
    shown = good("evaluate", file, *asked)
    worst, thief, wrong = (
        result_of().worst_classes("recall@1", 3),
        result_of().thieves(1)[0],
        result_of().wrong(1)[0],
    )
    lines = [line.split() for line in shown.splitlines()]
    assert [worst[0].name, "10", f"{100 * worst[0].value:.1f}"] in [line[:3] for line in lines]
    assert "by class (cosine, %), the lowest recall@1 first" in shown
    share = f"{100 * thief.queries / thief.of:.1f}"
    assert [thief.label, thief.thief, str(thief.queries), str(thief.of), share] in lines
    assert IDS[wrong.query] in shown
    assert f"{wrong.similarity:.4f}" in shown
    assert shown.splitlines()[-1] == "60 queries"


def test_a_table_of_many_classes_is_cut_and_says_so(good, vectors):
    path = vectors(labels=np.arange(40) // 2)
    shown = good("evaluate", path, "--by", "class", "--closeness", "cosine")
    assert "10 more: --worst, --json" in shown
    assert "more:" not in good("evaluate", path, "--worst", "20", "--closeness", "cosine")
    said = json.loads(good("evaluate", path, "--worst", "3", "--json"))
    assert len(said["details"]["parts"]) == 3


def test_against_another_file(good, file, vectors):
    vectors("b.npz", embeddings=OTHER, labels=LABELS, groups=CAMERA)
    asked = ("evaluate", file, "--against", "b.npz", "--metrics", "recall@1,map@r,nmi")
    for over in ("classes", "queries"):
        said = json.loads(good(*asked, "--over", over, "--json"))["against"]
        assert (said["source"], said["over"], said["test"]) == ("b.npz", over, "sign_flip")
        for closeness in ("cosine", "euclidean"):
            a, b = (result_of("map@r", z, closeness=closeness) for z in (Z, OTHER))
            found = nk.compare_results(a, b, "map@r", over=over)
            assert set(said[closeness]) == {"recall@1", "map@r"}
            assert said[closeness]["map@r"] == {
                "value": a["map@r"],
                "other": b["map@r"],
                "difference": found.value,
                "low": found.low,
                "high": found.high,
                "p": found.p,
            }
    shown = good(*asked)
    assert "against b.npz (euclidean, %): paired, 95 % over classes, p by random signs" in shown


def test_intervals_over_queries_are_those_of_python(good, file):
    asked = ("--metrics", "map@r", "--closeness", "cosine", "--over", "queries", "--json")
    said = json.loads(good("evaluate", file, *asked))["cosine"]["map@r"]
    assert (said["low"], said["high"]) == result_of("map@r").interval("map@r", "queries")


def test_a_run_has_names_and_is_compared_with_another(good, bad, trained, tmp_path):
    other = shutil.copytree(trained, tmp_path / "other")
    with np.load(other / "embeddings.npz") as file:
        held = {name: file[name] for name in file.files}
    held["embeddings"] = held["embeddings"][:, :4]
    np.savez(other / "embeddings.npz", **held)
    asked = ("--by", "class", "--wrong", 2, "--thieves", 1, "--closeness", "cosine")
    said = json.loads(good("evaluate", trained, *asked, "--against", other, "--json"))
    names = set(held["names"].tolist())
    assert {part["name"] for part in said["details"]["parts"]} <= names
    assert {said["details"]["wrong"][0][key] for key in ("label", "neighbor_label")} <= names
    assert said["details"]["wrong"][0]["query_id"] in held["ids"]
    assert said["details"]["thieves"][0]["label"] in names
    one = said["against"]["cosine"]["recall@1"]
    assert one["difference"] == pytest.approx(one["value"] - one["other"])
    held["ids"] = held["ids"][::-1]
    np.savez(other / "embeddings.npz", **held)
    bad("evaluate", trained, "--against", other, says="other: .*their ids differ", notes=True)


def test_gains_grade_ndcg(good, file):
    asked = ("--metrics", "ndcg@5", "--closeness", "cosine", "--json")
    binary = json.loads(good("evaluate", file, *asked))["cosine"]["ndcg@5"]["value"]
    graded = json.loads(good("evaluate", file, *asked, "--gains", "2,1"))["cosine"]["ndcg@5"][
        "value"
    ]
    assert binary == result_of("ndcg@5")["ndcg@5"]
    assert graded == result_of("ndcg@5", super_labels=SUPER, gains=(2, 1))["ndcg@5"] != binary


def test_a_gallery_has_levels_and_ids_of_its_own(good, bad, vectors):
    arrays = {
        "embeddings": Z[:20],
        "labels": LABELS[:20],
        "gallery_embeddings": OTHER,
        "gallery_labels": LABELS,
        "super_labels": SUPER[:20],
        "gallery_super_labels": SUPER,
        "gallery_ids": IDS,
    }
    path = vectors("g.npz", **arrays)
    asked = ("--metrics", "ndcg@5", "--gains", "3,1", "--wrong", 1, "--closeness", "cosine")
    said = json.loads(good("evaluate", path, *asked, "--json"))
    result = nk.evaluate(
        Z[:20],
        LABELS[:20],
        OTHER,
        LABELS,
        metrics="ndcg@5",
        super_labels=SUPER[:20],
        gallery_super_labels=SUPER,
        gains=(3, 1),
    )
    assert said["cosine"]["ndcg@5"]["value"] == result["ndcg@5"]
    (wrong,) = said["details"]["wrong"]
    assert wrong["neighbor_id"] == IDS[wrong["neighbor"]]
    assert wrong["query_id"] == wrong["query"]
    arrays.pop("gallery_super_labels")
    path = vectors("h.npz", **arrays)
    bad("evaluate", path, *asked, says="h.npz: a gallery needs gallery_super_labels too")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--by", "label"), "--by takes class, group or super, not 'label'"),
        (("--worst", "0"), "--worst takes a number of 1 or more, not 0"),
        (("--thieves", "-1"), "--thieves takes a number of 1 or more"),
        (("--wrong", "x"), "Invalid value for .--wrong.: .* valid integer"),
        (("--over", "rows"), "--over takes classes or queries, not 'rows'"),
        (("--gains", "two"), "--gains takes numbers that descend, such as 2,1, not 'two'"),
        (("--gains", "1,2", "--metrics", "ndcg@5"), "gains must be 2 numbers above 0 that descend"),
        (("--gains", "2,1"), "super_labels grade ndcg@K alone"),
        (("--against", "lost.npz"), r"there is no file lost\.npz"),
        (("--against", "nowhere"), "there is no run folder nowhere"),
        (("--by", "class", "--metrics", "ami"), "a table needs a metric of rankings"),
        (("--wrong", "1", "--metrics", "ami"), "no metric of a ranking"),
        (("--against", "a.npz", "--metrics", "ami"), "--against pairs queries and needs a metric"),
    ],
)
def test_wrong_options_are_told(bad, file, options, says):
    bad("evaluate", file, *options, says=says, notes=True)


def test_what_a_file_does_not_hold_is_told(bad, vectors):
    path = vectors()
    bad("evaluate", path, "--by", "group", says="needs groups: the array groups", notes=True)
    bad("evaluate", path, "--by", "super", says="needs the array super_labels", notes=True)
    asked = ("--gains", "2,1", "--metrics", "ndcg@5")
    bad("evaluate", path, *asked, says="z.npz: gains need .* the array super_labels", notes=True)
    bad("evaluate", vectors("i.npz", ids=np.arange(3)), says="i.npz: ids must have one entry")
    mixed = vectors("m.npz", super_labels=np.arange(40))
    bad("evaluate", mixed, *asked, says="every class needs one super-label", notes=True)


def test_other_queries_are_not_compared(bad, vectors):
    path, half = vectors(), np.arange(0, 40, 2)
    with np.load(path) as held:
        arrays = dict(held)
    vectors("half.npz", **{name: array[half] for name, array in arrays.items()})
    vectors("turned.npz", labels=arrays["labels"][::-1])
    says = "z.npz against half.npz: paired results need the same queries, but the first has 40"
    bad("evaluate", path, "--against", "half.npz", says=says, notes=True)
    bad("evaluate", path, "--against", "turned.npz", says="their labels differ", notes=True)


def test_of_several_super_labels_the_first_makes_the_table(good, bad, vectors):
    both = np.stack([SUPER, np.repeat("animal", 60)], 1)
    arrays = {"embeddings": Z, "labels": LABELS}
    said = []
    for above in (SUPER, both):
        path = vectors("s.npz", **arrays, super_labels=above)
        said.append(json.loads(good("evaluate", path, "--by", "super", "--json"))["details"])
    assert said[0] == said[1]
    path = vectors("f.npz", **arrays, super_labels=np.full(60, 0.5))
    bad("evaluate", path, "--by", "super", says="--by super: ", notes=True)


def test_integer_ids_must_be_the_same_too(good, bad, vectors):
    path = vectors("a.npz", embeddings=Z, labels=LABELS, ids=np.arange(60))
    asked = ("evaluate", path, "--metrics", "recall@1", "--against", "b.npz")
    vectors("b.npz", embeddings=OTHER, labels=LABELS, ids=np.arange(60)[::-1])
    bad(*asked, says="their ids differ", notes=True)
    vectors("b.npz", embeddings=OTHER, labels=LABELS, ids=np.arange(60))
    good(*asked)
    vectors("b.npz", embeddings=OTHER, labels=LABELS)
    good(*asked)


def test_ids_that_json_lacks_are_written_as_text(good, vectors):
    days = np.datetime64("2026-11-29") + np.arange(60)
    for ids in (days, np.arange(60) * 1j, np.full(60, np.nan)):
        path = vectors("d.npz", embeddings=Z, labels=LABELS, ids=ids)
        said = json.loads(good("evaluate", path, "--wrong", 1, "--json"))
        (one,) = said["details"]["wrong"]
        assert isinstance(one["query_id"], str)
    path = vectors("d.npz", embeddings=Z, labels=LABELS, ids=days)
    assert str(days[0])[:3] in good("evaluate", path, "--wrong", 1)


@pytest.mark.parametrize(
    ("name", "needs", "more"),
    [
        ("gallery_ids", "gallery_embeddings", {}),
        ("gallery_super_labels", "gallery_embeddings", {"super_labels": SUPER}),
        ("gallery_labels", "gallery_embeddings", {}),
        ("gallery_groups", "gallery_embeddings", {"groups": CAMERA}),
        ("gallery_groups", "groups", {"gallery_embeddings": Z, "gallery_labels": LABELS}),
    ],
)
def test_arrays_of_a_gallery_are_never_ignored(bad, vectors, name, needs, more):
    path = vectors("g.npz", embeddings=Z, labels=LABELS, **{name: np.arange(60)}, **more)
    bad("evaluate", path, says=f"g.npz: {name} needs {needs} too", notes=True)
