"""One suite for both producers of request footprints: Kafka, and the fake in memory."""

import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import pytest
from request_footprints.kafka import KafkaProducer
from request_footprints.memory import MemoryProducer
from request_footprints.producer import Message, Producer, ProducerFailed
from request_footprints.settings import Settings

from services.streams.kafka import KafkaPartitionReader
from services.streams.topics import ensure_topics
from tests.waiting import until

NOWHERE = "127.0.0.1:1"
DELIVERY_SECONDS = 0.5


class Broker(Protocol):
    def producer(self, *, is_reachable: bool = True, **settings: Any) -> Producer: ...

    def delivered(self) -> list[Message]:
        """All messages so far."""


class Memory:
    def __init__(self) -> None:
        self._producers: list[MemoryProducer] = []

    def producer(self, *, is_reachable: bool = True, **settings: Any) -> Producer:
        self._producers.append(MemoryProducer(Settings(**settings), is_reachable=is_reachable))
        return self._producers[-1]

    def delivered(self) -> list[Message]:
        return [message for producer in self._producers for message in producer.delivered]


class Kafka:
    """With one partition, in which messages keep their order."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._topic = f"footprints-{uuid.uuid4().hex}"
        ensure_topics(url, {self._topic: 1}, 1)

    def producer(self, *, is_reachable: bool = True, **settings: Any) -> Producer:
        return KafkaProducer(Settings(kafka=self._url if is_reachable else NOWHERE, topic=self._topic, **settings))

    def delivered(self) -> list[Message]:
        reader = KafkaPartitionReader(self._url, self._topic)
        try:
            reader.assign({0: 0})
            end = reader.bounds()[0][1]
            found: list[Message] = []
            while len(found) < end:
                found += [(message.key, message.value) for message in reader.poll(0.1)]
            return found
        finally:
            reader.close()


@pytest.fixture(params=["memory", "kafka"])
def broker(request: pytest.FixtureRequest) -> Broker:
    return Memory() if request.param == "memory" else Kafka(request.getfixturevalue("kafka_url"))


@pytest.fixture
def opened() -> Iterator[Callable[[Producer], Producer]]:
    """Closes at the end of the test what it is given."""
    producers: list[Producer] = []

    def open_one(producer: Producer) -> Producer:
        producers.append(producer)
        return producer

    yield open_one
    for producer in producers:
        producer.close()


def numbered(number: int) -> list[Message]:
    return [(f"/{index}".encode(), f'{{"link":"/{index}"}}'.encode()) for index in range(number)]


def is_done(producer: Producer) -> bool:
    producer.poll()
    return producer.waiting() == 0


def test_messages_arrive_in_order_and_once(broker: Broker, opened: Any) -> None:
    producer = opened(broker.producer())
    messages = numbered(1000)
    assert producer.send(messages[:300]) == []
    assert producer.send(messages[300:]) == []
    until(lambda: is_done(producer))
    assert producer.failures() == 0
    assert broker.delivered() == messages


def test_nothing_is_sent_for_no_message(broker: Broker, opened: Any) -> None:
    producer = opened(broker.producer())
    assert producer.send([]) == []
    producer.flush(10)
    assert broker.delivered() == []


def test_flush_returns_when_nothing_waits(broker: Broker, opened: Any) -> None:
    producer = opened(broker.producer())
    producer.send(numbered(10))
    producer.flush(240)
    assert producer.waiting() == 0
    assert broker.delivered() == numbered(10)


def test_keys_and_values_may_be_any_bytes(broker: Broker, opened: Any) -> None:
    producer = opened(broker.producer())
    messages = [(b"", b"\xff\x00"), (b"k" * 300_000, b"{}"), ("/한글".encode(), b"")]
    assert producer.send(messages) == []
    producer.flush(240)
    assert producer.failures() == 0
    assert broker.delivered() == messages


def test_what_is_too_large_fails_and_its_neighbours_arrive(broker: Broker, opened: Any) -> None:
    producer = opened(broker.producer())
    before, after = numbered(2)
    assert producer.send([before, (b"k" * 300_000, b"x" * 3_000_000), after]) == []
    producer.flush(240)
    assert producer.failures() == 1
    assert producer.failures() == 0
    assert producer.trouble() is not None
    assert broker.delivered() == [before, after]


def test_opening_does_not_wait_and_what_does_not_fit_is_returned(broker: Broker, opened: Any) -> None:
    start = time.monotonic()
    producer = opened(broker.producer(is_reachable=False, queue=10))
    messages = numbered(25)
    assert producer.send(messages) == messages[10:]
    assert producer.send(messages[10:12]) == messages[10:12]
    assert producer.waiting() >= 10
    assert time.monotonic() - start < 30


def test_what_cannot_be_delivered_in_time_fails(broker: Broker, opened: Any) -> None:
    producer = opened(broker.producer(is_reachable=False, delivery_seconds=DELIVERY_SECONDS))
    assert producer.trouble() is None
    producer.send(numbered(5))
    producer.poll()
    assert producer.failures() == 0
    until(lambda: is_done(producer))
    assert producer.failures() == 5
    assert producer.trouble() is not None
    assert producer.trouble() is None


def test_flush_and_close_end_while_kafka_is_unreachable(broker: Broker) -> None:
    producer = broker.producer(is_reachable=False)
    producer.send(numbered(5))
    start = time.monotonic()
    producer.flush(0.3)
    assert producer.waiting() >= 5
    producer.close()
    assert 0.3 <= time.monotonic() - start < 30
    assert producer.failures() == 5


def test_a_wrong_configuration_is_named() -> None:
    with pytest.raises(ProducerFailed, match=r"sasl\.user"):
        KafkaProducer(Settings(kafka_config={"sasl.user": "shop"}))
