"""Group commit's grouping: small requests travel together, a large one alone, nobody waits long.

Pure bookkeeping on an injected clock; the caller does the waiting.
"""

from collections import deque
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Item = TypeVar("Item")
Group = TypeVar("Group", bound=Hashable)


class Batcher(Generic[Group, Item]):
    """Collects items by group until there are `max_rows` of them or the oldest has waited `max_wait` seconds."""

    def __init__(self, max_rows: int, max_wait: float, clock: Callable[[], float]) -> None:
        self._max_rows = max_rows
        self._max_wait = max_wait
        self._clock = clock
        self._waiting: dict[Group, deque[tuple[float, int, Item]]] = {}
        self._rows: dict[Group, int] = {}

    def add(self, group: Group, item: Item, rows: int) -> None:
        self._waiting.setdefault(group, deque()).append((self._clock(), rows, item))
        self._rows[group] = self._rows.get(group, 0) + rows

    def seconds_until_due(self) -> float | None:
        """When `take` will have something: 0 for now, None while nothing waits."""
        if not self._waiting:
            return None
        if any(rows >= self._max_rows for rows in self._rows.values()):
            return 0.0
        oldest = min(items[0][0] for items in self._waiting.values())
        return max(0.0, oldest + self._max_wait - self._clock())

    def take(self) -> tuple[Group, list[Item]] | None:
        """The items of the group that is due longest, at most `max_rows` rows unless its first is larger."""
        due = [
            (items[0][0], group)
            for group, items in self._waiting.items()
            if self._rows[group] >= self._max_rows or self._clock() - items[0][0] >= self._max_wait
        ]
        if not due:
            return None
        group = min(due, key=lambda d: d[0])[1]
        waiting, total = self._waiting[group], 0
        taken: list[Item] = []
        while waiting and (not taken or total + waiting[0][1] <= self._max_rows):
            _, rows, item = waiting.popleft()
            taken.append(item)
            total += rows
        self._rows[group] -= total
        if not waiting:
            del self._waiting[group], self._rows[group]
        return group, taken

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))
