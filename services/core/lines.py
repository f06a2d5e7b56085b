"""The validator of lines of Kafka values: which lines are rows of the dataset, and why the others are not.

stream-to-store checks messages without our hash before the first write to ClickHouse. It checks the others only after
the store has rejected lines or may have lost them, because finding the bad lines by writes alone takes a write for
each. `line_fields` has the rules.
"""

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Annotated, Any, NamedTuple

import msgspec

from services.core.dataset import MAX_CATEGORY_CHARACTERS, Dataset
from services.core.ids import first_id
from services.core.line_fields import IDS, INSTANTS, LineField, line_fields

UNDECODABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for bytes that are not the JSON that a decoder expects."""

_AT_ONCE = 1000  # lines that are decoded in one call
_MOST_DIGITS = len(str(IDS.highest))

Instant = Annotated[int, msgspec.Meta(ge=INSTANTS.lowest, le=INSTANTS.highest)]
Category = Annotated[str, msgspec.Meta(max_length=MAX_CATEGORY_CHARACTERS)]
"""Types of fields, for readers that need some fields of a line only. A category may hold the character NUL."""

_TYPES: dict[str, type] = {"integer": int, "number": float, "text": str}


class _Identity(msgspec.Struct, gc=False):
    id: Any = None
    created_at: Any = None


_identities = msgspec.json.Decoder(_Identity)
_encode_lines = msgspec.json.Encoder().encode_lines


class Checked(NamedTuple):
    """The id and the time of acceptance of each line, or None. `problems`: number of an invalid line -> the reason."""

    ids: list[int | None]
    created_at: list[int | None]
    problems: dict[int, str]


def may_be_one_in_each_line(text: bytes, lines: int) -> bool:
    """Return False unless each line begins and ends like an object. `text` ends without a newline.

    If this returns True, and msgspec decodes `lines` values, each line has one value: in NDJSON, `{` follows `}` only
    between two values.
    """
    return text[:1] == b"{" and text[-1:] == b"}" and text.count(b"}\n{") == lines - 1


class LineCheck:
    """The validator for one dataset. It is stateless after construction, so threads may share it."""

    def __init__(self, dataset: Dataset) -> None:
        self._decoder = msgspec.json.Decoder(_row_type(dataset))

    def are_rows_of(self, value: bytes, lines: int, batch_id: int, created_at: int) -> bool:
        """Return whether each line of a message is a row of the batch, accepted at this time, as `RowCodec` writes it.

        This takes half the time of `check`. Call `check` to learn which lines are not such rows. `lines` is the number
        of lines.
        """
        if not may_be_one_in_each_line(value.removesuffix(b"\n"), lines):
            return False
        try:
            rows = self._rows(value)
        except UNDECODABLE:
            return False
        first, end = first_id(batch_id), first_id(batch_id + 1)
        return (
            len(rows) == lines
            and _encode_lines(rows) == value
            and all(first <= row.id < end and row.created_at == created_at for row in rows)
        )

    def check(self, lines: Sequence[bytes]) -> Checked:
        """Check lines, which have no newlines."""
        checked = Checked([], [], {})
        for start in range(0, len(lines), _AT_ONCE):
            self._check_some(checked, start, lines[start : start + _AT_ONCE])
        return checked

    def _check_some(self, checked: Checked, start: int, lines: Sequence[bytes]) -> None:
        """Check lines in one call, and each half of them where that fails. `start`: the number of the first line."""
        text = b"\n".join(lines)
        try:
            rows = self._rows(text) if may_be_one_in_each_line(text, len(lines)) else []
        except UNDECODABLE:
            rows = []
        if len(rows) == len(lines) and _encode_lines(rows) == text + b"\n":  # as `RowCodec` writes them
            checked.ids.extend([row.id for row in rows])
            checked.created_at.extend([row.created_at for row in rows])
        elif len(lines) == 1:
            self._check_one(checked, start, lines[0])
        else:
            middle = len(lines) // 2
            self._check_some(checked, start, lines[:middle])
            self._check_some(checked, start + middle, lines[middle:])

    def _rows(self, lines: bytes) -> list[Any]:
        if not lines.isascii():
            lines.decode()  # msgspec passes over the bytes of columns that it does not know
        return self._decoder.decode_lines(lines)

    def _check_one(self, checked: Checked, number: int, line: bytes) -> None:
        row_id, created_at = None, None
        try:
            if len(rows := self._rows(line)) == 1:
                row_id, created_at = rows[0].id, rows[0].created_at
                if _has_repeated_name(line):
                    checked.problems[number] = "a name is given twice"
            else:
                checked.problems[number] = "the line is not one object"
        except UNDECODABLE as error:
            checked.problems[number] = str(error)
            row_id, created_at = _identity(line)
        checked.ids.append(row_id)
        checked.created_at.append(created_at)


@lru_cache
def line_check(dataset: Dataset) -> LineCheck:
    return LineCheck(dataset)


def _identity(line: bytes) -> tuple[int | None, int | None]:
    """Return the id and the time of acceptance of a line that is no row, None where they cannot be read."""
    try:
        found = _identities.decode(line)
    except UNDECODABLE:
        return None, None
    return _integer(found.id), _integer(found.created_at)


def _has_repeated_name(line: bytes) -> bool:
    """Return whether a name occurs twice. msgspec takes the last value of such a name; a store may refuse the line."""
    lost = 0

    def count(pairs: list[tuple[str, Any]]) -> None:
        nonlocal lost
        lost += len(pairs) - len(dict(pairs))

    # Numbers stay texts: int() refuses one of more than 4,300 digits.
    json.loads(line, object_pairs_hook=count, parse_int=str, parse_float=str)
    return lost > 0


def _integer(value: Any) -> int | None:
    if type(value) is str and value.isascii() and value.isdecimal() and len(value) <= _MOST_DIGITS:
        value = int(value)  # a store may have taken a number in quotes
    return value if type(value) is int and 0 <= value <= IDS.highest else None


def _row_type(dataset: Dataset) -> type[msgspec.Struct]:
    return msgspec.defstruct("Line", [_defined(field) for field in line_fields(dataset)], kw_only=True, gc=False)


def _defined(field: LineField) -> Any:
    """Return a field in the form of `msgspec.defstruct`."""
    kind: Any = _TYPES[field.type]
    if field.limits:
        kind = Annotated[kind, msgspec.Meta(ge=field.limits.lowest, le=field.limits.highest)]
    elif field.type == "text":
        kind = Annotated[kind, msgspec.Meta(max_length=field.max_characters, pattern=field.pattern)]
    return (field.name, kind) if field.required else (field.name, kind | None, None)
