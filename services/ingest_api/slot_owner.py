"""Keeps this process's slot leased, publishes it, and finishes the slots of owners that died."""

import threading
import time
from collections.abc import Callable
from uuid import UUID

from services.core import metric_names
from services.core.errors import Fenced, LogpipeError, NeedsOperator, StoreDown
from services.ingest_api.publisher import SlotPublisher
from services.ledger import batches, schema, slots
from services.ledger.slots import Lease
from services.postgres.connection import Connection, connect
from services.runtime import logs, metrics
from services.runtime.workers import Backoff, Worker

_IDLE_SECONDS = 0.5  # how often the ledger is asked for batches when `wake` was not called
_LINGER_SECONDS = 0.25  # between transactions: each costs the broker a marker in every partition it touched
_ADOPT_SECONDS = 3.0
_RETRY_SECONDS = 1.0
_BACKOFF = Backoff(_RETRY_SECONDS, _RETRY_SECONDS)  # a lease that is not renewed soon is lost
_MOST_GIVEN_UP = 3  # slots for new batches: if all of these got stuck, another one would get stuck, too
_log = logs.get("slot_owner")


class SlotOwner:
    """Two threads: one keeps the leases, one publishes, so that a slow Kafka never costs the lease.

    `slot` is where new batches belong; it changes when the lease was lost, or the slot cannot be published any more.
    `ensure_topics` raises NeedsOperator when no slot at all can be published; then nothing is accepted either.
    """

    def __init__(
        self,
        url: str,
        owner: UUID,
        ensure_topics: Callable[[], None],
        open_publisher: Callable[[Lease], SlotPublisher],
    ) -> None:
        self._url = url
        self._owner = owner
        self._ensure_topics = ensure_topics
        self._open_publisher = open_publisher
        self._lock = threading.Lock()  # of the attributes that both threads change
        self._held: set[Lease] = set()
        self._own: Lease | None = None  # of the slot for new batches
        self._used: set[Lease] = set()  # those of the slots that new batches were put under
        self._stuck: dict[Lease, str] = {}  # held, but only an operator can say how to go on
        self._renewed_at = time.monotonic()
        self._wrong_topics = ""
        self._topics_checked = False
        self._stop = threading.Event()  # publish what is left, and adopt no slot any more
        self._abort = threading.Event()  # leave the rest to the next owner
        self._lease_connection: Connection | None = None  # used by the thread that keeps the leases
        # The attributes from here on are used by the thread that publishes.
        self._publish_connection: Connection | None = None
        self._publishers: dict[Lease, SlotPublisher] = {}
        self._next_adoption = 0.0
        self._reported: set[int] = set()  # the slots whose gauges may not be 0
        self._leases = Worker("leases", self._keep_leases, close=self._disconnect_leases, backoff=_BACKOFF)
        self._publisher = Worker("publisher", self._publish, close=self._drain, backoff=_BACKOFF)

    def start(self) -> None:
        """Lease a slot as soon as PostgreSQL replies, and publish it. Does not block."""
        self._leases.start()
        self._publisher.start()

    def slot(self) -> int:
        """Return the slot that new batches belong to. Raises StoreDown while there is none."""
        if reason := self._refusal():
            raise StoreDown("kafka", f"nothing is accepted, because nothing can be published: {reason}")
        if self._own is None:
            raise StoreDown("postgres", f"no slot is leased yet: {self._lease_failure()}")
        return self._own.slot

    def health(self) -> str | None:
        """Return why this process cannot accept rows; None if it can."""
        if reason := self._refusal():
            return reason
        if self._own is None:
            return f"starting: no slot is leased yet: {self._lease_failure()}"
        if (seconds := time.monotonic() - self._renewed_at) > slots.LEASE_SECONDS:
            return f"the lease was not renewed for {seconds:.0f} s: {self._lease_failure()}"
        return None

    def degraded(self) -> str | None:
        """Return why accepted rows are not published, although this process accepts rows; None if they are."""
        stuck = [f"slot {lease.slot}: {reason}" for lease, reason in self._stuck.copy().items()]
        if failure := self._publisher.health():
            stuck.append(f"publishing stopped: {failure}")
        return "; ".join(stuck) or None

    def wake(self) -> None:
        """Publish soon, because a batch was committed. Called after each commit, does not block."""
        self._publisher.wake()

    def stop(self, drain_seconds: float) -> None:
        """Publish what is left, for at most `drain_seconds`; the next owner of the slot publishes the rest. Blocks."""
        self._stop.set()
        self._publisher.stop(drain_seconds)
        self._abort.set()
        for worker in (self._publisher, self._leases):
            worker.stop(slots.RENEW_SECONDS + 1)

    def _lease_failure(self) -> str:
        return self._leases.health() or "PostgreSQL has not replied yet"

    def _refusal(self) -> str:
        if self._wrong_topics:
            return self._wrong_topics
        given_up = sorted(lease.slot for lease in self._stuck.copy() if lease in self._used)
        if len(given_up) >= _MOST_GIVEN_UP:
            return f"slots {given_up} cannot be published: see `logpipe slots`, then run `logpipe slots resolve`"
        return ""

    def _connected(self, connection: Connection | None) -> Connection:
        if connection is None or connection.closed:
            return connect(self._url, name=slots.session_name(self._owner))
        return connection

    def _keep_leases(self) -> float:
        """The turn of the thread that keeps the leases."""
        try:
            connection = self._lease_connection = self._connected(self._lease_connection)
            if self._own is None:
                schema.require(connection)
            self._renew(connection)
            self._lease_if_needed(connection)
        except BaseException:
            self._disconnect_leases()
            raise
        return slots.RENEW_SECONDS if self._own else _RETRY_SECONDS

    def _disconnect_leases(self) -> None:
        _close(self._lease_connection)
        self._lease_connection = None

    def _renew(self, connection: Connection) -> None:
        with self._lock:
            self._held = slots.renew(connection, self._owner)
            self._used &= self._held
            for lease in self._stuck.keys() - self._held:  # resolved, or taken over
                del self._stuck[lease]
        self._renewed_at = time.monotonic()

    def _lease_if_needed(self, connection: Connection) -> None:
        """Lease a slot for new batches unless there is one that can be published. Raises StoreDown."""
        with self._lock:
            if self._refusal() or (self._own in self._held and self._own not in self._stuck):
                return
            if self._own is not None:
                _log.warning("slot for new batches lost or stuck, leasing another one", slot=self._own.slot)
            self._own = slots.acquire(connection, self._owner)
            self._held.add(self._own)
            self._used.add(self._own)
        _log.info("slot leased", slot=self._own.slot, epoch=self._own.epoch)

    def _publish(self) -> float:
        """The turn of the thread that publishes."""
        if not self._publish_once():
            return _IDLE_SECONDS
        self._stop.wait(_LINGER_SECONDS)
        return 0.0

    def _publish_once(self) -> int:
        """Publish the batches that wait in each held slot; return their number. Raises why a slot was not published."""
        try:
            connection = self._publish_connection = self._connected(self._publish_connection)
            self._report_unpublished(connection)
            self._check_topics()
            if time.monotonic() >= self._next_adoption and not self._stop.is_set():
                self._next_adoption = time.monotonic() + _ADOPT_SECONDS
                self._adopt(connection)
            return self._round(connection)
        except BaseException as error:
            self._topics_checked = False
            if not (isinstance(error, StoreDown) and error.store == "kafka"):
                _close(self._publish_connection)
                self._publish_connection = None
            raise

    def _drain(self) -> None:
        """The end of the thread that publishes: publish what is left, until a failure, and release the slots."""
        try:
            while not self._abort.is_set() and self._publish_once():
                pass
        except LogpipeError as error:
            _log.warning("last batches not published, the next owner publishes them", reason=str(error))
        finally:
            for publisher in self._publishers.values():
                publisher.close()
            self._release_all()

    def _check_topics(self) -> None:
        """At the start and after a failure. Raises NeedsOperator when no slot can be published, and StoreDown."""
        if self._topics_checked:
            return
        try:
            self._ensure_topics()
        except NeedsOperator as error:
            self._wrong_topics = str(error)
            raise
        self._wrong_topics = ""
        self._topics_checked = True

    def _round(self, connection: Connection) -> int:
        """Publish one Kafka transaction for each held slot; return the number of batches.

        A slot that fails does not keep the others waiting: one of them may hold the open transaction it waits for.
        """
        held, worked, publishers = self._held - self._stuck.keys(), 0, self._publishers
        failed: LogpipeError | None = None
        for lease in publishers.keys() - held:
            publishers.pop(lease).close()
        for lease in sorted(held, key=lambda lease: lease.slot):
            if lease not in publishers:
                publishers[lease] = self._open_publisher(lease)
            try:
                published = publishers[lease].step(connection)
            except NeedsOperator as error:
                self._give_up(connection, lease, error)
                continue
            except (Fenced, StoreDown) as error:
                if isinstance(error, Fenced):
                    self._renew(connection)
                failed = error
                continue
            worked += published
            if not published and lease != self._own:
                _log.info("adopted slot published to its end", slot=lease.slot)
                publishers.pop(lease).close()
                self._release(connection, lease)
        if failed is not None:
            raise failed
        return worked

    def _report_unpublished(self, connection: Connection) -> None:
        """Set the gauge of unpublished batches, also while Kafka is unreachable. A slot that was lost has 0."""
        held = {lease.slot for lease in self._held.copy()}
        for slot in held | self._reported:
            waiting = batches.count_unpublished(connection, slot) if slot in held else 0
            metrics.gauge(metric_names.UNPUBLISHED_BATCHES, str(slot)).set(waiting)
        self._reported = held

    def _give_up(self, connection: Connection, lease: Lease, error: NeedsOperator) -> None:
        """Keep the lease, so that no other process tries the same; new batches go on under another slot."""
        _log.error("slot cannot be published, an operator is needed", slot=lease.slot, reason=str(error))
        with self._lock:
            self._stuck[lease] = str(error)
        slots.give_up(connection, lease, str(error))
        self._lease_if_needed(connection)

    def _adopt(self, connection: Connection) -> None:
        with self._lock:
            lease = slots.adopt_orphan(connection, self._owner)
            if lease is None:
                return
            self._held.add(lease)
        _log.warning("slot of a dead owner adopted", slot=lease.slot, epoch=lease.epoch)
        metrics.counter(metric_names.SLOTS_ADOPTED).inc()

    def _release(self, connection: Connection, lease: Lease) -> None:
        with self._lock:
            self._held.discard(lease)
            slots.release(connection, lease)

    def _release_all(self) -> None:
        connection = self._publish_connection
        try:
            connection = self._connected(connection)
            for lease in set(self._held):
                self._release(connection, lease)
        except StoreDown as error:
            _log.warning("leases not released, they expire", reason=str(error))
        _close(connection)


def _close(connection: Connection | None) -> None:
    if connection is not None:
        connection.close()
