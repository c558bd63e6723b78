"""The catalog on a small package of its own: what is found, what it takes, what a value may be."""

from __future__ import annotations

import sys
import textwrap
import typing
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from nearkin import catalog
from nearkin.catalog import Kind, RecipeError, checked, find, members, scan, slots_of

BASE = """
    class Shape:
        '''What all shapes are.'''
        name = "shape"
"""
ROUND = """
    '''Round shapes.'''
    from __future__ import annotations
    from typing import ClassVar
    from {shop}.shapes.base import Shape

    class Curved(Shape):
        '''Abstract: it has no name of its own.'''

    class Circle(Curved):
        '''A circle (Euclid 1950, eq. 1).

        area = pi r^2
        '''
        name: ClassVar[str] = "circle"
        def __init__(self, radius: float = 1.0, inner: Shape | None = None, *, color: str):
            self.radius = radius

    class _Hidden(Shape):
        name = "hidden"

    def helper(): return 1
"""
LOSSES = """
    from __future__ import annotations
    from nearkin.core import Comparison, Terms

    def near(c: Comparison, *, margin: float = 0.5) -> Terms:
        '''Near is good (Nobody
        2019, eq. 3).'''

    def far(c: Comparison) -> Terms:
        '''Far is bad (see the other).'''

    def number(c: Comparison) -> float: ...
    def total(z: int) -> Terms: ...
    def nothing() -> Terms: ...
    def _private(c: Comparison) -> Terms: ...
    again = near
"""
PLANS = """
    from collections.abc import Callable
    import typing

    def ramp(total: int, *, warmup: int = 10) -> Callable[[int], float]: ...
    def old(total: int) -> typing.Callable[[int], float]: ...
    def other(steps: int) -> Callable[[int], float]: ...
    def wrong(total: int) -> Callable[[int], int]: ...
    def metric_names():
        return [("recall@K", "share of hits", "Somebody 2011"), ("map@r", "precision", "classical")]
"""


@pytest.fixture
def shop(tmp_path, monkeypatch, request):
    """The name of a fresh package with shapes, losses, plans and recipes, which are the kinds."""
    name = f"shop_{abs(hash(request.node.nodeid))}"
    files = {
        "__init__.py": "",
        "shapes/__init__.py": "",
        "shapes/base.py": BASE,
        "shapes/round.py": ROUND,
        "shapes/_draft.py": "raise RuntimeError('a private module was imported')",
        "losses.py": LOSSES,
        "plans.py": PLANS,
        "recipes/plain.yaml": "about: 'The plain one.'\nseed: 1\n",
        "recipes/famous.yaml": "# famous (Somebody 2020)    cost: 1 s\nseed: 0\n",
        "recipes/silent.yaml": "seed: 0\n",
        "recipes/README.md": "no recipe",
    }
    for path, text in files.items():
        file = tmp_path / name / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(text).replace("{shop}", name))
    table = [
        Kind("recipe", f"{name}.recipes", "recipes"),
        Kind("shape", f"{name}.shapes", "shapes", base=f"{name}.shapes.base:Shape"),
        Kind(
            *("loss", f"{name}.losses", "losses", "", "", "nearkin.core:Terms"),
            *("nearkin.core:Comparison", True),
        ),
        Kind("plan", f"{name}.plans", "plans", "", "", catalog.Schedule, "total", True),
        Kind("metric", f"{name}.plans", "metrics", names="metric_names"),
        Kind("ghost", f"{name}.ghosts", "ghosts", base=f"{name}.ghosts:Ghost"),
    ]
    monkeypatch.setattr(catalog, "KINDS", {kind.name: kind for kind in table})
    monkeypatch.syspath_prepend(tmp_path)
    yield name
    for module in [key for key in sys.modules if key.partition(".")[0] == name]:
        del sys.modules[module]


def names(kind: str) -> list[str]:
    return [entry.name for entry in members(kind)]


# What is found


def test_a_class_is_listed_by_its_own_name_and_abstract_private_and_base_classes_are_not(shop):
    assert names("shape") == ["circle"]


def test_a_function_is_listed_by_what_it_takes_first_and_returns(shop):
    assert names("loss") == ["far", "near"]


def test_a_waiting_function_may_be_known_by_the_name_of_its_first_parameter(shop):
    assert names("plan") == ["old", "ramp"]


