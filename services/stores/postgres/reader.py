"""Reads the stored rows in canonical form, and runs queries."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from itertools import groupby
from typing import ClassVar, Literal

import psycopg
from psycopg import sql
from psycopg.abc import Buffer
from psycopg.adapt import Loader
from psycopg.pq import Format

from services.core.dataset import CREATED_AT, Dataset
from services.core.errors import QueryTimeout
from services.core.ids import ROW_BITS, batch_ranges, end_id, first_id
from services.core.instants import DAY
from services.core.ledger import Batch
from services.core.ports import DEFAULT_QUERY_SECONDS
from services.core.queries import Query, QueryResult
from services.core.rows import Row
from services.core.stopping import Stop
from services.postgres.connection import NAME, PIPELINE, Connection
from services.postgres.pool import Pool
from services.stores.postgres import closed_days, queries, schema
from services.stores.postgres.copying import POSTGRES_EPOCH
from services.stores.postgres.tables import TYPES, midnight

_AT_ONCE = 1000  # batches of one query, whose text names each of them
_MOST_RANGES = 50  # of ids in one query
_COUNTS = sql.SQL("SELECT id >> {}, count(*), count(DISTINCT id) FROM {} WHERE {} GROUP BY 1 ORDER BY 1")
_POOL_TIMEOUT = 5.0  # seconds a query waits for a connection before the store counts as down


class PostgresReader:
    """A LedgerReader over a pool of connections, which connects as soon as PostgreSQL can be reached."""

    name: ClassVar[str] = NAME
    progress: ClassVar[Literal["ledger"]] = "ledger"

    def __init__(self, url: str, max_connections: int = 8, session_name: str = PIPELINE) -> None:
        # A good plan depends on the limit and the times of the query. Compiling a plan costs more than most queries.
        options = "-c plan_cache_mode=force_custom_plan -c jit=off"
        self._pool = Pool(url, max_connections, _POOL_TIMEOUT, _configure, options, session_name)
        self._has_tables = False

    def execute(
        self, query: Query, as_of: int, seconds: float = DEFAULT_QUERY_SECONDS, stop: Stop | None = None
    ) -> QueryResult:
        deadline = time.monotonic() + seconds
        with self._connection() as connection, connection.transaction():
            try:
                with (stop or Stop()).calling(connection.cancel_safe):
                    return queries.run(queries.Execution(connection, deadline), query, as_of)
            except psycopg.errors.QueryCanceled as error:
                raise QueryTimeout(NAME, seconds) from error

    def counts(self, dataset: Dataset, first: int, last: int) -> Iterator[tuple[int, int, int]]:
        with self._connection() as connection:
            where = _batches_between(connection, dataset, first, last)
            yield from _counts(connection, dataset, where)

    def rows(self, dataset: Dataset, first: int, last: int) -> Iterator[Row]:
        with self._connection() as connection:
            yield from _copy(connection, dataset, _batches_between(connection, dataset, first, last))

    def counts_of(self, dataset: Dataset, batches: Sequence[Batch]) -> Iterator[tuple[int, int, int]]:
        for where in _days(batches):
            with self._connection() as connection:
                yield from _counts(connection, dataset, where)

    def rows_of(self, dataset: Dataset, batches: Sequence[Batch]) -> Iterator[Row]:
        for where in _days(batches):
            with self._connection() as connection:
                yield from _copy(connection, dataset, where)

    @contextmanager
    def _connection(self) -> Iterator[Connection]:
        """Lend a connection. Raises StoreDown, also while `logpipe migrate` of this release has not run."""
        with self._pool.connection() as connection:
            if not self._has_tables:
                schema.require(connection)
                self._has_tables = True
            yield connection

    def close(self) -> None:
        self._pool.close()


def _batches_between(connection: Connection, dataset: Dataset, first: int, last: int) -> sql.Composed:
    """Return the condition for the rows of the batches first..last. It excludes days that hold none of these ids."""
    start, end = first_id(first), end_id(last)
    ids = sql.SQL("id >= {} AND id < {}").format(start, end)
    return ids + closed_days.without_ids(connection, dataset, start, end)


def _days(batches: Sequence[Batch]) -> Iterator[sql.Composed]:
    """Yield the conditions of a statement for each day of acceptance, which reads that day's partition only."""
    for day, some in groupby(sorted(batches, key=lambda batch: batch.created_at), lambda b: b.created_at // DAY):
        ids = sorted({batch.batch_id for batch in some})
        start = midnight(day)
        for at in range(0, len(ids), _AT_ONCE):
            some_ids = ids[at : at + _AT_ONCE]
            ranges = [
                sql.SQL("id >= {} AND id < {}").format(first_id(first), end_id(last))
                for first, last in batch_ranges(some_ids, _MOST_RANGES)
            ]
            yield sql.SQL("created_at >= {} AND created_at < {} AND ({}) AND id >> {} = ANY({}::bigint[])").format(
                start, start + timedelta(days=1), sql.SQL(" OR ").join(ranges), ROW_BITS, some_ids
            )


def _counts(connection: Connection, dataset: Dataset, where: sql.Composed) -> list[tuple[int, int, int]]:
    return connection.execute(_COUNTS.format(ROW_BITS, sql.Identifier(dataset.name), where)).fetchall()


def _copy(connection: Connection, dataset: Dataset, where: sql.Composed) -> Iterator[Row]:
    statement = sql.SQL("COPY (SELECT {} FROM {} WHERE {}) TO STDOUT (FORMAT binary)").format(
        queries.columns(dataset), sql.Identifier(dataset.name), where
    )
    types = ["int8", *(TYPES[column.kind].name for column in (CREATED_AT, *dataset.columns))]
    with connection.cursor().copy(statement) as copy:
        copy.set_types(types)
        yield from copy.rows()


class _Microseconds(Loader):
    format = Format.BINARY

    def load(self, data: Buffer) -> int:
        return int.from_bytes(data, "big", signed=True) + POSTGRES_EPOCH


class _UuidText(Loader):
    format = Format.BINARY

    def load(self, data: Buffer) -> str:
        text = bytes(data).hex()
        return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


class _JsonText(Loader):
    format = Format.BINARY

    def load(self, data: Buffer) -> str:
        return bytes(data).decode()


def _configure(connection: Connection) -> None:
    """Make values leave this connection in canonical form, and all statements of one query see the same rows.

    Notes of closed days may be deleted, and chunks of a rollup merged, between two statements.
    """
    connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    connection.adapters.register_loader("timestamptz", _Microseconds)
    connection.adapters.register_loader("uuid", _UuidText)
    connection.adapters.register_loader("json", _JsonText)
