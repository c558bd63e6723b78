"""mutual_information: an estimator by its name, on samples as people have them."""

from __future__ import annotations

import difflib
import inspect
import warnings
from collections.abc import Callable
from typing import Any

from nearkin.information import conditional, critical, gaussian, nearest
from nearkin.information.base import Information
from nearkin.information.samples import Samples, check_number, samples

Estimator = Callable[..., Information]

ESTIMATORS: dict[str, Estimator] = {
    estimator.__name__: estimator
    for estimator in (
        critical.infonce,
        critical.interpolated,
        critical.nwj,
        critical.tuba,
        critical.js_kl,
        critical.donsker_varadhan,
        critical.mine,
        critical.smile,
        conditional.ba,
        conditional.club,
        conditional.l1out,
        nearest.ksg,
        nearest.mixed,
        gaussian.cca,
    )
}


def mutual_information(
    x: Any, y: Any, estimator: str = "ksg", *, seed: int = 0, **settings: Any
) -> Information:
    """Mutual information of N pairs, in bits, with its interval, kind and ceiling.

    x, y        (N,) or (N, D) floats, numpy or torch; for 'mixed' y are (N,) classes
    estimator   infonce, interpolated, nwj, tuba, js_kl (lower bounds by a critic);
                donsker_varadhan, mine, smile (by a critic, no bounds); ba (lower where the entropy
                of y is given), club, l1out (upper if their normal model of y given x is right);
                ksg, mixed (nearest neighbors); cca (normal)
    seed        of the split, of training and of whatever else is drawn
    settings    of the estimator; `nearkin show NAME` lists them

    Columns are standardized, which changes no mutual information. Estimators that learn train on
    one part, are chosen by a second and report on a third. Pairs must be independent draws. Warns
    where an estimate is within a fifth of its ceiling, of constant columns and of copies.

    Raises ValueError for an unknown name or setting with the nearest one, for different lengths,
    NaN, constant data and too few rows; TypeError for classes where numbers are needed and the
    other way round.
    """
    chosen = _named(estimator)
    _check_settings(estimator, chosen, settings)
    found = chosen(samples(x, y, seed), **settings)
    warn_at_ceiling(found, estimator)
    return found


def warn_at_ceiling(found: Information, estimator: str) -> None:
    """Warn where an estimate by pairs touches its ceiling; not of labels, whose ceiling is real."""
    if found.at_ceiling and estimator != "mixed":
        warnings.warn(
            f"{estimator} gives {found.bits:.2f} bits of the {found.ceiling:.2f} that it can give "
            "at all, so the truth may be far above; take larger batches, or 'smile' or 'ksg' for a "
            "figure that is no bound",
            UserWarning,
            stacklevel=3,
        )


def _named(name: str) -> Estimator:
    if name not in ESTIMATORS:
        near = difflib.get_close_matches(str(name).lower(), ESTIMATORS, 1)
        instead = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(ESTIMATORS)}"
        raise ValueError(f"there is no estimator {name!r}; {instead}")
    return ESTIMATORS[name]


def _check_settings(name: str, estimator: Estimator, settings: dict[str, Any]) -> None:
    known = list(inspect.signature(estimator).parameters)[1:]
    for key in settings:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            instead = f"did you mean {near[0]!r}?" if near else f"it takes {', '.join(known)}"
            raise ValueError(f"{name} takes no {key!r}; {instead}")
        default = inspect.signature(estimator).parameters[key].default
        if isinstance(default, float) or (default is None and settings[key] is not None):
            check_number(f"{key} of {name}", settings[key])


__all__ = ["ESTIMATORS", "Samples", "mutual_information", "samples"]
