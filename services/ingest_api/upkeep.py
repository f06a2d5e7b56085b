"""Keeps PostgreSQL ready for rows: waits for its tables, makes day partitions ahead, forgets old request keys."""

import threading

from services.core.dataset import Dataset
from services.core.errors import NeedsOperator
from services.core.instants import DAY
from services.ledger import batches, schema
from services.ledger.identity import ledger_id
from services.postgres.clock import now_microseconds
from services.postgres.connection import PIPELINE, Connection, connect
from services.runtime import logs
from services.stores import postgres

DAYS_AHEAD = 7
_INTERVAL_SECONDS = 600
_RETRY_SECONDS = 5
_START_SECONDS = 1
_STOP_SECONDS = 1
_log = logs.get("upkeep")


class Upkeep:
    """One thread, which waits while PostgreSQL is unreachable or not migrated, also at the start of the process."""

    def __init__(
        self,
        url: str,
        datasets: tuple[Dataset, ...],
        key_hours: float,
        session_name: str = PIPELINE,
    ) -> None:
        self._url = url
        self._datasets = datasets
        self._key_hours = key_hours
        self._session_name = session_name
        self._stop = threading.Event()
        self._ready = False
        self._failure = "starting"
        self._kept_keys = ""
        self._ledger = ""
        self._thread = threading.Thread(target=self._run, name="upkeep", daemon=True)

    def start(self) -> None:
        """Wait for the tables and maintain them, in the background."""
        self._thread.start()

    def problem(self) -> str | None:
        """Why rows cannot be written yet; None once the tables and the partitions were there."""
        return None if self._ready else f"starting: the tables are not ready yet: {self._failure}"

    def degraded(self) -> str | None:
        """Why partitions were not made ahead, or old request keys were not forgotten; None when both were."""
        return self._failure or self._kept_keys or None

    def ledger(self) -> str:
        """The id of the ledger; '' until it has been read."""
        return self._ledger

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(_STOP_SECONDS)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                with self._connected() as connection:
                    if not self._ready:
                        self._require_tables(connection)
                    self._once(connection)
                self._ready, self._failure = True, ""
            except Exception as error:  # noqa: BLE001 - this thread must not end: partitions would run out
                self._failure = str(error)
                event = "day partitions not made ahead" if self._ready else "waiting for the tables in PostgreSQL"
                _log.error(event, error=str(error), days_ahead=DAYS_AHEAD)
            self._stop.wait(self._pause())

    def _pause(self) -> float:
        if not self._ready:
            return _START_SECONDS
        return _RETRY_SECONDS if self._failure else _INTERVAL_SECONDS

    def _connected(self) -> Connection:
        return connect(self._url, name=self._session_name)

    def _require_tables(self, connection: Connection) -> None:
        schema.require(connection)
        for dataset in self._datasets:
            postgres.require(connection, dataset)

    def _once(self, connection: Connection) -> None:
        today = now_microseconds(connection) // DAY
        for dataset in self._datasets:
            postgres.ensure_partitions(connection, dataset, today, DAYS_AHEAD)
        self._ledger = str(ledger_id(connection))
        schema.build_index(connection)
        self._forget_keys(connection)

    def _forget_keys(self, connection: Connection) -> None:
        try:
            batches.forget_requests(connection, self._key_hours)
            self._kept_keys = ""
        except NeedsOperator as error:
            self._kept_keys = f"old idempotency keys are kept: {error}"
            _log.warning("old idempotency keys not forgotten", reason=str(error))
