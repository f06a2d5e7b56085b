"""The port between the background thread and Kafka. `kafka` implements it, and `memory` is the fake for tests.

One suite, tests/contract/test_footprint_producers.py, holds both to this port.
"""

from collections.abc import Sequence
from typing import Protocol

Message = tuple[bytes, bytes]
"""Key and value."""


class ProducerFailed(Exception):
    """The producer cannot be opened, because of its configuration, or cannot go on. The text says what is wrong."""


class Producer(Protocol):
    """Delivers messages to one topic. Only the background thread calls it, so it need not be thread-safe.

    Each message that `send` takes is delivered once, or counted by `failures`. A message may be both: Kafka stored it,
    and did not acknowledge it in time. Opening a producer raises ProducerFailed, and does not wait for Kafka. `send`
    and `poll` raise ProducerFailed if no later message can be delivered: the caller closes this producer, and opens
    another. No method raises because Kafka is unreachable.
    """

    def send(self, messages: Sequence[Message]) -> list[Message]:
        """Take messages, and return those for which the buffer has no space now. Does not block.

        If this raises ProducerFailed, no message was taken.
        """

    def poll(self) -> None:
        """Handle what Kafka reported since the last call. Does not block."""

    def failures(self) -> int:
        """Return how many messages were given up since the last call: too large, or not delivered in time."""

    def waiting(self) -> int:
        """Return how many messages were taken, and are neither delivered nor given up yet."""

    def trouble(self) -> str | None:
        """Return the last error since the last call, or None. An unreachable Kafka is one."""

    def flush(self, seconds: float) -> None:
        """Block until no message waits, for at most `seconds`."""

    def close(self) -> None:
        """Give up the messages that wait. Only `failures` and `trouble` may be called afterwards."""
