"""Both engines of the lake on the same files: the same results; and what only a real Spark Connect server shows."""

import os
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pytest
from pyspark.errors.exceptions.connect import SparkConnectGrpcException
from pyspark.sql.connect.session import SparkSession

from services.core.errors import QueryTimeout, StoreDown
from services.core.ids import first_id
from services.core.ledger import Batch
from services.core.ports import StoreReader
from services.core.queries import BUCKETS, AggregateQuery, Filters, ListQuery, Query, StatsQuery
from services.core.rows import Row
from services.datasets.logs import DATASET as LOGS
from services.lake.embedded import EmbeddedReader
from services.lake.settings import SparkConnectSettings
from services.lake.spark import SparkReader
from services.local.stack import Stack
from tests import lake_tables
from tests.conftest import running

CREATED = 1_700_000_000_000_000
HOUR = 3_600_000_000
FILES, ROWS = 6, 40
AS_OF = 9
SECONDS = 200  # the server's first answer waits for all of its code to be loaded
TEXTS = ["", " ", "a", "B", "É", "e\u0301", "😀", "\uffff", "a'b", 'a"b', "a\\b", "`", ":p0", "%s", "x\ny"]
BATCHES = [Batch(2 * file, 0, LOGS.name, ROWS, 0, CREATED + file) for file in (0, 1, 4, 99)]  # the last is not there

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(900)]


@dataclass(frozen=True)
class Engines:
    stack: Stack
    settings: SparkConnectSettings
    embedded: EmbeddedReader
    spark: SparkReader


def row(number: int, chance: random.Random) -> Row:
    file, n = divmod(number, ROWS)
    texts = [chance.choice(TEXTS) for _ in range(4)]
    return (first_id(2 * file) + n, CREATED + file, file * HOUR + 7 * n + n % 3, *texts, '{"a": 1e2}')


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engines]:
    chance = random.Random(3)
    # The JVM's quick compiler only: it spends most of its first minute in the other one.
    quick = mock.patch.dict(os.environ, JAVA_TOOL_OPTIONS="-XX:TieredStopAtLevel=1")
    with quick, running("spark-connect") as stack:
        settings = SparkConnectSettings(
            hdfs_url=tmp_path_factory.mktemp("lake").as_uri(),
            spark_connect_url=stack.settings.urls()["LOGPIPE_SPARK_CONNECT_URL"],
        )
        for file in range(FILES):
            rows = [row(number, chance) for number in range(file * ROWS, (file + 1) * ROWS)]
            lake_tables.append(settings, LOGS, rows)
        engines = Engines(stack, settings, EmbeddedReader(settings), SparkReader(settings))
        yield engines
        engines.spark.close()


def queries() -> Iterator[Query]:
    hour = Filters(start=2 * HOUR, end=3 * HOUR)
    yield StatsQuery(LOGS, scan=True)
    yield AggregateQuery(LOGS, "level")
    yield AggregateQuery(LOGS, "service", hour)
    yield AggregateQuery(LOGS, None, bucket=BUCKETS["1h"])
    yield AggregateQuery(LOGS, "host", Filters(text="a", start=HOUR + 1), bucket=BUCKETS["1m"])
    yield ListQuery(LOGS, hour, count=True, limit=1000, scan=True)
    yield ListQuery(LOGS, order_by="level", limit=1000, count=False)
    yield ListQuery(LOGS, order_by="service", descending=False, limit=7, offset=30, count=False)
    yield ListQuery(LOGS, order_by="level", after=("a'b", 1), limit=50, count=False)
    yield ListQuery(LOGS, after=(3 * HOUR, first_id(99)), limit=1000, count=False)
    yield ListQuery(LOGS, offset=10**9, count=False)
    for text in ("'", ":p0", "`", "\\", "😀"):
        yield AggregateQuery(LOGS, "level", Filters((("host", text),), text=text))


def test_both_engines_give_the_same_result_and_read_the_same_files(engines: Engines) -> None:
    scans = 0
    for query in queries():
        embedded, spark = (each.execute(query, AS_OF, SECONDS) for each in (engines.embedded, engines.spark))
        assert list(map(repr, spark.rows)) == list(map(repr, embedded.rows)), query
        assert (spark.total, spark.method) == (embedded.total, "scan"), query
        if embedded.method == "scan":  # it can count from the table's log, and need not open what lies before an offset
            assert spark.scanned == embedded.scanned, query
            scans += 1
    assert scans


def test_both_engines_read_the_same_rows_and_know_the_same_position(engines: Engines) -> None:
    for read in (
        lambda e: sorted(e.rows(LOGS, 2, 5)),
        lambda e: list(e.counts(LOGS, 0, 99)),
        lambda e: list(e.counts_of(LOGS, BATCHES)),
        lambda e: sorted(e.rows_of(LOGS, BATCHES)),
        lambda e: e.position(LOGS),
    ):
        assert read(engines.spark) == read(engines.embedded)


def test_a_question_over_its_time_is_stopped_in_the_server(engines: Engines) -> None:
    reader: StoreReader = engines.spark
    reader.execute(StatsQuery(LOGS), AS_OF, SECONDS)
    with pytest.raises(QueryTimeout, match=r"lake \(spark\)"):
        reader.execute(AggregateQuery(LOGS, "message"), AS_OF, 0.02)
    assert reader.execute(StatsQuery(LOGS), AS_OF, SECONDS).rows == [(5 * ROWS,)]


def test_a_restarted_server_is_found_again_and_an_unreachable_one_is_named(engines: Engines) -> None:
    assert engines.spark.execute(StatsQuery(LOGS), AS_OF, SECONDS).rows == [(5 * ROWS,)]
    other = SparkSession(engines.settings.spark_connect_url)  # whose pauses between its tries are its own
    other.client.set_retry_policies([])
    engines.stack.supervisor.stop("spark-connect")
    start = time.monotonic()
    with pytest.raises(StoreDown, match=r"lake \(spark\)"):
        engines.spark.execute(StatsQuery(LOGS), AS_OF, SECONDS)
    assert time.monotonic() - start < 20  # not the minutes for which Spark tries again
    with pytest.raises(SparkConnectGrpcException, match="failed to connect"):
        other.sql("SELECT 1")
    engines.stack.up()
    assert engines.spark.execute(StatsQuery(LOGS), AS_OF, SECONDS).rows == [(5 * ROWS,)]
    other.stop()


def test_an_absent_table_is_not_asked_of_the_server(tmp_path: Path, unused_tcp_port: int) -> None:
    url = f"sc://127.0.0.1:{unused_tcp_port}"
    reader = SparkReader(SparkConnectSettings(hdfs_url=tmp_path.as_uri(), spark_connect_url=url))
    assert reader.execute(StatsQuery(LOGS), AS_OF).rows == [(0,)]
    reader.close()
