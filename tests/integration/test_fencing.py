"""Leases and identities of slots: a former owner changes nothing, and another topic is never loaded for the same."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from threading import Event
from typing import Any
from unittest.mock import Mock
from uuid import UUID, uuid4

import psycopg
import pytest
from click.testing import CliRunner
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient
from psycopg.pq import ExecStatus

from services.acceptance.publisher import SlotPublisher
from services.acceptance.slot_owner import SlotOwner
from services.acceptance.topic_log import TopicLog
from services.core import metric_names
from services.core.dataset import Dataset
from services.core.errors import Conflict, Fenced, NeedsOperator, StoreDown
from services.core.ledger import Batch, Part
from services.core.ports import OutgoingMessage
from services.ingest_api import resolution, slots_command
from services.ledger import batches, reading, slots, topics
from services.ledger.reading import LoadedBatches
from services.ledger.slots import LEASE_SECONDS, Lease
from services.ledger.topics import NumberedTopic
from services.postgres.connection import connect
from services.runtime import metrics
from services.streams import kafka
from services.streams.topics import ensure_topics
from tests.integration.test_publisher import DATASET, PARTITIONS, Bench
from tests.waiting import until


@pytest.fixture
def bench(postgres_url: str, kafka_url: str) -> Iterator[Bench]:
    """With a topic of its own, which a test may delete."""
    own = f"fencing.{uuid4()}"
    made = Bench(postgres_url, kafka_url, 200_000 + uuid4().int % 100_000, replace(DATASET, topic=own))
    yield made
    made.connection.execute("DELETE FROM slot_positions WHERE slot = %s", (made.slot,))
    made.connection.execute("UPDATE batches SET published_at = now(), parts = '[]' WHERE slot = %s", (made.slot,))
    made.close()


@pytest.fixture
def ledger(postgres_url: str) -> Iterator[psycopg.Connection[Any]]:
    with connect(postgres_url) as connection:
        yield connection


def fail_to_mark(monkeypatch: pytest.MonkeyPatch, publisher: SlotPublisher, bench: Bench) -> None:
    """One transaction that comes to Kafka and is not marked."""
    with monkeypatch.context() as patched:
        patched.setattr(batches, "mark_published", Mock(side_effect=StoreDown("postgres", "unreachable")))
        with pytest.raises(StoreDown):
            publisher.step(bench.connection)


def recreate_topic(bench: Bench) -> None:
    """Returns when the broker names the new topic: an attempt at the former one would leave a batch in doubt."""
    with closing(kafka.KafkaPartitionReader(bench.kafka_url, bench.dataset.topic)) as reader:
        former = reader.topic_id()
    admin = AdminClient({"bootstrap.servers": bench.kafka_url})
    admin.delete_topics([bench.dataset.topic])[bench.dataset.topic].result()
    until(lambda: bench.dataset.topic not in admin.list_topics(timeout=60).topics)
    ensure_topics(bench.kafka_url, {bench.dataset.topic: PARTITIONS}, 1)
    with closing(kafka.KafkaPartitionReader(bench.kafka_url, bench.dataset.topic)) as reader:

        def is_there() -> bool:
            try:
                return reader.topic_id() != former and len(reader.bounds()) == PARTITIONS
            except StoreDown:
                return False

        until(is_there)


def publish(publisher: SlotPublisher, bench: Bench) -> int:
    """One step, repeated as the owner of a slot does: a broker learns late that it leads a topic created again."""
    published = 0

    def is_published() -> bool:
        nonlocal published
        try:
            published = publisher.step(bench.connection)
        except StoreDown:
            return False
        return True

    until(is_published)
    return published


def topic_ids(bench: Bench) -> list[str]:
    """Of the topic's name, in the order of their numbers."""
    query = "SELECT topic_id FROM topics WHERE name = %s ORDER BY number"
    return [topic_id for (topic_id,) in bench.connection.execute(query, (bench.dataset.topic,))]


def topics_of(bench: Bench, batch_ids: set[int]) -> set[str]:
    query = "SELECT topic_id FROM batches JOIN topics ON number = topic WHERE batch_id = ANY(%s)"
    return {topic_id for (topic_id,) in bench.connection.execute(query, (sorted(batch_ids),))}


