"""The check of lines of Kafka values by ourselves: which are rows of the dataset, and why the others are not.

Stores parse the lines of a first write without this check. It is made after a store has refused lines, or may have lost
them: to find the bad lines by a store takes a write for each of them.
"""

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Annotated, Any, NamedTuple

import msgspec

from services.core.dataset import MAX_CATEGORY_CHARACTERS, Column, Dataset
from services.core.ids import MAX_BATCH_ROWS, first_id
from services.core.instants import LAST_INSTANT

UNDECODABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for bytes that are not the JSON that a decoder expects."""

_AT_ONCE = 1000  # lines that are decoded in one call

_LARGEST = (1 << 63) - 1  # id that a store can hold
_Id = Annotated[int, msgspec.Meta(ge=MAX_BATCH_ROWS, le=_LARGEST)]
Instant = Annotated[int, msgspec.Meta(ge=0, lt=LAST_INSTANT)]
Category = Annotated[str, msgspec.Meta(max_length=MAX_CATEGORY_CHARACTERS)]
"""Types of fields of a line, for readers that need some of its columns only. A category may hold the character NUL."""

_Uuid = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\\Z")]
_TYPES: dict[str, Any] = {"timestamp": Instant, "number": float, "uuid": _Uuid}


class _Identity(msgspec.Struct, gc=False):
    id: Any = None
    created_at: Any = None


_identities = msgspec.json.Decoder(_Identity)
_encode_lines = msgspec.json.Encoder().encode_lines


class Checked(NamedTuple):
    """Of each line its id and its time of acceptance, None where it has none; and why some lines are no rows."""

    ids: list[int | None]
    created_at: list[int | None]
    problems: dict[int, str]


def are_rows_of(value: bytes, lines: int, batch_id: int, created_at: int) -> bool:
    """Whether each line of a message has an id of the batch, and the batch's time of acceptance.

    Nothing else is looked at. Where it is False, `LineCheck` tells which lines have them. `lines`: how many there are.
    """
    if not _one_a_line(value.removesuffix(b"\n"), lines):
        return False
    try:
        found = _identities.decode_lines(value)
    except UNDECODABLE:
        return False
    first, end = first_id(batch_id), first_id(batch_id + 1)
    return len(found) == lines and all(
        type(row.id) is int and first <= row.id < end and row.created_at == created_at for row in found
    )


def _one_a_line(text: bytes, lines: int) -> bool:
    """False if a line may hold no value, or several. `text` ends without a newline."""
    return text[:1] == b"{" and text[-1:] == b"}" and text.count(b"}\n{") == lines - 1


class LineCheck:
    """Of one dataset. Stateless after construction."""

    def __init__(self, dataset: Dataset) -> None:
        self._decoder = msgspec.json.Decoder(_row_type(dataset))

    def check(self, lines: Sequence[bytes]) -> Checked:
        """`lines` are without newlines."""
        checked = Checked([], [], {})
        for start in range(0, len(lines), _AT_ONCE):
            self._check_some(checked, start, lines[start : start + _AT_ONCE])
        return checked

    def _check_some(self, checked: Checked, start: int, lines: Sequence[bytes]) -> None:
        """Check lines in one call, and each half of them where that fails. `start`: the number of the first line."""
        text = b"\n".join(lines)
        try:
            rows = self._rows(text) if _one_a_line(text, len(lines)) else []
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
                if _names_twice(line):
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
    """The id and the time of acceptance of a line that is no row, as far as there are any."""
    try:
        found = _identities.decode(line)
    except UNDECODABLE:
        return None, None
    return _integer(found.id), _integer(found.created_at)


def _names_twice(line: bytes) -> bool:
    """msgspec takes the last value of a name that is given twice; a store may refuse the line."""

    lost = 0

    def count(pairs: list[tuple[str, Any]]) -> None:
        nonlocal lost
        lost += len(pairs) - len(dict(pairs))

    json.loads(line, object_pairs_hook=count)
    return lost > 0


def _integer(value: Any) -> int | None:
    return value if type(value) is int and 0 <= value <= _LARGEST else None


def _row_type(dataset: Dataset) -> type[msgspec.Struct]:
    fields: list[Any] = [("id", _Id), ("created_at", Instant), *(_field(dataset, c) for c in dataset.columns)]
    return msgspec.defstruct("Line", fields, kw_only=True, gc=False)


def _field(dataset: Dataset, column: Column) -> Any:
    kind = Category if column in dataset.bounded else _TYPES.get(column.kind, str)
    return (column.name, kind) if column.required else (column.name, kind | None, None)
