"""Writes blocks of which a store may reject rows. Rejected rows become dead letters, and the other rows are stored."""

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple

from services.core.completion import without
from services.core.dataset import Dataset
from services.core.dead_letter import DeadLetter
from services.core.errors import RowRejected
from services.core.ids import batch_of
from services.core.kafka_value import Envelope, join, split
from services.core.lines import line_check
from services.core.ports import Block, OwnProgressWriter, StoreWriter
from services.stream_to_store.partition_buffer import MessageRange
from services.streams.dead_letters import DeadLetters


def write(
    writer: StoreWriter, ranges: Sequence[tuple[MessageRange, Block]], dead_letters: DeadLetters, is_first: bool
) -> int:
    """Store the rows of `ranges` that the store takes, send dead letters for the others; return the rows stored.

    `is_first`: no former attempt at these messages was made. Raises StoreDown and Backpressure: call again, and then it
    is not the first.
    """
    dead_letters.send([_whole(envelope) for found, _ in ranges for envelope in found.poison])
    blocks = [block for _, block in ranges]
    if is_first:
        try:
            writer.write(blocks)
            return sum(block.rows for block in blocks)
        except RowRejected as error:
            near = error.near
        # The store has just rejected the blocks as a whole, so it holds none of the rows. Those that our own check lets
        # pass are written without a search for them.
        for own in () if isinstance(writer, OwnProgressWriter) else _guesses(ranges, near):
            sound = [_block(block, [part.sound() for part in parts]) for block, parts in zip(blocks, own, strict=True)]
            try:
                writer.write(sound)
                dead_letters.send([dead_letter for parts in own for part in parts for dead_letter in part.unsound()])
                return sum(block.rows for block in sound)
            except RowRejected:
                pass
    own = _checked(ranges)
    strangers = [[stranger for part in parts for stranger in part.strangers] for parts in own]
    # A line that is no row of its message's batch is left out here: a completion searches the store for the rows of
    # these batches, accepted on this day, and would never find the line's row.
    left = [_block(block, parts) for block, parts in zip(blocks, own, strict=True)]
    rejections = writer.rejections(left) if isinstance(writer, OwnProgressWriter) else writer.complete(left)
    found = [stranger.dead_letter for stranger in _unstored(writer, blocks, strangers, is_first)]
    ends = [list(accumulate(len(part.numbers) for part in parts)) for parts in own]
    for rejection in rejections:
        row = rejection.row or 0
        at = bisect_right(ends[rejection.block], row)
        part = own[rejection.block][at]
        found.append(part.dead_letter(part.numbers[row - ends[rejection.block][at]], rejection.reason))
    dead_letters.send(found)
    if isinstance(writer, OwnProgressWriter):
        # Its transaction counts the dead-lettered lines as loaded, so the dead letters are sent before.
        writer.write(without(left, rejections))
    return sum(block.rows for block in left) - len(rejections)


def _guesses(ranges: Sequence[tuple[MessageRange, Block]], near: int | None) -> Iterator[list[list["_OwnLines"]]]:
    """Yield what may be the lines that the store takes, the cheapest guess first. `near`: see RowRejected.

    Most often one message has bad lines: the message of the row that the store names. To check only this one saves more
    than another rejected write costs.
    """
    if near is not None:
        own, found, end = list[list[_OwnLines]](), False, 0
        for taken, block in ranges:
            own.append([])
            for envelope in taken.good:
                start, end = end, end + envelope.rows
                is_named = start <= near < end
                part = (
                    _OwnLines.of(block.dataset, envelope) if is_named else _OwnLines.unchecked(block.dataset, envelope)
                )
                own[-1].append(part)
                found = found or bool(part.problems or part.strangers)
        if found:
            yield own
    yield _checked(ranges)


def _checked(ranges: Sequence[tuple[MessageRange, Block]]) -> list[list["_OwnLines"]]:
    """The own lines of all messages, by block."""
    return [[_OwnLines.of(block.dataset, envelope) for envelope in taken.good] for taken, block in ranges]


