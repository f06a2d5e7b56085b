"""Exactly once, whatever breaks between the topic and the store: on the broker and the store in memory."""

import random
import tracemalloc
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from prometheus_client import REGISTRY

from services.core import kafka_value
from services.core.dataset import Column, Dataset
from services.core.dead_letter import MOST_DEAD_LETTERS, DeadLetter
from services.core.errors import Backpressure, Fenced, LogpipeError, NeedsOperator, RowRejected, StoreDown
from services.core.ids import MAX_BATCH_ROWS, first_id
from services.core.instants import DAY
from services.core.ledger import OffsetRange, Part, SinkPosition
from services.core.lines import line_check
from services.core.ports import Block, Message, OutgoingMessage
from services.core.rows import Row, RowCodec, Rows
from services.stores.memory import MemoryStore
from services.stream_to_store import partition_buffer
from services.stream_to_store.backlog import Limits
from services.stream_to_store.consumer import Consumer, Target
from services.streams import dead_letters
from services.streams.dead_letters import TOPIC, DeadLetterSender
from services.streams.loop import GroupLoop
from services.streams.memory import MemoryBroker

NOON = 20_000 * DAY + DAY // 2
PARTITIONS = 3
GROUP = "group"
LIMITS = Limits(rows=40, bytes=1 << 20, seconds=1.0)
DATASET = Dataset(
    "things",
    "thing",
    "things",
    "things",
    key="name",
    time="timestamp",
    columns=(Column("timestamp", "timestamp", required=True), Column("name", "text", required=True)),
    groupings=(),
    orderings=(),
    filters=(),
)


class Crash(BaseException):
    """The process is gone: nothing of it runs any more."""


class Failpoints:
    """Raises what is planned the n-th time that a point is passed: "begin", "begin done", "write", ..."""

    def __init__(self) -> None:
        self.plan: dict[str, list[BaseException | None]] = {}
        self.passed: Counter[str] = Counter()

    def __call__(self, point: str) -> None:
        self.passed[point] += 1
        planned = self.plan.get(point)
        if planned and (error := planned.pop(0)):
            raise error


class Table:
    """What SinkProgress does, without PostgreSQL (tests/integration holds the real one to the same)."""

    def __init__(self, failpoint: Callable[[str], None]) -> None:
        self.positions: dict[int, SinkPosition] = {}
        self.topic_id = ""
        self._failpoint = failpoint

    def load(self, partitions: Sequence[int]) -> list[SinkPosition]:
        self._failpoint("load")
        wanted = {p: self.positions.setdefault(p, SinkPosition(p, 0)) for p in partitions}
        return [self.positions[p] for p in {*wanted, *(p for at in wanted.values() for p in at.group_partitions)}]

    def check_topic(self, topic_id: str) -> None:
        if topic_id != self.topic_id:
            raise NeedsOperator("the topic was created again")

    def check_table(self) -> None:
        self._failpoint("check table")

    def mark_pending(self, pending: Mapping[int, OffsetRange]) -> bool:
        self._failpoint("begin")
        was_pending = any(self.positions[p].pending for p in pending)
        begun = {p: SinkPosition(p, offsets.first, offsets, tuple(pending)) for p, offsets in pending.items()}
        if any(self.positions[p] not in (SinkPosition(p, at.next_offset), at) for p, at in begun.items()):
            raise Fenced("begin")
        self.positions |= begun
        self._failpoint("begin done")
        return was_pending

    def mark_loaded(self, pending: Mapping[int, OffsetRange]) -> None:
        self._failpoint("finish")
        if any(self.positions[p].pending != offsets for p, offsets in pending.items()):
            raise Fenced("finish")
        self.positions |= {p: SinkPosition(p, offsets.last + 1) for p, offsets in pending.items()}
        self._failpoint("finish done")

    def close(self) -> None: ...


class FailingStore(MemoryStore):
    def __init__(self, failpoint: Callable[[str], None]) -> None:
        super().__init__()
        self.blocks: list[Block] = []
        self._failpoint = failpoint

    def write(self, blocks: Sequence[Block]) -> None:
        self._failpoint("write")
        self.blocks += blocks
        super().write(blocks)
        self._failpoint("write done")

    def complete(self, blocks: Sequence[Block]) -> Sequence[RowRejected]:
        self._failpoint("complete")
        return super().complete(blocks)


