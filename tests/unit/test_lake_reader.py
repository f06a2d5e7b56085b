"""What the contract suite does not ask of the lake's reader: its position, rejects, absence, and literals."""

import datetime
from pathlib import Path
from threading import Event

import pyarrow as pa
import pytest
from deltalake import DeltaTable, QueryBuilder, write_deltalake
from hypothesis import given
from hypothesis import strategies as st

from services.core.errors import Invalid, StoreDown
from services.core.ids import first_id
from services.core.queries import AggregateQuestion, Filters, ListQuestion, StatsQuestion
from services.core.rows import Row
from services.datasets.events import DATASET as EVENTS
from services.datasets.logs import DATASET as LOGS
from services.runtime.settings import LakeSettings
from services.stores import lake
from services.stores.lake import LakeReader, Position, literal
from spark_jobs.tables import Tables
from tests import lake_tables

CREATED = 1_700_000_000_000_000


def log(batch_id: int, number: int = 0) -> Row:
    return (first_id(batch_id) + number, CREATED + batch_id, CREATED, "INFO", "api", "", "hello", "{}")


@pytest.fixture
def settings(tmp_path: Path) -> LakeSettings:
    return LakeSettings(hdfs_url=tmp_path.as_uri())


@pytest.fixture
def reader(settings: LakeSettings) -> LakeReader:
    return LakeReader(settings)


def test_a_table_that_is_absent_has_no_rows(reader: LakeReader) -> None:
    assert reader.answer(StatsQuestion(LOGS), 9).rows == [(0,)]
    found = reader.answer(ListQuestion(LOGS), 9)
    assert (found.rows, found.total) == ([], 0)
    assert reader.answer(AggregateQuestion(LOGS, "level"), 9).rows == []
    assert reader.position(LOGS) == {}
    assert list(reader.counts(LOGS, 0, 9)) == list(reader.rows(LOGS, 0, 9)) == []
    assert reader.rejected(LOGS) == {}


def test_a_table_that_is_empty_has_no_rows(reader: LakeReader, settings: LakeSettings) -> None:
    Tables(settings, LOGS).prepare()
    assert reader.answer(StatsQuestion(LOGS), 9).rows == [(0,)]
    assert list(reader.counts(LOGS, 0, 9)) == []
    assert reader.rejected(LOGS) == {}


def test_a_reader_sees_each_commit_at_once(reader: LakeReader, settings: LakeSettings) -> None:
    for batch_id in (1, 2, 3):
        lake_tables.append(settings, LOGS, [log(batch_id)])
        assert reader.answer(StatsQuestion(LOGS), 9).rows == [(batch_id,)]


def test_the_position_is_that_of_the_last_batch_behind_any_maintenance(
    reader: LakeReader, settings: LakeSettings
) -> None:
    for batch_id in range(3):
        position = Position("t", {0: 10 * batch_id, 1: 5}, {0: 0}, "q", batch_id)
        lake_tables.append(settings, LOGS, [log(batch_id)], position)
        assert reader.position(LOGS) == {0: 10 * batch_id, 1: 5}
    table = DeltaTable(lake.table_uri(settings, LOGS.name))
    table.optimize.compact()
    for _ in range(20):
        table.alter.set_table_properties({"delta.logRetentionDuration": "interval 30 days"})
    assert reader.position(LOGS) == {0: 20, 1: 5}
    assert LakeReader(settings).position(LOGS) == {0: 20, 1: 5}
    assert reader.position(EVENTS) == {}


def test_a_batch_stored_twice_is_counted_twice(reader: LakeReader, settings: LakeSettings) -> None:
    lake_tables.append(settings, LOGS, [log(1, 0), log(1, 1)])
    lake_tables.append(settings, LOGS, [log(1, 1), log(700, 0)])
    assert list(reader.counts(LOGS, 0, 10**9)) == [(1, 3, 2), (700, 1, 1)]
    assert list(reader.counts(LOGS, 2, 600)) == []


def test_a_column_that_is_added_later_reads_as_missing(reader: LakeReader, settings: LakeSettings) -> None:
    older = pa.table(
        {
            "id": [first_id(1)],
            "created_at": pa.array([CREATED]).cast(pa.timestamp("us", "UTC")),
            "timestamp": pa.array([CREATED]).cast(pa.timestamp("us", "UTC")),
            "level": ["INFO"],
            "day": [datetime.date(2023, 11, 14)],
        }
    )
    write_deltalake(lake.table_uri(settings, LOGS.name), older, partition_by=["day"])
    lake_tables.append(settings, LOGS, [log(2)])
    assert sorted(reader.rows(LOGS, 0, 9)) == [
        (first_id(1), CREATED, CREATED, "INFO", "", "", "", "{}"),
        log(2),
    ]
    assert reader.answer(AggregateQuestion(LOGS, "service"), 9).rows == [("", 1), ("api", 1)]
    no_service = ListQuestion(LOGS, Filters((("service", ""),)))
    assert [row[0] for row in reader.answer(no_service, 9).rows] == [first_id(1)]


def test_a_table_made_anew_is_read_anew(reader: LakeReader, settings: LakeSettings) -> None:
    lake_tables.append(settings, LOGS, [log(1), log(2)], Position("t", {0: 9}, query="q", batch=0))
    assert reader.position(LOGS) == {0: 9}
    tables = Tables(settings, LOGS)
    tables.empty()
    assert reader.answer(StatsQuestion(LOGS), 9).rows == [(0,)]
    assert reader.position(LOGS) == {}
    assert tables.is_empty()


def test_a_server_that_is_away(unused_tcp_port: int) -> None:
    reader = LakeReader(LakeSettings(hdfs_url=f"hdfs://127.0.0.1:{unused_tcp_port}"))
    with pytest.raises(StoreDown, match="lake"):
        reader.answer(StatsQuestion(LOGS), 1)
    with pytest.raises(StoreDown, match="lake"):
        reader.position(LOGS)


def test_a_server_that_hangs(reader: LakeReader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lake, "_SECONDS", 0.05)
    monkeypatch.setattr(lake, "DeltaTable", lambda uri: Event().wait(1))
    with pytest.raises(StoreDown, match="no answer within"):
        reader.position(LOGS)


@given(st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"])))
def test_a_literal_is_the_text_again(text: str) -> None:
    answer = pa.RecordBatchReader.from_stream(QueryBuilder().execute(f"SELECT {literal(text)}")).read_all()
    assert answer.column(0).to_pylist() == [text]


@pytest.mark.parametrize(
    "text", ["'", "''", "\\'", "'; DROP TABLE t; --", "$1", "?", "E'\\n'", "\u2019", "\n", "/*", "--"]
)
def test_a_literal_cannot_be_left(text: str) -> None:
    answer = pa.RecordBatchReader.from_stream(QueryBuilder().execute(f"SELECT {literal(text)}, 1")).read_all()
    assert answer.to_pylist()[0] == dict(zip(answer.schema.names, (text, 1), strict=True))


def test_nul_is_refused() -> None:
    with pytest.raises(Invalid):
        literal("a\x00b")
