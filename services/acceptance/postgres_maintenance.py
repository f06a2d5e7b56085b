"""The maintenance tasks in PostgreSQL of a process that accepts rows.

They wait for the tables, create day partitions ahead of time, and delete old request keys.
"""

from typing import NamedTuple

from services.core import metric_names
from services.core.backoff import Backoff
from services.core.dataset import Dataset
from services.core.errors import NeedsOperator
from services.core.instants import DAY
from services.ledger import batches, schema
from services.ledger.identity import former_ids, ledger_id
from services.postgres.clock import now_microseconds
from services.postgres.connection import PIPELINE, Connection, connect
from services.runtime import logs, metrics
from services.runtime.workers import Worker
from services.stores import postgres

DAYS_AHEAD = 7
_INTERVAL_SECONDS = 600
_BACKOFF = Backoff(1.0, 5.0)
_log = logs.get("postgres_maintenance")


class LedgerIdentity(NamedTuple):
    """The id of a ledger, and the ids that it had before, comma-separated."""

    ledger_id: str = ""
    former_ids: str = ""


class PostgresMaintenance:
    """One thread, which waits while PostgreSQL is unreachable or not migrated, also at the start of the process.

    Request keys are deleted after `key_hours`. None leaves that to other processes.
    """

    def __init__(
        self,
        url: str,
        datasets: tuple[Dataset, ...],
        key_hours: float | None,
        session_name: str = PIPELINE,
    ) -> None:
        self._url = url
        self._datasets = datasets
        self._key_hours = key_hours
        self._session_name = session_name
        self._ready = False
        self._keys_failure = ""
        self._identity = LedgerIdentity()
        self._worker = Worker("postgres_maintenance", self._turn, backoff=_BACKOFF)

    def worker(self) -> Worker:
        """Return the thread that waits for the tables and maintains them; always the same, not started yet."""
        return self._worker

    def health(self) -> str | None:
        """Return why rows cannot be written yet; None once the tables and the partitions were there."""
        return None if self._ready else f"starting: {self._worker.health() or 'the tables were not looked at yet'}"

    def degraded(self) -> str | None:
        """Return why partitions could not be made ahead, or old keys not deleted; None when both were."""
        return self._failure() or self._keys_failure or None

    def ledger_identity(self) -> LedgerIdentity:
        """Return the identity of the ledger, whose id is '' until it has been read."""
        return self._identity

    def _failure(self) -> str:
        return self._worker.health() or ("" if self._ready else "starting")

    def _turn(self) -> float:
        with self._connected() as connection:
            if not self._ready:
                self._require_tables(connection)
            self._maintain(connection)
        self._ready = True
        return _INTERVAL_SECONDS

    def _connected(self) -> Connection:
        return connect(self._url, name=self._session_name)

    def _require_tables(self, connection: Connection) -> None:
        schema.require(connection)
        for dataset in self._datasets:
            postgres.require(connection, dataset)

    def _maintain(self, connection: Connection) -> None:
        today = now_microseconds(connection) // DAY
        for dataset in self._datasets:
            postgres.ensure_partitions(connection, dataset, today, DAYS_AHEAD)
            end = (today + DAYS_AHEAD) * DAY // 1_000_000
            metrics.gauge(metric_names.PARTITIONS_UNTIL_SECONDS, dataset.name).set(end)
        self._identity = LedgerIdentity(str(ledger_id(connection)), ",".join(map(str, former_ids(connection))))
        schema.build_index(connection)
        self._forget_keys(connection)

    def _forget_keys(self, connection: Connection) -> None:
        if self._key_hours is None:
            return
        try:
            batches.forget_requests(connection, self._key_hours)
            self._keys_failure = ""
        except NeedsOperator as error:
            self._keys_failure = f"old idempotency keys are kept: {error}"
            _log.warning("old idempotency keys not deleted", reason=str(error))
