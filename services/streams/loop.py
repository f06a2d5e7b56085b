"""The loop that reads a topic as a member of a consumer group. stream_to_store, kafka_source and alerting run it.

The loop owns the reader of the group. It polls, follows rebalances, and backs off after a failure. A `Handler`
processes the messages. The loop's state is one of these:

    STARTING ── prepared ──▶ UNLOADED ── positions loaded ──▶ READING ◀── flushed ── PAUSED
                                ▲  ▲                           │  │                    ▲
                                │  └──── rebalance, RELOAD ────┘  └─ failure, KEEP ────┘
                                └─────────── rebalance, RELOAD ────────────────────────┘
    any state ── failure, STOP ──▶ STOPPED

STARTING: the handler is being prepared. The loop polls already, so that this process stays a member of the group.
UNLOADED: the positions of the assigned partitions have to be loaded. No partition may be assigned yet.
READING: messages are read and handed to the handler, which is asked after each poll to write what is due.
PAUSED: a write failed, and the handler still holds the messages. Nothing is read until that write has succeeded, so
that the messages in memory stay bounded.
STOPPED: an operator is needed. The loop does nothing any more.

After each failure in a row, the loop pauses for longer, and continues in the state that the handler chooses
(`AfterFailure`). It polls meanwhile, because a member that does not poll loses its partitions. The handler drops the
messages of a partition that was revoked or lost without a write, and the next owner reads them again.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Generic, Protocol, TypeVar

from services.core.backoff import Backoff
from services.core.errors import Backpressure, LogpipeError
from services.core.ports import GroupReader, Message
from services.runtime import logs
from services.runtime.workers import Worker

POLL_SECONDS = 0.1
BACKOFF = Backoff(0.2, 10.0)

_log = logs.get("loop")


class AfterFailure(Enum):
    """How the loop continues after a failure of its handler or its reader."""

    KEEP = auto()
    """The handler still holds the messages that it took: flush again, then read on."""

    RELOAD = auto()
    """Drop the messages, load the positions and read from there again."""

    STOP = auto()
    """Raise the error and do nothing any more."""


class Handler(Protocol):
    """Processes the messages of the assigned partitions. Called by the loop's thread only.

    `prepare`, `load` and `flush` may block. They raise LogpipeError when they fail; `after` then says how to continue.
    Backpressure makes the loop pause for its `retry_after` at least.
    """

    def prepare(self) -> None:
        """Get ready before the first `load`. Called until it succeeds."""

    def load(self, assigned: Sequence[int]) -> Mapping[int, int]:
        """Load the positions of the `assigned` partitions (one at least); nothing is held at this moment.

        Returns partition -> the offset to read from, also for partitions of other members that have to be read.
        """

    def take(self, messages: Sequence[Message], read_up_to: Mapping[int, int]) -> None:
        """Hold these messages. Does no I/O; an error that it raises must stop the loop.

        `read_up_to`: partition -> the offset below which every message has been handed over; the offsets without a
        message were control records.
        """

    def flush(self) -> bool:
        """Write what is due. Called after each `take`, also when no message came.

        Returns whether to read on. If not, the positions are loaded again.
        """

    def drop(self) -> None:
        """Forget all messages: the partitions were revoked or lost, or the positions are loaded again."""

    def after(self, error: LogpipeError) -> AfterFailure:
        """Return how to continue after `error`."""

    def close(self) -> None:
        """Write what is held as far as possible at once, and close all connections. Called once, at the end."""


class TopicView(Protocol):
    """What a handler asks of the loop's reader: `core.ports.GroupReader` has these methods and describes them."""

    def topic_id(self) -> str: ...
    def bounds(self) -> Mapping[int, tuple[int, int]]: ...


class State(Enum):
    """See the description of the module."""

    STARTING = auto()
    UNLOADED = auto()
    READING = auto()
    PAUSED = auto()
    STOPPED = auto()


@dataclass(frozen=True, slots=True)
class _Failure:
    """The last of `count` failures in a row. `until`: the loop's clock at which the next attempt is made."""

    reason: str
    count: int
    until: float


