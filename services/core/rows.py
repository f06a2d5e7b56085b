"""Decodes request bodies into canonical rows, and encodes canonical rows into the lines that every store receives.

A row in canonical form is a tuple `(id, created_at, *columns)` in the dataset's order, with the value types of
`dataset.Kind`. Its line is that tuple as one JSON object, times as integer microseconds. An added column whose value is
missing is left out. A Kafka value is such lines, each ended by a newline. A checksum is the sum of the lines' hashes.
Each store's rows, read back into canonical form, must give the same lines again: that is what `verify` compares.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, repeat, starmap
from typing import Any
from uuid import UUID

import msgspec
import numpy as np
import xxhash

from services.core import instants
from services.core.dataset import MAX_CATEGORY_CHARACTERS, Column, Dataset
from services.core.errors import InvalidRow, LogpipeError, Malformed, MalformedLine, shown
from services.core.ids import first_id
from services.core.lines import UNDECODABLE

Row = tuple[Any, ...]

MAX_LINE_BYTES = 256 * 1024
MAX_JSON_DEPTH = 200
MAX_NUMBER_DIGITS = 4300
"""Digits of a number in a JSON column, in a row: Python's json module reads no integer of more."""
CHECKSUM_MASK = (1 << 63) - 1  # so that a checksum fits a signed 64-bit column

_LINES_AT_ONCE = 1000  # of a refused body, which one call searches for lines that are no JSON
_SUSPECT_ESCAPE = re.compile(rb"\\u(?:0000|[dD][89a-fA-F])")
_REFUSED_OR_PAIRED = re.compile(r"(?<!\\)(?:\\\\)*\\u(0000|[dD][89a-fA-F][0-9a-fA-F]{2})")
"""An escape of NUL or of a surrogate, behind any number of escaped backslashes."""
_STRING = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_LONG_NUMBER = re.compile(rf"(?<![0-9])[0-9]{{{MAX_NUMBER_DIGITS + 1}}}")  # looked for once in each run of digits
_AT = re.compile(r"^(?P<reason>.*?)(?: - at `\$(?:\[(?P<index>\d+)\])?(?:\.(?P<field>[^`]*))?`)?$", re.DOTALL)
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_NOT_A_LIST = "one object a line is no JSON list: send such lines as application/x-ndjson"
_NAMED = re.compile(r"(?:unknown|required) field `(?P<field>[^`]*)`")

_WIRE_TYPES: dict[str, Any] = {
    "category": str,
    "text": str,
    "timestamp": str,
    "number": float | None,
    "json": msgspec.Raw,
    "uuid": UUID,
}
_STORED_TYPES: dict[str, Any] = {"timestamp": int, "number": float | None}
_MISSING: dict[str, Any] = {"category": "", "text": "", "number": None, "json": msgspec.Raw(b"{}")}


class Rows:
    """Rows without ids, column by column in canonical form."""

    __slots__ = ("columns", "count")

    def __init__(self, count: int, columns: Sequence[Sequence[Any]]) -> None:
        self.count = count
        self.columns = columns

    def tuples(self, batch_id: int, created_at: int) -> Iterable[Row]:
        """Return canonical rows, numbered from the batch's first id on. `created_at` is in microseconds."""
        start = first_id(batch_id)
        return zip(range(start, start + self.count), repeat(created_at), *self.columns, strict=False)

    def slice(self, start: int, stop: int) -> "Rows":
        stop = min(stop, self.count)
        if stop - start == self.count:
            return self
        return Rows(stop - start, [column[start:stop] for column in self.columns])

    def hidden_from_gc(self) -> "Rows":
        """Return the same rows, in columns that Python's garbage collection does not visit.

        The collection visits every value of every list, and stops the process meanwhile: for half a second with a
        million rows.
        """
        columns: Sequence[Any] = [np.fromiter(column, object, self.count) for column in self.columns]
        return Rows(self.count, columns)

    @staticmethod
    def of(tuples: Sequence[Row]) -> "Rows":
        """Return rows from tuples, the inverse of `tuples`. There is at least one tuple."""
        _ids, _times, *columns = zip(*tuples, strict=True)
        return Rows(len(tuples), columns)

    @staticmethod
    def batches(chunks: Iterable["Rows"], size: int) -> Iterator["Rows"]:
        """Yield all rows of `chunks`, in order, `size` rows at a time. The last result may have fewer."""
        held, count = list[Rows](), 0
        for chunk in chunks:
            start = 0
            while count + chunk.count - start >= size:
                stop = start + size - count
                yield Rows.joined([*held, chunk.slice(start, stop)])
                held, count, start = [], 0, stop
            if start < chunk.count:
                held.append(chunk.slice(start, chunk.count))
                count += chunk.count - start
        if held:
            yield Rows.joined(held)

    @staticmethod
    def joined(chunks: Sequence["Rows"]) -> "Rows":
        """Return all rows of `chunks`, in order. There is at least one chunk, and no chunk is empty."""
        if len(chunks) == 1:
            return chunks[0]
        columns = zip(*(chunk.columns for chunk in chunks), strict=True)
        return Rows(sum(chunk.count for chunk in chunks), [list(chain.from_iterable(column)) for column in columns])


