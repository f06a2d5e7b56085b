"""A large body is decoded in chunks, and the outcome is that of decoding it whole."""

import json
import random
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from services.core import row_chunks
from services.core.errors import InvalidRow, LogpipeError, Malformed
from services.core.rows import RowCodec, Rows
from services.datasets import find

CODEC = RowCodec(find("logs"))
LOG = {"timestamp": "2026-01-31T12:00:00Z", "level": "INFO", "service": "auth"}
FOLLOWS = 'x},{"a":[}],\\"\n'  # in a string; looks like the end of a row

SIZE = 100_000

DecodeChunks = Callable[[Iterable[bytes], row_chunks.Decode], Iterator[tuple[Rows, int]]]
LAYOUTS: list[tuple[DecodeChunks, row_chunks.Decode]] = [
    (row_chunks.decode_lines, CODEC.decode_lines),
    (row_chunks.decode_array, CODEC.decode_array),
]


def cut(body: bytes, size: int) -> list[bytes]:
    return [body[at : at + size] for at in range(0, len(body), size)]


def in_chunks(decode_chunks: DecodeChunks, decode: row_chunks.Decode, body: bytes, size: int) -> list[Any]:
    return [row for rows, _ in decode_chunks(cut(body, size), decode) for row in zip(*rows.columns, strict=True)]


def outcome(decode: Callable[[], list[Any]]) -> list[Any] | str:
    """The rows, or that they are refused: which of several faults is named first may differ."""
    try:
        return decode()
    except LogpipeError:
        return "refused"


def some_body(rng: random.Random) -> bytes:
    """A list or lines, mostly valid, in all spellings that JSON allows, some with a byte that was changed."""

    def value(depth: int = 0) -> Any:
        texts = ["", FOLLOWS, "\\", '\\"', "é\u2028", "{[", "a,b"]
        kinds: list[Callable[[], Any]] = [lambda: rng.choice(texts), lambda: rng.randrange(10), lambda: None]
        if depth < 3:
            kinds += [
                lambda: [value(depth + 1) for _ in range(rng.randrange(4))],
                lambda: {rng.choice(texts): value(depth + 1) for _ in range(rng.randrange(3))},
            ]
        return rng.choice(kinds)()

    rows = []
    for _ in range(rng.randrange(1, 12)):
        row = {**LOG, "message": rng.choice(["", FOLLOWS, "},", "\\" * rng.randrange(5)]), "metadata": {"m": value()}}
        items = list(row.items())
        rng.shuffle(items)
        separators = (rng.choice([",", ", ", " ,\n"]), rng.choice([":", ": "]))
        rows.append(json.dumps(dict(items), ensure_ascii=rng.random() < 0.5, separators=separators).encode())
    if rng.random() < 0.5:
        body = b"[" + rng.choice([b",", b", ", b"\n,\n"]).join(rows) + rng.choice([b"]", b" ]\n", b",]", b"", b"]]"])
    else:
        body = rng.choice([b"\n", b"\r\n", b"\n\n", b" "]).join(rows) + rng.choice([b"", b"\n", b"\n\n"])
    if rng.random() < 0.3:
        at = rng.randrange(len(body))
        body = body[:at] + rng.choice([b"", b",", b"}", b"]", b'"', b"\\", b"{", b" "]) + body[at + 1 :]
    return body


@pytest.mark.parametrize("seed", range(3))
def test_the_outcome_is_that_of_the_whole_body(seed: int) -> None:
    rng = random.Random(seed)
    accepted = 0
    for _ in range(40):
        body = some_body(rng)
        for decode_chunks, decode in LAYOUTS:
            whole = outcome(lambda decode=decode, body=body: list(zip(*decode(body).columns, strict=True)))  # type: ignore[misc]
            accepted += whole != "refused"
            for size in (13, 100, 600):
                chunked = outcome(lambda d=decode_chunks, e=decode, b=body, s=size: in_chunks(d, e, b, s))  # type: ignore[misc]
                assert chunked == whole, (seed, size, body)
    assert accepted > 10


@pytest.mark.parametrize(
    "body", [b"[,%b]", b"[%b,]", b"[%b,,%b]", b"[ ,%b]", b"[%b, ,%b]", b"[%b]]", b"[%b]x", b"[%b", b"%b,"]
)
def test_a_list_that_is_none_is_refused_wherever_it_is_cut(body: bytes) -> None:
    row = json.dumps(LOG).encode()
    body = body.replace(b"%b", row)
    for size in range(5, len(body) + 5, 5):
        with pytest.raises((Malformed, InvalidRow)):
            in_chunks(row_chunks.decode_array, CODEC.decode_array, body, size)


def test_errors_name_the_row_and_the_place_in_the_body() -> None:
    lines = [json.dumps(LOG).encode()] * 50 + [b'{"level": 5}'] + [json.dumps(LOG).encode()] * 50
    for (decode_chunks, decode), body in zip(LAYOUTS, (b"\n".join(lines), b"[" + b",".join(lines) + b"]"), strict=True):
        with pytest.raises(InvalidRow) as refused:
            in_chunks(decode_chunks, decode, body, 1000)
        assert (refused.value.index, refused.value.field) == (50, "level")
        with pytest.raises(Malformed, match=r"row 50: |counted from byte [0-9]+ of the body"):
            in_chunks(decode_chunks, decode, body.replace(b'{"level": 5}', b"{nonsense}"), 1000)


def test_a_byte_order_mark_is_taken_off_the_body_and_not_off_each_chunk() -> None:
    row, mark = json.dumps(LOG).encode() + b"\n", b"\xef\xbb\xbf"
    assert len(in_chunks(row_chunks.decode_lines, CODEC.decode_lines, mark + row * 9, len(row))) == 9
    for size in range(len(row), 3 * len(row), 7):
        with pytest.raises(Malformed, match="row 1: "):
            in_chunks(row_chunks.decode_lines, CODEC.decode_lines, row + mark + row * 9, size)


def test_a_row_that_never_ends_is_refused_before_all_of_it_is_read() -> None:
    read = 0

    def endless(text: bytes) -> Iterator[bytes]:
        nonlocal read
        while True:
            read += 1
            yield text * SIZE

    cases = ((row_chunks.decode_object, b" "), (row_chunks.decode_lines, b" "), (row_chunks.decode_array, b'["'))
    for decode_chunks, text in cases:
        read = 0
        with pytest.raises(InvalidRow, match=f"more than {row_chunks.MAX_WIRE_ROW} bytes"):
            list(decode_chunks(endless(text), CODEC.decode_lines))
        assert read * SIZE * len(text) <= row_chunks.MAX_WIRE_ROW + SIZE * len(text)