class World:
    """A topic with rows in it, a store, and the consumers that come and go between them."""

    def __init__(self, limits: Limits = LIMITS) -> None:
        self.limits = limits
        self.now = 0.0
        self.failpoint = Failpoints()
        self.broker = MemoryBroker(max_poll=7)
        self.broker.ensure_topics({DATASET.topic: PARTITIONS, TOPIC: 1})
        self.table = Table(self.failpoint)
        self.store = FailingStore(self.failpoint)
        self.accepted: list[Row] = []
        self._producer = self.broker.producer("publisher")
        self._batch = 0

    def accept(self, rows: int, created_at: int = NOON) -> list[Part]:
        self._batch += 1
        made = [(first_id(self._batch) + n, created_at, n, f"name {n % 17}") for n in range(rows)]
        self.accepted += made
        lines = RowCodec(DATASET).encode(made)
        return self.publish(kafka_value.encode(DATASET, self._batch, created_at, Rows.of(made), lines, PARTITIONS))

    def publish(self, outgoing: Sequence[OutgoingMessage]) -> list[Part]:
        return self._producer.publish(outgoing)

    def recreate_topic(self) -> None:
        self.broker.delete_topic(DATASET.topic)
        self.broker.ensure_topics({DATASET.topic: PARTITIONS})

    def consumer(self) -> GroupLoop[Consumer]:
        reader = self.broker.group_reader(DATASET.topic, GROUP)
        handler = Consumer(
            Target("memory", DATASET, self.store, DeadLetterSender(self._open_dead_letters, "memory", DATASET)),
            reader,
            self.limits,
            lambda: self.failpoint("prepare"),
            self._open_progress,
            lambda: self.now,
        )
        return GroupLoop("things", reader, handler, lambda: self.now)

    def run(self, *consumers: GroupLoop[Consumer], until: Callable[[], bool] | None = None) -> None:
        done = until or self.drained
        for _ in range(500):
            for consumer in consumers:
                consumer.step()
            self.now += 0.3
            if done():
                return
        pytest.fail("not done after 500 turns")

    def drained(self) -> bool:
        ends = {p: end for p, (_, end) in self.broker.partition_reader(DATASET.topic).bounds().items()}
        at = self.table.positions
        return all(p in at and at[p] == SinkPosition(p, end) for p, end in ends.items())

    def dead_letters(self) -> list[dict[str, Any]]:
        reader = self.broker.partition_reader(TOPIC)
        reader.assign({0: 0})
        return [msgspec.json.decode(m.value) for polled in iter(lambda: reader.poll(0), []) for m in polled]

    def stored(self) -> list[Row]:
        return sorted(self.store.rows(DATASET, 0, 1 << 30))

    def check(self) -> None:
        assert self.stored() == sorted(self.accepted)

    def _open_progress(self, topic_id: str) -> Table:
        self.table.topic_id = topic_id
        return self.table

    def _open_dead_letters(self) -> Any:
        producer, failpoint = self.broker.producer("dead-letters"), self.failpoint

        class Failing:
            def publish(self, outgoing: Sequence[OutgoingMessage]) -> list[Part]:
                failpoint("dead letter")
                delivered = producer.publish(outgoing)
                failpoint("dead letter done")
                return delivered

            def close(self) -> None:
                producer.close()

        return Failing()


@pytest.fixture
def world() -> World:
    return World()


def poison(partition: int = 0, *, has_hash: bool = True, **changes: Any) -> OutgoingMessage:
    """A message of another program. With `has_hash` it looks like one of ours, and the store sees its lines."""
    good = {"key": b"99:0", "value": b"{}\n", "headers": {"created_at": b"%d" % NOON, "rows": b"1"}}
    message = OutgoingMessage(DATASET.topic, partition, **{**good, **changes})
    hashes = {kafka_value.HASH_HEADER: kafka_value.value_hash(message.value)} if has_hash else {}
    return replace(message, headers={**message.headers, **hashes})


def test_what_is_accepted_is_stored(world: World) -> None:
    for rows in (1, 10, 100, 1000):
        world.accept(rows)
    world.run(world.consumer())
    world.check()


def test_a_block_waits_for_rows_or_time(world: World) -> None:
    consumer = world.consumer()
    world.run(consumer, until=lambda: consumer.health() is None)
    world.accept(30)  # some 10 in each partition
    for _ in range(5):
        consumer.step()
    assert world.store.blocks == []
    world.now += 1.01
    consumer.step()
    assert sum(block.rows for block in world.store.blocks) == 30
    world.accept(1000)
    consumer.step()
    assert sum(block.rows for block in world.store.blocks) == 1030


def test_large_rows_do_not_wait(world: World) -> None:
    world.limits = Limits(rows=1 << 30, bytes=500, seconds=1e9)
    consumer = world.consumer()
    world.accept(100)
    world.run(consumer, until=lambda: len(world.store.blocks) == PARTITIONS)


