"""What the contract suite does not ask of the lake's reader: its position, rejects, absence, and literals."""

import datetime
import re
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable, QueryBuilder, write_deltalake
from hypothesis import given
from hypothesis import strategies as st

from services.core.dataset import Column
from services.core.errors import Invalid, StoreDown
from services.core.ids import first_id
from services.core.ledger import StorePosition
from services.core.ports import Block
from services.core.queries import BUCKETS, AggregateQuery, Filters, ListQuery, Query, StatsQuery
from services.core.rows import Row, RowCodec
from services.datasets.events import DATASET as EVENTS
from services.datasets.logs import DATASET as LOGS
from services.lake import reader as lake_reader
from services.lake import table as lake
from services.lake.embedded import DataFusion, EmbeddedReader, OutOfMemory
from services.lake.table import LakePosition, Table, table_uri
from services.lake.writer import EmbeddedWriter
from services.runtime.settings import LakeSettings
from spark_jobs.tables import Tables
from tests import lake_tables

CREATED = 1_700_000_000_000_000
HOUR = 3_600_000_000


def log(batch_id: int, number: int = 0) -> Row:
    return (first_id(batch_id) + number, CREATED + batch_id, CREATED, "INFO", "api", "", "hello", "{}")


@pytest.fixture
def settings(tmp_path: Path) -> LakeSettings:
    return LakeSettings(hdfs_url=tmp_path.as_uri())


@pytest.fixture
def reader(settings: LakeSettings) -> EmbeddedReader:
    return EmbeddedReader(settings)


def test_a_table_that_is_absent_has_no_rows(reader: EmbeddedReader) -> None:
    assert reader.execute(StatsQuery(LOGS), 9).rows == [(0,)]
    found = reader.execute(ListQuery(LOGS), 9)
    assert (found.rows, found.total) == ([], 0)
    assert reader.execute(AggregateQuery(LOGS, "level"), 9).rows == []
    assert reader.position(LOGS).offsets == {}
    assert list(reader.counts(LOGS, 0, 9)) == list(reader.rows(LOGS, 0, 9)) == []
    assert list(reader.rejected(LOGS, 0, 9)) == []


def test_a_table_that_is_empty_has_no_rows(reader: EmbeddedReader, settings: LakeSettings) -> None:
    Tables(settings, LOGS).prepare()
    assert reader.execute(StatsQuery(LOGS), 9).rows == [(0,)]
    assert list(reader.counts(LOGS, 0, 9)) == []
    assert list(reader.rejected(LOGS, 0, 9)) == []


def test_a_reader_sees_each_commit_at_once(reader: EmbeddedReader, settings: LakeSettings) -> None:
    for batch_id in (1, 2, 3):
        lake_tables.append(settings, LOGS, [log(batch_id)])
        assert reader.execute(StatsQuery(LOGS), 9).rows == [(batch_id,)]


def test_the_position_is_that_of_the_last_batch_behind_any_maintenance(
    reader: EmbeddedReader, settings: LakeSettings
) -> None:
    for batch_id in range(3):
        position = LakePosition("t", {0: 10 * batch_id, 1: 5}, {0: 0}, "q", batch_id)
        lake_tables.append(settings, LOGS, [log(batch_id)], position)
        assert reader.position(LOGS).offsets == {0: 10 * batch_id, 1: 5}
    table = DeltaTable(table_uri(settings, LOGS.name))
    table.optimize.compact()
    for _ in range(20):
        table.alter.set_table_properties({"delta.logRetentionDuration": "interval 30 days"})
    assert reader.position(LOGS).offsets == {0: 20, 1: 5}
    assert EmbeddedReader(settings).position(LOGS).offsets == {0: 20, 1: 5}
    assert reader.position(EVENTS).offsets == {}


def test_a_batch_stored_twice_is_counted_twice(reader: EmbeddedReader, settings: LakeSettings) -> None:
    lake_tables.append(settings, LOGS, [log(1, 0), log(1, 1)])
    lake_tables.append(settings, LOGS, [log(1, 1), log(700, 0)])
    assert list(reader.counts(LOGS, 0, 10**9)) == [(1, 3, 2), (700, 1, 1)]
    assert list(reader.counts(LOGS, 2, 600)) == []


