"""The names of metrics: what they compute, and the function behind a name such as recall@4."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from nearkin.evaluation import clustering, retrieval
from nearkin.evaluation.base import Embedded, Ranking

OfRanking = Callable[[Ranking], Tensor]
OfEmbedded = Callable[[Embedded], dict[str, float]]


@dataclass(frozen=True)
class Entry:
    """A metric as it is listed, and its function (of a ranking, and of K where it has one).

    reads   of a ranking: how many of the nearest relevant items it looks at: 1, "K" or "all"
    """

    summary: str
    source: str
    function: Callable[..., Tensor | dict[str, float]]
    reads: int | str = "all"


RANKED: dict[str, Entry] = {
    "recall@K": Entry(
        "share of queries with a relevant item among the K nearest",
        "Jégou et al. 2011; Song et al. 2016",
        retrieval.recall,
        1,
    ),
    "precision@K": Entry(
        "share of relevant items among the K nearest",
        "classical",
        retrieval.precision,
        "K",
    ),
    "r_precision": Entry(
        "share of relevant items among the R nearest, R the number of relevant items",
        "classical",
        retrieval.r_precision,
    ),
    "map@r": Entry(
        "mean average precision of the R nearest, R the number of relevant items",
        "Musgrave et al. 2020",
        retrieval.map_at_r,
    ),
    "map@K": Entry(
        "mean average precision of the K nearest, divided by min(K, R)",
        "classical",
        retrieval.mean_average_precision,
        "K",
    ),
    "mrr": Entry(
        "mean reciprocal rank of the first relevant item",
        "classical",
        retrieval.reciprocal_rank,
        1,
    ),
    "ndcg@K": Entry(
        "discounted gain of the K nearest over the best possible; graded with super_labels",
        "Järvelin and Kekäläinen 2002",
        retrieval.ndcg,
        "K",
    ),
    "cmc@K": Entry(
        "another name of recall@K, as in re-identification",
        "Gray et al. 2007",
        retrieval.recall,
        1,
    ),
}
WHOLE: dict[str, Entry] = {
    "nmi": Entry(
        "normalized mutual information of k-means clusters and classes, beside nmi_random",
        "Song et al. 2016",
        clustering.nmi,
    ),
    "ami": Entry(
        "mutual information of k-means clusters and classes, adjusted for chance",
        "Vinh et al. 2010",
        clustering.ami,
    ),
    "f1": Entry(
        "F1 over pairs of rows that share a cluster and a class, beside f1_random",
        "Song et al. 2016",
        clustering.f1,
    ),
    "information": Entry(
        "lower bound of I(Z;Y) in bits, beside its ceiling H(Y)",
        "Boudiaf et al. 2020, Lemma 2",
        clustering.information,
    ),
}


def metric_names() -> list[tuple[str, str, str]]:
    """(name, summary, source) of every metric; K stands for a number: recall@4."""
    return [(name, entry.summary, entry.source) for name, entry in {**RANKED, **WHOLE}.items()]


def chosen(metrics: str | Iterable[str]) -> tuple[dict[str, OfRanking], dict[str, OfEmbedded]]:
    """The functions of the metrics named: those of rankings, and those of the whole embedding.

    Raises ValueError for a name that is no metric, with the nearest one, and for no name.
    """
    ranked: dict[str, OfRanking] = {}
    whole: dict[str, OfEmbedded] = {}
    for name in [metrics] if isinstance(metrics, str) else metrics:
        if name in WHOLE:
            whole[name] = WHOLE[name].function  # type: ignore[assignment]
        else:
            ranked[name] = _ranked(name)
    if not ranked and not whole:
        raise ValueError("no metric is named; name at least one, for example recall@1")
    return ranked, whole


def depth_of(metrics: Iterable[str], most: int) -> int:
    """How many of the nearest relevant items the named metrics of rankings look at; `most`: all."""
    depth = 1
    for name in metrics:
        base, _, number = name.partition("@")
        reads = RANKED.get(name, RANKED.get(f"{base}@K", RANKED["map@r"])).reads
        depth = max(depth, int(number) if reads == "K" else most if reads == "all" else 1)
    return min(depth, most)


def _ranked(name: object) -> OfRanking:
    if name in RANKED and not str(name).endswith("@K"):
        return RANKED[str(name)].function  # type: ignore[return-value]
    base, at, number = str(name).partition("@")
    if f"{base}@K" not in RANKED:
        raise ValueError(f"{name!r} is no metric; {_hint(base, at + number)}")
    if not re.fullmatch(r"[1-9][0-9]*", number):
        raise ValueError(
            f"{name!r} is no metric: {base} needs a number K of 1 or more; for example {base}@10"
        )
    if int(number[:20]) >= 2**63:
        raise ValueError(f"{name!r} is no metric: K must be below 2**63; for example {base}@10")
    return partial(RANKED[f"{base}@K"].function, k=int(number))  # type: ignore[return-value]


def _hint(base: str, suffix: str) -> str:
    names = [name.removesuffix("@K") for name in (*RANKED, *WHOLE)]
    near = difflib.get_close_matches(base.lower() or suffix, names, n=1)
    if not near:
        near = difflib.get_close_matches((base + suffix).lower(), names, n=1)
    if not near:
        return f"expected one of {', '.join((*RANKED, *WHOLE))}"
    takes_k = f"{near[0]}@K" in RANKED and near[0] not in RANKED
    if not takes_k:
        return f"did you mean {near[0]!r}?"
    number = suffix if re.fullmatch(r"@[1-9][0-9]*", suffix) else "@1"
    return f"did you mean {near[0] + number!r}?"
