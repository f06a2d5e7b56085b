"""Writing slices of which a store may refuse rows: refused rows become dead letters, their neighbours are stored."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import msgspec

from services.core.errors import RowRejected
from services.core.ids import batch_of
from services.core.ports import Block, StoreWriter
from services.stream_to_store.lane import Envelope, Slice
from services.streams.dead_letters import DeadLetter, DeadLetters


class _Identity(msgspec.Struct):
    id: int
    created_at: int


_decode = msgspec.json.Decoder(_Identity).decode


@dataclass(frozen=True, slots=True)
class _Line:
    envelope: Envelope
    number: int
    data: bytes

    def id(self) -> int | None:
        """Return None if the line is not a row of its batch."""
        try:
            row_id = _decode(self.data).id
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return None
        return row_id if batch_of(row_id) == self.envelope.batch_id else None


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
    # A line that is no row of its batch is left out here: a store may count rows without such a line.
    lines = [list(_lines(piece.good)) for piece, _ in pieces]
    letters = [_one(line, "") for of_block in lines for line in of_block if line.id() is None]
    rows = [[line for line in of_block if line.id() is not None] for of_block in lines]
    left = [
        replace(block, rows=len(found), lines=b"".join(line.data for line in found))
        for block, found in zip(blocks, rows, strict=True)
    ]
    refusals = writer.complete(left)
    letters += [_one(rows[refusal.block][refusal.row or 0], refusal.reason) for refusal in refusals]
    dead_letters.send(letters)
    return sum(block.rows for block in left) - len(refusals)


def _lines(envelopes: Iterable[Envelope]) -> Iterator[_Line]:
    for envelope in envelopes:
        for number, data in enumerate(envelope.message.value.split(b"\n")[:-1]):
            yield _Line(envelope, number, data + b"\n")


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


def _one(line: _Line, reason: str) -> DeadLetter:
    row_id = line.id()
    return DeadLetter(
        partition=line.envelope.message.partition,
        offset=line.envelope.message.offset,
        line=line.number,
        batch_id=line.envelope.batch_id,
        id=row_id,
        rows=1,
        reason=f"not a row of batch {line.envelope.batch_id}" if row_id is None else reason,
        value=line.data.rstrip(b"\n"),
    )
