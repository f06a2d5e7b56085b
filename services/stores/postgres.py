"""PostgreSQL: the store that shares its transaction with the ledger.

A table per dataset, partitioned by the day of acceptance. A batch lies in one day, so ingest COPYs straight into that
day's partition (`copy_statement`) and no row is routed. This module holds the tables' shape and the reader; the
ingest API writes the rows, in the same transaction as their ledger entry.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import repeat
from typing import Any, ClassVar, LiteralString, NamedTuple

import psycopg
from psycopg import sql
from psycopg.abc import Buffer
from psycopg.adapt import Loader
from psycopg.pq import Format
from psycopg_pool import ConnectionPool

from services.core.dataset import CREATED_AT, ID, Column, Dataset
from services.core.errors import NeedsOperator
from services.core.ids import ROW_BITS, end_id, first_id
from services.core.ports import Progress
from services.core.queries import AggregateQuestion, Answer, Filters, ListQuestion, Question, StatsQuestion
from services.core.rows import Row, Rows
from services.ledger.schema import CONNECTION, translated
from services.runtime.settings import PostgresSettings

NAME = "postgres"

EPOCH = 946_684_800_000_000  # 2000-01-01 in microseconds: where PostgreSQL's binary timestamps begin

_LOCK = 7_316_002  # advisory lock: one process at a time changes tables
_POOL_TIMEOUT = 5.0  # seconds a question waits for a connection before the store counts as down

Connection = psycopg.Connection[Any]


class _Type(NamedTuple):
    """How a kind is stored, and the type whose binary form equals a value as ingest already has it."""

    name: str
    copied_as: str
    constraints: LiteralString


_TEXT = _Type("text", "text", """COLLATE "C" NOT NULL DEFAULT ''""")
_TYPES = {
    "category": _TEXT,
    "text": _TEXT,
    "timestamp": _Type("timestamptz", "int8", "NOT NULL"),
    "number": _Type("float8", "float8", ""),
    "json": _Type("json", "text", "NOT NULL DEFAULT '{}'"),
    "uuid": _Type("uuid", "bytea", "NOT NULL"),
}


def prepare(connection: Connection, dataset: Dataset) -> None:
    """Create the dataset's table, or add the optional columns it lacks; safe from many processes at once."""
    table = sql.Identifier(dataset.name)
    with translated(), connection.transaction():
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
        for column in dataset.columns:
            if column.name not in found:
                add = sql.SQL("ALTER TABLE {} ADD COLUMN {}")
                connection.execute(add.format(table, _definition(column)))
            elif found[column.name] != _TYPES[column.kind].name:
                raise NeedsOperator(
                    f"table {dataset.name}: column {column.name} is {found[column.name]}, "
                    f"its description says {_TYPES[column.kind].name}"
                )


def ensure_partitions(connection: Connection, dataset: Dataset, first_day: int, days: int) -> None:
    """Make the partitions of `days` days from `first_day` (days since 1970-01-01 UTC) that are not there yet.

    Made beside the table and then attached, which neither waits for running queries nor holds any up.
    """
    wanted = {copy_target(dataset, day): day for day in range(first_day, first_day + days)}
    with translated(), connection.transaction():
        if not wanted.keys() - _partitions(connection, dataset):
            return
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
        parent = sql.Identifier(dataset.name)
        for name in sorted(wanted.keys() - _partitions(connection, dataset)):
            leaf = sql.Identifier(name)
            like = sql.SQL("CREATE TABLE {} (LIKE {} INCLUDING DEFAULTS INCLUDING INDEXES)")
            connection.execute(like.format(leaf, parent))
            start = _midnight(wanted[name])
            attach = sql.SQL("ALTER TABLE {} ATTACH PARTITION {} FOR VALUES FROM ({}) TO ({})")
            connection.execute(attach.format(parent, leaf, start.isoformat(), (start + timedelta(days=1)).isoformat()))