def _unstored(
    writer: StoreWriter, blocks: Sequence[Block], strangers: Sequence[Sequence["_Stranger"]], is_first: bool
) -> Sequence["_Stranger"]:
    """Leave out the strangers that a former attempt has stored: that attempt may have succeeded, its reply been lost.

    `strangers` are those of each block. `is_first`: the store has rejected the blocks as a whole, so it holds none.
    """
    every = [stranger for of_block in strangers for stranger in of_block]
    if is_first or not every:
        return every
    if isinstance(writer, OwnProgressWriter):
        of_blocks = zip(blocks, strangers, strict=True)
        return [stranger for block, own in of_blocks if own and not writer.is_loaded(block) for stranger in own]
    ids = {stranger.row_id for stranger in every if stranger.row_id is not None}
    there = writer.stored_ids(blocks[0].dataset, ids)
    return [stranger for stranger in every if stranger.row_id not in there]


def _block(block: Block, parts: Sequence["_OwnLines"]) -> Block:
    """The same block with the own lines of its messages only."""
    rows = sum(len(part.numbers) for part in parts)
    return replace(block, rows=rows, lines=b"".join(part.joined() for part in parts))


class _Stranger(NamedTuple):
    """A line that is no row of its message's batch. `row_id` is the id in the line, None if it has none."""

    row_id: int | None
    dead_letter: DeadLetter


@dataclass(frozen=True)
class _OwnLines:
    """The lines of one message that are rows of its batch, and the other lines.

    `numbers` are the numbers of these lines in the message, from 0. `problems` says why some of them are no rows by our
    own check.
    """

    dataset: Dataset
    envelope: Envelope
    numbers: Sequence[int]
    strangers: Sequence[_Stranger] = ()
    problems: Mapping[int, str] = field(default_factory=dict)

    @staticmethod
    def unchecked(dataset: Dataset, envelope: Envelope) -> "_OwnLines":
        """As if each line were a row of the batch."""
        return _OwnLines(dataset, envelope, range(envelope.rows))

    @staticmethod
    def of(dataset: Dataset, envelope: Envelope) -> "_OwnLines":
        check = line_check(dataset)
        batch_id, created_at = envelope.batch_id, envelope.created_at
        assert batch_id is not None  # without one, the envelope has a problem
        if check.are_rows_of(envelope.message.value, envelope.rows, batch_id, created_at):
            return _OwnLines.unchecked(dataset, envelope)
        strangers, numbers = [], []
        lines = split(envelope.message.value)
        ids, times, problems = check.check(lines)
        for number, (row_id, time) in enumerate(zip(ids, times, strict=True)):
            own_id = row_id if row_id is not None and batch_of(row_id) == batch_id else None
            if own_id is None:
                reason = f"not a row of batch {batch_id}"
                if number in problems:
                    reason += f": {problems[number]}"
            elif time not in (created_at, None):  # without a time it is no row at all, and rejected as such
                reason = f"its created_at is {time}, and that of its message {created_at}"
            else:
                numbers.append(number)
                continue
            strangers.append(_Stranger(row_id, _dead_letter(envelope, number, lines[number], own_id, reason)))
        own = set(numbers)
        return _OwnLines(
            dataset,
            envelope,
            numbers,
            strangers,
            {number: problems[number] for number in sorted(own & problems.keys())},
        )

    def joined(self) -> bytes:
        if len(self.numbers) == self.envelope.rows:
            return self.envelope.message.value
        return join([self._lines[number] for number in self.numbers])

    def sound(self) -> "_OwnLines":
        return replace(self, numbers=[number for number in self.numbers if number not in self.problems])

    def unsound(self) -> Sequence[DeadLetter]:
        """The dead letters about the lines that `sound` leaves out, and about the strangers."""
        rejected = [self.dead_letter(number, reason) for number, reason in self.problems.items()]
        return [*(stranger.dead_letter for stranger in self.strangers), *rejected]

    def dead_letter(self, number: int, reason: str) -> DeadLetter:
        line = self._lines[number]
        [row_id] = line_check(self.dataset).check([line]).ids
        return _dead_letter(self.envelope, number, line, row_id, reason)

    @cached_property
    def _lines(self) -> Sequence[bytes]:
        return split(self.envelope.message.value)


def _whole(envelope: Envelope) -> DeadLetter:
    message = envelope.message
    return DeadLetter(
        partition=message.partition,
        offset=message.offset,
        line=None,
        batch_id=envelope.batch_id,
        id=None,
        rows=envelope.rows,
        reason=envelope.problem,
        value=message.value,
    )


def _dead_letter(envelope: Envelope, number: int, line: bytes, row_id: int | None, reason: str) -> DeadLetter:
    return DeadLetter(
        partition=envelope.message.partition,
        offset=envelope.message.offset,
        line=number,
        batch_id=envelope.batch_id,
        id=row_id,
        rows=1,
        reason=reason,
        value=line,
    )
