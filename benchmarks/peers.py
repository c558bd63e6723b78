"""The losses of pytorch-metric-learning that stand beside nearkin's, by nearkin's names, with the
settings that make the two do the same work; nothing is measured here."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

logging.disable(logging.WARNING)  # the peer says at every import what it records, and at every use

import pytorch_metric_learning.utils.common_functions as peer_functions  # noqa: E402
from pytorch_metric_learning import distances, losses, miners, reducers  # noqa: E402

peer_functions.COLLECT_STATS = False

# (rows, positives an anchor) -> float32 numbers that the peer holds at its peak.
Floats = Callable[[int, int], float]


@dataclass(frozen=True)
class Peer:
    """How the peer's loss is made, and ours.

    make    (classes, dim) -> the peer's module; None where it has none
    ours    settings of ours that are not the defaults
    note    where the two are not the same function; empty where they are
    floats  what it holds, where that grows faster than rows x columns
    once    whether one step takes so long that it is measured once, from this many rows on
    """

    make: Callable[[int, int], nn.Module] | None = None
    ours: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""
    floats: Floats | None = None
    once: int = 1 << 30


class Mined(nn.Module):
    """A loss of the peer after one of its miners."""

    def __init__(self, loss: nn.Module, miner: nn.Module):
        super().__init__()
        self.loss, self.miner = loss, miner

    def forward(self, z: Tensor, label: Tensor) -> Tensor:
        return self.loss(z, label, self.miner(z, label))


class Linear(nn.Module):
    """Cross-entropy over a linear layer, torch's own: the peer has none."""

    def __init__(self, classes: int, dim: int):
        super().__init__()
        self.head = nn.Linear(dim, classes)

    def forward(self, z: Tensor, label: Tensor) -> Tensor:
        return nn.functional.cross_entropy(self.head(z), label)


def pairs_by_negatives(copies: float) -> Floats:
    """Copies of a matrix (positive pairs, negative pairs of the whole batch)."""
    return lambda rows, positives: copies * rows * positives * rows * (rows - positives - 1)


def cubes(copies: float) -> Floats:
    return lambda rows, positives: copies * rows**3


def _plain(make: Callable[..., nn.Module], **settings: Any) -> Callable[[int, int], nn.Module]:
    return lambda classes, dim: make(**settings)


def _kept(make: Callable[..., nn.Module], **settings: Any) -> Callable[[int, int], nn.Module]:
    return lambda classes, dim: make(num_classes=classes, embedding_size=dim, **settings)


def _mined(
    loss: Callable[[], nn.Module], miner: Callable[[], nn.Module]
) -> Callable[[int, int], nn.Module]:
    return lambda classes, dim: Mined(loss(), miner())


def _easy(negatives: str) -> Callable[[int, int], nn.Module]:
    cosine = distances.CosineSimilarity
    return _mined(
        lambda: losses.NTXentLoss(temperature=0.1),
        lambda: miners.BatchEasyHardMiner("easy", negatives, distance=cosine()),
    )


RADIANS = math.degrees(0.5)
MEAN = reducers.MeanReducer

