"""COPY of a batch into the partition of its day, and the form of the values that COPY needs."""

from collections.abc import Iterator, Sequence
from itertools import repeat
from typing import Any

from psycopg import sql

from services.core.dataset import CREATED_AT, Column, Dataset
from services.core.ids import first_id
from services.core.rows import Row, Rows
from services.stores.postgres.tables import TYPES, partition_name

POSTGRES_EPOCH = 946_684_800_000_000  # 2000-01-01 in microseconds, the zero of PostgreSQL's binary timestamps


def copy_statement(dataset: Dataset, day: int) -> sql.Composed:
    """Return the COPY into the day's partition, in canonical order of columns. It needs `copy_types` to be set."""
    columns = sql.SQL(", ").join(map(sql.Identifier, dataset.column_names))
    target = sql.Identifier(partition_name(dataset, day))
    return sql.SQL("COPY {} ({}) FROM STDIN (FORMAT binary)").format(target, columns)


def copy_types(dataset: Dataset) -> list[str]:
    """Return the types for `Copy.set_types`: int8 microseconds since POSTGRES_EPOCH, text for json, bytes for uuids."""
    return ["int8", *(TYPES[column.kind].copied_as for column in (CREATED_AT, *dataset.columns))]


def copy_rows(dataset: Dataset, rows: Rows, batch_id: int, created_at: int) -> Iterator[Row]:
    """Yield the rows that `Rows.tuples` yields, with values of the types of `copy_types`."""
    columns = map(_copy_values, dataset.columns, rows.columns)
    start = first_id(batch_id)
    return zip(range(start, start + rows.count), repeat(created_at - POSTGRES_EPOCH), *columns, strict=False)


def _copy_values(column: Column, values: Sequence[Any]) -> Sequence[Any]:
    match column.kind:
        case "timestamp":
            return [value - POSTGRES_EPOCH for value in values]
        case "uuid":
            return [bytes.fromhex(value.replace("-", "")) for value in values]
    return values
