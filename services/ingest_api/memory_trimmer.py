"""Returns memory to the operating system after large requests.

Freed memory cannot be returned while a few bytes near it are still in use. Two things keep such bytes in use: the
garbage of small requests that were answered meanwhile, which Python seldom collects in this process, and the C
library, which keeps freed memory for itself.
"""

import asyncio
import ctypes
import gc
from collections.abc import Callable
from concurrent.futures import Executor

from services.runtime.request_bodies import InFlight

TRIM_BYTES = 8 << 20
"""After a request that had this many bytes in flight, memory is returned."""

_FIRST_SECONDS = 5.0  # pause after the last large request
_LAST_SECONDS = 80.0  # each pause is twice the one before; after this one, the rows of the request are published, too


class Trimmer:
    """Belongs to one event loop; the work is done by `executor`.

    The trimmer waits while many bytes are in flight, because the garbage collection visits the rows of all small
    bodies, and the process does nothing else meanwhile.
    """

    def __init__(self, executor: Executor, in_flight: InFlight) -> None:
        self._executor = executor
        self._in_flight = in_flight
        self._trim: Callable[[int], int] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)
        self._timer: asyncio.TimerHandle | None = None

    def request_ended(self, size: int) -> None:
        """Trim soon if the request was large. `size`: the most bytes that it had in flight."""
        if size < TRIM_BYTES:
            return
        self._schedule(_FIRST_SECONDS)

    def _schedule(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(seconds, self._trim_if_idle, seconds)

    def _trim_if_idle(self, waited: float) -> None:
        if self._in_flight.bytes >= TRIM_BYTES:
            self._schedule(waited)
            return
        self._executor.submit(self._give_back)
        if waited < _LAST_SECONDS:
            self._schedule(2 * waited)

    def _give_back(self) -> None:
        gc.collect()
        if self._trim is not None:
            self._trim(0)
