"""nearkin: embeddings in which near means kin.
Train, measure and serve them; names load on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_PLACES = {
    "criterion": "nearkin.standalone",
    "objective": "nearkin.standalone",
    "sampler": "nearkin.standalone",
    "update": "nearkin.loop",
    "evaluate": "nearkin.evaluation",
    "compare_results": "nearkin.evaluation",
    "Index": "nearkin.search",
    "label_information": "nearkin.information.labels",
    "mutual_information": "nearkin.information.estimate",
    "train": "nearkin.run",
    "Run": "nearkin.run",
    "load": "nearkin.model",
    "Model": "nearkin.model",
    "Batch": "nearkin.core",
    "Comparison": "nearkin.core",
    "Terms": "nearkin.core",
    "Turn": "nearkin.core",
    "home": "nearkin.core",
}

__all__ = [
    "Batch",
    "Comparison",
    "Index",
    "Model",
    "Run",
    "Terms",
    "Turn",
    "__version__",
    "compare_results",
    "criterion",
    "evaluate",
    "home",
    "label_information",
    "load",
    "mutual_information",
    "objective",
    "sampler",
    "train",
    "update",
]

if TYPE_CHECKING:
    from nearkin.core import Batch, Comparison, Terms, Turn, home
    from nearkin.evaluation import compare_results, evaluate
    from nearkin.information.estimate import mutual_information
    from nearkin.information.labels import label_information
    from nearkin.loop import update
    from nearkin.model import Model, load
    from nearkin.run import Run, train
    from nearkin.search import Index
    from nearkin.standalone import criterion, objective, sampler


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        import difflib

        near = difflib.get_close_matches(name, _PLACES, 1)
        instead = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(sorted(_PLACES))}"
        raise AttributeError(f"nearkin has no {name!r}; {instead}")
    value = getattr(importlib.import_module(_PLACES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PLACES})
