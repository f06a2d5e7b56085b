"""Loads one dataset from its topic into one store, exactly once. `streams.loop` reads the topic.

One insert flushes all assigned partitions. Before the insert, its ranges are marked as pending in sink_progress, by
compare-and-set; after the insert, they are marked as loaded. If a write failed, or a consumer is assigned partitions
with pending ranges, the outcome of the former attempt is unknown. A SinkWriter then completes the attempt (`complete`).
An OwnProgressWriter needs no marks and no completion: its own position says what is stored, and after a failure the
consumer calls `rejections` and `write`.

The backlog in the loop's states (`streams.loop.State`): UNLOADED, the backlog is empty. READING, the backlog grows
until a write is due. PAUSED, a failed write is repeated. If `load` finds pending ranges, the backlog holds their
messages only; after the last of these ranges is written, the state is UNLOADED again.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from services.core import metric_names
from services.core.dataset import Dataset
from services.core.errors import Fenced, LogpipeError, NeedsOperator
from services.core.kafka_value import is_newer
from services.core.ledger import OffsetRange, SinkPosition
from services.core.ports import Message, StoreWriter
from services.runtime import logs, metrics
from services.stream_to_store import block_writing
from services.stream_to_store.backlog import Backlog, Limits
from services.stream_to_store.partition_buffer import MessageRange, PartitionBuffer
from services.streams.dead_letters import DeadLetterSender
from services.streams.loop import AfterFailure, TopicView

_log = logs.get("stream_to_store")


class Progress(Protocol):
    """Where the store's positions are kept: SinkProgress in the ledger, or OwnProgress in the store itself."""

    def load(self, partitions: Sequence[int]) -> Iterable[SinkPosition]: ...
    def check_topic(self, topic_id: str) -> None: ...
    def check_table(self) -> None: ...
    def mark_pending(self, pending: Mapping[int, OffsetRange]) -> bool: ...
    def mark_loaded(self, pending: Mapping[int, OffsetRange]) -> None: ...
    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Target:
    """What one consumer fills: the table of `dataset` in `store`. Rejected rows go to `dead_letter_sender`."""

    store: str
    dataset: Dataset
    writer: StoreWriter
    dead_letter_sender: DeadLetterSender


@dataclass(frozen=True, slots=True)
class _Prepared:
    """The progress of the store in the topic that has this id."""

    topic_id: str
    progress: Progress


