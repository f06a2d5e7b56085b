"""The background threads of a process: a thread that repeats a task is a `Worker`. Pools of threads run single calls.

A worker calls one function, its turn, again and again until the process stops. The turn returns the pause until the
next call. A turn that raises is logged and called again after a back-off; `health` says why it failed.
"""

import os
import signal
import threading
import time
from collections.abc import Callable

from services.core.backoff import Backoff
from services.core.errors import LogpipeError
from services.runtime import logs

_BACKOFF = Backoff(1.0, 10.0)
_log = logs.get("workers")


Turn = Callable[[], float | None]
"""One turn of a worker's work. It may block. It should return within the deadline at which the process stops.

It returns the seconds until the next turn, or None when there is nothing left to do: then the thread ends. It raises
LogpipeError when the work failed and is to be tried again.
"""


class Worker:
    """One thread, named `name`.

    `close` is called once, in the thread, after the last turn. `delay` is the pause before the first turn, in seconds.
    With `exits_on_bug`, an error other than LogpipeError ends the process, because the state in memory may be wrong and
    the supervisor starts the process again; without it, such an error is logged with its traceback and the turn is
    called again. All methods may be called by any thread.
    """

    def __init__(
        self,
        name: str,
        turn: Turn,
        *,
        close: Callable[[], None] | None = None,
        backoff: Backoff = _BACKOFF,
        delay: float = 0.0,
        exits_on_bug: bool = False,
    ) -> None:
        self._turn = turn
        self._close = close
        self._backoff = backoff
        self._delay = delay
        self._exits_on_bug = exits_on_bug
        self._log = _log.bind(worker=name)
        self._failure: str | None = None
        self._stopping = threading.Event()
        self._awake = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """End the pause, or skip the next one, because there is something to do. The back-off is not cut short."""
        self._awake.set()

    def request_stop(self) -> None:
        """Let the thread end after the present turn. Does not block."""
        self._stopping.set()
        self._awake.set()

    def stop(self, seconds: float | None) -> None:
        """Request the stop, and wait for the end of the thread for at most `seconds`, without limit if None.

        A thread that has not ended by then is abandoned: it ends with the process.
        """
        self.request_stop()
        self._thread.join(seconds)

    def health(self) -> str | None:
        """Return why the last turn failed; None if it succeeded, and before the end of the first turn."""
        return self._failure

    def _run(self) -> None:
        try:
            self._take_turns()
        except Exception:  # noqa: BLE001 - a thread must not end unnoticed
            self._log.exception("worker failed, ending the process")
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            self._close_quietly()

    def _take_turns(self) -> None:
        failures = 0
        self._rest(self._delay)
        while not self._stopping.is_set():
            try:
                pause = self._turn()
                failures, self._failure = 0, None
                if pause is None:
                    return
                self._rest(pause)
            except Exception as error:
                expected = isinstance(error, LogpipeError)
                if self._exits_on_bug and not expected:
                    raise
                failures += 1
                pause = self._backoff.pause(failures)
                self._failure = str(error) if expected else f"unexpected error: {error!r}"
                traceback = None if expected else error
                self._log.warning("turn failed, retrying", reason=str(error), seconds=pause, exc_info=traceback)
                self._stopping.wait(pause)

    def _rest(self, seconds: float) -> None:
        if seconds > 0 and self._awake.wait(seconds):
            self._awake.clear()

    def _close_quietly(self) -> None:
        try:
            if self._close is not None:
                self._close()
        except Exception:  # noqa: BLE001 - the thread ends in any case
            self._log.exception("worker was not closed in order")


class Workers:
    """The workers of one process, started and stopped together."""

    def __init__(self, *workers: Worker) -> None:
        self._workers = workers

    def start(self) -> None:
        for worker in self._workers:
            worker.start()

    def stop(self, seconds: float) -> None:
        """Request the stop of all workers, and wait for their ends for at most `seconds` in all."""
        deadline = time.monotonic() + seconds
        for worker in self._workers:
            worker.request_stop()
        for worker in self._workers:
            worker.stop(max(0.0, deadline - time.monotonic()))
