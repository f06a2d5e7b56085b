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

_TRIM_SECONDS = 5.0  # after such a request: by then its rows are gone, and others share the work


class Trimmer:
    """Belongs to one event loop; the work is done by `executor`."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._trim: Callable[[int], int] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)
        self._due = False

    def request_ended(self, size: int) -> None:
        if size >= TRIM_BYTES and not self._due:
            self._due = True
            asyncio.get_running_loop().call_later(_TRIM_SECONDS, self._run)

    def _run(self) -> None:
        self._due = False
        self._executor.submit(self._give_back)

    def _give_back(self) -> None:
        gc.collect()
        if self._trim is not None:
            self._trim(0)