def test_a_block_holds_one_day(world: World) -> None:
    for day in (0, 0, 1, 1, 0, 2):  # slots publish side by side: around midnight days alternate
        world.accept(5, NOON + day * DAY)
    world.run(world.consumer())
    world.check()
    for block in world.store.blocks:
        days = {msgspec.json.decode(line)["created_at"] // DAY for line in block.lines.splitlines()}
        assert days <= {block.day}


POINTS = [
    "load",
    "begin",
    "begin done",
    "write",
    "write done",
    "finish",
    "finish done",
    "dead letter",
    "dead letter done",
]


@pytest.mark.parametrize("days", [1, 2])
@pytest.mark.parametrize("after", [0, 1, 4])
@pytest.mark.parametrize("point", POINTS)
def test_a_crash_anywhere_loses_and_doubles_nothing(world: World, point: str, after: int, days: int) -> None:
    expected_dead_letters = fill_with_poison(world, days)
    world.failpoint.plan[point] = [*[None] * after, Crash()]
    dying = world.consumer()
    try:
        world.run(dying)
        assert after, f"{point} is never passed"
    except Crash:
        dying._reader.close()  # the group notices that the member is gone
        world.accept(20, NOON + (days - 1) * DAY)  # the next one finds more than the pending range has
        world.run(world.consumer())
    world.check()
    check_dead_letters(world, expected_dead_letters)


@pytest.mark.parametrize("running", [1, 2])
@pytest.mark.parametrize("point", ["begin done", "write", "write done", "finish"])
def test_what_was_begun_together_is_finished_by_any_of_its_heirs(world: World, point: str, running: int) -> None:
    world.accept(1000)
    world.failpoint.plan[point] = [Crash()]
    dying = world.consumer()
    with pytest.raises(Crash):
        world.run(dying)
    begun = {p: at.pending.last for p, at in world.table.positions.items() if at.pending}
    assert len(begun) == PARTITIONS
    dying._reader.close()
    heirs = [world.consumer(), world.consumer()]
    world.accept(1000)
    world.run(*heirs[:running], until=lambda: all(world.table.positions[p].next_offset > begun[p] for p in begun))
    world.run(*heirs)
    world.check()


@pytest.mark.parametrize("error", [StoreDown("memory", "unreachable"), Backpressure("full", 3.0), Fenced("taken")])
@pytest.mark.parametrize("point", ["prepare", *POINTS])
def test_after_an_error_it_goes_on_by_itself(world: World, point: str, error: LogpipeError) -> None:
    expected_dead_letters = fill_with_poison(world, days=2)
    world.failpoint.plan[point] = [None, error, None, error, error]
    world.run(world.consumer())
    world.check()
    check_dead_letters(world, expected_dead_letters)


def fill_with_poison(world: World, days: int) -> set[tuple[int, int]]:
    """Rows of some days with poison among them; (partition, offset) of the poison."""
    found = set()
    for day in range(days):
        for rows in (50, 7):
            world.accept(rows, NOON + day * DAY)
            for part in world.publish([poison(p, key=b"no batch") for p in range(PARTITIONS)]):
                found.add((part.partition, part.offset))
            for part in world.publish(
                [poison(p, value=b'{"id":12976128,"created_at":"x"}\n') for p in range(PARTITIONS)]
            ):
                found.add((part.partition, part.offset))
    return found


def check_dead_letters(world: World, expected: set[tuple[int, int]]) -> None:
    assert {(dead_letter["partition"], dead_letter["offset"]) for dead_letter in world.dead_letters()} == expected


def test_of_two_pending_groups_the_first_to_be_complete_leaves_no_hole() -> None:
    world = World(Limits(rows=200, bytes=1 << 20, seconds=1.0))
    first, second = world.consumer(), world.consumer()
    for _ in range(6):
        first.step()
        second.step()
    for point in ("write", "complete"):
        world.failpoint.plan[point] = [StoreDown("memory", "down")] * 500
    world.accept(17)
    for _ in range(8):  # a small pending group of the first consumer's partitions
        first.step()
        world.now += 0.3
    for _ in range(30):
        world.accept(17)
    for _ in range(12):
        second.step()
        world.now += 0.01
    for _ in range(8):  # a large pending group of the other partition
        second.step()
        world.now += 0.3
    groups = {tuple(position.group_partitions) for position in world.table.positions.values() if position.pending}
    assert len(groups) == 2
    world.failpoint.plan.clear()
    for dying in (first, second):
        dying._reader.close()  # the group notices that the member is gone
    world.run(world.consumer())
    world.check()


def test_the_store_is_unreachable_for_long(world: World) -> None:
    consumer = world.consumer()
    world.failpoint.plan["write"] = [StoreDown("memory", "unreachable")] * 9
    world.accept(1000)
    world.run(consumer, until=lambda: world.failpoint.passed["write"] >= 5)
    assert consumer.health() == "memory: unreachable"
    held = held_bytes(consumer)
    for _ in range(20):
        world.accept(1000)
        for _ in range(3):
            consumer.step()
    assert held_bytes(consumer) == held, "it read on though it could not write"
    world.run(consumer)
    world.check()
    assert consumer.health() is None


def held_bytes(consumer: GroupLoop[Consumer]) -> int:
    return sum(buffer.bytes for buffer in consumer.handler._backlog._buffers.values())


def test_backpressure_waits_as_long_as_it_says(world: World) -> None:
    consumer = world.consumer()
    world.failpoint.plan["write"] = [Backpressure("full", 30.0)]
    world.accept(1000)
    world.run(consumer, until=lambda: world.failpoint.passed["write"] == 1)
    until = world.now + 29.5
    while world.now < until:
        consumer.step()
        world.now += 1.0
    assert world.failpoint.passed["write"] == 1
    world.run(consumer)
    world.check()


def test_the_broker_is_unreachable(world: World) -> None:
    consumer = world.consumer()
    world.accept(100)
    world.broker.down = True
    for _ in range(10):
        consumer.step()
        world.now += 1
    assert "kafka" in str(consumer.health())
    world.broker.down = False
    world.run(consumer)
    world.check()


def test_members_come_and_go(world: World) -> None:
    members = [world.consumer()]
    rng = random.Random(3)
    for turn in range(30):
        world.accept(rng.randrange(1, 90))
        for member in members:
            member.step()
        world.now += rng.random()
        if turn % 4 == 1:
            members.append(world.consumer())
        if turn % 4 == 3:
            members.pop(rng.randrange(len(members)))._reader.close()
    world.run(*members)
    world.check()


def test_a_zombie_writes_nothing_twice(world: World) -> None:
    """It stops between the mark of the pending range and the write; its heir finishes that range; then it wakes up."""
    zombie = world.consumer()
    world.accept(1000)
    heir: list[GroupLoop[Consumer]] = []

    def sleeps(point: str) -> None:
        if point == "write" and not heir:
            assigned = zombie._reader._assigned  # type: ignore[attr-defined]
            world.broker.leave(zombie._reader)  # type: ignore[arg-type]
            zombie._reader._assigned = assigned  # type: ignore[attr-defined]  # it has not noticed
            heir.append(world.consumer())
            world.run(heir[0])

    world.store._failpoint = sleeps
    for _ in range(3):
        zombie.step()
        world.now += 1
    assert heir
    assert "partition" in str(zombie.health()) or zombie.health() in ("begin", "finish", None)
    world.check()
    world.accept(100)
    world.run(*heir)
    world.check()


def test_random_faults(world: World) -> None:
    for seed in range(10):
        world = World()
        rng = random.Random(seed)
        expected = fill_with_poison(world, days=2)
        errors: list[Callable[[], BaseException | None]] = [
            lambda: None,
            lambda: None,
            lambda: None,
            Crash,
            lambda: StoreDown("memory", "unreachable"),
            lambda: Backpressure("full", 0.1),
        ]
        for point in POINTS:
            world.failpoint.plan[point] = [rng.choice(errors)() for _ in range(12)]
        member, crashes = world.consumer(), 0
        while not world.drained():
            try:
                world.run(member)
            except Crash:
                crashes += 1
                member._reader.close()
                member = world.consumer()
                world.accept(rng.randrange(1, 30), NOON + rng.randrange(2) * DAY)
        assert crashes, f"seed {seed} tests nothing"
        world.check()
        check_dead_letters(world, expected)


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (poison(key=b"nonsense"), "is not <batch>:<part>"),
        (poison(key=b""), "is not <batch>:<part>"),
        (poison(headers={}), "no header"),
        (poison(headers={"created_at": b"5"}), "no header 'rows'"),
        (poison(headers={"created_at": b"noon", "rows": b"1"}), "not a number"),
        (poison(headers={"created_at": b"-5", "rows": b"1"}), "not a number"),
        (poison(headers={"created_at": b"9000000000000000", "rows": b"1"}), "not between"),
        (poison(headers={"created_at": b"5", "rows": b"2"}), "announces 2 lines"),
        (poison(value=b"{}"), "announces 1 lines"),
        (poison(value=b"\xff\xfe\n"), "not a row of batch 99"),
        (poison(value=b"\n"), "not a row of batch 99"),
        (
            poison(
                value=b'{"id":131072,"created_at":5,"timestamp":5,"name":"of another batch"}\n{\n',
                headers={"created_at": b"5", "rows": b"2"},
            ),
            "not a row of batch 99",
        ),
        (
            poison(
                value=b'{"id":12976129,"created_at":5,"timestamp":"x","name":""}\n',
                headers={"created_at": b"5", "rows": b"1"},
            ),
            "Expected `int`",
        ),
        (
            poison(value=b'{"id":12976129,"created_at":5,"timestamp":"x","name":""}\n'),
            f"its created_at is 5, and that of its message {NOON}",
        ),
        (poison(value=b'{"id":12976129,"x":' + b"[" * 5000 + b"]" * 5000 + b"}\n"), "recursion"),
        (poison(key=b"9" * 30 + b":0"), "is not <batch>:<part>"),
        (poison(key=b"-1:0"), "is not <batch>:<part>"),
        (poison(key=b"no batch", headers={"columns": b"9999"}), "is not <batch>:<part>"),
        (poison(headers={"created_at": b"5", "rows": b"7" * 5000}), "not a number"),
        (poison(headers={"created_at": b"x" * 300_000, "rows": b"1"}), "not a number"),
    ],
)
def test_poison_goes_to_the_dead_letters_and_its_neighbours_land(
    world: World, message: OutgoingMessage, reason: str
) -> None:
    world.accept(60)
    (part,) = world.publish([message])
    world.accept(60)
    world.run(world.consumer())
    world.check()
    dead_letters = world.dead_letters()
    assert dead_letters
    for dead_letter in dead_letters:
        assert reason in dead_letter["reason"]
        assert {k: dead_letter[k] for k in ("store", "dataset", "topic", "partition", "offset")} == {
            "store": "memory",
            "dataset": "things",
            "topic": "things",
            "partition": 0,
            "offset": part.offset,
        }
    assert "".join(dead_letter["value"] for dead_letter in dead_letters).replace("\n", "") == message.value.decode(
        errors="backslashreplace"
    ).replace("\n", "")


