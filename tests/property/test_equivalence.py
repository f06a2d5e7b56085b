"""Random queries to every store while rows are being loaded: each store gives the result of the store in memory.

The stores are real. One loader fills them side by side for as long as queries run. The reference holds the same rows
from the start, and `as_of` says which rows a query may see. Spark reads the same lake as the embedded reader, but runs
fewer queries: each takes Spark about a second.
"""

import os
import random
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import replace
from typing import Any
from unittest import mock
from uuid import UUID

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from services import stores
from services.core.dataset import Column, Dataset
from services.core.ids import first_id
from services.core.ports import DEFAULT_QUERY_SECONDS, Block, StoreReader
from services.core.queries import BUCKETS, AggregateQuery, Filters, ListQuery, Query, StatsQuery
from services.core.rows import Row, RowCodec, Rows
from services.datasets.events import DATASET as EVENTS
from services.datasets.logs import DATASET as LOGS
from services.lake.embedded import EmbeddedReader
from services.lake.settings import SparkConnectSettings
from services.lake.spark import SparkReader
from services.postgres.connection import connect
from services.runtime.settings import LakeSettings
from services.stores import postgres
from services.stores.clickhouse.reader import ClickHouseReader
from services.stores.clickhouse.writer import ClickHouseWriter
from services.stores.memory import MemoryStore
from tests import lake_tables
from tests.conftest import running

pytestmark = pytest.mark.heavy

DAY = 86_400_000_000
CREATED = 20_778 * DAY + DAY - 7  # the batches from the seventh on are accepted on the next day
BATCHES, BATCH_ROWS = 16, 60
SPARK_SECONDS = 200  # the first query waits until the server has loaded its code
DATASETS = (replace(LOGS, name="equal_logs"), replace(EVENTS, name="equal_events"))

HOSTILE = [
    *("", " ", "%", "_", "\\", "\\\\", "'", "''", '"', "`", ";", "--", "\\'", "\\N", "\\0", "?"),
    *("%s", "%(x)s", "{x:String}", "$1", "${jndi:ldap://x}", "\ufffd", "\u202e", "*/ 1 /*"),
    *("' OR '1'='1", "'; DROP TABLE equal_logs; --", "x' UNION SELECT 1 --", "a\\%b", "\t", "\n", "\r\n"),
    *("null", "NULL", "NaN", "true", "É", "é", "e\u0301", "ß", "SS", "😀", "\uffff", "\U0010ffff"),
]
FEW = ["", "%", "' OR '1'='1", "é", "a"]  # values of categories: few, so that a filter finds rows
texts = st.one_of(
    st.sampled_from(HOSTILE),
    st.sampled_from(["%", "_", "\\", "'", "a", "é", "😀"]),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=3),
)

FIRST_TIME = 1_800_000_000_000_000
times = st.integers(FIRST_TIME - DAY, FIRST_TIME + 4 * DAY)


def _value(column: Column, chance: random.Random) -> Any:
    match column.kind:
        case "timestamp":  # close together, so that a bucket holds several rows
            return FIRST_TIME + chance.randrange(3 * DAY) // 7_000_000 * 7_000_000
        case "json":
            return chance.choice(["{}", '{"a": 1.10}', '"é"'])
        case "uuid":
            return str(UUID(int=chance.getrandbits(128)))
    return "".join(chance.choices(HOSTILE, k=2)) if column.name == "message" else chance.choice(FEW)


def _batch(dataset: Dataset, batch_id: int) -> list[Row]:
    chance = random.Random(f"{dataset.name} {batch_id}")
    start, created = first_id(batch_id), CREATED + batch_id
    return [(start + n, created, *(_value(c, chance) for c in dataset.columns)) for n in range(BATCH_ROWS)]