def test_a_kind_whose_home_does_not_exist_has_no_members(shop):
    assert names("ghosts") == []


def test_a_module_that_fails_to_import_is_not_taken_for_a_missing_home(shop, tmp_path):
    (tmp_path / shop / "ghosts.py").write_text("import a_module_that_nobody_has")
    with pytest.raises(ModuleNotFoundError, match="a_module_that_nobody_has"):
        names("ghost")


def test_things_imported_from_elsewhere_are_skipped(shop, tmp_path):
    (tmp_path / shop / "shapes" / "more.py").write_text(f"from {shop}.shapes.round import Circle")
    assert names("shape") == ["circle"]


def test_two_members_of_one_name_raise(shop, tmp_path):
    text = f"from {shop}.shapes.base import Shape\nclass Ring(Shape):\n    name = 'circle'\n"
    (tmp_path / shop / "shapes" / "ring.py").write_text(text)
    with pytest.raises(RecipeError, match=r"two of the name 'circle', in .*ring and .*round"):
        names("shape")


def test_a_name_that_is_no_text_makes_no_member(shop, tmp_path):
    text = f"from {shop}.shapes.base import Shape\nclass Odd(Shape):\n    name = property(str)\n"
    (tmp_path / shop / "shapes" / "odd.py").write_text(text)
    assert names("shape") == ["circle"]


def test_the_table_names_the_kinds_of_a_recipe_once():
    plurals = [kind.plural for kind in catalog.KINDS.values()]
    assert len(set(plurals)) == len(plurals)
    keys = ["recipe", "data", "encoder", "sampler", "objective", "critic", "method", "compare"]
    more = ["mining", "loss", "optimizer", "schedule", "augmentation", "crop", "metric"]
    assert list(catalog.KINDS) == [*keys, *more, "estimator"]
    waiting = {kind.name for kind in catalog.KINDS.values() if kind.waits}
    assert waiting == {
        *("loss", "mining", "optimizer", "schedule", "augmentation", "crop", "estimator")
    }


@pytest.mark.parametrize("kind", catalog.KINDS)
def test_every_kind_of_the_package_is_scanned_and_every_member_told(kind):
    for entry in members(kind):
        assert entry.kind == kind
        assert all([entry.name, entry.source, entry.signature])


@pytest.mark.parametrize(
    ("kind", "some"),
    [
        ("loss", {"contrastive", "infonce", "cross_entropy", "proxy_anchor"}),
        ("mining", {"hard", "semi_hard"}),
        ("compare", {"in_batch", "across_views", "memory", "proxies", "centers", "classifier"}),
        ("sampler", {"uniform", "balanced"}),
        ("objective", {"compared", "sum"}),
        ("optimizer", {"sgd", "adamw"}),
        ("schedule", {"warmup_cosine", "step", "constant"}),
        ("data", {"glyphs", "digits", "folder", "npz"}),
        ("encoder", {"small_cnn", "mlp"}),
        ("metric", {"recall@K", "map@r", "information"}),
    ],
)
def test_the_house_has_its_first_members(kind, some):
    assert some <= set(names(kind))


# What the command line shows


def test_an_entry_has_summary_source_signature_and_module(shop):
    (entry,) = members("shapes")
    assert entry.kind == "shape"
    assert entry.summary == "A circle (Euclid 1950, eq. 1)."
    assert entry.source == "Euclid 1950, eq. 1"
    assert entry.signature == "circle(radius: float = 1.0, inner: shape = None, color: str)"
    assert entry.doc.endswith("area = pi r^2")
    assert entry.module == f"{shop}.shapes.round"


def test_a_reference_may_run_over_two_lines_and_a_remark_is_no_reference(shop):
    far, near = members("losses")
    assert near.source == "Nobody 2019, eq. 3"
    assert near.signature == "near(margin: float = 0.5)"
    assert far.source == f"{shop}.losses"


def test_recipes_are_listed_by_first_comment_or_about(shop):
    famous, plain, silent = members("recipes")
    assert (famous.summary, famous.source) == ("famous (Somebody 2020); cost: 1 s", "Somebody 2020")
    assert (plain.summary, plain.source) == ("The plain one.", f"{shop}.recipes")
    assert (silent.summary, silent.signature) == ("", "nearkin train silent")


