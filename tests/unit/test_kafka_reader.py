"""Messages of other programs, as confluent-kafka gives them."""

from types import SimpleNamespace
from typing import Any

from services.core import kafka_value
from services.streams.kafka import _headers


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
