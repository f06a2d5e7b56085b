"""From the ledger to Kafka: every committed batch once, in a transaction of its slot's producer.

The ledger says what is to be published; the cache only saves reading rows back that have just been written. Whoever
begins with a slot, or goes on after any error, first opens the slot's producer anew (which fences whoever held it)
and looks what the topic holds beyond the last mark: a transaction may have been committed and not marked.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

import psycopg

from services.core import metric_names
from services.core.dataset import Dataset
from services.core.envelope import batch_of_key, messages
from services.core.errors import NeedsOperator, StoreDown
from services.core.ledger import Batch, Part
from services.core.ports import Outgoing, PartitionReader, TransactionalProducer
from services.core.rows import RowCodec, Rows, checksum
from services.ledger import batches as ledger
from services.runtime import logs, metrics
from services.stores.postgres import PostgresReader

_TRANSACTION_BYTES = 32 << 20
_ADVANCE_SECONDS = 60.0
_LOOK_SECONDS = 90.0  # longer than a transaction may stay open
_log = logs.get("publisher")


class MessageCache:
    """Messages of batches just committed, up to `limit` bytes; the oldest go when it is full."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._bytes = 0
        self._messages: OrderedDict[int, list[Outgoing]] = OrderedDict()
        self._lock = threading.Lock()

    def put(self, batch_id: int, outgoing: list[Outgoing]) -> None:
        size = _size(outgoing)
        with self._lock:
            self._messages[batch_id] = outgoing
            self._bytes += size
            while self._bytes > self._limit:
                _, dropped = self._messages.popitem(last=False)
                self._bytes -= _size(dropped)

    def pop(self, batch_id: int) -> list[Outgoing] | None:
        with self._lock:
            outgoing = self._messages.pop(batch_id, None)
            if outgoing is not None:
                self._bytes -= _size(outgoing)
            return outgoing


