"""What every Kafka client here shares: settings, quiet logging, errors translated."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from confluent_kafka import KafkaError, KafkaException, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec, TopicDescription  # type: ignore[attr-defined]

from services.core.errors import Fenced, LogpipeError, NeedsOperator, StoreDown
from services.runtime import kafka_security, logs

NAME = "kafka"
MESSAGE_TIMEOUT = 30.0  # seconds until a message that cannot be delivered fails its transaction
REQUEST_TIMEOUT = 10.0

_FENCED = {
    KafkaError._FENCED,
    KafkaError.PRODUCER_FENCED,
    KafkaError.INVALID_PRODUCER_EPOCH,
    KafkaError.TRANSACTION_COORDINATOR_FENCED,
}
_NO_LONGER_KEPT = {KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE}

_log = logs.get("kafka")


class _LimitedLogger:
    """librdkafka's messages, one in `interval` seconds: it writes twenty a second while a broker is unreachable."""

    def __init__(self, interval: float = 10.0) -> None:
        self._interval = interval
        self._next = 0.0
        self._left_out = 0

    def log(self, level: int, template: str, *args: object) -> None:
        if time.monotonic() < self._next:
            self._left_out += 1
            return
        _log.warning("librdkafka", message=template % args, left_out=self._left_out)
        self._next, self._left_out = time.monotonic() + self._interval, 0


def config(url: str, **settings: Any) -> dict[str, Any]:
    """Return the configuration of a client. Raises NeedsOperator if a setting for its security is missing."""
    return {
        "bootstrap.servers": url,
        **kafka_security.librdkafka(),
        "logger": _LimitedLogger(),
        "log.connection.close": False,
        "reconnect.backoff.max.ms": 2000,
        **{name.replace("_", "."): value for name, value in settings.items()},
    }


@contextmanager
def translated() -> Iterator[None]:
    """Turn the client's errors into the pipeline's.

    The client raises a fatal error, such as that of a fenced producer, before it runs the delivery callbacks that are
    due. The first call in such a callback replaces the error by a SystemError, which has the error as its cause.
    """
    try:
        yield
    except KafkaException as error:
        raise translate(error.args[0]) from error
    except SystemError as error:
        if not isinstance(error.__cause__, KafkaException):
            raise
        raise translate(error.__cause__.args[0]) from error


def translate(error: KafkaError) -> LogpipeError:
    if error.code() in _FENCED:
        return Fenced(f"kafka: {error.str()}")
    if error.code() in _NO_LONGER_KEPT:
        return NeedsOperator(
            f"kafka: {error.str()}; these messages were deleted before they were read: raise the topic's retention,"
            " stop this process, and see 'Replay' in docs/operations.md"
        )
    return StoreDown(NAME, f"{error.name()}: {error.str()}")


def describe(admin: AdminClient, topic: str) -> TopicDescription | None:
    """Return the description of a topic; None if there is no such topic."""
    future = admin.describe_topics(TopicCollection([topic]), request_timeout=REQUEST_TIMEOUT)[topic]
    try:
        described: TopicDescription = future.result()
    except KafkaException as error:
        if error.args[0].code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
            return None
        raise
    return described


def delete_before(url: str, topic: str, topic_id: str, partition: int, offset: int) -> bool:
    """Delete the records below `offset`; False when there are none. Raises StoreDown.

    Nothing is deleted from a topic that was created again since, whose id is another.
    """
    admin = AdminClient(config(url))
    with translated():
        described = describe(admin, topic)
        if described is None or str(described.topic_id) != topic_id:
            return False
        earliest = {TopicPartition(topic, partition): OffsetSpec.earliest()}  # type: ignore[no-untyped-call]
        futures = admin.list_offsets(earliest, request_timeout=REQUEST_TIMEOUT)
        if all(future.result().offset >= offset for future in futures.values()):
            return False
        records = [TopicPartition(topic, partition, offset)]
        for deleted in admin.delete_records(records, request_timeout=REQUEST_TIMEOUT).values():
            deleted.result()
    return True


def sink_group(store: str, dataset: str) -> str:
    """Return the consumer group that loads a dataset's topic into a store."""
    return f"logpipe-{store}-{dataset}"


def source_group(topic: str, dataset: str) -> str:
    """Return the consumer group that takes a foreign topic into a dataset."""
    return f"logpipe-source-{dataset}-{topic}"


def members(url: str, group: str) -> int:
    """Return the number of consumers in the group. A dead one counts until its session times out. Raises StoreDown."""
    admin = AdminClient(config(url))  # a variable, because a client that is freed returns no results
    with translated():
        described = admin.describe_consumer_groups([group], request_timeout=REQUEST_TIMEOUT)
        return len(described[group].result().members)
