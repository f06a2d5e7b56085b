"""Publishes every committed batch to Kafka once, in a transaction of its slot's producer.

The ledger says which batches are not published. The cache has the messages of new batches, so that their rows need not
be read back. A publisher that begins with a slot, or continues after an error, first opens a new producer for the slot,
which fences the former producer. Then the publisher searches the topic for the batches in doubt: unmarked batches
whose transaction may have been committed all the same.
"""

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter

from services.acceptance.topic_log import TopicLog
from services.core import kafka_value, metric_names
from services.core.dataset import Dataset
from services.core.errors import NeedsOperator
from services.core.ledger import Batch
from services.core.ports import OutgoingMessage, PartitionReader, TransactionalProducer
from services.core.read_back import ReadBack
from services.core.rows import RowCodec, Rows
from services.ledger import batches as ledger_batches
from services.ledger.slots import Lease
from services.postgres.connection import Connection
from services.runtime import logs, metrics
from services.stores.postgres import PostgresReader
from services.streams.kafka import KafkaProducer

_TRANSACTION_BYTES = 32 << 20
_ADVANCE_SECONDS = 60.0  # after which the offsets of a slot that publishes nothing are recorded again
_MOST_MISSED = 1000  # batches that `pop` missed and `put` may still bring: fewer are being committed at a time
_log = logs.get("publisher")


