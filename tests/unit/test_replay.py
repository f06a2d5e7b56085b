"""A replay brings what is missing, once, and leaves alone what is the stream's; on a ledger and stores in memory."""

import uuid
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, NoReturn

import msgspec
import pytest

from services.core.dataset import Dataset
from services.core.dead_letter import DeadLetter
from services.core.errors import NeedsOperator, RowRejected, StoreDown
from services.core.ids import first_id
from services.core.ledger import Batch, Part
from services.core.ports import Block
from services.core.rows import Row, RowCodec, checksum
from services.datasets.logs import DATASET
from services.ledger.reading import TopicNumbers
from services.ledger.replays import Replay
from services.replay import refill
from services.replay.display import Outcome
from services.replay.refill import Refill, Source, Stream, Target, cut
from services.stores.memory import MemoryStore

CODEC = RowCodec(DATASET)
DAY = 86_400_000_000
NOON = 20_000 * DAY + DAY // 2
ROWS = 10  # of a batch


def rows_of(batch_id: int) -> list[Row]:
    start = first_id(batch_id)
    return [(start + n, NOON, NOON + n, "INFO", "api", "", f"message {n}", "{}") for n in range(ROWS)]


def batch(batch_id: int, *parts: Part, created_at: int = NOON) -> Batch:
    lines = CODEC.encode(rows_of(batch_id))
    return Batch(batch_id, 0, DATASET.name, ROWS, checksum(lines), created_at, parts or (Part(0, batch_id),))


class Store(MemoryStore):
    """Fails as it is told to, and notes the blocks it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.prepare(DATASET)
        self.given: list[Block] = []
        self.failures: list[Exception] = []
        self.refused: dict[int, str] = {}

    def write(self, blocks: Sequence[Block]) -> None:
        self.given += blocks
        for line in blocks[0].lines.splitlines():
            if reason := self.refused.get(msgspec.json.decode(line)["id"]):
                raise RowRejected(None, reason)
        if self.failures:
            raise self.failures.pop(0)
        super().write(blocks)

    def put(self, rows: Sequence[Row]) -> None:
        lines = b"".join(line + b"\n" for line in CODEC.encode(rows))
        super().write([Block(DATASET, str(uuid.uuid4()), 0, 0, 0, 20_000, len(rows), lines)])

    def held(self) -> list[int]:
        return sorted(row[0] for row in super().rows(DATASET, 0, 1 << 30))

    def counts(self, dataset: Dataset, first: int, last: int) -> NoReturn:
        raise AssertionError("a range of ids would be searched for on every day")

    rows = counts


class World:
    """Stands in for the ledger, too. `offsets`: what the stream has loaded."""

    def __init__(self, batches: Sequence[Batch]) -> None:
        self.accepted = {b.batch_id: b for b in batches}
        self.store, self.source = Store(), Store()
        for batch_id in self.accepted:
            self.source.put(rows_of(batch_id))
        self.offsets: dict[int, int] = {0: 100, 1: 100}
        self.floored = 0
        self.lost: set[int] = set()
        self.streamed = 1 << 30
        self.replay = Replay(uuid.uuid4(), 0, max(self.accepted), None)
        self.finished = False
        self.dead_letters: list[DeadLetter] = []
        self.reasons: list[str] = []
        self.pauses: list[float] = []
        self.dead_lettered: dict[int, set[int]] = {}

    def run(self, starts: Mapping[int, int] | None = None) -> Outcome:
        own: Any = self
        return Refill(
            CODEC,
            Source(own, self.source),
            Target(self.store, self.store, own, self.dead_lettered, self.watermark, 2 * ROWS),
            Stream(
                "stream-to-store --store memory",
                TopicNumbers(1, 2),
                self.offsets if starts is None else starts,
                lambda: dict(self.offsets),
            ),
            own,
            self.replay,
            own,
            self.pause,
        ).run()

    def start_over(self) -> None:
        self.replay = Replay(uuid.uuid4(), 0, max(self.accepted), None)
        self.run()

    def pause(self, seconds: float) -> None:
        assert len(self.pauses) < 20, self.reasons[-1]
        self.pauses.append(seconds)

    # the ledger
    def connection(self) -> Any:
        return nullcontext(self)

    def floor(self, connection: Any, dataset: str) -> int:
        return self.floored

    def batches(self, connection: Any, dataset: str, after: int, last: int, limit: int) -> list[Batch]:
        return [b for _, b in sorted(self.accepted.items()) if after < b.batch_id <= last][:limit]

    def lost_batches(self, connection: Any, dataset: str, after: int, last: int, topics: Any, limit: int) -> list[int]:
        return sorted(batch_id for batch_id in self.lost if after < batch_id <= last)[:limit]

    def watermark(self) -> int:
        """Of the stream's batches, all are loaded up to `streamed`."""
        return min(self.streamed, self.replay.next - 1)

    # its replay
    def intend(self, now: Replay, range_last: int) -> Replay:
        assert now == self.replay
        self.replay = replace(now, range_last=range_last)
        return self.replay

    def advance(self, now: Replay, next_batch: int) -> Replay:
        assert now == self.replay
        self.replay = replace(now, next=next_batch, range_last=None)
        return self.replay

    def finish(self, now: Replay) -> None:
        assert now == self.replay
        self.finished = True

    # dead letters, display
    def send(self, dead_letters: Sequence[DeadLetter]) -> None:
        self.dead_letters += dead_letters

    def waiting(self, reason: str) -> None:
        self.reasons.append(reason)

    def done(self, rows: int) -> None:
        pass


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    made = World([batch(n) for n in (1, 2, 4, 5)])
    monkeypatch.setattr(refill, "reading", made)
    monkeypatch.setattr(refill, "floors", made)
    return made


