"""An open-loop schedule: what is late is caught up, never skipped, and how late it is can be read at any time."""

import time
from collections.abc import Callable


class Schedule:
    """Tick k is due at start + k * `interval` seconds, even if earlier ticks were late."""

    def __init__(self, interval: float, now: Callable[[], float] = time.monotonic) -> None:
        self._interval = interval
        self._now = now
        self._start = now()
        self._taken = 0

    @property
    def due(self) -> float:
        """When the next tick is due, on the clock of `now`."""
        return self._start + self._taken * self._interval

    def wait(self) -> float:
        """Seconds until the next tick is due; 0 when it is due or late."""
        return max(0.0, self.due - self._now())

    def behind(self) -> float:
        """Seconds by which the next tick is late; 0 when it is not."""
        return max(0.0, self._now() - self.due)

    def take(self) -> float:
        """Count the next tick as done, and return when it was due."""
        due = self.due
        self._taken += 1
        return due