class MessageCache:
    """The messages of the newest batches, up to `limit` bytes. If the cache is full, the oldest messages are dropped.

    A batch that is larger than the cache is not kept: it would push out all others. If `pop` is called for a batch
    before `put`, the publisher has read the rows back and needs the messages no more, so `put` drops them.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._bytes = 0
        self._messages: OrderedDict[int, list[OutgoingMessage]] = OrderedDict()
        self._missed: deque[int] = deque(maxlen=_MOST_MISSED)
        self._lock = threading.Lock()

    def put(self, batch_id: int, outgoing: list[OutgoingMessage]) -> None:
        size = _size(outgoing)
        if size > self._limit:
            return
        with self._lock:
            if batch_id in self._missed:
                return
            self._messages[batch_id] = outgoing
            self._bytes += size
            while self._bytes > self._limit:
                _, dropped = self._messages.popitem(last=False)
                self._bytes -= _size(dropped)

    def pop(self, batch_id: int) -> list[OutgoingMessage] | None:
        with self._lock:
            outgoing = self._messages.pop(batch_id, None)
            if outgoing is None:
                self._missed.append(batch_id)
            else:
                self._bytes -= _size(outgoing)
            return outgoing


@dataclass(frozen=True, slots=True)
class SlotKafka:
    """How a publisher reaches Kafka: its producer by the number of the slot, a reader by the name of a topic.

    `partitions`: the number of partitions that messages are distributed to.
    """

    open_producer: Callable[[int], TransactionalProducer]
    open_reader: Callable[[str], PartitionReader]
    partitions: int


class SlotPublisher:
    """Publishes the batches of one slot under one lease. Not thread-safe. `close` closes the producer."""

    def __init__(
        self,
        lease: Lease,
        datasets: Mapping[str, Dataset],
        kafka: SlotKafka,
        cache: MessageCache,
        rows: PostgresReader,
        max_rows: int,
    ) -> None:
        self.lease = lease
        self._datasets = datasets
        self._codecs = {name: RowCodec(dataset) for name, dataset in datasets.items()}
        self._cache = cache
        self._kafka = kafka
        self._rows = rows
        self._max_rows = max_rows
        self._producer: TransactionalProducer | None = None
        self._topic_logs: dict[str, TopicLog] = {}
        # Batches that may be in the topic although they are not marked. None before the ledger was searched for batches
        # that a former owner may have published.
        self._in_doubt: list[Batch] | None = None
        self._advanced_at = 0.0

    def step(self, connection: Connection) -> int:
        """Publish the oldest unpublished batches in one Kafka transaction, and mark them. Return how many.

        Raises StoreDown (call again later), Fenced (check the lease first) or NeedsOperator.
        """
        try:
            if self._producer is None:
                self._producer = self._open(connection)
            elif time.monotonic() - self._advanced_at > _ADVANCE_SECONDS:
                self._advance(connection)
            batches = ledger_batches.unpublished(connection, self.lease, self._max_rows)
            if not batches:
                return 0
            outgoing = self._next_messages(batches)
            self._in_doubt = batches[: len(outgoing)]
            with metrics.histogram(metric_names.PUBLISH_SECONDS).time():
                delivered = iter(self._producer.publish([message for batch in outgoing for message in batch]))
            marked = []
            for batch, own in zip(self._in_doubt, outgoing, strict=True):
                topic = self._datasets[batch.dataset].topic
                # `own` is the first argument: so zip takes nothing from `delivered` after the end of `own`. Messages of
                # an alert are no parts.
                parts = [part for message, part in zip(own, delivered, strict=False) if message.topic == topic]
                marked.append(replace(batch, parts=tuple(parts)))
            for name in {batch.dataset for batch in marked}:
                self._topic_logs[name].check()
            self._mark(connection, marked)
            self._in_doubt = []
        except BaseException:
            self.close()
            raise
        metrics.counter(metric_names.BATCHES_PUBLISHED, str(self.lease.slot)).inc(len(marked))
        return len(marked)

    def close(self) -> None:
        for topic_log in self._topic_logs.values():
            topic_log.close()
        self._topic_logs = {}
        if self._producer is not None:
            self._producer.close()
            self._producer = None

    def _open(self, connection: Connection) -> TransactionalProducer:
        """Fence the slot's former producer, and mark the batches in doubt that it or this publisher has published."""
        producer = self._kafka.open_producer(self.lease.slot)
        try:
            if self._in_doubt is None:
                self._in_doubt = ledger_batches.in_doubt(connection, self.lease)
            for name, dataset in self._datasets.items():
                self._topic_logs[name] = TopicLog(connection, dataset, self._kafka.open_reader(dataset.topic))
            self._recover(connection, self._in_doubt)
            self._in_doubt = []
            self._advance(connection)
        except BaseException:
            producer.close()
            raise
        return producer

    def _next_messages(self, batches: Sequence[Batch]) -> list[list[OutgoingMessage]]:
        """Return the messages of the first batches, up to the batch with which they exceed `_TRANSACTION_BYTES`."""
        outgoing, size = [], 0
        for batch in batches:
            outgoing.append(self._messages(batch))
            size += _size(outgoing[-1])
            if size > _TRANSACTION_BYTES:
                break
        return outgoing

    def _messages(self, batch: Batch) -> list[OutgoingMessage]:
        cached = self._cache.pop(batch.batch_id)
        if cached is not None:
            return cached
        dataset = self._dataset(batch.dataset)
        rows = sorted(self._rows.rows_of(dataset, [batch]), key=itemgetter(0))  # by id; other values may be None
        if len(rows) != batch.rows:
            raise NeedsOperator(
                f"batch {batch.batch_id} of {batch.dataset} has {batch.rows} rows in the ledger and {len(rows)} in its"
                " table; it cannot be published: run `logpipe verify --store postgres`"
            )
        read_back = ReadBack(self._codecs[batch.dataset])
        lines = [line for run in read_back.runs(rows) for line in run.lines]
        if not read_back.is_as_accepted(batch):
            raise NeedsOperator(
                f"batch {batch.batch_id} of {batch.dataset} does not read as it was accepted: by a newer process, whose"
                " columns this one does not know (let a newer one publish it), or its rows were changed: run"
                " `logpipe verify --store postgres`"
            )
        return kafka_value.encode(
            dataset, batch.batch_id, batch.created_at, Rows.of(rows), lines, self._kafka.partitions
        )

    def _dataset(self, name: str) -> Dataset:
        if name not in self._datasets:
            raise NeedsOperator(
                f"slot {self.lease.slot} holds batches of dataset {name!r}, which this process does not know: let a"
                " newer process that accepts rows publish them"
            )
        return self._datasets[name]

    def _mark(self, connection: Connection, batches: Sequence[Batch]) -> None:
        ledger_batches.mark_published(
            connection, self.lease, batches, {name: topic_log.topic for name, topic_log in self._topic_logs.items()}
        )

    def _advance(self, connection: Connection) -> None:
        """Record the offsets from which on a later search must look for unmarked batches. All batches are marked now.

        Raises NeedsOperator if a topic was cut: a store that has not read the lost messages would not notice the loss.
        """
        for name, topic_log in self._topic_logs.items():
            topic_log.check()
            ledger_batches.advance_slot(connection, self.lease, name, topic_log.topic, topic_log.uncut_ends(connection))
        self._advanced_at = time.monotonic()

    def _recover(self, connection: Connection, in_doubt: Sequence[Batch]) -> None:
        """Mark the batches in doubt that are in the topics."""
        for name in sorted({batch.dataset for batch in in_doubt}):
            self._dataset(name)
            own = {batch.batch_id: batch for batch in in_doubt if batch.dataset == name}
            if found := self._find_published(connection, self._topic_logs[name], own):
                _log.info("batches found published and not marked", lease=self.lease, dataset=name, batches=len(found))
                self._mark(connection, found)

    def _find_published(
        self, connection: Connection, topic_log: TopicLog, in_doubt: Mapping[int, Batch]
    ) -> list[Batch]:
        """Return the batches in doubt that the topic contains. Raises NeedsOperator if that cannot be determined."""
        slot, topic = self.lease.slot, topic_log.dataset.topic
        positions = ledger_batches.slot_positions(connection, slot, topic_log.dataset.name)
        if not positions:
            return []
        bounds = topic_log.bounds()
        is_same = positions.keys() == {topic_log.topic.topic_id}
        starts = positions[topic_log.topic.topic_id] if is_same else {p: first for p, (first, _) in bounds.items()}
        where = f"see `logpipe slots`, then run `logpipe slots resolve {slot}`"
        if deleted := [partition for partition, (first, _) in bounds.items() if starts.get(partition, first) < first]:
            raise NeedsOperator(
                f"topic {topic}: retention has deleted messages (partitions {deleted}) that are needed to tell whether"
                f" {len(in_doubt)} batches of slot {slot} were published: {where}"
            )
        if any(start > bounds.get(partition, (0, 0))[1] for partition, start in starts.items()):
            raise NeedsOperator(
                f"topic {topic} ends before what slot {slot} published: it was cut, and whether {len(in_doubt)} batches"
                f" were published cannot be told: {where}"
            )
        found = topic_log.find_batches(in_doubt, starts)
        for batch_id, batch in found.items():
            if batch.rows != in_doubt[batch_id].rows:
                raise NeedsOperator(
                    f"topic {topic} holds {batch.rows} of the {in_doubt[batch_id].rows} rows of batch {batch_id}:"
                    f" {where}"
                )
        if not is_same and len(found) < len(in_doubt):
            raise NeedsOperator(
                f"topic {topic} was deleted and created again, and the former topic may have held"
                f" {len(in_doubt) - len(found)} batches of slot {slot}, which stores may have loaded: {where}"
            )
        return [replace(in_doubt[batch_id], parts=batch.parts) for batch_id, batch in found.items()]


def open_slot_producer(kafka_url: str, slot: int) -> TransactionalProducer:
    """Open the slot's producer, which fences the former one. Raises StoreDown."""
    return KafkaProducer(kafka_url, f"logpipe-slot-{slot}")


def _size(outgoing: Sequence[OutgoingMessage]) -> int:
    return sum(len(message.value) for message in outgoing)
