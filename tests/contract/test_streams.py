"""One suite for every stream: Kafka, and the broker in memory that stands in for it in unit tests."""

import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import product
from typing import Any, Protocol

import pytest
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from services.core.errors import Fenced, LogpipeError, NeedsOperator, StoreDown
from services.core.ports import GroupReader, Message, OutgoingMessage, PartitionReader, TransactionalProducer
from services.streams import kafka, kafka_client, topics
from services.streams.memory import MemoryBroker
from services.streams.topics import ensure_topics
from tests.waiting import until

PARTITIONS = 3


class Broker(Protocol):
    def ensure_topics(self, topics: dict[str, int]) -> None: ...
    def delete_topic(self, name: str) -> None: ...
    def delete_records(self, name: str, partition: int, before: int) -> None: ...
    def producer(self, transactional_id: str) -> TransactionalProducer: ...
    def partition_reader(self, topic: str) -> PartitionReader: ...
    def group_reader(self, topic: str, group: str) -> GroupReader: ...


class RealBroker:
    def __init__(self, url: str) -> None:
        self._url = url
        self._admin = AdminClient({"bootstrap.servers": url, "log_level": 0})

    def ensure_topics(self, topics: dict[str, int]) -> None:
        ensure_topics(self._url, topics, 1)

    def delete_topic(self, name: str) -> None:
        self._admin.delete_topics([name])[name].result(60)

    def delete_records(self, name: str, partition: int, before: int) -> None:
        for future in self._admin.delete_records([TopicPartition(name, partition, before)]).values():
            future.result(60)

    def producer(self, transactional_id: str) -> TransactionalProducer:
        return kafka.KafkaProducer(self._url, transactional_id)

    def partition_reader(self, topic: str) -> PartitionReader:
        return kafka.KafkaPartitionReader(self._url, topic)

    def group_reader(self, topic: str, group: str) -> GroupReader:
        return kafka.KafkaGroupReader(self._url, topic, group)


@pytest.fixture(params=["memory", "kafka"])
def broker(request: pytest.FixtureRequest) -> Broker:
    return MemoryBroker() if request.param == "memory" else RealBroker(request.getfixturevalue("kafka_url"))


@pytest.fixture
def topic(broker: Broker) -> str:
    name = f"t-{uuid.uuid4().hex}"
    broker.ensure_topics({name: PARTITIONS})
    return name


@pytest.fixture
def opened() -> Iterator[Callable[[Any], Any]]:
    """Closes at the end what was passed through it."""
    things: list[Any] = []

    def keep(thing: Any) -> Any:
        things.append(thing)
        return thing

    yield keep
    for thing in things:
        thing.close()


def message(topic: str, partition: int, text: str) -> OutgoingMessage:
    return OutgoingMessage(topic, partition, b"1:0", text.encode(), {"created_at": b"5", "rows": b"1"})


def read_to_end(reader: PartitionReader, ends: dict[int, int]) -> list[Message]:
    found: list[Message] = []

    def at_end() -> bool:
        found.extend(reader.poll(0.1))
        return all(reader.read_up_to()[p] >= end for p, end in ends.items())

    until(at_end)
    return found


def ends_of(reader: PartitionReader) -> dict[int, int]:
    return {partition: end for partition, (_, end) in reader.bounds().items()}


def values(messages: Sequence[Message]) -> list[str]:
    return sorted(m.value.decode() for m in messages)


def test_what_is_published_is_read_where_it_landed(broker: Broker, topic: str, opened: Any) -> None:
    sent = [message(topic, i % PARTITIONS, f"m{i}") for i in range(7)]
    delivered = opened(broker.producer(topic)).publish(sent)
    reader = opened(broker.partition_reader(topic))
    reader.assign(dict.fromkeys(range(PARTITIONS), 0))
    found = {(m.partition, m.offset): m for m in read_to_end(reader, ends_of(reader))}
    assert len(found) == len(sent)
    for outgoing, part in zip(sent, delivered, strict=True):
        got = found[part.partition, part.offset]
        assert (got.topic, got.key, got.value, dict(got.headers)) == (
            topic,
            outgoing.key,
            outgoing.value,
            dict(outgoing.headers),
        )


def test_of_several_headers_with_one_name_the_first_counts(kafka_url: str, opened: Any) -> None:
    topic = f"t-{uuid.uuid4().hex}"
    RealBroker(kafka_url).ensure_topics({topic: 1})
    foreign = Producer({"bootstrap.servers": kafka_url})
    sent: list[tuple[str, str | bytes | None]] = [("rows", b"1"), ("version", None), ("rows", b"2"), ("version", b"9")]
    foreign.produce(topic, b"{}\n", b"1:0", 0, headers=sent)
    assert foreign.flush(30) == 0
    reader = opened(RealBroker(kafka_url).partition_reader(topic))
    reader.assign({0: 0})
    [found] = read_to_end(reader, {0: 1})
    assert dict(found.headers) == {"rows": b"1"}


