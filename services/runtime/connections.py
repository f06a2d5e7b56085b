"""Bounds the connections of a listener that wait for a request or for its body.

uvicorn closes a connection that stays idle after a reply. It does not close one that never sends a whole request head,
and it has no bound of connections: `limit_concurrency` refuses requests and keeps their connections open.
"""

import asyncio
import resource
from typing import ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from services.core import metric_names
from services.runtime import metrics
from services.runtime.request_bodies import GRACE_SECONDS

HEAD_SECONDS = 10.0
"""How long a connection may wait for the whole head of its next request."""

HEAD_BYTES = 64 << 10
"""Most bytes of a request head, or of other data that is not a body: trailers, the head of the next request."""

WRITE_SECONDS = 30.0
"""How long a client may take nothing of a reply that waits for it."""

MAX_CONNECTIONS = 4096
"""Connections of a listener at once; fewer when the process may open fewer files."""

SPARE_FILES = 256
"""Files that are left for what a process opens itself: stores, Kafka, logs."""


def max_connections() -> int:
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY:
        return MAX_CONNECTIONS
    return min(MAX_CONNECTIONS, max(files - SPARE_FILES, files // 2))


def bounded_protocol(
    limit: int,
    head_seconds: float = HEAD_SECONDS,
    write_seconds: float = WRITE_SECONDS,
    grace_seconds: float = GRACE_SECONDS,
) -> type["BoundedProtocol"]:
    """Return the protocol of one server."""
    times = {"head_seconds": head_seconds, "write_seconds": write_seconds, "grace_seconds": grace_seconds}
    return type("Bounded", (BoundedProtocol,), {"limit": limit, **times, "waiting": {}, "arriving": set()})


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol, with at most `limit` connections.

    One more takes the place of another, which is of the larger group: the connection that has waited longest for a
    request, or that whose body arrives most slowly. A connection whose request is complete never gives way: if all
    others have such a request, the new connection is closed. The time that a body takes is not bounded here.
    """

    limit: ClassVar[int]
    head_seconds: ClassVar[float]
    write_seconds: ClassVar[float]
    grace_seconds: ClassVar[float]
    waiting: ClassVar[dict["BoundedProtocol", None]]  # connections of the server that wait for a request, longest first
    arriving: ClassVar[set["BoundedProtocol"]]  # connections of the server whose request is not complete

    _timer: asyncio.TimerHandle | None = None
    _write_timer: asyncio.TimerHandle | None = None
    _body_started = 0.0  # by the event loop's clock
    _body_bytes = 0
    _beside_bodies = 0  # bytes that have come since the last of a body, or of a request

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait()
        if len(self.connections) > self.limit:
            one = self._slowest_body() or next(iter(self.waiting))
            one._end_waiting()
            self.arriving.discard(one)
            one.transport.abort()  # a reply that its client does not read would hold the connection open
            _count_closed("limit")

    def data_received(self, data: bytes) -> None:
        self._beside_bodies += len(data)
        super().data_received(data)
        if self._beside_bodies > HEAD_BYTES and not self.transport.is_closing():
            self.transport.close()
            _count_closed("head_size")

    def on_headers_complete(self) -> None:
        self._end_waiting()
        self._beside_bodies = 0
        self._body_started, self._body_bytes = self.loop.time(), 0
        self.arriving.add(self)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._beside_bodies = 0
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._beside_bodies = 0
        self.arriving.discard(self)
        super().on_message_complete()

    def pause_writing(self) -> None:
        """Called when the client reads more slowly than the reply is written."""
        super().pause_writing()
        self._await_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._end_writing()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.cycle.response_complete:  # else a pipelined request has begun
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_waiting()
        self._end_writing()
        self.arriving.discard(self)
        super().connection_lost(exc)

    def _slowest_body(self) -> "BoundedProtocol | None":
        """Return the connection whose body has arrived most slowly; None if more connections wait for a request."""
        if len(self.arriving) < len(self.waiting):
            return None
        latest = self.loop.time() - self.grace_seconds
        # An earlier request of a connection with a pipeline is complete.
        slow = [each for each in self.arriving if each._body_started < latest and not each.pipeline]
        return min(slow, key=BoundedProtocol._rate, default=None)

    def _rate(self) -> float:
        """Bytes of the body in a second."""
        return self._body_bytes / (self.loop.time() - self._body_started)

    def _wait(self) -> None:
        self._end_waiting()
        self.waiting[self] = None
        self._timer = self.loop.call_later(self.head_seconds, self._give_up)

    def _end_waiting(self) -> None:
        self.waiting.pop(self, None)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _await_reading(self) -> None:
        self._end_writing()
        left = self.transport.get_write_buffer_size()
        self._write_timer = self.loop.call_later(self.write_seconds, self._end_unread, left)

    def _end_unread(self, left: int) -> None:
        """`left`: bytes that the client had not taken when the time began."""
        if self.transport.get_write_buffer_size() < left:
            self._await_reading()
            return
        self.transport.abort()
        _count_closed("unread")

    def _end_writing(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _give_up(self) -> None:
        if not self.transport.is_closing():
            self.transport.close()
            _count_closed("head_timeout")


def _count_closed(reason: str) -> None:
    metrics.counter(metric_names.CONNECTIONS_CLOSED, reason).inc()
