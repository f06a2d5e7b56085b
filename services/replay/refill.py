"""Copies the rows of one dataset that a store lacks from PostgreSQL, exactly once, while the sink goes on loading.

The sink and a replay never write the same row. The replay waits for a batch of which the sink has still to load a part.
Of a batch that the sink has loaded, it searches the store for the rows, and writes the missing ones. A range of batches
is recorded in the ledger first; then its missing rows are written under a token that is made of the range; then the
range is marked as done. After a failure or a crash, the next attempt finds the pending range, and completes it
(`BaseWriter.complete`).
"""

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass

from services.core import kafka_value
from services.core.dead_letter import NO_PLACE, DeadLetter
from services.core.errors import Backpressure, NeedsOperator, RowRejected, StoreDown
from services.core.ids import batch_of, first_id
from services.core.instants import DAY
from services.core.ledger import Batch
from services.core.ports import BaseWriter, Block, StoreReader
from services.core.rows import RowCodec
from services.ledger import floors, reading
from services.ledger.reading import TopicNumbers
from services.ledger.replays import Replay, ReplayProgress
from services.postgres.connection import Connection
from services.postgres.pool import Pool
from services.replay import gaps
from services.replay.display import Display, Outcome
from services.streams.dead_letters import DeadLetterSender

_BLOCK_BYTES = 64 << 20
_PAGE_BATCHES = 2_000
_POLL_SECONDS, _RETRY_SECONDS = 0.2, 2.0


@dataclass(frozen=True, slots=True)
class Source:
    """The accepted batches: `ledger` has their records, `reader` reads their rows."""

    ledger: Pool
    reader: StoreReader


@dataclass(frozen=True, slots=True)
class Target:
    """The store that lacks rows. `dead_lettered`: batch -> ids of the rows that were dead-lettered before.

    `watermark` computes the store's present watermark, and saves it in the ledger. `block_rows`: about how many rows
    one write has.
    """

    reader: StoreReader
    writer: BaseWriter
    dead_letter_sender: DeadLetterSender
    dead_lettered: gaps.Gaps
    watermark: Callable[[], int]
    block_rows: int


@dataclass(frozen=True, slots=True)
class Stream:
    """What the sink loads. `name`: the process that is the sink, in texts for people.

    `starts`: partition -> the offset from which on the sink loads the topic `topics.current`. `offsets` reads the
    offsets up to which it has loaded by now, and raises NeedsOperator if they count in another table or topic.
    """

    name: str
    topics: TopicNumbers
    starts: Mapping[int, int]
    offsets: Callable[[], Mapping[int, int]]