class RowCodec:
    """Decodes request bodies of one dataset and encodes its canonical rows. Stateless after construction."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self._wire_columns = dataset.wire_columns
        self._length_limited = dataset.length_limited
        wire = _wire_struct(dataset)
        self._one = msgspec.json.Decoder(wire)
        self._many = msgspec.json.Decoder(list[wire])  # type: ignore[valid-type]
        self._any = msgspec.json.Decoder(msgspec.Raw)
        self._stored = _stored_struct(dataset)
        self._encode = msgspec.json.Encoder().encode
        # Within a value a quote is escaped, so nothing but the column itself looks like this.
        self._left_out = [
            b',"%s":%s' % (c.name.encode(), self._encode(_missing(c))) for c in dataset.columns if c.added
        ]
        self._decode_line = msgspec.json.Decoder(self._stored).decode
        self._derived = {
            column.name: msgspec.json.Decoder(msgspec.defstruct("Derived", [(column.derived_from[1], Any, "")]))
            for column in dataset.columns
            if column.derived_from
        }

    def decode_object(self, body: bytes, *, explained: bool = True) -> Rows:
        """Decode one JSON object. Raises Malformed (not JSON) or InvalidRow.

        Unless `explained`, the error may be Malformed without a reason, because to find the reason takes long.
        """
        refused = self._refused_body if explained else _unexplained
        return self._columns(body, [self._decode(self._one.decode, body, refused)])

    def decode_array(self, body: bytes) -> Rows:
        """Decode a JSON list of objects. Raises Malformed or InvalidRow."""
        return self._columns(body, self._decode(self._many.decode, body, self._refused_list))

    def decode_lines(self, body: bytes, *, explained: bool = True) -> Rows:
        """Decode NDJSON, one JSON object in each line; blank lines are ignored. Raises MalformedLine or InvalidRow.

        `explained` is that of `decode_object`.
        """
        refused = self._refused_lines if explained else _unexplained
        return self._columns(body, self._decode(self._one.decode_lines, body, refused))

    def encode(self, rows: Iterable[Row]) -> list[bytes]:
        """Return the line of each row, without newlines."""
        lines = list(map(self._encode, starmap(self._stored, rows)))
        for left_out in self._left_out:
            lines = [line.replace(left_out, b"") for line in lines]
        return lines

    def decode_line(self, line: bytes) -> Row:
        """Decode a line into its row. Raises Malformed if it is not a line of this dataset."""
        try:
            return msgspec.structs.astuple(self._decode_line(line))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise Malformed(f"not a line of {self.dataset.name}: {error}") from error

    def _decode(self, decode: Any, body: bytes, refused: Callable[[bytes, str], LogpipeError]) -> Any:
        """`refused` makes the error of a body that does not decode; it gets msgspec's own reason."""
        body = body.removeprefix(_BYTE_ORDER_MARK)
        try:
            if not body.isascii():
                body.decode()  # msgspec passes the bytes of json columns through unread
            return decode(body)
        except (UnicodeDecodeError, RecursionError, msgspec.DecodeError) as error:
            raise refused(body, str(error)) from error

    def _refused_body(self, body: bytes, reason: str) -> LogpipeError:
        # msgspec ends at the first value of a wrong type: what follows may be no JSON, which is another error.
        if not_json := self._not_json(body):
            return Malformed(f"the body is {not_json}")
        return self._invalid_row(reason)

    def _refused_list(self, body: bytes, reason: str) -> LogpipeError:
        refused = self._refused_body(body, reason)
        if not body.lstrip().startswith(b"{"):
            return refused
        if isinstance(refused, InvalidRow):
            return InvalidRow(refused.index, refused.field, f"{refused.reason}; {_NOT_A_LIST}")
        return Malformed(f"{refused}; {_NOT_A_LIST}")

    def _refused_lines(self, body: bytes, reason: str) -> LogpipeError:
        lines = [line for line in body.split(b"\n") if line.strip()]
        for start in range(0, len(lines), _LINES_AT_ONCE):
            some = lines[start : start + _LINES_AT_ONCE]
            if self._are_json(some):
                continue
            for index, line in enumerate(some, start):
                if not_json := self._not_json(line):
                    return MalformedLine(index, f"the line is {not_json}")
        return self._invalid_row(reason)

    def _are_json(self, lines: Sequence[bytes]) -> bool:
        """Return whether each line is a JSON value. False also if that cannot be said without a check of each line."""
        text = b"\n".join(lines)
        try:
            text.decode()
            return len(self._any.decode_lines(text)) == len(lines)
        except UNDECODABLE:
            return False

    def _not_json(self, text: bytes) -> str | None:
        """Return why the text is no JSON value; None when it is one."""
        try:
            decoded = text.decode()
            self._any.decode(text)
        except UnicodeDecodeError as error:
            return f"not valid UTF-8: byte {error.start}: {error.reason}"
        except RecursionError:
            return "nested too deeply"
        except msgspec.DecodeError as error:
            # msgspec calls a lone surrogate "truncated".
            return f"not valid JSON: {_refused_escape(decoded) or error}"
        return None

    def _invalid_row(self, message: str) -> InvalidRow:
        found = _AT.match(message)
        assert found is not None  # the pattern matches any text
        index, field, reason = int(found["index"] or 0), found["field"] or "", found["reason"]
        named = _NAMED.search(reason)
        if named and not field:
            field = named["field"]
        reason = shown(reason)  # which may contain the name of an unknown field
        if any(column.wire == field and column.kind == "timestamp" for column in self._wire_columns):
            reason = reason.replace("`str`", "an ISO 8601 time with a zone")
        return InvalidRow(index, field, reason[:1].lower() + reason[1:])

    def _columns(self, body: bytes, structs: list[Any]) -> Rows:
        if not structs:
            return Rows(0, [])
        # One list in the order of memory, then its strides: `zip(*rows)` would visit every row again for each column.
        values_by_row = list(chain.from_iterable(map(msgspec.structs.astuple, structs)))
        width = len(self._wire_columns)
        wire = {column.name: values_by_row[index::width] for index, column in enumerate(self._wire_columns)}
        suspect = b"\\" in body and _SUSPECT_ESCAPE.search(body) is not None
        values: dict[str, Sequence[Any]] = {}
        for column in self._wire_columns:
            values[column.name] = _canonical(column, wire[column.name], suspect)
        for column in self.dataset.columns:
            if column.derived_from:
                values[column.name] = self._derive(column, values[column.derived_from[0]])
        rows = Rows(len(structs), [values[c.name] for c in self.dataset.columns])
        self._refuse_long(rows)
        return rows

    def _derive(self, column: Column, sources: Sequence[str]) -> list[str]:
        assert column.derived_from is not None
        decode, name = self._derived[column.name].decode, column.derived_from[1]
        known: dict[str, str] = {}
        for source in sources:
            if source not in known:
                try:
                    value = getattr(decode(source), name)
                except msgspec.MsgspecError:
                    value = ""  # not an object: it has no such field
                known[source] = value if isinstance(value, str) else ""
        return [known[source] for source in sources]

    def _refuse_long(self, rows: Rows) -> None:
        longest = {
            column.name: max(map(len, values))
            for column, values in zip(self.dataset.columns, rows.columns, strict=True)
            if column.kind in ("category", "text", "json")
        }
        for column in self._length_limited:
            if longest[column.name] > MAX_CATEGORY_CHARACTERS:
                self._refuse_long_value(column, rows)
        if sum(longest.values()) * 6 < MAX_LINE_BYTES - 1024:  # a character takes at most six bytes of a line
            return
        for index, line in enumerate(self.encode(rows.tuples(0, 0))):
            if len(line) > MAX_LINE_BYTES - 64:  # room for the longest id and time
                raise InvalidRow(index, "", f"the row takes {len(line)} bytes; at most {MAX_LINE_BYTES} are accepted")

    def _refuse_long_value(self, column: Column, rows: Rows) -> None:
        values = rows.columns[self.dataset.columns.index(column)]
        index, size = next((at, len(value)) for at, value in enumerate(values) if len(value) > MAX_CATEGORY_CHARACTERS)
        field = column.wire
        if column.derived_from:
            source, name = column.derived_from
            field = f"{self.dataset.by_name[source].wire}.{name}"
        raise InvalidRow(index, field, f"has {size} characters; at most {MAX_CATEGORY_CHARACTERS} are accepted")


