"""Publishes the slots that this process holds, and finishes the slots of owners that died."""

import threading
import time
from collections.abc import Callable
from uuid import UUID

from services.acceptance.publisher import SlotPublisher
from services.acceptance.slot_leases import SlotLeases
from services.core import metric_names
from services.core.backoff import Backoff
from services.core.errors import Fenced, LogpipeError, NeedsOperator, StoreDown
from services.ledger import batches, slots
from services.ledger.slots import Lease
from services.postgres.connection import Connection
from services.runtime import logs, metrics
from services.runtime.workers import Worker

_IDLE_SECONDS = 0.5  # pause between two searches of the ledger for batches, unless `wake` ends it
_LINGER_SECONDS = 0.25  # between transactions, each of which costs the broker a marker in every partition it wrote to
_ADOPT_SECONDS = 3.0
_BACKOFF = Backoff(1.0, 1.0)
_log = logs.get("slot_owner")


class SlotOwner:
    """Two threads: one renews the leases (`SlotLeases`), the other one publishes.

    `ensure_topics` raises NeedsOperator when no slot at all can be published; then nothing is accepted either.
    """

    def __init__(
        self,
        url: str,
        owner: UUID,
        ensure_topics: Callable[[], None],
        open_publisher: Callable[[Lease], SlotPublisher],
    ) -> None:
        self._leases = SlotLeases(url, owner)
        self._ensure_topics = ensure_topics
        self._open_publisher = open_publisher
        self._stop = threading.Event()  # publish the waiting batches, and adopt no slot any more
        self._abort = threading.Event()  # leave the batches that are not published yet to the next owner
        # The attributes from here on are used by the thread that publishes.
        self._connection: Connection | None = None
        self._publishers: dict[Lease, SlotPublisher] = {}
        self._topics_checked = False
        self._next_adoption = 0.0
        self._reported: set[int] = set()  # the slots whose gauges may not be 0
        self._worker = Worker("publisher", self._turn, close=self._drain, backoff=_BACKOFF)

    def start(self) -> None:
        """Lease a slot as soon as PostgreSQL replies, and publish it. Does not block."""
        self._leases.start()
        self._worker.start()

    def slot(self) -> int:
        """Return the slot that new batches belong to, which may change at any time. Raises StoreDown."""
        return self._leases.slot()

    def health(self) -> str | None:
        """Return why this process cannot accept rows; None if it can."""
        return self._leases.health()

    def degraded(self) -> str | None:
        """Return why accepted rows are not published, although this process accepts rows; None if they are."""
        reasons = [f"slot {lease.slot}: {reason}" for lease, reason in self._leases.stuck().items()]
        if failure := self._worker.health():
            reasons.append(f"publishing stopped: {failure}")
        return "; ".join(reasons) or None

    def wake(self) -> None:
        """Publish soon, because a batch was committed. Called after each commit, does not block."""
        self._worker.wake()

    def stop(self, drain_seconds: float) -> None:
        """Publish the waiting batches for at most `drain_seconds`. The next owner publishes the others. Blocks."""
        self._leases.stop_leasing()
        self._stop.set()
        self._worker.stop(drain_seconds)
        self._abort.set()
        self._worker.stop(slots.RENEW_SECONDS + 1)
        self._leases.stop(slots.RENEW_SECONDS + 1)

    def _turn(self) -> float:
        if not self._publish_once():
            return _IDLE_SECONDS
        self._stop.wait(_LINGER_SECONDS)
        return 0.0

    def _publish_once(self) -> int:
        """Publish the batches that wait in each held slot, and return their number.

        Raises the error because of which a slot was not published.
        """
        try:
            connection = self._connection = self._leases.connected(self._connection)
            self._report_unpublished(connection)
            self._check_topics()
            if time.monotonic() >= self._next_adoption:
                self._next_adoption = time.monotonic() + _ADOPT_SECONDS
                self._leases.adopt(connection)
            return self._publish_each(connection)
        except BaseException as error:
            self._topics_checked = False
            if not (isinstance(error, StoreDown) and error.store == "kafka"):
                self._disconnect()
            raise

    def _drain(self) -> None:
        """Publish the waiting batches until a failure, and release the slots. Called at the thread's end."""
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
        """Check the topics, again after a failure. Raises StoreDown, and NeedsOperator if no slot can be published."""
        if self._topics_checked:
            return
        try:
            self._ensure_topics()
        except NeedsOperator as error:
            self._leases.refuse(str(error))
            raise
        self._leases.refuse("")
        self._topics_checked = True

    def _publish_each(self, connection: Connection) -> int:
        """Publish one Kafka transaction for each slot that is not stuck, and return the number of batches.

        A slot that fails does not stop the others: it may wait for the end of a transaction that one of them has open.
        """
        leases, published, publishers = self._leases.publishable(), 0, self._publishers
        failed: LogpipeError | None = None
        for lease in publishers.keys() - leases:
            publishers.pop(lease).close()
        for lease in sorted(leases, key=lambda lease: lease.slot):
            if lease not in publishers:
                publishers[lease] = self._open_publisher(lease)
            try:
                count = publishers[lease].step(connection)
            except NeedsOperator as error:
                self._leases.mark_stuck(connection, lease, str(error))
                continue
            except (Fenced, StoreDown) as error:
                if isinstance(error, Fenced):
                    self._leases.renew(connection)
                failed = error
                continue
            published += count
            if not count and not self._leases.is_for_new_batches(lease):
                _log.info("adopted slot published to its end", slot=lease.slot)
                publishers.pop(lease).close()
                self._leases.release(connection, lease)
        if failed is not None:
            raise failed
        return published

    def _report_unpublished(self, connection: Connection) -> None:
        """Set the gauge of unpublished batches, also while Kafka is unreachable. A slot that was lost has 0."""
        held = {lease.slot for lease in self._leases.held()}
        for slot in held | self._reported:
            waiting = batches.count_unpublished(connection, slot) if slot in held else 0
            metrics.gauge(metric_names.UNPUBLISHED_BATCHES, str(slot)).set(waiting)
        self._reported = held

    def _release_all(self) -> None:
        try:
            self._connection = self._leases.connected(self._connection)
            self._leases.release_all(self._connection)
        except StoreDown as error:
            _log.warning("leases not released, they expire", reason=str(error))
        self._disconnect()

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
