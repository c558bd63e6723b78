"""Embeds tables and measures them: the blocks of metrics.json, the histograms of distances, raw
inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nearkin.ahead import taken
from nearkin.data.base import Table
from nearkin.evaluation import Plan, Result, evaluate
from nearkin.extraction import BATCH, extract
from nearkin.information.labels import label_information
from nearkin.inputs import Inputs, take
from nearkin.runtime import Shards, gather_rows, share, world

RAW_SIDE = 32  # raw pixels are compared at 32 x 32 at most; more would measure noise and memory
QUICK = ("recall@1", "map@r")


def embed_shares(
    module: nn.Module,
    embed: Callable[[Tensor], Tensor],
    inputs: Inputs,
    device: torch.device,
    precision: str = "float32",
) -> Tensor:
    """(N, D) embeddings by `extract`, with the rows split over the processes; all of them must ask,
    all get all rows."""
    count = len(inputs)
    if world() > 1:
        rows = torch.arange(count)[share(count)]
        inputs = take(inputs, rows) if isinstance(inputs, Tensor) else inputs.select(rows)
    return gather_rows(extract(module, embed, inputs, device, precision, count=count))


def _batches(count: int) -> tuple[Tensor, ...]:
    return torch.arange(count).split(BATCH)


@dataclass
class Watch:
    """Who is told of a long comparison: `say` once, in a line, what it takes; `compared` of (done,
    total) blocks."""

    say: Callable[[str], None] | None = None
    compared: Callable[[int, int], None] | None = None

    def planned(self, plan: Plan) -> None:
        """Say it, the first time, of more than one block."""
        if self.say is not None and plan.tiles > 1:
            self.say(str(plan))
        self.say = None


@dataclass
class Asked:
    """What is asked beside the values of metrics, and what was found on the way.

    over     what intervals resample: "classes" or "queries"
    gains    of graded ndcg@K, for the class and its super-label; None: binary
    results  by closeness
    ids      names of the queries and of the items that they find
    names    the class names, where labels are codes of them
    above    the super-labels of the queries, where there are any
    """

    over: str = "classes"
    gains: Sequence[float] | None = None
    results: dict[str, Result] = field(default_factory=dict)
    ids: tuple[Sequence[Any], Sequence[Any]] = ((), ())
    names: Sequence[str] | None = None
    above: Sequence[Any] | None = None

    def graded(self, above: Any, gallery_above: Any = None) -> dict[str, Any]:
        """Arguments of `evaluate`. Raises ValueError where gains have no super-labels."""
        self.above = above
        if self.gains is None:
            return {}
        if above is None:
            raise ValueError(
                "gains need what stands above the classes: the array super_labels of an .npz, or "
                "the column super_label of a table"
            )
        return {
            "super_labels": above,
            "gallery_super_labels": gallery_above,
            "gains": self.gains,
        }


def evaluate_table(
    z: Tensor,
    table: Table,
    metrics: Sequence[str],
    closeness: str,
    seed: int,
    watch: Watch | None = None,
    asked: Asked | None = None,
) -> Result:
    """The rows of a table by their embeddings: leave one out, or queries in a gallery where it has
    both.

    Relevance is the column `relevant` where there is one, else the label; the column `group`
    excludes pairs.
    """
    relevant = table.columns.get("relevant", table.label)
    group = table.columns.get("group")
    above = table.columns.get("super_label")
    watch, asked = watch or Watch(), asked or Asked()
    query, gallery = table.columns.get("is_query"), table.columns.get("is_gallery")
    asked.names = table.names if torch.equal(relevant, table.label) else None
    asked.ids = table.ids, table.ids
    if query is None or gallery is None:
        return evaluate(
            z,
            relevant,
            metrics=metrics,
            closeness=closeness,
            exclude=group,
            seed=seed,
            gather=Shards(),
            planned=watch.planned,
            progress=watch.compared,
            **asked.graded(above),
        )
    asked.ids = table.select(query).ids, table.select(gallery).ids
    return evaluate(
        z[query],
        relevant[query],
        z[gallery],
        relevant[gallery],
        metrics=metrics,
        closeness=closeness,
        exclude=None if group is None else (group[query], group[gallery]),
        seed=seed,
        gather=Shards(),
        planned=watch.planned,
        progress=watch.compared,
        **asked.graded(*(None if above is None else above[role] for role in (query, gallery))),
    )


def block(
    z: Tensor,
    table: Table,
    metrics: Sequence[str],
    seed: int,
    closenesses: Sequence[str] = ("cosine", "euclidean"),
    watch: Watch | None = None,
    asked: Asked | None = None,
) -> dict[str, Any]:
    """What stands under "test" in metrics.json: each closeness, the information, the counts."""
    ranked = [name for name in metrics if name != "information"] or list(QUICK)
    said: dict[str, Any] = {}
    asked = asked or Asked()
    for closeness in closenesses:
        result = evaluate_table(z, table, ranked, closeness, seed, watch, asked)
        asked.results[closeness] = result
        said[closeness] = result.to_dict(asked.over)
        said["queries"], said["without_relevant"] = result.queries, result.without_relevant
    if "information" in metrics:
        said["information"] = information(z, table.label, seed)
    return said


def information(z: Any, label: Any, seed: int) -> dict[str, Any]:
    """I(Z;Y) in bits with its interval and ceiling; a reason instead of a number where it has no
    meaning."""
    try:
        found = label_information(z, label, seed=seed)
    except ValueError as error:
        return {"bits": None, "reason": str(error)}
    return {
        "bits": found.bits,
        "low": found.low,
        "high": found.high,
        "ceiling": found.ceiling,
        "kind": found.kind,
    }


def raw_rows(inputs: Inputs) -> Tensor:
    """(N, D) float32: inputs as they are, flattened; large pictures averaged down to 32 x 32."""
    if len(inputs.shape) == 4 and max(inputs.shape[2:]) > RAW_SIDE:
        with closing(taken(inputs, _batches(len(inputs)))) as made:
            small = [F.adaptive_avg_pool2d(x.float(), RAW_SIDE).flatten(1) for x in made]
        return torch.cat(small)
    return take(inputs, torch.arange(len(inputs))).flatten(1).float()


def distances(
    z: Tensor, relevant: Tensor, seed: int, rows: int = 2000, bins: int = 60
) -> dict[str, Any]:
    """Densities of the distance of same and of different pairs, of unit rows (at most `rows`, by
    seed)."""
    chosen = np.random.default_rng(seed).permutation(len(z))[:rows]
    u, y = F.normalize(z[chosen].float(), dim=1), relevant[chosen]
    d = (2 - 2 * u @ u.T).clamp_min(0).sqrt()
    upper = torch.triu(torch.ones_like(d, dtype=torch.bool), 1)
    same = y[:, None] == y[None]
    edges = np.linspace(0, 2, bins + 1)

    def density(mask: Tensor) -> list[float]:
        """Of the distances of these pairs, over the edges."""
        values = d[mask].numpy()
        if not len(values):
            return [0.0] * bins
        return np.histogram(values, edges, density=True)[0].round(5).tolist()

    return {
        "edges": edges.tolist(),
        "same": density(upper & same),
        "different": density(upper & ~same),
    }
