"""Batch samplers over the columns of a table; functions of (seed, epoch). They know nothing of
processes."""

from nearkin.sample.base import Batches, Sampler
from nearkin.sample.classes import Balanced, Hierarchical
from nearkin.sample.near import HardClasses, NearestClasses
from nearkin.sample.pairs import DistinctPairs, Paired
from nearkin.sample.rows import Uniform

__all__ = [
    "Balanced",
    "Batches",
    "DistinctPairs",
    "HardClasses",
    "Hierarchical",
    "NearestClasses",
    "Paired",
    "Sampler",
    "Uniform",
]
