"""Collects requests into groups for group commits. A group is several small requests, or one large request.

The clock is injected. The module does not wait; the caller does.
"""

from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

Item = TypeVar("Item")
Key = TypeVar("Key", bound=Hashable)


class _Entry(NamedTuple, Generic[Item]):
    since: float
    rows: int
    size: int
    item: Item


@dataclass(slots=True)
class _Queue(Generic[Item]):
    entries: deque[_Entry[Item]] = field(default_factory=deque)
    rows: int = 0
    size: int = 0


class RequestGroups(Generic[Key, Item]):
    """Collects items of one key until they have `max_rows` or `max_bytes`, or the oldest has waited for `max_wait`."""

    def __init__(self, max_rows: int, max_bytes: int, max_wait: float, clock: Callable[[], float]) -> None:
        self._max_rows = max_rows
        self._max_bytes = max_bytes
        self._max_wait = max_wait
        self._clock = clock
        self._waiting: dict[Key, _Queue[Item]] = {}

    def add(self, key: Key, item: Item, rows: int, size: int) -> None:
        """Add an item with this many rows. `size` is in bytes."""
        queue = self._waiting.setdefault(key, _Queue())
        queue.entries.append(_Entry(self._clock(), rows, size, item))
        queue.rows += rows
        queue.size += size

    def seconds_until_due(self) -> float | None:
        """Return the seconds until `pop_due` returns a group, 0 if it does now; None while no item waits."""
        if not self._waiting:
            return None
        if any(map(self._full, self._waiting.values())):
            return 0.0
        oldest = min(queue.entries[0].since for queue in self._waiting.values())
        return max(0.0, oldest + self._max_wait - self._clock())

    def pop_due(self) -> tuple[Key, list[Item]] | None:
        """Remove the group that is due, and return it with its key; None if no group is due.

        If several keys are due, the group is of the key with the oldest item. A group is within both limits, or it is
        one large item.
        """
        due = [
            (queue.entries[0].since, key)
            for key, queue in self._waiting.items()
            if self._full(queue) or self._clock() - queue.entries[0].since >= self._max_wait
        ]
        if not due:
            return None
        key = min(due, key=lambda d: d[0])[1]
        queue, rows, size = self._waiting[key], 0, 0
        group: list[Item] = []
        while queue.entries and (not group or self._fits(rows, size, queue.entries[0])):
            entry = queue.entries.popleft()
            group.append(entry.item)
            rows += entry.rows
            size += entry.size
        queue.rows -= rows
        queue.size -= size
        if not queue.entries:
            del self._waiting[key]
        return key, group

    def _full(self, queue: _Queue[Item]) -> bool:
        return queue.rows >= self._max_rows or queue.size >= self._max_bytes

    def _fits(self, rows: int, size: int, entry: _Entry[Item]) -> bool:
        return rows + entry.rows <= self._max_rows and size + entry.size <= self._max_bytes

    def __len__(self) -> int:
        return sum(len(queue.entries) for queue in self._waiting.values())
