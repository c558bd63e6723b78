"""The paper's figures are read where they can be; whatever cannot is told and costs nothing."""

import pytest

from nearkin.report.paper import read_paper

TOLD = {
    "source": "Somebody 2020, table 3",
    "selected": "best epoch on the test classes",
    "cosine": {"recall@1": 0.692, "recall@2": 1},
    "euclidean": {"recall@1": 0.676},
}


def test_figures_are_read_as_they_are():
    paper, notes = read_paper({"paper": TOLD})
    assert notes == []
    assert (paper.source, paper.selected) == (TOLD["source"], TOLD["selected"])
    assert paper.block == {key: TOLD[key] for key in ("cosine", "euclidean")}


@pytest.mark.parametrize("recipe", [{}, {"paper": None}])
def test_no_paper_is_nothing_to_tell(recipe):
    assert read_paper(recipe) == (None, [])


@pytest.mark.parametrize("data", ["cub", {"cub": {}}, {"cub": {"validation": 0.2}}])
def test_figures_stand_where_the_recipe_is_of_the_same_set(data):
    paper, notes = read_paper({"paper": {**TOLD, "data": "cub"}, "data": data})
    assert notes == []
    assert paper.block["cosine"] == TOLD["cosine"]


@pytest.mark.parametrize("data", [{"folder": {"path": "cub"}}, "cars", None, {}])
def test_figures_of_another_set_are_left_out_with_a_note(data):
    paper, (note,) = read_paper({"paper": {**TOLD, "data": "cub"}, "data": data})
    assert paper is None
    assert note.startswith("the recipe's `paper` tells figures of cub, and this run is of ")
    assert read_paper({"paper": TOLD, "data": data})[0] is not None


@pytest.mark.parametrize("value", [69.2, -0.1, "0.692", True, None, float("nan"), [0.5], {}])
def test_what_is_no_share_is_left_out_with_a_note(value):
    told = {"cosine": {"recall@1": value, "recall@2": 0.5}}
    paper, (note,) = read_paper({"paper": told})
    assert paper.block == {"cosine": {"recall@2": 0.5}}
    assert note.startswith("the recipe's `paper.cosine` says recall@1")
    assert (paper.source, paper.selected) == ("the paper", "")


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ("0.692", "is a str, not a mapping"),
        ([1], "is a list, not a mapping"),
        ({}, "tells no figure"),
        ({"source": "x"}, "tells no figure"),
        ({"cosine": 0.692}, "`paper.cosine` is not a mapping"),
        ({"recall@1": 0.692}, "unknown key 'recall@1'"),
        ({3: 4}, "unknown key 3"),
    ],
)
def test_a_malformed_paper_is_none_and_said_so(told, said):
    paper, notes = read_paper({"paper": told})
    assert paper is None
    assert any(said in note for note in notes)
