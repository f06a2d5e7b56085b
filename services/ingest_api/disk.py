"""Refuses rows before the disk is full: the last bytes belong to what was already accepted."""

import shutil
import time

from services.core import metric_names
from services.core.errors import Backpressure
from services.runtime import metrics

_CHECK_SECONDS = 1.0


class DiskFloor:
    def __init__(self, path: str, floor: int) -> None:
        self._path = path
        self._floor = floor
        self._free = 0
        self._checked = float("-inf")
        metrics.gauge(metric_names.DISK_FLOOR_BYTES).set(floor)

    def health(self) -> str | None:
        """Return why no rows can be accepted; None if there is room. Looks at the disk at most once a second."""
        now = time.monotonic()
        if now - self._checked >= _CHECK_SECONDS:
            self._free = shutil.disk_usage(self._path).free
            self._checked = now
            metrics.gauge(metric_names.DISK_FREE_BYTES).set(self._free)
        if self._free < self._floor:
            return f"{self._free} bytes free at {self._path}, the floor is {self._floor}: free space or add a disk"
        return None

    def check(self) -> None:
        """Raises Backpressure when there is too little space."""
        if reason := self.health():
            raise Backpressure(f"disk: {reason}", retry_after=30)
