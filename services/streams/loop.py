"""The loop that reads a topic as a member of a consumer group. stream_to_store, kafka_source and alerting run it.

The loop owns the reader of the group. It polls, follows rebalances, and backs off after a failure. A `Handler`
processes the messages. The loop's states:

STARTING  The handler is being prepared. The loop polls already, so that this process stays a member of the group.
UNLOADED  The positions of the assigned partitions are not loaded yet, or no partition is assigned.
READING   The loop reads messages and passes them to the handler. After each poll, it calls `flush`.
PAUSED    After a failure, the handler still holds its messages. The loop reads nothing until `flush` has succeeded, so
          that the messages in memory stay bounded.
STOPPED   An operator is needed. The loop does nothing any more.

The changes of state:

STARTING -> UNLOADED           `prepare` has succeeded
UNLOADED -> READING            `load` has returned the offsets to read from
READING  -> PAUSED             a failure after which the handler keeps its messages (AfterFailure.KEEP)
PAUSED   -> READING            `flush` has succeeded
READING, PAUSED -> UNLOADED    a rebalance, `flush` has returned False, or a failure with AfterFailure.RELOAD
any state -> STOPPED           a failure with AfterFailure.STOP

Any other failure in STARTING or UNLOADED does not change the state.

After each failure in a row, the loop pauses for longer. It polls meanwhile, because a member that does not poll loses
its partitions. The handler drops the messages of a partition that was revoked or lost without a write, and the next
owner reads them again.
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
    """The handler still holds its messages: flush again, then read on."""

    RELOAD = auto()
    """Drop the messages, load the positions, and read again from there."""

    STOP = auto()
    """Raise the error, and do nothing any more."""


class Handler(Protocol):
    """Processes the messages of the assigned partitions. Called by the loop's thread only.

    `prepare`, `load` and `flush` may block. They raise LogpipeError when they fail; `after_failure` then says how to
    continue. After Backpressure, the loop pauses for `retry_after` at least.
    """

    def prepare(self) -> None:
        """Get ready before the first `load`. Called until it succeeds."""

    def load(self, assigned: Sequence[int]) -> Mapping[int, int]:
        """Load the positions of the `assigned` partitions (one at least). The handler holds no message now.

        Returns partition -> the offset to read from, also for partitions of other members that have to be read.
        """

    def receive(self, messages: Sequence[Message], read_up_to: Mapping[int, int]) -> None:
        """Hold these messages until they are written. Does no I/O. After an error, `after_failure` must return STOP.

        `read_up_to`: partition -> the offset below which the handler has received every message; the offsets without
        a message were control records.
        """

    def flush(self) -> bool:
        """Write the messages that are due. Called after each `receive`, also when no message came.

        Returns False if the positions must be loaded again before the loop reads on.
        """

    def drop(self) -> None:
        """Forget all messages: the partitions were revoked or lost, or the positions are loaded again."""

    def after_failure(self, error: LogpipeError) -> AfterFailure:
        """Return how to continue after `error`."""

    def close(self) -> None:
        """Try once to write all held messages, and close all connections. Called once, at the end."""


class TopicView(Protocol):
    """The methods of the loop's reader that a handler may call. `core.ports.GroupReader` describes them."""

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
    """Passes the messages of `reader` to `handler`. `name`: the name of the thread, and of the loop in logs.

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
        """Return why no messages are processed; None if all is well, or if this member has no partitions."""
        if failure := self._failure:
            return failure.reason
        if self._state is State.STARTING:
            return "starting"
        return "waiting for the group to assign partitions" if self._assigned is None else None

    def step(self) -> None:
        """Poll once, then prepare, load or flush. Blocks for POLL_SECONDS, and as long as the handler does.

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
        """Let the handler write the messages that it holds, and leave the group. A stopped loop holds none."""
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
            self.handler.receive(messages, self._read_up_to)

    def _advance(self) -> None:
        """Call the one method of the handler that the state requires."""
        if self._state is State.STARTING:
            self.handler.prepare()
            self._state = State.UNLOADED
        if self._assigned and self._state is State.UNLOADED:
            self._read_up_to = self.handler.load(self._assigned)
            self._start_reading()
            return  # `_failure` stays until a flush has succeeded
        if self._assigned:
            if not self.handler.flush():
                self._pause_reading()
                self._reload()
            elif self._state is State.PAUSED:
                self._start_reading()
        self._failure = None

    def _start_reading(self) -> None:
        self._reader.assign(self._read_up_to)
        self._state = State.READING

    def _reload(self) -> None:
        self.handler.drop()
        if self._state is not State.STARTING:
            self._state = State.UNLOADED

    def _fail(self, error: LogpipeError) -> None:
        after = self.handler.after_failure(error)
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
