"""Gives memory back to the system after large requests.

Blocks that are still used keep the freed memory around them from going back: the garbage of requests that were answered
meanwhile, which is collected seldom here, and the C library's own bookkeeping.
"""

import asyncio
import ctypes
import gc
from collections.abc import Callable
from concurrent.futures import Executor

from services.ingest_api.bodies import InFlight

TRIM_BYTES = 8 << 20
"""A request that took this much is large enough."""

_FIRST_SECONDS = 5.0  # after the last such request
_LAST_SECONDS = 80.0  # after twice the pause each time: by then the rows of the request are published, too


class Trimmer:
    """Belongs to one event loop; the work is done by `executor`.

    It waits while there is much in flight: the garbage collection visits the rows of all small bodies, and nothing else
    runs in the process meanwhile.
    """

    def __init__(self, executor: Executor, in_flight: InFlight) -> None:
        self._executor = executor
        self._in_flight = in_flight
        self._trim: Callable[[int], int] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)
        self._timer: asyncio.TimerHandle | None = None

    def request_ended(self, size: int) -> None:
        if size < TRIM_BYTES:
            return
        self._wait(_FIRST_SECONDS)

    def _wait(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(seconds, self._run, seconds)

    def _run(self, waited: float) -> None:
        if self._in_flight.bytes >= TRIM_BYTES:
            self._wait(waited)
            return
        self._executor.submit(self._give_back)
        if waited < _LAST_SECONDS:
            self._wait(2 * waited)

    def _give_back(self) -> None:
        gc.collect()
        if self._trim is not None:
            self._trim(0)
