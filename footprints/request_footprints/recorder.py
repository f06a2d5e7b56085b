"""The queue of notes between the event loop, which must not wait, and the thread that sends them to Kafka."""

import atexit
import threading
from collections import deque
from contextlib import suppress
from dataclasses import replace

from request_footprints import counting
from request_footprints.counting import Counts
from request_footprints.footprint import Note
from request_footprints.sender import OpenProducer, Sender
from request_footprints.settings import Settings

INTERVAL = 0.1  # seconds between two turns of the thread, which is not woken for each request


class Recorder:
    """A bounded queue, and the thread that empties it.

    The event loop calls `record`, which neither blocks nor raises. The first note starts the thread, so that it runs in
    the process that serves requests and not in one that was forked from. A note after `close` starts it again.
    """

    def __init__(self, settings: Settings, open_producer: OpenProducer) -> None:
        self.service = settings.service
        self._flush_seconds = settings.flush_seconds
        self._most = settings.queue
        self._notes: deque[Note] = deque()
        self._queue_full = 0
        self._sender = Sender(settings, open_producer, self._notes)
        self._starting = threading.Lock()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        counting.register(self)

    def record(self, note: Note) -> None:
        if len(self._notes) >= self._most:
            self._queue_full += 1
        else:
            self._notes.append(note)
        if self._thread is None:
            self.start()

    def start(self) -> None:
        """Start the thread, unless it runs. If the system allows no further thread, the next note tries again."""
        with self._starting, suppress(RuntimeError):
            if self._thread is None:
                self._stopping.clear()
                thread = threading.Thread(target=self._run, name="request-footprints", daemon=True)
                thread.start()
                self._thread = thread
                atexit.register(self.close)  # an app without a lifespan is not told of the shutdown

    def close(self) -> None:
        """Deliver what waits, and end the thread. Blocks for `flush_seconds` and two seconds more, at most.

        A thread that has not ended by then ends with the process.
        """
        with self._starting:
            if self._thread is None:
                return
            self._stopping.set()
            self._thread.join(self._flush_seconds + 2.0)
            if not self._thread.is_alive():
                self._thread = None
                atexit.unregister(self.close)

    def counts(self) -> Counts:
        """May be called by any thread. Does not block. What the thread did is as of its last turn."""
        sent = self._sender.counts
        return replace(sent, queue_full=self._queue_full, waiting=sent.waiting + len(self._notes))

    def _run(self) -> None:
        while not self._stopping.wait(INTERVAL):
            self._sender.turn(self._queue_full)
        self._sender.finish(self._queue_full, self._flush_seconds)