def test_each_message_of_a_batch_that_cannot_be_decompressed_is_skipped(kafka_url: str, opened: Any) -> None:
    """librdkafka names the first offset of the batch each time, also for a reader that begins within the batch."""
    topic = f"t-{uuid.uuid4().hex}"
    RealBroker(kafka_url).ensure_topics({topic: 1})
    producer = Producer(
        {
            "bootstrap.servers": kafka_url,
            "message.max.bytes": 100 << 20,
            "batch.size": 100 << 20,
            "compression.type": "zstd",
            "linger.ms": 500,
        }
    )
    for values_of_batch in ([b"first"], [b" " * (500 << 10)] * 3, [b"last"]):
        for value in values_of_batch:
            producer.produce(topic, value, partition=0)
        producer.flush(60)
    limits = {"receive_message_max_bytes": 1_100_000, "fetch_max_bytes": 1_000_000}
    reader = opened(kafka.KafkaPartitionReader(kafka_url, topic, **limits))
    problem = "the batch of messages at offset 1 cannot be decompressed"
    for start in (0, 2):
        reader.assign({0: start})
        found = [(m.offset, m.problem) for m in read_to_end(reader, {0: 5})]
        assert found == [(0, ""), (1, problem), (2, problem), (3, problem), (4, "")][start:]


def test_a_transaction_over_several_topics(broker: Broker, topic: str, opened: Any) -> None:
    other = f"{topic}-other"
    broker.ensure_topics({other: 1})
    opened(broker.producer(topic)).publish([message(topic, 0, "here"), message(other, 0, "there")])
    for name, expected in ((topic, "here"), (other, "there")):
        reader = opened(broker.partition_reader(name))
        reader.assign({0: 0})
        assert values(read_to_end(reader, {0: ends_of(reader)[0]})) == [expected]


def test_control_records_are_passed(broker: Broker, topic: str, opened: Any) -> None:
    producer = opened(broker.producer(topic))
    offsets = [producer.publish([message(topic, 0, f"m{i}")])[0].offset for i in range(3)]
    reader = opened(broker.partition_reader(topic))
    end = ends_of(reader)[0]
    assert end > offsets[-1] + 1, "each transaction leaves a control record"
    reader.assign({0: 0})
    assert [m.offset for m in read_to_end(reader, {0: end})] == offsets
    assert reader.read_up_to() == {0: end}


def test_reading_starts_where_it_is_told(broker: Broker, topic: str, opened: Any) -> None:
    delivered = opened(broker.producer(topic)).publish([message(topic, 0, f"m{i}") for i in range(5)])
    reader = opened(broker.partition_reader(topic))
    end = ends_of(reader)[0]
    reader.assign({0: delivered[3].offset})
    assert values(read_to_end(reader, {0: end})) == ["m3", "m4"]
    reader.assign({0: delivered[1].offset})
    assert values(read_to_end(reader, {0: end})) == ["m1", "m2", "m3", "m4"]
    reader.assign({0: end})
    assert read_to_end(reader, {0: end}) == []
    reader.assign({})
    assert reader.poll(0.05) == []


def test_a_second_producer_fences_the_first(broker: Broker, topic: str, opened: Any) -> None:
    zombie = opened(broker.producer(topic))
    zombie.publish([message(topic, 0, "before")])
    heir = opened(broker.producer(topic))
    with pytest.raises(Fenced):
        zombie.publish([message(topic, 0, "from the grave")])
    heir.publish([message(topic, 0, "after")])
    with pytest.raises(LogpipeError):
        zombie.publish([message(topic, 0, "again")])
    reader = opened(broker.partition_reader(topic))
    reader.assign({0: 0})
    assert values(read_to_end(reader, {0: ends_of(reader)[0]})) == ["after", "before"]


def test_of_a_failed_transaction_nothing_is_read(broker: Broker, topic: str, opened: Any) -> None:
    producer = opened(broker.producer(topic))
    with pytest.raises(StoreDown):
        producer.publish([message(topic, 0, "good"), message(topic, 1, "x" * 2_000_000)])
    opened(broker.producer(topic)).publish([message(topic, 0, "after")])
    reader = opened(broker.partition_reader(topic))
    reader.assign({0: 0, 1: 0})
    ends = ends_of(reader)
    assert values(read_to_end(reader, {0: ends[0], 1: ends[1]})) == ["after"]