class Loader:
    """Fills all stores, batch after batch, until it is stopped, also with batches that no query may see."""

    def __init__(self, postgres_url: str, clickhouse_url: str, lake: LakeSettings) -> None:
        self._connection = connect(postgres_url)
        self._writer = ClickHouseWriter(clickhouse_url)
        self._lake = lake
        self._reached = 0
        self._changed = threading.Condition()
        self._stopped = threading.Event()
        self._error: BaseException | None = None
        for dataset in DATASETS:
            postgres.prepare(self._connection, dataset)
            postgres.ensure_partitions(self._connection, dataset, CREATED // DAY, 2)
            self._writer.prepare(dataset)
        self._load(1)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def await_batch(self, batch_id: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self._error or self._reached >= batch_id, timeout=60)
        assert self._error is None

    def close(self) -> None:
        self._stopped.set()
        self._thread.join()
        self._connection.close()

    def _run(self) -> None:
        batch_id = 1
        while not self._stopped.wait(0.1 if batch_id < BATCHES else 1.0):  # each batch is a file that Spark reads
            batch_id += 1
            try:
                self._load(batch_id)
            except BaseException as error:  # noqa: BLE001 - await_batch fails because of it
                self._error = error
                self._stopped.set()
            with self._changed:
                self._reached = batch_id
                self._changed.notify_all()

    def _load(self, batch_id: int) -> None:
        for dataset in DATASETS:
            rows = _batch(dataset, batch_id)
            _, (created, *_), *columns = zip(*rows, strict=True)
            with self._connection.cursor().copy(postgres.copy_statement(dataset, created // DAY)) as copy:
                copy.set_types(postgres.copy_types(dataset))
                for values in postgres.copy_rows(dataset, Rows(len(rows), columns), batch_id, created):
                    copy.write_row(values)
            if batch_id % 3 == 0:  # the next batch of the same day comes late, and opens it again
                postgres.close_days(self._connection, dataset)
            self._writer.write([_block(dataset, batch_id, rows)])
            lake_tables.append(self._lake, dataset, rows)


def _block(dataset: Dataset, batch_id: int, rows: list[Row]) -> Block:
    lines = b"".join(line + b"\n" for line in RowCodec(dataset).encode(rows))
    return Block(dataset, "topic", 0, batch_id, batch_id, rows[0][1] // DAY, len(rows), lines)


@pytest.fixture(scope="module")
def reference() -> MemoryStore:
    store = MemoryStore()
    for dataset in DATASETS:
        store.prepare(dataset)
        for batch_id in range(1, BATCHES + 1):
            store.write([_block(dataset, batch_id, _batch(dataset, batch_id))])
    return store


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> LakeSettings:
    return LakeSettings(hdfs_url=tmp_path_factory.mktemp("lake").as_uri())


@pytest.fixture(scope="module")
def loader(
    postgres_url: str, clickhouse_url: str, lake: LakeSettings
) -> Iterator[tuple[Loader, Mapping[str, StoreReader]]]:
    readers: list[StoreReader] = [
        postgres.PostgresReader(postgres_url),
        ClickHouseReader(clickhouse_url),
        EmbeddedReader(lake),
    ]
    assert {reader.name for reader in readers} == set(stores.readers())
    with ExitStack() as stack:
        for reader in readers:
            stack.callback(reader.close)
        yield stack.enter_context(closing(Loader(postgres_url, clickhouse_url, lake))), {r.name: r for r in readers}


@pytest.fixture(scope="module")
def spark(lake: LakeSettings, loader: object) -> Iterator[SparkReader]:
    """Spark on the tables that the loader fills. The server has loaded its code."""
    # The quick compiler of the JVM only: the server spends most of its first minute in the other one.
    quick = mock.patch.dict(os.environ, JAVA_TOOL_OPTIONS="-XX:TieredStopAtLevel=1")
    with quick, running("spark-connect") as stack:
        url = stack.settings.urls()["LOGPIPE_SPARK_CONNECT_URL"]
        with closing(SparkReader(SparkConnectSettings(hdfs_url=lake.hdfs_url, spark_connect_url=url))) as reader:
            for dataset in DATASETS:
                reader.execute(StatsQuery(dataset, scan=True), 1, SPARK_SECONDS)
            yield reader


@st.composite
def filters(draw: st.DrawFn, dataset: Dataset) -> Filters:
    names = draw(st.sampled_from([(), (), (), *((name,) for name in dataset.filters), dataset.filters[:2]]))
    equals = tuple((name, draw(st.sampled_from(FEW) | texts)) for name in names)
    first, last = sorted(draw(st.tuples(times, times)))
    start, end = draw(st.sampled_from([(None, None), (None, None), (first, None), (None, last), (first, last)]))
    return Filters(equals, start, end, draw(st.sampled_from(["", draw(texts)])) if dataset.search else "")


@st.composite
def queries(draw: st.DrawFn) -> Query:
    dataset, scan = draw(st.sampled_from(DATASETS)), draw(st.booleans())
    kind = draw(st.sampled_from([ListQuery, ListQuery, AggregateQuery, AggregateQuery, StatsQuery]))
    if kind is StatsQuery:
        return StatsQuery(dataset, scan)
    where = draw(filters(dataset))
    if kind is AggregateQuery:
        bucket = draw(st.none() | st.sampled_from(list(BUCKETS.values())))
        grouping = st.sampled_from(dataset.groupings)
        return AggregateQuery(dataset, draw(grouping | st.none() if bucket else grouping), where, bucket, scan)
    order_by = draw(st.sampled_from(dataset.orderings))
    after = draw(st.none() | places(dataset, order_by))
    limit, offset = draw(st.integers(1, 200)), draw(st.sampled_from([0, 0, 0, 20, 1_000_000_000]))
    descending, count = draw(st.booleans()), draw(st.booleans())
    return ListQuery(dataset, where, order_by, descending, limit, offset, count, after, scan)


@st.composite
def places(draw: st.DrawFn, dataset: Dataset, order_by: str) -> tuple[Any, int]:
    """The place of a row in the order of a list, or a place beside the row."""
    row = _batch(dataset, draw(st.integers(1, BATCHES + 1)))[draw(st.integers(0, BATCH_ROWS - 1))]
    value = row[dataset.column_names.index(order_by)]
    if order_by == "id":
        return value, value
    if isinstance(value, str) and draw(st.booleans()):
        value = draw(texts)
    return value, row[0] + draw(st.sampled_from([0, 0, -1, 1]))


def compare(
    reference: MemoryStore,
    loading: Loader,
    readers: Mapping[str, StoreReader],
    query: Query,
    as_of: int,
    seconds: float = DEFAULT_QUERY_SECONDS,
) -> None:
    loading.await_batch(as_of)
    wanted = reference.execute(query, as_of)
    event(f"{type(query).__name__}, {'some rows' if wanted.rows else 'no rows'}")
    for name, reader in readers.items():
        found = reader.execute(query, as_of, seconds)
        assert (found.rows, found.total) == (wanted.rows, wanted.total), name


def examples(count: int) -> settings:
    slow = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    return settings(max_examples=count, deadline=None, suppress_health_check=slow)


as_ofs = st.just(BATCHES) | st.integers(0, BATCHES)


@examples(100)
@given(query=queries(), as_of=as_ofs)
def test_every_store_answers_as_the_reference(
    reference: MemoryStore, loader: tuple[Loader, Mapping[str, StoreReader]], query: Query, as_of: int
) -> None:
    loading, readers = loader
    compare(reference, loading, readers, query, as_of)


@pytest.mark.timeout(600)
@examples(30)
@given(query=queries(), as_of=as_ofs)
def test_spark_answers_as_the_reference(
    reference: MemoryStore,
    loader: tuple[Loader, Mapping[str, StoreReader]],
    spark: SparkReader,
    query: Query,
    as_of: int,
) -> None:
    compare(reference, loader[0], {"spark": spark}, query, as_of, SPARK_SECONDS)
