"""Keeps the rollups in PostgreSQL near what has been accepted, in the background of a process."""

import time
from collections.abc import Sequence

from services.core import metric_names
from services.core.dataset import Dataset
from services.ledger.watermark import Watermarks
from services.postgres.pool import Pool
from services.runtime import metrics
from services.runtime.workers import Backoff, Worker
from services.stores.postgres import rollup_chunks, rollups

_INTERVAL_SECONDS = 2.0
_BACKOFF = Backoff(5.0, 10.0)


class RollupKeeper:
    """Several processes may have one each: a rollup is added to by one at a time."""

    def __init__(self, url: str, datasets: Sequence[Dataset]) -> None:
        self._datasets = datasets
        self._ledger = Pool(url, max_connections=1)
        self._watermarks = Watermarks(self._ledger)
        self._prepared = set[str]()

    def worker(self) -> Worker:
        """Return the thread that keeps the rollups, not started yet. While it fails, scans answer the queries.

        A chunk under way may be abandoned at the stop: no reader sees it before it commits.
        """
        return Worker("rollups", self._turn, close=self._ledger.close, backoff=_BACKOFF)

    def _turn(self) -> float:
        started = time.monotonic()
        rows = sum(map(self._keep, self._datasets))
        # While it catches up, half of the time is left to what is being accepted.
        return time.monotonic() - started if rows else _INTERVAL_SECONDS

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