def test_a_column_that_is_added_later_reads_as_missing(reader: EmbeddedReader, settings: LakeSettings) -> None:
    older = pa.table(
        {
            "id": [first_id(1)],
            "created_at": pa.array([CREATED]).cast(pa.timestamp("us", "UTC")),
            "timestamp": pa.array([CREATED]).cast(pa.timestamp("us", "UTC")),
            "level": ["INFO"],
            "day": [datetime.date(2023, 11, 14)],
        }
    )
    write_deltalake(table_uri(settings, LOGS.name), older, partition_by=["day"])
    lake_tables.append(settings, LOGS, [log(2)])
    assert sorted(reader.rows(LOGS, 0, 9)) == [
        (first_id(1), CREATED, CREATED, "INFO", "", "", "", "{}"),
        log(2),
    ]
    assert reader.execute(AggregateQuery(LOGS, "service"), 9).rows == [("", 1), ("api", 1)]
    no_service = ListQuery(LOGS, Filters((("service", ""),)))
    assert [row[0] for row in reader.execute(no_service, 9).rows] == [first_id(1)]


def test_a_column_that_no_file_and_no_schema_has_yet_reads_as_missing(
    reader: EmbeddedReader, settings: LakeSettings
) -> None:
    lake_tables.append(settings, LOGS, [log(1)])
    newer = replace(LOGS, columns=(*LOGS.columns, Column("zone", "text"), Column("size", "number")), search="zone")
    assert list(reader.rows(newer, 0, 9)) == [(*log(1), "", None)]
    assert reader.execute(ListQuery(newer, Filters((("zone", ""),))), 9).total == 1
    assert reader.execute(ListQuery(newer, Filters((("zone", "a"),))), 9).total == 0
    assert reader.execute(ListQuery(newer, Filters(text="a"), order_by="zone"), 9).total == 0
    assert reader.execute(AggregateQuery(newer, "zone"), 9).rows == [("", 1)]


@pytest.fixture
def ten_files(settings: LakeSettings) -> LakeSettings:
    """In each two batches of an hour, their times not whole milliseconds, which is all that the table's log keeps."""
    for number in range(10):
        rows = [(first_id(2 * number + n), CREATED, number * HOUR + 100 + n, *log(1)[3:]) for n in (0, 1)]
        lake_tables.append(settings, LOGS, rows)
    return settings


QUERIES: list[tuple[Query, int, int]] = [
    (ListQuery(LOGS, Filters(start=5 * HOUR, end=6 * HOUR)), 99, 1),
    (AggregateQuery(LOGS, "level", Filters(start=5 * HOUR, end=6 * HOUR)), 99, 1),
    (ListQuery(LOGS, Filters(start=5 * HOUR + 101, end=6 * HOUR)), 99, 1),
    (ListQuery(LOGS, Filters(start=5 * HOUR + 2000, end=6 * HOUR)), 99, 0),
    (ListQuery(LOGS, Filters(start=0, end=3 * HOUR)), 3, 2),
    (ListQuery(LOGS, Filters(text="hell"), descending=False, count=False), 99, 10),
    (ListQuery(LOGS, count=False, after=(3 * HOUR, first_id(99))), 99, 4),  # one by its rounded time alone
    (ListQuery(LOGS, count=False, descending=False, after=(7 * HOUR, 0)), 99, 3),
    (ListQuery(LOGS, count=False, order_by="id", after=(first_id(4), first_id(4))), 99, 2),
    (AggregateQuery(LOGS, None, bucket=BUCKETS["1h"]), 5, 3),
    (StatsQuery(LOGS, scan=True), 99, 10),
]


@pytest.mark.parametrize(("query", "as_of", "files"), QUERIES)
def test_files_are_left_out_by_their_statistics_and_counted_as_opened(
    ten_files: LakeSettings, monkeypatch: pytest.MonkeyPatch, query: Query, as_of: int, files: int
) -> None:
    executed: list[str] = []
    execute = QueryBuilder.execute

    def noted(engine: QueryBuilder, query: str) -> Any:
        executed.append(query)
        return execute(engine, query)

    monkeypatch.setattr(QueryBuilder, "execute", noted)
    result = EmbeddedReader(ten_files).execute(query, as_of)
    assert result.scanned == {"files": files, "files_total": 10}
    assert result.method == "scan"
    engine = Table(table_uri(ten_files, LOGS.name)).engine()
    assert engine is not None
    (plan,) = pa.table(execute(engine, f"EXPLAIN ANALYZE {executed[0]}").read_all())["plan"].to_pylist()
    considered = sum(map(int, re.findall(r"files_ranges_pruned_statistics=(\d+) total", plan)))
    assert considered == files  # by DataFusion


