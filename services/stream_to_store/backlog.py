"""The messages of a consumer's partitions that are read and not yet written, and what of them is next. No I/O."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from services.core.ledger import SinkPosition
from services.core.ports import Message
from services.stream_to_store.lane import Lane


@dataclass(frozen=True, slots=True)
class Limits:
    """A write is due when this many rows or bytes are held, or when a message has been held for `seconds`."""

    rows: int
    bytes: int
    seconds: float


class Backlog:
    """While there are pending ranges among the positions, only these ranges are held, and are written as begun."""

    def __init__(self, positions: Iterable[SinkPosition], limits: Limits) -> None:
        found = sorted(positions, key=lambda position: position.partition)
        begun = [position for position in found if position.intent]
        self._recovers = bool(begun)
        self._lanes = {position.partition: Lane(position) for position in begun or found}
        self._limits = limits

    def add(self, message: Message, now: float) -> None:
        self._lanes[message.partition].add(message, now)

    def reach(self, reached: Mapping[int, int], now: float) -> None:
        for partition, offset in reached.items():
            self._lanes[partition].reach(offset, now)

    def reached(self) -> dict[int, int]:
        """Return partition -> the offset to read on from."""
        return {partition: lane.reached for partition, lane in self._lanes.items()}

    def stored(self) -> dict[int, int]:
        """Return partition -> the offset up to which the store has committed."""
        return {partition: lane.next_offset for partition, lane in self._lanes.items()}

    def recovered(self) -> bool:
        """Return whether there were pending ranges, and all of them are written: then load the positions again."""
        return self._recovers and not any(lane.together for lane in self._lanes.values())

    def due(self, now: float) -> Sequence[Lane]:
        """Return what one insert has to write now, in the order of partitions; empty while no write is due."""
        pending = self.pending()
        due = (
            any(lane.together or now - lane.since >= self._limits.seconds for lane in pending)
            or sum(lane.rows for lane in pending) >= self._limits.rows
            or sum(lane.bytes for lane in pending) >= self._limits.bytes
        )
        return pending if due else ()

    def pending(self) -> Sequence[Lane]:
        """Return what the next insert will write, due or not: a pending group, or what was accepted on one day."""
        begun = [lane for lane in self._lanes.values() if lane.together]
        for lane in begun:
            together = [self._lanes[partition] for partition in lane.together]
            if all(other.complete() for other in together):
                return together
        if begun:
            return ()
        pending = [lane for lane in self._lanes.values() if lane.complete()]
        day = next((lane.day for lane in pending if lane.day is not None), None)
        return [lane for lane in pending if lane.day in (day, None)]
