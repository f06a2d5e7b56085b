"""The Kafka message of rows: what is encoded is decoded again, and no other module spells its form."""

import ast
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import services
import spark_jobs
from services import datasets
from services.core import kafka_value
from services.core.dataset import Dataset
from services.core.ids import MAX_BATCH, MAX_BATCH_ROWS, first_id
from services.core.instants import LAST_INSTANT
from services.core.kafka_value import (
    MAX_VALUE_BYTES,
    VERSION,
    Envelope,
    announced,
    batch_of_key,
    decode,
    encode,
    has_newer_version,
    is_newer,
    join,
    partition_of,
    split,
)
from services.core.lines import line_check
from services.core.ports import Message, OutgoingMessage
from services.core.rows import MAX_LINE_BYTES, Row, RowCodec, Rows

dataset = datasets.find("logs")
codec = RowCodec(dataset)


def rows(count: int, level: str = "INFO", message: str = "m") -> list[Row]:
    return [(n, 7, 0, level, f"service-{n % 5}", "", message, "{}") for n in range(count)]


def received(outgoing: OutgoingMessage, offset: int = 0) -> Message:
    """The message as a reader of the topic gets it."""
    return Message(outgoing.topic, outgoing.partition, offset, outgoing.key, outgoing.value, outgoing.headers)


def message(key: bytes = b"5:0", **headers: bytes) -> Message:
    """A message that has the hash of its value."""
    own = {"created_at": b"7", "rows": b"1", kafka_value.HASH_HEADER: kafka_value.value_hash(b"{}\n")}
    return Message(dataset.topic, 0, 0, key, b"{}\n", {**own, **headers})


def test_every_row_is_in_one_message_of_the_partition_of_its_key() -> None:
    own = rows(1000)
    made = encode(dataset, 42, 7, Rows.of(own), codec.encode(own), 4)
    found = []
    for each in made:
        decoded = [codec.decode_line(line) for line in each.value.splitlines()]
        assert {partition_of(row[4], 4) for row in decoded} == {each.partition}
        assert {name: value for name, value in each.headers.items() if name != "xxh3"} == {
            "created_at": b"7",
            "rows": b"%d" % len(decoded),
            "columns": b"6",
            "version": b"1",
        }
        assert decode(received(each)).matches_hash
        assert not decode(received(replace(each, value=each.value.replace(b"INFO", b"WARN", 1)))).matches_hash
        assert not decode(received(replace(each, headers={}))).matches_hash
        assert batch_of_key(each.key) == 42
        found += decoded
    assert sorted(found) == own
    assert len({each.key for each in made}) == len(made)


@pytest.mark.parametrize(
    "key",
    [b"", b"5", b":", b"5:", b"-5:0", b" 5:0", b"1_0:0", b"5:x", b"9" * 40 + b":0", b"5:0:0", b"5:0\n", b"5:0\r"],
)
def test_a_foreign_key_names_no_batch(key: bytes) -> None:
    with pytest.raises(ValueError, match="is not <batch>:<part>"):
        batch_of_key(key)
    with pytest.raises(ValueError, match="is not"):
        batch_of_key(b"%d:0" % (MAX_BATCH + 1))
    assert batch_of_key(b"%d:0" % MAX_BATCH) == MAX_BATCH


@pytest.mark.parametrize(("header", "newer"), [(b"6", False), (b"7", True), (b"x", False), (b"9" * 5000, False)])
def test_a_message_with_more_columns_is_newer(header: bytes, newer: bool) -> None:
    assert is_newer(message(columns=header), dataset) is newer


def test_no_value_is_larger_than_a_broker_takes() -> None:
    own = rows(50, message="x" * 200_000)
    made = encode(dataset, 1, 7, Rows.of(own), codec.encode(own), 1)
    assert max(len(each.value) for each in made) <= MAX_VALUE_BYTES
    assert sum(int(each.headers["rows"]) for each in made) == 50


def test_errors_are_also_sent_to_the_alerts_keyed_by_service() -> None:
    own = rows(10) + [(n, 7, 0, "ERROR", "db", "", "m", "{}") for n in range(10, 13)]
    alerts = [m for m in encode(dataset, 1, 7, Rows.of(own), codec.encode(own), 4) if m.topic == "alerts.realtime"]
    assert [(m.key, m.headers["rows"]) for m in alerts] == [(b"db", b"3")]
    [alert] = alerts
    assert has_newer_version(received(replace(alert, headers={**alert.headers, "version": b"2"})))


def test_the_partition_of_a_key_never_changes() -> None:
    assert [partition_of(key, 4) for key in ("user-service", "order-service", "")] == [1, 0, 0]


