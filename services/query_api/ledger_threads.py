"""Reads the ledger for routes, with connections and threads of its own."""

from collections.abc import Callable
from typing import TypeVar

from fastapi import Request

from services.core.ports import DEFAULT_QUERY_SECONDS
from services.core.stopping import Stop
from services.postgres import pool
from services.postgres.connection import NAME as POSTGRES
from services.postgres.connection import Connection
from services.query_api.disconnection import while_connected
from services.query_api.query_threads import QueryThreads

Result = TypeVar("Result")


class LedgerThreads:
    """Some threads, with one connection to the ledger for each."""

    def __init__(self, url: str, threads: int) -> None:
        self._ledger = pool.Pool(url, max_connections=threads)
        self._threads = QueryThreads(POSTGRES, threads)

    async def read(self, request: Request, work: Callable[[Connection], Result]) -> Result:
        """Run `work` in one of the threads. Its statement is cancelled when the client disconnects, or after 30 s."""

        def connected(stop: Stop) -> Result:
            with self._ledger.connection() as connection, stop.calling(connection.cancel_safe):
                return work(connection)

        return await while_connected(request, self._threads.run(connected, DEFAULT_QUERY_SECONDS))

    def close(self) -> None:
        """Blocks until the connections are closed."""
        self._threads.close()
        self._ledger.close()