def _unexplained(body: bytes, reason: str) -> LogpipeError:
    return Malformed("")


def checksum(lines: Iterable[bytes]) -> int:
    """Return the sum of the lines' 64-bit hashes, in 0..2**63-1: the same in whatever order they come."""
    return sum(map(xxhash.xxh3_64_intdigest, lines)) & CHECKSUM_MASK


def _wire_struct(dataset: Dataset) -> type[msgspec.Struct]:
    fields: list[Any] = []
    for column in dataset.wire_columns:
        kind: Any = _WIRE_TYPES[column.kind]
        if column.required:
            fields.append((column.name, kind))
        else:
            fields.append((column.name, kind, _MISSING[column.kind]))
    return msgspec.defstruct(
        dataset.name.capitalize(),
        fields,
        rename={c.name: c.wire for c in dataset.wire_columns},
        forbid_unknown_fields=True,
        kw_only=True,
        gc=False,
    )


def _stored_struct(dataset: Dataset) -> type[msgspec.Struct]:
    fields: list[Any] = [("id", int), ("created_at", int)]
    for column in dataset.columns:
        kind = _STORED_TYPES.get(column.kind, str)
        fields.append((column.name, kind, _missing(column)) if column.added else (column.name, kind))
    return msgspec.defstruct(f"Stored{dataset.name.capitalize()}", fields, gc=False)


