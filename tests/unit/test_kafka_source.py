"""kafka-source without servers: what becomes of bytes, and the order of dead letters, rows and offsets."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.acceptance.committer import Accepted, Outcome, Submission
from services.core.dataset import Dataset
from services.core.dead_letter import MOST_DEAD_LETTERS, DeadLetter
from services.core.errors import Backpressure, Fenced, Invalid, LogpipeError, NeedsOperator, StoreDown
from services.core.ledger import SourceAdvance
from services.core.ports import Message
from services.core.rows import RowCodec
from services.datasets import logs
from services.datasets.footprints import DATASET
from services.kafka_source import source as module
from services.kafka_source.decoding import MessageDecoder
from services.kafka_source.source import Limits, SourceHandler, Target
from services.ledger import source_progress
from services.streams.loop import AfterFailure

DECODER = MessageDecoder(DATASET)
GOOD = b'{"method":"GET","link":"/a","footprint_time":"2026-01-31T12:00:00Z"}'
BEFORE, AFTER = GOOD[: GOOD.index(b'"link"')], GOOD[GOOD.index(b'"link"') :]
PARTS = [BEFORE, AFTER, AFTER + GOOD, GOOD + GOOD, GOOD + b"\r", b" " + GOOD + b"\t", b"\x0c" + GOOD]
LINES = st.sampled_from(
    [GOOD, b"bad", b"{}", b"", b" ", b"\xff", b'{"method":', b"\xef\xbb\xbf" + GOOD, b"[]", b"\r", *PARTS]
)
VALUES = st.lists(LINES, max_size=6).map(b"\n".join) | st.binary(max_size=40) | st.just(GOOD)


def messages(*values: bytes, partition: int = 0, first: int = 0) -> list[Message]:
    return [Message("shop", partition, offset, b"", value) for offset, value in enumerate(values, first)]


@given(st.lists(VALUES, min_size=1, max_size=8))
def test_every_line_is_a_row_or_a_dead_letter_whoever_stands_beside_it(values: list[bytes]) -> None:
    together = DECODER.decode(messages(*values))
    alone = [DECODER.decode([message]) for message in messages(*values)]
    assert together.lines == together.rows + together.dead_lines
    assert together.lines == sum(each.lines for each in alone)
    assert together.rows == sum(each.rows for each in alone)
    assert together.dead_letters == [letter for each in alone for letter in each.dead_letters]
    assert all(chunk.count for chunk in together.chunks)
    assert all(each.lines for each in alone)  # no message vanishes
    places = [(letter.offset, letter.line) for letter in together.dead_letters]
    assert len(set(places)) == len(places)


def test_a_value_over_two_messages_is_no_row() -> None:
    decoded = DECODER.decode(messages(GOOD, GOOD[:20], GOOD[20:], GOOD))
    assert (decoded.rows, [letter.offset for letter in decoded.dead_letters]) == (2, [1, 2])


LOG = b'{"timestamp":"2026-01-31T12:00:00Z","level":"INFO","service":"shop","host":"h","message":"m"}'
OPENED = b'{"timestamp":"2026-01-31T12:00:00Z","level":"INFO","service":"evil","host":"h","message":"m","metadata":'


@pytest.mark.parametrize("together", [False, True])
def test_no_line_becomes_a_part_of_another_one(together: bool) -> None:
    """As many values as lines do not prove that each line is a value."""
    lines = [OPENED, LOG, b"}" + LOG + LOG]
    values = [b"\n".join([LOG, *lines])] if together else [LOG, *lines]
    decoded = MessageDecoder(logs.DATASET).decode(messages(*values))
    assert (decoded.lines, decoded.rows, decoded.dead_lines) == (4, 2, 2)
    services = [service for chunk in decoded.chunks for service in chunk.columns[2]]
    assert services == ["shop", "shop"]
    metadata = [value for chunk in decoded.chunks for value in chunk.columns[5]]
    assert metadata == ["{}", "{}"]


@pytest.mark.parametrize("together", [False, True])
def test_a_cut_row_and_two_in_a_line_are_two_dead_letters(together: bool) -> None:
    lines = [BEFORE, AFTER + GOOD]
    decoded = DECODER.decode(messages(*([b"\n".join(lines)] if together else lines)))
    assert (decoded.lines, decoded.rows, decoded.dead_lines) == (2, 0, 2)
    assert len(decoded.dead_letters) == 2


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b" \n", b"\n\n", b"\n\t"])
def test_lines_may_end_and_begin_with_blanks(end: bytes) -> None:
    decoded = DECODER.decode(messages(GOOD + end, (GOOD + end) * 3, GOOD))
    assert (decoded.lines, decoded.rows, decoded.dead_letters) == (5, 5, [])


def test_an_object_over_several_lines_is_a_row() -> None:
    decoded = DECODER.decode(messages(json.dumps(json.loads(GOOD), indent=1).encode(), GOOD + b"\n" + GOOD))
    assert (decoded.lines, decoded.rows, decoded.dead_letters) == (3, 3, [])


def test_a_number_of_too_many_digits_is_a_dead_letter() -> None:
    lines = [LOG, OPENED + b"1" * 4301 + b"}", LOG]
    decoded = MessageDecoder(logs.DATASET).decode(messages(b"\n".join(lines)))
    assert (decoded.rows, [letter.line for letter in decoded.dead_letters]) == (2, [1])
    assert "more than 4300 digits" in decoded.dead_letters[0].reason


def test_the_dead_letters_of_one_message_are_bounded() -> None:
    decoded = DECODER.decode(messages(b"\n".join([GOOD, b"bad"] * 5000)))
    assert (decoded.lines, decoded.rows, decoded.dead_lines) == (10_000, 5000, 5000)
    assert len(decoded.dead_letters) == MOST_DEAD_LETTERS + 1
    last = decoded.dead_letters[-1]
    assert (last.line, last.rows, last.value) == (None, 5000 - MOST_DEAD_LETTERS, b"bad")
    assert f"line {2 * MOST_DEAD_LETTERS + 1}" in last.reason


def test_reasons_are_made_only_for_dead_letters_that_have_one(monkeypatch: pytest.MonkeyPatch) -> None:
    explained: list[bytes] = []
    explain = RowCodec._refused_body

    def counted(codec: RowCodec, body: bytes, reason: str) -> LogpipeError:
        explained.append(body)
        return explain(codec, body, reason)

    monkeypatch.setattr(RowCodec, "_refused_body", counted)
    decoded = DECODER.decode(messages(b"\n".join([b"{}", GOOD] * 5000)))
    assert (decoded.rows, decoded.dead_lines) == (5000, 5000)
    assert len(explained) == MOST_DEAD_LETTERS + 1


def test_a_long_number_costs_its_own_line_only() -> None:
    decoded = DECODER.decode(messages(GOOD[:-1] + b',"status":' + b"9" * 4301 + b"}\n" + GOOD))
    assert (decoded.rows, [letter.line for letter in decoded.dead_letters]) == (1, [0])


def test_a_bad_object_over_several_lines_is_one_dead_letter() -> None:
    decoded = DECODER.decode(messages(b'{\n"method":"GET"\n}'))
    assert (decoded.lines, [letter.line for letter in decoded.dead_letters]) == (1, [None])


def test_a_refused_message_with_many_bad_lines_has_one_dead_letter_without_a_line() -> None:
    """Two of them would be one in the index of dead letters."""
    decoded = DECODER.refused(messages(b"\n".join([GOOD, *[b"bad"] * 150]))[0], "PostgreSQL refuses a value")
    assert (decoded.lines, decoded.rows, decoded.dead_lines) == (151, 0, 151)
    [last] = [letter for letter in decoded.dead_letters if letter.line is None]
    assert last.rows == 51
    assert last.reason == "PostgreSQL refuses a value; 50 more lines of this message are no rows"


class Fakes:
    """The ledger, the committer and the topic of dead letters in memory, with a journal of what was done."""

    def __init__(self) -> None:
        self.journal: list[str] = []
        self.positions = {0: 0, 1: 0}
        self.counts = [0, 0, 0]
        self.topic = "id-1"
        self.refused: bytes | None = None
        self.failures: dict[str, LogpipeError] = {}
        self.letters: list[DeadLetter] = []
        self.now = 0.0

    def do(self, what: str) -> None:
        if what in self.failures:
            raise self.failures.pop(what)
        self.journal.append(what)

    # TopicView
    def topic_id(self) -> str:
        return self.topic

    def bounds(self) -> Mapping[int, tuple[int, int]]:
        return {0: (0, 100), 1: (0, 100)}

    # Committer
    def commit(self, dataset: Dataset, group: Sequence[Submission]) -> list[Outcome]:
        [submission] = group
        assert submission.source is not None
        links = {link for chunk in submission.chunks for link in chunk.columns[1]}
        if "/refused" in links:
            return [Invalid("PostgreSQL refuses a value")]
        try:
            self.do(f"commit {submission.rows}")
            self.advance(submission.source)
        except LogpipeError as error:
            return [error]
        return [Accepted(1, submission.rows)]

    def advance(self, taken: SourceAdvance) -> None:
        if taken.source.topic_id != self.topic or any(self.positions[e.partition] != e.first for e in taken.ranges):
            raise Fenced("no longer there")
        for each in taken.ranges:
            self.positions[each.partition] = each.next_offset
            for index, count in enumerate((each.lines, each.rows, each.dead_letters)):
                self.counts[index] += count

    # DeadLetterSender
    def send(self, dead_letters: Sequence[DeadLetter]) -> None:
        if dead_letters:
            self.do(f"letters {len(dead_letters)}")
            self.letters += dead_letters

    def slot(self) -> int:
        if "slot" in self.failures:
            raise self.failures["slot"]
        return 0

    # DiskFloor
    def check(self) -> None:
        if "disk" in self.failures:
            raise self.failures.pop("disk")

    def close(self) -> None:
        pass


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> Fakes:
    made = Fakes()

    def load(connection: Any, source: Any, bounds: Any, partitions: Sequence[int], *, at_end: bool) -> dict[int, int]:
        return {partition: made.positions[partition] for partition in partitions}

    def advance_alone(connection: Any, taken: SourceAdvance) -> None:
        made.do("advance")
        made.advance(taken)

    monkeypatch.setattr(module, "connect", lambda url: made)
    monkeypatch.setattr(source_progress, "load", load)
    monkeypatch.setattr(source_progress, "advance_alone", advance_alone)
    return made


@pytest.fixture
def handler(fakes: Fakes) -> Iterator[SourceHandler]:
    untyped: Any = fakes
    target = Target(DATASET, "", fakes.slot, untyped, untyped, untyped)
    made = SourceHandler("shop", fakes, target, Limits(10, 1000, 1.0), lambda: None, clock=lambda: fakes.now)
    made.prepare()
    made.load([0, 1])
    yield made
    made.drop()
    made.close()


def receive(handler: SourceHandler, *values: bytes, partition: int = 0, first: int = 0, end: int | None = None) -> None:
    some = messages(*values, partition=partition, first=first)
    handler.receive(some, {partition: first + len(values) if end is None else end})


def test_dead_letters_precede_the_rows_and_the_offsets(handler: SourceHandler, fakes: Fakes) -> None:
    receive(handler, GOOD, b"bad", GOOD, end=5)
    handler.flush()
    assert fakes.journal == []  # it waits for more
    fakes.now = 1.0
    handler.flush()
    assert fakes.journal == ["letters 1", "commit 2"]
    assert (fakes.positions[0], fakes.counts) == (5, [3, 2, 1])
    handler.flush()
    assert len(fakes.journal) == 2


@pytest.mark.parametrize("values", [[GOOD] * 10, [GOOD + b"\n" + GOOD] * 5, [GOOD.replace(b"/a", b"/" * 1000)]])
def test_full_limits_do_not_wait(handler: SourceHandler, fakes: Fakes, values: list[bytes]) -> None:
    receive(handler, *values)
    handler.flush()
    assert len(fakes.journal) == 1


def test_headers_count_as_held(handler: SourceHandler, fakes: Fakes) -> None:
    handler.receive([Message("shop", 0, 0, b"", GOOD, {"h": bytes(1000)})], {0: 1})
    handler.flush()
    assert fakes.journal == ["commit 1"]


def test_a_message_that_could_not_be_read_is_a_dead_letter_with_its_reason() -> None:
    unread = Message("shop", 0, 1, b"", b"", problem="cannot be decompressed")
    decoded = DECODER.decode([*messages(GOOD), unread, *messages(GOOD, first=2)])
    assert (decoded.lines, decoded.rows, decoded.dead_lines) == (3, 2, 1)
    [dead_letter] = decoded.dead_letters
    assert (dead_letter.offset, dead_letter.reason) == (1, "cannot be decompressed")


def test_messages_without_rows_move_the_offsets_alone(handler: SourceHandler, fakes: Fakes) -> None:
    receive(handler, b"bad", b"")
    fakes.now = 1.0
    handler.flush()
    assert fakes.journal == ["letters 2", "advance"]
    assert (fakes.positions[0], fakes.counts) == (2, [2, 0, 2])


def test_offsets_without_messages_are_noted_later(handler: SourceHandler, fakes: Fakes) -> None:
    receive(handler, end=3)
    fakes.now = 1.0
    handler.flush()
    assert fakes.positions[0] == 0
    fakes.now = module.ADVANCE_SECONDS
    handler.flush()
    assert (fakes.positions[0], fakes.counts) == (3, [0, 0, 0])


@pytest.mark.parametrize("what", ["letters 1", "commit 1"])
def test_after_a_failure_the_messages_are_read_again(handler: SourceHandler, fakes: Fakes, what: str) -> None:
    receive(handler, GOOD, b"bad")
    fakes.now = 1.0
    fakes.failures[what] = error = StoreDown("kafka", "away")
    with pytest.raises(StoreDown):
        handler.flush()
    assert handler.after_failure(error) is AfterFailure.RELOAD
    assert fakes.positions[0] == 0
    handler.drop()
    assert handler.load([0, 1]) == {0: 0, 1: 0}
    receive(handler, GOOD, b"bad")
    fakes.now = 2.0
    handler.flush()
    assert (fakes.positions[0], fakes.counts) == (2, [2, 1, 1])
    assert {(letter.offset, letter.line) for letter in fakes.letters} == {(1, None)}


def test_a_fenced_process_loads_the_positions(handler: SourceHandler, fakes: Fakes) -> None:
    receive(handler, GOOD)
    fakes.positions[0] = 1  # by another process
    fakes.now = 1.0
    with pytest.raises(Fenced) as error:
        handler.flush()
    assert handler.after_failure(error.value) is AfterFailure.RELOAD
    assert fakes.counts == [0, 0, 0]


def test_a_full_disk_keeps_the_messages(handler: SourceHandler, fakes: Fakes) -> None:
    receive(handler, GOOD, b"bad")
    fakes.now = 1.0
    fakes.failures["disk"] = error = Backpressure("full", 30)
    with pytest.raises(Backpressure):
        handler.flush()
    assert handler.after_failure(error) is AfterFailure.KEEP
    assert fakes.journal == []
    handler.flush()
    assert fakes.counts == [2, 1, 1]


def test_without_a_slot_no_dead_letter_is_sent(handler: SourceHandler, fakes: Fakes) -> None:
    """Otherwise each attempt would send the same dead letters again."""
    receive(handler, GOOD, b"bad")
    fakes.now = 1.0
    fakes.failures["slot"] = StoreDown("postgres", "no slot")
    with pytest.raises(StoreDown):
        handler.flush()
    assert fakes.letters == []


def test_a_topic_created_again_stops_the_process_once_the_positions_were_looked_at(
    handler: SourceHandler, fakes: Fakes
) -> None:
    receive(handler, GOOD)
    fakes.topic = "id-2"
    fakes.now = 1.0
    with pytest.raises(NeedsOperator, match="--resume") as error:
        handler.flush()
    assert handler.after_failure(error.value) is AfterFailure.RELOAD
    handler.drop()
    with pytest.raises(NeedsOperator, match="--resume") as error:
        handler.load([0, 1])
    assert handler.after_failure(error.value) is AfterFailure.STOP
    assert fakes.journal == []


def test_a_message_that_postgres_refuses_is_a_dead_letter_and_its_neighbours_land(
    handler: SourceHandler, fakes: Fakes
) -> None:
    refused = GOOD.replace(b"/a", b"/refused")
    receive(handler, GOOD, b"bad\n" + refused + b"\n" + GOOD, GOOD, b"bad")
    fakes.now = 1.0
    handler.flush()
    assert (fakes.positions[0], fakes.counts) == (4, [6, 2, 4])
    by_place = {(letter.offset, letter.line): letter for letter in fakes.letters}
    assert {place: letter.rows for place, letter in by_place.items()} == {(1, 0): 1, (1, None): 2, (3, None): 1}
    assert by_place[1, None].reason == "PostgreSQL refuses a value"


def test_what_is_held_is_taken_at_the_end(handler: SourceHandler, fakes: Fakes) -> None:
    receive(handler, GOOD)
    handler.close()
    assert fakes.counts == [1, 1, 0]