def ids(*batches: int) -> list[int]:
    return [row[0] for batch_id in batches for row in rows_of(batch_id)]


def test_a_wiped_store_gets_everything_once(world: World) -> None:
    outcome = world.run()
    assert world.store.held() == ids(1, 2, 4, 5)
    assert (outcome.written, outcome.found, outcome.streamed) == (4 * ROWS, 0, 0)
    assert [(b.first, b.last, b.rows, b.day) for b in world.store.given] == [(0, 3, 20, 20_000), (4, 5, 20, 20_000)]
    assert world.finished


def test_only_what_is_missing_is_written(world: World) -> None:
    world.store.put([*rows_of(1), *rows_of(2)[:3], *rows_of(5)])
    outcome = world.run()
    assert world.store.held() == ids(1, 2, 4, 5)
    assert (outcome.written, outcome.found) == (ROWS + 7, 2 * ROWS + 3)


def test_what_the_stream_has_still_to_load_is_left_to_it(world: World) -> None:
    world.accepted[4] = batch(4, Part(0, 60), Part(1, 70))
    outcome = world.run(starts={0: 60, 1: 70})
    assert world.store.held() == ids(1, 2, 5)
    assert outcome.streamed == ROWS
    assert world.pauses == []


def test_a_batch_that_is_partly_the_stream_s_is_waited_for(world: World) -> None:
    """What the stream loads of it meanwhile is not written again."""
    world.accepted[4] = batch(4, Part(0, 50), Part(1, 70))
    world.offsets = {0: 60, 1: 70}

    def pause(seconds: float) -> None:
        world.pauses.append(seconds)
        if len(world.pauses) == 3:
            world.store.put(rows_of(4)[:6])
            world.offsets = {0: 60, 1: 71}

    world.pause = pause  # type: ignore[method-assign]
    outcome = world.run()
    assert world.store.held() == ids(1, 2, 4, 5)
    assert outcome.written == 3 * ROWS + 4
    assert len(world.pauses) == 3
    assert "stream-to-store --store memory" in world.reasons[-3]


def test_a_batch_that_is_not_published_is_waited_for(world: World) -> None:
    world.accepted[5] = replace(batch(5), parts=None)

    def pause(seconds: float) -> None:
        world.pauses.append(seconds)
        world.accepted[5] = batch(5, Part(0, 100))

    world.pause = pause  # type: ignore[method-assign]
    assert world.run().streamed == ROWS
    assert world.store.held() == ids(1, 2, 4)
    assert any("not in Kafka yet" in reason for reason in world.reasons)


def test_a_crash_between_write_and_mark_doubles_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    advance = world.advance

    def crash(now: Replay, next_batch: int) -> Replay:
        raise StoreDown("postgres", "unreachable")

    monkeypatch.setattr(world, "advance", crash)
    with pytest.raises(StoreDown):
        world.run()
    assert world.replay.range_last == 3
    assert world.store.held() == ids(1, 2)
    monkeypatch.setattr(world, "advance", advance)
    world.run()
    assert world.store.held() == ids(1, 2, 4, 5)


def test_a_write_nobody_knows_the_end_of_is_repeated_the_same(world: World) -> None:
    world.store.failures = [StoreDown("memory", "no answer")]
    world.run()
    assert world.store.held() == ids(1, 2, 4, 5)
    assert world.store.given[0] == world.store.given[1]
    assert world.reasons[0] == "memory: no answer"


def test_a_store_that_is_wiped_again_is_filled_again(world: World) -> None:
    """Though it remembers the tokens of the first time, and drops what comes under them."""
    world.run()
    world.store.forget_rows(DATASET)
    world.start_over()
    assert world.store.held() == ids(1, 2, 4, 5)


def test_rows_dead_lettered_before_count_as_loaded(world: World) -> None:
    lost = first_id(2) + 4
    world.dead_lettered = {2: {lost}}
    world.store.put([row for row in rows_of(2) if row[0] != lost])
    outcome = world.run()
    assert world.store.held() == [row_id for row_id in ids(1, 2, 4, 5) if row_id != lost]
    assert outcome.written == 3 * ROWS


