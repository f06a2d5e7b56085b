"""Takes the messages of a foreign topic into the ledger, exactly once (see the package's description).

The handler of the loop that reads the topic (`streams.loop`). It holds messages until enough have come or the first of
them has waited long enough, and then takes all of them in one transaction.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from services.acceptance.committer import Committer, Submission
from services.acceptance.disk import DiskFloor
from services.core import metric_names
from services.core.dataset import Dataset
from services.core.errors import Backpressure, Invalid, LogpipeError, NeedsOperator, StoreDown
from services.core.ledger import Source, SourceAdvance, SourceRange
from services.core.ports import Message
from services.kafka_source.decoding import Decoded, MessageDecoder
from services.ledger import source_progress
from services.postgres.connection import Connection, connect
from services.runtime import logs, metrics
from services.streams.dead_letters import DeadLetterSender
from services.streams.loop import AfterFailure, TopicView

ADVANCE_SECONDS = 5.0
"""Time after which offsets without messages (records of transactions) are noted."""

_log = logs.get("kafka_source")


@dataclass(frozen=True, slots=True)
class Limits:
    """When the messages that are held are taken: after `seconds`, or once they have `rows` lines or `size` bytes."""

    rows: int
    size: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Target:
    """Where rows and dead letters go. Rows are refused while `disk` is full. `ledger` is the URL of PostgreSQL.

    `slot` returns the slot of new batches, and raises StoreDown while this process has none.
    """

    dataset: Dataset
    ledger: str
    slot: Callable[[], int]
    committer: Committer
    dead_letter_sender: DeadLetterSender
    disk: DiskFloor


class SourceHandler:
    """`streams.loop.Handler` of one foreign topic. `report_lag` may be called by any thread.

    `prepare_topics` makes or checks the topics. `at_end`: a source without positions begins at the
    end of the topic. `clock` returns seconds and never goes back.
    """

    def __init__(
        self,
        topic: str,
        view: TopicView,
        target: Target,
        limits: Limits,
        prepare_topics: Callable[[], None],
        *,
        at_end: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._topic = topic
        self._view = view
        self._target = target
        self._limits = limits
        self._prepare_topics = prepare_topics
        self._at_end = at_end
        self._clock = clock
        self._decoder = MessageDecoder(target.dataset)
        self._connection: Connection | None = None
        self._source: Source | None = None  # None: not prepared yet
        self._positions: Mapping[int, int] = {}  # of the ledger
        self._read_up_to: Mapping[int, int] = {}
        self._messages: list[Message] = []
        self._size = self._lines = 0
        self._held_since: float | None = None
        self._idle_since: float | None = None  # since when offsets without messages have not been noted
        self._labels = (topic, target.dataset.name)
        self._rows = metrics.counter(metric_names.SOURCE_ROWS, *self._labels)

    def prepare(self) -> None:
        self._prepare_topics()
        self._source = Source(self._topic, self._view.topic_id(), self._target.dataset.name)

    def load(self, assigned: Sequence[int]) -> Mapping[int, int]:
        assert self._source is not None
        self._refuse_other_topic(self._source)
        bounds = self._view.bounds()
        try:
            if self._connection is None:
                self._connection = connect(self._target.ledger)
            loaded = source_progress.load(self._connection, self._source, bounds, assigned, at_end=self._at_end)
        except StoreDown:
            self._disconnect()
            raise
        self._positions = self._read_up_to = loaded
        return loaded

    def receive(self, messages: Sequence[Message], read_up_to: Mapping[int, int]) -> None:
        self._messages += messages
        self._size += sum(message.bytes for message in messages)
        self._lines += sum(message.value.count(b"\n") + 1 for message in messages)
        self._read_up_to = dict(read_up_to)
        now = self._clock()
        if messages and self._held_since is None:
            self._held_since = now
        if self._idle_since is None and self._advanced():
            self._idle_since = now

    def flush(self) -> bool:
        if self._is_due():
            self._take_all()
        return True

    def drop(self) -> None:
        self._positions = self._read_up_to = {}
        self._drop_messages()

    def after_failure(self, error: LogpipeError) -> AfterFailure:
        """After a failure the positions are loaded again: the outcome of a write may be unknown, and the ledger knows.

        `load` also knows best what an operator has to do. What it raises stops the loop.
        """
        if isinstance(error, NeedsOperator) and not self._positions:
            return AfterFailure.STOP
        return AfterFailure.KEEP if isinstance(error, Backpressure) else AfterFailure.RELOAD

    def close(self) -> None:
        try:
            if self._source:
                self._take_all()
        except LogpipeError as error:
            _log.warning("last messages not taken, the next owner reads them again", reason=str(error))
        finally:
            self._target.dead_letter_sender.close()
            self._target.committer.close()
            self._disconnect()

    def report_lag(self) -> None:
        """Set the gauge of the offsets that were not taken, of the partitions of this process. Raises StoreDown."""
        bounds, positions = self._view.bounds(), self._positions
        lag = sum(bounds[partition][1] - offset for partition, offset in positions.items() if partition in bounds)
        metrics.gauge(metric_names.SOURCE_LAG_OFFSETS, *self._labels).set(lag)

    def _is_due(self) -> bool:
        now = self._clock()
        if self._lines >= self._limits.rows or self._size >= self._limits.size:
            return True
        if self._held_since is not None:
            return now - self._held_since >= self._limits.seconds
        return self._idle_since is not None and now - self._idle_since >= ADVANCE_SECONDS

    def _advanced(self) -> dict[int, int]:
        """Return partition -> the offset read up to, where that is beyond the ledger's position."""
        return {
            partition: offset
            for partition, offset in self._read_up_to.items()
            if offset > self._positions.get(partition, offset)
        }

    def _take_all(self) -> None:
        """Take all messages that are held. Raises Fenced, Backpressure, StoreDown, NeedsOperator."""
        assert self._source is not None
        if ends := self._advanced():
            # The id of a deleted topic never returns: if it is the same now, all messages were read from that topic.
            self._refuse_other_topic(self._source)
            self._target.disk.check()
            self._target.slot()  # without a slot the commit would fail, each time after the dead letters were sent
            try:
                self._store(self._source, self._messages, ends)
            except Invalid as error:
                _log.warning(
                    "PostgreSQL refused rows, taking each message", messages=len(self._messages), why=str(error)
                )
                self._accept_each(self._source)
        self._drop_messages()

    def _accept_each(self, source: Source) -> None:
        """Accept the messages one by one. One that PostgreSQL refuses becomes a dead letter as a whole."""
        for message in self._messages:
            end = {message.partition: message.offset + 1}
            try:
                self._store(source, [message], end)
            except Invalid as error:
                refused = self._decoder.refused(message, str(error))
                self._commit(source, [(self._range(message.partition, end, refused), refused)])

    def _store(self, source: Source, messages: Sequence[Message], ends: Mapping[int, int]) -> None:
        """Decode the messages, and commit what is in them. `ends`: the offsets up to which the messages were read.

        Raises Invalid if PostgreSQL refuses a value; then no row of the messages is accepted.
        """
        by_partition = sorted(messages, key=lambda message: message.partition)  # stable: offsets stay in order
        own = {partition: list(some) for partition, some in groupby(by_partition, lambda message: message.partition)}
        by_range = []
        for partition in ends:
            decoded = self._decoder.decode(own[partition]) if partition in own else Decoded()
            by_range.append((self._range(partition, ends, decoded), decoded))
        self._commit(source, by_range)

    def _range(self, partition: int, ends: Mapping[int, int], decoded: Decoded) -> SourceRange:
        counts = (decoded.lines, decoded.rows, decoded.dead_lines)
        return SourceRange(partition, self._positions[partition], ends[partition], *counts)

    def _commit(self, source: Source, by_range: Sequence[tuple[SourceRange, Decoded]]) -> None:
        self._target.dead_letter_sender.send([each for _, decoded in by_range for each in decoded.dead_letters])
        chunks = [chunk for _, decoded in by_range for chunk in decoded.chunks]
        advance = SourceAdvance(source, tuple(each for each, _ in by_range))
        if chunks:
            [outcome] = self._target.committer.commit(self._target.dataset, [Submission(chunks, source=advance)])
            if isinstance(outcome, LogpipeError):
                raise outcome
        else:
            assert self._connection is not None
            try:
                source_progress.advance_alone(self._connection, advance)
            except StoreDown:
                self._disconnect()
                raise
        self._positions = {**self._positions, **{each.partition: each.next_offset for each in advance.ranges}}
        self._rows.inc(sum(each.rows for each in advance.ranges))

    def _refuse_other_topic(self, source: Source) -> None:
        if self._view.topic_id() != source.topic_id:
            raise source_progress.created_again(source)

    def _drop_messages(self) -> None:
        self._messages = []
        self._size = self._lines = 0
        self._held_since = self._idle_since = None

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
