"""Writing a slice whose rows a store may refuse: the refused ones become dead letters, their neighbours are stored."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import msgspec

from services.core.errors import RowRejected
from services.core.ids import batch_of
from services.core.ports import Block
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
        """None when this is not a row of its batch at all."""
        try:
            row_id = _decode(self.data).id
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return None
        return row_id if batch_of(row_id) == self.envelope.batch_id else None


def write(
    store: Callable[[Sequence[Block]], None], pieces: Sequence[tuple[Slice, Block]], dead_letters: DeadLetters
) -> int:
    """Give `store` what can be stored of `pieces`, each with its block; how many rows. Raises as `store` does.

    A letter is sent before its neighbours are written: a store that already has them would not refuse it again.
    """
    dead_letters.send([_whole(envelope) for piece, _ in pieces for envelope in piece.poison])
    blocks = [block for _, block in pieces]
    lines: dict[int, list[_Line]] = {}  # of the blocks of which a row was refused
    while True:
        try:
            store(blocks)
            return sum(block.rows for block in blocks)
        except RowRejected as refused:
            # What is no row goes first, of all blocks up to there: stores count rows only, and name one at a time.
            unseen = [at for at in range(refused.block + 1) if at not in lines]
            lines |= {at: list(_lines(pieces[at][0].good)) for at in unseen}
            bad = {(at, index) for at in unseen for index, line in enumerate(lines[at]) if line.id() is None}
            bad = bad or {(refused.block, refused.row)}
            dead_letters.send([_one(lines[at][index], refused.reason) for at, index in sorted(bad)])
            for at in {at for at, _ in bad}:
                lines[at] = left = [line for index, line in enumerate(lines[at]) if (at, index) not in bad]
                blocks[at] = replace(blocks[at], rows=len(left), lines=b"".join(line.data for line in left))


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