def test_a_line_of_another_day_than_its_message_is_put_aside_when_a_write_is_completed(world: World) -> None:
    """A completion looks for rows on the message's day: it would never find the row, and write it again and again."""
    line = b'{"id":%d,"created_at":%d,"timestamp":1,"name":"n"}\n'
    value = line % (first_id(99), NOON) + line % (first_id(99) + 1, NOON + DAY)
    world.failpoint.plan["write"] = [StoreDown("memory", "unreachable")]
    world.publish([poison(value=value, headers={"created_at": b"%d" % NOON, "rows": b"2"})])
    world.run(world.consumer())
    assert [row[0] for row in world.stored()] == [first_id(99)]
    (dead_letter,) = world.dead_letters()
    assert (dead_letter["line"], dead_letter["id"]) == (1, first_id(99) + 1)


STRANGERS = [
    (first_id(99) + 1, NOON + DAY),  # of the same batch, and of another day than the message
    (first_id(7), NOON),  # of another batch
]


@pytest.mark.parametrize(("row_id", "created_at"), STRANGERS)
@pytest.mark.parametrize("has_own_progress", [False, True])
def test_a_stranger_that_was_stored_before_the_reply_was_lost_is_not_dead_lettered(
    world: World, row_id: int, created_at: int, has_own_progress: bool
) -> None:
    if has_own_progress:
        world.store = CountsDeadLettersAsStored(world.failpoint)
    line = b'{"id":%d,"created_at":%d,"timestamp":1,"name":"n"}\n'
    value = line % (first_id(99), NOON) + line % (row_id, created_at)
    world.failpoint.plan["write done"] = [StoreDown("memory", "the reply was lost")]
    world.publish([poison(value=value, headers={"created_at": b"%d" % NOON, "rows": b"2"})])
    world.run(world.consumer())
    assert sorted(row[0] for row in world.stored()) == sorted([first_id(99), row_id])
    assert world.dead_letters() == []


