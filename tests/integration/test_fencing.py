"""Leases and identities of slots: a former owner changes nothing, and another topic is never taken for the same."""

import time
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

from services.core.errors import Conflict, Fenced, NeedsOperator, StoreDown
from services.core.ledger import Batch, Part
from services.core.ports import Outgoing
from services.ingest_api import resolution, slots_command
from services.ingest_api.publisher import SlotPublisher
from services.ingest_api.slot_owner import SlotOwner
from services.ingest_api.topic_log import TopicLog
from services.ledger import batches, schema, slots, topics
from services.ledger.slots import LEASE_SECONDS, Lease
from services.ledger.topics import Topic
from services.postgres.connection import connect
from services.streams import kafka
from tests.integration.test_publisher import DATASET, PARTITIONS, Bench


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
        schema.prepare(connection)
        yield connection


def fail_to_mark(monkeypatch: pytest.MonkeyPatch, publisher: SlotPublisher, bench: Bench) -> None:
    """One transaction that comes to Kafka and is not marked."""
    with monkeypatch.context() as patched:
        patched.setattr(batches, "mark_published", Mock(side_effect=StoreDown("postgres", "gone")))
        with pytest.raises(StoreDown):
            publisher.step(bench.connection)


def make_topic_anew(bench: Bench) -> None:
    admin = AdminClient({"bootstrap.servers": bench.kafka_url})
    admin.delete_topics([bench.dataset.topic])[bench.dataset.topic].result()
    deadline = time.monotonic() + 30
    while bench.dataset.topic in admin.list_topics(timeout=10).topics:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    kafka.ensure_topics(bench.kafka_url, {bench.dataset.topic: PARTITIONS}, 1)


def publish(publisher: SlotPublisher, bench: Bench) -> int:
    """One step, repeated as the owner of a slot does: a broker learns late that it leads a topic made anew."""
    deadline = time.monotonic() + 30
    while True:
        try:
            return publisher.step(bench.connection)
        except StoreDown:
            assert time.monotonic() < deadline


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
    zombie._advanced = 0.0  # it was stopped for minutes
    with pytest.raises(Fenced):
        zombie.step(bench.connection)
    [batch] = batches.all_unpublished(bench.connection, bench.slot)
    with pytest.raises(Fenced):
        batches.mark_published(
            bench.connection, zombie.lease, [replace(batch, parts=(Part(0, 10_000),))], {"logs": Topic(1, "any")}
        )
    assert batches.slot_positions(bench.connection, bench.slot, "logs") == before
    heir.step(bench.connection)
    heir.close()
    found = bench.in_topic()
    assert {batch_id: found[batch_id] for batch_id in own} == dict.fromkeys(own, 10)
    assert bench.unmarked() == 0


def test_a_topic_made_anew_gets_what_was_not_marked_once(bench: Bench) -> None:
    publisher = bench.publisher()
    first = bench.commit(3000)
    publisher.step(bench.connection)
    publisher.close()
    make_topic_anew(bench)
    own = bench.commit(10)
    publisher = bench.publisher()
    publish(publisher, bench)
    publisher.close()
    found = bench.in_topic()
    assert {batch_id: found[batch_id] for batch_id in own} == dict.fromkeys(own, 10)
    old, new = topic_ids(bench)
    assert (topics_of(bench, first), topics_of(bench, own)) == ({old}, {new})
    assert set(batches.slot_positions(bench.connection, bench.slot, "logs")) == {new}


def test_a_batch_that_came_to_a_topic_made_anew_under_the_producer_is_found_there(
    bench: Bench, postgres_url: str
) -> None:
    publisher = bench.publisher()
    bench.commit(3000)
    publisher.step(bench.connection)
    make_topic_anew(bench)
    own = bench.commit(10)
    with pytest.raises(StoreDown):  # either Kafka tells the producer, or the check before the mark
        publisher.step(bench.connection)
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
    make_topic_anew(bench)
    with closing(kafka.KafkaProducer(bench.kafka_url, f"fill-{uuid4()}")) as producer:
        landed = producer.publish([Outgoing(bench.dataset.topic, 0, b"x", b"{}")] * 10)
    admin = AdminClient({"bootstrap.servers": bench.kafka_url})
    where = TopicPartition(bench.dataset.topic, 0, landed[-1].offset)
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
    holds = TopicLog.holds

    def noting(log: TopicLog, doubt: Any, starts: Any) -> Any:
        looked.append(set(doubt))
        return holds(log, doubt, starts)

    monkeypatch.setattr(TopicLog, "holds", noting)
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
        deadline = time.monotonic() + 10
        while ledger.execute(query, (slots.session_name(owner),)).fetchone() != (0,):
            assert time.monotonic() < deadline
            time.sleep(0.05)
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