def _missing(column: Column) -> Any:
    """Return the canonical form of a missing value."""
    return "{}" if column.kind == "json" else _MISSING[column.kind]


def _canonical(column: Column, values: Sequence[Any], suspect: bool) -> Sequence[Any]:
    """Return the wire values of one column in canonical form. Raises InvalidRow.

    `suspect`: the body has escapes that may be the character NUL or surrogates.
    """
    match column.kind:
        case "timestamp":
            try:
                return instants.parse(values)
            except instants.InvalidInstant as error:
                raise InvalidRow(error.index, column.wire, str(error)) from error
        case "json":
            texts = [str(raw, "utf-8") for raw in values]
            if suspect or "null" in texts or max(map(len, texts)) > MAX_JSON_DEPTH * 2:
                return [_checked_json(column, index, text, suspect) for index, text in enumerate(texts)]
            return texts
        case "uuid":
            return [str(value) for value in values]
        case "category" | "text" if suspect:
            for index, value in enumerate(values):
                if "\x00" in value:
                    raise InvalidRow(index, column.wire, "contains the character NUL (\\u0000)")
    return values


def _checked_json(column: Column, index: int, text: str, suspect: bool) -> str:
    if text == "null":
        return "{}"
    if suspect and (reason := _refused_escape(text)):
        raise InvalidRow(index, column.wire, reason)
    if len(text) > MAX_JSON_DEPTH * 2 and text.count("[") + text.count("{") > MAX_JSON_DEPTH:
        _refuse_depth(column, index, text)
    if len(text) > MAX_NUMBER_DIGITS and _has_long_number(text):
        raise InvalidRow(index, column.wire, f"contains a number of more than {MAX_NUMBER_DIGITS} digits")
    return text


def _has_long_number(text: str) -> bool:
    # One of these characters lies in each run of so many digits. Nearly all texts end here.
    if not any(map(str.isdigit, text[MAX_NUMBER_DIGITS :: MAX_NUMBER_DIGITS + 1])):
        return False
    return _LONG_NUMBER.search(text) is not None and _LONG_NUMBER.search(_STRING.sub('""', text)) is not None


def _refused_escape(text: str) -> str | None:
    high_ends_at = -1  # where an unpaired high surrogate ended
    for escape in _REFUSED_OR_PAIRED.finditer(text):
        code = int(escape[1], 16)
        if high_ends_at >= 0:
            if escape.start(1) - len("\\u") != high_ends_at or not 0xDC00 <= code <= 0xDFFF:
                return "contains a lone surrogate"
            high_ends_at = -1
        elif code == 0:
            return "contains the character NUL (\\u0000)"
        elif code <= 0xDBFF:
            high_ends_at = escape.end()
        else:
            return "contains a lone surrogate"
    return "contains a lone surrogate" if high_ends_at >= 0 else None


def _refuse_depth(column: Column, index: int, text: str) -> None:
    depth, in_string, escaped = 0, False, False
    for character in text:
        if in_string:
            if escaped:
                escaped = False
            elif character == "\\":
                escaped = True
            elif character == '"':
                in_string = False
        elif character == '"':
            in_string = True
        elif character in "[{":
            depth += 1
            if depth > MAX_JSON_DEPTH:
                raise InvalidRow(index, column.wire, f"is nested deeper than {MAX_JSON_DEPTH} levels")
        elif character in "]}":
            depth -= 1
