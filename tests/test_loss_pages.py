"""The pages of losses: formulas become MathML without leftovers, curves are the loss's own slopes,
and what a page says to write runs. Found by scanning the catalog: a new loss is covered at once."""

import importlib
import math
import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
import yaml

from nearkin import catalog
from nearkin.config import build
from nearkin.core import Batch, Terms, home, home_of

pytest.importorskip("latex2mathml")
pytest.importorskip("mkdocs")

DOCS = Path(__file__).parents[1] / "docs"
LOSSES = catalog.scan(catalog.kind_named("loss"))
every = pytest.mark.parametrize("name", LOSSES)


@pytest.fixture(scope="module")
def pages():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(DOCS))
        yield importlib.import_module("loss_pages")
        for name in ("docstrings", *(file.stem for file in DOCS.glob("loss_*.py"))):
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def leaves(pages):
    return {leaf.name: leaf for leaf in pages.leaves()}


@pytest.fixture(scope="module")
def formulas(pages):
    return sys.modules["loss_formulas"]


# --- the language of formulas


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("Σ_{same} s_ij", r"\sum\limits_{\text{same}} s_{i j}"),
        ("(1/α) x", r"\frac{1}{\alpha} x"),
        ("log(1/n)", r"\log \left(1 \,/\, n \right)"),
        ("mean_i d²", r"\underset{i}{\text{mean}}\;d^{2}"),
        ("[margin - d]₊²", r"\left[\text{margin} - d \right]_{+}^{2}"),
        ("s'_ij", r"s_{i j}^{\prime }"),
        ("-e^{-α·s}", r"- e^{- \alpha \cdot s }"),
        ("|m_k|²", r"\left|m_{k} \right|^{2}"),
        ("√(2 - 2s)", r"\sqrt{2 - 2 s }"),
        ("h⁺_q z̄_i", r"h_{q}^{+} \bar{z}_{i}"),
        ("s_in", r"s_{i n}"),
        ("cos θ_ik", r"\cos\; \theta _{i k}"),
        ("near_by - s", r"\text{near by} - s"),
        ("mean over all rows  log x", r"\text{mean over all rows}\;\log\; x"),
        ("Σ_{k different} x", r"\sum\limits_{k \;\text{different} } x"),
        ("Σ_{p ∈ P_i}", r"\sum\limits_{p \in P_{i} }"),
    ],
)
def test_a_formula_becomes_latex(formulas, said, expected):
    written = formulas.latex(said, ("near_by",))
    assert written.replace(" ", "") == expected.replace(" ", "")


@pytest.mark.parametrize("said", ["(a", "a)", "[a)", "a ⊕ b", "x_", "{a"])
def test_what_is_no_formula_is_refused(formulas, said):
    with pytest.raises(ValueError, match="cannot be read"):
        formulas.latex(said)


def test_mathml_holds_the_signs(formulas):
    tree = ElementTree.fromstring(formulas.mathml("Σ_{same} e^{-α s}", block=True))
    assert tree.get("display") == "block"
    assert "".join(tree.itertext()) == "∑samee−αs"


# --- docstrings


DOC = """A loss (Somebody 2001, eq. 1).

With s' = s / temperature, over positive
pairs (i, j):
tightness = -mean s'_ij          contrast = mean log(1 +
e^{s'_ij})

Words of it. Time O(A).

temperature   sharpness, above
              0
a, b          two at once

Use it often. Always.

Equals itself.

Memory O(A·R) for few, more for many. Raises ValueError."""


def test_a_docstring_is_read_in_its_parts(pages):
    told = sys.modules["loss_docstrings"].read(DOC)
    assert told.formulas == [
        ("", "With s' = s / temperature, over positive pairs (i, j):"),
        ("tightness", "-mean s'_ij"),
        ("contrast", "mean log(1 + e^{s'_ij})"),
    ]
    assert told.settings == {"temperature": "sharpness, above 0", "a": "two at once"} | {
        "b": "two at once"
    }
    assert (told.head, told.notes) == ("A loss (Somebody 2001, eq. 1).", ["Words of it."])
    assert (told.use, told.equals) == ("Use it often. Always.", "Equals itself.")
    assert told.memory == "O(A·R) for few, more for many"
    assert (told.time, told.raises) == ("O(A)", "ValueError")
    assert told.parts == ["tightness", "contrast"]


def test_a_docstring_may_lack_the_last_paragraphs(pages):
    told = sys.modules["loss_docstrings"].read("A loss.\n\njoint = 1 - s\n\nWords. Memory O(A).")
    assert (told.parts, told.notes, told.memory) == (["joint"], ["Words."], "O(A)")
    assert told.use == told.equals == told.time == ""


@every
def test_its_docstring_has_what_its_page_needs(leaves, name):
    told = leaves[name].told
    missing = [key for key in ("head", "parts", "use", "memory") if not getattr(told, key)]
    assert not missing, f"the docstring of {name} lacks {', '.join(missing)}"
    assert set(told.settings) <= set(leaves[name].slots)


@every
def test_it_has_words_for_every_setting(leaves, name):
    told, slots = leaves[name].told.settings, leaves[name].slots
    unsaid = [key for key in slots if not told.get(key, "").strip()]
    assert not unsaid, f"the docstring of {name} says nothing of {', '.join(unsaid)}"


@every
def test_its_formulas_leave_nothing_over(pages, leaves, name):
    leaf = leaves[name]
    tree = ElementTree.fromstring(pages.formula(leaf.told, tuple(leaf.slots)))
    said = "".join("".join(x.itertext()) for x in tree.iter() if x.tag.endswith("math"))
    assert said
    assert not re.search(r"[\\^_{}²₊Σ]", said), said


