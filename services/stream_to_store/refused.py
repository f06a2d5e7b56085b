"""Writing slices of which a store may refuse rows: refused rows become dead letters, their neighbours are stored."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from services.core.dataset import Dataset
from services.core.errors import RowRejected
from services.core.ids import batch_of
from services.core.lines import line_check
from services.core.ports import Block, StoreWriter
from services.stream_to_store.lane import Envelope, Slice
from services.streams.dead_letters import DeadLetter, DeadLetters


def write(writer: StoreWriter, pieces: Sequence[tuple[Slice, Block]], dead_letters: DeadLetters, is_first: bool) -> int:
    """Store the rows of `pieces` that the store takes, send dead letters for the others; return the rows stored.

    `is_first`: no former attempt at these messages was made. Raises StoreDown and Backpressure: call again, and then it
    is not the first.
    """
    dead_letters.send([_whole(envelope) for piece, _ in pieces for envelope in piece.poison])
    blocks = [block for _, block in pieces]
    if is_first:
        try:
            writer.write(blocks)
            return sum(block.rows for block in blocks)
        except RowRejected:
            pass
    # A line that is no row of its message's batch is left out here: a completion searches the store for the rows of
    # these batches, accepted on this day, and would never find the line's row.
    own = [[_Own.of(block.dataset, envelope) for envelope in piece.good] for piece, block in pieces]
    letters = [letter for parts in own for part in parts for letter in part.strangers]
    left = [
        replace(block, rows=sum(len(part.lines) for part in parts), lines=b"".join(part.joined() for part in parts))
        for block, parts in zip(blocks, own, strict=True)
    ]
    refusals = writer.complete(left)
    ends = [list(accumulate(len(part.lines) for part in parts)) for parts in own]
    for refusal in refusals:
        row = refusal.row or 0
        at = bisect_right(ends[refusal.block], row)
        part = own[refusal.block][at]
        letters.append(part.letter(row - ends[refusal.block][at] + len(part.lines), refusal.reason))
    dead_letters.send(letters)
    return sum(block.rows for block in left) - len(refusals)


@dataclass(frozen=True, slots=True)
class _Own:
    """The lines of a message that are rows of its batch, their numbers in the message, their ids; and other lines."""

    envelope: Envelope
    lines: Sequence[bytes]
    numbers: Sequence[int]
    ids: Sequence[int | None]
    strangers: Sequence[DeadLetter] = ()

    @staticmethod
    def of(dataset: Dataset, envelope: Envelope) -> "_Own":
        lines = envelope.message.value.split(b"\n")[:-1]
        ids, times, problems = line_check(dataset).check(lines)
        strangers = []
        numbers = []
        for number, (row_id, time) in enumerate(zip(ids, times, strict=True)):
            own_id = row_id if row_id is not None and batch_of(row_id) == envelope.batch_id else None
            if own_id is None:
                reason = f"not a row of batch {envelope.batch_id}"
                if number in problems:
                    reason += f": {problems[number]}"
            elif time not in (envelope.created_at, None):  # without a time it is no row at all, and refused as such
                reason = f"its created_at is {time}, and that of its message {envelope.created_at}"
            else:
                numbers.append(number)
                continue
            strangers.append(_letter(envelope, number, lines[number], own_id, reason))
        if strangers:
            lines, ids = [lines[at] for at in numbers], [ids[at] for at in numbers]
        return _Own(envelope, lines, numbers, ids, strangers)

    def joined(self) -> bytes:
        if not self.strangers:
            return self.envelope.message.value
        return b"".join([line + b"\n" for line in self.lines])

    def letter(self, at: int, reason: str) -> DeadLetter:
        return _letter(self.envelope, self.numbers[at], self.lines[at], self.ids[at], reason)


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


def _letter(envelope: Envelope, number: int, line: bytes, row_id: int | None, reason: str) -> DeadLetter:
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
