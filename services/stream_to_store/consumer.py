"""The loop that takes one dataset from its topic into one store, exactly once.

Per block: the intended range goes to sink_progress, by compare-and-set; the block goes to the store under a token
made of that range; the range is marked done. Whoever takes over a partition finds the range that was under way and
writes it again, the same, under the same token. A store whose own transactions say how far it has come needs none of
that: it takes the blocks of all partitions in one (`ports.OwnProgressWriter`).
"""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from threading import Event
from typing import Protocol

from services.core import metric_names
from services.core.dataset import Dataset
from services.core.envelope import is_newer
from services.core.errors import Backpressure, Fenced, LogpipeError, NeedsOperator, StoreDown
from services.core.ledger import Range, SinkPosition
from services.core.ports import Block, GroupReader, Message, OwnProgressWriter, StoreWriter
from services.runtime import logs, metrics
from services.stream_to_store import refused
from services.stream_to_store.lane import Lane, Limits
from services.streams.dead_letters import DeadLetters

POLL_SECONDS = 0.1
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 10.0  # seconds

_log = logs.get("stream_to_store")


class Progress(Protocol):
    """What the ledger's SinkProgress does, and OwnProgress for a store that needs none."""

    def load(self, partitions: Sequence[int]) -> dict[int, SinkPosition]: ...
    def begin(self, partition: int, expected_next: int, intent: Range) -> None: ...
    def finish(self, partition: int, intent: Range) -> None: ...
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
        self._together = writer.write_together if isinstance(writer, OwnProgressWriter) else None
        self._dead_letters = dead_letters
        self._limits = limits
        self._prepare = prepare
        self._open_progress = open_progress
        self._clock = clock
        self._log = _log.bind(store=store, dataset=dataset.name)
        self._progress: Progress | None = None
        self._topic_id = ""
        self._given: Sequence[int] = ()
        self._lanes: Mapping[int, Lane] | None = None  # None: to be loaded
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
        lanes = self._lanes or {}
        lag = sum(bounds[p][1] - lane.next_offset for p, lane in lanes.items() if p in bounds)
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
            self._lanes = None
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
            self._given, self._lanes, self._reading = given, None, False
        elif self._lanes is not None and self._reading:
            self._take_in(self._lanes, messages)

    def _take_in(self, lanes: Mapping[int, Lane], messages: Sequence[Message]) -> None:
        now = self._clock()
        for message in messages:
            if is_newer(message.headers, self.dataset):
                raise NeedsOperator(
                    f"{self.dataset.topic} has rows with columns that this process does not know: it is older than the"
                    " ingest API, update it; nothing was left out"
                )
            lanes[message.partition].add(message, now)
        for partition, offset in self._reader.reached().items():
            lanes[partition].reach(offset, now)

    def _write(self) -> None:
        if self._progress is None:
            self._prepare()
            self._writer.prepare(self.dataset)
            self._topic_id = self._reader.topic_id()
            self._progress = self._open_progress(self._topic_id)
        if self._lanes is None:
            positions = self._progress.load(self._given) if self._given else {}
            self._lanes = {p: Lane(position, self._limits) for p, position in positions.items()}
        while due := self._due(self._lanes.values()):
            for lanes in self._grouped(due):
                self._store(self._progress, lanes)
        if not self._reading and self._lanes:
            self._reader.assign({p: lane.reached for p, lane in self._lanes.items()})
            self._reading = True

    def _due(self, lanes: Collection[Lane]) -> list[Lane]:
        """What to write now; where one transaction takes all, whatever can be written goes with what must be."""
        due = [lane for lane in lanes if lane.due(self._clock())]
        return [lane for lane in lanes if lane.complete()] if due and self._together else due

    def _grouped(self, lanes: list[Lane]) -> list[list[Lane]]:
        return [lanes] if self._together else [[lane] for lane in lanes]

    def _store(self, progress: Progress, lanes: Sequence[Lane]) -> None:
        pieces = [lane.take() for lane in lanes]
        for piece in pieces:
            progress.begin(piece.partition, piece.range.first, piece.range)
        blocks = [(piece, piece.block(self.dataset, self._topic_id)) for piece in pieces]
        with metrics.histogram(metric_names.SINK_WRITE_SECONDS, *self._labels).time():
            rows = refused.write(self._together or self._one_by_one, blocks, self._dead_letters)
        for lane, piece in zip(lanes, pieces, strict=True):
            progress.finish(piece.partition, piece.range)
            lane.finish()
        metrics.counter(metric_names.SINK_ROWS, *self._labels).inc(rows)
        freshness = metrics.histogram(metric_names.FRESHNESS_SECONDS, *self._labels)
        for _, created_at in {(e.batch_id, e.created_at) for piece in pieces for e in piece.good}:
            freshness.observe(max(0.0, time.time() - created_at / 1e6))

    def _one_by_one(self, blocks: Sequence[Block]) -> None:
        for block in blocks:
            self._writer.write(block)

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
            held = (self._lanes or {}).values()
            while self._progress and (rest := [lane for lane in held if lane.complete()]):
                for lanes in self._grouped(rest):
                    self._store(self._progress, lanes)
        except (Backpressure, Fenced, StoreDown) as error:
            self._log.warning("what is held is left to be read again", reason=str(error))

    def _close(self) -> None:
        self._reader.close()
        self._dead_letters.close()
        if self._progress:
            self._progress.close()