@pytest.mark.parametrize(
    ("headers", "newer"),
    [
        ({}, False),  # of a release that did not write the header
        ({"version": b"%d" % VERSION}, False),
        ({"version": b"%d" % (VERSION + 1)}, True),
        ({"version": b"%d" % (VERSION + 1), "columns": b"x"}, True),  # the form of other headers may have changed
        # Every version keeps these two: without them, the message is foreign.
        ({"version": b"%d" % (VERSION + 1), "created_at": b""}, False),
        ({"version": b"%d" % (VERSION + 1), "rows": b"ten"}, False),
        ({"version": b"x"}, False),
        ({"version": b"9" * 5000}, False),
    ],
)
def test_a_message_of_a_newer_version_is_newer(headers: Mapping[str, bytes], newer: bool) -> None:
    assert has_newer_version(message(**headers)) is newer
    assert is_newer(message(**headers), dataset) is newer


def test_a_foreign_message_is_not_newer() -> None:
    assert not is_newer(message(b"foreign", version=b"2", columns=b"9999"), dataset)


@pytest.mark.parametrize("newer", [{"version": b"2"}, {"columns": b"99"}])
@pytest.mark.parametrize("of", [None, b"", b"another value"])
def test_only_a_message_with_the_hash_of_its_value_is_newer(newer: Mapping[str, bytes], of: bytes | None) -> None:
    """A message of two bytes of another program would stop every reader of the topic."""
    headers = {"created_at": b"1", "rows": b"1", **newer}
    if of is not None:
        headers[kafka_value.HASH_HEADER] = kafka_value.value_hash(of)
    foreign = Message(dataset.topic, 0, 0, b"1:0", b"x\n", headers)
    assert not is_newer(foreign, dataset)
    assert not has_newer_version(foreign)
    assert not decode(foreign).problem  # its lines are checked


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (b"x" * (MAX_VALUE_BYTES - 1) + b"\n", ""),
        (b"x" * MAX_VALUE_BYTES + b"\n", "the value has 524289 bytes, more than 524288"),
        (b"{}\n" * MAX_BATCH_ROWS, ""),
        (b"{}\n" * (MAX_BATCH_ROWS + 1), "the value has 131073 lines, more than 131072"),
    ],
)
def test_a_message_larger_than_ours_cannot_be_loaded(value: bytes, problem: str) -> None:
    rows = value.count(b"\n")
    headers = {"created_at": b"7", "rows": b"%d" % rows}
    assert decode(Message(dataset.topic, 0, 0, b"5:0", value, headers)) == Envelope(
        Message(dataset.topic, 0, 0, b"5:0", value, headers), 5, 7, rows, problem
    )


def test_a_message_that_could_not_be_read_is_foreign() -> None:
    unread = Message(dataset.topic, 0, 0, b"", b"", problem="cannot be decompressed")
    assert decode(unread) == Envelope(unread, None, 0, 0, "cannot be decompressed")
    assert not is_newer(unread, dataset)
    assert announced(unread) is None


def test_the_rows_of_a_newer_version_are_counted() -> None:
    found = announced(message(rows=b"12", version=b"9"))
    assert found
    assert (found.batch_id, found.rows) == (5, 12)


@pytest.mark.parametrize("header", [b"", b"ten", b"-1", b"7" * 5000])
def test_a_message_without_a_number_of_rows_is_foreign(header: bytes) -> None:
    assert announced(message(rows=header)) is None
    assert announced(message(created_at=header)) is None
    assert announced(message(b"foreign")) is None


@pytest.mark.parametrize("name", ["created_at", "rows"])
@pytest.mark.parametrize("spelling", [b"", b"0_1", b" 1", b"1\n", b"+1", "\u0661".encode(), b"1.0", b"7" * 5000])
def test_a_header_that_is_not_decimal_digits_makes_a_message_unloadable(name: str, spelling: bytes) -> None:
    envelope = decode(message(**{name: spelling}))
    assert envelope.problem == f"the header {name} is not a number of at most 18 decimal digits"
    assert envelope.batch_id == 5


@given(st.lists(st.binary().map(lambda line: line.replace(b"\n", b""))))
def test_lines_that_are_joined_are_split_again(lines: list[bytes]) -> None:
    assert split(join(lines)) == lines


