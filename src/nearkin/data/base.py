"""Table: rows of data with named columns; Splits: the three tables of a data set. How they are read
stands elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nearkin.inputs import Inputs, Taken, take


@dataclass(frozen=True, eq=False)
class Table:
    """Rows of data. Whatever is asked of a row is one entry of a column.

    inputs    N items: a tensor (N, ...) or a sequence of image paths; an encoder's `prepare` makes
              it a tensor, or a `Taken` that makes its rows when they are taken
    label     (N,) int64 codes, indices into `names`
    names     the class names, as text, in the order of the codes
    ids       N texts that name the rows (paths where there are files)
    columns   further (N,) tensors: view, pair, is_query, is_gallery, group, ...
    """

    inputs: Inputs | Sequence[Any]
    label: Tensor
    names: tuple[str, ...]
    ids: tuple[str, ...]
    columns: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        lengths = {"inputs": len(self.inputs), "label": len(self.label), "ids": len(self.ids)}
        lengths |= {name: len(column) for name, column in self.columns.items()}
        if len(set(lengths.values())) > 1:
            said = ", ".join(f"{name} {length}" for name, length in lengths.items())
            raise ValueError(f"a table needs one entry per row in every column; these have {said}")
        if self.label.dtype != torch.int64:
            raise TypeError(f"labels must be int64 codes, not {self.label.dtype}")
        if len(self.label) and not 0 <= int(self.label.min()) <= int(self.label.max()) < len(
            self.names
        ):
            seen = f"{int(self.label.min())}..{int(self.label.max())}"
            raise ValueError(
                f"labels must be codes in 0..{len(self.names) - 1}, but {seen} was seen"
            )

    def __len__(self) -> int:
        return len(self.label)

    def __getitem__(self, name: str) -> Tensor:
        if name == "label":
            return self.label
        if name not in self.columns:
            known = ", ".join(["label", *sorted(self.columns)])
            raise KeyError(f"this table has no column {name!r}; its columns: {known}")
        return self.columns[name]

    def select(self, rows: Tensor | np.ndarray) -> Table:
        """The rows chosen by a bool mask or by indices; classes keep their codes and names."""
        rows = torch.as_tensor(rows)
        if rows.dtype == torch.bool:
            rows = rows.nonzero()[:, 0]
        if isinstance(self.inputs, Tensor):
            inputs: Inputs | list[Any] = take(self.inputs, rows)
        elif isinstance(self.inputs, Taken):
            inputs = self.inputs.select(rows)
        else:
            inputs = [self.inputs[i] for i in rows.tolist()]
        return replace(
            self,
            inputs=inputs,
            label=self.label[rows],
            ids=tuple(self.ids[i] for i in rows.tolist()),
            columns={name: column[rows] for name, column in self.columns.items()},
        )

    def with_columns(self, **columns: Tensor) -> Table:
        """The same rows with more columns, or with other values in the columns named."""
        return replace(self, columns={**self.columns, **columns})

    def compact(self) -> Table:
        """Labels renumbered 0..C-1 over the classes that are present, in the order of their
        codes."""
        present, label = torch.unique(self.label, return_inverse=True)
        return replace(self, label=label, names=tuple(self.names[i] for i in present.tolist()))

    @property
    def classes(self) -> int:
        """How many classes have at least one row."""
        return len(torch.unique(self.label))

    @property
    def class_names(self) -> frozenset[str]:
        """The names of the classes that have at least one row."""
        return frozenset(self.names[i] for i in torch.unique(self.label).tolist())


@dataclass(frozen=True, eq=False)
class Splits:
    """The tables of a data set: classes of `train`, `validation` and `test` are disjoint.

    facts       what the data knows and constructors may ask for: image_size, channels, features
    left_out    (path, reason) of items that could not be read
    """

    train: Table
    validation: Table | None
    test: Table
    facts: Mapping[str, int] = field(default_factory=dict)
    left_out: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        seen: dict[str, str] = {}
        for split, table in self.tables().items():
            if not len(table):
                raise ValueError(f"the {split} split is empty; every split needs at least one row")
            for name in sorted(table.class_names):
                if name in seen:
                    raise ValueError(
                        f"class {name!r} stands in {seen[name]} and in {split}; retrieval is "
                        "measured on classes never seen in training, so move it to one of them"
                    )
                seen[name] = split

    def tables(self) -> dict[str, Table]:
        """The splits that exist, by name."""
        named = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: table for name, table in named.items() if table is not None}
