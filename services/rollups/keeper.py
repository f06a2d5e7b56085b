"""Keeps the rollups in PostgreSQL near what has been accepted, in the background of a process."""

import threading
import time
from collections.abc import Sequence

from services.core import metric_names
from services.core.dataset import Dataset
from services.ledger.reading import Ledger
from services.ledger.watermark import Watermarks
from services.runtime import logs, metrics
from services.stores.postgres import rollup_chunks, rollups

_INTERVAL_SECONDS = 2.0
_RETRY_SECONDS = 10.0
_STOP_SECONDS = 5.0
_log = logs.get("rollups")


class RollupKeeper:
    """Several processes may have one each: a rollup is added to by one at a time."""

    def __init__(self, url: str, datasets: Sequence[Dataset]) -> None:
        self._datasets = datasets
        self._ledger = Ledger(url, max_connections=1)
        self._watermarks = Watermarks(self._ledger)
        self._prepared = set[str]()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="rollups", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """A chunk under way is left: it is not there until it commits."""
        self._stop.set()
        self._thread.join(_STOP_SECONDS)
        self._ledger.close()

    def _run(self) -> None:
        pause = 0.0
        while not self._stop.wait(pause):
            started = time.monotonic()
            try:
                rows = sum(map(self._keep, self._datasets))
                # When there is more to catch up with, half of the time is left to what is being accepted.
                pause = time.monotonic() - started if rows else _INTERVAL_SECONDS
            except Exception as error:  # noqa: BLE001 - this thread must not end; meanwhile scans answer
                _log.warning("rollups stand still; to be tried again", reason=str(error))
                pause = _RETRY_SECONDS

    def _keep(self, dataset: Dataset) -> int:
        """Bring one rollup one chunk further, and merge the chunks of one day; how many rows were counted."""
        settled = self._watermarks.settled()
        with self._ledger.connection() as connection:
            if dataset.name not in self._prepared:
                rollups.prepare(connection, dataset)
                self._prepared.add(dataset.name)
            rows = rollup_chunks.roll_up(connection, dataset, settled)
            rollup_chunks.merge(connection, dataset)
        metrics.counter(metric_names.ROLLUP_ROWS, dataset.name).inc(rows)
        return rows