def _midnight(day: int) -> datetime:
    return datetime.fromtimestamp(day * 86_400, UTC)


def _definition(column: Column) -> sql.Composed:
    kind = _TYPES[column.kind]
    return sql.SQL("{} {} ").format(sql.Identifier(column.name), sql.Identifier(kind.name)) + sql.SQL(kind.constraints)


def _column_types(connection: Connection, dataset: Dataset) -> dict[str, str]:
    query = """SELECT attname, typname FROM pg_attribute JOIN pg_type ON pg_type.oid = atttypid
               WHERE attrelid = to_regclass(%s) AND attnum > 0 AND NOT attisdropped"""
    return dict(connection.execute(query, (f'"{dataset.name}"',)).fetchall())


def _partitions(connection: Connection, dataset: Dataset) -> set[str]:
    query = """SELECT relname FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid
               WHERE inhparent = to_regclass(%s)"""
    return {name for (name,) in connection.execute(query, (f'"{dataset.name}"',))}


def copy_target(dataset: Dataset, day: int) -> str:
    """The partition that holds the rows accepted on `day` (days since 1970-01-01 UTC)."""
    return f"{dataset.name}_{_midnight(day):y%Ym%md%d}"


def copy_statement(dataset: Dataset, day: int) -> sql.Composed:
    """COPY into the day's partition, columns in canonical order. Give the copy `copy_types` before the first row."""
    columns = sql.SQL(", ").join(map(sql.Identifier, dataset.column_names))
    target = sql.Identifier(copy_target(dataset, day))
    return sql.SQL("COPY {} ({}) FROM STDIN (FORMAT binary)").format(target, columns)


def copy_types(dataset: Dataset) -> list[str]:
    """For `Copy.set_types`. Times are int8, microseconds since EPOCH; json is text; a uuid is its 16 bytes."""
    return ["int8", *(_TYPES[column.kind].copied_as for column in (CREATED_AT, *dataset.columns))]


def copy_rows(dataset: Dataset, rows: Rows, batch_id: int, created_at: int) -> Iterator[Row]:
    """What `Rows.tuples` gives, as `copy_types` wants it."""
    columns = map(_copy_values, dataset.columns, rows.columns)
    start = first_id(batch_id)
    return zip(range(start, start + rows.count), repeat(created_at - EPOCH), *columns, strict=False)


def _copy_values(column: Column, values: Sequence[Any]) -> Sequence[Any]:
    match column.kind:
        case "timestamp":
            return [value - EPOCH for value in values]
        case "uuid":
            return [bytes.fromhex(value.replace("-", "")) for value in values]
    return values


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


