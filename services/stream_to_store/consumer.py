"""Takes one dataset from its topic into one store, exactly once. `streams.loop` reads the topic.

One insert flushes all assigned partitions: the ranges to write go to sink_progress as pending ranges, by
compare-and-set; the store gets the blocks; the ranges are marked done. After a failed write, and for pending ranges
that a consumer finds when partitions are assigned to it, the outcome of the former attempt is unknown: a SinkWriter
completes it (`complete`). An OwnProgressWriter needs neither: its own position says what is stored, and after a failure
the consumer calls `rejections` and `write`.

The loop's states (`streams.loop.State`) are the consumer's: UNLOADED, its backlog is empty; READING, the backlog grows
until a write is due; PAUSED, a write failed and is repeated; STOPPED, an operator is needed. When `load` finds pending
ranges, the backlog takes in these alone, and after the last of them is written the state is UNLOADED once more.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from services.core import metric_names
from services.core.dataset import Dataset
from services.core.errors import Fenced, LogpipeError, NeedsOperator
from services.core.kafka_value import is_newer
from services.core.ledger import Range, SinkPosition
from services.core.ports import Message, StoreWriter
from services.runtime import logs, metrics
from services.stream_to_store import block_writing
from services.stream_to_store.backlog import Backlog, Limits
from services.stream_to_store.partition_buffer import PartitionBuffer
from services.streams.dead_letters import DeadLetters
from services.streams.loop import AfterFailure, TopicView

_log = logs.get("stream_to_store")


class Progress(Protocol):
    """Where the store's positions are kept: SinkProgress of the ledger, or OwnProgress for a store that keeps them."""

    def load(self, partitions: Sequence[int]) -> Iterable[SinkPosition]: ...
    def check_topic(self, topic_id: str) -> None: ...
    def check_table(self) -> None: ...
    def begin(self, pending: Mapping[int, Range]) -> bool: ...
    def finish(self, pending: Mapping[int, Range]) -> None: ...
    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Target:
    """What one consumer fills: a table of `writer`, the store with this name. Rejected rows go to `dead_letters`."""

    store: str
    dataset: Dataset
    writer: StoreWriter
    dead_letters: DeadLetters


@dataclass(frozen=True, slots=True)
class _Prepared:
    """The progress of the store in the topic that has this id."""

    topic_id: str
    progress: Progress


class Consumer:
    """The handler of one dataset's messages (`streams.loop.Handler`).

    `prepare_topics` makes or checks the topics. `open_progress` is given the topic's id. `report_lag` may be called by
    any thread, everything else belongs to the loop. `clock` returns seconds and never goes back.
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
        """Make or check the topics and the table. Raises StoreDown, NeedsOperator."""
        self._prepare_topics()
        self._target.writer.prepare(self.dataset)
        topic_id = self._topic.topic_id()
        self._prepared = _Prepared(topic_id, self._open_progress(topic_id))

    def load(self, assigned: Sequence[int]) -> Mapping[int, int]:
        """Return where to read on. Only pending ranges are read, and completed, where there are any.

        Raises StoreDown, NeedsOperator.
        """
        assert self._prepared is not None
        positions = list(self._prepared.progress.load(assigned))
        self._refuse_lost_messages(positions)
        self._backlog = Backlog(positions, self._limits)
        return self._backlog.read_up_to()

    def take(self, messages: Sequence[Message], read_up_to: Mapping[int, int]) -> None:
        """Buffer messages. Raises NeedsOperator for rows that this process would store without some columns."""
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
        """Write all blocks that are due. After the last pending range, the positions have to be loaded again.

        Raises Fenced, Backpressure, StoreDown, NeedsOperator.
        """
        assert self._prepared is not None
        while due := self._backlog.due(self._clock()):
            self._store(self._prepared, due)
        return not self._backlog.recovered()

    def drop(self) -> None:
        self._backlog = Backlog((), self._limits)

    def after(self, error: LogpipeError) -> AfterFailure:
        if isinstance(error, NeedsOperator):
            return AfterFailure.STOP
        return AfterFailure.RELOAD if isinstance(error, Fenced) else AfterFailure.KEEP

    def close(self) -> None:
        """Write what is held; after a failure the next owner of the partitions reads the messages again."""
        try:
            while self._prepared and (group := self._backlog.next_group()):
                self._store(self._prepared, group)
        except LogpipeError as error:
            self._log.warning("last write failed, the next owner reads again", reason=str(error))
        finally:
            self._target.dead_letters.close()
            if self._prepared:
                self._prepared.progress.close()

    def _refuse_lost_messages(self, positions: Sequence[SinkPosition]) -> None:
        """Raise NeedsOperator if the topic lacks messages that are to be read next, or was cut before what is stored.

        The next messages of a topic that was cut would get offsets that count as stored.
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

    def _store(self, prepared: _Prepared, buffers: Sequence[PartitionBuffer]) -> None:
        is_first = not any(buffer.group for buffer in buffers)
        group = [buffer.partition for buffer in buffers]
        ranges = [buffer.begin(group) for buffer in buffers]
        pending = {each.partition: each.offsets for each in ranges}
        # The id of a deleted topic never returns: if it is the same now, all these messages were read from that topic.
        prepared.progress.check_topic(self._topic.topic_id())
        if not is_first:
            prepared.progress.check_table()
        if prepared.progress.begin(pending):  # a former owner of the partitions may have tried to write these ranges
            is_first = False
        blocks = [(each, each.block(self.dataset, prepared.topic_id)) for each in ranges]
        with metrics.histogram(metric_names.SINK_WRITE_SECONDS, *self._labels).time():
            rows = block_writing.write(self._target.writer, blocks, self._target.dead_letters, is_first)
        prepared.progress.finish(pending)
        for buffer in buffers:
            buffer.finish()
        metrics.counter(metric_names.SINK_ROWS, *self._labels).inc(rows)
        freshness = metrics.histogram(metric_names.FRESHNESS_SECONDS, *self._labels)
        for _, created_at in {(e.batch_id, e.created_at) for each in ranges for e in each.good}:
            freshness.observe(max(0.0, time.time() - created_at / 1e6))
