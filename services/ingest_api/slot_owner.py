"""Keeps this process's slot leased, publishes it, and finishes the slots of owners that died."""

import threading
import time
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import psycopg

from services.core import metric_names
from services.core.errors import Fenced, LogpipeError, NeedsOperator, StoreDown
from services.ingest_api.publisher import SlotPublisher
from services.ledger import batches, schema, slots
from services.runtime import logs, metrics

_IDLE_SECONDS = 0.5  # how often the ledger is looked at when nothing was heard of
_LINGER_SECONDS = 0.1  # between transactions: each costs the broker a marker in every partition it touched
_ADOPT_SECONDS = 3.0
_RETRY_SECONDS = 1.0
_log = logs.get("slot_owner")


class SlotOwner:
    """Two threads: one renews the leases, one publishes, so that a slow Kafka never costs the lease.

    `slot` is where new batches belong; it changes when the lease was lost.
    """

    def __init__(self, url: str, open_publisher: Callable[[int], SlotPublisher]) -> None:
        self._url = url
        self._open_publisher = open_publisher
        self._owner = uuid4()
        self._held: set[int] = set()
        self._slot: int | None = None
        self._work = threading.Event()
        self._stop = threading.Event()
        self._abort = threading.Event()
        self._problem: str | None = "no slot leased yet"
        self._threads = [
            threading.Thread(target=self._keep_leases, name="leases", daemon=True),
            threading.Thread(target=self._publish, name="publisher", daemon=True),
        ]

    def start(self) -> None:
        """Lease a slot, then publish in the background. Raises StoreDown."""
        with schema.connect(self._url) as connection:
            self._lease(connection)
        for thread in self._threads:
            thread.start()

    def slot(self) -> int:
        """The slot new batches belong to."""
        if self._slot is None:
            raise StoreDown("postgres", "no slot is leased")
        return self._slot

    def wake(self) -> None:
        """There is something to publish."""
        self._work.set()

    def problem(self) -> str | None:
        """Why nothing can be published just now; None when all is well."""
        return self._problem

    def stop(self, drain_seconds: float) -> None:
        """Publish what is left, for at most so long; what remains, whoever leases the slot next will publish."""
        self._stop.set()
        self._work.set()
        self._threads[1].join(drain_seconds)
        self._abort.set()
        for thread in self._threads:
            thread.join(slots.RENEW_SECONDS + 1)

    def _lease(self, connection: psycopg.Connection[Any]) -> None:
        self._slot = slots.acquire(connection, self._owner)
        self._held.add(self._slot)
        _log.info("leased a slot", slot=self._slot)

    def _keep_leases(self) -> None:
        connection = None
        while not self._abort.wait(slots.RENEW_SECONDS):
            try:
                connection = connection or schema.connect(self._url)
                held = slots.renew(connection, self._owner)
                if self._slot not in held:
                    _log.warning("the lease was lost; leasing another slot", slot=self._slot)
                    self._lease(connection)
                    held.add(self.slot())
                self._held = held
            except StoreDown as error:
                _log.warning("leases not renewed", error=str(error))
                _close(connection)
                connection = None
        _close(connection)

    def _publish(self) -> None:
        connection: psycopg.Connection[Any] | None = None
        publishers: dict[int, SlotPublisher] = {}
        next_adoption = 0.0
        while not self._abort.is_set():
            try:
                connection = connection or schema.connect(self._url)
                if time.monotonic() >= next_adoption and not self._stop.is_set():
                    next_adoption = time.monotonic() + _ADOPT_SECONDS
                    self._adopt(connection)
                self._problem = None
                worked = self._round(connection, publishers)
                if worked:
                    self._stop.wait(_LINGER_SECONDS)
                elif self._stop.is_set():
                    break
                else:
                    self._work.wait(_IDLE_SECONDS)
                    self._work.clear()
            except LogpipeError as error:
                self._problem = str(error)
                _log.warning("publishing stopped; trying again", error=str(error), kind=type(error).__name__)
                if isinstance(error, StoreDown) and error.store == "postgres":
                    _close(connection)
                    connection = None
                if self._stop.is_set():
                    break
                self._abort.wait(_RETRY_SECONDS)
        for publisher in publishers.values():
            publisher.close()
        self._release_all(connection)

    def _round(self, connection: psycopg.Connection[Any], publishers: dict[int, SlotPublisher]) -> int:
        """One Kafka transaction for each slot held; how many batches were published."""
        held, worked = set(self._held), 0
        for slot in publishers.keys() - held:
            publishers.pop(slot).close()
        for slot in sorted(held):
            publisher = publishers.get(slot) or publishers.setdefault(slot, self._open_publisher(slot))
            try:
                published = publisher.step(connection)
            except Fenced:
                self._held = slots.renew(connection, self._owner)
                raise
            except NeedsOperator as error:
                self._problem = f"slot {slot}: {error}"
                _log.error("a slot cannot be published", slot=slot, error=str(error))
                continue
            worked += published
            metrics.gauge(metric_names.UNPUBLISHED_BATCHES, str(slot)).set(batches.count_unpublished(connection, slot))
            if not published and slot != self._slot:
                _log.info("an adopted slot is published to its end", slot=slot)
                publishers.pop(slot).close()
                self._held.discard(slot)
                slots.release(connection, self._owner, slot)
        return worked

    def _adopt(self, connection: psycopg.Connection[Any]) -> None:
        slot = slots.adopt_orphan(connection, self._owner)
        if slot is not None:
            _log.warning("adopting the slot of an owner that is gone", slot=slot)
            metrics.counter(metric_names.SLOTS_ADOPTED).inc()
            self._held.add(slot)

    def _release_all(self, connection: psycopg.Connection[Any] | None) -> None:
        try:
            connection = connection or schema.connect(self._url)
            for slot in self._held:
                slots.release(connection, self._owner, slot)
        except StoreDown as error:
            _log.warning("leases not released; they run out by themselves", error=str(error))
        _close(connection)


def _close(connection: psycopg.Connection[Any] | None) -> None:
    if connection is not None:
        connection.close()