class PostgresReader:
    """StoreReader over a pool of connections; opened at once, connected when PostgreSQL is there."""

    name: ClassVar[str] = NAME
    route: ClassVar[str] = "postgres"
    source: ClassVar[str] = "postgresql"
    progress: ClassVar[Progress] = "ledger"

    def __init__(self, url: str, max_connections: int = 8) -> None:
        self._pool = ConnectionPool(
            url,
            min_size=1,
            max_size=max_connections,
            timeout=_POOL_TIMEOUT,
            configure=_configure,
            check=ConnectionPool.check_connection,
            open=True,
            kwargs={
                "autocommit": True,
                **CONNECTION,
                # A plan must know the limit and the times asked for; compiling it costs more than most questions.
                "options": "-c timezone=UTC -c plan_cache_mode=force_custom_plan -c jit=off",
            },
        )

    def answer(self, question: Question, as_of: int) -> Answer:
        table = sql.Identifier(question.dataset.name)
        filters = Filters() if isinstance(question, StatsQuestion) else question.filters
        where, parameters = _where(filters, question.dataset, as_of)
        count = sql.SQL("SELECT count(*) FROM {} WHERE {}").format(table, where)
        total = None
        with translated(), self._pool.connection() as connection:
            start = time.perf_counter()
            match question:
                case ListQuestion():
                    page = [*parameters, question.limit, question.offset]
                    rows = _fetch(connection, _list(question, table, where), page)
                    if question.count:
                        total = _fetch(connection, count, parameters)[0][0]
                case AggregateQuestion():
                    rows = _fetch(connection, _aggregate(question, table, where), parameters)
                case StatsQuestion():
                    rows = _fetch(connection, count, parameters)
            return Answer(rows, (time.perf_counter() - start) * 1e3, total=total)

    def position(self, dataset: Dataset) -> Mapping[int, int]:
        raise NotImplementedError("PostgreSQL's progress is the ledger itself")

    def counts(self, dataset: Dataset, first: int, last: int) -> Iterator[tuple[int, int, int]]:
        query = sql.SQL(
            "SELECT id >> {bits}, count(*), count(DISTINCT id) FROM {table} WHERE id >= {start} AND id < {end} "
            "GROUP BY 1 ORDER BY 1"
        ).format(bits=ROW_BITS, table=sql.Identifier(dataset.name), start=first_id(first), end=end_id(last))
        with translated(), self._pool.connection() as connection:
            yield from connection.execute(query).fetchall()

    def rows(self, dataset: Dataset, first: int, last: int) -> Iterator[Row]:
        query = sql.SQL("COPY (SELECT {} FROM {} WHERE id >= {} AND id < {}) TO STDOUT (FORMAT binary)").format(
            _columns(dataset), sql.Identifier(dataset.name), first_id(first), end_id(last)
        )
        types = ["int8", *(_TYPES[column.kind].name for column in (CREATED_AT, *dataset.columns))]
        with translated(), self._pool.connection() as connection, connection.cursor().copy(query) as copy:
            copy.set_types(types)
            yield from copy.rows()

    def close(self) -> None:
        self._pool.close()


def _list(question: ListQuestion, table: sql.Identifier, where: sql.Composable) -> sql.Composed:
    order = dict.fromkeys((question.order_by, ID.name))
    direction = sql.SQL(" DESC" if question.descending else " ASC")
    return sql.SQL("SELECT {} FROM {} WHERE {} ORDER BY {} LIMIT %s OFFSET %s").format(
        _columns(question.dataset), table, where, sql.SQL(", ").join(sql.Identifier(c) + direction for c in order)
    )


def _aggregate(question: AggregateQuestion, table: sql.Identifier, where: sql.Composable) -> sql.Composed:
    query = "SELECT {key}, count(*) FROM {table} WHERE {where} GROUP BY {key} ORDER BY count(*) DESC, {key}"
    return sql.SQL(query).format(key=sql.Identifier(question.group_by), table=table, where=where)


def _fetch(connection: Connection, query: sql.Composed, parameters: Sequence[Any]) -> list[Row]:
    return connection.execute(query, parameters, binary=True).fetchall()


def _columns(dataset: Dataset) -> sql.Composed:
    return sql.SQL(", ").join(map(sql.Identifier, dataset.column_names))


def _where(filters: Filters, dataset: Dataset, as_of: int) -> tuple[sql.Composable, list[Any]]:
    conditions: list[sql.Composable] = [sql.SQL("id < %s")]
    parameters: list[Any] = [end_id(as_of)]
    for name, value in filters.equals:
        conditions.append(sql.SQL("{} = %s").format(sql.Identifier(name)))
        parameters.append(value)
    for operator, bound in ((sql.SQL(">="), filters.start), (sql.SQL("<"), filters.end)):
        if bound is not None:
            conditions.append(sql.SQL("{} {} %s").format(sql.Identifier(dataset.time), operator))
            parameters.append(_instant(bound))
    return sql.SQL(" AND ").join(conditions), parameters


def _instant(microseconds: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=microseconds)


def open_reader() -> PostgresReader:
    return PostgresReader(PostgresSettings().postgres_url.get_secret_value())