PEERS: dict[str, Peer] = {
    # pairs
    "contrastive": Peer(
        _plain(losses.ContrastiveLoss),
        note="its hinges are not squared, mean over non-zero pairs",
    ),
    "multi_similarity": Peer(_plain(losses.MultiSimilarityLoss)),
    "infonce": Peer(
        _plain(losses.NTXentLoss, temperature=0.1), floats=pairs_by_negatives(4.25), once=512
    ),
    "supcon": Peer(_plain(losses.SupConLoss, temperature=0.1)),
    "snca": Peer(
        lambda classes, dim: losses.NCALoss(softmax_scale=20, distance=distances.CosineSimilarity())
    ),
    "circle": Peer(_plain(losses.CircleLoss)),
    "margin": Peer(_plain(losses.MarginLoss), note="it counts a pair once for each triplet"),
    "binomial_deviance": Peer(),
    "sigmoid": Peer(),
    "alignment_uniformity": Peer(),
    # bounds
    "jsd": Peer(),
    "donsker_varadhan": Peer(),
    "nwj": Peer(),
    "tuba": Peer(),
    "interpolated": Peer(),
    "smile": Peer(),
    "js_kl": Peer(),
    # triplets
    "triplet": Peer(_plain(losses.TripletMarginLoss, margin=0.2)),
    "triplet_soft_margin": Peer(
        lambda classes, dim: losses.TripletMarginLoss(margin=0, smooth_loss=True, reducer=MEAN()),
    ),
    "triplet_semi_hard": Peer(
        _mined(
            lambda: losses.TripletMarginLoss(margin=0.2),
            lambda: miners.TripletMarginMiner(margin=0.2, type_of_triplets="semihard"),
        ),
        note="its miner keeps every triplet within the margin, ours one a positive pair",
    ),
    "triplet_hard": Peer(
        _mined(lambda: losses.TripletMarginLoss(margin=0.2, reducer=MEAN()), miners.BatchHardMiner),
    ),
    "easy_positive_hard_negative": Peer(_easy("hard"), note="it keeps similarities below 0"),
    "easy_positive_semi_hard_negative": Peer(
        _easy("semihard"), note="it keeps similarities below 0"
    ),
    "quadruplet": Peer(),
    # structured
    "lifted_structure": Peer(
        _plain(losses.LiftedStructureLoss), floats=pairs_by_negatives(5.5), once=512
    ),
    "generalized_lifted": Peer(_plain(losses.GeneralizedLiftedStructureLoss)),
    "angular": Peer(_plain(losses.AngularLoss, alpha=45), note="its negatives are not of length 1"),
    "angular_hinge": Peer(),
    # neighbors
    "nca": Peer(_plain(losses.NCALoss)),
    "n_pairs": Peer(_plain(losses.NPairsLoss), note="it takes one pair a class"),
    "tuplet_margin": Peer(_plain(losses.TupletMarginLoss), floats=pairs_by_negatives(7), once=512),
    # ranking
    "histogram": Peer(_plain(losses.HistogramLoss, n_bins=100), once=2048),
    "fast_ap": Peer(_plain(losses.FastAPLoss, num_bins=10)),
    "smooth_ap": Peer(
        _plain(losses.SmoothAPLoss), floats=cubes(8), note="it reads labels in order only"
    ),
    "recall_at_k": Peer(),
    "ranked_list": Peer(
        _plain(losses.RankedListLoss, margin=0.4, Tn=10),
        note="its weights are not detached",
    ),
    # proxies
    "proxy_anchor": Peer(_kept(losses.ProxyAnchorLoss)),
    "proxy_nca": Peer(
        _kept(losses.ProxyNCALoss, softmax_scale=1), note="its sum holds the own proxy"
    ),
    "proxy_nca_plus_plus": Peer(_kept(losses.ProxyNCALoss, softmax_scale=9)),
    "soft_triple": Peer(_kept(losses.SoftTripleLoss), ours={"spread": 0.0}),
    # classes
    "cross_entropy": Peer(Linear, note="torch's own cross-entropy over nn.Linear"),
    "norm_softmax": Peer(_kept(losses.NormalizedSoftmaxLoss, temperature=0.05)),
    "cosface": Peer(_kept(losses.CosFaceLoss, margin=0.35, scale=64)),
    "arcface": Peer(_kept(losses.ArcFaceLoss, margin=RADIANS, scale=64)),
    "sub_center_arcface": Peer(_kept(losses.SubCenterArcFaceLoss, margin=RADIANS, scale=64)),
    "spce": Peer(),
}


def peer_bytes(peer: Peer, rows: int, positives: int) -> float:
    """What one step of the peer holds, where it grows faster than rows x columns; else 0."""
    return 0.0 if peer.floats is None else 4 * peer.floats(rows, positives)


def randomized(module: nn.Module, random: torch.Generator) -> nn.Module:
    """Its parameters drawn anew: weights that start at 0 would hide work."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.05 * torch.randn(parameter.shape, generator=random))
    return module
