"""Decodes a large request body a chunk at a time, so that no step takes long, whatever the size of the body.

Each function takes the body in chunks of any size, and `decode`, which reads a whole body. It yields the rows of one
chunk after the other, with the bytes of their text. A chunk is cut where a row is likely to end. If the text before
the cut decodes, a row does end there, because JSON is read from left to right; if not, the place is found by counting
quotes and brackets. So the outcome is that of `decode` on the whole body, with two differences: a row has at most
MAX_WIRE_ROW bytes, and of several faults in different chunks the first one is reported.
"""

from collections.abc import Callable, Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from services.core.errors import InvalidRow, Malformed, MalformedLine
from services.core.rows import Rows

Decode = Callable[[bytes], Rows]
DecodedChunks = Iterator[tuple[Rows, int]]

MAX_WIRE_ROW = 2 << 20
"""Bytes of one row of a large body, with its white space and escapes; a row as it is stored is bounded by less."""

_GUESSES = 100  # brackets that are tried, from the end of a chunk on, to guess where a row ends
_GAP = 256  # the most white space between two elements of a list with which a guess is made


def decode_object(chunks: Iterable[bytes], decode: Decode) -> DecodedChunks:
    """The body is one object."""
    body = b""
    for chunk in chunks:
        body += chunk
        _refuse_long_row(body, 0)
    yield decode(body), len(body)


def decode_lines(chunks: Iterable[bytes], decode: Decode) -> DecodedChunks:
    """The body is one object a line."""
    # `decode` takes a byte order mark off the text that it gets. The newline keeps it from the texts after the first.
    done, start, rest, opening = 0, 0, b"", b""
    for chunk in chunks:
        rest += chunk
        end = rest.rfind(b"\n") + 1
        rows = _attempt(opening + rest[:end], decode) if end else None
        if rows is None and (end := _last_end(rest) + 1):
            rows = _decode(opening + rest[:end], decode, done, start)
        if rows is not None:
            yield rows, end
            done, start, rest, opening = done + rows.count, start + end, rest[end:], b"\n"
        _refuse_long_row(rest, done)
    yield _decode(opening + rest, decode, done, start), len(rest)


def decode_array(chunks: Iterable[bytes], decode: Decode) -> DecodedChunks:
    """The body is a list of objects; each chunk is decoded as a list of its own."""
    done, start, rest, opening = 0, 0, b"", b""
    for chunk in chunks:
        rest += chunk
        comma = _likely_comma(rest)
        rows = _attempt(opening + rest[:comma] + b"]", decode) if comma > 0 else None
        if rows is None and (comma := _last_comma(rest, depth=len(opening))) >= 0:
            rows = _decode(opening + rest[:comma] + b"]", decode, done, start)
        if rows is not None:
            if not rows.count:
                raise Malformed(f"the body is not valid JSON: no value before the comma (byte {start + 1 + comma})")
            yield rows, comma
            done, start = done + rows.count, start + len(opening) + comma
            rest, opening = rest[comma + 1 :], b"["  # the bracket stands where the comma was
        _refuse_long_row(rest, done)
    rows = _decode(opening + rest, decode, done, start)
    if opening and not rows.count:
        raise Malformed(f"the body is not valid JSON: trailing comma in array (byte {start})")
    yield rows, len(rest)


def _attempt(text: bytes, decode: Decode) -> Rows | None:
    try:
        return decode(text)
    except (InvalidRow, Malformed):
        return None


def _decode(text: bytes, decode: Decode, done: int, start: int) -> Rows:
    """`done` rows and `start` bytes of the body are before `text`."""
    try:
        return decode(text)
    except InvalidRow as error:
        raise InvalidRow(done + error.index, error.field, error.reason) from error
    except MalformedLine as error:
        raise MalformedLine(done + error.index, error.reason) from error
    except Malformed as error:
        raise Malformed(f"{error}, counted from byte {start} of the body" if start else str(error)) from error


def _refuse_long_row(text: bytes, done: int) -> None:
    if len(text) > MAX_WIRE_ROW:
        raise InvalidRow(done, "", f"takes more than {MAX_WIRE_ROW} bytes, or its quotes and brackets do not match")


def _likely_comma(text: bytes) -> int:
    """Return a comma that probably stands between two objects, searched from the end; -1 if none is found.

    The comma may lie inside a row or a string.
    """
    bracket = len(text)
    for _ in range(_GUESSES):
        bracket = text.rfind(b"{", 0, bracket)
        if bracket < 0:
            break
        gap = max(0, bracket - _GAP)
        before = text[gap:bracket].rstrip()
        if before.endswith(b",") and before[:-1].rstrip().endswith(b"}"):
            return gap + len(before) - 1
    return -1


def _last_end(text: bytes) -> int:
    """Return the end of the last value in `text`; -1: no value ends. `text` begins between two values."""
    structure = _Structure(text, 0)
    return structure.last((structure.steps < 0) & (structure.levels == 0))


def _last_comma(text: bytes, depth: int) -> int:
    """Return the last comma between two elements of the list; -1: none. `text` begins in the list if `depth` is 1."""
    structure = _Structure(text, depth)
    return structure.last((structure.kinds == ord(",")) & (structure.levels == 1))


class _Structure:
    """The brackets and commas of a text that are not in strings: their kinds, their steps and the depth after each."""

    def __init__(self, text: bytes, depth: int) -> None:
        data = np.frombuffer(text, np.uint8)
        if b"\\" in text:
            data = _without_escaped(data)
        bracket = data | 0x20  # [ and { are then the same, and so are ] and }
        opens, closes, quotes = bracket == ord("{"), bracket == ord("}"), data == ord('"')
        at = np.flatnonzero(opens | closes | quotes | (data == ord(",")))
        outside = ~np.logical_xor.accumulate(quotes[at])
        self._at = at
        self.kinds = np.where(outside, data[at], 0)
        self.steps = np.where(outside, opens[at].astype(np.int8) - closes[at].astype(np.int8), 0)
        self.levels = depth + np.cumsum(self.steps, dtype=np.int64)

    def last(self, chosen: NDArray[np.bool_]) -> int:
        found = self._at[chosen]
        return int(found[-1]) if found.size else -1


def _without_escaped(data: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A copy in which characters that follow an escaping backslash are 0. In a run, every other backslash escapes."""
    found = np.flatnonzero(data == ord("\\"))
    begins = np.r_[True, np.diff(found) > 1]
    run = np.maximum.accumulate(np.where(begins, found, 0))
    escaped = found[(found - run) % 2 == 0] + 1
    data = data.copy()
    data[escaped[escaped < len(data)]] = 0
    return data
