"""What a loss does to one pair: the slope of the loss by the pair's similarity, and its picture.

The scene is small and fixed; the slope is autograd's, of the very function that trains.
"""

import io
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import torch

from nearkin.core import Comparison, Home, Loss, home_of

CLASS_COLUMNS = ("proxies", "centers", "classifier")
CLASSES = 5
OWN, OTHERS = 0.4, tuple(round(-0.2 + 0.1 * k, 1) for k in range(8))
POINTS, CLOSER = 80, 7  # first intervals, and how often steep ones are halved: steps stand upright
LOGITS = 10.0  # inner products have no bound: the scene in logits is ten times as wide
SAME, DIFFERENT, WORDS = "#00897c", "#c8500c", "#0f0f0f"
COLORS = {
    SAME: "var(--near-same)",
    DIFFERENT: "var(--near-different)",
    WORDS: "currentColor",
}


@dataclass(frozen=True)
class Weights:
    """The weight of one pair by its similarity.

    s           similarities of a same pair, ascending
    same        -∂loss/∂s there: how hard it is pulled together
    r           similarities of a different pair, ascending
    different   ∂loss/∂s there: how hard it is pushed apart
    scene       in a sentence, what else is in the batch
    others      similarities of the other pairs
    """

    s: list[float]
    same: list[float]
    r: list[float]
    different: list[float]
    scene: str
    others: list[float]


def weights(loss: Loss) -> Weights:
    """Measure a loss in the scene of its home."""
    home = home_of(loss) or Home("in_batch", "cosine")
    wide = LOGITS if home.closeness == "inner" else 1.0
    of_classes = home.compare in CLASS_COLUMNS
    scene, own, other = (_classes if of_classes else _batch)(home, wide)
    others = sorted({round(x, 6) for x in scene.similarity.flatten().tolist()} - {wide})
    s, same = _curve(lambda at: -_slope(loss, scene, own, at), wide)
    r, different = _curve(lambda at: _slope(loss, scene, other, at), wide)
    return Weights(s, same, r, different, _said(of_classes, wide), others)


def _curve(slope: Callable[[float], float], wide: float) -> tuple[list[float], list[float]]:
    """Places from -wide to wide and the slopes there, closer where the curve turns."""
    found = {x: slope(x) for x in (wide * (2 * k / POINTS - 1) for k in range(POINTS + 1))}
    for halved in range(CLOSER):
        reach = max(found.values()) - min(found.values())
        places = sorted(found)
        # At the ends once only: by a distance the slope may grow without bound toward s = 1.
        for a, b in pairwise(places[1:-1] if halved else places):
            if abs(found[a] - found[b]) > reach / 40:
                found[(a + b) / 2] = slope((a + b) / 2)
    places = sorted(found)
    return places, [found[x] for x in places]


Pair = list[tuple[int, int]]


def _said(of_classes: bool, wide: float) -> str:
    low, high, own = (f"{wide * x:.2g}" for x in (OTHERS[0], OTHERS[-1], OWN))
    what = "inner product" if wide != 1 else "similarity"
    if of_classes:
        return (
            f"{2 * CLASSES} rows, two of each of {CLASSES} classes, against the classes: a row and "
            f"its own class at {what} {own}, the others from {low} to {high}. One row and one "
            "class move."
        )
    return (
        f"A batch of {2 * CLASSES} rows, two of each of {CLASSES} classes: same pairs at {what} "
        f"{own}, different pairs from {low} to {high}. One pair moves."
    )


def _batch(home: Home, wide: float) -> tuple[Comparison, Pair, Pair]:
    """Rows of two a class against themselves. The different pair that moves is of a first and a
    second row, as the pairs of n_pairs are."""
    label = torch.arange(CLASSES).repeat_interleave(2)
    rows = torch.eye(len(label), dtype=torch.float64)
    number = torch.arange(len(label))
    s = torch.tensor(OTHERS, dtype=torch.float64)[(number[:, None] + number + 3) % len(OTHERS)]
    s = torch.where(label[:, None] == label, OWN, s).fill_diagonal_(1.0)
    c = Comparison(
        anchor_label=label,
        reference_label=label,
        closeness=home.closeness,
        anchors=rows,
        references=rows,
        oneself=number,
        given=wide * s,
    )
    return c, [(0, 1), (1, 0)], [(0, 3), (3, 0)]