def test_a_foreign_key_of_any_size_gives_a_letter_that_can_be_sent(world: World) -> None:
    """Escaped twice, the key would be larger than a message may be."""
    world.publish([poison(key=b"\0" * 300_000), poison(1, value=b"\0" * 900_000 + b"\n", key=b"no batch")])
    world.accept(60)
    world.run(world.consumer())
    world.check()
    first, second = sorted(world.dead_letters(), key=lambda dead_letter: dead_letter["partition"])
    assert len(first["reason"]) < 1000
    assert first["value"] == "{}\n"
    assert second["value_bytes"] == 900_001
    assert 100_000 < len(second["value"]) < 900_000


def test_bad_rows_leave_their_neighbours_of_the_same_message(world: World) -> None:
    lines = [b'{"id":%d,"created_at":5,"timestamp":%d,"name":"n"}\n' % (first_id(99) + n, n) for n in range(9)]
    lines[2] = b"garbage\n"
    lines[5] = b'{"id":%d,"created_at":5,"timestamp":"five","name":"n"}\n' % (first_id(99) + 5)
    lines[6] = b"\n"
    lines[8] = b'{"id":%d,"created_at":5,"name":"n"}\n' % (first_id(99) + 8)
    world.publish([poison(value=b"".join(lines), headers={"created_at": b"5", "rows": b"9"})])
    world.run(world.consumer())
    assert [row[2] for row in world.stored()] == [0, 1, 3, 4, 7]
    dead_letters = {dead_letter["line"]: dead_letter for dead_letter in world.dead_letters()}
    assert sorted(dead_letters) == [2, 5, 6, 8]
    assert [dead_letters[n]["id"] for n in (2, 5, 6, 8)] == [None, first_id(99) + 5, None, first_id(99) + 8]
    assert dead_letters[5]["batch_id"] == 99
    assert dead_letters[5]["value"] == lines[5].decode().rstrip()


@pytest.mark.parametrize("has_hash", [False, True])
def test_lines_without_the_hash_of_ours_are_checked_before_the_store_sees_them(world: World, has_hash: bool) -> None:
    """A store takes long to reject a large block for one line."""
    lines = [b'{"id":%d,"created_at":5,"timestamp":%d,"name":"n"}\n' % (first_id(99) + n, n) for n in range(4)]
    lines[1] = b"garbage\n"
    world.publish([poison(value=b"".join(lines), headers={"created_at": b"5", "rows": b"4"}, has_hash=has_hash)])
    world.run(world.consumer())
    assert [dead_letter["line"] for dead_letter in world.dead_letters()] == [1]
    assert sorted(row[2] for row in world.stored()) == [0, 2, 3]
    assert world.failpoint.passed["write"] == (2 if has_hash else 1)