def test_a_dead_lettered_row_that_is_there_all_the_same_does_not_stand_for_one_that_is_missing(world: World) -> None:
    dead_lettered, lost = first_id(2) + 1, first_id(2) + 4
    world.dead_lettered = {2: {dead_lettered}}
    world.store.put([row for row in rows_of(2) if row[0] != lost])
    world.run()
    assert world.store.held() == ids(1, 2, 4, 5)


def test_a_row_the_store_refuses_goes_to_the_dead_letters_and_its_neighbours_land(world: World) -> None:
    refused = [first_id(1), first_id(2) + 3]
    world.store.refused = {refused[0]: "nor this", refused[1]: "no"}
    outcome = world.run()
    assert world.store.held() == [row_id for row_id in ids(1, 2, 4, 5) if row_id not in refused]
    assert [
        (dead_letter.id, dead_letter.batch_id, dead_letter.line, dead_letter.reason)
        for dead_letter in world.dead_letters
    ] == [
        (first_id(1), 1, 0, "nor this"),
        (first_id(2) + 3, 2, 3, "no"),
    ]
    assert (outcome.dead_lettered, outcome.written) == (2, 4 * ROWS - 2)


def test_batches_of_a_topic_that_is_no_more_are_brought_whatever_their_offsets(world: World) -> None:
    world.lost = {1, 4}
    world.accepted[5] = replace(batch(5), parts=())
    world.lost.add(5)
    outcome = world.run(starts={0: 0, 1: 0})
    assert world.store.held() == ids(1, 4, 5)
    assert outcome.streamed == ROWS


def test_the_replay_ends_when_the_watermark_is_above_the_batches_that_only_the_replay_vouches_for(
    world: World,
) -> None:
    """Batch 2 is the stream's, and batch 4 was published to a topic that is no more."""
    world.lost = {4}
    world.streamed = 1

    def pause(seconds: float) -> None:
        world.pauses.append(seconds)
        assert not world.finished
        if len(world.pauses) == 3:
            world.streamed = 5

    world.pause = pause  # type: ignore[method-assign]
    world.run(starts={0: 0, 1: 0})
    assert len(world.pauses) == 3
    assert "stream-to-store --store memory" in world.reasons[-1]
    assert world.finished


def test_what_retention_has_dropped_is_not_brought(world: World) -> None:
    world.floored = 4
    world.run()
    assert world.store.held() == ids(4, 5)


def test_retention_may_drop_a_batch_meanwhile(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.source = Store()
    world.source.put([*rows_of(4), *rows_of(5)])
    floors = iter([0, 4])
    monkeypatch.setattr(world, "floor", lambda connection, dataset: next(floors, 4))
    world.run()
    assert world.store.held() == ids(4, 5)


def test_rows_that_postgres_lacks_are_not_passed_over(world: World) -> None:
    world.source = Store()
    world.source.put(rows_of(1))
    with pytest.raises(NeedsOperator, match="batch 2 of logs has 10 rows in the ledger and 0 in memory"):
        world.run()
    assert not world.finished


def test_a_row_that_reads_differently_than_it_was_accepted_is_not_brought(world: World) -> None:
    """As by a process that does not know a column of it."""
    world.source = Store()
    for batch_id in world.accepted:
        world.source.put([(*row[:-2], "", row[-1]) for row in rows_of(batch_id)])
    with pytest.raises(NeedsOperator, match="batch 1 of logs reads differently"):
        world.run()
    assert world.store.held() == []


def test_large_rows_make_smaller_blocks(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refill, "_BLOCK_BYTES", 1500)  # of one batch
    world.run()
    assert world.store.held() == ids(1, 2, 4, 5)
    assert [block.rows for block in world.store.given] == [ROWS] * 4


def test_a_block_is_of_one_day() -> None:
    midnight = NOON + DAY // 2
    batches = [batch(1), batch(2, created_at=midnight), batch(3, created_at=midnight)]
    assert cut(batches, 2 * ROWS) == batches[:1]
    assert cut(batches[1:], 2 * ROWS) == batches[1:]


def test_a_page_without_gaps_is_passed_over_in_one_step(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that is full is looked at by the page, not by the block."""
    for batch_id in world.accepted:
        world.store.put(rows_of(batch_id))
    looks: list[int] = []
    counts_of = world.store.counts_of

    def noting(dataset: Dataset, batches: Sequence[Batch]) -> Any:
        looks.append(len(batches))
        return counts_of(dataset, batches)

    monkeypatch.setattr(world.store, "counts_of", noting)
    assert world.run().found == 4 * ROWS
    assert looks == [4]


def test_a_pending_range_of_which_the_store_has_lost_days_is_completed_day_by_day(world: World) -> None:
    world.accepted = {1: batch(1), 2: replace(batch(2), created_at=batch(2).created_at + DAY)}
    world.replay = Replay(uuid.uuid4(), 0, 2, 2)
    outcome = world.run()
    assert world.store.held() == ids(1, 2)
    assert (outcome.written, outcome.found) == (2 * ROWS, 0)
    assert {block.rows for block in world.store.given} == {ROWS}
