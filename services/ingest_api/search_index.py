"""Indexes the days that are over for text search in PostgreSQL, in a thread of its own: one day may take hours."""

import threading

from services.core.dataset import Dataset
from services.core.errors import LogpipeError
from services.core.instants import DAY
from services.postgres.clock import now_microseconds
from services.postgres.connection import connect
from services.runtime import logs
from services.stores import postgres

_INTERVAL_SECONDS = 600
_STOP_SECONDS = 1
_CLOSING = 3600 * 1_000_000  # microseconds after midnight, in which the last batches of a day may still be written
_log = logs.get("search-index")


class SearchIndexer:
    """Several processes may have one each: one of them at a time makes indexes, and nothing waits for that."""

    def __init__(self, url: str, datasets: tuple[Dataset, ...]) -> None:
        self._url = url
        self._datasets = datasets
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="search-index", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """An index under way is left to PostgreSQL, which finishes or drops it."""
        self._stop.set()
        self._thread.join(_STOP_SECONDS)

    def _run(self) -> None:
        while not self._stop.wait(_INTERVAL_SECONDS):
            try:
                with connect(self._url) as connection:
                    closed_before = (now_microseconds(connection) - _CLOSING) // DAY
                    for dataset in self._datasets:
                        for partition in postgres.index_search(connection, dataset, closed_before):
                            _log.info("indexed for text search", partition=partition)
            except LogpipeError as error:
                _log.warning("closed days not indexed for text search", error=str(error))
