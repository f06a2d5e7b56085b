"""The threads of a process. One that dies takes the process with it: what is dead must not look alive."""

import os
import signal
import threading
import time
from collections.abc import Callable, Sequence

from services.runtime import logs

_log = logs.get("workers")


class Workers:
    """Each function runs in a thread of its own until the event that it is given is set."""

    def __init__(self, functions: Sequence[Callable[[threading.Event], None]]) -> None:
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(f,), daemon=True) for f in functions]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self, seconds: float) -> None:
        """Let each end what it is about; what is not done after `seconds` is left."""
        self._stop.set()
        deadline = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _run(self, function: Callable[[threading.Event], None]) -> None:
        try:
            function(self._stop)
        except Exception:  # noqa: BLE001 - a thread must not die in silence
            _log.exception("a thread died: ending the process")
            os.kill(os.getpid(), signal.SIGTERM)
