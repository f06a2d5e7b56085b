"""Decoding request bodies: good rows become canonical, bad ones are refused with index and field."""

import itertools
import json
import random
from typing import Any

import pytest

from services import datasets
from services.core.errors import MAX_SHOWN_CHARACTERS, InvalidRow, Malformed, MalformedLine
from services.core.rows import MAX_LINE_BYTES, MAX_NUMBER_DIGITS, RowCodec, Rows, _refused_escape, checksum

LOG: dict[str, Any] = {
    "timestamp": "2026-01-31T12:00:00.123456Z",
    "level": "INFO",
    "service": "auth",
    "host": "worker-1",
    "message": "ok",
    "metadata": {"a": 1},
}
EVENT: dict[str, Any] = {
    "eventId": "0B8F8F0E-5F0A-4E9E-9D0B-3F6F3A1F6C11",
    "timestamp": "2026-01-31T12:00:00+02:00",
    "userId": "user_1",
    "eventType": "CLICK",
    "device": {"type": "mobile"},
}
codec = RowCodec(datasets.find("logs"))
events = RowCodec(datasets.find("events"))


def log(**changes: Any) -> bytes:
    return json.dumps([LOG, {**LOG, **changes}]).encode()


def rows_of(decoded: Rows) -> list[tuple[Any, ...]]:
    return list(decoded.tuples(5, 1_000))


def test_an_error_repeats_a_long_field_name_in_part_only() -> None:
    with pytest.raises(InvalidRow) as refused:
        codec.decode_object(b'{"%s": 1}' % (b"x" * 1_000_000))
    assert refused.value.field == "x" * 100 + "..."
    assert len(str(refused.value)) < 400


def test_a_log_in_canonical_form() -> None:
    body = json.dumps(LOG).encode()
    expected = (5 << 17, 1_000, 1_769_860_800_123_456, "INFO", "auth", "worker-1", "ok", '{"a": 1}')
    assert rows_of(codec.decode_object(body)) == [expected]


def test_missing_optional_columns_are_empty() -> None:
    minimal = {key: LOG[key] for key in ("timestamp", "level", "service")}
    [row] = rows_of(codec.decode_object(json.dumps(minimal).encode()))
    assert row[-3:] == ("", "", "{}")


def test_an_event_has_a_lower_case_uuid_utc_time_and_derived_device_type() -> None:
    [row] = rows_of(events.decode_object(json.dumps(EVENT).encode()))
    named = dict(zip(events.dataset.column_names, row, strict=True))
    assert named["event_id"] == EVENT["eventId"].lower()
    assert named["timestamp"] == 1_769_853_600_000_000
    assert (named["device"], named["device_type"]) == ('{"type": "mobile"}', "mobile")


@pytest.mark.parametrize("device", ["5", '"x"', "[1]", '{"type": 5}', "{}", "null"])
def test_a_device_without_a_type_has_an_empty_device_type(device: str) -> None:
    body = json.dumps({**EVENT, "device": "?"}).replace('"?"', device).encode()
    [row] = rows_of(events.decode_object(body))
    assert row[-1] == ""


def test_json_columns_keep_the_bytes_of_the_client() -> None:
    odd = '{"n": 1e200000, "z": -0.0,\n "k": 1, "k": 2, "u": "\\u00e9\\\\u0000"}'
    body = json.dumps(LOG).replace('{"a": 1}', odd).encode()
    [row] = rows_of(codec.decode_object(body))
    assert row[-1] == odd


@pytest.mark.parametrize(
    "metadata",
    ["%s", "[-%s]", '{"a": [1, %s]}', '{"a": "x", "b": %s.5}', '{"s": "\\\\", "n": 0.%s}', '{"s": "\\"1", "n": %s}'],
)
@pytest.mark.parametrize("start", [0, 1, 4299, 4300, 4301, 9999])
def test_a_number_that_clients_cannot_read_is_refused(metadata: str, start: int) -> None:
    body = json.dumps([LOG, LOG]).replace('{"a": 1}', " " * start + "%s")
    accepted, refused = metadata % ("1" * MAX_NUMBER_DIGITS), metadata % ("1" * (MAX_NUMBER_DIGITS + 1))
    assert codec.decode_array((body % (accepted, accepted)).encode()).count == 2
    with pytest.raises(InvalidRow, match="a number of more than 4300 digits") as error:
        codec.decode_array((body % (accepted, refused)).encode())
    assert (error.value.index, error.value.field) == (1, "metadata")


@pytest.mark.parametrize("text", ["1" * 5000, "1" * 4400 + '\\"' + "1" * 4400, '\\\\\\"' + "2" * 9000])
def test_digits_in_a_string_are_no_number(text: str) -> None:
    metadata = f'{{"a": "{text}", "b": 5}}'
    body = json.dumps([LOG]).replace('{"a": 1}', metadata)
    [row] = rows_of(codec.decode_array(body.encode()))
    assert row[-1] == metadata


