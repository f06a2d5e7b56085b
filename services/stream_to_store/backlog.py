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
    """If there are pending ranges among the positions, only these ranges are held, and are completed as begun.

    After the last of them, the positions have to be loaded again.
    """

    def __init__(self, positions: Iterable[SinkPosition], limits: Limits) -> None:
        found = sorted(positions, key=lambda position: position.partition)
        begun = [position for position in found if position.pending]
        self._recovers = bool(begun)
        self._buffers = {position.partition: PartitionBuffer(position) for position in begun or found}
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
        """Return whether there were pending ranges, and all of them are written: then load the positions again."""
        return self._recovers and not any(buffer.group for buffer in self._buffers.values())

    def due(self, now: float) -> Sequence[PartitionBuffer]:
        """Return the buffers that the next insert writes, in the order of partitions; empty while no write is due."""
        group = self.next_group()
        due = (
            any(buffer.group or now - buffer.since >= self._limits.seconds for buffer in group)
            or sum(buffer.rows for buffer in group) >= self._limits.rows
            or sum(buffer.bytes for buffer in group) >= self._limits.bytes
        )
        return group if due else ()

    def next_group(self) -> Sequence[PartitionBuffer]:
        """Return what the next insert will write, due or not: a pending group, or the messages of one day."""
        begun = [buffer for buffer in self._buffers.values() if buffer.group]
        for buffer in begun:
            group = [self._buffers[partition] for partition in buffer.group]
            if all(other.is_ready() for other in group):
                return group
        if begun:
            return ()
        ready = [buffer for buffer in self._buffers.values() if buffer.is_ready()]
        day = next((buffer.day for buffer in ready if buffer.day is not None), None)
        return [buffer for buffer in ready if buffer.day in (day, None)]
