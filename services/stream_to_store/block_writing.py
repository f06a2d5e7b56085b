"""Writes blocks of which a store may reject rows. Rejected rows become dead letters, and the other rows are stored."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
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
from services.core.ports import Block, OwnProgressWriter, SinkWriter, StoreWriter
from services.stream_to_store.partition_buffer import MessageRange
from services.streams.dead_letters import DeadLetterSender


def write(
    writer: StoreWriter, ranges: Sequence[tuple[MessageRange, Block]], sender: DeadLetterSender, is_first: bool
) -> int:
    """Store the rows of `ranges`, send dead letters for the rows that the store rejects, and return the rows stored.

    `is_first`: no former attempt at these messages was made. After StoreDown or Backpressure, call again with
    `is_first` False.
    """
    unloadable = [envelope for message_range, _ in ranges for envelope in message_range.unloadable]
    sender.send([_dead_letter_of_message(envelope) for envelope in unloadable])
    if is_first:
        if isinstance(writer, OwnProgressWriter):
            stored = _write_unchecked(writer, ranges)
        else:
            stored = _write_first(writer, ranges, sender)
        if stored is not None:
            return stored
    return _complete(writer, ranges, sender, is_first)


def _write_unchecked(writer: OwnProgressWriter, ranges: Sequence[tuple[MessageRange, Block]]) -> int | None:
    """Write all lines. Return the rows stored, None if the store rejects a row."""
    blocks = [block for _, block in ranges]
    try:
        writer.write(blocks)
    except RowRejected:
        return None
    return sum(block.rows for block in blocks)


def _write_first(
    writer: SinkWriter, ranges: Sequence[tuple[MessageRange, Block]], sender: DeadLetterSender
) -> int | None:
    """Write all lines, without the invalid lines of messages that lack our hash. Return the rows stored.

    If the store rejects the blocks, check more lines, and write again. Returns None if all lines were checked, and the
    store rejects the valid ones. No search is needed before another write, because a store that has rejected blocks
    holds none of their rows.
    """
    blocks = [block for _, block in ranges]
    by_block = [
        [_lines_to_write(block.dataset, envelope) for envelope in message_range.loadable]
        for message_range, block in ranges
    ]
    while True:
        valid = [
            _block(block, [lines.valid() for lines in messages])
            for block, messages in zip(blocks, by_block, strict=True)
        ]
        try:
            writer.write(valid)
        except RowRejected as error:
            if not _check_more(by_block, error.near):
                return None
            continue
        sender.send([each for messages in by_block for lines in messages for each in lines.dead_letters()])
        return sum(block.rows for block in valid)


def _lines_to_write(dataset: Dataset, envelope: Envelope) -> "_MessageLines":
    """Return the lines of a message for a first write, which are not checked if the message has our hash."""
    if envelope.matches_hash:
        return _MessageLines.unchecked(dataset, envelope)
    return _MessageLines.of(dataset, envelope)


def _check_more(by_block: Sequence[list["_MessageLines"]], near: int | None) -> bool:
    """Check the message that has the valid line number `near`. If it has no invalid line, check all messages.

    Most often only one message has invalid lines: that of the row which the store names (see RowRejected). To check
    only this message saves more than another rejected write costs. Returns False if all messages were checked before.
    """
    end, unchecked = 0, list[tuple[list[_MessageLines], int]]()
    for messages in by_block:
        for at, lines in enumerate(messages):
            start, end = end, end + len(lines.valid().numbers)
            if lines.is_checked:
                continue
            if near is not None and start <= near < end:
                messages[at] = lines.checked()
                if messages[at].dead_letters():
                    return True
            else:
                unchecked.append((messages, at))
    for messages, at in unchecked:
        messages[at] = messages[at].checked()
    return bool(unchecked)


def _complete(
    writer: StoreWriter, ranges: Sequence[tuple[MessageRange, Block]], sender: DeadLetterSender, is_first: bool
) -> int:
    """Write the missing rows, send dead letters for all other lines, and return the rows that the store then holds.

    Foreign lines are not written: a completion searches the store for the rows of these batches, accepted on this day,
    and would never find the row of a foreign line.
    """
    blocks, checked = [block for _, block in ranges], _checked(ranges)
    own = [_block(block, messages) for block, messages in zip(blocks, checked, strict=True)]
    rejections = writer.rejections(own) if isinstance(writer, OwnProgressWriter) else writer.complete(own)
    foreign = [[line for lines in messages for line in lines.foreign] for messages in checked]
    dead_letters = [line.dead_letter for line in _unstored(writer, blocks, foreign, is_first)]
    ends = [list(accumulate(len(lines.numbers) for lines in messages)) for messages in checked]
    for rejection in rejections:
        row = rejection.row or 0
        at = bisect_right(ends[rejection.block], row)
        lines = checked[rejection.block][at]
        dead_letters.append(lines.dead_letter(lines.numbers[row - ends[rejection.block][at]], rejection.reason))
    sender.send(dead_letters)
    if isinstance(writer, OwnProgressWriter):
        # The transaction counts the dead-lettered lines as loaded, so it follows the dead letters.
        writer.write(without(own, rejections))
    return sum(block.rows for block in own) - len(rejections)


def _checked(ranges: Sequence[tuple[MessageRange, Block]]) -> list[list["_MessageLines"]]:
    """Return the checked lines of all messages, by block."""
    return [
        [_MessageLines.of(block.dataset, envelope) for envelope in message_range.loadable]
        for message_range, block in ranges
    ]


def _unstored(
    writer: StoreWriter, blocks: Sequence[Block], foreign: Sequence[Sequence["_ForeignLine"]], is_first: bool
) -> Sequence["_ForeignLine"]:
    """Return the foreign lines that no former attempt has stored. The reply to a former attempt may have been lost.

    `foreign`: the foreign lines of each block. `is_first`: the store has rejected the blocks, so it holds no line.
    """
    lines = [line for of_block in foreign for line in of_block]
    if is_first or not lines:
        return lines
    if isinstance(writer, OwnProgressWriter):
        of_blocks = zip(blocks, foreign, strict=True)
        return [line for block, own in of_blocks if own and not writer.is_loaded(block) for line in own]
    ids = {line.row_id for line in lines if line.row_id is not None}
    stored = writer.stored_ids(blocks[0].dataset, ids)
    return [line for line in lines if line.row_id not in stored]


def _block(block: Block, messages: Sequence["_MessageLines"]) -> Block:
    """Return the same block, with only the lines that `messages` have to write."""
    rows = sum(len(lines.numbers) for lines in messages)
    if rows == block.rows:
        return block
    return replace(block, rows=rows, lines=b"".join(lines.joined() for lines in messages))


class _ForeignLine(NamedTuple):
    """A line that is no row of its message's batch. `row_id` is the id in the line, None if it has none."""

    row_id: int | None
    dead_letter: DeadLetter