HandlerT = TypeVar("HandlerT", bound=Handler)


class GroupLoop(Generic[HandlerT]):
    """Takes messages from `reader` to `handler`. `name` is the name of the thread, and names the loop in logs.

    `step` and `close` belong to one thread, which `worker` makes; `health` may be called from any thread. `clock`
    returns seconds and never goes back.
    """

    def __init__(
        self, name: str, reader: GroupReader, handler: HandlerT, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.handler = handler
        self._name = name
        self._reader = reader
        self._clock = clock
        self._log = _log.bind(loop=name)
        self._state = State.STARTING
        self._assigned: Sequence[int] | None = None  # None: the group has not assigned anything yet
        self._read_up_to: Mapping[int, int] = {}
        self._failure: _Failure | None = None

    def worker(self) -> Worker:
        """Return the thread that runs this loop, not started yet."""
        return Worker(self._name, self._turn, close=self.close, exits_on_bug=True)

    def health(self) -> str | None:
        """Return why messages are not being taken; None if all is well, or if this member has no partitions."""
        if failure := self._failure:
            return failure.reason
        if self._state is State.STARTING:
            return "starting"
        return "waiting for the group to assign partitions" if self._assigned is None else None

    def step(self) -> None:
        """Poll once, and do what is due. Blocks for POLL_SECONDS, and as long as the handler does.

        Raises the error after which the handler stops the loop; then only `close` may be called.
        """
        try:
            self._poll()
            if self._failure is None or self._clock() >= self._failure.until:
                self._advance()
        except LogpipeError as error:
            self._fail(error)
        except Exception:
            self._stop()  # the state may be wrong, so nothing may be written
            raise

    def close(self) -> None:
        """Let the handler write what it holds, unless the loop has stopped, and leave the group."""
        try:
            self.handler.close()
        finally:
            self._reader.close()

    def _turn(self) -> float | None:
        """One turn of the worker, whose thread ends when the handler stops the loop."""
        try:
            self.step()
        except LogpipeError as error:
            self._log.error("loop stopped, an operator is needed", reason=str(error))
            return None
        return 0.0

    def _poll(self) -> None:
        messages = self._reader.poll(POLL_SECONDS)
        assigned = self._reader.rebalanced()
        if assigned is not None:
            self._log.info("partitions assigned", partitions=list(assigned))
            self._assigned = assigned
            self._reload()
        elif self._state is State.READING:
            self._read_up_to = self._reader.read_up_to()
            self.handler.take(messages, self._read_up_to)

    def _advance(self) -> None:
        if self._state is State.STARTING:
            self.handler.prepare()
            self._state = State.UNLOADED
        if self._assigned and self._state is State.UNLOADED:
            self._read_up_to = self.handler.load(self._assigned)
            self._read()
            return  # a failure counts as overcome only once a flush has succeeded, too
        if self._assigned:
            if not self.handler.flush():
                self._pause_reading()
                self._reload()
            elif self._state is State.PAUSED:
                self._read()
        self._failure = None

    def _read(self) -> None:
        self._reader.assign(self._read_up_to)
        self._state = State.READING

    def _reload(self) -> None:
        self.handler.drop()
        if self._state is not State.STARTING:
            self._state = State.UNLOADED

    def _fail(self, error: LogpipeError) -> None:
        after = self.handler.after(error)
        count = self._failure.count + 1 if self._failure else 1
        pause = BACKOFF.pause(count)
        if isinstance(error, Backpressure):
            pause = max(pause, error.retry_after)
        self._failure = _Failure(str(error), count, self._clock() + pause)
        if after is AfterFailure.STOP:
            self._stop()
            raise error
        self._log.warning("attempt failed, retrying", seconds=pause, reason=str(error), then=after.name.lower())
        self._pause_reading()
        if after is AfterFailure.RELOAD:
            self._reload()

    def _pause_reading(self) -> None:
        if self._state is State.READING:
            self._state = State.PAUSED
            self._reader.assign({})

    def _stop(self) -> None:
        self._state = State.STOPPED
        self.handler.drop()