def test_a_derived_value_of_a_long_number_is_refused_with_its_row() -> None:
    body = json.dumps({**EVENT, "device": "?"}).replace('"?"', '{"type": %s}' % ("1" * 5000)).encode()
    with pytest.raises(InvalidRow, match="digits"):
        events.decode_object(body)


def test_ndjson_ignores_blank_lines_and_numbers_rows_without_them() -> None:
    good = json.dumps(LOG).encode()
    assert codec.decode_lines(b"\n" + good + b"\n\n" + good).count == 2


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"timestamp": "2026-01-31T12:00:00"}, "timestamp"),
        ({"timestamp": "0001-01-01T00:00:00Z"}, "timestamp"),
        ({"timestamp": "9999-12-31T23:59:59Z"}, "timestamp"),
        ({"timestamp": "2100-01-01T00:00:00Z"}, "timestamp"),
        ({"timestamp": "1969-12-31T23:59:59.999999Z"}, "timestamp"),
        ({"timestamp": 1769860800}, "timestamp"),
        ({"timestamp": "yesterday"}, "timestamp"),
        ({"level": 5}, "level"),
        ({"level": None}, "level"),
        ({"message": "a\u0000b"}, "message"),
        ({"colour": "red"}, "colour"),
        ({"metadata": {"a": ["x\u0000"]}}, "metadata"),
    ],
)
def test_a_bad_row_names_its_index_and_field(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRow) as refused:
        codec.decode_array(log(**changes))
    assert (refused.value.index, refused.value.field) == (1, field)


@pytest.mark.parametrize("name", ["x" * 1_000_000, "`" * 1_000_000, " - at `$[1]." + "x" * 1_000_000, "\x7f" * 1_000])
def test_an_error_repeats_the_beginning_of_a_long_name(name: str) -> None:
    with pytest.raises(InvalidRow) as refused:
        codec.decode_array(log(**{name: 1}))
    assert refused.value.index == 1
    assert len(refused.value.field) <= MAX_SHOWN_CHARACTERS + len("...")
    assert len(str(refused.value)) < 10 * MAX_SHOWN_CHARACTERS


@pytest.mark.parametrize("field", ["level", "service", "host"])
def test_a_category_is_bounded(field: str) -> None:
    assert codec.decode_array(log(**{field: "é" * 256})).count == 2
    with pytest.raises(InvalidRow, match="has 257 characters; at most 256 are accepted") as refused:
        codec.decode_array(log(**{field: "x" * 257}))
    assert (refused.value.index, refused.value.field) == (1, field)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"eventType": "x" * 257}, "eventType"),
        ({"userId": "x" * 257}, "userId"),
        ({"device": {"type": "x" * 257}}, "device.type"),
    ],
)
def test_keys_and_what_is_derived_are_bounded_too(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRow, match="at most 256") as refused:
        events.decode_array(json.dumps([EVENT, {**EVENT, **changes}]).encode())
    assert (refused.value.index, refused.value.field) == (1, field)


def test_other_texts_are_bounded_by_their_row_alone() -> None:
    assert codec.decode_array(log(message="x" * 10_000)).count == 2
    assert events.decode_object(json.dumps({**EVENT, "sessionId": "x" * 10_000}).encode()).count == 1


def test_a_missing_field_is_named() -> None:
    with pytest.raises(InvalidRow) as refused:
        codec.decode_array(json.dumps([LOG, {"timestamp": LOG["timestamp"], "level": "INFO"}]).encode())
    assert (refused.value.index, refused.value.field) == (1, "service")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"not json",
        b'[{"timestamp": "2026-01-3',
        b"\xff\xfe",
        b"{nope",
        b'"nope',
        b"5 nope",
        b'[{"level": 5}, nope]',
        b'[{"level": 5}',
        b'{"level": 5} nope',
        b"[" * 100_000,
        b'[{"message": "\xff"}]',
        log().replace(b'{"a": 1}', b'{"a": "\xc3"}'),
        log().replace(b'{"a": 1}', b'{"a": tru}'),
    ],
)
def test_what_is_not_json_is_malformed(body: bytes) -> None:
    with pytest.raises(Malformed):
        codec.decode_array(body)


def test_an_object_that_is_not_json_is_malformed_whatever_comes_first() -> None:
    for body in (b"[nope", b'{"level": 5, nope}', b'{"colour": 1', b"5 5"):
        with pytest.raises(Malformed):
            codec.decode_object(body)


@pytest.mark.parametrize(
    "line", [b"{nope", b'{"level": 5', b"nope", b'{"level": "\xff"}', b'{"level": "\\ud800"}', b"[" * 5000]
)
def test_a_line_that_is_not_json_is_named_by_its_index(line: bytes) -> None:
    good, bad_row = json.dumps(LOG).encode(), b'{"level": 5}'
    for lines, index in (([good, b"", good, line, good], 2), ([bad_row, line], 1), ([line], 0), ([good, line, b""], 1)):
        with pytest.raises(MalformedLine, match=f"row {index}: ") as refused:
            codec.decode_lines(b"\n".join(lines))
        assert (refused.value.index, refused.value.status) == (index, 400)


