"""What each process that accepts rows has: committers, slots and their publishers, maintenance, and the disk floor."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from uuid import uuid4

from services.acceptance.committer import Committer
from services.acceptance.disk import DiskFloor, LocalDisk
from services.acceptance.postgres_maintenance import LedgerIdentity, PostgresMaintenance
from services.acceptance.publisher import MessageCache
from services.acceptance.publishing import publisher_opener, topic_names
from services.acceptance.remote_disk import remote_disk_of
from services.acceptance.settings import AcceptanceSettings
from services.acceptance.slot_owner import SlotOwner
from services.core.dataset import Dataset
from services.core.ledger import Batch
from services.core.ports import OutgoingMessage
from services.core.rows import RowCodec
from services.ledger import slots
from services.runtime.health import Readiness
from services.runtime.workers import Worker, Workers
from services.stores.postgres import PostgresReader
from services.streams import topics

_DRAIN_SECONDS = 15
_BACKGROUND_SECONDS = 1


class Acceptor:
    """Makes committers, and publishes what they commit while it is `running`.

    `known`: every dataset, because a slot may be adopted from another process. `key_hours`: see PostgresMaintenance.
    `workers` are started and stopped with the workers of every such process. The health checks are added to
    `readiness`, except the check of the disk: the process chooses whether a full disk makes it unready.
    """

    def __init__(
        self,
        settings: AcceptanceSettings,
        known: Sequence[Dataset],
        readiness: Readiness,
        key_hours: float | None = None,
        workers: Sequence[Worker] = (),
    ) -> None:
        self._settings = settings
        self._url = settings.postgres_url.get_secret_value()
        owner_id = uuid4()
        self._session_name = slots.session_name(owner_id)
        self._message_cache = MessageCache(settings.publisher_cache)
        self._rows = PostgresReader(self._url, 2, self._session_name)
        opener = publisher_opener(settings, known, self._message_cache, self._rows)
        self._owner = SlotOwner(self._url, owner_id, partial(topics.ensure, settings, topic_names(known)), opener)
        self._maintenance = PostgresMaintenance(self._url, tuple(known), key_hours, self._session_name)
        remote_disk = remote_disk_of(settings.disk_space_url, settings.token)
        self.disk = DiskFloor(remote_disk or LocalDisk(settings.ingest_disk_path), settings.ingest_disk_floor)
        more = [remote_disk.worker] if remote_disk else []
        self._background = Workers(self._maintenance.worker(), *workers, *more)
        readiness.add("postgres", self._maintenance.health)
        readiness.add("partitions", self._maintenance.degraded, degraded=True)
        readiness.add("slots", self._owner.health)
        readiness.add("publishing", self._owner.degraded, degraded=True)
        if remote_disk:
            readiness.add("disk-space", remote_disk.health, degraded=True)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Lease a slot, and publish. The exit publishes what is left, for a bounded time: commit nothing after it."""
        self._background.start()
        self._owner.start()
        try:
            yield
        finally:
            await asyncio.to_thread(self._owner.stop, _DRAIN_SECONDS)
            await asyncio.to_thread(self._background.stop, _BACKGROUND_SECONDS)
            self._rows.close()

    def committer(self, datasets: Sequence[Dataset]) -> Committer:
        """Return a committer for rows of these datasets, with a connection of its own."""
        return Committer(
            self._url,
            {dataset.name: RowCodec(dataset) for dataset in datasets},
            self.slot,
            self._on_committed,
            self._settings.ingest_group_rows,
            self._settings.kafka_partitions,
            self._session_name,
        )

    def slot(self) -> int:
        """Return the slot that new batches belong to, which may change at any time. Raises StoreDown."""
        return self._owner.slot()

    def ledger_identity(self) -> LedgerIdentity:
        """Return the identity of the ledger; its id is '' until it has been read."""
        return self._maintenance.ledger_identity()

    def _on_committed(self, batch: Batch, outgoing: list[OutgoingMessage]) -> None:
        self._message_cache.put(batch.batch_id, outgoing)
        self._owner.wake()
