"""Indexes the days that are over for text search in PostgreSQL, in a thread of its own: one day may take hours."""

from services.core.dataset import Dataset
from services.core.instants import DAY
from services.postgres.clock import now_microseconds
from services.postgres.connection import connect
from services.runtime import logs
from services.runtime.workers import Worker
from services.stores import postgres

_INTERVAL_SECONDS = 600
_CLOSING = 3600 * 1_000_000  # microseconds after midnight, in which the last batches of a day may still be written
_log = logs.get("search-index")


class SearchIndexer:
    """Several processes may have one each: one of them at a time makes indexes, and nothing waits for that."""

    def __init__(self, url: str, datasets: tuple[Dataset, ...]) -> None:
        self._url = url
        self._datasets = datasets

    def worker(self) -> Worker:
        """Return the thread that makes the indexes, not started yet.

        When it is stopped, PostgreSQL finishes or drops the index that is being made.
        """
        return Worker("search-index", self._turn, delay=_INTERVAL_SECONDS)

    def _turn(self) -> float:
        with connect(self._url) as connection:
            closed_before = (now_microseconds(connection) - _CLOSING) // DAY
            for dataset in self._datasets:
                for partition in postgres.index_search(connection, dataset, closed_before):
                    _log.info("partition indexed for text search", partition=partition)
        return _INTERVAL_SECONDS
