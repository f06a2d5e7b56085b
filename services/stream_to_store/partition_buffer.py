"""The messages of one partition that were read and not yet written, and the range of them that is written next. No I/O.

Once the ranges of a block group are chosen, they are pending ranges. Every later attempt, by any consumer, writes
exactly these ranges with one insert until every row is loaded. The same ranges have the same rows, so the store can be
searched for them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from services.core.dataset import Dataset
from services.core.ids import MAX_BATCH_ROWS
from services.core.instants import DAY
from services.core.kafka_value import Envelope, decode
from services.core.ledger import OffsetRange, SinkPosition
from services.core.ports import Block, Message

MOST_ROWS = MAX_BATCH_ROWS
"""Rows of one range. No loadable message has more. Lines of a few bytes take a hundred times their size when they are
checked, so a bound of bytes alone does not bound the memory of a write."""


@dataclass(frozen=True, slots=True)
class MessageRange:
    """All messages of one partition whose offsets are in `offsets`.

    `loadable` are the messages that can be loaded; all of them were accepted on one day. `unloadable` are the messages
    that no store can load.
    """

    partition: int
    offsets: OffsetRange
    loadable: Sequence[Envelope]
    unloadable: Sequence[Envelope]

    def block(self, dataset: Dataset, topic_id: str) -> Block:
        return Block(
            dataset,
            topic_id,
            self.partition,
            self.offsets.first,
            self.offsets.last,
            day=self.loadable[0].created_at // DAY if self.loadable else 0,
            rows=sum(envelope.rows for envelope in self.loadable),
            lines=b"".join(envelope.message.value for envelope in self.loadable),
        )


class PartitionBuffer:
    """Buffers one partition. Called by the loop's thread only.

    `next_offset`: the store has committed all messages below this offset. `read_up_to`: all messages below this offset
    are committed or buffered here. `since`: the clock, in seconds, at the last time that the empty buffer got messages.
    `group_partitions`: the partitions of the pending block group, including this partition; empty without a pending
    range.

    A buffer whose position has a pending range holds no message beyond that range. It leaves out the messages that come
    while the range is pending, so a later message would follow a gap.
    """

    def __init__(self, position: SinkPosition) -> None:
        self.partition = position.partition
        self.next_offset = self.read_up_to = position.next_offset
        self.group_partitions: Sequence[int] = position.group_partitions
        self.rows = 0
        self.bytes = 0
        self.since = 0.0
        self._pending = position.pending
        self._end = position.pending.last + 1 if position.pending else None
        self._held: list[Envelope] = []

    @property
    def day(self) -> int | None:
        """The day of acceptance of the next rows; None if no buffered message has rows that can be loaded."""
        return next((e.created_at // DAY for e in self._held if not e.problem), None)

    def add(self, message: Message, now: float) -> None:
        """Buffer the message, unless it is buffered already or lies beyond the range that the buffer begins with."""
        if message.offset < self.read_up_to or (self._end is not None and message.offset >= self._end):
            return
        envelope = decode(message)
        self._held.append(envelope)
        self.rows += envelope.rows
        self.bytes += message.bytes
        self.advance(message.offset + 1, now)

    def advance(self, read_up_to: int, now: float) -> None:
        """Record that every message below `read_up_to` was passed to `add`. The other offsets were control records."""
        if self._end is not None:
            read_up_to = min(read_up_to, self._end)
        if read_up_to > self.read_up_to:
            if self.read_up_to == self.next_offset:
                self.since = now
            self.read_up_to = read_up_to

    def is_ready(self) -> bool:
        """Return whether there are messages to write, and the whole pending range is read if there is one."""
        return self.read_up_to > (self._pending.last if self._pending else self.next_offset)

    def choose_range(self, group_partitions: Sequence[int]) -> MessageRange:
        """Choose the range of the next insert, which becomes pending. Return the same range until `drop_range`."""
        self.group_partitions = group_partitions
        if self._pending is None:
            self._pending = OffsetRange(self.next_offset, self._end_of_range() - 1)
        chosen = [envelope for envelope in self._held if envelope.message.offset <= self._pending.last]
        loadable = [envelope for envelope in chosen if not envelope.problem]
        unloadable = [envelope for envelope in chosen if envelope.problem]
        return MessageRange(self.partition, self._pending, loadable, unloadable)

    def drop_range(self) -> None:
        """Drop the pending range and its messages, which the store has committed."""
        assert self._pending is not None
        self.next_offset = self._pending.last + 1
        self.group_partitions = ()
        self._pending = None
        self._held = [e for e in self._held if e.message.offset >= self.next_offset]
        self.rows = sum(e.rows for e in self._held)
        self.bytes = sum(e.message.bytes for e in self._held)

    def _end_of_range(self) -> int:
        """Return the offset before which all messages were accepted on one day, and have MOST_ROWS rows at most."""
        day, rows = self.day, 0
        for envelope in self._held:
            if envelope.problem:
                continue
            rows += envelope.rows
            if envelope.created_at // DAY != day or rows > MOST_ROWS:
                return envelope.message.offset
        return self.read_up_to