@pytest.mark.parametrize("attempt", range(5))
def test_a_producer_that_is_fenced_before_its_first_message_says_so(
    broker: Broker, topic: str, opened: Any, attempt: int
) -> None:
    zombie = opened(broker.producer(topic))
    opened(broker.producer(topic))
    with pytest.raises(Fenced):
        zombie.publish([message(topic, partition, "late") for partition in range(PARTITIONS)])


def test_a_producer_ends_with_its_first_error(broker: Broker, topic: str, opened: Any) -> None:
    producer = opened(broker.producer(topic))
    opened(broker.producer(topic))
    with pytest.raises(Fenced):
        producer.publish([message(topic, 0, "a")])
    with pytest.raises(StoreDown):
        producer.publish([message(topic, 0, "b")])


def test_offsets_no_longer_kept_need_an_operator(broker: Broker, topic: str, opened: Any) -> None:
    opened(broker.producer(topic)).publish([message(topic, 0, f"m{i}") for i in range(5)])
    broker.delete_records(topic, 0, 3)
    reader = opened(broker.partition_reader(topic))
    assert reader.bounds()[0][0] == 3
    reader.assign({0: 1})
    with pytest.raises(NeedsOperator, match=r"offset|kept"):
        until(lambda: reader.poll(0.1))


def test_a_topic_made_again_has_another_id(broker: Broker, topic: str, opened: Any) -> None:
    reader = opened(broker.partition_reader(topic))
    before = reader.topic_id()
    broker.ensure_topics({topic: PARTITIONS})
    assert reader.topic_id() == before
    broker.delete_topic(topic)

    def made_again() -> bool:
        with suppress(StoreDown):  # the deletion takes a moment
            broker.ensure_topics({topic: PARTITIONS})
            return bool(reader.topic_id() != before)
        return False

    until(made_again)


def test_no_topic_is_down(broker: Broker, opened: Any) -> None:
    reader = opened(broker.partition_reader("never-made"))
    with pytest.raises(StoreDown):
        reader.topic_id()
    with pytest.raises(StoreDown):
        reader.bounds()


def test_a_group_shares_out_its_partitions(broker: Broker, topic: str, opened: Any) -> None:
    opened(broker.producer(topic)).publish([message(topic, p, f"m{p}") for p in range(PARTITIONS)])
    first = opened(broker.group_reader(topic, topic))
    given: dict[int, Sequence[int]] = {}

    def given_to(members: list[GroupReader], count: int) -> bool:
        for index, member in enumerate(members):
            assert member.poll(0.05) == [], "nothing is read before `assign`"
            now = member.rebalanced()
            given[index] = given.get(index, ()) if now is None else now
        return sum(map(len, given.values())) == count and all(given.values())

    until(lambda: given_to([first], PARTITIONS))
    first.assign(dict.fromkeys(given[0], 0))
    assert values(read_to_end(first, ends_of(first))) == ["m0", "m1", "m2"]
    assert first.rebalanced() is None

    second = opened(broker.group_reader(topic, topic))
    until(lambda: given_to([first, second], PARTITIONS) and not set(given[0]) & set(given[1]))
    second.assign(dict.fromkeys(given[1], 0))
    mine = {p: end for p, end in ends_of(second).items() if p in given[1]}
    assert values(read_to_end(second, mine)) == [f"m{p}" for p in given[1]]
    second.assign(dict.fromkeys(range(PARTITIONS), 0))  # those of the other as well
    assert values(read_to_end(second, ends_of(second))) == ["m0", "m1", "m2"]
    assert first.rebalanced() is None

    second.close()
    given.clear()
    until(lambda: given_to([first], PARTITIONS))


def test_an_unreachable_broker_is_down(monkeypatch: pytest.MonkeyPatch, opened: Any) -> None:
    for module, name in product((kafka, kafka_client, topics), ("REQUEST_TIMEOUT", "MESSAGE_TIMEOUT")):
        monkeypatch.setattr(module, name, 0.3)
    nowhere = "127.0.0.1:1"
    with pytest.raises(StoreDown):
        ensure_topics(nowhere, {"t": 1}, 1)
    with pytest.raises(StoreDown):
        kafka.KafkaProducer(nowhere, "t")
    reader = opened(kafka.KafkaPartitionReader(nowhere, "t"))
    with pytest.raises(StoreDown):
        reader.bounds()
    assert reader.poll(0.1) == []


def test_an_unreachable_broker_fills_no_log(capfd: pytest.CaptureFixture[str], opened: Any) -> None:
    reader = opened(kafka.KafkaPartitionReader("127.0.0.1:1", "t"))
    reader.assign({0: 0})
    deadline = time.monotonic() + 2
    while time.monotonic() < deadline:
        reader.poll(0.1)
    captured = capfd.readouterr()
    assert len((captured.out + captured.err).splitlines()) <= 3
