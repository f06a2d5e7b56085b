"""The file system of one folder."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from services.core import metric_names
from services.core.errors import StoreDown
from services.runtime import metrics


@dataclass(frozen=True, slots=True)
class Space:
    """Bytes of a file system. `free`: those that a process without privileges can use."""

    free: int
    total: int


class Folder:
    def __init__(self, path: Path) -> None:
        self._path = path

    def space(self) -> Space:
        """Measure the space, and set the gauges. Raises StoreDown if the folder cannot be read."""
        try:
            usage = shutil.disk_usage(self._path)
        except OSError as error:
            raise StoreDown("disk", f"{self._path}: {error.strerror}") from error
        metrics.gauge(metric_names.DISK_SPACE_FREE_BYTES, str(self._path)).set(usage.free)
        metrics.gauge(metric_names.DISK_SPACE_TOTAL_BYTES, str(self._path)).set(usage.total)
        return Space(usage.free, usage.total)

    def health(self) -> str | None:
        """Return why the space cannot be measured; None if it can. As it is called at each /metrics, gauges are new."""
        try:
            self.space()
        except StoreDown as error:
            return str(error)
        return None
