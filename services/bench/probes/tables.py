"""Tables that grow by rows."""

from typing import Any

from services.bench.evidence.records import Table


def empty(*columns: str) -> Table:
    return {column: [] for column in columns}


def append(table: Table, *values: Any) -> None:
    """Add a row, in the order of the columns."""
    for column, value in zip(table.values(), values, strict=True):
        column.append(value)


def microseconds(seconds: float) -> int:
    return round(seconds * 1e6)
