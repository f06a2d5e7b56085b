"""Gives memory back to the system after large requests.

Blocks that are still used keep the freed memory around them from going back: the garbage of requests that were answered
meanwhile, which is collected seldom here, and the C library's own bookkeeping.
"""

import asyncio
import ctypes
import gc
from collections.abc import Callable
from concurrent.futures import Executor

TRIM_BYTES = 8 << 20
"""A request that took this much is large enough."""

_TRIM_SECONDS = 5.0  # after such a request: by then its rows are freed, and other requests share the work


class Trimmer:
    """Belongs to one event loop; the work is done by `executor`."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._trim: Callable[[int], int] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)
        self._timer: asyncio.TimerHandle | None = None
        self._again = False

    def request_ended(self, size: int) -> None:
        if size < TRIM_BYTES:
            return
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_TRIM_SECONDS, self._run)
        else:
            self._again = True  # the rows of this request may still be there when the timer ends

    def _run(self) -> None:
        self._timer = None
        self._executor.submit(self._give_back)
        if self._again:
            self._again = False
            self.request_ended(TRIM_BYTES)

    def _give_back(self) -> None:
        gc.collect()
        if self._trim is not None:
            self._trim(0)