@dataclass(frozen=True)
class _MessageLines:
    """The lines of one message: those to write, and the foreign lines.

    `numbers`: the numbers, in the message and from 0, of the lines to write. All of them are rows of the message's
    batch once they are checked. `problems`: number of a line to write -> why our check finds the line invalid.
    `is_checked`: our check has seen the lines.
    """

    dataset: Dataset
    envelope: Envelope
    numbers: Sequence[int]
    foreign: Sequence[_ForeignLine] = ()
    problems: Mapping[int, str] = field(default_factory=dict)
    is_checked: bool = True

    @staticmethod
    def unchecked(dataset: Dataset, envelope: Envelope) -> "_MessageLines":
        """Return all lines of the message as lines to write, without a check."""
        return _MessageLines(dataset, envelope, range(envelope.rows), is_checked=False)

    @staticmethod
    def of(dataset: Dataset, envelope: Envelope) -> "_MessageLines":
        check = line_check(dataset)
        batch_id, created_at = envelope.batch_id, envelope.created_at
        assert batch_id is not None  # an envelope without a batch id has a problem, so it is not loadable
        if check.are_rows_of(envelope.message.value, envelope.rows, batch_id, created_at):
            return _MessageLines(dataset, envelope, range(envelope.rows))
        foreign, numbers = [], []
        lines = split(envelope.message.value)
        ids, times, problems = check.check(lines)
        for number, (row_id, time) in enumerate(zip(ids, times, strict=True)):
            own_id = row_id if row_id is not None and batch_of(row_id) == batch_id else None
            if own_id is None:
                reason = f"not a row of batch {batch_id}"
                if number in problems:
                    reason += f": {problems[number]}"
            elif time not in (created_at, None):  # a line without a time is no row, so the store rejects it
                reason = f"its created_at is {time}, and that of its message {created_at}"
            else:
                numbers.append(number)
                continue
            foreign.append(_ForeignLine(row_id, _dead_letter(envelope, number, lines[number], own_id, reason)))
        own = set(numbers)
        return _MessageLines(
            dataset,
            envelope,
            numbers,
            foreign,
            {number: problems[number] for number in sorted(own & problems.keys())},
        )

    def checked(self) -> "_MessageLines":
        return _MessageLines.of(self.dataset, self.envelope)

    def joined(self) -> bytes:
        if len(self.numbers) == self.envelope.rows:
            return self.envelope.message.value
        return join([self._lines[number] for number in self.numbers])

    def valid(self) -> "_MessageLines":
        """Return the same lines, without the lines to write that have problems."""
        if not self.problems:
            return self
        return replace(self, numbers=[number for number in self.numbers if number not in self.problems])

    def dead_letters(self) -> Sequence[DeadLetter]:
        """Return the dead letters about the lines that `valid` leaves out, and about the foreign lines."""
        invalid = [self.dead_letter(number, reason) for number, reason in self.problems.items()]
        return [*(line.dead_letter for line in self.foreign), *invalid]

    def dead_letter(self, number: int, reason: str) -> DeadLetter:
        line = self._lines[number]
        [row_id] = line_check(self.dataset).check([line]).ids
        return _dead_letter(self.envelope, number, line, row_id, reason)

    @cached_property
    def _lines(self) -> Sequence[bytes]:
        return split(self.envelope.message.value)


def _dead_letter_of_message(envelope: Envelope) -> DeadLetter:
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
