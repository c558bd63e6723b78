"""Index: embeddings with ids and labels that are searched exactly, saved without pickles."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nearkin.rows import Rows
from nearkin.search.nearest import nearest
from nearkin.search.products import precisions
from nearkin.search.side import Side
from nearkin.search.space import space_of

FORMAT, CARD, VECTORS = 1, "index.json", "vectors.safetensors"
Hit = dict[str, Any]


class Index:
    """An exact index: the nearest of all items, by float64 similarity of the rows as added.

    closeness  "cosine" (a row of zeros has similarity 0), "euclidean" or "inner"
    embed      turns what `search` is given into embeddings; None: it is given embeddings
    about      anything JSON that is kept with it, such as the run that embedded the items

    >>> index = Index()
    >>> index.add(z, ids=paths, labels=labels)          # as often as there are blocks
    >>> index.search(queries, k=5)[0][0]                # {"id": ..., "distance": ..., "label": ...}
    """

    kind = "exact"

    def __init__(
        self,
        closeness: str = "cosine",
        *,
        embed: Callable[[Any], Any] | None = None,
        about: Mapping[str, Any] | None = None,
    ):
        one = Rows(np.zeros((1, 1)))
        self.closeness = space_of(closeness, one, one).name  # raises for an unknown one
        self.embed, self.about = embed, dict(about or {})
        self.ids: list[Any] = []
        self.labels: list[Any] = []
        self._blocks: list[np.ndarray] = []
        self._known: set[Any] = set()
        self._side: Side | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def dim(self) -> int | None:
        """D; None before the first rows."""
        return self._blocks[0].shape[1] if self._blocks else None

    def add(
        self, z: Any, ids: Sequence[Any] | None = None, labels: Sequence[Any] | None = None
    ) -> None:
        """Append N items: z (N, D) floating; ids (N,) texts or integers, each only once (default:
        the item's place); labels (N,) texts or integers, None where there are none.

        Rows are kept in float32, or in float64 if they were given so. Raises ValueError for
        another number of dimensions, ids or labels, an id that is there, and rows that are not
        finite; TypeError for ids or labels of another kind. Then nothing is added.
        """
        rows = Rows(z)
        if self.dim not in (None, rows.dim):
            raise ValueError(
                f"the index holds rows of {self.dim} dimensions but z has {rows.dim}; embed both "
                "with one encoder"
            )
        names = _plain_values(ids, len(rows), "ids")
        marks = _plain_values(labels, len(rows), "labels")
        if names is None:
            names = list(range(len(self), len(self) + len(rows)))
        seen = set(names)
        if len(seen) < len(names) or seen & self._known:
            twice = seen & self._known or {
                name for name, count in Counter(names).items() if count > 1
            }
            raise ValueError(f"an id stands for one item, but {min(twice, key=str)!r} comes twice")
        values = rows.values
        if isinstance(values, Tensor):
            wide = values.dtype == torch.float64
            values = values.to("cpu", torch.float64 if wide else torch.float32).numpy()
        kind = np.float64 if values.dtype == np.float64 else np.float32
        self._blocks.append(np.array(values, dtype=kind, order="C"))
        self.ids += names
        self.labels += marks if marks is not None else [None] * len(rows)
        self._known |= seen
        self._side = None

    def search(self, queries: Any, k: int = 5) -> list[list[Hit]]:
        """The K nearest items of every query, nearest first, as {"id", "distance", "label"}.

        queries   (Q, D) embeddings, or what `embed` takes
        distance  1 - cosine similarity; |q - g| under euclidean; -q·g under inner

        Of items that tie, the one that was added first comes first. Raises ValueError as
        `neighbors` does.
        """
        distance, place = self.neighbors(self.embed(queries) if self.embed else queries, k)
        return [
            [
                {"id": self.ids[j], "distance": float(d), "label": self.labels[j]}
                for d, j in zip(far, at, strict=True)
            ]
            for far, at in zip(distance, place.tolist(), strict=True)
        ]

    def neighbors(self, z: Any, k: int = 5) -> tuple[np.ndarray, np.ndarray]:
        """Distances (Q, K) float64 and places (Q, K) int64 of the nearest items of z (Q, D).

        Raises ValueError for rows of another number of dimensions or not finite, an empty index,
        and K outside of 1..items.
        """
        queries = Rows(z, "queries")
        if not len(self):
            raise ValueError("the index is empty; add rows to it first")
        if queries.dim != self.dim:
            raise ValueError(
                f"the index holds rows of {self.dim} dimensions but queries have {queries.dim}; "
                "embed both with one encoder"
            )
        if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= len(self):
            raise ValueError(f"k must be 1..{len(self)}, the items of the index, not {k!r}")
        gallery = self._prepared(queries)
        left = Side(queries, gallery.space)
        left.round_to(gallery.dtype)
        similarity, place = nearest(left, gallery, k)
        return self._distances(queries, gallery, similarity, place).numpy(), place.numpy()

    def save(self, folder: str | os.PathLike[str], *, force: bool = False) -> Path:
        """Write a folder: vectors as safetensors, the rest as JSON; whole or not at all.

        force  replace an index that is there. Raises FileExistsError without it, ValueError for an
        empty index and for a folder that is something else.
        """
        from safetensors.numpy import save_file

        path = Path(folder)
        if not len(self):
            raise ValueError("the index is empty; add rows to it before it is saved")
        if path.exists() and not (path / CARD).is_file():
            raise ValueError(f"{path} exists and is no index; give another folder")
        if path.exists() and not force:
            raise FileExistsError(f"{path} holds an index; replace it with force, or give another")
        path.parent.mkdir(parents=True, exist_ok=True)
        card = {
            "format": FORMAT,
            "kind": self.kind,
            "closeness": self.closeness,
            "rows": len(self),
            "dim": self.dim,
            "about": self.about,
            "ids": self.ids,
            "labels": self.labels,
        }
        new = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        try:
            save_file({"vectors": self._whole()}, new / VECTORS)
            (new / CARD).write_text(json.dumps(card) + "\n", encoding="utf-8")
            new.chmod(_folder_mode())
            _replace(path, new)
        finally:
            shutil.rmtree(new, ignore_errors=True)
        return path

    @classmethod
    def load(
        cls, folder: str | os.PathLike[str], *, embed: Callable[[Any], Any] | None = None
    ) -> Index:
        """An index that was saved. Raises ValueError for a folder that holds none, or a damaged
        one, and FileNotFoundError where there is nothing."""
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        path = Path(folder)
        if not path.is_dir():
            raise FileNotFoundError(f"there is no index {path}")
        try:
            card = json.loads((path / CARD).read_text(encoding="utf-8"))
            vectors = load_file(path / VECTORS)["vectors"]
            index = cls(card["closeness"], embed=embed, about=card["about"])
            whole = card["format"] == FORMAT and card["kind"] == cls.kind
            if not whole or [card["rows"], card["dim"]] != list(vectors.shape):
                raise ValueError(f"format {card['format']}, {card['rows']} rows")
            index.add(vectors, card["ids"], [None] * len(vectors))
            index.labels = list(card["labels"])
            if len(index.labels) != len(vectors):
                raise ValueError(f"{len(index.labels)} labels")
        except (OSError, SafetensorError, LookupError, TypeError, ValueError) as error:
            said = " ".join(str(error).split())[:200]
            raise ValueError(f"{path} is no index of this version, or damaged: {said}") from None
        return index

    def __repr__(self) -> str:
        return f"Index({len(self)} items, dim={self.dim}, closeness={self.closeness!r})"

    def _whole(self) -> np.ndarray:
        if len(self._blocks) > 1:
            self._blocks = [np.concatenate(self._blocks)]
        return self._blocks[0]

    def _prepared(self, queries: Rows) -> Side:
        """The items, ready to be compared with these queries."""
        items = Rows(self._whole(), "index") if self._side is None else self._side.rows
        if self._side is None or queries.largest > 1e6 * max(items.largest, 1e-300):
            # Very large queries need a space of their own: entries are scaled by the largest.
            huge = self._side is not None
            side = Side(items, space_of(self.closeness, queries if huge else items, items))
            side.round_to(precisions(items.dim, items.device)[0])
            if huge:
                return side
            self._side = side
            return self._prepared(queries)
        return self._side

    def _distances(self, queries: Rows, gallery: Side, similarity: Tensor, place: Tensor) -> Tensor:
        if self.closeness == "cosine":
            return (1 - similarity).clamp_min(0)
        if self.closeness == "inner":
            return -similarity * gallery.space.scale * gallery.space.scale
        parts = []
        step = max(1, (1 << 22) // (place.shape[1] * queries.dim))
        for start in range(0, len(place), step):
            at = place[start : start + step]
            near = gallery.rows.block(at.reshape(-1)).view(*at.shape, -1)
            mine = queries.block(slice(start, start + step))[:, None]
            scale = gallery.space.scale
            parts.append((mine / scale - near / scale).norm(dim=2) * scale)
        return torch.cat(parts)


def _replace(path: Path, new: Path) -> None:
    """Put the folder `new` at `path`; what was there comes back if that fails."""
    old = new.with_name(new.name + ".old")
    there = path.exists()
    if there:
        path.rename(old)
    try:
        new.rename(path)
    except OSError:
        if there:
            old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _folder_mode() -> int:
    """The mode of a folder that is made in the usual way; mkdtemp's is for its owner alone."""
    mask = os.umask(0o077)
    os.umask(mask)
    return 0o777 & ~mask


def _plain_values(values: Any, count: int, name: str) -> list[Any] | None:
    """Texts and integers as Python has them; raises for others and for another number."""
    if values is None:
        return None
    if isinstance(values, (Tensor, np.ndarray)):
        values = values.tolist()
    if isinstance(values, str) or not hasattr(values, "__len__"):
        raise TypeError(f"{name} must be a sequence, one an item, not {values!r:.60}")
    found = [v.item() if isinstance(v, (np.generic, Tensor)) else v for v in values]
    if len(found) != count:
        raise ValueError(f"{name} has {len(found)} entries but z has {count} rows")
    for place, value in enumerate(found):
        fine = isinstance(value, (str, int)) and not isinstance(value, bool)
        if not (fine or (value is None and name == "labels")):
            raise TypeError(f"{name} are texts or integers, but entry {place} is {value!r:.60}")
    return found
