"""Brings the rollups in PostgreSQL up to date with the accepted batches, in a thread of `logpipe maintain`.

Other stores keep their rollups up to date themselves. `services/stores/postgres/rollup_chunks.py` has the SQL.
"""

import time
from collections.abc import Sequence

from services.core import metric_names
from services.core.backoff import Backoff
from services.core.dataset import Dataset
from services.ledger.watermark import Watermarks
from services.postgres.pool import Pool
from services.runtime import metrics
from services.runtime.workers import Worker
from services.stores.postgres import rollup_chunks, schema

_INTERVAL_SECONDS = 2.0
_BACKOFF = Backoff(5.0, 10.0)


class RollupMaintenance:
    """Several processes may run this at once: a rollup is locked while one of them adds to it."""

    def __init__(self, url: str, datasets: Sequence[Dataset]) -> None:
        self._datasets = datasets
        self._ledger = Pool(url, max_connections=1)
        self._watermarks = Watermarks(self._ledger)

    def worker(self) -> Worker:
        """Return the thread that updates the rollups, not started yet. While it fails, queries scan the rows.

        An unfinished chunk may be abandoned at the stop: no reader sees it before it commits.
        """
        return Worker("rollups", self._turn, close=self._ledger.close, backoff=_BACKOFF)

    def _turn(self) -> float:
        started = time.monotonic()
        rows = sum(map(self._update, self._datasets))
        # While the rollups are behind, half of the time is left to the transactions that accept rows.
        return time.monotonic() - started if rows else _INTERVAL_SECONDS

    def _update(self, dataset: Dataset) -> int:
        """Add one chunk to one rollup, and merge the chunks of one day. Return the number of rows that were counted."""
        settled = self._watermarks.settled()
        with self._ledger.connection() as connection:
            schema.require(connection)
            rows = rollup_chunks.roll_up(connection, dataset, settled)
            rollup_chunks.merge(connection, dataset)
        metrics.counter(metric_names.ROLLUP_ROWS, dataset.name).inc(rows)
        return rows
