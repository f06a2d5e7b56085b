"""Kafka, by confluent-kafka. The only module that imports it."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import confluent_kafka
from confluent_kafka import KafkaError, KafkaException

from request_footprints.producer import Message, ProducerFailed
from request_footprints.settings import Settings

LINGER_MS = 50
BUFFER_KBYTES = 32 * 1024

# librdkafka writes some 20 lines a second while a broker is unreachable; `trouble` has the reason. The logger does not
# come from `logging.getLogger`, because a server that configures logging would switch it on.
_silent = logging.Logger("librdkafka", logging.CRITICAL + 1)


class KafkaProducer:
    """Producer. It is idempotent: a message that is sent again, because its acknowledgement was lost, is stored once.

    librdkafka reports failures only, because a report costs as much as sending a message.
    """

    def __init__(self, settings: Settings) -> None:
        self._topic = settings.topic
        self._failed = 0
        self._trouble: str | None = None
        self._fatal: str | None = None
        try:
            self._producer = confluent_kafka.Producer(self._config(settings))
        except (KafkaException, TypeError, ValueError) as error:
            raise ProducerFailed(_text(error)) from error

    def _config(self, settings: Settings) -> dict[str, Any]:
        return {
            "bootstrap.servers": settings.kafka,
            "client.id": "request-footprints",
            "compression.type": "lz4",
            "enable.idempotence": True,
            "linger.ms": LINGER_MS,
            "message.timeout.ms": max(1, round(settings.delivery_seconds * 1000)),
            "queue.buffering.max.messages": settings.queue,
            "queue.buffering.max.kbytes": BUFFER_KBYTES,
            "reconnect.backoff.max.ms": 2000,
            **settings.kafka_config,
            "delivery.report.only.error": True,
            "error_cb": self._on_error,
            "logger": _silent,
        }

    def send(self, messages: Sequence[Message]) -> list[Message]:
        batch: list[dict[str, Any]] = [{"key": key, "value": value} for key, value in messages]
        with _fatal_translated():
            taken = self._producer.produce_batch(self._topic, batch, on_delivery=self._on_delivery)
        if taken == len(batch):
            return []
        left = []
        for message, sent in zip(messages, batch, strict=True):
            error: KafkaError | None = sent.get("_error")
            if error is None:
                continue
            if error.code() == KafkaError._QUEUE_FULL:
                left.append(message)
            else:
                self._failed += 1
                self._trouble = error.str()
        return left

    def poll(self) -> None:
        with _fatal_translated():
            self._producer.poll(0)
        if self._fatal is not None:
            raise ProducerFailed(self._fatal)

    def failures(self) -> int:
        failures, self._failed = self._failed, 0
        return failures

    def waiting(self) -> int:
        return len(self._producer)

    def trouble(self) -> str | None:
        trouble, self._trouble = self._trouble, None
        return trouble

    def flush(self, seconds: float) -> None:
        with suppress(KafkaException):  # of a producer that cannot go on, as `poll` says
            self._producer.flush(seconds)

    def close(self) -> None:
        self._producer.purge()
        self.flush(1.0)  # handles the reports of what was purged

    def _on_delivery(self, error: KafkaError | None, message: object) -> None:
        if error is not None:
            self._failed += 1
            self._trouble = error.str()

    def _on_error(self, error: KafkaError) -> None:
        self._trouble = error.str()
        if error.fatal():  # no later message would be delivered
            self._fatal = self._trouble


@contextmanager
def _fatal_translated() -> Iterator[None]:
    """Raise ProducerFailed for an error after which no later message is delivered."""
    try:
        yield
    except KafkaException as error:
        reason = error.args[0]
        if isinstance(reason, KafkaError) and reason.fatal():
            raise ProducerFailed(_text(error)) from error
        raise


def _text(error: Exception) -> str:
    reason = error.args[0] if error.args else error
    return reason.str() if isinstance(reason, KafkaError) else str(reason)
