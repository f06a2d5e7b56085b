"""Reads request bodies, with limits of size, of time and of the bytes in flight.

The time limit of a body grows with each byte that arrives, so a slow client can send a large body. But if a new body
would be refused because too many bytes are in flight, the reading of the slowest body is ended.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from starlette.requests import Request

from services.core import metric_names
from services.core.errors import Backpressure, RequestTimeout, TooLarge
from services.runtime import metrics

BODY_SECONDS = 30
"""A body may take this long, and a second more for each BODY_BYTES_PER_SECOND that have arrived.

A pause between two chunks must be shorter than BODY_SECONDS.
"""
BODY_BYTES_PER_SECOND = 1024
GRACE_SECONDS = 5.0
"""A body that began to arrive less than this many seconds ago gives way neither to other bodies nor to a connection."""


class Reservation:
    """The number of bytes that one request has reserved, as bytes in flight. `peak` is the highest number so far.

    `started`: when the body began to arrive, in monotonic seconds. `deadline`: the time limit of the body while it
    arrives, else None.
    """

    def __init__(self, in_flight: "InFlight") -> None:
        self._in_flight = in_flight
        self.bytes = 0
        self.peak = 0
        self.started = 0.0
        self.deadline: asyncio.Timeout | None = None
        self.is_ended = False

    @property
    def is_arriving(self) -> bool:
        """Whether the body is being read, and neither too late nor ended."""
        return self.deadline is not None and not self.deadline.expired() and not self.is_ended

    def end(self) -> None:
        """Stop reading the body, which is still arriving: `read` raises Backpressure."""
        if self.deadline and self.is_arriving:
            self.is_ended = True
            self.deadline.reschedule(asyncio.get_running_loop().time())

    def add(self, count: int) -> None:
        """Add `count` bytes. Raises Backpressure if the process then has too many bytes in flight."""
        self._in_flight.change(self, count)
        self.bytes += count
        self.peak = max(self.peak, self.bytes)

    def resize(self, total: int) -> None:
        """Set the number of bytes to `total`. Raises Backpressure as `add` does."""
        self.add(total - self.bytes)


class InFlight:
    """Counts the bytes that requests have in flight, and refuses requests above a limit. Used by one event loop."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.bytes = 0
        self._reservations = set[Reservation]()
        self.request_ended: Callable[[int], None] = lambda peak: None
        """Called at the end of each request, with the most bytes that it had in flight."""
        self._gauge = metrics.gauge(metric_names.BYTES_IN_FLIGHT)

    def refuse_if_full(self, count: int) -> None:
        """Raise Backpressure if `count` more bytes are too many, and stop reading the slowest body of the others.

        The only request in flight is never refused.
        """
        if self.bytes and self.bytes + count > self._limit:
            self._end_slowest()
            raise Backpressure(f"{self.bytes} bytes are being worked on; at most {self._limit} at once")

    def change(self, reservation: Reservation, count: int) -> None:
        """Add `count` bytes, which may be negative, to the bytes in flight. Raises Backpressure as `refuse_if_full`."""
        if count > 0 and self.bytes > reservation.bytes:
            self.refuse_if_full(count)
        self.bytes += count
        self._gauge.set(self.bytes)

    def _end_slowest(self) -> None:
        """Stop reading the body with the lowest rate of bytes, so that its bytes are free for the next request."""
        now = time.monotonic()
        arriving = [reservation for reservation in self._reservations if reservation.is_arriving and reservation.bytes]
        slow = [reservation for reservation in arriving if now - reservation.started > GRACE_SECONDS]
        if slow:
            min(slow, key=lambda reservation: reservation.bytes / (now - reservation.started)).end()

    @contextmanager
    def reserve(self) -> Iterator[Reservation]:
        """Yield the reservation of one request, and release its bytes at the end."""
        reservation = Reservation(self)
        self._reservations.add(reservation)
        try:
            yield reservation
        finally:
            self._reservations.discard(reservation)
            reservation.resize(0)
            self.request_ended(reservation.peak)


async def read(request: Request, reservation: Reservation, limit: int) -> bytes:
    """Return the body as it was sent. Raises TooLarge, RequestTimeout or Backpressure."""
    chunks, size = [], 0
    try:
        loop = asyncio.get_running_loop()
        reservation.started = time.monotonic()
        async with asyncio.timeout(BODY_SECONDS) as deadline:
            reservation.deadline = deadline
            async for chunk in request.stream():
                if reservation.is_ended:  # the chunk was there before the time limit took effect, and would undo it
                    raise TimeoutError
                size += len(chunk)
                left = reservation.started + BODY_SECONDS + size / BODY_BYTES_PER_SECOND - time.monotonic()
                deadline.reschedule(loop.time() + min(left, BODY_SECONDS))
                if size > limit:
                    raise TooLarge(f"the body has more than {limit} bytes: send several requests")
                reservation.add(len(chunk))
                chunks.append(chunk)
    except TimeoutError as error:
        if reservation.is_ended:
            raise Backpressure("the body came slowly, and other requests needed its place") from error
        raise RequestTimeout(
            f"{size} bytes of the body arrived in time; at least {BODY_BYTES_PER_SECOND} a second are expected after"
            f" the first {BODY_SECONDS} s, without a pause of {BODY_SECONDS} s"
        ) from error
    finally:
        reservation.deadline = None
    return b"".join(chunks)