@every
def test_its_parts_are_those_of_its_value(leaves, name):
    seen: list[Terms] = []

    def spied(c):
        seen.append(LOSSES[name](c))
        return seen[-1]

    spied.home = home_of(LOSSES[name])
    sys.modules["loss_weights"].weights(spied)
    told = leaves[name].told.parts
    joint = any("joint" in terms.other for terms in seen)
    assert joint == ("joint" in told)
    assert any(float(terms.tightness.detach()) for terms in seen) <= ("tightness" in told)
    assert any(float(terms.contrast.detach()) for terms in seen) <= ("contrast" in told)


@pytest.mark.parametrize(
    ("said", "formulas_in_it"),
    [
        ("With s' = s / temperature, over pairs (i, j):", ["s' = s / temperature"]),
        (
            "With P_i the rows of x, and r_ip = 1 + Σ_{j≠p} s_ij:",
            ["P_i", "x", "r_ip = 1 + Σ_{j≠p} s_ij"],
        ),
        ("l_ik = scale cos θ_ik, but no more", ["l_ik = scale cos θ_ik"]),
        ("h_j = how many of a class", ["h_j ="]),
        ("log(1 + e^x) of norm_softmax at T = 1.", ["log(1 + e^x)", "T = 1"]),
        ("a well-known scale of (two words) - and no more", []),
    ],
)
def test_formulas_are_found_among_words(pages, said, formulas_in_it):
    found = sys.modules["loss_words"].spans(said, ("temperature", "scale"))
    assert "".join(text for text, _ in found) == said
    assert [text for text, span in found if span] == formulas_in_it


def test_words_keep_the_signs_that_markdown_would_read(pages):
    said = sys.modules["loss_words"].prose("takes label_smoothing, `a_b`, [x] and s_ij")
    assert said.startswith(r"takes label\_smoothing, `a_b`, \[x] and <math")


def test_a_paragraph_may_begin_with_a_formula(pages):
    markdown = pytest.importorskip("markdown").markdown
    said = markdown(sys.modules["loss_words"].prose("m_k = Σ_i z_i, and no more"))
    assert said.count("<p>") == said.count("</p>") == 1
    assert said.startswith("<p>")
    assert said.endswith(", and no more</p>")


# --- the curve


def test_a_curve_is_the_slope_by_hand(pages):
    @home("in_batch", "cosine")
    def squared(c):
        return Terms(
            tightness=(c.same * (1 - c.similarity) ** 2).sum(),
            contrast=(c.different * c.similarity**3).sum(),
        )

    seen = sys.modules["loss_weights"].weights(squared)
    # The pair stands in two places of the matrix.
    assert seen.same == pytest.approx([4 * (1 - s) for s in seen.s])
    assert seen.different == pytest.approx([6 * s**2 for s in seen.r])
    assert (seen.s[0], seen.s[-1]) == (-1, 1)


def test_a_step_of_a_curve_stands_upright(pages):
    places, values = sys.modules["loss_weights"]._curve(lambda s: float(s > 0.31), 1.0)
    left, right = max(s for s in places if s <= 0.31), min(s for s in places if s > 0.31)
    assert right - left < 0.001
    assert values == [float(s > 0.31) for s in places]


@every
def test_its_curve_is_finite_and_not_flat_at_zero(pages, name):
    seen = sys.modules["loss_weights"].weights(LOSSES[name])
    assert all(map(math.isfinite, seen.same + seen.different))
    assert any(seen.same)
    assert any(seen.different)


def test_a_picture_takes_its_colors_from_the_page(pages):
    weights = sys.modules["loss_weights"]
    drawn = weights.picture("triplet", weights.weights(LOSSES["triplet"]))
    assert ElementTree.fromstring(drawn).get("aria-label")
    assert not re.search(r"#[0-9a-f]{6}", drawn)
    assert "var(--near-same)" in drawn
    assert "currentColor" in drawn
    assert "#" not in re.sub(r"(href=\"|url\()#", "", drawn)


# --- what a page says to write


@every
def test_its_line_of_python_makes_it(leaves, name):
    space: dict = {}
    exec("import nearkin as nk\n" + leaves[name].python(), space)
    labels = torch.arange(8) // 2
    z = torch.randn(8, 128, generator=torch.Generator().manual_seed(0))
    assert space["criterion"](z, labels).isfinite()


@every
def test_its_node_of_a_recipe_builds(leaves, name):
    node = yaml.safe_load(leaves[name].node())["objective"]
    objective = build(node, "objective", {"classes": 4, "dim": 16}, "objective")
    z = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
    assert objective(z, Batch(None, label=torch.arange(8) // 2)).total.isfinite()


def test_its_page_says_everything_in_order(pages, leaves):
    text = pages.page(leaves["supcon"])
    heads = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    assert heads == [
        *("supcon", "Use it", "Equals", "Weight of a pair"),
        *("Settings", "In code", "At a glance"),
    ]
    assert "| `temperature` | `0.1` | the lower, " in text
    assert "on unit rows; may be learned |" in text


def test_the_table_has_a_row_for_every_loss(pages, leaves):
    head, _, *rows = pages.table(list(leaves.values())).split("\n")
    named = [re.match(r"\| \[(\w+)\]\(losses/\1\.md\)", row)[1] for row in rows]
    assert sorted(named) == sorted(LOSSES)
    bars = len(re.findall(r"(?<!\\)\|", head))
    assert all(len(re.findall(r"(?<!\\)\|", row)) == bars for row in rows)
