"""The loop that takes one dataset from its topic into one store, exactly once.

One insert flushes all assigned partitions: the ranges to write go to sink_progress as pending ranges, by
compare-and-set; the store gets the blocks; the ranges are marked done. After a failed write, and for pending ranges
that a consumer finds when partitions are assigned to it, the outcome of the former attempt is unknown: the store
completes it (`StoreWriter.complete`). A store whose own transactions say how far it has come needs no pending ranges
(`ports.OwnProgressWriter`).
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from threading import Event
from typing import Protocol

from services.core import metric_names
from services.core.dataset import Dataset
from services.core.errors import Backpressure, Fenced, LogpipeError, NeedsOperator, StoreDown
from services.core.kafka_value import is_newer
from services.core.ledger import Range, SinkPosition
from services.core.ports import GroupReader, Message, StoreWriter
from services.runtime import logs, metrics
from services.stream_to_store import refused
from services.stream_to_store.backlog import Backlog, Limits
from services.stream_to_store.lane import Lane
from services.streams.dead_letters import DeadLetters

POLL_SECONDS = 0.1
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 10.0  # seconds

_log = logs.get("stream_to_store")


class Progress(Protocol):
    """What the ledger's SinkProgress does, and OwnProgress for a store that needs none."""

    def load(self, partitions: Sequence[int]) -> Iterable[SinkPosition]: ...
    def check_topic(self, topic_id: str) -> None: ...
    def check_table(self) -> None: ...
    def begin(self, intents: Mapping[int, Range]) -> bool: ...
    def finish(self, intents: Mapping[int, Range]) -> None: ...
    def close(self) -> None: ...