def until(condition: Any, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_slots_that_get_stuck_one_after_the_other_stop_the_process_from_accepting(
    postgres_url: str, ledger: psycopg.Connection[Any]
) -> None:
    before = slot_numbers(ledger)
    owner = SlotOwner(postgres_url, uuid4(), lambda: None, Stuck)  # type: ignore[arg-type]
    owner.start()
    try:
        until(lambda: "cannot be published" in (owner.problem() or ""))
        with pytest.raises(StoreDown, match="logpipe slots resolve"):
            owner.slot()
        Event().wait(3)  # longer than a renewal, and three turns of the publisher
        assert len(slot_numbers(ledger) - before) <= 3
        stuck = next(slot for slot in slots.every(ledger) if slot.stuck)
        assert (stuck.is_alive, stuck.stuck) == (True, "rows are missing")
        slots.release(ledger, slots.take_over(ledger, uuid4(), stuck.slot))
        assert not next(slot for slot in slots.every(ledger) if slot.slot == stuck.slot).stuck
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
        until(lambda: owner.problem() == wrong[0])
        with pytest.raises(StoreDown, match="8 are to be used"):
            owner.slot()
        Event().wait(3)
        assert len(slot_numbers(ledger) - before) <= 1
        wrong.clear()
        until(lambda: owner.problem() is None)
        owner.slot()
    finally:
        owner.stop(1)


class Sink:
    """A store that holds these rows of batches."""

    name, progress = "clickhouse", "sink"

    def __init__(self, rows: dict[int, int]) -> None:
        self._rows = rows

    def counts_of(self, dataset: Any, batches: Sequence[Batch]) -> Iterator[tuple[int, int, int]]:
        held = {batch.batch_id: self._rows.get(batch.batch_id, 0) for batch in batches}
        return iter([(batch_id, rows, rows) for batch_id, rows in held.items() if rows])


def test_a_stuck_slot_is_settled_by_the_topic_and_the_stores(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    publisher = bench.publisher()
    publisher.step(bench.connection)
    lost, half, absent = (bench.commit(100).pop() for _ in range(3))
    here = bench.commit(100).pop()
    assert publisher.step(bench.connection) == 4
    publisher.close()
    # As if only `here` could still be found in the topic, and none of the four had been marked.
    bench.connection.execute(
        "UPDATE batches SET published_at = NULL, parts = NULL, topic = NULL, slot = %s WHERE batch_id = ANY(%s)",
        (bench.slot, [lost, half, absent, here]),
    )
    holds = TopicLog.holds
    monkeypatch.setattr(
        TopicLog, "holds", lambda log, doubt, starts: holds(log, {here: doubt[here]}, dict.fromkeys(starts, 0))
    )
    lease = bench.lease()
    [resolved] = resolution.resolve(
        bench.connection,
        lease,
        {"logs": bench.dataset},
        [Sink({lost: 100, half: 60})],  # type: ignore[list-item]
        lambda slot: kafka.KafkaProducer(bench.kafka_url, f"test-slot-{slot}"),
        lambda topic: kafka.KafkaPartitionReader(bench.kafka_url, topic),
    )
    assert (resolved.in_topic, resolved.in_stores_only, resolved.to_publish) == (1, 2, 1)
    assert resolved.lacking == {"clickhouse": 1}
    assert [batch.batch_id for batch in batches.all_unpublished(bench.connection, bench.slot)] == [absent]
    query = "SELECT batch_id, parts = '[]' FROM batches WHERE batch_id = ANY(%s)"
    marked = dict(bench.connection.execute(query, ([lost, half, here],)).fetchall())
    assert marked == {lost: True, half: True, here: False}
    monkeypatch.undo()
    heir = bench.publisher()
    assert heir.step(bench.connection) == 1
    heir.close()


def test_a_slot_is_not_taken_from_an_owner_that_publishes_it(ledger: psycopg.Connection[Any]) -> None:
    slot = 400_000
    lapsed_owner(ledger, slot, "0")
    with pytest.raises(Conflict):
        slots.take_over(ledger, uuid4(), slot)
    lease = Lease(slot, 7)
    slots.give_up(ledger, lease, "rows are missing")
    assert slots.take_over(ledger, uuid4(), slot).epoch == 8
    assert LEASE_SECONDS > slots.RENEW_SECONDS


def test_the_command_lists_slots_and_refuses_one_that_is_published(
    ledger: psycopg.Connection[Any], postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOGPIPE_POSTGRES_URL", postgres_url)
    lapsed_owner(ledger, 400_001, "0")
    slots.give_up(ledger, Lease(400_001, 7), "rows are missing")
    lapsed_owner(ledger, 400_002, "0")
    run = CliRunner().invoke
    listed = run(slots_command.main, [])
    assert listed.exit_code == 0
    assert "rows are missing" in next(line for line in listed.output.splitlines() if "400001" in line)
    refused = run(slots_command.main, ["resolve", "400002", "--store", "postgres"])
    assert (refused.exit_code, "living owner" in refused.output) == (1, True)
    assert "`logpipe slots` lists them" in run(slots_command.main, ["resolve", "9", "--store", "postgres"]).output
