"""The work of the background thread: it makes messages of notes, and hands them to the producer.

The thread and the event loop share Python's interpreter lock. The thread works in portions: a request that comes while
it makes a portion may wait for the lock, for about a millisecond; between two portions the lock is released. With
smaller portions more requests would wait.
"""

import logging
import time
from collections import deque
from collections.abc import Callable

from request_footprints.counting import Counts
from request_footprints.footprint import Encoder, Note, Selection, path_bound
from request_footprints.producer import Message, Producer, ProducerFailed
from request_footprints.settings import Settings

PORTION = 256  # notes; fewer than one request in 100 may wait, so that the 99th percentile stays
LOG_INTERVAL = 60.0  # seconds between two warnings
REOPEN_INTERVAL = 60.0  # seconds until a producer that could not be opened is tried again
FLUSH_STEP = 0.1  # seconds

OpenProducer = Callable[[Settings], Producer]
"""Raises ProducerFailed. Called by the background thread."""

_log = logging.getLogger("request_footprints")


class Sender:
    """Only the background thread calls the methods. Any thread may read `counts`, which lack the notes in the queue."""

    def __init__(self, settings: Settings, open_producer: OpenProducer, notes: deque[Note]) -> None:
        self.counts = Counts()
        self._settings = settings
        self._open_producer = open_producer
        self._notes = notes
        self._selection = Selection(settings.include, settings.exclude, path_bound(settings.max_link))
        self._encoder = Encoder(settings.service, settings.zone, settings.max_link)
        self._producer: Producer | None = None
        self._reopen_at = 0.0
        self._unsent: list[Message] = []
        self._taken = 0  # messages that the producer took
        self._given_up = 0  # of these
        self._lost = 0  # not taken before the shutdown
        self._excluded = self._failed = 0
        self._trouble: str | None = None  # why messages wait or were dropped; not logged yet
        self._warn_at = 0.0
        self._dropped_then = 0

    def turn(self, queue_full: int) -> None:
        """Send all notes, as far as the producer has space. Never raises."""
        try:
            if producer := self._opened():
                producer.poll()
                self._send(producer)
                self._trouble = producer.trouble() or self._trouble
            else:
                self._failed += self._discarded()
        except ProducerFailed as error:
            self._abandon(error)
        except Exception as error:  # noqa: BLE001 - the thread must not end; the warning has the error
            self._failed += len(self._unsent)
            self._unsent = []
            self._trouble = f"unexpected error: {error!r}"
        self._count()
        self._warn(queue_full)

    def finish(self, queue_full: int, seconds: float) -> None:
        """Deliver what waits, for at most `seconds`. Then give up the rest and close the producer."""
        deadline = time.monotonic() + seconds
        before = self.counts.undelivered
        self.turn(queue_full)
        while self._producer and (self._notes or self._unsent) and time.monotonic() < deadline:
            self._producer.flush(FLUSH_STEP)
            self.turn(queue_full)
        if self._producer:
            self._producer.flush(max(0.0, deadline - time.monotonic()))
            self._producer.close()
        self._lost += self._discarded()
        self._count()
        self._producer = None
        if lost := self.counts.undelivered - before:
            _log.warning(
                "footprints of %s: %d not delivered before the shutdown (%s)",
                self._settings.service,
                lost,
                self._trouble or "no error",
            )

    def _opened(self) -> Producer | None:
        if self._producer is None and time.monotonic() >= self._reopen_at:
            try:
                self._producer = self._open_producer(self._settings)
            except ProducerFailed as error:
                self._trouble = str(error)
                self._reopen_at = time.monotonic() + REOPEN_INTERVAL
        return self._producer

    def _abandon(self, error: ProducerFailed) -> None:
        """Close a producer that cannot go on. The next turn opens another, which sends the notes that wait."""
        if self._producer:
            self._producer.close()
            self._given_up += self._producer.failures()
            self._producer = None
        self._trouble = str(error)

    def _send(self, producer: Producer) -> None:
        while self._unsent or self._notes:
            messages = self._unsent = self._unsent or self._portion()
            self._unsent = producer.send(messages)
            self._taken += len(messages) - len(self._unsent)
            if self._unsent:
                return
            time.sleep(0)  # releases the interpreter lock

    def _portion(self) -> list[Message]:
        messages = []
        for _ in range(min(PORTION, len(self._notes))):
            note = self._notes.popleft()
            try:
                if self._selection.takes(note[2]):
                    messages.append(self._encoder.message(note))
                else:
                    self._excluded += 1
            except Exception as error:  # noqa: BLE001 - one strange request must not cost the others
                self._failed += 1
                self._trouble = f"unexpected error: {error!r}"
        return messages

    def _discarded(self) -> int:
        """Empty the queue, and return how many notes and messages it had."""
        discarded = len(self._unsent)
        self._unsent = []
        while self._notes:  # `clear` would also take a note that comes after the count
            self._notes.popleft()
            discarded += 1
        return discarded

    def _count(self) -> None:
        waiting = 0
        if self._producer:
            self._given_up += self._producer.failures()
            waiting = self._producer.waiting()
        self.counts = Counts(
            delivered=max(self.counts.delivered, self._taken - self._given_up - waiting),
            excluded=self._excluded,
            undelivered=self._given_up + self._lost,
            failed=self._failed,
            waiting=len(self._unsent) + waiting,
        )

    def _warn(self, queue_full: int) -> None:
        """Log what was dropped, or why messages wait, at most once in LOG_INTERVAL."""
        dropped = queue_full + self.counts.dropped
        is_stuck = self._trouble is not None and self.counts.waiting > 0
        if (dropped > self._dropped_then or is_stuck) and time.monotonic() >= self._warn_at:
            _log.warning(
                "footprints of %s: %d dropped since the last warning, %d waiting (%s)",
                self._settings.service,
                dropped - self._dropped_then,
                self.counts.waiting,
                self._trouble or "the queue was full",
            )
            self._warn_at = time.monotonic() + LOG_INTERVAL
            self._dropped_then = dropped
            self._trouble = None
        if dropped == self._dropped_then and not self.counts.waiting:
            self._trouble = None  # a connection that was closed because it was idle, for example