def test_metrics_are_listed_by_the_names_they_give(shop):
    assert names("metrics") == ["recall@K", "map@r"]
    first = members("metrics")[0]
    assert (first.summary, first.source) == ("share of hits", "Somebody 2011")


def test_find_looks_through_all_kinds(shop):
    assert [(entry.kind, entry.name) for entry in find("near")] == [("loss", "near")]
    assert [entry.name for entry in find("recall@5")] == ["recall@K"]


def test_find_says_the_nearest_name(shop):
    with pytest.raises(RecipeError, match=r"nothing named 'cirkle'; did you mean 'circle'\?"):
        find("cirkle")


def test_an_unknown_kind_says_the_nearest_kind(shop):
    with pytest.raises(RecipeError, match=r"there is no kind 'loses'; did you mean 'losses'\?"):
        members("loses")


def test_without_a_near_name_the_known_ones_are_listed():
    assert catalog.did_you_mean("zzz", ["b", "a"]) == "known: a, b"
    assert catalog.did_you_mean("zzz", []) == "there is none to choose from"
    assert catalog.did_you_mean("InfoNCE", ["infonce"]) == "did you mean 'infonce'?"


# What a member takes


def test_slots_know_kinds_by_base_class_and_by_alias(shop):
    base = type(sys.modules).__class__  # any class that is no kind
    (shape, loss) = catalog.KINDS["shape"], catalog.KINDS["loss"]
    scan(shape)
    scan(loss)
    Shape = sys.modules[f"{shop}.shapes.base"].Shape
    from nearkin.core import Comparison, Loss, Terms

    def make(one, maybe, many, named, score, older, plain=3, other=None, *more, **rest): ...

    make.__annotations__ = {
        "one": Shape,
        "maybe": Shape | None,
        "many": list[Shape],
        "named": dict[str, Shape] | None,
        "score": Loss,
        "older": typing.Callable[[Comparison], Terms],
        "plain": int,
        "other": base | None,
    }
    slots = slots_of(make)
    assert list(slots) == [*make.__annotations__]
    read = {key: (slot.kind, slot.shape, slot.optional) for key, slot in slots.items()}
    assert read == {
        "one": (shape, "one", False),
        "maybe": (shape, "one", True),
        "many": (shape, "list", False),
        "named": (shape, "dict", True),
        "score": (loss, "one", False),
        "older": (loss, "one", False),
        "plain": (None, "one", False),
        "other": (None, "one", False),
    }
    assert (slots["one"].default, slots["plain"].default) == (catalog.REQUIRED, 3)


def test_a_waiting_function_keeps_its_first_parameter_out_of_its_settings(shop):
    loss = catalog.KINDS["loss"]
    assert list(slots_of(scan(loss)["near"], loss)) == ["margin"]
    assert list(slots_of(scan(loss)["near"])) == ["c", "margin"]


# What a value may be


@pytest.mark.parametrize(
    ("value", "annotation", "result"),
    [
        ("5e-4", float, 5e-4),
        (3, float, 3.0),
        (np.float64(0.5), float, 0.5),
        (None, float | None, None),
        ("1e-3", float | Literal["auto"], 1e-3),
        ("auto", float | Literal["auto"], "auto"),
        ([1, "2.5"], tuple[float, float], (1.0, 2.5)),
        ([1, 2, 3], tuple[int, ...], (1, 2, 3)),
        ({"a": 1, "b": "2"}, dict[str, float], {"a": 1.0, "b": 2.0}),
        (3, int | float, 3),
        ("runs/x", str | Path, "runs/x"),
        ("runs/x", Path, Path("runs/x")),
        ({"x": [1, "y"]}, Any, {"x": [1, "y"]}),
        (2, Annotated[int, Field(ge=1)], 2),
    ],
)
def test_a_value_becomes_what_its_annotation_says(value, annotation, result):
    fitting = checked(value, annotation, "here")
    assert fitting == result
    assert type(fitting) is type(result)


