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

_IDLE_SECONDS = 0.5  # how often the ledger is looked at when nothing was heard of
_LINGER_SECONDS = 0.25  # between transactions: each costs the broker a marker in every partition it touched
_ADOPT_SECONDS = 3.0
_RETRY_SECONDS = 1.0
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
        self._lock = threading.Lock()  # over what follows: both threads change it
        self._held: set[Lease] = set()
        self._own: Lease | None = None  # of the slot for new batches
        self._used: set[Lease] = set()  # those of the slots that new batches were put under
        self._stuck: dict[Lease, str] = {}  # held, but only an operator can say how to go on
        self._renewed_at = time.monotonic()
        self._lease_failure = "starting"
        self._publish_failure = ""
        self._wrong_topics = ""
        self._topics_checked = False
        self._reported: set[int] = set()  # the slots whose gauges may not be 0
        self._work = threading.Event()
        self._stop = threading.Event()
        self._abort = threading.Event()
        self._leases = threading.Thread(target=self._keep_leases, name="leases", daemon=True)
        self._publisher = threading.Thread(target=self._publish, name="publisher", daemon=True)

    def start(self) -> None:
        """Lease a slot as soon as PostgreSQL is there, and publish it; all in the background."""
        self._leases.start()
        self._publisher.start()

    def slot(self) -> int:
        """The slot new batches belong to. Raises StoreDown while there is none."""
        if reason := self._refusal():
            raise StoreDown("kafka", f"nothing is accepted, because nothing can be published: {reason}")
        if self._own is None:
            raise StoreDown("postgres", f"no slot is leased yet: {self._lease_failure}")
        return self._own.slot

    def problem(self) -> str | None:
        """Why this process cannot accept rows; None when it can."""
        if reason := self._refusal():
            return reason
        if self._own is None:
            return f"starting: no slot is leased yet: {self._lease_failure}"
        if (seconds := time.monotonic() - self._renewed_at) > slots.LEASE_SECONDS:
            return f"the lease was not renewed for {seconds:.0f} s: {self._lease_failure}"
        return None

    def degraded(self) -> str | None:
        """Why accepted rows do not come to Kafka, although this process accepts them; None when they do."""
        stuck = [f"slot {lease.slot}: {reason}" for lease, reason in self._stuck.copy().items()]
        return "; ".join(filter(None, [*stuck, self._publish_failure])) or None

    def wake(self) -> None:
        """There is something to publish."""
        self._work.set()

    def stop(self, drain_seconds: float) -> None:
        """Publish what is left, for at most so long; the next owner of the slot publishes the rest."""
        self._stop.set()
        self._work.set()
        self._publisher.join(drain_seconds)
        self._abort.set()
        for thread in (self._publisher, self._leases):
            thread.join(slots.RENEW_SECONDS + 1)

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

    def _keep_leases(self) -> None:
        connection = None
        while not self._abort.is_set():
            try:
                connection = self._connected(connection)
                if self._own is None:
                    schema.require(connection)
                self._renew(connection)
                self._lease_if_needed(connection)
            except Exception as error:  # noqa: BLE001 - this thread must not end: without it the leases run out
                _log.warning("leases not renewed", error=str(error), kind=type(error).__name__)
                self._lease_failure = str(error)
                _close(connection)
                connection = None
            self._abort.wait(slots.RENEW_SECONDS if self._own else _RETRY_SECONDS)
        _close(connection)

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
                _log.warning("the slot for new batches is lost or stuck; leasing another one", slot=self._own.slot)
            self._own = slots.acquire(connection, self._owner)
            self._held.add(self._own)
            self._used.add(self._own)
        _log.info("leased a slot", slot=self._own.slot, epoch=self._own.epoch)

    def _publish(self) -> None:
        connection: Connection | None = None
        publishers: dict[Lease, SlotPublisher] = {}
        next_adoption = 0.0
        while not self._abort.is_set():
            try:
                connection = self._connected(connection)
                self._report_unpublished(connection)
                self._check_topics()
                if time.monotonic() >= next_adoption and not self._stop.is_set():
                    next_adoption = time.monotonic() + _ADOPT_SECONDS
                    self._adopt(connection)
                worked = self._round(connection, publishers)
                self._publish_failure = ""
                if worked:
                    self._stop.wait(_LINGER_SECONDS)
                elif self._stop.is_set():
                    break
                elif self._work.wait(_IDLE_SECONDS):
                    self._work.clear()
            except Exception as error:  # noqa: BLE001 - this thread must not end: nothing would be published any more
                self._note_failure(error)
                if not (isinstance(error, StoreDown) and error.store == "kafka"):
                    _close(connection)
                    connection = None
                if self._stop.is_set():
                    break
                self._abort.wait(_RETRY_SECONDS)
        for publisher in publishers.values():
            publisher.close()
        self._release_all(connection)

    def _note_failure(self, error: Exception) -> None:
        expected = isinstance(error, LogpipeError)
        _log.warning("publishing stopped; trying again", error=str(error), exc_info=None if expected else error)
        self._publish_failure = f"publishing stopped: {error}"
        self._topics_checked = False

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

    def _round(self, connection: Connection, publishers: dict[Lease, SlotPublisher]) -> int:
        """One Kafka transaction for each slot held; how many batches were published.

        A slot that fails does not keep the others waiting: one of them may hold the open transaction it waits for.
        """
        held, worked = self._held - self._stuck.keys(), 0
        failed: LogpipeError | None = None
        for lease in publishers.keys() - held:
            publishers.pop(lease).close()
        for lease in sorted(held, key=lambda lease: lease.slot):
            publisher = publishers.get(lease) or publishers.setdefault(lease, self._open_publisher(lease))
            try:
                published = publisher.step(connection)
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
                _log.info("an adopted slot is published to its end", slot=lease.slot)
                publishers.pop(lease).close()
                self._release(connection, lease)
        if failed is not None:
            raise failed
        return worked

    def _report_unpublished(self, connection: Connection) -> None:
        """Also while Kafka is away, and of stuck slots; 0 for a slot that this process has held and lost."""
        held = {lease.slot for lease in self._held.copy()}
        for slot in held | self._reported:
            waiting = batches.count_unpublished(connection, slot) if slot in held else 0
            metrics.gauge(metric_names.UNPUBLISHED_BATCHES, str(slot)).set(waiting)
        self._reported = held

    def _give_up(self, connection: Connection, lease: Lease, error: NeedsOperator) -> None:
        """Keep the lease, so that no other process tries the same; new batches go on under another slot."""
        _log.error("a slot cannot be published; an operator must decide", slot=lease.slot, error=str(error))
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
        _log.warning("adopting the slot of an owner that is gone", slot=lease.slot, epoch=lease.epoch)
        metrics.counter(metric_names.SLOTS_ADOPTED).inc()

    def _release(self, connection: Connection, lease: Lease) -> None:
        with self._lock:
            self._held.discard(lease)
            slots.release(connection, lease)

    def _release_all(self, connection: Connection | None) -> None:
        try:
            connection = self._connected(connection)
            for lease in set(self._held):
                self._release(connection, lease)
        except StoreDown as error:
            _log.warning("leases not released; they run out by themselves", error=str(error))
        _close(connection)


def _close(connection: Connection | None) -> None:
    if connection is not None:
        connection.close()
