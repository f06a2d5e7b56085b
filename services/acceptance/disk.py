"""Refuses rows before the disk is full: the last bytes are kept for rows that were already accepted."""

import shutil
import time
from typing import Protocol

from services.core import metric_names
from services.core.errors import Backpressure
from services.runtime import metrics

_CHECK_SECONDS = 1.0


class Disk(Protocol):
    """The disk that PostgreSQL's data is on. `name` names the disk in messages."""

    @property
    def name(self) -> str: ...

    def free(self) -> int | None:
        """Return the free bytes, None while they are not known. Called for each request: it does not block."""


class LocalDisk:
    """The disk of a path of this machine."""

    def __init__(self, path: str) -> None:
        self.name = path
        self._free = 0
        self._checked = float("-inf")

    def free(self) -> int:
        """Return the free bytes, which are read at most once a second."""
        now = time.monotonic()
        if now - self._checked >= _CHECK_SECONDS:
            self._free = shutil.disk_usage(self.name).free
            self._checked = now
        return self._free


class DiskFloor:
    """Refuses rows while the disk has fewer free bytes than `floor`.

    While the free bytes are unknown, rows are accepted: PostgreSQL itself refuses rows on a full disk.
    """

    def __init__(self, disk: Disk, floor: int) -> None:
        self._disk = disk
        self._floor = floor
        metrics.gauge(metric_names.DISK_FLOOR_BYTES).set(floor)

    def health(self) -> str | None:
        """Return why no rows can be accepted; None if there is room, or if it is not known."""
        free = self._disk.free()
        if free is None:
            return None
        metrics.gauge(metric_names.DISK_FREE_BYTES).set(free)
        if free < self._floor:
            return f"{free} bytes free at {self._disk.name}, the floor is {self._floor}: free space or add a disk"
        return None

    def check(self) -> None:
        """Raise Backpressure if there is too little space."""
        if reason := self.health():
            raise Backpressure(f"disk: {reason}", retry_after=30)