class SlotPublisher:
    """Publishes one slot's batches. Not thread-safe. `close` it to let go of the producer."""

    def __init__(
        self,
        slot: int,
        datasets: Mapping[str, Dataset],
        cache: MessageCache,
        open_producer: Callable[[int], TransactionalProducer],
        open_reader: Callable[[str], PartitionReader],
        rows: PostgresReader,
        partitions: int,
        max_rows: int,
    ) -> None:
        self.slot = slot
        self._datasets = datasets
        self._codecs = {name: RowCodec(dataset) for name, dataset in datasets.items()}
        self._cache = cache
        self._open_producer = open_producer
        self._open_reader = open_reader
        self._rows = rows
        self._partitions = partitions
        self._max_rows = max_rows
        self._producer: TransactionalProducer | None = None
        self._advanced = 0.0

    def step(self, connection: psycopg.Connection[Any]) -> int:
        """Publish and mark the oldest unpublished batches in one Kafka transaction; how many there were.

        Raises StoreDown (call again later), Fenced (check the lease first) or NeedsOperator.
        """
        try:
            if self._producer is None:
                self._producer = self._open_producer(self.slot)
                self._recover(connection)
            elif time.monotonic() - self._advanced > _ADVANCE_SECONDS:
                self._advance(connection)
            batches = ledger.unpublished(connection, self.slot, self._max_rows)
            if not batches:
                return 0
            outgoing = self._within_bounds(batches)
            with metrics.histogram(metric_names.PUBLISH_SECONDS).time():
                landed = iter(self._producer.publish([message for batch in outgoing for message in batch]))
            marked = []
            for batch, own in zip(batches, outgoing, strict=False):
                topic = self._datasets[batch.dataset].topic
                parts = [part for message, part in zip(own, landed, strict=False) if message.topic == topic]
                marked.append(replace(batch, parts=tuple(parts)))
            ledger.mark_published(connection, self.slot, marked)
        except BaseException:
            self.close()
            raise
        metrics.counter(metric_names.BATCHES_PUBLISHED, str(self.slot)).inc(len(marked))
        return len(marked)

    def close(self) -> None:
        if self._producer is not None:
            self._producer.close()
            self._producer = None

    def _within_bounds(self, batches: Sequence[Batch]) -> list[list[Outgoing]]:
        """The messages of the first batches, up to `_TRANSACTION_BYTES`, of one at least."""
        outgoing, size = [], 0
        for batch in batches:
            outgoing.append(self._messages(batch))
            size += _size(outgoing[-1])
            if size > _TRANSACTION_BYTES:
                break
        return outgoing

    def _messages(self, batch: Batch) -> list[Outgoing]:
        cached = self._cache.pop(batch.batch_id)
        if cached is not None:
            return cached
        dataset = self._known(batch.dataset)
        rows = sorted(self._rows.rows(dataset, batch.batch_id, batch.batch_id))
        if len(rows) != batch.rows:
            raise NeedsOperator(
                f"batch {batch.batch_id} of {batch.dataset} has {batch.rows} rows in the ledger and {len(rows)} in its"
                " table; it cannot be published: run `logpipe verify --store postgres`"
            )
        lines = self._codecs[batch.dataset].encode(rows)
        if checksum(lines) != batch.checksum:
            raise NeedsOperator(
                f"batch {batch.batch_id} of {batch.dataset} does not read as it was accepted: by a newer process, whose"
                " columns this one does not know (let a newer one publish it), or its rows were changed: run"
                " `logpipe verify --store postgres`"
            )
        return messages(dataset, batch.batch_id, batch.created_at, Rows.of(rows), lines, self._partitions)

    def _known(self, name: str) -> Dataset:
        if name not in self._datasets:
            raise NeedsOperator(f"slot {self.slot} holds batches of dataset {name!r}, which this process does not know")
        return self._datasets[name]

    def _advance(self, connection: psycopg.Connection[Any]) -> None:
        """Note where the slot's next messages can be: all of its messages so far are marked."""
        for name, dataset in self._datasets.items():
            with closing(self._open_reader(dataset.topic)) as reader:
                ends = {partition: end for partition, (_, end) in reader.bounds().items()}
            ledger.advance_slot(connection, self.slot, name, ends)
        self._advanced = time.monotonic()

    def _recover(self, connection: psycopg.Connection[Any]) -> None:
        """Mark what a transaction committed and nobody marked."""
        pending = ledger.all_unpublished(connection, self.slot)
        for name in sorted({batch.dataset for batch in pending}):
            own = {batch.batch_id: batch for batch in pending if batch.dataset == name}
            with closing(self._open_reader(self._known(name).topic)) as reader:
                found = self._found(connection, self._datasets[name], reader, own)
            if found:
                _log.info("found batches published and not marked", slot=self.slot, dataset=name, batches=len(found))
                ledger.mark_published(connection, self.slot, found)
        self._advance(connection)

    def _found(
        self,
        connection: psycopg.Connection[Any],
        dataset: Dataset,
        reader: PartitionReader,
        pending: Mapping[int, Batch],
    ) -> list[Batch]:
        """Those of `pending` that the topic holds.

        Reads to the very end of the log: another slot's open transaction hides what was committed after it began, until
        it has ended, too.
        """
        bounds = reader.bounds()
        known = ledger.slot_positions(connection, self.slot, dataset.name)
        starts = {partition: known.get(partition, low) for partition, (low, _) in bounds.items()}
        deleted = [partition for partition, (low, _) in bounds.items() if starts[partition] < low]
        if deleted:
            raise NeedsOperator(
                f"topic {dataset.topic}: retention has deleted messages of slot {self.slot} (partitions {deleted}) that"
                f" are needed to tell whether {len(pending)} batches were published; see docs/operations.md#slots"
            )
        if any(starts[partition] > end for partition, (_, end) in bounds.items()):
            raise NeedsOperator(
                f"topic {dataset.topic} ends before what slot {self.slot} published: it was deleted or cut, and whether"
                f" {len(pending)} batches were published cannot be told; see docs/operations.md#slots"
            )
        parts: dict[int, list[Part]] = {}
        rows: dict[int, int] = {}
        reader.assign(starts)
        deadline = time.monotonic() + _LOOK_SECONDS
        while any(reader.reached().get(p, starts[p]) < end for p, (_, end) in bounds.items()):
            if time.monotonic() > deadline:
                raise StoreDown("kafka", f"{dataset.topic} was not read to its end within {_LOOK_SECONDS} s")
            for message in reader.poll(1.0):
                batch_id = _batch_id(message.key)
                if batch_id in pending:
                    parts.setdefault(batch_id, []).append(Part(message.partition, message.offset))
                    rows[batch_id] = rows.get(batch_id, 0) + int(message.headers["rows"])
        for batch_id, count in rows.items():
            if count != pending[batch_id].rows:
                raise NeedsOperator(
                    f"topic {dataset.topic} holds {count} of the {pending[batch_id].rows} rows of batch {batch_id}"
                )
        return [replace(pending[batch_id], parts=tuple(own)) for batch_id, own in sorted(parts.items())]


def _batch_id(key: bytes) -> int:
    try:
        return batch_of_key(key)
    except ValueError:
        return -1  # somebody else's message: never one of ours


def _size(outgoing: Sequence[Outgoing]) -> int:
    return sum(len(message.value) for message in outgoing)
