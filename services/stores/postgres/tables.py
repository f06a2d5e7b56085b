"""The tables: one per dataset, partitioned by the day of acceptance."""

from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from typing import LiteralString, NamedTuple

import psycopg
import stamina
from psycopg import sql

from services.core.dataset import CREATED_AT, Column, Dataset
from services.core.errors import NeedsOperator, StoreDown
from services.core.ids import first_id
from services.core.instants import DAY, to_datetime
from services.postgres.connection import NAME, Connection, translated
from services.postgres.migrations import COMMAND

_LOCK = 7_316_002  # advisory lock of the process that changes tables
SEARCH_LOCK = 7_316_003  # advisory lock of the process that builds indexes for text search; others do not wait for it
SEARCHED_ROWS = 200_000_000
"""A day with more rows gets no index for text search, whose building would take more than an hour (ADR 0007)."""
_ALTER_LOCK_TIMEOUT = "200ms"  # of an added column
_retrying_alter = stamina.RetryingCaller(attempts=None, timeout=60.0, wait_initial=1.0, wait_max=1.0, wait_jitter=0.0)


class StoredType(NamedTuple):
    """The type in which a kind is stored, and the type whose binary form equals the value that ingest has decoded."""

    name: str
    copied_as: str
    constraints: LiteralString


_TEXT = StoredType("text", "text", """COLLATE "C" NOT NULL DEFAULT ''""")
TYPES = {
    "category": _TEXT,
    "text": _TEXT,
    "timestamp": StoredType("timestamptz", "int8", "NOT NULL"),
    "number": StoredType("float8", "float8", ""),
    "json": StoredType("json", "text", "NOT NULL DEFAULT '{}'"),
    "uuid": StoredType("uuid", "bytea", "NOT NULL"),
}


def prepare(connection: Connection, dataset: Dataset) -> None:
    """Create the dataset's table, or add the optional columns it lacks.

    An added column needs an exclusive lock of the table. While the change waits for that lock behind a long query, all
    writers wait behind the change. Therefore the lock has a short timeout, and the change is tried again. Blocks for up
    to a minute. Raises StoreDown, NeedsOperator.
    """
    with translated():
        _retrying_alter(psycopg.errors.LockNotAvailable, _prepare, connection, dataset)


def _prepare(connection: Connection, dataset: Dataset) -> None:
    table = sql.Identifier(dataset.name)
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
        found = _column_types(connection, dataset)
        if not found:
            columns = [sql.SQL("id bigint NOT NULL"), *map(_definition, (CREATED_AT, *dataset.columns))]
            create = sql.SQL("CREATE TABLE {} ({}) PARTITION BY RANGE (created_at)")
            connection.execute(create.format(table, sql.SQL(", ").join(columns)))
            connection.execute(sql.SQL("CREATE INDEX ON {} ({})").format(table, sql.Identifier(dataset.time)))
            brin = sql.SQL("CREATE INDEX ON {} USING brin (id) WITH (autosummarize = on)")
            connection.execute(brin.format(table))
            return
        for column in _lacking(dataset, found):
            connection.execute(f"SET LOCAL lock_timeout = '{_ALTER_LOCK_TIMEOUT}'")
            add = sql.SQL("ALTER TABLE {} ADD COLUMN {}")
            connection.execute(add.format(table, _definition(column)))


def require(connection: Connection, dataset: Dataset) -> None:
    """Raise StoreDown, which names `logpipe migrate`, until the table has every column that its description has.

    Called by a process that accepts rows before it writes. Columns of a newer release are accepted. Raises
    NeedsOperator when the table differs from the description in what `logpipe migrate` cannot add.
    """
    with translated():
        found = _column_types(connection, dataset)
    if not found:
        raise StoreDown(NAME, f"table {dataset.name} does not exist: run `{COMMAND}`")
    if lacking := _lacking(dataset, found):
        raise StoreDown(NAME, f"table {dataset.name} has no column {lacking[0].name}: run `{COMMAND}`")


def _lacking(dataset: Dataset, found: Mapping[str, str]) -> list[Column]:
    """Return the columns to be added to a table with the columns `found` (name -> type). Raises NeedsOperator."""
    lacking = []
    for column in dataset.columns:
        if column.name not in found:
            if not column.added:
                raise NeedsOperator(
                    f"table {dataset.name} has no column {column.name}: say `added=True` in its description, or"
                    " rows from before would no longer match their checksums"
                )
            lacking.append(column)
        elif found[column.name] != TYPES[column.kind].name:
            raise NeedsOperator(
                f"table {dataset.name}: column {column.name} is {found[column.name]}, "
                f"its description says {TYPES[column.kind].name}"
            )
    return lacking


