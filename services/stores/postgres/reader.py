"""Reads what is stored, in canonical form, over a pool of connections."""

import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from itertools import groupby
from typing import ClassVar

import psycopg
from psycopg import sql
from psycopg.abc import Buffer
from psycopg.adapt import Loader
from psycopg.pq import Format

from services.core.dataset import CREATED_AT, Dataset
from services.core.errors import QueryTimeout
from services.core.ids import ROW_BITS, end_id, first_id
from services.core.instants import DAY
from services.core.ledger import Batch, StorePosition
from services.core.ports import QUESTION_SECONDS, Progress
from services.core.queries import Answer, Question
from services.core.rows import Row
from services.postgres.connection import PIPELINE, open_pool, translated
from services.stores.postgres import questions
from services.stores.postgres.copying import EPOCH
from services.stores.postgres.tables import TYPES, Connection, midnight

NAME = "postgres"

_POOL_TIMEOUT = 5.0  # seconds a question waits for a connection before the store counts as down


class PostgresReader:
    """StoreReader over a pool of connections; opened at once, connected when PostgreSQL is there."""

    name: ClassVar[str] = NAME
    route: ClassVar[str] = "postgres"
    source: ClassVar[str] = "postgresql"
    engine: ClassVar[str] = ""
    progress: ClassVar[Progress] = "ledger"

    def __init__(self, url: str, max_connections: int = 8, session_name: str = PIPELINE) -> None:
        # A plan must know the limit and the times asked for; compiling it costs more than most queries.
        options = "-c plan_cache_mode=force_custom_plan -c jit=off"
        self._pool = open_pool(url, max_connections, _POOL_TIMEOUT, _configure, options, session_name)

    def answer(self, question: Question, as_of: int, seconds: float = QUESTION_SECONDS) -> Answer:
        deadline = time.monotonic() + seconds
        with translated(), self._pool.connection() as connection, connection.transaction():
            asked = questions.Asked(connection, deadline)
            try:
                return questions.answer(asked, question, as_of)
            except psycopg.errors.QueryCanceled as error:
                raise QueryTimeout(NAME, seconds) from error

    def position(self, dataset: Dataset) -> StorePosition:
        raise NotImplementedError("PostgreSQL's progress is the ledger itself")

    def table_id(self, dataset: Dataset) -> str:
        raise NotImplementedError("PostgreSQL's progress is the ledger itself")

    def counts(self, dataset: Dataset, first: int, last: int) -> Iterator[tuple[int, int, int]]:
        query = sql.SQL(
            "SELECT id >> {bits}, count(*), count(DISTINCT id) FROM {table} WHERE id >= {start} AND id < {end} "
            "GROUP BY 1 ORDER BY 1"
        ).format(bits=ROW_BITS, table=sql.Identifier(dataset.name), start=first_id(first), end=end_id(last))
        with translated(), self._pool.connection() as connection:
            yield from connection.execute(query).fetchall()

    def rows(self, dataset: Dataset, first: int, last: int) -> Iterator[Row]:
        return self._copy(dataset, sql.SQL("id >= {} AND id < {}").format(first_id(first), end_id(last)))

    def rows_of(self, dataset: Dataset, batches: Sequence[Batch]) -> Iterator[Row]:
        """One query a day: it plans and reads that day's partition alone."""
        for day, some in groupby(sorted(batches, key=lambda batch: batch.created_at), lambda b: b.created_at // DAY):
            ranges = [
                sql.SQL("id >= {} AND id < {}").format(first_id(batch.batch_id), end_id(batch.batch_id))
                for batch in some
            ]
            start = midnight(day)
            where = sql.SQL("created_at >= {} AND created_at < {} AND ({})").format(
                start, start + timedelta(days=1), sql.SQL(" OR ").join(ranges)
            )
            yield from self._copy(dataset, where)

    def close(self) -> None:
        self._pool.close()

    def _copy(self, dataset: Dataset, where: sql.Composed) -> Iterator[Row]:
        query = sql.SQL("COPY (SELECT {} FROM {} WHERE {}) TO STDOUT (FORMAT binary)").format(
            questions.columns(dataset), sql.Identifier(dataset.name), where
        )
        types = ["int8", *(TYPES[column.kind].name for column in (CREATED_AT, *dataset.columns))]
        with translated(), self._pool.connection() as connection, connection.cursor().copy(query) as copy:
            copy.set_types(types)
            yield from copy.rows()


class _Microseconds(Loader):
    format = Format.BINARY

    def load(self, data: Buffer) -> int:
        return int.from_bytes(data, "big", signed=True) + EPOCH


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
    """Values leave this connection in canonical form."""
    connection.adapters.register_loader("timestamptz", _Microseconds)
    connection.adapters.register_loader("uuid", _UuidText)
    connection.adapters.register_loader("json", _JsonText)
