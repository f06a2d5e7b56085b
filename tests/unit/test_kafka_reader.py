"""Messages of other programs, as confluent-kafka gives them."""

from contextlib import closing
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException, Producer

from services.core import kafka_value
from services.core.errors import StoreDown
from services.core.kafka_value import announced
from services.core.ports import Message
from services.streams import kafka
from services.streams.decompression import FailedDecompression
from services.streams.kafka import KafkaPartitionReader, _headers
from services.streams.reading import read_to_end


def test_a_header_whose_name_is_not_utf_8_makes_a_message_foreign() -> None:
    """confluent-kafka raises SystemError when the headers are asked for, and crashes if that is repeated."""
    asked: list[int] = []

    def headers() -> Any:
        asked.append(1)
        raise SystemError("returned a result with an exception set")

    message: Any = SimpleNamespace(headers=headers)
    assert _headers(message) == {}
    assert asked == [1]


def test_a_header_without_a_value_is_left_out() -> None:
    message: Any = SimpleNamespace(headers=lambda: [(kafka_value.ROWS_HEADER, b"2"), ("empty", None)])
    assert _headers(message) == {kafka_value.ROWS_HEADER: b"2"}


class Buffered:
    """A consumer whose buffer holds these values."""

    def __init__(self, values: list[bytes], headers: list[tuple[str, bytes]] | None = None) -> None:
        self._left = list(enumerate(values))
        self._headers = headers
        self.calls = 0

    def consume(self, count: int, timeout: float) -> list[Any]:
        self.calls += 1
        some, self._left = self._left[:count], self._left[count:]
        return [self._message(offset, value) for offset, value in some]

    def _message(self, offset: int, value: bytes) -> Any:
        given = {"partition": 0, "offset": offset, "key": b"k", "value": value, "headers": self._headers}
        given["error"] = None
        return SimpleNamespace(**{name: lambda each=each: each for name, each in given.items()})


def reader_of(
    values: list[bytes], headers: list[tuple[str, bytes]] | None = None
) -> tuple[KafkaPartitionReader, Buffered]:
    reader = KafkaPartitionReader("localhost:1", "shop")
    reader.close()
    consumer = Buffered(values, headers)
    untyped: Any = reader
    untyped._consumer = consumer
    return reader, consumer


def test_a_poll_ends_once_it_has_enough_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka, "MAX_POLL_BYTES", 1000)
    reader, _ = reader_of([b"v" * 99] * 200)
    polled = []
    while messages := reader.poll(0):
        polled.append(len(messages))
        assert reader.read_up_to() == {0: sum(polled)}
    assert sum(polled) == 200
    assert max(polled) < 10 + kafka.POLL_STEP


def test_a_poll_ends_once_it_has_enough_bytes_of_headers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka, "MAX_POLL_BYTES", 1000)
    reader, _ = reader_of([b""] * 200, [("h" * 50, b"v" * 50)])
    assert len(reader.poll(0)) < 10 + kafka.POLL_STEP


def test_a_failure_after_messages_is_raised_by_the_next_poll() -> None:
    """The messages count as read, so they must be returned."""
    reader, consumer = reader_of([b"v"] * 5)
    consume = consumer.consume

    def failing(count: int, timeout: float) -> list[Any]:
        if consumer.calls == 2:
            raise KafkaException(KafkaError(KafkaError._FATAL))
        return consume(count, timeout)

    consumer.consume = failing  # type: ignore[method-assign]
    assert len(reader.poll(0)) == 5
    assert reader.read_up_to() == {0: 5}
    with pytest.raises(StoreDown, match="_FATAL"):
        reader.poll(0)


@pytest.fixture
def bomb() -> tuple[str, Producer]:
    """A broker in librdkafka with three messages, of which a reader with LIMITED cannot decompress the second one."""
    producer = Producer(
        {
            "test.mock.num.brokers": 1,
            "bootstrap.servers": "mock",
            "message.max.bytes": 100 << 20,
            "compression.type": "zstd",
            "linger.ms": 0,
            "log_level": 0,
        }
    )
    [broker] = producer.list_topics(timeout=10).brokers.values()
    for value in (b"first", b" " * (3 << 20), b"last"):
        producer.produce("shop", value, partition=0)
        producer.flush(30)
    return f"{broker.host}:{broker.port}", producer