def ensure_partitions(connection: Connection, dataset: Dataset, first_day: int, days: int) -> None:
    """Create the missing partitions of `days` days from `first_day` on (days since 1970-01-01 UTC).

    A partition is created beside the table and then attached, which neither waits for running queries nor blocks any.
    """
    wanted = {partition_name(dataset, day): day for day in range(first_day, first_day + days)}
    with translated(), connection.transaction():
        if not wanted.keys() - partitions(connection, dataset):
            return
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
        parent = sql.Identifier(dataset.name)
        for name in sorted(wanted.keys() - partitions(connection, dataset)):
            leaf = sql.Identifier(name)
            like = sql.SQL("CREATE TABLE {} (LIKE {} INCLUDING DEFAULTS INCLUDING INDEXES)")
            connection.execute(like.format(leaf, parent))
            start = midnight(wanted[name])
            attach = sql.SQL("ALTER TABLE {} ATTACH PARTITION {} FOR VALUES FROM ({}) TO ({})")
            connection.execute(attach.format(parent, leaf, start.isoformat(), (start + timedelta(days=1)).isoformat()))


def index_search(connection: Connection, dataset: Dataset, today: int) -> list[str]:
    """Index the days before `today` for text search, where PostgreSQL has pg_trgm, and return the indexed partitions.

    The newest day comes first. The current day has no index, which would make COPY ten times slower (ADR 0007). A day
    with more than SEARCHED_ROWS rows has none either.
    """
    if dataset.search is None:
        return []
    with translated():
        available = "SELECT 1 FROM pg_available_extensions WHERE name = 'pg_trgm'"
        if not connection.execute(available).fetchone():
            return []
        if connection.execute("SELECT pg_try_advisory_lock(%s)", (SEARCH_LOCK,)).fetchone() == (False,):
            return []
        try:
            connection.execute("CREATE EXTENSION IF NOT EXISTS pg_trgm")
            closed = (name for name in partitions(connection, dataset) if name < partition_name(dataset, today))
            newest_first = sorted(closed, reverse=True)
            return [name for name in newest_first if _index_partition(connection, name, dataset.search)]
        finally:
            connection.execute("SELECT pg_advisory_unlock(%s)", (SEARCH_LOCK,))


def summarize_ids(connection: Connection, partition: str) -> None:
    """Bring the BRIN index of a partition's ids up to date: every query reads the pages that it does not cover.

    PostgreSQL does so by itself about once a minute.
    """
    query = """SELECT brin_summarize_new_values(indexrelid) FROM pg_index
               JOIN pg_class ON pg_class.oid = indexrelid JOIN pg_am ON pg_am.oid = relam
               WHERE amname = 'brin' AND indrelid = %s::regclass"""
    connection.execute(query, (f'"{partition}"',))


def _index_partition(connection: Connection, partition: str, column: str) -> bool:
    """Return False when the index exists, or when PostgreSQL estimates that the partition has too many rows."""
    index = f"{partition}_{column}_trgm"
    if connection.execute("SELECT to_regclass(%s)", (f'"{index}"',)).fetchone() != (None,):
        return False
    estimate = "SELECT reltuples > %s FROM pg_class WHERE oid = to_regclass(%s)"
    if connection.execute(estimate, (SEARCHED_ROWS, f'"{partition}"')).fetchone() == (True,):
        return False
    create = sql.SQL("CREATE INDEX {} ON {} USING gin ({} gin_trgm_ops)")
    connection.execute(create.format(*map(sql.Identifier, (index, partition, column))))
    return True


def days_with_rows_from(connection: Connection, dataset: Dataset, before: int, batch_id: int) -> list[int]:
    """Return the days of acceptance below `before` on which batch `batch_id` or a later batch was accepted.

    Days are counted from 1970-01-01 UTC. Raises StoreDown.
    """
    found = []
    with translated():
        for name in sorted(partitions(connection, dataset)):
            if name < partition_name(dataset, before):
                query = sql.SQL("SELECT FROM {} WHERE id >= {} LIMIT 1")
                if connection.execute(query.format(sql.Identifier(name), first_id(batch_id))).fetchone() is not None:
                    found.append(day_of(name))
    return found


def midnight(day: int) -> datetime:
    return to_datetime(day * DAY)


def _definition(column: Column) -> sql.Composed:
    kind = TYPES[column.kind]
    return sql.SQL("{} {} ").format(sql.Identifier(column.name), sql.Identifier(kind.name)) + sql.SQL(kind.constraints)


def _column_types(connection: Connection, dataset: Dataset) -> dict[str, str]:
    query = """SELECT attname, typname FROM pg_attribute JOIN pg_type ON pg_type.oid = atttypid
               WHERE attrelid = to_regclass(%s) AND attnum > 0 AND NOT attisdropped"""
    return dict(connection.execute(query, (f'"{dataset.name}"',)).fetchall())


def partitions(connection: Connection, dataset: Dataset) -> set[str]:
    query = """SELECT relname FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid
               WHERE inhparent = to_regclass(%s)"""
    return {name for (name,) in connection.execute(query, (f'"{dataset.name}"',))}


def partition_name(dataset: Dataset, day: int) -> str:
    """Return the partition of the rows that were accepted on `day` (days since 1970-01-01 UTC)."""
    return f"{dataset.name}_{midnight(day):y%Ym%md%d}"


def day_of(partition: str) -> int:
    """Return the day whose rows a partition holds: the inverse of `partition_name`."""
    return (datetime.strptime(partition[-11:], "y%Ym%md%d").replace(tzinfo=UTC).date() - date(1970, 1, 1)).days
