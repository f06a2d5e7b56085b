"""Messages of other programs, as confluent-kafka gives them."""

from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from services.core import kafka_value
from services.core.errors import StoreDown
from services.streams import kafka
from services.streams.kafka import KafkaPartitionReader, _headers


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

    def __init__(self, values: list[bytes]) -> None:
        self._left = list(enumerate(values))
        self.calls = 0

    def consume(self, count: int, timeout: float) -> list[Any]:
        self.calls += 1
        some, self._left = self._left[:count], self._left[count:]
        return [self._message(offset, value) for offset, value in some]

    def _message(self, offset: int, value: bytes) -> Any:
        given = {"partition": 0, "offset": offset, "key": b"k", "value": value, "headers": None, "error": None}
        return SimpleNamespace(**{name: lambda each=each: each for name, each in given.items()})


def reader_of(values: list[bytes]) -> tuple[KafkaPartitionReader, Buffered]:
    reader = KafkaPartitionReader("localhost:1", "shop")
    reader.close()
    consumer = Buffered(values)
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
