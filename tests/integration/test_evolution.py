"""A column is added while old and new processes run side by side: nothing is lost, in no store, and nothing stops.

The toy dataset comes in two versions; a process knows the one or the other.
"""

import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import msgspec
import psycopg
import pytest

from services.acceptance.committer import Accepted, Committer, Submission
from services.acceptance.publisher import MessageCache, SlotKafka, SlotPublisher
from services.core.dataset import Column, Dataset
from services.core.errors import NeedsOperator
from services.core.queries import AggregateQuery, Filters, ListQuery, Query, StatsQuery
from services.core.rows import RowCodec
from services.ledger import reading
from services.ledger.sink_progress import SinkProgress, positions
from services.postgres.connection import connect
from services.stores import postgres
from services.stores.clickhouse.reader import ClickHouseReader
from services.stores.clickhouse.writer import ClickHouseWriter
from services.stores.postgres import PostgresReader
from services.stream_to_store.backlog import Limits
from services.stream_to_store.consumer import Consumer, Target
from services.streams import kafka
from services.streams.dead_letters import DeadLetterSender
from services.streams.loop import GroupLoop, State
from services.streams.topics import ensure_topics
from services.verify.reconcile import Selection, reconcile
from tests import marks
from tests.waiting import until

PARTITIONS = 2
ROWS = 40  # of a request


def version(*added: Column) -> Dataset:
    return Dataset(
        name="visits",
        singular="visit",
        plural="visits",
        topic="visits",
        key="page",
        time="at",
        columns=(
            Column("at", "timestamp", required=True),
            Column("page", "category", required=True),
            Column("note", "text"),
            *added,
        ),
        groupings=("page", *(c.name for c in added if c.kind == "category")),
        orderings=("at", "id"),
        filters=("page",),
    )


OLD = version()
NEW = version(
    Column("region", "category", added=True),
    Column("score", "number", added=True),
    Column("details", "json", added=True),
)