def test_the_newest_rows_are_looked_for_in_the_newest_files_first(
    ten_files: LakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lake_reader, "_FEWEST", 2)
    monkeypatch.setattr(lake_reader, "_ROWS_FOR_ONE", 1)
    reader = EmbeddedReader(ten_files)

    def page(**of_page: Any) -> tuple[list[int], int]:
        result = reader.execute(ListQuery(LOGS, count=False, **of_page), 99)
        return [row[2] // HOUR for row in result.rows], result.scanned["files"]

    assert page(limit=2) == ([9, 9], 1)
    assert page(limit=4, offset=4) == ([7, 7, 6, 6], 4)
    assert page(limit=2, filters=Filters(end=4 * HOUR)) == ([3, 3], 1)
    assert page(limit=2, after=(4 * HOUR - 1, 0)) == ([3, 3], 1)
    assert page(limit=2, filters=Filters((("service", "none"),))) == ([], 10)
    assert page(limit=2, descending=False) == ([0, 0], 10)
    assert page(limit=30) == ([hour for hour in range(9, -1, -1) for _ in (0, 1)], 10)


@given(st.data())
def test_a_page_is_the_same_wherever_its_rows_are_looked_for_first(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Files whose times overlap, lie far apart, or are all the same."""
    settings = LakeSettings(hdfs_url=tmp_path_factory.mktemp("lake").as_uri())
    times = st.integers(0, 50) | st.integers(0, 5_000) | st.integers(0, 2 * HOUR)
    files = data.draw(st.lists(st.lists(times, min_size=1, max_size=6), min_size=1, max_size=4))
    rows = [
        [(first_id(number) + n, CREATED, time, "INFO", "ab"[time % 2], "", "", "{}") for n, time in enumerate(file)]
        for number, file in enumerate(files)
    ]
    for file in rows:
        lake_tables.append(settings, LOGS, file)
    query = ListQuery(
        LOGS,
        Filters(
            equals=data.draw(st.sampled_from([(), (("service", "a"),)])),
            start=data.draw(st.none() | times),
            end=data.draw(st.none() | times),
        ),
        limit=data.draw(st.integers(1, 8)),
        offset=data.draw(st.integers(0, 3)),
        after=data.draw(st.none() | st.tuples(times, st.integers(0, first_id(4)))),
        count=False,
    )
    reader = EmbeddedReader(settings)
    whole = reader.execute(query, 3).rows
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lake_reader, "_FEWEST", 1)
        patch.setattr(lake_reader, "_ROWS_FOR_ONE", 1)
        assert reader.execute(query, 3).rows == whole


def test_a_count_of_all_is_answered_by_the_log_but_for_what_came_later(ten_files: LakeSettings) -> None:
    reader = EmbeddedReader(ten_files)
    for as_of, count, files in [(99, 20, 0), (19, 20, 0), (18, 19, 1), (4, 5, 8), (0, 1, 10)]:
        result = reader.execute(StatsQuery(LOGS), as_of)
        assert (result.rows, result.method, result.scanned["files"]) == ([(count,)], "metadata", files)
        scanned = reader.execute(StatsQuery(LOGS, scan=True), as_of)
        assert (scanned.rows, scanned.method) == ([(count,)], "scan")
        page = reader.execute(ListQuery(LOGS), as_of)
        assert (page.total, len(page.rows), page.method) == (count, count, "metadata")
        assert reader.execute(ListQuery(LOGS, scan=True), as_of).method == "scan"


def test_a_query_that_needs_more_memory_than_it_may_use_is_refused(ten_files: LakeSettings) -> None:
    reader = EmbeddedReader(ten_files, memory=1 << 10)
    with pytest.raises(OutOfMemory, match="more memory than it may use"):
        reader.execute(ListQuery(LOGS, count=False), 99)
    assert reader.execute(StatsQuery(LOGS), 99).rows == [(20,)]


def test_a_table_created_again_is_read_again(reader: EmbeddedReader, settings: LakeSettings) -> None:
    lake_tables.append(settings, LOGS, [log(1), log(2)], LakePosition("t", {0: 9}, query="q", owner_number=0))
    assert reader.position(LOGS).offsets == {0: 9}
    tables = Tables(settings, LOGS)
    tables.empty(LakePosition.first(), ())
    assert reader.execute(StatsQuery(LOGS), 9).rows == [(0,)]
    assert reader.position(LOGS).offsets == {}
    assert tables.is_empty()


def test_a_position_names_the_table_its_generation_and_the_topic(
    reader: EmbeddedReader, settings: LakeSettings
) -> None:
    assert reader.position(LOGS) == StorePosition("", "", {})
    tables = Tables(settings, LOGS)
    tables.prepare()
    assert reader.position(LOGS) == StorePosition("", "", {})
    lake_tables.append(settings, LOGS, [log(1)], LakePosition("t", {0: 9}))
    metadata_id = str(DeltaTable(table_uri(settings, LOGS.name)).metadata().id)
    assert reader.position(LOGS) == StorePosition(metadata_id, "t", {0: 9})
    tables.empty(LakePosition.first(), ())
    emptied = reader.position(LOGS)
    assert emptied.table_id.startswith(f"{metadata_id}/")
    assert (emptied.topic_id, emptied.offsets) == ("", {})
    tables.empty(LakePosition.first(), ())
    assert reader.position(LOGS).table_id not in (metadata_id, emptied.table_id)


@pytest.mark.parametrize("batches", [1, 9], ids=["shorter log", "longer log"])
def test_a_table_that_was_deleted_and_created_again_under_a_reader_has_another_identity(
    reader: EmbeddedReader, settings: LakeSettings, batches: int
) -> None:
    def fill(topic_id: str, count: int) -> None:
        writer = EmbeddedWriter(settings)
        writer.prepare(LOGS)
        for offset in range(count):
            line = RowCodec(LOGS).encode([log(offset + 1)])[0]
            writer.write([Block(LOGS, topic_id, 0, offset, offset, CREATED // lake_tables.DAY, 1, line)])

    fill("t", 4)
    before = reader.position(LOGS)
    assert reader.execute(StatsQuery(LOGS), 99).rows == [(4,)]
    shutil.rmtree(settings.hdfs_url.removeprefix("file://") + settings.lake_path)
    fill("u", batches)
    with suppress(StoreDown):  # once, when the log has become shorter
        reader.position(LOGS)
    after = reader.position(LOGS)
    assert after.table_id != before.table_id
    assert (after.topic_id, after.offsets) == ("u", {0: batches})
    assert reader.execute(StatsQuery(LOGS), 99).rows == [(batches,)]


def test_an_unreachable_server(unused_tcp_port: int) -> None:
    reader = EmbeddedReader(LakeSettings(hdfs_url=f"hdfs://127.0.0.1:{unused_tcp_port}"))
    with pytest.raises(StoreDown, match="lake"):
        reader.execute(StatsQuery(LOGS), 1)
    with pytest.raises(StoreDown, match="lake"):
        reader.position(LOGS)


def test_a_server_that_hangs(reader: EmbeddedReader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lake, "_SECONDS", 0.05)
    monkeypatch.setattr(lake, "DeltaTable", lambda uri: Event().wait(1))
    with pytest.raises(StoreDown, match="no reply within"):
        reader.position(LOGS)


@given(st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"])))
def test_a_literal_is_the_text_again(text: str) -> None:
    result = pa.RecordBatchReader.from_stream(QueryBuilder().execute(f"SELECT {DataFusion().text(text)}")).read_all()
    assert result.column(0).to_pylist() == [text]


@pytest.mark.parametrize(
    "text", ["'", "''", "\\'", "'; DROP TABLE t; --", "$1", "?", "E'\\n'", "\u2019", "\n", "/*", "--"]
)
def test_a_literal_cannot_be_left(text: str) -> None:
    result = pa.RecordBatchReader.from_stream(QueryBuilder().execute(f"SELECT {DataFusion().text(text)}, 1")).read_all()
    assert result.to_pylist()[0] == dict(zip(result.schema.names, (text, 1), strict=True))


def test_nul_is_refused() -> None:
    with pytest.raises(Invalid):
        DataFusion().text("a\x00b")
