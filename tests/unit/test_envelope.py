import pytest

from services import datasets
from services.core.envelope import MAX_VALUE_BYTES, batch_of_key, is_newer, messages, partition_of
from services.core.ids import MAX_BATCH
from services.core.rows import Row, RowCodec, Rows

dataset = datasets.find("logs")
codec = RowCodec(dataset)


def rows(count: int, level: str = "INFO", message: str = "m") -> list[Row]:
    return [(n, 7, 0, level, f"service-{n % 5}", "", message, "{}") for n in range(count)]


def test_every_row_is_in_one_message_of_the_partition_of_its_key() -> None:
    own = rows(1000)
    made = messages(dataset, 42, 7, Rows.of(own), codec.encode(own), 4)
    found = []
    for message in made:
        decoded = [codec.decode_line(line) for line in message.value.splitlines()]
        assert {partition_of(row[4], 4) for row in decoded} == {message.partition}
        assert message.headers == {"created_at": b"7", "rows": b"%d" % len(decoded), "columns": b"6"}
        assert batch_of_key(message.key) == 42
        found += decoded
    assert sorted(found) == own
    assert len({message.key for message in made}) == len(made)


@pytest.mark.parametrize(
    "key", [b"", b"5", b":", b"5:", b"-5:0", b" 5:0", b"1_0:0", b"5:x", b"9" * 40 + b":0", b"5:0:0"]
)
def test_a_foreign_key_names_no_batch(key: bytes) -> None:
    with pytest.raises(ValueError, match="is not <batch>:<part>"):
        batch_of_key(key)
    with pytest.raises(ValueError, match="is not"):
        batch_of_key(b"%d:0" % (MAX_BATCH + 1))
    assert batch_of_key(b"%d:0" % MAX_BATCH) == MAX_BATCH


@pytest.mark.parametrize(("header", "newer"), [(b"6", False), (b"7", True), (b"x", False), (b"9" * 5000, False)])
def test_a_message_with_more_columns_is_newer(header: bytes, newer: bool) -> None:
    assert is_newer({"columns": header}, dataset) is newer


def test_no_value_is_larger_than_a_broker_takes() -> None:
    own = rows(50, message="x" * 200_000)
    made = messages(dataset, 1, 7, Rows.of(own), codec.encode(own), 1)
    assert max(len(message.value) for message in made) <= MAX_VALUE_BYTES
    assert sum(int(message.headers["rows"]) for message in made) == 50


def test_errors_are_also_sent_to_the_alerts_keyed_by_service() -> None:
    own = rows(10) + [(n, 7, 0, "ERROR", "db", "", "m", "{}") for n in range(10, 13)]
    alerts = [m for m in messages(dataset, 1, 7, Rows.of(own), codec.encode(own), 4) if m.topic == "alerts.realtime"]
    assert [(m.key, m.headers["rows"]) for m in alerts] == [(b"db", b"3")]


def test_the_partition_of_a_key_never_changes() -> None:
    assert [partition_of(key, 4) for key in ("user-service", "order-service", "")] == [1, 0, 0]
