"""One slot's publisher on a real PostgreSQL and a real Kafka: crashes around the mark, fencing, catching up."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from typing import Any
from unittest.mock import Mock
from uuid import uuid4

import psycopg
import pytest
from confluent_kafka import Producer

from services import datasets
from services.acceptance.committer import Accepted, Committer, Submission
from services.acceptance.publisher import MessageCache, SlotKafka, SlotPublisher
from services.core.dataset import Dataset
from services.core.errors import Fenced, NeedsOperator, StoreDown
from services.core.instants import DAY
from services.core.kafka_value import announced
from services.core.ledger import Batch
from services.core.rows import RowCodec
from services.ledger import batches
from services.ledger.slots import Lease
from services.postgres.clock import now_microseconds
from services.postgres.connection import connect
from services.stores import postgres
from services.streams import kafka
from services.streams.topics import ensure_topics
from tests import marks
from tests.waiting import until

DATASET = datasets.find("logs")
CODEC = RowCodec(DATASET)
PARTITIONS = 4
ROW = b'{"timestamp": "2026-01-31T12:00:00Z", "level": "INFO", "service": "auth-%d"}'


def has_leaders(kafka_url: str, topic: str, partitions: int) -> bool:
    """A broker learns some time after a topic is created that it leads the topic's partitions."""
    try:
        with closing(kafka.KafkaPartitionReader(kafka_url, topic)) as reader:
            return len(reader.bounds()) == partitions
    except StoreDown:
        return False


