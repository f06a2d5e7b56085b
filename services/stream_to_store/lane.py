"""One partition's way into a store: what has been read and not yet written, and how it is cut into slices. No I/O.

A slice is the messages of a range of offsets. Once the ranges of some partitions have been chosen (the intents), the
consumer that owns one of these partitions writes exactly these ranges, together, until they are finished: the same
ranges hold the same rows, so that the store can be searched for them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from services.core.dataset import Dataset
from services.core.instants import DAY
from services.core.kafka_value import Envelope, decode
from services.core.ledger import Range, SinkPosition
from services.core.ports import Block, Message


@dataclass(frozen=True, slots=True)
class Slice:
    """All of one partition's messages in `range`; those without a problem were accepted on one day."""

    partition: int
    range: Range
    good: Sequence[Envelope]
    poison: Sequence[Envelope]

    def block(self, dataset: Dataset, topic_id: str) -> Block:
        return Block(
            dataset,
            topic_id,
            self.partition,
            self.range.first,
            self.range.last,
            day=self.good[0].created_at // DAY if self.good else 0,
            rows=sum(envelope.rows for envelope in self.good),
            lines=b"".join(envelope.message.value for envelope in self.good),
        )


class Lane:
    """`next_offset`: all below it is stored. `reached`: all below is stored, or held here since `since` at the longest.

    `together`: the partitions whose ranges were begun together, this one among them; empty when nothing is begun.
    """

    def __init__(self, position: SinkPosition) -> None:
        self.partition = position.partition
        self.next_offset = self.reached = position.next_offset
        self.together: Sequence[int] = position.together
        self.rows = 0
        self.bytes = 0
        self.since = 0.0
        self._intent = position.intent
        self._held: list[Envelope] = []

    @property
    def day(self) -> int | None:
        """When what comes next was accepted; None when no row of it was."""
        return next((e.created_at // DAY for e in self._held if not e.problem), None)

    def add(self, message: Message, now: float) -> None:
        """A message is passed over when it is held already, or lies beyond the range that was begun."""
        if message.offset < self.reached or (self._intent and message.offset > self._intent.last):
            return
        envelope = decode(message)
        self._held.append(envelope)
        self.rows += envelope.rows
        self.bytes += envelope.bytes
        self.reach(message.offset + 1, now)

    def reach(self, offset: int, now: float) -> None:
        """Everything below `offset` was handed to `add`; the rest were control records."""
        if self._intent:
            offset = min(offset, self._intent.last + 1)
        if offset > self.reached:
            if self.reached == self.next_offset:
                self.since = now
            self.reached = offset

    def complete(self) -> bool:
        """Whether there is something to `take`, and all of it."""
        return self.reached > (self._intent.last if self._intent else self.next_offset)

    def take(self, together: Sequence[int]) -> Slice:
        """What to write next, `together` with that of other partitions; the same again until it is `finish`ed."""
        self.together = together
        if self._intent is None:
            self._intent = Range(self.next_offset, self._end_of_day() - 1)
        taken = [e for e in self._held if e.message.offset <= self._intent.last]
        return Slice(self.partition, self._intent, [e for e in taken if not e.problem], [e for e in taken if e.problem])

    def finish(self) -> None:
        assert self._intent is not None
        self.next_offset = self._intent.last + 1
        self.together = ()
        self._intent = None
        self._held = [e for e in self._held if e.message.offset >= self.next_offset]
        self.rows = sum(e.rows for e in self._held)
        self.bytes = sum(e.bytes for e in self._held)

    def _end_of_day(self) -> int:
        """The offset before which all messages were accepted on one day."""
        day = self.day
        for envelope in self._held:
            if not envelope.problem and envelope.created_at // DAY != day:
                return envelope.message.offset
        return self.reached
