"""One suite of queries for every store that can be read: the same rows loaded, the same results.

The oracle is plain Python over the rows; the memory store is held to it like the others.
"""

import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

import pytest
from psycopg import sql
from psycopg.errors import QueryCanceled

from services.core import result_size
from services.core.dataset import Column, Dataset
from services.core.errors import LogpipeError, QueryCancelled, QueryTimeout, ResultTooLarge, StoreDown
from services.core.ids import batch_of, first_id
from services.core.instants import LAST_INSTANT
from services.core.ledger import Batch
from services.core.ports import Block, StoreReader, StoreWriter
from services.core.queries import BUCKETS, AggregateQuery, Filters, ListQuery, Query, StatsQuery
from services.core.rows import Row, RowCodec, Rows, checksum
from services.core.stopping import Stop
from services.datasets.events import DATASET as EVENTS
from services.datasets.logs import DATASET as LOGS
from services.lake import embedded
from services.lake import reader as lake_reader
from services.lake import sql as lake_sql
from services.lake.embedded import EmbeddedReader
from services.lake.processes import ProcessReader
from services.postgres.connection import connect
from services.runtime.settings import LakeSettings
from services.stores import postgres
from services.stores.clickhouse import queries as clickhouse_queries
from services.stores.clickhouse import reader as clickhouse_reader
from services.stores.clickhouse import rollups as clickhouse_rollups
from services.stores.clickhouse.queries import Execution as ClickHouseExecution
from services.stores.clickhouse.reader import ClickHouseReader
from services.stores.clickhouse.tables import create_table
from services.stores.clickhouse.writer import ClickHouseWriter
from services.stores.memory import MemoryStore
from services.stores.postgres import queries
from services.stores.postgres import reader as postgres_reader
from services.stores.postgres import rollups as postgres_rollups
from services.stores.postgres.queries import Execution as PostgresExecution
from tests import lake_tables
from tests.waiting import until

DAY = 86_400_000_000
CREATED = 20_778 * DAY + DAY - 2  # two microseconds before a midnight
BATCHES = 6
ROWS = 40

MEASURES = Dataset(
    name="reader_measures",
    singular="measure",
    plural="measures",
    topic="reader_measures",
    key="sensor",
    time="taken_at",
    columns=(
        Column("taken_at", "timestamp", required=True),
        Column("sensor", "category"),
        Column("value", "number"),
        Column("serial", "uuid", required=True),
        Column("order", "text"),  # a word of SQL
    ),
    groupings=("sensor", "order"),
    orderings=("taken_at", "sensor", "order", "id", "created_at"),
    filters=("sensor", "serial", "order"),
    search="order",
)
DATASETS = (replace(LOGS, name="reader_logs"), replace(EVENTS, name="reader_events"), MEASURES)

TEXTS = [
    "",
    " ",
    "a",
    "B",
    "b",
    "É",
    "é",
    "e\u0301",
    "ÿ",
    "😀",
    "\uffff",
    "ß",
    "a'b",
    'a"b',
    "a\\b",
    "\\N",
    "\t",
    "x\ny",
    "%s",
]
SOUGHT = [
    "a",
    "B",
    "é",
    "e\u0301",
    "\u0301",
    "😀",
    "%",
    "_",
    "\\",
    "\\\\",
    "'",
    '"',
    "a'",
    "\n",
    "\t",
    " ",
    "%s",
    "\\N",
    "aa",
    "a\\b",
]
JSONS = [
    "{}",
    "[]",
    '{"n": 1e200000}',
    '{"a":1,"a":2}',
    '{"x": -0.0, "y": 1.10}',
    ' {"k" : "\\u00e9😀\\n"} ',
    '"s"',
    "0",
    "null ",
]
NUMBERS = [None, 0.0, -0.0, 0.1, 1e308, -5e-324, 1e15, 3.0]
TIMES = [0, 1, LAST_INSTANT - 1, CREATED, CREATED + 1, 999_999, 1_000_000]


def _value(column: Column, chance: random.Random) -> Any:
    match column.kind:
        case "timestamp":
            return chance.choice([*TIMES, chance.randrange(LAST_INSTANT)])
        case "number":
            return chance.choice(NUMBERS)
        case "json":
            return chance.choice(JSONS)
        case "uuid":
            return str(UUID(int=chance.choice([0, 1, (1 << 128) - 1, chance.getrandbits(128)])))
    return chance.choice(TEXTS)


