"""Keeps PostgreSQL ready for rows: schema at start, day partitions made ahead, old request keys forgotten."""

import threading
import time

from services.core.dataset import Dataset
from services.core.errors import LogpipeError
from services.ledger import batches, schema
from services.ledger.identity import ledger_id
from services.postgres.connection import connect
from services.runtime import logs
from services.stores import postgres

DAYS_AHEAD = 7
_INTERVAL_SECONDS = 600
_RETRY_SECONDS = 5
_STOP_SECONDS = 1
_DAY_SECONDS = 86_400
_CLOSING_SECONDS = 3600  # after midnight, in which the last batches of a day may still be written
_log = logs.get("upkeep")


class Upkeep:
    def __init__(self, url: str, datasets: tuple[Dataset, ...], key_hours: float, *, text_index: bool = False) -> None:
        self._url = url
        self._datasets = datasets
        self._key_hours = key_hours
        self._text_index = text_index
        self._stop = threading.Event()
        self._problem: str | None = None
        self._ledger = ""
        self._thread = threading.Thread(target=self._run, name="upkeep", daemon=True)

    def start(self) -> None:
        """Prepare all tables, then keep them in the background. Raises StoreDown or NeedsOperator."""
        with connect(self._url) as connection:
            schema.prepare(connection)
            for dataset in self._datasets:
                postgres.prepare(connection, dataset)
        self._once()
        self._thread.start()

    def problem(self) -> str | None:
        """Why partitions could not be made ahead; None when all is well."""
        return self._problem

    def ledger(self) -> str:
        """The id of the ledger; '' until it has been read."""
        return self._ledger

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(_STOP_SECONDS)

    def _run(self) -> None:
        while not self._stop.wait(_RETRY_SECONDS if self._problem else _INTERVAL_SECONDS):
            try:
                self._once()
                self._problem = None
            except Exception as error:  # noqa: BLE001 - this thread must not end: partitions would run out
                self._problem = str(error)
                _log.error("day partitions not made ahead", error=str(error), days_ahead=DAYS_AHEAD)
            if self._text_index:
                self._index_closed_days()

    def _once(self) -> None:
        today = int(time.time()) // _DAY_SECONDS
        with connect(self._url) as connection:
            for dataset in self._datasets:
                postgres.ensure_partitions(connection, dataset, today, DAYS_AHEAD)
            self._ledger = str(ledger_id(connection))
            batches.forget_requests(connection, self._key_hours)

    def _index_closed_days(self) -> None:
        """Takes long, and nothing waits for it but this thread, whose days are made well ahead."""
        closed_before = int(time.time() - _CLOSING_SECONDS) // _DAY_SECONDS
        try:
            with connect(self._url) as connection:
                for dataset in self._datasets:
                    for partition in postgres.index_search(connection, dataset, closed_before):
                        _log.info("indexed for text search", partition=partition)
        except LogpipeError as error:
            _log.warning("closed days not indexed for text search", error=str(error))
