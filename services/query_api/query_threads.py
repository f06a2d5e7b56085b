"""The threads in which the queries of one engine run (or reports, or queries of the ledger).

A request waits for its query on the event loop, so it occupies no thread that another request needs. An engine that
hangs occupies its own threads only.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from threading import BoundedSemaphore
from typing import TypeVar

from services.core.errors import QueryTimeout, StoreBusy, StoreDown
from services.core.stopping import Stop
from services.runtime.threads import Threads

THREADS = 8
"""The number of queries of one engine that run at the same time. The reader of an engine may run fewer."""

MOST_QUERIES = 64
"""The number of queries of one engine that run or wait for a thread. A further query is refused."""

Result = TypeVar("Result")


class QueryThreads:
    """The threads of one engine. `store`: its name in errors."""

    def __init__(self, store: str, threads: int = THREADS) -> None:
        self._store = store
        self._threads = Threads(threads, store)
        self._stopping = Threads(1, f"{store}-stop")  # a request to end a query may hang, too
        self._vacancies = BoundedSemaphore(MOST_QUERIES)

    async def run(self, work: Callable[[Stop], Result], seconds: float, grace: float = 0.0) -> Result:
        """Run `work` in one of the threads, and wait at most `seconds` + `grace` for its result.

        `work` is told to stop when the time is over, and when the caller is cancelled. Raises what `work` raises;
        StoreBusy beyond MOST_QUERIES; QueryTimeout when `work` never got a thread; StoreDown when `work` hangs.
        """
        stop = Stop()
        future = self._submit(partial(work, stop))
        waiting = asyncio.wrap_future(future)
        try:
            await asyncio.wait([waiting], timeout=seconds + grace)
            if waiting.done():
                return waiting.result()
            if future.cancel():
                raise QueryTimeout(self._store, seconds)
            raise StoreDown(self._store, "hangs: the query neither ended nor reported that it takes too long")
        finally:
            if not waiting.done():
                waiting.cancel()
                if not future.cancel():
                    self._stopping.submit(stop.end_query)

    def close(self) -> None:
        for threads in (self._threads, self._stopping):
            threads.close()

    def _submit(self, work: Callable[[], Result]) -> Future[Result]:
        if not self._vacancies.acquire(blocking=False):
            raise StoreBusy(self._store, f"{MOST_QUERIES} queries are running or waiting")
        future = self._threads.submit(work)
        future.add_done_callback(lambda _: self._vacancies.release())
        return future