def test_a_list_of_which_each_line_is_an_object_is_refused_by_the_name_of_its_type() -> None:
    line = json.dumps(LOG).encode()
    with pytest.raises(Malformed, match="application/x-ndjson"):
        codec.decode_array(line + b"\n" + line)
    with pytest.raises(InvalidRow, match=r"expected `array`, got `object`; .*application/x-ndjson"):
        codec.decode_array(line)


def test_a_byte_order_mark_before_a_body_is_no_part_of_it() -> None:
    line, mark = json.dumps(LOG).encode(), b"\xef\xbb\xbf"
    decoded = (codec.decode_object(mark + line), codec.decode_lines(mark + line), codec.decode_array(mark + log()))
    assert [rows.count for rows in decoded] == [1, 1, 2]


@pytest.mark.parametrize("text", ["\ud800", "x\udfffy", "\udc00\ud800"])
@pytest.mark.parametrize("column", ["message", "metadata"])
def test_a_lone_surrogate_is_refused_and_named(column: str, text: str) -> None:
    with pytest.raises(Malformed, match="lone surrogate"):
        codec.decode_array(log(**{column: text}))


def test_a_surrogate_pair_is_a_character_like_any_other() -> None:
    [_, row] = rows_of(codec.decode_array(log(message="\U0001f600", metadata={"a": "\U0001f600"})))
    assert (row[-2], json.loads(row[-1])) == ("\U0001f600", {"a": "\U0001f600"})


@pytest.mark.parametrize(
    ("text", "is_refused"),
    [
        (r"\\ud800", False),  # an escaped backslash, and then a text
        (r"\\\ud800", True),
        (r"\n\ud83d\ude00\\u0000", False),
        (r"\ud83d\\\ude00", True),
        (r"\ud83dx\ude00", True),
        ("\\\\" * 100_000 + r"\u0041", False),
    ],
)
def test_an_escape_counts_behind_an_even_number_of_backslashes(text: str, is_refused: bool) -> None:
    assert (_refused_escape(text) is not None) == is_refused


@pytest.mark.parametrize("depth", [201, 5_000, 200_000])
def test_deep_nesting_is_refused(depth: int) -> None:
    body = log(metadata="?").replace(b'"?"', b"[" * depth + b"]" * depth)
    with pytest.raises((InvalidRow, Malformed)):
        codec.decode_array(body)


def test_brackets_inside_strings_are_not_nesting() -> None:
    assert codec.decode_array(log(metadata={"a": "[" * 1000})).count == 2


@pytest.mark.parametrize("size", [1, 2, 5, 7, 100])
def test_chunks_of_rows_become_batches(size: int) -> None:
    rows = codec.decode_array(b"[" + b",".join(log(message=str(n))[1:-1] for n in range(12)) + b"]")
    numbered = list(zip(*rows.columns, strict=True))
    for seed in range(20):
        rng = random.Random(seed)
        cuts = [0, *sorted(rng.sample(range(1, rows.count), rng.randrange(6))), rows.count]
        chunks = [rows.slice(start, stop) for start, stop in itertools.pairwise(cuts)]
        chunks = [rows.hidden_from_gc() if rng.random() < 0.5 else rows for rows in chunks]
        batches = list(Rows.batches(chunks, size))
        assert [row for batch in batches for row in zip(*batch.columns, strict=True)] == numbered, seed
        assert [batch.count for batch in batches[:-1]] == [size] * (len(batches) - 1)
        assert 0 < batches[-1].count <= size


def test_a_row_larger_than_a_message_may_be_is_refused() -> None:
    with pytest.raises(InvalidRow, match="bytes"):
        codec.decode_array(log(message="x" * MAX_LINE_BYTES))
    assert codec.decode_array(log(message="x" * (MAX_LINE_BYTES - 1024))).count == 2


def test_lines_decode_to_the_rows_they_were_made_of() -> None:
    rows = rows_of(codec.decode_array(log(message='quote " backslash \\ newline \n é \U0001f600')))
    assert [codec.decode_line(line) for line in codec.encode(rows)] == rows


def test_a_foreign_line_is_malformed() -> None:
    with pytest.raises(Malformed):
        codec.decode_line(b'{"id": "x"}')


def test_the_checksum_does_not_depend_on_order_but_on_every_byte() -> None:
    lines = [b"one", b"two", b"three"]
    assert checksum(lines) == checksum(reversed(lines))
    assert checksum(lines) != checksum([b"one", b"two", b"threE"])
    assert 0 <= checksum(lines) < 1 << 63


def test_joined_rows_and_their_slices_keep_order() -> None:
    parts = [codec.decode_array(log(message=f"m{n}")) for n in range(3)]
    joined = Rows.joined(parts)
    assert joined.count == 6
    assert [row[-2] for row in joined.slice(1, 4).tuples(1, 1)] == ["m0", "ok", "m1"]
