"""Exact evaluation of any embeddings: retrieval, clustering, information, intervals by class."""

from nearkin.evaluation.catalog import metric_names
from nearkin.evaluation.evaluator import evaluate, per_query_values
from nearkin.evaluation.intervals import Difference
from nearkin.evaluation.mistakes import Wrong
from nearkin.evaluation.nearby import Neighbors, neighbors
from nearkin.evaluation.plan import Plan
from nearkin.evaluation.result import DifferentQueriesError, Result, compare_results
from nearkin.evaluation.tables import Part, Theft

__all__ = [
    "Difference",
    "DifferentQueriesError",
    "Neighbors",
    "Part",
    "Plan",
    "Result",
    "Theft",
    "Wrong",
    "compare_results",
    "evaluate",
    "metric_names",
    "neighbors",
    "per_query_values",
]
