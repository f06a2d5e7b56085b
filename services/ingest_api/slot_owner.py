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
from services.ledger import batches, slots
from services.postgres.connection import connect
from services.runtime import logs, metrics

_IDLE_SECONDS = 0.5  # how often the ledger is looked at when nothing was heard of
_LINGER_SECONDS = 0.25  # between transactions: each costs the broker a marker in every partition it touched
_ADOPT_SECONDS = 3.0
_RETRY_SECONDS = 1.0
_log = logs.get("slot_owner")


class SlotOwner:
    """Two threads: one renews the leases, one publishes, so that a slow Kafka never costs the lease.

    `slot` is where new batches belong; it changes when the lease was lost, or the slot cannot be published any more.
    """

    def __init__(self, url: str, open_publisher: Callable[[int], SlotPublisher]) -> None:
        self._url = url
        self._open_publisher = open_publisher
        self._owner = uuid4()
        self._lock = threading.Lock()  # over what follows: both threads change it
        self._held: set[int] = set()
        self._slot: int | None = None
        self._stuck: set[int] = set()  # held, but only an operator can say how to go on
        self._work = threading.Event()
        self._stop = threading.Event()
        self._abort = threading.Event()
        self._leases = threading.Thread(target=self._keep_leases, name="leases", daemon=True)
        self._publisher = threading.Thread(target=self._publish, name="publisher", daemon=True)

    def start(self) -> None:
        """Lease a slot, then publish in the background. Raises StoreDown."""
        with connect(self._url) as connection:
            self._lease(connection)
        self._leases.start()
        self._publisher.start()

    def slot(self) -> int:
        """The slot new batches belong to."""
        if self._slot is None:
            raise StoreDown("postgres", "no slot is leased")
        return self._slot

    def wake(self) -> None:
        """There is something to publish."""
        self._work.set()

    def stop(self, drain_seconds: float) -> None:
        """Publish what is left, for at most so long; what remains, whoever leases the slot next will publish."""
        self._stop.set()
        self._work.set()
        self._publisher.join(drain_seconds)
        self._abort.set()
        for thread in (self._publisher, self._leases):
            thread.join(slots.RENEW_SECONDS + 1)

    def _lease(self, connection: psycopg.Connection[Any]) -> None:
        with self._lock:
            self._slot = slots.acquire(connection, self._owner)
            self._held.add(self._slot)
        _log.info("leased a slot", slot=self._slot)

    def _keep_leases(self) -> None:
        connection = None
        while not self._abort.wait(slots.RENEW_SECONDS):
            try:
                connection = connection or connect(self._url)
                self._renew(connection)
                if self._slot not in self._held:
                    _log.warning("the lease was lost; leasing another slot", slot=self._slot)
                    self._lease(connection)
            except Exception as error:  # noqa: BLE001 - this thread must not end: without it the leases run out
                _log.warning("leases not renewed", error=str(error), kind=type(error).__name__)
                _close(connection)
                connection = None
        _close(connection)

    def _renew(self, connection: psycopg.Connection[Any]) -> None:
        with self._lock:
            self._held = slots.renew(connection, self._owner)

    def _publish(self) -> None:
        connection: psycopg.Connection[Any] | None = None
        publishers: dict[int, SlotPublisher] = {}
        next_adoption = 0.0
        while not self._abort.is_set():
            try:
                connection = connection or connect(self._url)
                if time.monotonic() >= next_adoption and not self._stop.is_set():
                    next_adoption = time.monotonic() + _ADOPT_SECONDS
                    self._adopt(connection)
                if self._round(connection, publishers):
                    self._stop.wait(_LINGER_SECONDS)
                elif self._stop.is_set():
                    break
                else:
                    self._work.wait(_IDLE_SECONDS)
                    self._work.clear()
            except Exception as error:  # noqa: BLE001 - this thread must not end: nothing would be published any more
                expected = isinstance(error, LogpipeError)
                _log.warning("publishing stopped; trying again", error=str(error), exc_info=None if expected else error)
                if not (isinstance(error, StoreDown) and error.store == "kafka"):
                    _close(connection)
                    connection = None
                if self._stop.is_set():
                    break
                self._abort.wait(_RETRY_SECONDS)
        for publisher in publishers.values():
            publisher.close()
        self._release_all(connection)

    def _round(self, connection: psycopg.Connection[Any], publishers: dict[int, SlotPublisher]) -> int:
        """One Kafka transaction for each slot held; how many batches were published.

        A slot that fails does not keep the others waiting: one of them may hold the open transaction it waits for.
        """
        held, worked = self._held - self._stuck, 0
        failed: LogpipeError | None = None
        for slot in publishers.keys() - held:
            publishers.pop(slot).close()
        for slot in sorted(held):
            publisher = publishers.get(slot) or publishers.setdefault(slot, self._open_publisher(slot))
            try:
                published = publisher.step(connection)
            except NeedsOperator as error:
                self._give_up(connection, slot, error)
                continue
            except (Fenced, StoreDown) as error:
                if isinstance(error, Fenced):
                    self._renew(connection)
                failed = error
                continue
            worked += published
            metrics.gauge(metric_names.UNPUBLISHED_BATCHES, str(slot)).set(batches.count_unpublished(connection, slot))
            if not published and slot != self._slot:
                _log.info("an adopted slot is published to its end", slot=slot)
                publishers.pop(slot).close()
                self._release(connection, slot)
        if failed is not None:
            raise failed
        return worked

    def _give_up(self, connection: psycopg.Connection[Any], slot: int, error: NeedsOperator) -> None:
        """Keep the lease, so that nobody else tries the same; new batches go on under another slot."""
        _log.error("a slot cannot be published; an operator must decide", slot=slot, error=str(error))
        self._stuck.add(slot)
        if slot == self._slot:
            self._lease(connection)

    def _adopt(self, connection: psycopg.Connection[Any]) -> None:
        with self._lock:
            slot = slots.adopt_orphan(connection, self._owner)
            if slot is None:
                return
            self._held.add(slot)
        _log.warning("adopting the slot of an owner that is gone", slot=slot)
        metrics.counter(metric_names.SLOTS_ADOPTED).inc()

    def _release(self, connection: psycopg.Connection[Any], slot: int) -> None:
        with self._lock:
            self._held.discard(slot)
            slots.release(connection, self._owner, slot)

    def _release_all(self, connection: psycopg.Connection[Any] | None) -> None:
        try:
            connection = connection or connect(self._url)
            for slot in set(self._held):
                self._release(connection, slot)
        except StoreDown as error:
            _log.warning("leases not released; they run out by themselves", error=str(error))
        _close(connection)


def _close(connection: psycopg.Connection[Any] | None) -> None:
    if connection is not None:
        connection.close()
