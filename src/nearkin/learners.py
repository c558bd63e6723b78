"""Who learns with what: optimizers of learners, their parameter groups, and the check that nobody
is left out."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

Optimizers = dict[str, torch.optim.Optimizer]
Maker = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]


def optimizers_of(
    learners: Mapping[str, nn.Module],
    makers: Mapping[str, Maker],
    factors: Mapping[str, float] | None = None,
) -> Optimizers:
    """One optimizer for each learner that has parameters.

    makers    learner -> maker; `default` for those without their own. `encoder.head` gives the
              submodule `head` of the learner `encoder` an optimizer of its own; a part of a sum,
              `part.critic`, may be named `critic`
    factors   pattern over "learner.parameter" -> factor on the learning rate; the last that fits
              counts

    Parameters of one dimension (biases, scales and shifts) get no weight decay.
    """
    optimizers: Optimizers = {}
    used: set[str] = set()
    for learner, module in learners.items():
        named = {f"{learner}.{n}": p for n, p in module.named_parameters() if p.requires_grad}
        inner = [key for key in makers if key.startswith(learner + ".") and key not in learners]
        for key in sorted(inner, key=len, reverse=True):
            mine = {n: named.pop(n) for n in list(named) if n.startswith(key + ".") or n == key}
            if mine:
                used.add(key)
                optimizers[key] = makers[key](_groups(mine, factors or {}))
        if named:
            key = _maker_key(learner, makers)
            used.add(key)
            optimizers[learner] = makers[key](_groups(named, factors or {}))
    _check_used(used, makers, learners)
    _check_patterns(factors or {}, learners)
    for optimizer in optimizers.values():
        for group in optimizer.param_groups:
            group["lr"] *= group.pop("factor")
            group["initial_lr"] = group["lr"]
    return optimizers


def _maker_key(learner: str, makers: Mapping[str, Maker]) -> str:
    for key in (learner, learner.rsplit(".", 1)[-1]):
        if key in makers:
            return key
    if "default" not in makers:
        raise ValueError(f"no optimizer is named for the learner {learner!r}; add optim.default")
    return "default"


def _check_used(
    used: set[str], makers: Mapping[str, Maker], learners: Mapping[str, nn.Module]
) -> None:
    # The objective of a recipe may have no parameters; its optimizer is then merely not needed.
    tails = {learner.rsplit(".", 1)[-1] for learner in learners}
    for key in makers:
        if key not in used and key != "default" and key not in learners and key not in tails:
            _check_frozen(key, learners)
            known = ", ".join(sorted(learners))
            raise ValueError(
                f"optim.{key} names no learner and no part of one; the learners are {known}"
            )


def _check_frozen(key: str, learners: Mapping[str, nn.Module]) -> None:
    named = {
        f"{learner}.{n}": p for learner, m in learners.items() for n, p in m.named_parameters()
    }
    mine = [p for name, p in named.items() if name == key or name.startswith(f"{key}.")]
    if mine and not any(p.requires_grad for p in mine):
        raise ValueError(
            f"optim.{key} is for what is frozen and learns nothing; leave it out, or let that "
            "part learn (frozen: false)"
        )


def _check_patterns(factors: Mapping[str, float], learners: Mapping[str, nn.Module]) -> None:
    names = [f"{learner}.{n}" for learner, m in learners.items() for n, _ in m.named_parameters()]
    for pattern in factors:
        if not any(fnmatchcase(name, pattern) for name in names):
            near = difflib.get_close_matches(pattern, names, 1, cutoff=0.0)
            raise ValueError(
                f"train.factors: {pattern!r} fits no parameter; one of them is {near[0]!r}"
                if near
                else f"train.factors: {pattern!r} fits no parameter, for there is none"
            )


def _groups(
    named: Mapping[str, nn.Parameter], factors: Mapping[str, float]
) -> list[dict[str, Any]]:
    groups: dict[tuple[float, bool], dict[str, Any]] = {}
    for name, parameter in named.items():
        factor = 1.0
        for pattern, value in factors.items():
            if fnmatchcase(name, pattern):
                factor = value
        flat = parameter.ndim <= 1
        group = groups.setdefault((factor, flat), {"params": [], "factor": factor})
        if flat:
            group["weight_decay"] = 0.0
        group["params"].append(parameter)
    return list(groups.values())


def chosen(optimizers: Optimizers, learns: Iterable[str]) -> list[torch.optim.Optimizer]:
    """Those a turn trains. Naming `encoder` means `encoder` and everything below it
    (`encoder.head`)."""
    active: list[torch.optim.Optimizer] = []
    for learner in learns:
        found = [
            o for name, o in optimizers.items() if name == learner or name.startswith(learner + ".")
        ]
        active += [o for o in found if o not in active]
    return active


def held(learners: Mapping[str, nn.Module], method: nn.Module, optimizers: Optimizers) -> None:
    """Raise unless learners are disjoint and every trainable parameter of the method is in an
    optimizer."""
    owner: dict[nn.Parameter, str] = {}
    for learner, module in learners.items():
        for name, parameter in module.named_parameters():
            if parameter in owner:
                raise ValueError(
                    f"{learner}.{name} belongs to the learner {owner[parameter]!r} as well; "
                    "learners must own disjoint parameters"
                )
            owner[parameter] = learner
    optimized = {
        p for o in optimizers.values() for group in o.param_groups for p in group["params"]
    }
    for name, parameter in method.named_parameters():
        if parameter.requires_grad and parameter not in optimized:
            raise ValueError(
                f"the parameter {name} would never learn: no optimizer holds it; name its "
                "module in learners(), or freeze it with requires_grad_(False)"
            )
