"""The Kafka message of a dead letter: what is encoded is decoded again."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from services.core.dead_letter import MAX_DEAD_LETTER_BYTES, DeadLetter, Record, decode, encode
from services.core.errors import Malformed
from services.datasets.logs import DATASET
from services.streams.dead_letters import DeadLetterSender
from spark_jobs.schema import rejects_schema

INTS, BIG_INTS = st.integers(-1, (1 << 31) - 1), st.integers(-1, (1 << 63) - 1)
LETTERS = st.builds(
    DeadLetter,
    partition=INTS,
    offset=BIG_INTS,
    line=st.none() | INTS,
    batch_id=st.none() | BIG_INTS,
    id=st.none() | BIG_INTS,
    rows=INTS,
    reason=st.text(max_size=50),
    value=st.binary(max_size=50),
)


@given(LETTERS)
def test_what_is_encoded_is_decoded_again(letter: DeadLetter) -> None:
    key, value = encode("clickhouse", DATASET, letter)
    place = (letter.partition, letter.offset)
    assert key == b"clickhouse:%s:%d:%d" % (DATASET.topic.encode(), *place)
    assert decode(value) == Record(
        "clickhouse", DATASET.name, DATASET.topic, *place, letter.line, letter.batch_id, letter.id, letter.rows
    )
    shown: dict[str, Any] = json.loads(value)
    assert (shown["reason"], shown["value_bytes"]) == (letter.reason, len(letter.value))
    assert shown["value"] == letter.value.decode(errors="backslashreplace")


def test_an_operator_reads_all_of_a_letter() -> None:
    _, value = encode("lake", DATASET, DeadLetter(1, 5, 0, 7, 8, 1, "too long", b"\xff"))
    assert value == (
        b'{"store":"lake","dataset":"logs","topic":"logs.raw","partition":1,"offset":5,"line":0,"batch_id":7,"id":8,'
        b'"rows":1,"reason":"too long","value_bytes":1,"value":"\\\\xff"}'
    )


@pytest.mark.parametrize("byte", [b"x", b"\0", b"\xff"])
def test_a_long_value_is_cut(byte: bytes) -> None:
    _, value = encode("lake", DATASET, DeadLetter(1, 5, None, 7, None, 1, "reason", byte * 1_000_000))
    assert MAX_DEAD_LETTER_BYTES / 2 < len(value) <= MAX_DEAD_LETTER_BYTES
    assert decode(value).batch_id == 7


@pytest.mark.parametrize("name", ["\N{SEEDLING}" * 249, "a" * 250, "a b", "\x00", "t\n"])
def test_a_name_that_the_index_may_not_hold_is_refused(name: str) -> None:
    """The index has store, dataset and topic in one entry of at most 2,704 bytes."""
    letter = {"store": "s", "dataset": "d", "topic": "t", "partition": 0, "offset": 0}
    assert decode(json.dumps(letter).encode()).topic == "t"
    with pytest.raises(Malformed):
        decode(json.dumps(letter | {"topic": name}).encode())


@pytest.mark.parametrize("value", [b"", b"[]", b"{}", b'{"store":1}', b"\xff", b"[" * 10_000])
def test_what_is_no_letter_is_refused(value: bytes) -> None:
    with pytest.raises(Malformed):
        decode(value)


def test_the_table_of_rejects_has_the_fields_of_a_dead_letter() -> None:
    encoded = json.loads(encode("lake", DATASET, DeadLetter(0, 5, 0, 7, 70, 1, "reason", b"value"))[1])
    same_in_every_row, of_a_cut_value = {"store", "dataset"}, {"value_bytes"}
    assert {field.name for field in rejects_schema().fields} == encoded.keys() - same_in_every_row - of_a_cut_value


def test_the_metric_of_dead_letters_is_there_before_the_first_one() -> None:
    DeadLetterSender(lambda: pytest.fail("no producer is needed"), "careful", DATASET)
    labels = {"store": "careful", "dataset": DATASET.name}
    assert REGISTRY.get_sample_value("logpipe_sink_dead_letters_total", labels) == 0.0
