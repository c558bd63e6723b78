"""Loops over tiles of screened similarities, compiled by numba (extra `fast`).

Imported only where numba is there; what they compute is written in plain torch beside their use.
"""

from nearkin.search.compiled.base import NEVER, Goal, Part, Terms
from nearkin.search.compiled.counts import count
from nearkin.search.compiled.nearest import nearest_rows
from nearkin.search.compiled.thresholds import relevant, relevant_counts

__all__ = [
    "NEVER",
    "Goal",
    "Part",
    "Terms",
    "count",
    "nearest_rows",
    "relevant",
    "relevant_counts",
]
