"""The leases of one process that accepts rows: the slots it holds, the slot of new batches, and the stuck slots."""

import threading
import time
from collections.abc import Mapping, Set
from dataclasses import dataclass, field, replace
from uuid import UUID

from services.core import metric_names
from services.core.backoff import Backoff
from services.core.errors import StoreDown
from services.ledger import schema, slots
from services.ledger.slots import Lease
from services.postgres.connection import Connection, connect
from services.runtime import logs, metrics
from services.runtime.workers import Worker

_RETRY_SECONDS = 1.0
_BACKOFF = Backoff(_RETRY_SECONDS, _RETRY_SECONDS)  # a lease that is not renewed soon is lost
_MOST_STUCK = 3  # slots for new batches: if so many got stuck, the next one would get stuck, too
_log = logs.get("slot_leases")


@dataclass(frozen=True, slots=True)
class _Leases:
    """`held`: all leases of this process. `for_new_batches`: the lease of the slot that new batches belong to.

    `used`: the held leases whose slots new batches belong to or belonged to before. `stuck`: the held leases whose
    slots cannot be published until `logpipe slots resolve` has run, with the reasons.
    """

    held: frozenset[Lease] = frozenset()
    for_new_batches: Lease | None = None
    used: frozenset[Lease] = frozenset()
    stuck: Mapping[Lease, str] = field(default_factory=dict)