def test_a_former_owner_neither_marks_nor_moves_the_recovery_point(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    zombie = bench.publisher()
    zombie.step(bench.connection)
    heir = bench.publisher()
    heir.step(bench.connection)
    own = bench.commit(10)
    fail_to_mark(monkeypatch, heir, bench)
    before = batches.slot_positions(bench.connection, bench.slot, "logs")
    zombie._advanced_at = 0.0  # it was stopped for minutes
    with pytest.raises(Fenced):
        zombie.step(bench.connection)
    [batch] = batches.unpublished(bench.connection, heir.lease, 1000)
    with pytest.raises(Fenced):
        batches.mark_published(
            bench.connection,
            zombie.lease,
            [replace(batch, parts=(Part(0, 10_000),))],
            {"logs": NumberedTopic(1, "any")},
        )
    assert batches.slot_positions(bench.connection, bench.slot, "logs") == before
    heir.step(bench.connection)
    heir.close()
    found = bench.in_topic()
    assert {batch_id: found[batch_id] for batch_id in own} == dict.fromkeys(own, 10)
    assert bench.unmarked() == 0


class Store:
    """Holds these rows of batches; `late`: rows of inserts that still run until `end_writes` ends them."""

    name, progress = "clickhouse", "sink"

    def __init__(self, rows: dict[int, int], late: dict[int, int] | None = None) -> None:
        self._rows = rows
        self._late = late or {}

    def end_writes(self, dataset: Dataset) -> None:
        self._rows |= self._late

    def counts_of(self, dataset: Dataset, batches: Sequence[Batch]) -> Iterator[tuple[int, int, int]]:
        held = {batch.batch_id: self._rows.get(batch.batch_id, 0) for batch in batches}
        return iter([(batch_id, rows, rows) for batch_id, rows in held.items() if rows])


def resolve(bench: Bench, lease: Lease, store: Any, consumers: int = 0) -> resolution.Resolved:
    [resolved] = resolution.resolve(
        bench.connection,
        lease,
        {"logs": bench.dataset},
        [resolution.FilledStore(store, store, lambda dataset: consumers)],
        lambda slot: kafka.KafkaProducer(bench.kafka_url, f"test-slot-{slot}"),
        lambda topic: kafka.KafkaPartitionReader(bench.kafka_url, topic),
    )
    return resolved


def test_what_a_deleted_topic_may_have_held_is_published_again_only_after_the_stores_were_asked(bench: Bench) -> None:
    publisher = bench.publisher()
    first = bench.commit(3000)
    publisher.step(bench.connection)
    publisher.close()
    stored, absent = (bench.commit(10).pop() for _ in range(2))
    recreate_topic(bench)
    heir = bench.publisher()
    with pytest.raises(
        NeedsOperator, match=r"created again, and the former topic may have held 2 batches .*slots resolve"
    ):
        publish(heir, bench)
    heir.close()
    resolved = resolve(bench, bench.lease(), Store({stored: 10}))
    assert (resolved.in_topic, resolved.in_stores_only, resolved.to_publish, resolved.lacking) == (0, 1, 1, {})
    heir = bench.publisher()
    publish(heir, bench)
    heir.close()
    assert bench.in_topic() == {absent: 10}
    assert bench.unmarked() == 0
    old, new = topic_ids(bench)
    assert topics_of(bench, {*first, stored}) == {old}
    assert topics_of(bench, {absent}) == {new}

    def first_missing(topic_id: str) -> int | None:
        """Of a stream that has read all of this topic, and goes on with another one only when it is told to."""
        numbers = reading.topic_numbers(bench.connection, bench.dataset.topic, topic_id)
        loaded = LoadedBatches(numbers, dict.fromkeys(range(PARTITIONS), 1 << 40), skips_lost=True)
        return reading.first_missing(bench.connection, "logs", stored - 1, stored, loaded)

    assert [first_missing(topic_id) for topic_id in (old, new)] == [stored, None]


def test_a_batch_accepted_under_the_lease_is_in_no_doubt(bench: Bench) -> None:
    """Otherwise every slot that is leased after a topic was created again would get stuck."""
    publisher = bench.publisher()
    publisher.step(bench.connection)
    publisher.close()
    recreate_topic(bench)
    lease = bench.lease()
    own = bench.commit(10)
    publisher = bench.publisher(lease)
    publish(publisher, bench)
    publisher.close()
    assert bench.in_topic() == dict.fromkeys(own, 10)
    assert set(batches.slot_positions(bench.connection, bench.slot, "logs")) == {topic_ids(bench)[-1]}


def test_after_an_owner_of_an_older_release_all_batches_are_in_doubt(
    bench: Bench, ledger: psycopg.Connection[Any]
) -> None:
    """It reads batches whatever the epoch is, so it may publish one that is accepted after its lease."""
    bench.lease()
    old = "UPDATE slots SET owner = gen_random_uuid(), renewed_at = '-infinity' WHERE slot = %s"
    bench.connection.execute(old, (bench.slot,))
    lease = slots.take_over(ledger, uuid4(), bench.slot)
    own = bench.commit(10)
    assert {batch.batch_id for batch in batches.in_doubt(bench.connection, lease)} == own
    slots.release(ledger, lease)
    later = slots.take_over(ledger, uuid4(), bench.slot)
    bench.commit(10)
    assert {batch.batch_id for batch in batches.in_doubt(bench.connection, later)} == own


def test_a_former_owner_reads_no_batch_that_is_accepted_under_a_later_lease(
    bench: Bench, ledger: psycopg.Connection[Any], postgres_url: str
) -> None:
    former = bench.lease()
    bench.connection.execute("UPDATE slots SET renewed_at = '-infinity' WHERE slot = %s", (bench.slot,))
    before = bench.commit(10)
    lease = slots.take_over(ledger, uuid4(), bench.slot)
    bench.commit(10)
    assert batches.unpublished(bench.connection, former, 1000) == []
    assert len(batches.unpublished(bench.connection, lease, 1000)) == 2
    assert {batch.batch_id for batch in batches.in_doubt(bench.connection, lease)} == before


def test_a_batch_that_came_to_a_topic_created_again_under_the_producer_is_found_there(
    bench: Bench, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    publisher = bench.publisher()
    bench.commit(3000)
    publisher.step(bench.connection)
    publisher.close()
    positions = "SELECT partition, topic_id, next_offset FROM slot_positions WHERE slot = %s"
    former = bench.connection.execute(positions, (bench.slot,)).fetchall()
    recreate_topic(bench)
    publisher = bench.publisher()
    publish(publisher, bench)
    own = bench.commit(10)
    fail_to_mark(monkeypatch, publisher, bench)
    publisher.close()
    for partition, topic_id, next_offset in former:  # as if the topic had been created again after the last mark
        bench.connection.execute(
            "UPDATE slot_positions SET topic_id = %s, next_offset = %s WHERE slot = %s AND partition = %s",
            (topic_id, next_offset, bench.slot, partition),
        )
    other = Bench(postgres_url, bench.kafka_url, bench.slot + 100_000, bench.dataset)
    with closing(other):
        longer = other.publisher()  # until the new topic is longer than the old positions
        for _ in range(3):
            other.commit(4000)
            publish(longer, other)
        longer.close()
    heir = bench.publisher()
    publish(heir, bench)
    heir.close()
    found = bench.in_topic()
    assert {batch_id: found[batch_id] for batch_id in own} == dict.fromkeys(own, 10)
    assert bench.unmarked() == 0
    assert topics_of(bench, own) == {topic_ids(bench)[-1]}


def test_messages_of_a_new_topic_that_retention_deleted_leave_batches_in_doubt(bench: Bench) -> None:
    publisher = bench.publisher()
    publisher.step(bench.connection)
    publisher.close()
    recreate_topic(bench)
    with closing(kafka.KafkaProducer(bench.kafka_url, f"fill-{uuid4()}")) as producer:
        delivered = producer.publish([OutgoingMessage(bench.dataset.topic, 0, b"x", b"{}")] * 10)
    admin = AdminClient({"bootstrap.servers": bench.kafka_url})
    where = TopicPartition(bench.dataset.topic, 0, delivered[-1].offset)
    admin.delete_records([where])[where].result()
    bench.commit(10)
    publisher = bench.publisher()
    with pytest.raises(NeedsOperator, match=f"logpipe slots resolve {bench.slot}"):
        publish(publisher, bench)


@pytest.mark.parametrize("beyond", [0, 1_000_000])
def test_positions_of_version_1_are_bound_once(bench: Bench, beyond: int) -> None:
    """To the topic that reaches up to them; beyond its end they are of a topic that is no more, and comes first."""
    bench.connection.execute(
        "INSERT INTO slot_positions (slot, dataset, partition, next_offset) SELECT %s, 'logs', n, %s"
        " FROM generate_series(0, %s) AS n",
        (bench.slot, beyond, PARTITIONS - 1),
    )
    publisher = bench.publisher()
    publisher.step(bench.connection)
    publisher.close()
    assert len(topic_ids(bench)) == (2 if beyond else 1)
    assert topic_ids(bench)[:-1] == ([topics.UNKNOWN] if beyond else [])
    assert set(batches.slot_positions(bench.connection, bench.slot, "logs")) == {topic_ids(bench)[-1]}


def test_the_topic_is_read_only_for_batches_that_can_be_in_it(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[set[int]] = []
    find_batches = TopicLog.find_batches

    def noting(log: TopicLog, doubt: Any, starts: Any) -> Any:
        looked.append(set(doubt))
        return find_batches(log, doubt, starts)

    monkeypatch.setattr(TopicLog, "find_batches", noting)
    publisher = bench.publisher()
    bench.commit(10)
    publisher.step(bench.connection)
    assert looked == []  # nothing was ever published under a new slot
    failed = bench.commit(10)
    fail_to_mark(monkeypatch, publisher, bench)
    bench.commit(10)
    publisher.step(bench.connection)
    assert looked == [failed]
    waiting = bench.commit(10)
    publisher.close()
    heir = bench.publisher()
    heir.step(bench.connection)
    heir.close()
    assert looked == [failed, waiting]


def lapsed_owner(ledger: psycopg.Connection[Any], slot: int, renewed: str) -> UUID:
    owner = uuid4()
    ledger.execute(
        "INSERT INTO slots (slot, owner, renewed_at, epoch) VALUES (%s, %s, clock_timestamp() + %s::interval, 7)"
        " ON CONFLICT (slot) DO UPDATE SET owner = excluded.owner, renewed_at = excluded.renewed_at",
        (slot, owner, renewed),
    )
    return owner


@pytest.mark.parametrize("renewed", ["-1 minute", "1 year"])
def test_an_adopter_ends_the_sessions_of_a_lapsed_owner(
    bench: Bench, ledger: psycopg.Connection[Any], postgres_url: str, renewed: str
) -> None:
    """Also of an owner whose lease lies in the future: the clock was ahead before a crash."""
    bench.commit(10)
    owner = lapsed_owner(ledger, bench.slot, renewed)
    living = lapsed_owner(ledger, bench.slot + 1, "0")
    ledger.execute("CREATE TABLE IF NOT EXISTS copied (n int)")
    with (
        closing(psycopg.connect(postgres_url, application_name=slots.session_name(owner))) as stopped,
        psycopg.connect(postgres_url, application_name=slots.session_name(living)) as other,
    ):
        other.execute("SELECT 1")
        # From here on its client does nothing, as a process that was stopped in the middle of a COPY.
        stopped.pgconn.exec_(b"BEGIN")
        assert stopped.pgconn.exec_(b"COPY copied FROM STDIN").status == ExecStatus.COPY_IN
        stopped.pgconn.put_copy_data(b"1\n")
        adopted = None
        while adopted is None or adopted.slot != bench.slot:
            adopted = slots.adopt_orphan(ledger, uuid4())
        assert adopted.epoch == 8
        query = "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s"
        until(lambda: ledger.execute(query, (slots.session_name(owner),)).fetchone() == (0,))
        assert ledger.execute(query, (slots.session_name(living),)).fetchone() == (1,)
    assert ledger.execute("SELECT count(*) FROM copied").fetchone() == (0,)


class Stuck:
    """Publishers none of which can publish."""

    def __init__(self, lease: Lease) -> None:
        self.lease = lease

    def step(self, _: Any) -> int:
        raise NeedsOperator("rows are missing")

    def close(self) -> None:
        pass


def slot_numbers(ledger: psycopg.Connection[Any]) -> set[int]:
    return {slot for (slot,) in ledger.execute("SELECT slot FROM slots")}


def test_slots_that_get_stuck_one_after_the_other_stop_the_process_from_accepting(
    postgres_url: str, ledger: psycopg.Connection[Any]
) -> None:
    before = slot_numbers(ledger)
    owner = SlotOwner(postgres_url, uuid4(), lambda: None, Stuck)  # type: ignore[arg-type]
    owner.start()
    try:
        until(lambda: "cannot be published" in (owner.health() or ""))
        with pytest.raises(StoreDown, match="logpipe slots resolve"):
            owner.slot()
        Event().wait(3)  # longer than a renewal, and three turns of the publisher
        assert len(slot_numbers(ledger) - before) <= 3
        stuck = next(slot for slot in slots.all_slots(ledger) if slot.stuck)
        assert (stuck.is_alive, stuck.stuck) == (True, "rows are missing")
        slots.release(ledger, slots.take_over(ledger, uuid4(), stuck.slot))
        assert not next(slot for slot in slots.all_slots(ledger) if slot.slot == stuck.slot).stuck
    finally:
        owner.stop(1)


def test_a_topic_that_nothing_can_be_published_to_makes_no_slots(
    postgres_url: str, ledger: psycopg.Connection[Any]
) -> None:
    wrong = ["4 partitions and 8 are to be used"]

    def ensure_topics() -> None:
        if wrong:
            raise NeedsOperator(wrong[0])

    before = slot_numbers(ledger)
    owner = SlotOwner(postgres_url, uuid4(), ensure_topics, lambda lease: Mock(step=Mock(return_value=0)))
    owner.start()
    try:
        until(lambda: owner.health() == wrong[0])
        with pytest.raises(StoreDown, match="8 are to be used"):
            owner.slot()
        Event().wait(3)
        assert len(slot_numbers(ledger) - before) <= 1
        wrong.clear()
        until(lambda: owner.health() is None)
        owner.slot()
    finally:
        owner.stop(1)


def test_the_gauge_of_unpublished_batches_rises_without_kafka(bench: Bench, postgres_url: str) -> None:
    def unreachable() -> None:
        raise StoreDown("kafka", "unreachable")

    gauge = metrics.gauge(metric_names.UNPUBLISHED_BATCHES, str(bench.slot))
    bench.lease()
    bench.connection.execute("UPDATE slots SET renewed_at = '-infinity' WHERE slot = %s", (bench.slot,))
    owner_id = uuid4()
    slots.take_over(bench.connection, owner_id, bench.slot)
    owner = SlotOwner(postgres_url, owner_id, unreachable, Stuck)  # type: ignore[arg-type]
    owner.start()
    try:
        bench.commit(300)
        until(lambda: gauge._value.get() == 3)
        bench.lease()  # to another process
        until(lambda: gauge._value.get() == 0)
    finally:
        owner.stop(1)


def test_a_stuck_slot_is_settled_by_the_topic_and_the_stores(bench: Bench) -> None:
    publisher = bench.publisher()
    publisher.step(bench.connection)
    before = batches.slot_positions(bench.connection, bench.slot, "logs")
    lost, half, absent = (bench.commit(100).pop() for _ in range(3))
    assert publisher.step(bench.connection) == 3
    with closing(kafka.KafkaPartitionReader(bench.kafka_url, bench.dataset.topic)) as reader:
        ends = {partition: end for partition, (_, end) in reader.bounds().items()}
    admin = AdminClient({"bootstrap.servers": bench.kafka_url})
    cut = [TopicPartition(bench.dataset.topic, partition, end) for partition, end in ends.items()]
    for deletion in admin.delete_records(cut).values():
        deletion.result(30)
    here = bench.commit(100).pop()
    assert publisher.step(bench.connection) == 1
    publisher.close()
    everything = [lost, half, absent, here]  # as if nothing had been marked
    bench.connection.execute(
        "UPDATE batches SET published_at = NULL, parts = NULL, topic = NULL WHERE batch_id = ANY(%s)", (everything,)
    )
    [(topic_id, positions)] = before.items()
    for partition, offset in positions.items():
        bench.connection.execute(
            "UPDATE slot_positions SET next_offset = %s WHERE slot = %s AND partition = %s",
            (offset, bench.slot, partition),
        )
    heir = bench.publisher()
    with pytest.raises(NeedsOperator, match="retention has deleted messages"):
        heir.step(bench.connection)
    heir.close()
    lease = bench.lease()
    resolved = resolve(bench, lease, Store({lost: 100, half: 60}))
    assert (resolved.in_topic, resolved.in_stores_only, resolved.to_publish) == (1, 2, 1)
    assert resolved.lacking == {"clickhouse": 1}
    assert [batch.batch_id for batch in batches.in_doubt(bench.connection, lease)] == [absent]
    numbers = reading.topic_numbers(bench.connection, bench.dataset.topic, topic_id)

    def first_missing(short: int) -> int | None:
        """Of a store that has read up to `short` offsets before what the topic still has."""
        loaded = LoadedBatches(numbers, {p: end - short for p, end in ends.items()}, skips_lost=True)
        return reading.first_missing(bench.connection, "logs", lost - 1, half, loaded)

    assert (first_missing(1), first_missing(0)) == (lost, None)
    heir = bench.publisher()
    assert heir.step(bench.connection) == 1
    heir.close()
    assert bench.in_topic() == {absent: 100, here: 100}


def test_no_slot_is_settled_while_a_store_is_filled(bench: Bench) -> None:
    publisher = bench.publisher()
    publisher.step(bench.connection)
    publisher.close()
    own = bench.commit(10).pop()
    lease = bench.lease()
    with pytest.raises(Conflict, match="stop stream-to-store --store clickhouse"):
        resolve(bench, lease, Store({}), consumers=1)
    assert [batch.batch_id for batch in batches.in_doubt(bench.connection, lease)] == [own]
    assert resolve(bench, lease, Store({}, late={own: 10})).in_stores_only == 1


def test_a_batch_that_only_a_store_has_is_in_no_topic(bench: Bench) -> None:
    """Where the slot was published to the present topic alone, and this has lost nothing above the slot's position."""
    publisher = bench.publisher()
    publisher.step(bench.connection)
    publisher.close()
    own = bench.commit(10).pop()
    resolved = resolve(bench, bench.lease(), Store({own: 9}))
    assert (resolved.in_topic, resolved.in_stores_only, resolved.lacking) == (0, 1, {"clickhouse": 1})
    numbers = reading.topic_numbers(bench.connection, bench.dataset.topic, topic_ids(bench)[-1])
    everything = LoadedBatches(numbers, dict.fromkeys(range(PARTITIONS), 1 << 40), skips_lost=True)
    assert reading.lost_batches(bench.connection, "logs", own - 1, own, numbers, 9) == [own]
    assert reading.first_missing(bench.connection, "logs", own - 1, own, replace(everything, skips_lost=False)) == own
    assert reading.first_missing(bench.connection, "logs", own - 1, own, replace(everything, replayed=own)) is None


def test_nothing_is_published_to_a_topic_that_was_cut(bench: Bench, ledger: psycopg.Connection[Any]) -> None:
    """Also by a slot of which no batch is in doubt: a store that lags would count what was lost as loaded."""
    publisher = bench.publisher()
    publisher.step(bench.connection)
    bench.connection.execute(
        "INSERT INTO slot_positions (slot, dataset, partition, next_offset, topic_id) VALUES (%s, 'logs', 1, 1000, %s)",
        (bench.slot + 1, topic_ids(bench)[-1]),
    )
    try:
        publisher._advanced_at = 0.0  # a minute ago
        with pytest.raises(NeedsOperator, match=r"was cut: partitions \[1\]"):
            publisher.step(bench.connection)
        with pytest.raises(NeedsOperator, match="was cut"):
            publisher.step(bench.connection)  # which opens the producer again
    finally:
        ledger.execute("DELETE FROM slot_positions WHERE slot = %s", (bench.slot + 1,))


def test_a_slot_is_not_settled_by_a_topic_that_was_cut(bench: Bench) -> None:
    publisher = bench.publisher()
    publisher.step(bench.connection)
    publisher.close()
    bench.commit(10)
    bench.connection.execute("UPDATE slot_positions SET next_offset = 1000 WHERE slot = %s", (bench.slot,))
    publisher = bench.publisher()
    with pytest.raises(NeedsOperator, match="it was cut"):
        publish(publisher, bench)
    publisher.close()
    with pytest.raises(NeedsOperator, match=r"was cut: .*delete it"):
        resolve(bench, bench.lease(), Store({}))
    recreate_topic(bench)
    assert resolve(bench, bench.lease(), Store({})).to_publish == 1


def test_a_batch_of_which_the_topic_has_lost_a_part_is_loaded_by_who_has_passed_that_part(bench: Bench) -> None:
    publisher = bench.publisher()
    publisher.step(bench.connection)
    own = bench.commit(100).pop()
    publisher.step(bench.connection)
    publisher.close()
    query = "SELECT parts FROM batches WHERE batch_id = %s"
    [(parts,)] = bench.connection.execute(query, (own,)).fetchall()
    assert len(parts) > 1
    gone, offset = parts[0]
    where = TopicPartition(bench.dataset.topic, gone, offset + 1)
    admin = AdminClient({"bootstrap.servers": bench.kafka_url})
    admin.delete_records([where])[where].result(30)
    bench.connection.execute("UPDATE batches SET published_at = NULL, parts = NULL WHERE batch_id = %s", (own,))
    bench.connection.execute("UPDATE slot_positions SET next_offset = 0 WHERE slot = %s", (bench.slot,))
    resolved = resolve(bench, bench.lease(), Store({own: 100}))
    assert (resolved.in_topic, resolved.in_stores_only, resolved.lacking) == (1, 0, {})
    assert sorted(bench.connection.execute(query, (own,)).fetchall()[0][0]) == sorted(parts)


def test_a_slot_is_not_taken_from_an_owner_that_publishes_it(ledger: psycopg.Connection[Any]) -> None:
    slot = 400_000
    lapsed_owner(ledger, slot, "0")
    with pytest.raises(Conflict):
        slots.take_over(ledger, uuid4(), slot)
    lease = Lease(slot, 7)
    slots.mark_stuck(ledger, lease, "rows are missing")
    assert slots.take_over(ledger, uuid4(), slot).epoch == 8
    assert LEASE_SECONDS > slots.RENEW_SECONDS


def test_the_command_lists_slots_and_refuses_one_that_is_published(
    ledger: psycopg.Connection[Any], postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOGPIPE_POSTGRES_URL", postgres_url)
    lapsed_owner(ledger, 400_001, "0")
    slots.mark_stuck(ledger, Lease(400_001, 7), "rows are missing")
    lapsed_owner(ledger, 400_002, "0")
    run = CliRunner().invoke
    listed = run(slots_command.main, [])
    assert listed.exit_code == 0
    assert "rows are missing" in next(line for line in listed.output.splitlines() if "400001" in line)
    refused = run(slots_command.main, ["resolve", "400002", "--store", "postgres"])
    assert (refused.exit_code, "living owner" in refused.output) == (1, True)
    assert "`logpipe slots` lists them" in run(slots_command.main, ["resolve", "9", "--store", "postgres"]).output


def test_the_command_settles_every_stuck_slot(
    own_postgres_url: str, kafka_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOGPIPE_POSTGRES_URL", own_postgres_url)
    monkeypatch.setenv("LOGPIPE_KAFKA_URL", kafka_url)
    with closing(Bench(own_postgres_url, kafka_url, 7)) as bench:
        lease = bench.lease()
        # The topic is that of all tests: batches of other tests, whose ids begin at 1, are in it.
        bench.connection.execute("SELECT setval('batch_ids', 700000000)")
        own = bench.commit(10)
        slots.mark_stuck(bench.connection, lease, "rows are missing")
        ran = CliRunner().invoke(slots_command.main, ["resolve", "--store", "postgres"])
        assert ran.exit_code == 0, ran.output
        assert "slot 7, logs: 0 batches were found in the topic" in ran.output
        assert "1 are in neither, and will be published" in ran.output
        assert not slots.all_slots(bench.connection)[0].stuck
        publisher = bench.publisher(slots.adopt_orphan(bench.connection, uuid4()))
        assert publisher.step(bench.connection) == 1
        publisher.close()
        assert bench.in_topic().keys() >= own