class CountsDeadLettersAsStored(FailingStore):
    """As the lake does: the transaction with a block's good rows moves the position past the bad ones."""

    wait_seconds = 0.0

    def positions(self, dataset: Dataset, topic_id: str) -> Mapping[int, int]:
        raise NotImplementedError  # the progress is the world's table

    def is_loaded(self, block: Block) -> bool:
        return any(block.range_token in token for token in self._written[DATASET.name])

    def rejections(self, blocks: Sequence[Block]) -> Sequence[RowRejected]:
        return [
            RowRejected(row, reason, block=at)
            for at, block in enumerate(blocks)
            for row, reason in line_check(DATASET).check(block.lines.splitlines()).problems.items()
        ]


def test_letters_are_sent_before_the_transaction_that_counts_their_lines_as_stored(world: World) -> None:
    world.store = CountsDeadLettersAsStored(world.failpoint)
    good = b'{"id":%d,"created_at":5,"timestamp":5,"name":"n"}\n' % first_id(99)
    bad = b'{"id":%d,"created_at":5,"name":"n"}\n' % (first_id(99) + 1)
    world.publish([poison(value=good + bad, headers={"created_at": b"5", "rows": b"2"})])
    world.failpoint.plan["dead letter"] = [Crash()]
    dying = world.consumer()
    with pytest.raises(Crash):
        world.run(dying)
    dying._reader.close()
    assert world.stored() == []
    world.run(world.consumer())
    assert len(world.stored()) == len(world.dead_letters()) == 1


class CountsRowsOnly(FailingStore):
    """As ClickHouse does: a line without anything on it is no row, and rows are counted over all blocks."""

    def write(self, blocks: Sequence[Block]) -> None:
        places = [(at, row) for at, block in enumerate(blocks) for row in range(block.rows)]
        rows = [line for block in blocks for line in block.lines.split(b"\n") if line]
        for (at, row), line in zip(places, rows, strict=False):
            if b'"name":' not in line:
                raise RowRejected(row, "no name", block=at)
        super().write(blocks)


class NamesARow(FailingStore):
    """As ClickHouse does, but the row is any."""

    near = 0

    def write(self, blocks: Sequence[Block]) -> None:
        try:
            super().write(blocks)
        except RowRejected as error:
            raise RowRejected(None, error.reason, near=self.near) from error


