"""What has been read of a consumer's partitions and not yet written, and what of it is written next. No I/O."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from services.core.ledger import SinkPosition
from services.core.ports import Message
from services.stream_to_store.lane import Lane


@dataclass(frozen=True, slots=True)
class Limits:
    """What is held is written when it is this much, or when any of it has been held for `seconds`."""

    rows: int
    bytes: int
    seconds: float


class Backlog:
    """Where something was begun before and not finished, only that is taken in, and written as it was begun."""

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
        """Partition -> the offset to read on from."""
        return {partition: lane.reached for partition, lane in self._lanes.items()}

    def stored(self) -> dict[int, int]:
        """Partition -> the offset below which all is stored."""
        return {partition: lane.next_offset for partition, lane in self._lanes.items()}

    def recovered(self) -> bool:
        """Whether there was something begun before, and all of it is written now: load the positions again."""
        return self._recovers and not any(lane.together for lane in self._lanes.values())

    def due(self, now: float) -> Sequence[Lane]:
        """What to write together next, in the order of partitions; empty while there is nothing, or too little."""
        pending = self.pending()
        due = (
            any(lane.together or now - lane.since >= self._limits.seconds for lane in pending)
            or sum(lane.rows for lane in pending) >= self._limits.rows
            or sum(lane.bytes for lane in pending) >= self._limits.bytes
        )
        return pending if due else ()

    def pending(self) -> Sequence[Lane]:
        """The same, however little it is: what was begun, or all that was accepted on one day."""
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