class Consumer:
    """`prepare` and `open_progress` (given the topic's id) are called when the loop starts, until they succeed.

    `run` belongs to one thread; `problem` and `report_lag` may be called from others.
    """

    def __init__(
        self,
        dataset: Dataset,
        store: str,
        reader: GroupReader,
        writer: StoreWriter,
        dead_letters: DeadLetters,
        limits: Limits,
        prepare: Callable[[], None],
        open_progress: Callable[[str], Progress],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.dataset = dataset
        self._labels = (store, dataset.name)
        self._reader = reader
        self._writer = writer
        self._dead_letters = dead_letters
        self._limits = limits
        self._prepare = prepare
        self._open_progress = open_progress
        self._clock = clock
        self._log = _log.bind(store=store, dataset=dataset.name)
        self._progress: Progress | None = None
        self._topic_id = ""
        self._given: Sequence[int] = ()
        self._backlog: Backlog | None = None  # None: its positions are to be loaded
        self._reading = False
        self._pause = FIRST_PAUSE
        self._wait_until = 0.0
        self._problem: str | None = "starting"

    def run(self, stop: Event) -> None:
        """Until `stop`; then what is held is written. Returns early when an operator is needed."""
        try:
            while not stop.is_set():
                self.step()
            self._write_rest()
        except NeedsOperator as error:
            self._problem = str(error)
            self._log.error("stopped: an operator is needed", reason=str(error))
        finally:
            self._close()

    def problem(self) -> str | None:
        return self._problem

    def report_lag(self) -> None:
        """Raises StoreDown."""
        bounds = self._reader.bounds()
        stored = self._backlog.stored() if self._backlog else {}
        lag = sum(bounds[p][1] - next_offset for p, next_offset in stored.items() if p in bounds)
        metrics.gauge(metric_names.SINK_LAG_OFFSETS, *self._labels).set(lag)

    def step(self) -> None:
        """One turn: read what has come, write what is due. Raises NeedsOperator."""
        try:
            self._read()
            if self._clock() < self._wait_until:
                return
            self._write()
            self._problem = None
            self._pause = FIRST_PAUSE
        except Fenced as error:
            self._log.warning("somebody else wrote here: dropping what is held", reason=str(error))
            self._backlog = None
            self._hold(error, self._pause)
        except Backpressure as error:
            self._hold(error, max(error.retry_after, self._pause))
        except StoreDown as error:
            self._hold(error, self._pause)

    def _read(self) -> None:
        messages = self._reader.poll(POLL_SECONDS)
        given = self._reader.rebalanced()
        if given is not None:  # what was read before is read again by whoever has the partition now
            self._log.info("partitions given", partitions=list(given))
            self._given, self._backlog, self._reading = given, None, False
        elif self._backlog and self._reading:
            self._take_in(self._backlog, messages)

    def _take_in(self, backlog: Backlog, messages: Sequence[Message]) -> None:
        now = self._clock()
        for message in messages:
            if is_newer(message, self.dataset):
                raise NeedsOperator(
                    f"{self.dataset.topic} has messages with columns that this process does not know, or of a newer"
                    " version: it is older than the ingest API, update it; nothing was left out"
                )
            backlog.add(message, now)
        backlog.reach(self._reader.reached(), now)

    def _write(self) -> None:
        if self._progress is None:
            self._prepare()
            self._writer.prepare(self.dataset)
            self._topic_id = self._reader.topic_id()
            self._progress = self._open_progress(self._topic_id)
        if self._backlog is None:
            positions = list(self._progress.load(self._given)) if self._given else []
            self._refuse_lost_messages(positions)
            self._backlog = Backlog(positions, self._limits)
        while due := self._backlog.due(self._clock()):
            self._store(self._progress, due)
        if self._backlog.recovered():
            self._backlog, self._reading = None, False
        elif not self._reading and (reached := self._backlog.reached()):
            self._reader.assign(reached)
            self._reading = True

    def _refuse_lost_messages(self, positions: Sequence[SinkPosition]) -> None:
        """Raise NeedsOperator if the topic lacks messages that are to be read next, or was cut before what is stored.

        The next messages of a topic that was cut would get offsets that count as stored.
        """
        bounds = self._reader.bounds()
        for position in positions:
            first, end = bounds.get(position.partition, (0, 0))
            stands = f"{self._labels[0]} has loaded partition {position.partition} up to {position.next_offset}"
            if position.next_offset > end:
                raise NeedsOperator(
                    f"{self.dataset.topic} was cut: {stands}, and the topic ends at {end}: stop this process, and see"
                    " 'A topic that was cut' in docs/operations.md"
                )
            if position.next_offset < first:
                raise NeedsOperator(
                    f"{stands}, and {self.dataset.topic} begins at {first}: messages were deleted before they were"
                    " read: raise the topic's retention, stop this process, and see 'Replay' in docs/operations.md"
                )

    def _store(self, progress: Progress, lanes: Sequence[Lane]) -> None:
        is_first = not any(lane.together for lane in lanes)
        together = [lane.partition for lane in lanes]
        pieces = [lane.take(together) for lane in lanes]
        intents = {piece.partition: piece.range for piece in pieces}
        # The id of a deleted topic never returns: if it is the same now, all these messages were read from that topic.
        progress.check_topic(self._reader.topic_id())
        if not is_first:
            progress.check_table()
        if progress.begin(intents):  # a former owner of the partitions had got as far as this process
            is_first = False
        blocks = [(piece, piece.block(self.dataset, self._topic_id)) for piece in pieces]
        with metrics.histogram(metric_names.SINK_WRITE_SECONDS, *self._labels).time():
            rows = refused.write(self._writer, blocks, self._dead_letters, is_first)
        progress.finish(intents)
        for lane in lanes:
            lane.finish()
        metrics.counter(metric_names.SINK_ROWS, *self._labels).inc(rows)
        freshness = metrics.histogram(metric_names.FRESHNESS_SECONDS, *self._labels)
        for _, created_at in {(e.batch_id, e.created_at) for piece in pieces for e in piece.good}:
            freshness.observe(max(0.0, time.time() - created_at / 1e6))

    def _hold(self, error: LogpipeError, seconds: float) -> None:
        """Keep what is held, read no more of it, and try again after `seconds`; the group is still polled."""
        self._log.warning("waiting", seconds=seconds, reason=str(error))
        self._problem = str(error)
        self._wait_until = self._clock() + seconds
        self._pause = min(self._pause * 2, LONGEST_PAUSE)
        if self._reading:
            self._reader.assign({})
            self._reading = False

    def _write_rest(self) -> None:
        try:
            while self._progress and self._backlog and (rest := self._backlog.pending()):
                self._store(self._progress, rest)
        except (Backpressure, Fenced, StoreDown) as error:
            self._log.warning("what is held is left to be read again", reason=str(error))

    def _close(self) -> None:
        self._reader.close()
        self._dead_letters.close()
        if self._progress:
            self._progress.close()
