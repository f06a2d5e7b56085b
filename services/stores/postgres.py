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
from services.core.errors import NeedsOperator, QueryTimeout
from services.core.ids import ROW_BITS, end_id, first_id
from services.core.ports import QUESTION_SECONDS, Progress
from services.core.queries import (
    AggregateQuestion,
    Answer,
    Filters,
    ListQuestion,
    Question,
    StatsQuestion,
    like_pattern,
)
from services.core.rows import Row, Rows
from services.ledger.schema import CONNECTION, connect, translated
from services.rollups import postgres as rollup
from services.runtime.settings import PostgresSettings

NAME = "postgres"

EPOCH = 946_684_800_000_000  # 2000-01-01 in microseconds: where PostgreSQL's binary timestamps begin

_LOCK = 7_316_002  # advisory lock: one process at a time changes tables
_SEARCH_LOCK = 7_316_003  # … and one makes indexes for text search, which nobody waits for
_ALTER_LOCK_TIMEOUT, _ALTER_PAUSE, _ALTER_PATIENCE = "200ms", 1.0, 60.0  # of an added column; the latter in seconds
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
    """Create the dataset's table, or add the optional columns it lacks; safe from many processes at once.

    Adding one needs the table alone for a moment: whoever writes would queue up behind that, and that behind a long
    question. So it is tried for a moment only, again and again.
    """
    deadline = time.monotonic() + _ALTER_PATIENCE
    with translated():
        while True:
            try:
                return _prepare(connection, dataset)
            except psycopg.errors.LockNotAvailable:
                if time.monotonic() > deadline:
                    raise
            time.sleep(_ALTER_PAUSE)


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
        for column in dataset.columns:
            if column.name not in found:
                if not column.added:
                    raise NeedsOperator(
                        f"table {dataset.name} has no column {column.name}: say `added=True` in its description, or"
                        " rows from before would no longer match their checksums"
                    )
                connection.execute(f"SET LOCAL lock_timeout = '{_ALTER_LOCK_TIMEOUT}'")
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


def index_search(connection: Connection, dataset: Dataset, today: int) -> list[str]:
    """Index the days before `today` for text search, where PostgreSQL has pg_trgm; the partitions that got an index.

    The day being written has none: it would make COPY an order of magnitude dearer (ADR 0007).
    """
    if dataset.search is None:
        return []
    with translated():
        available = "SELECT 1 FROM pg_available_extensions WHERE name = 'pg_trgm'"
        if not connection.execute(available).fetchone():
            return []
        if connection.execute("SELECT pg_try_advisory_lock(%s)", (_SEARCH_LOCK,)).fetchone() == (False,):
            return []
        try:
            connection.execute("CREATE EXTENSION IF NOT EXISTS pg_trgm")
            closed = (name for name in _partitions(connection, dataset) if name < copy_target(dataset, today))
            return [name for name in sorted(closed) if _index_partition(connection, name, dataset.search)]
        finally:
            connection.execute("SELECT pg_advisory_unlock(%s)", (_SEARCH_LOCK,))


def _index_partition(connection: Connection, partition: str, column: str) -> bool:
    """False when it is there already."""
    index = f"{partition}_{column}_trgm"
    if connection.execute("SELECT to_regclass(%s)", (f'"{index}"',)).fetchone() != (None,):
        return False
    create = sql.SQL("CREATE INDEX {} ON {} USING gin ({} gin_trgm_ops)")
    connection.execute(create.format(*map(sql.Identifier, (index, partition, column))))
    return True


def drop_days(dataset: Dataset, before: int) -> int:
    """Drop the partitions of all days below `before` (days since 1970-01-01 UTC); how many. Raises StoreDown.

    Each is detached first, which neither waits for running questions nor holds any up, and may be killed half-way.
    """
    dropped = 0
    names = {"names": rf"^{dataset.name}_y\d{{4}}m\d{{2}}d\d{{2}}$"}
    with connect(PostgresSettings().postgres_url.get_secret_value()) as connection, translated():
        rollup.forget(connection, dataset, before)
        for name, pending in connection.execute(_DAYS, names).fetchall():
            if name >= copy_target(dataset, before):
                continue
            leaf = sql.Identifier(name)
            if pending is not None:
                how = sql.SQL("FINALIZE" if pending else "CONCURRENTLY")
                detach = sql.SQL("ALTER TABLE {} DETACH PARTITION {} {}")
                connection.execute(detach.format(sql.Identifier(dataset.name), leaf, how))
            connection.execute(sql.SQL("DROP TABLE {}").format(leaf))
            dropped += 1
    return dropped