class Bench:
    """A committer and a publisher of one slot that no running process uses."""

    def __init__(self, postgres_url: str, kafka_url: str, slot: int, dataset: Dataset = DATASET) -> None:
        self.slot = slot
        self.dataset = dataset
        self.connection = connect(postgres_url)
        self.rows = postgres.PostgresReader(postgres_url)
        self.cache = MessageCache(1 << 20)
        self.kafka_url = kafka_url
        postgres.prepare(self.connection, DATASET)
        postgres.ensure_partitions(self.connection, DATASET, int(time.time()) // 86_400, 2)
        topics = {dataset.topic: PARTITIONS, "events.activity": PARTITIONS, "alerts.realtime": PARTITIONS}
        ensure_topics(kafka_url, topics, 1)
        until(lambda: all(has_leaders(kafka_url, topic, partitions) for topic, partitions in topics.items()))
        self._committer = Committer(
            postgres_url,
            {dataset.name: CODEC},
            lambda: slot,
            lambda batch, outgoing: self.cache.put(batch.batch_id, outgoing),
            batch_rows=100,
            partitions=PARTITIONS,
        )

    def lease(self) -> Lease:
        """Take the slot over, however long its owner has still to live."""
        return marks.lease(self.connection, self.slot)

    def publisher(self, lease: Lease | None = None) -> SlotPublisher:
        """Of the slot under a new lease unless one is given."""
        return SlotPublisher(
            lease or self.lease(),
            {self.dataset.name: self.dataset},
            SlotKafka(
                lambda slot: kafka.KafkaProducer(self.kafka_url, f"test-slot-{slot}"),
                lambda topic: kafka.KafkaPartitionReader(self.kafka_url, topic),
                PARTITIONS,
            ),
            self.cache,
            self.rows,
            max_rows=100_000,
        )

    def commit(self, rows: int) -> set[int]:
        """Accept so many rows; the ids of their batches."""
        decoded = CODEC.decode_lines(b"\n".join(ROW % (n % 7) for n in range(rows)))
        [outcome] = self._committer.commit(self.dataset, [Submission([decoded])])
        assert isinstance(outcome, Accepted)
        return set(range(outcome.batch_id, outcome.batch_id - -rows // 100))

    def in_topic(self) -> dict[int, int]:
        """Batch -> rows of it in the topic. Ends the slot's producer: that waits for its last commit's markers."""
        kafka.KafkaProducer(self.kafka_url, f"test-slot-{self.slot}").close()
        reader = kafka.KafkaPartitionReader(self.kafka_url, self.dataset.topic)
        found: dict[int, int] = {}
        try:
            bounds = reader.bounds()
            reader.assign({partition: low for partition, (low, _) in bounds.items()})
            while any(reader.read_up_to().get(p, 0) < end for p, (_, end) in bounds.items()):
                for message in reader.poll(1.0):
                    if own := announced(message):  # not one of the foreign messages of another test
                        found[own.batch_id] = found.get(own.batch_id, 0) + own.rows
        finally:
            reader.close()
        return found

    def unmarked(self) -> int:
        return batches.count_unpublished(self.connection, self.slot)

    def close(self) -> None:
        self._committer.close()
        self.rows.close()
        self.connection.close()


@pytest.fixture
def bench(postgres_url: str, kafka_url: str, request: pytest.FixtureRequest) -> Iterator[Bench]:
    made = Bench(postgres_url, kafka_url, 1000 + hash(request.node.name) % 100_000)
    yield made
    made.close()


def test_batches_come_to_the_topic_once_and_are_marked(bench: Bench) -> None:
    publisher = bench.publisher()
    own = bench.commit(250)
    assert publisher.step(bench.connection) == 3
    assert publisher.step(bench.connection) == 0
    publisher.close()
    found = bench.in_topic()
    assert sum(found[batch_id] for batch_id in own) == 250
    assert bench.unmarked() == 0


def test_rows_that_are_read_back_are_searched_for_on_their_day_only(postgres_url: str, kafka_url: str) -> None:
    name = f"read_back_{uuid4().hex[:12]}"
    bench = Bench(postgres_url, kafka_url, 990, replace(DATASET, name=name, topic=name))
    with closing(bench), closing(connect(postgres_url)) as connection:
        today = now_microseconds(connection) // DAY
        postgres.prepare(connection, bench.dataset)
        postgres.ensure_partitions(connection, bench.dataset, today - 40, 42)
        bench.commit(250)

        def scans() -> dict[str, int]:
            connection.execute("SELECT pg_stat_force_next_flush()")
            query = "SELECT relname, seq_scan FROM pg_stat_user_tables WHERE relname LIKE %s"
            return dict(connection.execute(query, (f"{name}_y%",)).fetchall())

        before = scans()
        bench.cache = MessageCache(0)
        publisher = bench.publisher()
        assert publisher.step(bench.connection) == 3
        publisher.close()
        bench.rows.close()  # a session reports its statistics when it ends

        def scanned() -> set[str]:
            return {leaf for leaf, count in scans().items() if count > before.get(leaf, 0)}

        until(scanned)
        assert len(before) > 40
        assert scanned() == {postgres.partition_name(bench.dataset, today)}


def test_rows_that_are_not_cached_are_read_back(bench: Bench) -> None:
    own = bench.commit(250)
    bench.cache = MessageCache(0)
    publisher = bench.publisher()
    assert publisher.step(bench.connection) == 3
    publisher.close()
    found = bench.in_topic()
    assert {batch_id: found[batch_id] for batch_id in own} == dict(zip(sorted(own), (100, 100, 50), strict=True))


@pytest.mark.parametrize("restarted", [True, False])
def test_a_crash_between_kafkas_commit_and_the_mark_doubles_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, restarted: bool
) -> None:
    publisher = bench.publisher()
    own = bench.commit(150)

    def crash(*_: Any) -> None:
        raise StoreDown("postgres", "gone between commit and mark")

    with monkeypatch.context() as patched:
        patched.setattr(batches, "mark_published", crash)
        with pytest.raises(StoreDown):
            publisher.step(bench.connection)
    assert bench.unmarked() == 2
    if restarted:
        publisher = bench.publisher()
    publisher.step(bench.connection)
    publisher.close()
    found = bench.in_topic()
    assert {batch_id: found[batch_id] for batch_id in own} == dict(zip(sorted(own), (100, 50), strict=True))
    assert bench.unmarked() == 0


def test_a_message_with_the_key_of_a_batch_in_doubt_is_no_part_of_it(
    bench: Bench, kafka_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = bench.publisher()
    assert dead.step(bench.connection) == 0
    own = bench.commit(10)
    with monkeypatch.context() as patched:
        patched.setattr(batches, "mark_published", Mock(side_effect=StoreDown("postgres", "unreachable")))
        with pytest.raises(StoreDown):
            dead.step(bench.connection)
    foreign = Producer({"bootstrap.servers": kafka_url})
    foreign_headers: list[dict[str, str | bytes | None]] = [
        {},
        {"rows": b""},
        {"rows": b"ten"},
        {"rows": b"10"},
        {"rows": b"10", "created_at": b"5"},
    ]
    for headers in foreign_headers:
        foreign.produce(DATASET.topic, b"{}\n", b"%d:0" % min(own), 0, headers=headers)
    assert foreign.flush(30) == 0
    heir = bench.publisher()
    heir.step(bench.connection)
    heir.close()
    assert bench.unmarked() == 0


def test_a_zombie_is_fenced_by_the_producer_of_the_next_owner(bench: Bench) -> None:
    """By Kafka alone: both have the slot under the same lease."""
    zombie = bench.publisher()
    heir = bench.publisher(zombie.lease)
    own = bench.commit(10)
    assert zombie.step(bench.connection) == 1
    own |= bench.commit(10)
    assert heir.step(bench.connection) == 1
    own |= bench.commit(10)
    with pytest.raises(Fenced):
        zombie.step(bench.connection)
    assert heir.step(bench.connection) == 1
    zombie.close()
    heir.close()
    found = bench.in_topic()
    assert [found[batch_id] for batch_id in sorted(own)] == [10, 10, 10]


def test_an_open_transaction_of_another_hides_nothing_from_a_take_over(
    bench: Bench, kafka_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was committed after another process's transaction began cannot be read until that has ended, too."""
    dead = bench.publisher()
    assert dead.step(bench.connection) == 0
    other = Producer({"bootstrap.servers": kafka_url, "transactional.id": f"other-{bench.slot}"})
    other.init_transactions(30)
    other.begin_transaction()
    for partition in range(PARTITIONS):
        other.produce(DATASET.topic, b"{}", b"not:ours", partition)
    other.flush()
    own = bench.commit(10)
    with monkeypatch.context() as patched:
        patched.setattr(batches, "mark_published", Mock(side_effect=StoreDown("postgres", "unreachable")))
        with pytest.raises(StoreDown):
            dead.step(bench.connection)
    heir = bench.publisher()
    with ThreadPoolExecutor(1) as thread:
        taking_over = thread.submit(heir.step, bench.connection)
        with pytest.raises(TimeoutError):
            taking_over.result(3)  # it waits: what lies behind the open transaction is not known yet
        other.abort_transaction(30)
        taking_over.result(60)
    heir.close()
    found = bench.in_topic()
    assert {batch_id: found[batch_id] for batch_id in own} == dict.fromkeys(own, 10)
    assert bench.unmarked() == 0


def test_an_ambiguous_commit_is_resolved_by_the_ledger_not_by_a_transaction_id(bench: Bench) -> None:
    [batch_id] = bench.commit(10)
    row = bench.connection.execute(
        "SELECT batch_id, slot, dataset, rows, checksum, created_at, xid::text FROM batches WHERE batch_id = %s",
        (batch_id,),
    ).fetchone()
    assert row is not None
    batch, xid = Batch(*row[:6]), row[6]
    assert batches.committed(bench.connection, xid, batch) is True
    # After a crash PostgreSQL gives the id of a transaction that never reached the disk to another one.
    assert batches.committed(bench.connection, xid, replace(batch, batch_id=batch_id + 1_000_000)) is False
    assert batches.committed(bench.connection, str(int(xid) + 1_000_000), batch) is False


def test_rows_missing_from_the_table_are_not_published_in_silence(bench: Bench, postgres_url: str) -> None:
    [batch_id] = bench.commit(10)
    with psycopg.connect(postgres_url) as connection:
        connection.execute("DELETE FROM logs WHERE id = %s", (batch_id << 17,))
    bench.cache = MessageCache(0)
    publisher = bench.publisher()
    with pytest.raises(NeedsOperator, match="10 rows in the ledger and 9"):
        publisher.step(bench.connection)
    publisher.close()
    with psycopg.connect(postgres_url) as connection:  # leave a ledger that can be verified
        connection.execute("DELETE FROM batches WHERE batch_id = %s", (batch_id,))
        connection.execute("DELETE FROM logs WHERE id >> 17 = %s", (batch_id,))