LIMITED = {"receive_message_max_bytes": 1_100_000, "fetch_max_bytes": 1_000_000}
"""librdkafka decompresses no batch to more than it may receive at once, by default 100 MB."""


def test_a_message_that_cannot_be_decompressed_is_skipped_with_its_reason(bomb: tuple[str, Producer]) -> None:
    """It would stop every reader of its partition for ever."""
    with closing(KafkaPartitionReader(bomb[0], "shop", **LIMITED)) as reader:
        reader.assign({0: 0})
        found: list[Message] = []
        while reader.read_up_to() != {0: 3}:
            found += reader.poll(0.1)
    problem = "the batch of messages at offset 1 cannot be decompressed"
    assert [(m.offset, m.value, m.problem) for m in found] == [(0, b"first", ""), (1, b"", problem), (2, b"last", "")]


def test_a_topic_with_such_a_message_is_read_to_its_end(
    bomb: tuple[str, Producer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The publisher searches the topic for its batches so."""
    with closing(KafkaPartitionReader(bomb[0], "shop", **LIMITED)) as reader:
        monkeypatch.setattr(reader, "bounds", lambda: {0: (0, 3)})  # the broker in librdkafka does not say them
        found = [message for messages, _ in read_to_end(reader, "shop", {0: 0}) for message in messages]
    assert [message.offset for message in found] == [0, 1, 2]
    assert all(announced(message) is None for message in found)


def test_an_offset_is_skipped_only_after_a_second_failure_of_its_batch() -> None:
    failed, read_up_to = FailedDecompression(), {0: 7, 1: 0}
    assert failed.skipped(0, 7, read_up_to) is None
    assert failed.skipped(1, 5, read_up_to) is None
    assert failed.skipped(0, 7, read_up_to) == 7
    assert failed.skipped(0, 7, {0: 8, 1: 0}) == 8  # the batch has more messages
    assert failed.skipped(0, 20, {0: 9, 1: 0}) is None  # another batch
    assert failed.skipped(1, 5, read_up_to) == 5  # the offsets below are control records
    assert failed.skipped(2, 0, read_up_to) is None  # no longer assigned


def test_no_other_error_is_skipped() -> None:
    reader, consumer = reader_of([])
    reader._read_up_to = {0: 0}
    for code in (KafkaError._BAD_MSG, KafkaError._TRANSPORT, KafkaError._BAD_COMPRESSION):
        offset = -1001 if code == KafkaError._BAD_COMPRESSION else 0
        given = {"partition": 0, "offset": offset, "error": KafkaError(code)}
        event = SimpleNamespace(**{name: lambda each=each: each for name, each in given.items()})
        for _ in range(3):
            consumer.consume = lambda count, timeout, event=event: [event] if count == 1 else []  # type: ignore[method-assign, misc]
            with pytest.raises(StoreDown):
                reader.poll(0)
    assert reader.read_up_to() == {0: 0}


def test_a_poll_of_small_messages_returns_as_many_as_before() -> None:
    reader, consumer = reader_of([b"v"] * 2500)
    assert [len(reader.poll(0)) for _ in range(4)] == [1000, 1000, 500, 0]
    assert consumer.calls < 4 * (kafka.MAX_POLL / kafka.POLL_STEP + 2)


def test_an_admin_client_that_failed_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that waits for a controller in vain would do so for ever: seen after a broker was starved of CPU."""
    made: list[object] = []

    def client(config: Any) -> object:
        made.append(object())
        return made[-1]

    def describe(admin: object, topic: str) -> Any:
        if admin is made[0]:
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
        return SimpleNamespace(topic_id="id")

    monkeypatch.setattr(kafka, "AdminClient", client)
    monkeypatch.setattr(kafka, "describe", describe)
    reader = KafkaPartitionReader("127.0.0.1:1", "topic")
    with pytest.raises(StoreDown, match="_TIMED_OUT"):
        reader.topic_id()
    assert (reader.topic_id(), len(made)) == ("id", 2)
    reader.close()
