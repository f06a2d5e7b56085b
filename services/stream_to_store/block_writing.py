"""Writes blocks of which a store may reject rows. Rejected rows become dead letters, and the other rows are stored."""

from bisect import bisect_right
from collections.abc import Callable, Collection, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from itertools import accumulate

from services.core.completion import without
from services.core.dataset import Dataset
from services.core.dead_letter import DeadLetter, LineDeadLetters
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
    sender.send(_dead_letter_of_message(envelope) for envelope in unloadable)
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
        sender.send(each for messages in by_block for lines in messages for each in lines.dead_letters())
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
                if messages[at].has_bad_lines():
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
    unstored = _unstored(writer, blocks, checked, is_first)
    rejected = _by_message(checked, rejections)
    sender.send(
        dead_letter
        for block, messages in enumerate(checked)
        for at, lines in enumerate(messages)
        for dead_letter in lines.dead_letters_of(unstored(block, lines), rejected.get((block, at), {}))
    )
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
    writer: StoreWriter, blocks: Sequence[Block], checked: Sequence[Sequence["_MessageLines"]], is_first: bool
) -> Callable[[int, "_MessageLines"], Sequence[int]]:
    """Return a function that returns the foreign lines of a message that no former attempt has stored.

    The reply to a former attempt may have been lost. The function takes the number of the block and the message.
    `checked`: the messages of each block. `is_first`: the store has rejected the blocks, so it holds no line.
    """
    has_foreign = [any(lines.foreign for lines in messages) for messages in checked]
    if is_first or not any(has_foreign):
        return lambda block, lines: tuple(lines.foreign)
    if isinstance(writer, OwnProgressWriter):
        pairs = zip(blocks, has_foreign, strict=True)
        is_loaded = [has and writer.is_loaded(block) for block, has in pairs]
        return lambda block, lines: () if is_loaded[block] else tuple(lines.foreign)
    ids = {
        row_id for messages in checked for lines in messages for row_id in lines.foreign.values() if row_id is not None
    }
    stored = writer.stored_ids(blocks[0].dataset, ids)
    return lambda block, lines: [number for number, row_id in lines.foreign.items() if row_id not in stored]


def _by_message(
    checked: Sequence[Sequence["_MessageLines"]], rejections: Sequence[RowRejected]
) -> Mapping[tuple[int, int], Mapping[int, str]]:
    """Return (block, number of the message in the block) -> number of a rejected line -> the reason."""
    ends = [list(accumulate(len(lines.numbers) for lines in messages)) for messages in checked]
    found: dict[tuple[int, int], dict[int, str]] = {}
    for rejection in rejections:
        row, block = rejection.row or 0, rejection.block
        at = bisect_right(ends[block], row)
        number = checked[block][at].numbers[row - ends[block][at]]
        found.setdefault((block, at), {})[number] = rejection.reason
    return found


def _block(block: Block, messages: Sequence["_MessageLines"]) -> Block:
    """Return the same block, with only the lines that `messages` have to write."""
    rows = sum(len(lines.numbers) for lines in messages)
    if rows == block.rows:
        return block
    return replace(block, rows=rows, lines=b"".join(lines.joined() for lines in messages))


@dataclass(frozen=True)
class _MessageLines:
    """The lines of one message: those to write, and the foreign lines, which are no rows of the message's batch.

    Lines are named by their numbers in the message, from 0. `numbers`: the lines to write. All of them are rows of the
    message's batch once they are checked. `foreign`: a foreign line -> the id in it, None if it has none. `invalid`:
    those of the lines to write that our check finds invalid. `is_checked`: our check has seen the lines.
    """

    dataset: Dataset
    envelope: Envelope
    numbers: Sequence[int]
    foreign: Mapping[int, int | None] = field(default_factory=dict)
    invalid: Set[int] = frozenset()
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
        ids, times, problems = check.check(split(envelope.message.value))
        foreign, numbers = dict[int, int | None](), []
        for number, (row_id, time) in enumerate(zip(ids, times, strict=True)):
            # A line without a time is no row, so the store rejects it.
            if row_id is None or batch_of(row_id) != batch_id or time not in (created_at, None):
                foreign[number] = row_id
            else:
                numbers.append(number)
        return _MessageLines(dataset, envelope, numbers, foreign, frozenset(problems).intersection(numbers))

    def checked(self) -> "_MessageLines":
        return _MessageLines.of(self.dataset, self.envelope)

    def joined(self) -> bytes:
        if len(self.numbers) == self.envelope.rows:
            return self.envelope.message.value
        lines = split(self.envelope.message.value)
        return join([lines[number] for number in self.numbers])

    def valid(self) -> "_MessageLines":
        """Return the same lines, without the lines to write that are invalid."""
        if not self.invalid:
            return self
        return replace(self, numbers=[number for number in self.numbers if number not in self.invalid])

    def has_bad_lines(self) -> bool:
        """Return whether `dead_letters` returns any."""
        return bool(self.foreign or self.invalid)

    def dead_letters(self) -> Sequence[DeadLetter]:
        """Return the dead letters about the lines that `valid` leaves out, and about the foreign lines."""
        return self.dead_letters_of((*self.foreign, *sorted(self.invalid)), {})

    def dead_letters_of(self, bad: Collection[int], rejected: Mapping[int, str]) -> Sequence[DeadLetter]:
        """Return the dead letters of the `bad` lines, and of the lines that the store has rejected for these reasons.

        Their number is bounded, except for rows that our check finds valid: verify needs the id of each of these, and
        `completion.MOST_REJECTED` bounds them. The bad lines are checked again, because to keep the reasons would take
        a hundred times the memory of short lines.
        """
        if not bad and not rejected:
            return ()
        message, lines = self.envelope.message, split(self.envelope.message.value)
        batch_id = self.envelope.batch_id
        collected, valid = LineDeadLetters(message.partition, message.offset, batch_id), list[DeadLetter]()
        for number in (*bad, *rejected):
            line, is_valid = lines[number], number in rejected and number not in self.invalid
            row_id, reason = None, ""
            if is_valid or collected.needs_reason:
                row_id, reason = self._id_and_reason(line)
                reason = rejected.get(number, reason)
            if is_valid:
                valid.append(DeadLetter(message.partition, message.offset, number, batch_id, row_id, 1, reason, line))
            else:
                collected.add(number, line, reason, row_id)
        return [*collected.dead_letters(), *valid]

    def _id_and_reason(self, line: bytes) -> tuple[int | None, str]:
        """Return the id of the row of the batch that a bad line stands for, None if there is none, and its problem."""
        (row_id,), (time,), problems = line_check(self.dataset).check([line])
        problem = problems.get(0, "")
        if row_id is None or batch_of(row_id) != self.envelope.batch_id:
            return None, f"not a row of batch {self.envelope.batch_id}" + (problem and f": {problem}")
        if time not in (self.envelope.created_at, None):
            return row_id, f"its created_at is {time}, and that of its message {self.envelope.created_at}"
        return row_id, problem


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
