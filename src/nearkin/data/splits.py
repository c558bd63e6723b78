"""Class-disjoint splits of one table: which classes train, validate and test.
Where the rows come from stands elsewhere.
"""

from __future__ import annotations

import re

import torch

from nearkin.data.base import Table

# With two classes a nearest neighbor can be wrong, with two rows of a class it can be right.
_FEWEST = 2


def split_classes(
    table: Table,
    *,
    validation: float = 0.2,
    test: float = 0.25,
    seed: int = 0,
    contiguous: bool = True,
) -> tuple[Table, Table | None, Table]:
    """Train, validation and test tables that share no class, labels renumbered in each.

    validation  share, in 0..1, of the classes that do not test; 0: None is returned in its place
    test        share, in 0..1 and above 0, of all classes
    contiguous  True: the last classes in the order of their names test, those before them validate;
                the column `super_label`, where there is one, comes before the names. Names often
                follow groups (makes, families, alphabets), and a block then holds groups never
                trained on; random classes have siblings in training and promise too much. False:
                classes drawn at random.
    seed        decides the draw; without effect on contiguous blocks

    Validation and test get at least two classes with two rows or more each, training at least two
    classes. Validation is None where the classes suffice only without it. Raises ValueError where
    they do not suffice at all.
    """
    if not 0 < test < 1:
        raise ValueError(f"test must be a share above 0 and below 1, but {test} was given")
    rest, held = hold_out(table, test, seed=seed, contiguous=contiguous)
    if held is None:
        present, repeated = table.classes, _repeated(table)
        raise ValueError(
            f"{present} classes were seen, {repeated} of them with two rows or more; a split needs "
            f"at least {2 * _FEWEST} classes, {_FEWEST} to train and {_FEWEST} with two rows or "
            "more to test"
        )
    rest, validated = hold_out(rest, validation, seed=seed, contiguous=contiguous)
    return rest.compact(), validated and validated.compact(), held.compact()


def hold_out(
    table: Table,
    share: float,
    *,
    seed: int = 0,
    contiguous: bool = True,
    whole: str | None = None,
) -> tuple[Table, Table | None]:
    """The table without and with a share of its classes; (table, None) where it cannot be.

    Shares and order are those of `split_classes`. Labels keep their codes. A
    held-out block of fewer than two classes with two rows grows until it has them.

    whole   a column with one value a class: a contiguous block grows until it tears none of its
            values (`super_label`: whole alphabets)
    """
    if not 0 <= share < 1:
        raise ValueError(f"validation must be a share from 0 to below 1, but {share} was given")
    codes, counts = torch.unique(table.label, return_counts=True)
    size = dict(zip(codes.tolist(), counts.tolist(), strict=True))
    above = _column_of_class(table, "super_label")
    order = sorted(size, key=lambda code: (above.get(code, 0), natural(table.names[code])))
    if not contiguous:
        drawn = torch.randperm(len(order), generator=torch.Generator().manual_seed(seed))
        order = [order[i] for i in drawn.tolist()]
    wanted = max(_FEWEST, round(share * len(order)))
    first = len(order) - wanted
    while first >= _FEWEST and sum(size[code] > 1 for code in order[first:]) < _FEWEST:
        first -= 1
    if whole is not None and contiguous:
        value = _column_of_class(table, whole)
        while first > 0 and value[order[first - 1]] == value[order[first]]:
            first -= 1
    if share == 0 or first < _FEWEST:
        return table, None
    held = torch.isin(table.label, torch.tensor(order[first:]))
    return table.select(~held), table.select(held)


def natural(name: str) -> list[tuple[int, int, str]]:
    """A sorting key under which numbers inside names count as numbers: class 2 before class 10."""
    parts = re.split(r"(\d+)", name, flags=re.ASCII)
    return [(0, int(part), part) if part.isdecimal() else (1, 0, part) for part in parts if part]


def _column_of_class(table: Table, column: str) -> dict[int, int]:
    """Code -> the value of the column in the last row of the class; empty without the column."""
    if column not in table.columns:
        return {}
    return dict(zip(table.label.tolist(), table.columns[column].tolist(), strict=True))


def _repeated(table: Table) -> int:
    return int((torch.bincount(table.label) > 1).sum())
