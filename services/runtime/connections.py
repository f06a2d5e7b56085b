"""Bounds the connections of a listener that wait for a request.

uvicorn closes a connection that stays idle after a reply. It does not close one that never sends a whole request head,
and it has no bound of connections: `limit_concurrency` refuses requests and keeps their connections open.
"""

import asyncio
import resource
from typing import ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from services.core import metric_names
from services.runtime import metrics

HEAD_SECONDS = 10.0
"""How long a connection may wait for the whole head of its next request."""

HEAD_BYTES = 64 << 10
"""How long the head of a request may be."""

MAX_CONNECTIONS = 4096
"""Connections of a listener at once; fewer when the process may open fewer files."""

SPARE_FILES = 256
"""Files that are left for what a process opens itself: stores, Kafka, logs."""


def max_connections() -> int:
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY:
        return MAX_CONNECTIONS
    return min(MAX_CONNECTIONS, max(files - SPARE_FILES, files // 2))


def bounded_protocol(limit: int, head_seconds: float = HEAD_SECONDS) -> type["BoundedProtocol"]:
    """The protocol of one server."""
    return type("Bounded", (BoundedProtocol,), {"limit": limit, "head_seconds": head_seconds, "waiting": {}})


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol, with at most `limit` connections.

    One more takes the place of the connection that has waited longest for a request; while all others have one, it is
    closed itself. A request under way, and the time that its body takes, are not bounded here.
    """

    limit: ClassVar[int]
    head_seconds: ClassVar[float]
    waiting: ClassVar[dict["BoundedProtocol", None]]  # of the server, in the order in which they began to wait

    _timer: asyncio.TimerHandle | None = None
    _head_bytes = 0
    _in_body = False  # also of a request that was answered before its body had come

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait()
        if len(self.connections) > self.limit:
            longest = next(iter(self.waiting))
            longest._end_waiting()
            longest.transport.abort()  # a reply that its client does not read would hold the connection open
            _count_closed("limit")

    def data_received(self, data: bytes) -> None:
        waited = self in self.waiting
        super().data_received(data)
        if waited and self in self.waiting and not self._in_body:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES:
                self.transport.close()
                _count_closed("head_size")

    def on_headers_complete(self) -> None:
        self._end_waiting()
        self._in_body = True
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._in_body = False
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.cycle.response_complete:  # else a pipelined request has begun
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_waiting()
        super().connection_lost(exc)

    def _wait(self) -> None:
        self._end_waiting()
        self.waiting[self] = None
        self._head_bytes = 0
        self._timer = self.loop.call_later(self.head_seconds, self._give_up)

    def _end_waiting(self) -> None:
        self.waiting.pop(self, None)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self) -> None:
        if not self.transport.is_closing():
            self.transport.close()
            _count_closed("head_timeout")


def _count_closed(reason: str) -> None:
    metrics.counter(metric_names.CONNECTIONS_CLOSED, reason).inc()
