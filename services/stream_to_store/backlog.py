"""The partition buffers of a consumer, and the block group that is written next. No I/O."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from services.core.ledger import SinkPosition
from services.core.ports import Message
from services.stream_to_store.partition_buffer import PartitionBuffer


@dataclass(frozen=True, slots=True)
class Limits:
    """A write is due when this many rows or bytes are held, or when a message has been held for `seconds`."""

    rows: int
    bytes: int
    seconds: float


class Backlog:
    """If some positions have pending ranges, the backlog holds the messages of these ranges only.

    After the last pending range is written, the positions have to be loaded again.
    """

    def __init__(self, positions: Iterable[SinkPosition], limits: Limits) -> None:
        ordered = sorted(positions, key=lambda position: position.partition)
        pending = [position for position in ordered if position.pending]
        self._recovers = bool(pending)
        self._buffers = {position.partition: PartitionBuffer(position) for position in pending or ordered}
        self._limits = limits

    def add(self, message: Message, now: float) -> None:
        self._buffers[message.partition].add(message, now)

    def advance(self, read_up_to: Mapping[int, int], now: float) -> None:
        for partition, offset in read_up_to.items():
            self._buffers[partition].advance(offset, now)

    def read_up_to(self) -> dict[int, int]:
        """Return partition -> the offset to read on from."""
        return {partition: buffer.read_up_to for partition, buffer in self._buffers.items()}

    def stored(self) -> dict[int, int]:
        """Return partition -> the offset up to which the store has committed."""
        return {partition: buffer.next_offset for partition, buffer in self._buffers.items()}

    def recovered(self) -> bool:
        """Return whether the positions had pending ranges, and all of these ranges are written now."""
        return self._recovers and not any(buffer.group_partitions for buffer in self._buffers.values())

    def due(self, now: float) -> Sequence[PartitionBuffer]:
        """Return the buffers that the next insert writes, in the order of partitions; empty while no write is due."""
        group = self.next_group()
        due = (
            any(buffer.group_partitions or now - buffer.since >= self._limits.seconds for buffer in group)
            or sum(buffer.rows for buffer in group) >= self._limits.rows
            or sum(buffer.bytes for buffer in group) >= self._limits.bytes
        )
        return group if due else ()

    def next_group(self) -> Sequence[PartitionBuffer]:
        """Return the buffers of the next block group, due or not: a pending group, or the messages of one day."""
        pending = [buffer for buffer in self._buffers.values() if buffer.group_partitions]
        for buffer in pending:
            group = [self._buffers[partition] for partition in buffer.group_partitions]
            if all(other.is_ready() for other in group):
                return group
        if pending:
            return ()
        ready = [buffer for buffer in self._buffers.values() if buffer.is_ready()]
        day = next((buffer.day for buffer in ready if buffer.day is not None), None)
        return [buffer for buffer in ready if buffer.day in (day, None)]