def _classes(home: Home, wide: float) -> tuple[Comparison, Pair, Pair]:
    """Rows against the columns of classes, as many columns a class as the home says."""
    each = int(home.settings.get("per_class", 1))
    label = torch.arange(CLASSES).repeat_interleave(2)
    columns = torch.arange(CLASSES).repeat_interleave(each)
    row, column = torch.arange(len(label))[:, None], torch.arange(len(columns))
    s = torch.tensor(OTHERS, dtype=torch.float64)[(row + 3 * column) % len(OTHERS)]
    own = OWN - 0.1 * (column % each)
    s = torch.where(label[:, None] == columns, own.double(), s)
    wider = max(len(label), len(columns))
    c = Comparison(
        anchor_label=label,
        reference_label=columns,
        columns_are="classes",
        closeness=home.closeness,
        anchors=torch.eye(len(label), wider, dtype=torch.float64),
        references=torch.eye(len(columns), wider, dtype=torch.float64),
        given=wide * s,
    )
    return c, [(0, 0)], [(0, each)]


def _slope(loss: Loss, scene: Comparison, pair: Pair, at: float) -> float:
    """∂loss/∂s of a pair at similarity `at`, over all places where the pair stands."""
    s = scene.similarity.detach().clone()
    for place in pair:
        s[place] = at
    s.requires_grad_()
    (slope,) = torch.autograd.grad(loss(replace(scene, given=s)).total, s)
    return float(sum(slope[place] for place in pair))


def picture(name: str, seen: Weights, of_classes: bool = False) -> str:
    """The two curves as SVG, to stand in a page; its colors are the page's."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.6, 3.3))
    figure.subplots_adjust(left=0.1, right=0.985, top=0.9, bottom=0.16)
    axes = figure.add_subplot()
    axes.axhline(0, color=WORDS, alpha=0.35, linewidth=0.8)
    names = ("own class", "another class") if of_classes else ("same pair", "different pair")
    for places, values, color, said, side in (
        (seen.s, seen.same, SAME, f"{names[0]}: pulled together", 0.02),
        (seen.r, seen.different, DIFFERENT, f"{names[1]}: pushed apart", 1.0),
    ):
        axes.plot(places, values, color=color, linewidth=2.2)
        axes.text(side, 0.99, said, color=color, ha="right" if side == 1 else "left", va="top",
                  fontsize=11, transform=axes.transAxes)  # fmt: skip
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.14 * (high - low))
    ticks = {"linestyle": "", "marker": "|", "markersize": 9, "markeredgewidth": 1.1}
    axes.plot(seen.others, [low] * len(seen.others), color=WORDS, alpha=0.6, **ticks)
    what = "inner product" if seen.s[-1] > 1 else "similarity"
    axes.set_xlabel(f"{what} s of the pair (ticks on the axis: where the others are)", color=WORDS)
    axes.set_title("−∂loss/∂s of a same pair, ∂loss/∂s of a different one",
                   loc="left", color=WORDS, fontsize=10)  # fmt: skip
    axes.tick_params(colors=WORDS)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(WORDS)
        spine.set_alpha(0.5)
    return _inline(figure, f"The weight of a pair in {name}, by its similarity")


def _inline(figure, title: str) -> str:
    import matplotlib

    file = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "nearkin"}):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    # The height follows the width, and letters are the page's.
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r"font: (\S+) [^;\"]*", r"font-size: \1", svg)
    for color, instead in COLORS.items():
        svg = svg.replace(color, instead)
    svg = svg.replace("<svg ", f'<svg class="near-weights" role="img" aria-label="{title}" ', 1)
    return re.sub(r"\s*\n\s*", " ", svg)