class Refill:
    """The replay of one dataset. `progress` records how far `replay` has come."""

    def __init__(
        self,
        codec: RowCodec,
        source: Source,
        target: Target,
        stream: Stream,
        progress: ReplayProgress,
        replay: Replay,
        display: Display,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._codec = codec
        self._name = codec.dataset.name
        self._source = source
        self._target = target
        self._stream = stream
        self._progress = progress
        self._replay = replay
        self._dead_lettered: defaultdict[int, set[int]] = defaultdict(
            set, {batch: set(ids) for batch, ids in target.dead_lettered.items()}
        )
        self._display = display
        self._pause = pause
        self._most = _PAGE_BATCHES  # that are written at once
        self._outcome = Outcome()

    def run(self) -> Outcome:
        """Run to the end. Raises StoreDown of the ledger or Kafka, Fenced or NeedsOperator: run again."""
        confirmed = False
        while not confirmed:
            try:
                if self._replay.next <= self._replay.last:
                    self._step()
                else:
                    confirmed = self._confirm()
            except Backpressure as error:
                self._wait(str(error), error.retry_after)
            except StoreDown as error:
                if error.store != self._target.reader.name:
                    raise
                self._wait(str(error), _RETRY_SECONDS)
        self._progress.finish(self._replay)
        return self._outcome

    def _step(self) -> None:
        """Bring what is missing of the next page of batches, up to the first that has to be waited for."""
        replay, pending = self._replay, self._replay.range_last is not None
        offsets = self._stream.offsets()
        with self._source.ledger.connection() as connection:
            floor = floors.floor(connection, self._name)
            stop = replay.last if replay.range_last is None else replay.range_last
            page = reading.batches(connection, self._name, max(replay.next, floor) - 1, stop, _PAGE_BATCHES)
            lost = set(self._lost(connection, page[0].batch_id - 1, page[-1].batch_id, len(page))) if page else set()
        own = [batch for batch in page if batch.batch_id in lost or not self._is_streamed(batch)]
        for batch in own:
            if batch.batch_id not in lost and (reason := self._unloaded(batch, offsets)):
                if batch is page[0] or pending:
                    self._wait(reason, _POLL_SECONDS)
                    return
                stop = batch.batch_id - 1
                break
        own = [batch for batch in own if batch.batch_id <= stop]
        found = gaps.find(self._target.reader, self._codec, own, self._dead_lettered)
        rest = [batch for batch in page if batch.batch_id <= stop]
        end = stop if pending or len(page) < _PAGE_BATCHES else rest[-1].batch_id
        self._bring_all(rest, {batch.batch_id for batch in own}, found, end, floor)

    def _bring_all(self, rest: Sequence[Batch], own: Set[int], found: gaps.Gaps, end: int, floor: int) -> None:
        """Write the gaps of `rest`, block by block; afterwards all batches up to `end` are done with."""
        pending = self._replay.range_last is not None
        while self._replay.next <= end:
            missing = [batch for batch in rest if batch.batch_id in found]
            block = cut(missing, self._target.block_rows)[: None if pending else self._most]
            following = missing[len(block)].batch_id if len(block) < len(missing) else end + 1
            if pending and following <= end:  # the store has lost rows since the range was begun
                written = self._bring(block, found, end, floor)
                if written is None:
                    return
                self._outcome.written += written
                self._outcome.found -= written  # the step that ends the range counts these as found
                return
            done = [batch for batch in rest if batch.batch_id < following]
            written = self._bring(block, found, following - 1, floor) if block else 0
            if written is None:
                return
            self._replay = self._progress.advance(self._replay, following)
            total = sum(batch.rows for batch in done)
            own_rows = sum(batch.rows for batch in done if batch.batch_id in own)
            self._outcome.written += written
            self._outcome.found += own_rows - written
            self._outcome.streamed += total - own_rows
            self._most = _PAGE_BATCHES
            self._display.waiting("")
            self._display.done(total)
            rest = rest[len(done) :]

    def _confirm(self) -> bool:
        """Return whether the watermark is above all batches that only this replay vouches for.

        The stream's offsets do not count in the topics that those batches were published to.
        """
        mark = self._target.watermark()
        with self._source.ledger.connection() as connection:
            lost = self._lost(connection, mark, self._replay.last, 1)
        if lost:
            self._wait(f"{self._stream.name} has to load batches after {mark}", _POLL_SECONDS)
        return not lost

    def _lost(self, connection: Connection, after: int, last: int, limit: int) -> list[int]:
        return reading.lost_batches(connection, self._name, after, last, self._stream.topics, limit)

    def _bring(self, batches: Sequence[Batch], found: gaps.Gaps, end: int, floor: int) -> int | None:
        """Write the missing rows of `batches`, and return how many; None if the step has to be repeated."""
        known = self._replay.range_last is not None
        limit = None if known or len(batches) == 1 else _BLOCK_BYTES
        try:
            missing = gaps.read(self._source.reader, self._codec, batches, found, limit)
        except NeedsOperator:
            with self._source.ledger.connection() as connection:
                if floors.floor(connection, self._name) > floor:  # retention has just dropped them
                    return None
            raise
        if missing is None:
            self._most = len(batches) // 2
            return None
        if not known:
            self._replay = self._progress.intend(self._replay, end)
        day = batches[0].created_at // DAY
        lines = kafka_value.join(missing.lines)
        block = Block(self._codec.dataset, *self._range(end), day, len(missing.lines), lines)
        return len(missing.lines) - self._write(block, missing, known)

    def _range(self, end: int) -> tuple[str, int, int, int]:
        """Stands in for a topic, a partition and its offsets."""
        return f"replay:{self._replay.id}", 0, self._replay.next, end

    def _write(self, block: Block, missing: gaps.Missing, known: bool) -> int:
        """Return the number of rows that the store rejects. `known`: the range was begun before."""
        rejections: Sequence[RowRejected]
        try:
            if known:
                rejections = self._target.writer.complete([block])
            else:
                self._target.writer.write([block])
                return 0
        except RowRejected:
            rejections = self._target.writer.complete([block])
        places = [rejection.row or 0 for rejection in rejections]
        self._target.dead_letter_sender.send(
            [
                _dead_letter(missing.ids[place], rejection.reason, missing.lines[place])
                for place, rejection in zip(places, rejections, strict=True)
            ]
        )
        for place in places:
            self._dead_lettered[batch_of(missing.ids[place])].add(missing.ids[place])
        self._outcome.dead_lettered += len(places)
        return len(places)

    def _is_streamed(self, batch: Batch) -> bool:
        """Return whether the stream loads all parts of the batch."""
        return (
            batch.parts is not None
            and batch.parts != ()
            and all(p.offset >= self._stream.starts.get(p.partition, 0) for p in batch.parts)
        )

    def _unloaded(self, batch: Batch, offsets: Mapping[int, int]) -> str:
        if batch.parts is None:
            return f"batch {batch.batch_id} is not in Kafka yet: an ingest API has to publish it"
        if any(part.offset >= offsets.get(part.partition, 0) for part in batch.parts):
            return f"a part of batch {batch.batch_id} is for {self._stream.name} to load"
        return ""

    def _wait(self, reason: str, seconds: float) -> None:
        self._display.waiting(reason)
        self._pause(seconds)


def cut(batches: Sequence[Batch], block_rows: int) -> Sequence[Batch]:
    """Return the first of `batches`, for one block: of one day, and no more than are needed for `block_rows`."""
    rows = 0
    for index, batch in enumerate(batches):
        if rows >= block_rows or batch.created_at // DAY != batches[0].created_at // DAY:
            return batches[:index]
        rows += batch.rows
    return batches


def _dead_letter(row_id: int, reason: str, line: bytes) -> DeadLetter:
    batch_id = batch_of(row_id)
    return DeadLetter(NO_PLACE, NO_PLACE, row_id - first_id(batch_id), batch_id, row_id, 1, reason, line)
