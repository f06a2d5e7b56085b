"""The consumers of one process: a thread each, and one that reports their lag."""

import os
import signal
import threading
import time
from collections.abc import Sequence

from services.core.errors import LogpipeError
from services.runtime import logs
from services.stream_to_store.consumer import Consumer

LAG_SECONDS = 5.0

_log = logs.get("stream_to_store")


class Workers:
    def __init__(self, consumers: Sequence[Consumer]) -> None:
        self._stop = threading.Event()
        self._consumers = consumers
        self._threads = [threading.Thread(target=self._consume, args=(c,), daemon=True) for c in consumers]
        self._threads.append(threading.Thread(target=self._report_lag, daemon=True))

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self, seconds: float) -> None:
        """Let each write what it holds; what is not done after `seconds` is read again by the next process."""
        self._stop.set()
        deadline = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _consume(self, consumer: Consumer) -> None:
        try:
            consumer.run(self._stop)
        except Exception:  # noqa: BLE001 - a thread must not die in silence
            _log.exception("a consumer died: ending the process", dataset=consumer.dataset.name)
            os.kill(os.getpid(), signal.SIGTERM)

    def _report_lag(self) -> None:
        while not self._stop.wait(LAG_SECONDS):
            for consumer in self._consumers:
                try:
                    consumer.report_lag()
                except LogpipeError as error:
                    _log.warning("lag unknown", dataset=consumer.dataset.name, reason=str(error))
