"""Decodes the messages of a foreign topic into rows, and lines that are no rows into dead letters.

The bytes are those of another program: nothing that they contain may stop the process, or change what another line
becomes. Messages are decoded in one call if each of their lines is one value. If not, they are split into
parts, and so on down to a single message. The lines of a bad message are decoded in groups, and then one by one.
"""

import codecs
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from itertools import islice

import msgspec

from services.core.dataset import Dataset
from services.core.dead_letter import DeadLetter, LineDeadLetters
from services.core.errors import LogpipeError
from services.core.lines import UNDECODABLE, may_be_one_in_each_line
from services.core.ports import Message
from services.core.rows import RowCodec, Rows

_AT_ONCE = 1000  # lines of a bad message that are decoded in one call
_PARTS = 16  # into which messages are split if one of them is bad
_BLANKS = b" \t\r\n"  # of JSON
_value = msgspec.json.Decoder(msgspec.Raw)
_REFUSED = (LogpipeError, ValueError, *UNDECODABLE)  # ValueError: Python reads no integer of 4,301 digits


@dataclass(slots=True)
class Decoded:
    """The rows in messages, in order, in chunks of which none is empty, and the dead letters.

    `lines` is counted by itself: if all is well, it is the number of rows and of the lines that are dead letters.
    """

    lines: int = 0
    chunks: list[Rows] = field(default_factory=list)
    dead_letters: list[DeadLetter] = field(default_factory=list)

    @property
    def rows(self) -> int:
        return sum(chunk.count for chunk in self.chunks)

    @property
    def dead_lines(self) -> int:
        return sum(dead_letter.rows for dead_letter in self.dead_letters)


class MessageDecoder:
    """Decodes messages by the wire names of a dataset. Stateless after construction."""

    def __init__(self, dataset: Dataset) -> None:
        self._codec = RowCodec(dataset)

    def decode(self, messages: Sequence[Message]) -> Decoded:
        """Return what the messages of one partition contain; there is at least one. Raises nothing."""
        decoded = Decoded()
        self._decode_some(messages, decoded)
        return decoded

    def refused(self, message: Message, reason: str) -> Decoded:
        """Return dead letters only, for a message of which PostgreSQL refuses a row that decodes."""
        decoded = self.decode([message])
        single = [each for each in decoded.dead_letters if each.line is not None]
        rows = decoded.lines - len(single)
        if further := rows - decoded.rows:
            reason = f"{reason}; {further} more lines of this message are no rows"
        whole = DeadLetter(message.partition, message.offset, None, None, None, rows, reason, message.value)
        return Decoded(decoded.lines, [], [*single, whole])

    def _decode_some(self, messages: Sequence[Message], decoded: Decoded) -> None:
        """Add what the messages contain to `decoded`: in one call, or in parts where that fails."""
        if rows := self._all(messages):
            decoded.lines += rows.count
            decoded.chunks.append(rows)
        elif len(messages) == 1:
            self._decode(messages[0], decoded)
        else:
            size = -(-len(messages) // _PARTS)
            for start in range(0, len(messages), size):
                self._decode_some(messages[start : start + size], decoded)

    def _all(self, messages: Sequence[Message]) -> Rows | None:
        """Return the rows of all messages if no line is blank and each line is one row; else None."""
        return self._one_row_a_line(b"\n".join([message.value.strip(_BLANKS) for message in messages]))

    def _one_row_a_line(self, text: bytes) -> Rows | None:
        """Return the rows of lines if each line is one row; else None. `text` ends without a newline."""
        if b"\r\n" in text:
            text = text.replace(b"}\r\n{", b"}\n{")
        lines = text.count(b"\n") + 1
        if not may_be_one_in_each_line(text, lines):
            return None
        try:
            rows = self._codec.decode_lines(text, explained=False)
        except _REFUSED:
            return None
        return rows if rows.count == lines else None

    def _decode(self, message: Message, decoded: Decoded) -> None:
        """Add what the message contains to `decoded`."""
        value = message.value
        if len(list(islice(_lines(value), 2))) < 2 or _is_one_value(value):
            decoded.lines += 1  # an object may extend over several lines, which are one line then
            try:
                decoded.chunks.append(self._codec.decode_object(value))
            except _REFUSED as error:
                reason = message.problem or (_text(error) if value.strip() else "the message has no row")
                decoded.dead_letters.append(_whole(message, reason))
            return
        lines, first, refused = _lines(value), 0, LineDeadLetters(message.partition, message.offset)
        while some := list(islice(lines, _AT_ONCE)):
            decoded.chunks += self._decode_lines(some, first, refused)
            first += len(some)
        decoded.lines += first
        decoded.dead_letters += refused.dead_letters()

    def _decode_lines(self, lines: Sequence[bytes], first: int, refused: LineDeadLetters) -> list[Rows]:
        """Return the rows of lines, of which the first one has the number `first` in the message."""
        if rows := self._one_row_a_line(b"\n".join([line.strip(_BLANKS) for line in lines])):
            return [rows]
        good = []
        for number, line in enumerate(lines, first):
            try:
                good.append(self._codec.decode_object(line, explained=refused.needs_reason))
            except _REFUSED as error:
                refused.add(number, line, _text(error))
        return [Rows.joined(good)] if good else []


def _whole(message: Message, reason: str) -> DeadLetter:
    return DeadLetter(message.partition, message.offset, None, None, None, 1, reason, message.value)


def _is_one_value(text: bytes) -> bool:
    try:
        _value.decode(text.removeprefix(codecs.BOM_UTF8))
    except UNDECODABLE:
        return False
    return True


def _lines(value: bytes) -> Iterator[bytes]:
    """Yield the lines that are not blank, one at a time: a list of them could take 30 times the memory of `value`."""
    return (line.rstrip(b"\r\n") for line in BytesIO(value) if line.strip())


def _text(error: BaseException) -> str:
    return str(error).removeprefix("row 0: ")