TEXTS = {
    "category": st.text(max_size=20),
    "text": st.one_of(st.text(max_size=20), st.just("é" * (MAX_LINE_BYTES // 4))),
    "timestamp": st.integers(0, LAST_INSTANT - 1),
    "number": st.one_of(st.none(), st.floats(allow_nan=False, allow_infinity=False)),
    "json": st.sampled_from(["{}", '{"a": [1, "\\n"]}', "[" * 100 + "]" * 100]),
    "uuid": st.uuids().map(str),
}
KEYS = st.sampled_from(["", "a", "b", "ü", "service-17", "\n"])


@st.composite
def batches(draw: st.DrawFn) -> tuple[Dataset, int, int, list[Row]]:
    """A dataset, the number and the time of acceptance of a batch, and its rows."""
    of = draw(st.sampled_from(datasets.all_datasets()))
    alert = of.alert
    batch_id, created_at = draw(st.integers(1, MAX_BATCH)), draw(st.integers(0, LAST_INSTANT - 1))
    values = {c.name: KEYS if c.name == of.key else TEXTS[c.kind] for c in of.columns}
    if alert:
        values[alert.column] = st.sampled_from([alert.value, "INFO"])
    numbers = draw(st.lists(st.integers(0, MAX_BATCH_ROWS - 1), min_size=1, max_size=12, unique=True))
    made = [(first_id(batch_id) + n, created_at, *(draw(each) for each in values.values())) for n in sorted(numbers)]
    return of, batch_id, created_at, made


@given(batches(), st.integers(1, 5))
def test_what_is_encoded_is_decoded_again(batch: tuple[Dataset, int, int, list[Row]], partitions: int) -> None:
    of, batch_id, created_at, accepted = batch
    codec = RowCodec(of)
    made = encode(of, batch_id, created_at, Rows.of(accepted), codec.encode(accepted), partitions)
    own = [received(each, offset) for offset, each in enumerate(made) if each.topic == of.topic]
    found, counted = [], 0
    for each in own:
        envelope = decode(each)
        lines = split(each.value)
        assert envelope == Envelope(each, batch_id, created_at, len(lines))
        assert not is_newer(each, of)
        assert len(each.value) <= MAX_VALUE_BYTES
        assert line_check(of).are_rows_of(each.value, len(lines), batch_id, created_at)
        assert line_check(of).check(lines).problems == {}
        decoded = [codec.decode_line(line) for line in lines]
        assert {partition_of(row[of.column_names.index(of.key)], partitions) for row in decoded} == {each.partition}
        said = announced(each)
        assert said
        assert (said.batch_id, said.created_at) == (batch_id, created_at)
        counted += said.rows
        found += decoded
    assert sorted(found) == accepted
    assert counted == len(accepted)
    if alert := of.alert:
        wanted = [row for row in accepted if row[of.column_names.index(alert.column)] == alert.value]
        sent = [each for each in made if each.topic == alert.topic]
        assert sorted(codec.decode_line(line) for each in sent for line in split(each.value)) == wanted
        assert not any(has_newer_version(received(each)) for each in sent)


HEADERS = {
    kafka_value.CREATED_AT_HEADER,
    kafka_value.ROWS_HEADER,
    kafka_value.COLUMNS_HEADER,
    kafka_value.VERSION_HEADER,
}


def spelled(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Where a header of a Kafka message is named by a literal, or a key is made or cut by hand."""
    for node in ast.walk(tree):
        match node:
            case ast.Subscript(value=ast.Attribute(attr="headers"), slice=ast.Constant(value=str(name))) if (
                name in HEADERS
            ):
                yield node.lineno, f"header {name}"
            case ast.Call(
                func=ast.Attribute(attr="get" | "pop", value=ast.Attribute(attr="headers")),
                args=[ast.Constant(value=str(name)), *_],
            ) if name in HEADERS:
                yield node.lineno, f"header {name}"
            case ast.Dict(keys=keys) if {k.value for k in keys if isinstance(k, ast.Constant)} >= {
                "created_at",
                "rows",
            }:
                yield node.lineno, "headers"
            case ast.Call(func=ast.Attribute(attr="partition" | "split"), args=[ast.Constant(value=b":"), *_]):
                yield node.lineno, "a key is cut"
            case ast.Constant(value=bytes(text)) if b"%d:%d" in text:
                yield node.lineno, "a key is made"


def test_no_other_module_spells_the_form_of_a_message() -> None:
    own = Path(kafka_value.__file__)
    files = [file for package in (services, spark_jobs) for file in Path(package.__path__[0]).rglob("*.py")]
    assert own in files
    assert not {(str(file), *each) for file in files if file != own for each in spelled(ast.parse(file.read_text()))}
    assert {what for _, what in spelled(ast.parse(own.read_text()))} == {"a key is cut", "a key is made"}
    example = 'm.headers["rows"], m.headers.get("version"), {"created_at": b"1", "rows": b"2"}, k.split(b":"), b"%d:%d"'
    assert len(list(spelled(ast.parse(example)))) == 5
