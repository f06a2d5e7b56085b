from services import datasets
from services.core.envelope import MAX_VALUE_BYTES, batch_of_key, messages, partition_of
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
