"""Writes blocks of which a store may reject rows. Rejected rows become dead letters, and the other rows are stored."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate

from services.core.completion import checked, without
from services.core.dataset import Dataset
from services.core.dead_letter import DeadLetter
from services.core.errors import RowRejected
from services.core.ids import batch_of
from services.core.kafka_value import Envelope, join, split
from services.core.lines import are_rows_of, line_check
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
        except RowRejected:
            pass
    # A line that is no row of its message's batch is left out here: a completion searches the store for the rows of
    # these batches, accepted on this day, and would never find the line's row.
    own = [[_OwnLines.of(block.dataset, envelope) for envelope in found.good] for found, block in ranges]
    dead_lettered = [dead_letter for messages in own for lines in messages for dead_letter in lines.strangers]
    left = [
        replace(
            block,
            rows=sum(len(lines.numbers) for lines in messages),
            lines=b"".join(lines.joined() for lines in messages),
        )
        for block, messages in zip(blocks, own, strict=True)
    ]
    own_progress = writer if isinstance(writer, OwnProgressWriter) else None
    rejections = own_progress.rejections(left) if own_progress else _written(writer, left, is_first)
    ends = [list(accumulate(len(lines.numbers) for lines in messages)) for messages in own]
    for rejection in rejections:
        row = rejection.row or 0
        at = bisect_right(ends[rejection.block], row)
        lines = own[rejection.block][at]
        dead_lettered.append(lines.dead_letter(row - ends[rejection.block][at] + len(lines.numbers), rejection.reason))
    dead_letters.send(dead_lettered)
    if own_progress:  # its transaction counts the dead-lettered lines as loaded, so the dead letters are sent before
        own_progress.write(without(left, rejections))
    return sum(block.rows for block in left) - len(rejections)


def _written(writer: StoreWriter, blocks: Sequence[Block], is_first: bool) -> Sequence[RowRejected]:
    """Write the rows that the store takes, and return the others.

    `is_first`: the store has just rejected the blocks as a whole, at the first attempt. Then it holds none of the rows,
    and those that our own check lets pass are written without a look at the store.
    """
    if is_first:
        sound, rejections = checked(blocks)
        try:
            writer.write(sound)
            return rejections
        except RowRejected:
            pass
    return writer.complete(blocks)


@dataclass(frozen=True)
class _OwnLines:
    """The lines of one message that are rows of its batch. `strangers` are dead letters about the other lines.

    `numbers` are the numbers of these lines in the message, from 0.
    """

    dataset: Dataset
    envelope: Envelope
    numbers: Sequence[int]
    strangers: Sequence[DeadLetter] = ()

    @staticmethod
    def of(dataset: Dataset, envelope: Envelope) -> "_OwnLines":
        batch_id, created_at = envelope.batch_id, envelope.created_at
        assert batch_id is not None  # without one, the envelope has a problem
        if are_rows_of(envelope.message.value, envelope.rows, batch_id, created_at):
            return _OwnLines(dataset, envelope, range(envelope.rows))
        strangers, numbers = [], []
        lines = split(envelope.message.value)
        ids, times, problems = line_check(dataset).check(lines)
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
            strangers.append(_dead_letter(envelope, number, lines[number], own_id, reason))
        return _OwnLines(dataset, envelope, numbers, strangers)

    def joined(self) -> bytes:
        if not self.strangers:
            return self.envelope.message.value
        return join([self._lines[number] for number in self.numbers])

    def dead_letter(self, at: int, reason: str) -> DeadLetter:
        number = self.numbers[at]
        return _dead_letter(self.envelope, number, self._lines[number], self._ids[number], reason)

    @cached_property
    def _lines(self) -> Sequence[bytes]:
        return split(self.envelope.message.value)

    @cached_property
    def _ids(self) -> Sequence[int | None]:
        return line_check(self.dataset).check(self._lines).ids


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