# With what a drop that was killed left: a partition half detached (true), or detached (null).
_DAYS = """SELECT relname, inhdetachpending FROM pg_class LEFT JOIN pg_inherits ON inhrelid = pg_class.oid
           WHERE relkind = 'r' AND relnamespace = current_schema()::regnamespace AND relname ~ %(names)s"""


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
    engine: ClassVar[str] = ""
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

    def answer(self, question: Question, as_of: int, seconds: float = QUESTION_SECONDS) -> Answer:
        deadline = time.monotonic() + seconds
        with translated(), self._pool.connection() as connection, connection.transaction():
            asked = _Asked(connection, deadline)
            try:
                return _answer(asked, question, as_of)
            except psycopg.errors.QueryCanceled as error:
                raise QueryTimeout(NAME, seconds) from error

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


class _Asked:
    """The statements of one question: all within its time, which is summed up without what lies between them."""

    def __init__(self, connection: Connection, deadline: float) -> None:
        self._connection = connection
        self._deadline = deadline
        self.milliseconds = 0.0

    def fetch(self, query: sql.Composed, parameters: Sequence[Any]) -> list[Row]:
        left = max(1, int((self._deadline - time.monotonic()) * 1e3))  # milliseconds; 0 would be no limit
        self._connection.execute("SELECT set_config('statement_timeout', %s, true)", (str(left),))
        start = time.perf_counter()
        rows = self._connection.execute(query, parameters, binary=True).fetchall()
        self.milliseconds += (time.perf_counter() - start) * 1e3
        return rows


def _answer(asked: _Asked, question: Question, as_of: int) -> Answer:
    table = sql.Identifier(question.dataset.name)
    filters = Filters() if isinstance(question, StatsQuestion) else question.filters
    where, parameters = _where(filters, question.dataset, as_of)
    count = sql.SQL("SELECT count(*) FROM {} WHERE {}").format(table, where)
    counted = rollup.counted(asked.fetch, question, as_of)
    total = None
    match question:
        case ListQuestion():
            later, place = _after(question)
            page = [*parameters, *place, question.limit, question.offset]
            rows = asked.fetch(_list(question, table, where + later), page)
            if question.count:
                total = (counted or asked.fetch(count, parameters))[0][0]
        case AggregateQuestion():
            rows = asked.fetch(_aggregate(question, table, where), parameters) if counted is None else counted
        case StatsQuestion():
            rows = counted or asked.fetch(count, parameters)
    return Answer(rows, asked.milliseconds, "scan" if counted is None else "rollup", total)


def _list(question: ListQuestion, table: sql.Identifier, where: sql.Composable) -> sql.Composed:
    direction = sql.SQL(" DESC" if question.descending else " ASC")
    order = sql.SQL(", ").join(sql.Identifier(name) + direction for name in _order(question))
    return sql.SQL("SELECT {} FROM {} WHERE {} ORDER BY {} LIMIT %s OFFSET %s").format(
        _columns(question.dataset), table, where, order
    )


def _order(question: ListQuestion) -> list[str]:
    return list(dict.fromkeys((question.order_by, ID.name)))


def _after(question: ListQuestion) -> tuple[sql.Composed, list[Any]]:
    """The condition for what comes later than `after`, to be added to others, and its parameters."""
    if question.after is None:
        return sql.Composed([]), []
    names = _order(question)
    operator = sql.SQL("<" if question.descending else ">")
    columns = sql.SQL(", ").join(map(sql.Identifier, names))
    places = sql.SQL(", ").join(sql.Placeholder() * len(names))
    kinds = {column.name: column.kind for column in (ID, CREATED_AT, *question.dataset.columns)}
    value: Any
    value, row_id = question.after
    if kinds[question.order_by] == "timestamp":
        value = _instant(value)
    return sql.SQL(" AND ({}) {} ({})").format(columns, operator, places), [value, row_id][: len(names)]


def _aggregate(question: AggregateQuestion, table: sql.Identifier, where: sql.Composable) -> sql.Composed:
    keys: list[sql.Composable] = []
    if question.bucket:
        width, column = sql.Literal(timedelta(microseconds=question.bucket)), sql.Identifier(question.dataset.time)
        keys.append(sql.SQL("date_bin({}, {}, TIMESTAMPTZ 'epoch')").format(width, column))
    if question.group_by:
        keys.append(sql.Identifier(question.group_by))
    numbers = sql.SQL(", ").join(map(sql.Literal, range(1, len(keys) + 1)))
    order = numbers if question.bucket else sql.SQL("count(*) DESC, ") + numbers
    return sql.SQL("SELECT {}, count(*) FROM {} WHERE {} GROUP BY {} ORDER BY {}").format(
        sql.SQL(", ").join(keys), table, where, numbers, order
    )


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
    if filters.text and dataset.search:
        conditions.append(sql.SQL("{} LIKE %s").format(sql.Identifier(dataset.search)))
        parameters.append(like_pattern(filters.text))
    elif filters.text:
        conditions.append(sql.SQL("false"))
    return sql.SQL(" AND ").join(conditions), parameters


def _instant(microseconds: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=microseconds)


def open_reader() -> PostgresReader:
    return PostgresReader(PostgresSettings().postgres_url.get_secret_value())