class SlotLeases:
    """Renews the leases in a thread of its own, so that a slow Kafka never costs a lease.

    Any thread may call any method. The methods with a `connection` block and raise StoreDown; the others do not block,
    also while PostgreSQL does not reply: the present leases are one immutable value, which each change replaces.
    """

    def __init__(self, url: str, owner: UUID) -> None:
        self._url = url
        self._owner = owner
        self._lock = threading.Lock()  # held for each change of the leases, in PostgreSQL and here
        self._leases = _Leases()
        self._leases_more = True
        self._refusal = ""
        self._renewed_at = time.monotonic()
        self._connection: Connection | None = None  # used by the worker only
        self._worker = Worker("leases", self._turn, close=self._disconnect, backoff=_BACKOFF)

    def start(self) -> None:
        """Lease a slot for new batches as soon as PostgreSQL replies."""
        self._worker.start()

    def stop_leasing(self) -> None:
        """Lease no slot from now on, because this process is about to release all of them. Renewals go on."""
        self._leases_more = False

    def stop(self, seconds: float) -> None:
        """Stop the renewals; blocks for at most `seconds`."""
        self._worker.stop(seconds)

    def slot(self) -> int:
        """Return the slot that new batches belong to. Raises StoreDown while there is none."""
        if reason := self._cannot_publish():
            raise StoreDown("kafka", f"nothing is accepted, because nothing can be published: {reason}")
        if (lease := self._leases.for_new_batches) is None:
            raise StoreDown("postgres", f"no slot is leased yet: {self._failure()}")
        return lease.slot

    def health(self) -> str | None:
        """Return why no row can be accepted; None if rows can be accepted."""
        if reason := self._cannot_publish():
            return reason
        if self._leases.for_new_batches is None:
            return f"starting: no slot is leased yet: {self._failure()}"
        if (seconds := time.monotonic() - self._renewed_at) > slots.LEASE_SECONDS:
            return f"the lease was not renewed for {seconds:.0f} s: {self._failure()}"
        return None

    def held(self) -> Set[Lease]:
        return self._leases.held

    def stuck(self) -> Mapping[Lease, str]:
        """Return the held leases of slots that cannot be published, and the reasons."""
        return self._leases.stuck

    def publishable(self) -> Set[Lease]:
        """Return the held leases of slots that are not stuck."""
        leases = self._leases
        return {lease for lease in leases.held if lease not in leases.stuck}

    def is_for_new_batches(self, lease: Lease) -> bool:
        return lease == self._leases.for_new_batches

    def refuse(self, reason: str) -> None:
        """Accept no rows, because no slot at all can be published; '' ends the refusal."""
        self._refusal = reason

    def connected(self, connection: Connection | None) -> Connection:
        """Return `connection` if it is open, else a new one, whose session is ended if this owner's leases lapse."""
        if connection is None or connection.closed:
            return connect(self._url, name=slots.session_name(self._owner))
        return connection

    def renew(self, connection: Connection) -> None:
        """Renew all leases. A lease that another process or `logpipe slots resolve` has taken over is dropped.

        The marks of stuck slots are written again, in case PostgreSQL did not get one: without the mark, no operator
        could resolve the slot.
        """
        with self._lock:
            held = frozenset(slots.renew(connection, self._owner))
            stuck = {lease: reason for lease, reason in self._leases.stuck.items() if lease in held}
            self._leases = replace(self._leases, held=held, used=self._leases.used & held, stuck=stuck)
            for lease, reason in stuck.items():
                slots.mark_stuck(connection, lease, reason)
        self._renewed_at = time.monotonic()

    def adopt(self, connection: Connection) -> None:
        """Lease a slot whose owner died and left unpublished batches, if there is one."""
        with self._lock:
            if not self._leases_more or (lease := slots.adopt_orphan(connection, self._owner)) is None:
                return
            self._leases = replace(self._leases, held=self._leases.held | {lease})
        _log.warning("slot of a dead owner adopted", slot=lease.slot, epoch=lease.epoch)
        metrics.counter(metric_names.SLOTS_ADOPTED).inc()

    def mark_stuck(self, connection: Connection, lease: Lease, reason: str) -> None:
        """Keep the lease of a slot that cannot be published, so that no other process tries to publish the slot.

        New batches go on under another slot.
        """
        _log.error("slot cannot be published, an operator is needed", slot=lease.slot, reason=reason)
        with self._lock:
            self._leases = replace(self._leases, stuck={**self._leases.stuck, lease: reason})
        slots.mark_stuck(connection, lease, reason)
        self._lease_if_needed(connection)

    def release(self, connection: Connection, lease: Lease) -> None:
        with self._lock:
            self._release(connection, lease)

    def release_all(self, connection: Connection) -> None:
        with self._lock:
            for lease in self._leases.held:
                self._release(connection, lease)

    def _release(self, connection: Connection, lease: Lease) -> None:
        self._leases = replace(self._leases, held=self._leases.held - {lease})
        slots.release(connection, lease)

    def _failure(self) -> str:
        return self._worker.health() or "PostgreSQL has not replied yet"

    def _cannot_publish(self) -> str:
        """Return why no new batch can be published, '' if one can."""
        leases = self._leases
        stuck = sorted(lease.slot for lease in leases.stuck if lease in leases.used)
        if not self._refusal and len(stuck) >= _MOST_STUCK:
            return f"slots {stuck} cannot be published: see `logpipe slots`, then run `logpipe slots resolve`"
        return self._refusal

    def _turn(self) -> float:
        try:
            connection = self._connection = self.connected(self._connection)
            if self._leases.for_new_batches is None:
                schema.require(connection)
            self.renew(connection)
            self._lease_if_needed(connection)
        except BaseException:
            self._disconnect()
            raise
        return slots.RENEW_SECONDS if self._leases.for_new_batches else _RETRY_SECONDS

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _lease_if_needed(self, connection: Connection) -> None:
        """Lease a slot for new batches unless there is one that can be published."""
        with self._lock:
            former = self._leases.for_new_batches
            if not self._leases_more or self._cannot_publish() or former in self.publishable():
                return
            if former is not None:
                _log.warning("slot for new batches lost or stuck, leasing another one", slot=former.slot)
            lease = slots.acquire(connection, self._owner)
            leases = self._leases
            self._leases = replace(
                leases, held=leases.held | {lease}, for_new_batches=lease, used=leases.used | {lease}
            )
        _log.info("slot leased", slot=lease.slot, epoch=lease.epoch)