@pytest.mark.parametrize(
    ("value", "annotation", "sentence"),
    [
        ("abc", float, "here: expected a number, got 'abc'"),
        (True, float, "here: expected a number, got True"),
        (None, float, "here: expected a number, got None"),
        (float("nan"), float, "here: expected a finite number, got nan"),
        (float("inf"), float | None, "here: expected a finite number, got inf"),
        ("nan", float, "here: expected a finite number, got 'nan'"),
        ("1e999", float, "here: expected a finite number, got '1e999'"),
        ({"x": [float("nan")]}, Any, "here: expected finite numbers, got {'x': [nan]}"),
        (3.0, int, "here: expected an integer, got 3.0"),
        ("3", int, "here: expected an integer, got '3'"),
        (True, int, "here: expected an integer, got True"),
        (1, bool, "here: expected true or false, got 1"),
        ("yes", bool, "here: expected true or false, got 'yes'"),
        (5, str, "here: expected text, got 5"),
        (0, Annotated[int, Field(ge=1)], "here: expected at least 1, got 0"),
        (0.0, Annotated[float, Field(gt=0)], "here: expected more than 0, got 0.0"),
        ("x", int | None, "here: expected an integer, got 'x'"),
        (2.5, int | str, "here: expected an integer or text, got 2.5"),
        ([1, 2], list[str], "here.0: expected text, got 1"),
        ([1, "z"], list[float], "here.1: expected a number, got 'z'"),
        (3, list[float], "here: expected a list, got 3"),
        (3, dict[str, float], "here: expected {name: value}, got 3"),
        ({"b": "x"}, dict[str, float], "here.b: expected a number, got 'x'"),
        ({"b": {"c": 1.5}}, dict[str, dict[str, int]], "here.b.c: expected an integer, got 1.5"),
        ("means", Literal["sums", "none"], "here: expected 'sums' or 'none', got 'means'"),
        ("bfloat", Literal["bfloat16"], "here: expected 'bfloat16', got 'bfloat'; "
         "did you mean 'bfloat16'?"),
        ("aut", float | Literal["auto"], "here: expected a number or 'auto', got 'aut'; "
         "did you mean 'auto'?"),
    ],
)  # fmt: skip
def test_a_value_that_does_not_fit_is_refused_with_a_sentence(value, annotation, sentence):
    with pytest.raises(RecipeError) as error:
        checked(value, annotation, "here")
    assert str(error.value) == sentence


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_number_written_as_text_is_the_same_number(number):
    assert checked(repr(number), float, "here") == number


def test_a_class_of_arrays_is_taken_as_an_instance_only():
    from nearkin.core import Terms

    terms = Terms()
    assert checked(terms, Terms, "here") is terms
    with pytest.raises(RecipeError, match=r"here: .*instance of Terms, got 3"):
        checked(3, Terms, "here")


# A user's own code


def test_own_code_is_imported_only_when_trusted(shop):
    kind = catalog.KINDS["loss"]
    with pytest.raises(RecipeError, match=r"^loss: 'json:loads' is code .*--trust-code"):
        catalog.constructor(kind, "json:loads", "loss")
    import json

    assert catalog.constructor(kind, "json:loads", "loss", trust_code=True) is json.loads


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("jsonn:loads", r"loss: the module of 'jsonn:loads' cannot be imported \(No module named"),
        ("json:load_s", r"loss: module 'json' has no 'load_s' to call; did you mean 'loads'\?"),
        (".json:loads", r"loss: the module of '.json:loads' cannot be imported"),
        (":loads", r"loss: the module of ':loads' cannot be imported"),
        ("json:decoder", r"loss: module 'json' has no 'decoder' to call"),
    ],
)
def test_own_code_that_is_not_there_is_named(shop, name, sentence):
    with pytest.raises(RecipeError, match=sentence):
        catalog.constructor(catalog.KINDS["loss"], name, "loss", trust_code=True)


def test_a_number_that_may_be_a_tensor_is_asked_for_as_a_number():
    import torch

    either = float | torch.Tensor
    assert checked("5e-4", either, "loss.beta") == 5e-4
    learned = torch.tensor(1.2)
    assert checked(learned, either, "loss.beta") is learned
    for wrong in ("x", True, None, [1.0]):
        with pytest.raises(RecipeError, match=r"^loss\.beta: expected a number, got"):
            checked(wrong, either, "loss.beta")
    with pytest.raises(RecipeError, match=r"^loss\.beta: expected a finite number, got nan$"):
        checked(float("nan"), either, "loss.beta")


def test_a_number_that_may_be_a_tensor_is_spelled_shortly():
    (margin,) = find("margin")
    assert "beta: float | Tensor = 1.2" in margin.signature
