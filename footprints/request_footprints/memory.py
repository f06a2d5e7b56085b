"""A producer that keeps its messages in memory: the fake for tests of this package, and of apps that use it."""

import time
from collections import deque
from collections.abc import Callable, Sequence

from request_footprints.producer import Message, ProducerFailed
from request_footprints.settings import Settings


class MemoryProducer:
    """Producer. `is_reachable` may be changed at any time: while it is False, messages wait, and fail in the end.

    A reason in `fatal` ends the producer: it delivers nothing any more.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        is_reachable: bool = True,
        max_bytes: int = 1_000_000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.is_reachable = is_reachable
        self.fatal: str | None = None
        self.delivered: list[Message] = []
        self._failed = 0
        self._most = settings.queue
        self._delivery_seconds = settings.delivery_seconds
        self._max_bytes = max_bytes
        self._clock = clock
        self._waiting: deque[tuple[float, Message]] = deque()
        self._trouble: str | None = None

    def send(self, messages: Sequence[Message]) -> list[Message]:
        if self.fatal is not None:
            raise ProducerFailed(self.fatal)
        left = []
        for message in messages:
            if sum(map(len, message)) > self._max_bytes:
                self._fail("message too large")
            elif len(self._waiting) >= self._most:
                left.append(message)
            else:
                self._waiting.append((self._clock() + self._delivery_seconds, message))
        self.poll()
        return left

    def poll(self) -> None:
        if self.fatal is not None:
            raise ProducerFailed(self.fatal)
        if self._waiting and not self.is_reachable:
            self._trouble = "unreachable"
        while self._waiting and (self.is_reachable or self._waiting[0][0] <= self._clock()):
            _, message = self._waiting.popleft()
            if self.is_reachable:
                self.delivered.append(message)
            else:
                self._fail("message timed out")

    def failures(self) -> int:
        failures, self._failed = self._failed, 0
        return failures

    def waiting(self) -> int:
        return len(self._waiting)

    def trouble(self) -> str | None:
        trouble, self._trouble = self._trouble, None
        return trouble

    def flush(self, seconds: float) -> None:
        end = self._clock() + seconds
        while self._waiting and self._clock() < end:
            self.poll()
            time.sleep(0.001)

    def close(self) -> None:
        self._failed += len(self._waiting)
        self._waiting.clear()

    def _fail(self, reason: str) -> None:
        self._failed += 1
        self._trouble = reason
