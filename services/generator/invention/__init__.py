"""The rules by which the values of each dataset are invented.

A file of this folder that has the name of a dataset holds RULES, by column, for that dataset, and maybe RHYTHM, which
rows of past days follow. Columns without a rule there, and datasets without a file, get a rule by their kind: a new
dataset needs nothing here.
"""

import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any

from services.core.dataset import Column, Dataset
from services.generator.rhythm import Rhythm
from services.generator.rules import Choice, Now, Numbered, Object, Rule, Uuid

_CATEGORIES = 5
_TEXTS = 1000


def rules_of(dataset: Dataset) -> dict[str, Rule]:
    """A rule for each column that is on the wire, by the column's name, in the columns' order."""
    own = _own(dataset.name)
    return complete(dataset, own.RULES if own else {})


def rhythm_of(dataset: Dataset) -> Rhythm | None:
    """The rhythm of the dataset's past days; None if every minute is as busy as the others."""
    return getattr(_own(dataset.name), "RHYTHM", None)


def complete(dataset: Dataset, own: Mapping[str, Rule]) -> dict[str, Rule]:
    """Return the rules in `own`, and rules by kind for the other columns on the wire.

    Raises ValueError when a rule in `own` is for a column that is not on the wire.
    """
    columns = dataset.wire_columns
    if unknown := set(own) - {column.name for column in columns}:
        raise ValueError(f"dataset {dataset.name}: rules for columns that are not on the wire: {sorted(unknown)}")
    return {column.name: own.get(column.name) or _by_kind(dataset, column) for column in columns}


def _own(name: str) -> Any:
    """The file of the dataset; None if it has none."""
    is_there = name in {module.name for module in pkgutil.iter_modules(__path__)}
    return importlib.import_module(f"{__name__}.{name}") if is_there else None


def _by_kind(dataset: Dataset, column: Column) -> Rule:
    match column.kind:
        case "timestamp":
            return Now()
        case "uuid":
            return Uuid()
        case "number":
            return Numbered(1, 1000)
        case "text":
            return Numbered(1, _TEXTS, prefix=f"{column.name}-")
        case "category":
            return Choice(tuple(f"{column.name}-{number}" for number in range(1, _CATEGORIES + 1)))
        case "json":  # the fields that other columns are derived from
            sources = [c.derived_from for c in dataset.columns if c.derived_from]
            fields = [field for source, field in sources if source == column.name]
            return Object({field: Numbered(1, _CATEGORIES, prefix=f"{field}-") for field in fields})