class Consumer:
    """The handler of one dataset's messages (`streams.loop.Handler`).

    `prepare_topics` creates or checks the topics. `open_progress` gets the topic's id. `report_lag` may be called by
    any thread, the other methods by the loop's thread only. `clock` returns seconds and never goes back.
    """

    def __init__(
        self,
        target: Target,
        topic: TopicView,
        limits: Limits,
        prepare_topics: Callable[[], None],
        open_progress: Callable[[str], Progress],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.dataset = target.dataset
        self._target = target
        self._labels = (target.store, target.dataset.name)
        self._topic = topic
        self._limits = limits
        self._prepare_topics = prepare_topics
        self._open_progress = open_progress
        self._clock = clock
        self._log = _log.bind(store=target.store, dataset=target.dataset.name)
        self._prepared: _Prepared | None = None  # None: not prepared yet
        self._backlog = Backlog((), limits)

    def report_lag(self) -> None:
        """Set the gauge of the offsets that the store has not loaded. Blocks. Raises StoreDown."""
        bounds = self._topic.bounds()
        lag = sum(bounds[p][1] - next_offset for p, next_offset in self._backlog.stored().items() if p in bounds)
        metrics.gauge(metric_names.SINK_LAG_OFFSETS, *self._labels).set(lag)

    def prepare(self) -> None:
        """Create or check the topics and the table. Raises StoreDown, NeedsOperator."""
        self._prepare_topics()
        self._target.writer.prepare(self.dataset)
        topic_id = self._topic.topic_id()
        self._prepared = _Prepared(topic_id, self._open_progress(topic_id))

    def load(self, assigned: Sequence[int]) -> Mapping[int, int]:
        """Return the offsets to read from: those of the pending ranges only, if there are any.

        Raises StoreDown, NeedsOperator.
        """
        assert self._prepared is not None
        positions = list(self._prepared.progress.load(assigned))
        self._refuse_lost_messages(positions)
        self._backlog = Backlog(positions, self._limits)
        return self._backlog.read_up_to()

    def receive(self, messages: Sequence[Message], read_up_to: Mapping[int, int]) -> None:
        """Buffer messages. Raises NeedsOperator for rows with columns that this process does not know."""
        now = self._clock()
        for message in messages:
            if is_newer(message, self.dataset):
                raise NeedsOperator(
                    f"{self.dataset.topic} has messages with columns that this process does not know, or of a newer"
                    " version: it is older than the ingest API, update it; nothing was left out"
                )
            self._backlog.add(message, now)
        self._backlog.advance(read_up_to, now)

    def flush(self) -> bool:
        """Write all block groups that are due. Return False after the last pending range: load the positions again.

        Raises Fenced, Backpressure, StoreDown, NeedsOperator.
        """
        assert self._prepared is not None
        while due := self._backlog.due(self._clock()):
            self._write_group(self._prepared, due)
        return not self._backlog.recovered()

    def drop(self) -> None:
        self._backlog = Backlog((), self._limits)

    def after_failure(self, error: LogpipeError) -> AfterFailure:
        if isinstance(error, NeedsOperator):
            return AfterFailure.STOP
        return AfterFailure.RELOAD if isinstance(error, Fenced) else AfterFailure.KEEP

    def close(self) -> None:
        """Write all held messages. After a failure, the next owner of the partitions reads the messages again."""
        try:
            while self._prepared and (group := self._backlog.next_group()):
                self._write_group(self._prepared, group)
        except LogpipeError as error:
            self._log.warning("last write failed, the next owner reads again", reason=str(error))
        finally:
            self._target.dead_letter_sender.close()
            if self._prepared:
                self._prepared.progress.close()

    def _refuse_lost_messages(self, positions: Sequence[SinkPosition]) -> None:
        """Raise NeedsOperator if the topic lacks the messages to be read next, or was cut below the store's position.

        The next messages of a topic that was cut would get offsets that count as loaded.
        """
        bounds = self._topic.bounds()
        for position in positions:
            first, end = bounds.get(position.partition, (0, 0))
            loaded = f"{self._labels[0]} has loaded partition {position.partition} up to {position.next_offset}"
            if position.next_offset > end:
                raise NeedsOperator(
                    f"{self.dataset.topic} was cut: {loaded}, and the topic ends at {end}: stop this process, and see"
                    " 'A topic that was cut' in docs/operations.md"
                )
            if position.next_offset < first:
                raise NeedsOperator(
                    f"{loaded}, and {self.dataset.topic} begins at {first}: messages were deleted before they were"
                    " read: raise the topic's retention, stop this process, and see 'Replay' in docs/operations.md"
                )

    def _write_group(self, prepared: _Prepared, buffers: Sequence[PartitionBuffer]) -> None:
        """Write one block group: a range of each of `buffers`."""
        is_first = not any(buffer.group_partitions for buffer in buffers)
        partitions = [buffer.partition for buffer in buffers]
        ranges = [buffer.choose_range(partitions) for buffer in buffers]
        pending = {each.partition: each.offsets for each in ranges}
        # The id of a deleted topic never returns: if it is the same now, all these messages were read from that topic.
        prepared.progress.check_topic(self._topic.topic_id())
        if not is_first:
            prepared.progress.check_table()
        was_pending = prepared.progress.mark_pending(pending)
        is_first = is_first and not was_pending  # a former owner of the partitions may have tried to write these ranges
        blocks = [(each, each.block(self.dataset, prepared.topic_id)) for each in ranges]
        with metrics.histogram(metric_names.SINK_WRITE_SECONDS, *self._labels).time():
            rows = block_writing.write(self._target.writer, blocks, self._target.dead_letter_sender, is_first)
        prepared.progress.mark_loaded(pending)
        for buffer in buffers:
            buffer.drop_range()
        self._report(ranges, rows)

    def _report(self, ranges: Sequence[MessageRange], rows: int) -> None:
        """Count the rows that were stored, and observe the age of each batch once."""
        metrics.counter(metric_names.SINK_ROWS, *self._labels).inc(rows)
        freshness = metrics.histogram(metric_names.FRESHNESS_SECONDS, *self._labels)
        envelopes = (envelope for each in ranges for envelope in each.loadable)
        for _, created_at in {(envelope.batch_id, envelope.created_at) for envelope in envelopes}:
            freshness.observe(max(0.0, time.time() - created_at / 1e6))
