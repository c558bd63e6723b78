"""A map of the test embeddings: which rows are on it, and where each stands in two dimensions.

Its drawing, highlighting and pictures stand in the page.
"""

from __future__ import annotations

import colorsys
import importlib
import importlib.util
from dataclasses import dataclass
from typing import Any

import numpy as np

from nearkin.report.view import RunView

MOST_POINTS = 1_500
_FEWEST = 8  # under which neighborhoods mean nothing
_KEPT = 50  # dimensions that neighborhoods are sought in
_ROUNDS = 500
_PALETTE = (
    "#3d85c6",
    "#dd8327",
    "#2f9e72",
    "#a06cd5",
    "#c94f4f",
    "#8a6d3b",
    "#d46fa8",
    "#7f8c2f",
    "#2fa5b5",
    "#6b76b8",
)


@dataclass(frozen=True, eq=False)
class Flat:
    """One way to lay out the points: its name, how to read it, and x and y (P,) float64."""

    name: str
    note: str
    x: np.ndarray
    y: np.ndarray


@dataclass(frozen=True, eq=False)
class Map:
    """P points: `rows` (P,) int64 are test rows, `of` is how many there are in all; its layouts."""

    rows: np.ndarray
    of: int
    layouts: list[Flat]


def embedding_map(view: RunView, most: int = MOST_POINTS, seed: int = 0) -> Map | None:
    """The unit embeddings of at most `most` rows, by PCA and by UMAP (else t-SNE).

    None for fewer than three rows or rows that are all alike. The same seed gives the same map.
    """
    taking_part = np.flatnonzero(view.is_query | view.is_gallery)
    rows = taking_part[drawn_by_class(view.labels[taking_part], most, seed)]
    if len(rows) < 3:
        return None
    z = view.embeddings[rows].astype(np.float64)
    lengths = np.sqrt(np.square(z).sum(1, keepdims=True))
    z /= np.where(lengths > 0, lengths, 1.0)
    principal, shares = _principal(z - z.mean(0), seed)
    if principal is None:
        return None
    plane = np.pad(principal[:, :2], ((0, 0), (0, max(0, 2 - principal.shape[1]))))
    told = f"The plane of largest spread; it holds {100 * shares[:2].sum():.0f} % of the variance."
    layouts = [Flat("PCA", told, plane[:, 0], plane[:, 1])]
    if len(rows) >= _FEWEST:
        layouts.insert(0, _neighborhoods(principal, seed))
    return Map(rows, len(taking_part), layouts)


def drawn_by_class(labels: np.ndarray, most: int, seed: int = 0) -> np.ndarray:
    """Places of at most `most` rows, sorted: whole classes at random, large ones thinned alike.

    One row of each of ten thousand classes would show no class; so where classes are many, some
    are shown and others not.
    """
    if len(labels) <= most:
        return np.arange(len(labels))
    random = np.random.default_rng(seed)
    shuffled = random.permutation(len(labels))
    classes = random.permutation(np.unique(labels))
    each = max(5, most // len(classes))
    place = np.empty(classes.max() + 1, dtype=np.int64)
    place[classes] = np.arange(len(classes))
    by_class = shuffled[np.argsort(place[labels[shuffled]], kind="stable")]
    turn = place[labels[by_class]]
    first = np.searchsorted(turn, turn)
    taken = by_class[np.arange(len(turn)) - first < each]
    return np.sort(taken[:most])


def _principal(centered: np.ndarray, seed: int) -> tuple[np.ndarray | None, np.ndarray]:
    """(P, at most 50) the leading principal components and their shares of the variance."""
    if np.abs(centered).max(initial=0.0) < 1e-7:
        return None, np.zeros(0)
    from sklearn.decomposition import PCA

    kept = min(_KEPT, *centered.shape)
    fitted = PCA(kept, random_state=seed)
    return fitted.fit_transform(centered), fitted.explained_variance_ratio_


def _neighborhoods(principal: np.ndarray, seed: int) -> Flat:
    """UMAP where it is installed, else t-SNE; bounded by points and rounds, not by the clock."""
    if importlib.util.find_spec("umap") is not None:
        umap = importlib.import_module("umap")
        near = min(15, len(principal) - 1)
        layout = umap.UMAP(n_neighbors=near, random_state=seed, n_jobs=1)
        flat, name = layout.fit_transform(principal), "UMAP"
    else:
        from sklearn.manifold import TSNE

        # The start of sklearn's own init="pca", which is refused where there is one dimension.
        start: Any = 1e-4 * principal[:, :2] / max(float(principal[:, 0].std()), 1e-12)
        start = np.pad(start, ((0, 0), (0, 2 - start.shape[1]))).astype(np.float32)
        perplexity = min(30.0, (len(principal) - 1) / 3)
        flat = TSNE(
            perplexity=perplexity,
            init=start,
            learning_rate="auto",
            max_iter=_ROUNDS,
            angle=0.6,
            random_state=seed,
        ).fit_transform(principal)
        name = "t-SNE"
    note = "Neighbors stay neighbors; sizes of groups and gaps between them mean nothing."
    x, y = np.asarray(flat, dtype=np.float64).T
    return Flat(name, note, x, y)


def class_colors(count: int) -> list[str]:
    """A color for each class, of different hues as far as there are; many classes share them."""
    if count <= len(_PALETTE):
        return list(_PALETTE[:count])
    colors = []
    for place in range(count):
        hue = (place * 0.618034) % 1.0  # the golden ratio: neighbors in order are far in hue
        lightness = (0.46, 0.58, 0.52)[place % 3]
        red, green, blue = colorsys.hls_to_rgb(hue, lightness, 0.55)
        colors.append(f"#{round(255 * red):02x}{round(255 * green):02x}{round(255 * blue):02x}")
    return colors