def _batch(dataset: Dataset, batch_id: int) -> list[Row]:
    chance = random.Random(f"{dataset.name} {batch_id}")
    return [
        (first_id(batch_id) + n, CREATED + batch_id, *(_value(column, chance) for column in dataset.columns))
        for n in range(ROWS)
    ]


# Ids have gaps; the acceptance of the later batches falls on the next day.
ACCEPTED = {dataset.name: {1 + 2 * n: _batch(dataset, 1 + 2 * n) for n in range(BATCHES)} for dataset in DATASETS}
LAST = max(ACCEPTED[MEASURES.name])


def _fill(writer: StoreWriter) -> None:
    for dataset in DATASETS:
        codec = RowCodec(dataset)
        writer.prepare(dataset)
        for batch_id, rows in ACCEPTED[dataset.name].items():
            lines = b"".join(line + b"\n" for line in codec.encode(rows))
            block = Block(dataset, "topic", 0, batch_id, batch_id, rows[0][1] // DAY, len(rows), lines)
            writer.write([block])
            writer.write([block])  # said twice, stored once


def _fill_postgres(url: str) -> None:
    with connect(url) as connection:
        for dataset in DATASETS:
            postgres.prepare(connection, dataset)
            postgres.ensure_partitions(connection, dataset, CREATED // DAY, 2)
            for rows in ACCEPTED[dataset.name].values():
                copy_rows(connection, dataset, rows)


def _fill_lake(settings: LakeSettings) -> None:
    for dataset in DATASETS:
        for rows in ACCEPTED[dataset.name].values():
            lake_tables.append(settings, dataset, rows)


def copy_rows(connection: Any, dataset: Dataset, rows: Sequence[Row]) -> None:
    _, created, *columns = zip(*rows, strict=True)
    batch = Rows(len(rows), columns)
    with connection.cursor().copy(postgres.copy_statement(dataset, created[0] // DAY)) as copy:
        copy.set_types(postgres.copy_types(dataset))
        for values in postgres.copy_rows(dataset, batch, batch_of(rows[0][0]), created[0]):
            copy.write_row(values)


STORES = ["memory", "postgres", "postgres, days closed", "clickhouse", "lake", "lake, long rows"]


@pytest.fixture(scope="module", params=STORES)
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StoreReader]:
    reader: StoreReader
    match request.param:
        case "memory":
            reader = MemoryStore()
            _fill(reader)
        case "postgres":
            url = request.getfixturevalue("postgres_url")
            _fill_postgres(url)
            reader = postgres.PostgresReader(url)
        case "postgres, days closed":
            url = request.getfixturevalue("postgres_url")
            with connect(url) as connection, pytest.MonkeyPatch.context() as patch:
                assert [postgres.close_days(connection, dataset) for dataset in DATASETS] == [2, 2, 2]
                patch.setattr(queries, "_NEWEST_DAYS", 1)
                reader = postgres.PostgresReader(url)
                yield reader
                reader.close()
            return
        case "clickhouse":
            url = request.getfixturevalue("clickhouse_url")
            _fill(ClickHouseWriter(url))
            reader = ClickHouseReader(url)
        case "lake":
            settings = LakeSettings(hdfs_url=tmp_path_factory.mktemp("lake").as_uri())
            _fill_lake(settings)
            reader = ProcessReader(settings)
        case "lake, long rows":  # of which the engine sorts only the places
            settings = LakeSettings(hdfs_url=tmp_path_factory.mktemp("lake").as_uri())
            _fill_lake(settings)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(embedded, "_ROWS_SORTED", 0)
                yield EmbeddedReader(settings)
            return
    yield reader
    reader.close()


@dataclass(frozen=True)
class Oracle:
    query: Query
    as_of: int

    def matching(self) -> list[Row]:
        dataset = self.query.dataset
        filters = Filters() if isinstance(self.query, StatsQuery) else self.query.filters
        found = []
        for row in (row for rows in ACCEPTED[dataset.name].values() for row in rows):
            value = dict(zip(dataset.column_names, row, strict=True))
            time = value[dataset.time]
            if (
                batch_of(row[0]) <= self.as_of
                and all(value[name] == wanted for name, wanted in filters.equals)
                and (filters.start is None or filters.start <= time)
                and (filters.end is None or time < filters.end)
                and (not filters.text or (dataset.search and filters.text in value[dataset.search]))
            ):
                found.append(row)
        return found

    def rows(self) -> list[Row]:
        rows = self.matching()
        match self.query:
            case ListQuery() as q:
                by = q.dataset.column_names.index(q.order_by)
                rows.sort(key=lambda row: (row[by], row[0]), reverse=q.descending)
                if q.after:
                    rows = [row for row in rows if (row[by], row[0]) != q.after and _in_order(q, (row[by], row[0]))]
                return rows[q.offset : q.offset + q.limit]
            case AggregateQuery() as q:
                time = q.dataset.column_names.index(q.dataset.time)
                counts = Counter(
                    (
                        *([row[time] // q.bucket * q.bucket] if q.bucket else []),
                        *([row[q.dataset.column_names.index(q.group_by)]] if q.group_by else []),
                    )
                    for row in rows
                )
                counted = [(*key, count) for key, count in counts.items()]
                return sorted(counted, key=lambda row: row if q.bucket else (-row[-1], row))
        return [(len(rows),)]


def _in_order(query: ListQuery, place: tuple[Any, int]) -> bool:
    """Whether `place` comes no earlier than where the query goes on."""
    assert query.after is not None
    return sorted([place, query.after], reverse=query.descending)[-1] == place


def _queries() -> Iterator[Query]:
    for dataset in DATASETS:
        first = dataset.filters[0]
        some = [
            Filters(),
            *(Filters(((first, text),)) for text in ("", "é", "a'b", "a\\b", "\\N", "x\ny", "%s")),
            Filters(start=1),
            Filters(end=CREATED),
            Filters(start=CREATED, end=CREATED + 1),
            Filters(start=5, end=5),
            Filters(((first, ""),), start=0, end=LAST_INSTANT),
            Filters(tuple((name, "a") for name in dataset.filters if dataset.by_name[name].kind != "uuid")),
        ]
        yield from (StatsQuery(dataset, scan=scan) for scan in (False, True))
        yield ListQuery(dataset, order_by=dataset.time, scan=True)
        for filters in some:
            yield ListQuery(dataset, filters, order_by=dataset.time)
            yield from (AggregateQuery(dataset, name, filters) for name in dataset.groupings)
        for order_by in dataset.orderings:
            for descending in (True, False):
                yield ListQuery(dataset, Filters(), order_by, descending, limit=1000)
                yield ListQuery(dataset, Filters(), order_by, descending, limit=7, offset=30, count=False)
                yield from (
                    ListQuery(dataset, Filters(), order_by, descending, limit=20, count=False, after=after)
                    for after in _places(dataset, order_by)
                )
        yield ListQuery(dataset, order_by=dataset.time, offset=10_000)
        for text in SOUGHT:
            filters = Filters(text=text)
            yield ListQuery(dataset, filters, order_by="id", limit=1000)
        for bucket in BUCKETS.values():
            for filters in (Filters(), Filters(text="a", start=1, end=CREATED)):
                yield AggregateQuery(dataset, None, filters, bucket)
                yield from (AggregateQuery(dataset, name, filters, bucket) for name in dataset.groupings)
    serial = ACCEPTED[MEASURES.name][1][0][MEASURES.column_names.index("serial")]
    yield ListQuery(MEASURES, Filters((("serial", serial),)), order_by="id")


def _places(dataset: Dataset, order_by: str) -> Iterator[tuple[Any, int]]:
    """Of rows, before all, behind all, and between rows."""
    by = dataset.column_names.index(order_by)
    rows = sorted((row for rows in ACCEPTED[dataset.name].values() for row in rows), key=lambda r: (r[by], r[0]))
    for row in (rows[0], rows[97], rows[98], rows[-1]):
        yield row[by], row[0]
    yield rows[97][by], rows[97][0] if order_by == "id" else 1


def test_before_the_first_batch_there_is_nothing(store: StoreReader) -> None:
    for dataset in DATASETS:
        assert store.execute(StatsQuery(dataset), 0).rows == [(0,)]
        listed = store.execute(ListQuery(dataset, order_by="id"), 0)
        assert (listed.rows, listed.total) == ([], 0)
        assert store.execute(AggregateQuery(dataset, dataset.groupings[0]), 0).rows == []


@pytest.mark.parametrize("as_of", [6, LAST + 100])
def test_every_query(store: StoreReader, as_of: int) -> None:
    for query in _queries():
        oracle = Oracle(query, as_of)
        result = store.execute(query, as_of)
        assert _exact(result.rows) == _exact(oracle.rows()), query
        wants_total = isinstance(query, ListQuery) and query.count
        assert result.total == (len(oracle.matching()) if wants_total else None), query
        assert result.elapsed_ms >= 0
        assert result.method == "scan" or not query.scan


def test_a_result_that_is_too_large_is_refused(store: StoreReader, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a store reads in this process; the limits are the same in the lake's processes."""
    reader = EmbeddedReader(store._settings) if isinstance(store, ProcessReader) else store
    groups, page = AggregateQuery(MEASURES, "order"), ListQuery(MEASURES, order_by="id", limit=1000)
    count = len(Oracle(groups, LAST).rows())
    for module in (result_size, postgres_rollups, clickhouse_rollups, clickhouse_queries, queries, lake_sql):
        if hasattr(module, "MAX_GROUPS"):
            monkeypatch.setattr(module, "MAX_GROUPS", count)
    assert len(reader.execute(groups, LAST).rows) == count
    monkeypatch.setattr(result_size, "MAX_GROUPS", count - 1)
    with pytest.raises(ResultTooLarge, match=f"more than {count - 1} groups"):
        reader.execute(groups, LAST)
    size = sum(sum(len(v) if isinstance(v, str) else 8 for v in row) for row in Oracle(page, LAST).rows())
    monkeypatch.setattr(result_size, "MAX_RESULT_BYTES", size)
    assert len(reader.execute(page, LAST).rows) == BATCHES * ROWS
    monkeypatch.setattr(queries, "_ROWS_AT_ONCE", 10)
    monkeypatch.setattr(embedded, "_ROWS_AT_ONCE", 10)
    for refused in (size - 1, size // 2, 0):
        monkeypatch.setattr(result_size, "MAX_RESULT_BYTES", refused)
        with pytest.raises(ResultTooLarge, match="smaller limit"):
            reader.execute(page, LAST)
    monkeypatch.setattr(result_size, "MAX_RESULT_BYTES", size - 1)
    assert len(reader.execute(replace(page, limit=9), LAST).rows) == 9


def test_a_query_that_was_stopped_before_does_not_run(store: StoreReader) -> None:
    stop = Stop()
    stop.end_query()
    if not isinstance(store, MemoryStore | EmbeddedReader) or isinstance(store, ProcessReader):
        with pytest.raises(QueryCancelled):
            store.execute(StatsQuery(MEASURES), LAST, 30.0, stop)
    assert store.execute(StatsQuery(MEASURES), LAST).rows == [(BATCHES * ROWS,)]


@pytest.mark.parametrize("dataset", DATASETS, ids=lambda d: d.name)
@pytest.mark.parametrize(("first", "last"), [(0, LAST), (3, 5), (4, 4), (LAST, LAST + 9), (LAST + 1, LAST + 9)])
def test_counts_and_rows_of_a_range(store: StoreReader, dataset: Dataset, first: int, last: int) -> None:
    wanted = {b: rows for b, rows in ACCEPTED[dataset.name].items() if first <= b <= last}
    assert list(store.counts(dataset, first, last)) == [(b, ROWS, ROWS) for b in wanted]
    found = sorted(store.rows(dataset, first, last))
    assert _exact(found) == _exact([row for rows in wanted.values() for row in rows])


@pytest.mark.parametrize("limits", [{}, {"_AT_ONCE": 2, "_WINDOW": 2}, {"_MOST_RANGES": 2}], ids=str)
@pytest.mark.parametrize("dataset", DATASETS, ids=lambda d: d.name)
def test_counts_and_rows_of_some_batches(
    store: StoreReader, dataset: Dataset, limits: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They were accepted before and after a midnight; one of them is not in the store."""
    for module in (postgres_reader, clickhouse_reader, lake_reader, lake_sql):
        for name, value in limits.items():
            if hasattr(module, name):
                monkeypatch.setattr(module, name, value)
    created_at = dataset.column_names.index("created_at")
    wanted = {b: rows for number, (b, rows) in enumerate(ACCEPTED[dataset.name].items()) if number % 2 or not number}
    batches = [Batch(b, 0, dataset.name, len(rows), 0, rows[0][created_at]) for b, rows in wanted.items()]
    absent = Batch(LAST + 9, 0, dataset.name, 1, 0, CREATED)
    found = sorted(store.rows_of(dataset, [*batches, absent]))
    assert _exact(found) == _exact([row for rows in wanted.values() for row in rows])
    assert sorted(store.counts_of(dataset, [*batches, absent])) == [(b, ROWS, ROWS) for b in wanted]
    assert list(store.counts_of(dataset, [])) == list(store.rows_of(dataset, [])) == []


@pytest.mark.parametrize("dataset", DATASETS, ids=lambda d: d.name)
def test_the_checksum_of_what_is_read_back(store: StoreReader, dataset: Dataset) -> None:
    codec = RowCodec(dataset)
    for batch_id, rows in ACCEPTED[dataset.name].items():
        assert checksum(codec.encode(store.rows(dataset, batch_id, batch_id))) == checksum(codec.encode(rows))


def test_a_reader_that_is_left_early_can_be_asked_again(store: StoreReader) -> None:
    rows = store.rows(MEASURES, 0, LAST)
    next(rows)
    rows.close()  # type: ignore[attr-defined]
    assert len(list(store.rows(MEASURES, 0, LAST))) == BATCHES * ROWS


@pytest.mark.parametrize("reader_type", [postgres.PostgresReader, ClickHouseReader])
def test_a_store_that_is_unreachable_says_so(reader_type: Any, unused_tcp_port: int) -> None:
    scheme = "postgresql://x@" if reader_type is postgres.PostgresReader else "http://"
    reader = reader_type(f"{scheme}127.0.0.1:{unused_tcp_port}")
    with pytest.raises(StoreDown, match=reader.name):
        reader.execute(StatsQuery(LOGS), 1)
    reader.close()


def test_postgres_is_told_to_stop_in_time(postgres_url: str) -> None:
    slow_logs = replace(LOGS, name="reader_slow")
    with closing(postgres.PostgresReader(postgres_url)) as reader, connect(postgres_url) as other:
        postgres.prepare(other, slow_logs)
        with other.transaction():
            other.execute("LOCK TABLE reader_slow")
            with pytest.raises(QueryTimeout, match=r"postgres: no result within 0\.2 s"):
                reader.execute(ListQuery(slow_logs), LAST, seconds=0.2)
            waiting = other.execute("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'").fetchone()
            assert waiting == (0,)
        assert reader.execute(ListQuery(slow_logs), LAST).total == 0
        with reader._pool.connection() as connection, connection.transaction():
            execution = PostgresExecution(connection, time.monotonic() + 1.0)
            slow = sql.SQL("SELECT pg_sleep(0.6)").format()
            execution.fetch(slow, [])
            with pytest.raises(QueryCanceled):  # page and count share one time
                execution.fetch(slow, [])


def test_postgres_is_told_to_stop_by_another_thread(postgres_url: str) -> None:
    stopped_logs, stop = replace(LOGS, name="reader_stopped"), Stop()
    waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    with closing(postgres.PostgresReader(postgres_url)) as reader, connect(postgres_url) as other:
        postgres.prepare(other, stopped_logs)
        with other.transaction(), ThreadPoolExecutor() as threads:
            other.execute("LOCK TABLE reader_stopped")
            future = threads.submit(reader.execute, ListQuery(stopped_logs), LAST, 60.0, stop)
            with connect(postgres_url) as watching:
                until(lambda: watching.execute(waits).fetchone() == (1,))
                stop.end_query()
                with pytest.raises(QueryTimeout):
                    future.result(60)
                assert watching.execute(waits).fetchone() == (0,)
        assert reader.execute(ListQuery(stopped_logs), LAST).total == 0


def test_clickhouse_is_told_to_stop_by_another_thread(clickhouse_url: str) -> None:
    running = "SELECT count() FROM system.processes WHERE query LIKE 'SELECT sleepEachRow%'"
    stop = Stop()
    with closing(ClickHouseReader(clickhouse_url)) as reader, ThreadPoolExecutor() as threads:
        execution = ClickHouseExecution(reader._client, 60.0, stop, scan=True)
        slow = "SELECT sleepEachRow(0.1) FROM numbers(300) SETTINGS max_block_size = 1"
        future = threads.submit(execution.fetch, slow, {})
        until(lambda: reader._client.query(running).result_rows == [(1,)])
        stop.end_query()
        with pytest.raises(LogpipeError):
            future.result(60)
        until(lambda: reader._client.query(running).result_rows == [(0,)])


def test_clickhouse_does_not_send_a_result_that_is_far_too_large(
    clickhouse_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clickhouse_queries, "_SERVER_BYTES", 100_000)
    with closing(ClickHouseReader(clickhouse_url)) as reader:
        execution = ClickHouseExecution(reader._client, 60.0, scan=True)
        assert len(execution.fetch("SELECT number FROM numbers(10000)", {})) == 10_000
        with pytest.raises(ResultTooLarge):
            execution.fetch("SELECT number FROM numbers(100000)", {})


def test_clickhouse_is_told_to_stop_in_time(clickhouse_url: str) -> None:
    many = replace(LOGS, name="reader_many")
    writer = ClickHouseWriter(clickhouse_url)
    writer.prepare(many)
    writer._client.command(
        "INSERT INTO reader_many (id, created_at_utc, message) SELECT 131072 + number, toDateTime64(0, 6, 'UTC'),"
        " hex(sipHash64(number)) FROM numbers(1000000)"
    )
    with closing(ClickHouseReader(clickhouse_url)) as reader:
        with pytest.raises(QueryTimeout, match=r"clickhouse: no result within 0\.002 s"):
            reader.execute(AggregateQuery(many, "level", Filters(text="1")), LAST, seconds=0.002)
        assert reader.execute(AggregateQuery(many, "level"), LAST + 9).rows == [("", 1_000_000)]
        execution = ClickHouseExecution(reader._client, 1.0, scan=True)
        slow = "SELECT sleepEachRow(0.1) FROM numbers(6) SETTINGS max_block_size = 1"
        execution.fetch(slow, {})
        with pytest.raises(QueryTimeout):  # page and count share one time
            execution.fetch(slow, {})


def test_clickhouse_passes_over_what_cannot_hold_a_text(clickhouse_url: str) -> None:
    indexed = replace(LOGS, name="reader_indexed")
    writer = ClickHouseWriter(clickhouse_url)
    writer._client.command(create_table(indexed))  # as it was made before there was an index
    for _ in range(2):
        writer.prepare(indexed)
    writer._client.command(
        "INSERT INTO reader_indexed (id, created_at_utc, message) SELECT 131072 + number, toDateTime64(0, 6, 'UTC'),"
        " if(number = 70000, 'a zebra crossing', 'Request processed') FROM numbers(100000)"
    )
    with closing(ClickHouseReader(clickhouse_url)) as reader:
        for text, found, read in (("zebra", 1, 8192), ("zebu crossing", 0, 0), ("Request", 99_999, 100_000)):
            result = reader.execute(AggregateQuery(indexed, None, Filters(text=text), 60_000_000, scan=True), LAST)
            assert sum(row[-1] for row in result.rows) == found
            assert result.scanned["rows"] == read


def test_clickhouse_does_not_ask_all_days_for_the_newest_rows(
    clickhouse_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    aged = replace(LOGS, name="reader_aged")
    writer = ClickHouseWriter(clickhouse_url)
    writer.prepare(aged)
    writer._client.command(  # 200 rows on each of 20 days, the newest row an hour old
        "INSERT INTO reader_aged (id, created_at_utc, timestamp_utc) SELECT 131072 + number, at, at FROM (SELECT"
        " number, now64(6) - INTERVAL 1 HOUR - toIntervalDay(intDiv(number, 200)) - toIntervalMillisecond(number) AS at"
        " FROM numbers(4000))"
    )
    fetched: list[dict[str, Any]] = []
    fetch = ClickHouseExecution.fetch

    def record(self: ClickHouseExecution, sql: str, parameters: dict[str, Any]) -> list[Row]:
        fetched.append(parameters)
        return fetch(self, sql, parameters)

    monkeypatch.setattr(ClickHouseExecution, "fetch", record)
    with closing(ClickHouseReader(clickhouse_url)) as reader:
        for limit, is_within_a_day in ((100, True), (300, False)):
            fetched.clear()
            result = reader.execute(ListQuery(aged, limit=limit, count=False), LAST)
            assert [row[0] for row in result.rows] == list(range(131072, 131072 + limit))
            assert ("since" in fetched[-1]) == is_within_a_day


def _exact(rows: Sequence[Row]) -> list[str]:
    """Compares what == does not: types and the sign of zero."""
    return list(map(repr, rows))