@pytest.mark.parametrize("near", range(8))
@pytest.mark.parametrize("bad", [(4,), (0, 5), (2, 3)])
def test_the_row_that_a_store_names_is_where_bad_lines_are_looked_for_first(
    world: World, near: int, bad: tuple[int, ...]
) -> None:
    store = world.store = NamesARow(world.failpoint)
    store.near = near
    lines = [b'{"id":%d,"created_at":5,"timestamp":%d,"name":"n"}\n' % (first_id(99) + n, n) for n in range(6)]
    for at in bad:
        lines[at] = lines[at].replace(b'"n"', b"5")
    values = [b"".join(lines[at : at + 2]) for at in (0, 2, 4)]
    world.publish(
        [poison(p, value=value, headers={"created_at": b"5", "rows": b"2"}) for p, value in enumerate(values)]
    )
    world.run(world.consumer())
    assert sorted(row[2] for row in world.stored()) == [n for n in range(6) if n not in bad]
    assert sorted(dead_letter["id"] - first_id(99) for dead_letter in world.dead_letters()) == list(bad)
    bad_messages = {at // 2 for at in bad}
    assert world.failpoint.passed["write"] == (3 if near // 2 in bad_messages and len(bad_messages) > 1 else 2)


def test_a_line_without_a_row_does_not_put_the_blame_on_a_neighbour(world: World) -> None:
    world.store = CountsRowsOnly(world.failpoint)
    good = [b'{"id":%d,"created_at":5,"timestamp":%d,"name":"n"}\n' % (first_id(99) + n, n) for n in range(6)]
    nameless = b'{"id":%d,"created_at":5,"timestamp":9}\n' % (first_id(99) + 9)
    values = [good[0] + b"\n" + good[1], good[2] + good[3], nameless + good[4] + good[5]]
    world.publish(
        [
            poison(p, value=value, headers={"created_at": b"5", "rows": b"%d" % value.count(b"\n")})
            for p, value in enumerate(values)
        ]
    )
    world.run(world.consumer())
    assert [row[2] for row in world.stored()] == [0, 1, 2, 3, 4, 5]
    assert {(dead_letter["partition"], dead_letter["line"]) for dead_letter in world.dead_letters()} == {(0, 1), (2, 0)}


@pytest.mark.parametrize("newer", [{"columns": b"3"}, {"version": b"2"}, {"version": b"2", "rows": b"7"}])
def test_a_message_of_a_newer_release_stops_the_consumer(world: World, newer: Mapping[str, bytes]) -> None:
    world.publish([poison(key=b"no batch", headers=newer)])
    world.accept(60)
    consumer = world.consumer()
    world.run(consumer)
    world.check()
    world.publish([poison(headers={"created_at": b"%d" % NOON, "rows": b"1", **newer})])
    with pytest.raises(NeedsOperator, match="older than the ingest API"):
        world.run(consumer)
    world.check()
    assert len(world.dead_letters()) == 1


@pytest.mark.parametrize("newer", [{"columns": b"99"}, {"version": b"2"}])
def test_two_bytes_that_only_claim_a_newer_release_stop_nothing(world: World, newer: Mapping[str, bytes]) -> None:
    headers = {"created_at": b"1", "rows": b"1", **newer}
    world.publish([poison(key=b"1:0", value=b"x\n", headers=headers, has_hash=False)])
    world.accept(60)
    world.run(world.consumer())
    world.check()
    [dead_letter] = world.dead_letters()
    assert (dead_letter["line"], dead_letter["value"]) == (0, "x")


@pytest.mark.parametrize("value", [b"{}\n" * (MAX_BATCH_ROWS + 1), b"x" * kafka_value.MAX_VALUE_BYTES + b"\n"])
def test_a_message_larger_than_any_of_ours_is_one_dead_letter(world: World, value: bytes) -> None:
    rows = value.count(b"\n")
    headers = {"created_at": b"%d" % NOON, "rows": b"%d" % rows}
    world.publish([poison(key=b"1:7", value=value, headers=headers, has_hash=False)])
    world.accept(60)
    world.run(world.consumer())
    world.check()
    [dead_letter] = world.dead_letters()
    assert (dead_letter["line"], dead_letter["batch_id"], dead_letter["rows"]) == (None, 1, rows)
    assert "more than" in dead_letter["reason"]


@pytest.mark.parametrize("has_hash", [False, True])
@pytest.mark.parametrize("fails", ["", "write", "write done"])
@pytest.mark.parametrize("bad", [b"{}\n", b'{"id":12976128}\n'])
def test_the_dead_letters_of_one_message_are_bounded(world: World, bad: bytes, fails: str, has_hash: bool) -> None:
    """`bad` is no row, or an invalid row of the batch. Good lines beside it are stored."""
    if fails:
        world.failpoint.plan[fails] = [StoreDown("memory", "unreachable")]
    good = b'{"id":%d,"created_at":5,"timestamp":7,"name":"n"}\n' % (first_id(99) + 9)
    value = bad * 5000 + good + bad
    world.publish([poison(value=value, headers={"created_at": b"5", "rows": b"5002"}, has_hash=has_hash)])
    world.run(world.consumer())
    assert [row[2] for row in world.stored()] == [7]
    *single, shared = world.dead_letters()
    assert [dead_letter["line"] for dead_letter in single] == list(range(MOST_DEAD_LETTERS))
    assert (shared["line"], shared["batch_id"], shared["rows"]) == (None, 99, 5001 - MOST_DEAD_LETTERS)
    assert shared["reason"].startswith("4901 more lines of this message are no rows; the first of them is line 100: ")


class RejectsAName(FailingStore):
    """A store that refuses some valid rows."""

    def write(self, blocks: Sequence[Block]) -> None:
        if any(b'"name":"refused"' in block.lines for block in blocks):
            raise RowRejected(None, "this name is refused")
        super().write(blocks)


def test_each_valid_row_that_the_store_refuses_has_a_dead_letter_with_its_id(world: World) -> None:
    """verify and a later replay know these rows by their ids."""
    world.store = RejectsAName(world.failpoint)
    names = ["refused", "n"]
    line = b'{"id":%d,"created_at":5,"timestamp":7,"name":"%s"}\n'
    value = b"".join(line % (first_id(99) + n, names[n % 2].encode()) for n in range(4 * MOST_DEAD_LETTERS))
    world.publish([poison(value=value, headers={"created_at": b"5", "rows": b"%d" % (4 * MOST_DEAD_LETTERS)})])
    world.run(world.consumer())
    assert len(world.stored()) == 2 * MOST_DEAD_LETTERS
    refused = [dead_letter["id"] for dead_letter in world.dead_letters()]
    assert refused == [first_id(99) + n for n in range(0, 4 * MOST_DEAD_LETTERS, 2)]


def test_many_short_bad_lines_take_little_memory(world: World) -> None:
    """A dead letter of its own for each line would take a kilobyte."""
    lines = 10_000
    headers = {"created_at": b"5", "rows": b"%d" % lines}
    world.publish([poison(p, value=b"{}\n" * lines, headers=headers, has_hash=False) for p in range(PARTITIONS)])
    tracemalloc.start()
    try:
        world.run(world.consumer())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(world.dead_letters()) == PARTITIONS * (MOST_DEAD_LETTERS + 1)
    assert sum(dead_letter["rows"] for dead_letter in world.dead_letters()) == PARTITIONS * lines
    assert peak < 300 * PARTITIONS * lines, peak


def test_a_range_has_no_more_rows_than_one_message_may_have(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partition_buffer, "MOST_ROWS", 50)
    for _ in range(10):
        world.accept(60)
    world.run(world.consumer())
    world.check()
    assert max(block.rows for block in world.store.blocks) <= 50


def test_a_message_that_could_not_be_read_is_a_dead_letter(world: World) -> None:
    """For example, because it cannot be decompressed."""
    log = world.broker.topic(DATASET.topic).logs[0]
    log.append(Message(DATASET.topic, 0, len(log), b"", b"", problem="cannot be decompressed"))
    world.accept(60)
    world.run(world.consumer())
    world.check()
    [dead_letter] = world.dead_letters()
    assert (dead_letter["reason"], dead_letter["partition"]) == ("cannot be decompressed", 0)
    assert (dead_letter["offset"], dead_letter["line"], dead_letter["rows"]) == (0, None, 0)


def test_many_dead_letters_are_sent_in_several_transactions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dead_letters, "TRANSACTION_BYTES", 1000)
    broker = MemoryBroker()
    broker.ensure_topics({TOPIC: 1})
    sender = DeadLetterSender(lambda: broker.producer("dead-letters"), "memory", DATASET)
    sender.send(DeadLetter(0, offset, None, None, None, 1, "r", b"v" * 100) for offset in range(20))
    sender.close()
    reader = broker.partition_reader(TOPIC)
    found = [each for some, _ in dead_letters.read(reader, 0) for each in some]
    assert [each.record.offset for each in found] == list(range(20))
    assert reader.bounds()[0][1] > 20 + 3  # each transaction has a control record


def test_retention_overtook_the_consumer(world: World) -> None:
    world.accept(100)
    world.broker.delete_records(DATASET.topic, 0, 1)
    with pytest.raises(NeedsOperator):
        world.run(world.consumer())


def test_nothing_is_read_of_a_topic_that_was_cut(world: World) -> None:
    """What is published next would get offsets that count as loaded."""
    world.accept(100)
    world.run(world.consumer())
    world.table.positions[1] = SinkPosition(1, 1000)
    world.accept(100)
    with pytest.raises(NeedsOperator, match="was cut: memory has loaded partition 1 up to 1000, and the topic ends at"):
        world.run(world.consumer())


@pytest.mark.parametrize("waiting", ["write", "begin"])
def test_a_topic_that_is_created_again_while_the_consumer_waits_needs_an_operator(world: World, waiting: str) -> None:
    """Also after the new topic has grown beyond the old offset."""
    consumer = world.consumer()
    world.accept(100)
    world.run(consumer)
    world.failpoint.plan[waiting] = [StoreDown("memory", "unreachable")]
    world.accept(100)
    world.run(consumer, until=lambda: consumer.health() == "memory: unreachable")
    stored = world.stored()
    world.recreate_topic()
    world.accept(1000)
    with pytest.raises(NeedsOperator, match="created again"):
        world.run(consumer)
    assert world.stored() == stored
    assert all(at.next_offset == 0 or at.pending or at.next_offset < 100 for at in world.table.positions.values())


def test_messages_that_were_read_from_a_topic_created_again_are_not_written(world: World) -> None:
    consumer = world.consumer()
    world.run(consumer, until=lambda: consumer.health() is None)
    world.accept(30)
    consumer.step()  # reads, and waits for more rows
    world.recreate_topic()
    world.accept(1000)
    world.now += 2
    with pytest.raises(NeedsOperator, match="created again"):
        world.run(consumer)
    assert world.stored() == []
    assert all(at.pending is None for at in world.table.positions.values())


def test_only_attempts_after_a_failure_cost_a_look(world: World) -> None:
    for rows in (1, 100, 1000):
        world.accept(rows)
    consumer = world.consumer()
    world.run(consumer)
    assert (world.failpoint.passed["check table"], world.failpoint.passed["complete"]) == (0, 0)
    world.failpoint.plan["write done"] = [StoreDown("memory", "no reply")]
    world.accept(100)
    world.run(consumer)
    assert (world.failpoint.passed["check table"], world.failpoint.passed["complete"]) == (1, 1)
    world.check()


def test_a_range_that_a_former_owner_has_begun_is_completed(world: World) -> None:
    """Both read the same messages; this one was paused before it began, so it found no range when it took over."""

    class Begun(Table):
        def mark_pending(self, pending: Mapping[int, OffsetRange]) -> bool:
            self.positions |= {
                p: SinkPosition(p, offsets.first, offsets, tuple(pending)) for p, offsets in pending.items()
            }
            return super().mark_pending(pending)

    world.table = Begun(world.failpoint)
    world.accept(100)
    world.run(world.consumer())
    assert world.failpoint.passed["complete"] == world.failpoint.passed["begin"] > 0
    world.check()


def lag() -> float:
    value = REGISTRY.get_sample_value("logpipe_sink_lag_offsets", {"store": "memory", "dataset": "things"})
    assert value is not None
    return value


def test_control_records_count_as_loaded(world: World) -> None:
    consumer = world.consumer()
    world.run(consumer, until=lambda: consumer.health() is None)
    for _ in range(3):
        world.accept(1)
    world.run(consumer)
    consumer.handler.report_lag()
    assert lag() == 0
    world.accept(1000)
    consumer.handler.report_lag()
    assert lag() > 3


def test_at_the_end_what_is_held_is_written(world: World) -> None:
    consumer = world.consumer()
    world.accept(10)
    for _ in range(3):
        consumer.step()
    assert world.stored() == []
    consumer.close()
    world.check()
