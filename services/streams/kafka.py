"""Kafka, by confluent-kafka: transactional producer, partition reader, consumer-group reader."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import stamina
from confluent_kafka import Consumer, IsolationLevel, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka import Message as KafkaMessage
from confluent_kafka.admin import AdminClient, OffsetSpec, TopicDescription  # type: ignore[attr-defined]

from services.core.errors import LogpipeError, StoreDown
from services.core.ledger import Part
from services.core.ports import Message, OutgoingMessage
from services.runtime import logs
from services.streams.decompression import FailedDecompression
from services.streams.kafka_client import (
    MESSAGE_TIMEOUT,
    NAME,
    REQUEST_TIMEOUT,
    config,
    describe,
    translate,
    translated,
)

MAX_POLL = 1000  # messages
MAX_POLL_BYTES = 16 << 20  # of keys, values and headers; a poll ends with the step in which it has so many
POLL_STEP = 16  # messages that a poll consumes before it counts the bytes again
QUEUE_KBYTES = 16 * 1024  # that one reader fetches ahead
PUBLISHING = {"acks": "all", "compression.type": "lz4", "linger.ms": "5"}
"""How the producer sends. The benchmark of Kafka alone sends so, too."""

_log = logs.get("kafka")


def _is_retriable(error: Exception) -> bool:
    """Return whether the broker asks for a retry, as it does while it ends the transaction of a fenced producer."""
    return isinstance(error, KafkaException) and bool(error.args[0].retriable())


def _is_of_new_topic(error: Exception) -> bool:
    """Return whether the brokers do not agree yet on the leader of a topic that was just created."""
    cause = error.__cause__
    return isinstance(cause, KafkaException) and cause.args[0].code() == KafkaError.UNKNOWN_LEADER_EPOCH


class KafkaProducer:
    """TransactionalProducer. Opening it fences the former producer with this `transactional_id`. Raises StoreDown."""

    def __init__(self, url: str, transactional_id: str) -> None:
        self._usable = True
        with translated():
            self._producer = Producer(
                config(
                    url,
                    transactional_id=transactional_id,
                    **PUBLISHING,
                    message_timeout_ms=int(MESSAGE_TIMEOUT * 1000),
                )
            )
            self._init_transactions()

    @stamina.retry(
        on=_is_retriable, attempts=None, timeout=MESSAGE_TIMEOUT, wait_initial=0.1, wait_max=0.5, wait_jitter=0.0
    )
    def _init_transactions(self) -> None:
        self._producer.init_transactions(REQUEST_TIMEOUT)

    def publish(self, messages: Sequence[OutgoingMessage]) -> list[Part]:
        if not self._usable:
            raise StoreDown(NAME, "this producer has ended: open another one")
        self._usable = False
        delivered: dict[int, Part] = {}
        failed: list[KafkaError] = []

        def on_delivery(index: int, error: KafkaError | None, message: KafkaMessage) -> None:
            partition, offset = message.partition(), message.offset()
            if error or partition is None or offset is None:
                failed.append(error or KafkaError(KafkaError._FAIL))
            else:
                delivered[index] = Part(partition, offset)

        with translated():
            try:
                self._producer.begin_transaction()
                for index, message in enumerate(messages):
                    self._produce(message, lambda error, sent, index=index: on_delivery(index, error, sent))
                self._producer.flush(MESSAGE_TIMEOUT + REQUEST_TIMEOUT)
                if failed or len(delivered) < len(messages):
                    raise KafkaException(failed[0] if failed else KafkaError(KafkaError._TIMED_OUT))
                self._producer.commit_transaction(MESSAGE_TIMEOUT)
            except (KafkaException, SystemError):
                self._abort()
                raise
        self._usable = True
        return [delivered[index] for index in range(len(messages))]

    def _produce(self, message: OutgoingMessage, on_delivery: Any) -> None:
        while True:
            try:
                return self._producer.produce(
                    message.topic,
                    message.value,
                    message.key,
                    message.partition,
                    on_delivery,
                    headers=list(message.headers.items()),
                )
            except BufferError:  # the local queue is full
                self._producer.poll(0.1)

    def _abort(self) -> None:
        """Abort the transaction, so that readers need not wait for its timeout. Without the flush, this is fatal."""
        with suppress(KafkaException, SystemError):
            self._producer.purge()
            self._producer.flush(REQUEST_TIMEOUT)
            self._producer.abort_transaction(REQUEST_TIMEOUT)

    def close(self) -> None:
        self._usable = False
        del self._producer  # `close` of the client would log a warning if the producer was fenced


def _headers(message: KafkaMessage) -> dict[str, bytes]:
    """Return the headers; none if the name of one is not UTF-8, which only a message of another program has.

    Of several headers with one name, the first counts, as in Spark (`spark_jobs/parsing.py`).
    confluent-kafka raises SystemError for such a name, and crashes if `headers` is called a second time.
    """
    try:
        sent: Any = message.headers() or ()
    except SystemError:
        return {}
    first = dict(reversed(sent))
    return {name: value for name, value in first.items() if value is not None}


class KafkaPartitionReader:
    """PartitionReader. Nothing connects before the first call."""

    def __init__(self, url: str, topic: str, **settings: Any) -> None:
        self._topic = topic
        self._url = url
        self._admin = AdminClient(config(url))
        self._read_up_to: dict[int, int] = {}
        self._error: LogpipeError | None = None
        self._failed_decompression = FailedDecompression()
        with translated():
            self._consumer = Consumer(
                config(
                    url,
                    **{"group_id": "logpipe-reader", **settings},
                    enable_auto_commit=False,
                    enable_partition_eof=True,
                    auto_offset_reset="error",
                    isolation_level="read_committed",
                    queued_max_messages_kbytes=QUEUE_KBYTES,
                    fetch_queue_backoff_ms=10,
                )
            )

    def topic_id(self) -> str:
        return str(self._described().topic_id)

    def bounds(self) -> Mapping[int, tuple[int, int]]:
        partitions = [TopicPartition(self._topic, p.id) for p in self._described().partitions]
        first = self._offsets(partitions, OffsetSpec.earliest())  # type: ignore[no-untyped-call]
        end = self._offsets(partitions, OffsetSpec.latest())  # type: ignore[no-untyped-call]
        return {partition: (first[partition], end[partition]) for partition in first}

    def assign(self, positions: Mapping[int, int]) -> None:
        self._read_up_to = dict(positions)
        with translated():
            self._consumer.assign([TopicPartition(self._topic, p, offset) for p, offset in positions.items()])

    def poll(self, timeout: float) -> list[Message]:
        if self._error:  # it came with messages, which had to be returned first
            error, self._error = self._error, None
            raise error
        messages: list[Message] = []
        failed: dict[int, int] = {}
        try:
            with translated():
                self._consume(timeout, messages, failed)
                self._skip(messages, failed)
        except LogpipeError as error:
            self._error = error
        if self._error and not messages:
            return self.poll(0)
        return messages

    def read_up_to(self) -> Mapping[int, int]:
        return dict(self._read_up_to)

    def close(self) -> None:
        self._consumer.close()

    def _consume(self, timeout: float, messages: list[Message], failed: dict[int, int]) -> None:
        """Wait for one message, then add the buffered ones. `consume(n)` would wait for n messages.

        `failed` gets partition -> first offset of a batch that could not be decompressed. librdkafka bounds its buffer
        by bytes only roughly: it decompresses all that one fetch returned.
        """
        some = self._consumer.consume(1, timeout)
        left, size = MAX_POLL, 0
        while some:
            for received in some:
                if error := received.error():
                    self._note(error, received, failed)
                else:
                    messages.append(self._message(received))
                    size += messages[-1].bytes
            left -= len(some)
            if left == 0 or size >= MAX_POLL_BYTES:
                return
            some = self._consumer.consume(min(POLL_STEP, left), 0)

    def _note(self, error: KafkaError, event: KafkaMessage, failed: dict[int, int]) -> None:
        partition, offset = event.partition(), event.offset()
        if error.code() == KafkaError._PARTITION_EOF:
            self._advance(event)
        elif error.code() == KafkaError._MAX_POLL_EXCEEDED:
            _log.warning("member excluded from its group", topic=self._topic)
        elif error.code() != KafkaError._BAD_COMPRESSION or partition is None or offset is None or offset < 0:
            self._error = translate(error)
        else:
            failed[partition] = offset

    def _skip(self, messages: list[Message], failed: Mapping[int, int]) -> None:
        """Go on behind each offset that can never be read, and add a message with this problem in its place."""
        for partition, batch in failed.items():
            offset = self._failed_decompression.skipped(partition, batch, self._read_up_to)
            if offset is None:
                continue
            self._consumer.seek(TopicPartition(self._topic, partition, offset + 1))
            self._read_up_to[partition] = offset + 1
            problem = f"the batch of messages at offset {batch} cannot be decompressed"
            messages.append(Message(self._topic, partition, offset, b"", b"", problem=problem))
            _log.warning("offset skipped", topic=self._topic, partition=partition, offset=offset, reason=problem)

    def _advance(self, end: KafkaMessage) -> None:
        partition, offset = end.partition(), end.offset()
        if partition in self._read_up_to and offset is not None:
            self._read_up_to[partition] = max(self._read_up_to[partition], offset)

    def _message(self, message: KafkaMessage) -> Message:
        partition, offset = message.partition(), message.offset()
        assert partition is not None
        assert offset is not None
        self._read_up_to[partition] = offset + 1
        return Message(self._topic, partition, offset, message.key() or b"", message.value() or b"", _headers(message))

    def _described(self) -> TopicDescription:
        with translated(), self._renewed_after_failure() as admin:
            described = describe(admin, self._topic)
        if described is None:
            raise StoreDown(NAME, f"there is no topic {self._topic}")
        return described

    @contextmanager
    def _renewed_after_failure(self) -> Iterator[AdminClient]:
        """Yield the admin client, and replace it after a failure.

        If a broker did not know the controller once, a client of librdkafka may wait for the controller for ever.
        """
        try:
            yield self._admin
        except KafkaException:
            self._admin = AdminClient(config(self._url))
            raise

    @stamina.retry(
        on=_is_of_new_topic, attempts=None, timeout=REQUEST_TIMEOUT, wait_initial=0.1, wait_max=0.5, wait_jitter=0.0
    )
    def _offsets(self, partitions: Sequence[TopicPartition], which: OffsetSpec) -> dict[int, int]:
        with translated(), self._renewed_after_failure() as admin:
            futures = admin.list_offsets(
                dict.fromkeys(partitions, which),
                isolation_level=IsolationLevel.READ_UNCOMMITTED,
                request_timeout=REQUEST_TIMEOUT,
            )
            return {partition.partition: future.result().offset for partition, future in futures.items()}


class KafkaGroupReader(KafkaPartitionReader):
    """GroupReader: every rebalance revokes all partitions and assigns new ones (Kafka keeps no positions)."""

    def __init__(self, url: str, topic: str, group: str) -> None:
        # A member that died is noticed after the session's timeout; a live one may spend minutes on a slow write.
        super().__init__(
            url,
            topic,
            group_id=group,
            session_timeout_ms=6000,
            heartbeat_interval_ms=1500,
            max_poll_interval_ms=300_000,
            partition_assignment_strategy="range",
        )
        self._assigned: Sequence[int] | None = None
        with translated():
            self._consumer.subscribe([topic], self._on_assign, self._on_revoke, self._on_revoke)

    def rebalanced(self) -> Sequence[int] | None:
        assigned, self._assigned = self._assigned, None
        return assigned

    def _on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._assigned = sorted(p.partition for p in partitions)
        self._read_up_to = {}
        consumer.assign([])  # nothing is read until the owner of this reader assigns the offsets to start at

    def _on_revoke(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._assigned = ()
        self._read_up_to = {}
        consumer.unassign()