class Ingest:
    """What an ingest API of one version does, with a slot of its own."""

    def __init__(self, postgres_url: str, kafka_url: str, dataset: Dataset, slot: int) -> None:
        self.dataset = dataset
        self.codec = RowCodec(dataset)
        self.cache = MessageCache(1 << 20)
        self.connection = connect(postgres_url)
        self.rows = PostgresReader(postgres_url, max_connections=2)
        self._kafka_url = kafka_url
        postgres.prepare(self.connection, dataset)
        postgres.ensure_partitions(self.connection, dataset, int(time.time()) // 86_400, 2)
        self.committer = Committer(
            postgres_url,
            {dataset.name: self.codec},
            lambda: slot,
            lambda batch, outgoing: self.cache.put(batch.batch_id, outgoing),
            batch_rows=1000,
            partitions=PARTITIONS,
        )

    def accept(self, **values: Any) -> None:
        row = {"at": "2026-01-31T12:00:00Z", "note": "é"} | values
        lines = [msgspec.json.encode(row | {"page": f"page-{n % 7}"}) for n in range(ROWS)]
        [outcome] = self.committer.commit(self.dataset, [Submission([self.codec.decode_lines(b"\n".join(lines))])])
        assert isinstance(outcome, Accepted), outcome

    def publish(self, slot: int, cache: MessageCache | None = None) -> None:
        """All of a slot, its own or one it has adopted."""
        publisher = SlotPublisher(
            marks.lease(self.connection, slot),
            {self.dataset.name: self.dataset},
            SlotKafka(
                lambda slot: kafka.KafkaProducer(self._kafka_url, f"visits-{slot}"),
                lambda topic: kafka.KafkaPartitionReader(self._kafka_url, topic),
                PARTITIONS,
            ),
            cache or self.cache,
            self.rows,
            max_rows=100_000,
        )
        with closing(publisher):
            while publisher.step(self.connection):
                pass

    def close(self) -> None:
        self.committer.close()
        self.rows.close()
        self.connection.close()


class World:
    def __init__(self, postgres_url: str, kafka_url: str, clickhouse_url: str) -> None:
        self.urls = (postgres_url, kafka_url)
        self.postgres_url, self.kafka_url, self.clickhouse_url = postgres_url, kafka_url, clickhouse_url
        self.slots = 7_000 + uuid.uuid4().int % 1_000_000
        self.postgres = PostgresReader(postgres_url)
        self.clickhouse = ClickHouseReader(clickhouse_url)
        ensure_topics(kafka_url, {"visits": PARTITIONS, "dead-letter": 1}, 1)
        self.ledger = connect(postgres_url)

    def loop(self, dataset: Dataset) -> GroupLoop[Consumer]:
        reader = kafka.KafkaGroupReader(self.kafka_url, "visits", "logpipe-clickhouse-visits")
        dead_letters = DeadLetterSender(
            lambda: kafka.KafkaProducer(self.kafka_url, "visits-dead"), "clickhouse", dataset
        )
        consumer = Consumer(
            Target("clickhouse", dataset, ClickHouseWriter(self.clickhouse_url), dead_letters),
            reader,
            Limits(1000, 1 << 20, 0.1),
            lambda: None,
            lambda topic_id: SinkProgress(self.postgres_url, self.clickhouse, dataset, topic_id),
        )
        return GroupLoop("visits", reader, consumer)

    def load(self, dataset: Dataset) -> str | None:
        """Run a consumer until all is loaded, or until it stops; return why it stopped."""
        loop = self.loop(dataset)
        worker = loop.worker()
        worker.start()
        until(lambda: self.loaded() or loop._state is State.STOPPED)
        worker.stop(30)
        return None if self.loaded() else loop.health()

    def loaded(self) -> bool:
        with closing(kafka.KafkaPartitionReader(self.kafka_url, "visits")) as topic:
            ends = {partition: end for partition, (_, end) in topic.bounds().items()}
        at = positions(self.postgres_url, "clickhouse", "visits")
        return {p: position.next_offset for p, position in at.items()} == ends

    def differences(self, dataset: Dataset) -> dict[str, list[str]]:
        """Store -> what is wrong there, as a process that knows `dataset` sees it. Reads every row."""
        last = reading.last_batch(self.ledger)
        accepted = reading.batches(self.ledger, "visits", 0, last, 1000)
        assert accepted
        found = {}
        for reader in (self.postgres, self.clickhouse):
            result = reconcile(
                reader, dataset, accepted, lambda batches: {}, Selection(0, last, None, 0), lambda rows: None
            )
            assert result.compared == len(accepted) or not result.ok
            found[reader.name] = result.examples
        return found

    def results(self, query: Query) -> list[Any]:
        last = reading.last_batch(self.ledger)
        ours, theirs = (reader.execute(query, last).rows for reader in (self.postgres, self.clickhouse))
        assert ours == theirs
        return ours

    def close(self) -> None:
        self.postgres.close()
        self.clickhouse.close()
        self.ledger.close()


@pytest.fixture
def world(postgres_url: str, kafka_url: str, clickhouse_url: str) -> Iterator[World]:
    with closing(World(postgres_url, kafka_url, clickhouse_url)) as made:
        yield made


def test_a_column_reaches_every_store_without_downtime(world: World) -> None:
    with closing(Ingest(*world.urls, OLD, world.slots)) as old:
        old.accept()
        old.publish(world.slots)
        assert world.load(OLD) is None
        assert world.differences(OLD) == {"postgres": [], "clickhouse": []}

        # The sink goes first, then the ingest API, one process after the other.
        ClickHouseWriter(world.clickhouse_url).prepare(NEW)
        with closing(Ingest(*world.urls, NEW, world.slots + 1)) as new:
            old.accept()
            new.accept(region="eu", score=1.5, details={"a": 1})
            new.accept(region="us")
            new.accept()
            old.accept()
            old.publish(world.slots)
            new.publish(world.slots + 1)

            # A sink that does not know the column leaves it to one that does, rather than out.
            problem = world.load(OLD)
            assert problem is not None
            assert "update it" in problem
            assert world.load(NEW) is None
            assert world.differences(NEW) == {"postgres": [], "clickhouse": []}

            # An ingest API that does not know the column does not publish what it would leave out of.
            new.accept(region="eu", details={})
            with pytest.raises(NeedsOperator, match="newer process"):
                old.publish(world.slots + 1, MessageCache(0))
            new.publish(world.slots + 1, MessageCache(0))
            assert world.load(NEW) is None
            assert world.differences(NEW) == {"postgres": [], "clickhouse": []}

            by_region = AggregateQuery(NEW, "region")
            assert world.results(by_region) == [("", 4 * ROWS), ("eu", 2 * ROWS), ("us", ROWS)]
            scored = world.results(ListQuery(NEW, Filters((("region", "eu"),)), order_by="id", descending=False))
            assert [row[-3:] for row in scored] == [("eu", 1.5, '{"a":1}')] * ROWS + [("eu", None, "{}")] * ROWS


def test_nobody_who_writes_waits_for_who_reads(world: World) -> None:
    """Adding a column needs the table for a moment; behind a long query, all writers would queue up."""
    newest = version(*NEW.columns[3:], Column("colour", "category", added=True))
    with (
        closing(Ingest(*world.urls, NEW, world.slots)) as old,
        closing(psycopg.connect(world.postgres_url)) as reader,
        ThreadPoolExecutor(1) as pool,
    ):
        reader.execute("SELECT count(*) FROM visits")
        adding = pool.submit(Ingest, *world.urls, newest, world.slots + 1)
        until(lambda: waits_for_lock(world))
        for _ in range(5):
            old.accept()
        assert not adding.done()
        reader.commit()
        adding.result(60).close()
    old_rows = world.postgres.execute(StatsQuery(newest), 1 << 40).rows
    assert old_rows == world.postgres.execute(StatsQuery(OLD), 1 << 40).rows


def test_a_column_must_be_declared_as_added(world: World) -> None:
    postgres.prepare(world.ledger, OLD)
    with pytest.raises(NeedsOperator, match="added=True"):
        postgres.prepare(world.ledger, version(Column("undeclared", "text")))


def waits_for_lock(world: World) -> bool:
    query = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE 'ALTER TABLE%'"
    return world.ledger.execute(query).fetchone() != (0,)
