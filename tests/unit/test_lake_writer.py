"""What the contract suite does not ask of the embedded writer: whose the table is, partitions, others' commits."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from deltalake import DeltaTable

from services.core.errors import Fenced, NeedsOperator, RowRejected, StoreDown
from services.core.ids import first_id
from services.core.ledger import StorePosition
from services.core.ports import Block
from services.core.rows import Row, RowCodec
from services.datasets.logs import DATASET
from services.lake.embedded import EmbeddedReader
from services.lake.table import EMBEDDED, LakePosition, Table, table_uri
from services.lake.writer import EmbeddedWriter
from services.runtime.settings import LakeSettings
from spark_jobs.tables import Tables
from tests import lake_tables

CREATED = 1_700_000_000_000_000


@pytest.fixture
def settings(tmp_path: Path) -> LakeSettings:
    return LakeSettings(hdfs_url=tmp_path.as_uri())


@pytest.fixture
def writer(settings: LakeSettings) -> EmbeddedWriter:
    made = EmbeddedWriter(settings)
    made.prepare(DATASET)
    return made


@pytest.fixture
def reader(settings: LakeSettings) -> EmbeddedReader:
    return EmbeddedReader(settings)


def log(batch: int, number: int = 0, **values: Any) -> Row:
    given = {"timestamp": CREATED, "level": "INFO", "service": "api", "host": "", "message": "", "metadata": "{}"}
    return (first_id(batch) + number, CREATED, *(given | values).values())


def block(batch: int, first: int, last: int, partition: int = 0, topic_id: str = "t", rows: int = 1) -> Block:
    lines = RowCodec(DATASET).encode(log(batch, number) for number in range(rows))
    joined = b"".join(line + b"\n" for line in lines)
    return Block(DATASET, topic_id, partition, first, last, CREATED // lake_tables.DAY, rows, joined)


def stored(reader: EmbeddedReader) -> list[tuple[int, int, int]]:
    return list(reader.counts(DATASET, 0, 10**9))


def test_blocks_of_several_partitions_are_one_commit(writer: EmbeddedWriter, reader: EmbeddedReader) -> None:
    writer.write([block(1, 0, 4, 0), block(2, 0, 9, 1), block(3, 0, 0, 5)])
    assert stored(reader) == [(1, 1, 1), (2, 1, 1), (3, 1, 1)]
    assert reader.position(DATASET).offsets == writer.positions(DATASET, "t") == {0: 5, 1: 10, 5: 1}
    writer.write([block(1, 0, 4, 0), block(4, 10, 12, 1)])  # the first again, after an answer that was lost
    assert stored(reader) == [(1, 1, 1), (2, 1, 1), (3, 1, 1), (4, 1, 1)]
    assert reader.position(DATASET).offsets == {0: 5, 1: 13, 5: 1}


def test_a_block_without_rows_moves_the_position(writer: EmbeddedWriter, reader: EmbeddedReader) -> None:
    writer.write([block(1, 0, 7, rows=0)])
    assert reader.position(DATASET).offsets == {0: 8}
    writer.write([block(2, 8, 8)])
    assert stored(reader) == [(2, 1, 1)]


@pytest.mark.parametrize(("first", "last"), [(6, 9), (3, 9), (0, 5)])
def test_a_gap_and_an_overlap_are_refused(
    writer: EmbeddedWriter, reader: EmbeddedReader, first: int, last: int
) -> None:
    writer.write([block(1, 0, 4)])
    with pytest.raises(Fenced, match="the position of the table, 5"):
        writer.write([block(2, first, last)])
    assert stored(reader) == [(1, 1, 1)]


def test_of_two_writers_at_one_partition_one_is_fenced(
    writer: EmbeddedWriter, reader: EmbeddedReader, settings: LakeSettings
) -> None:
    zombie = EmbeddedWriter(settings)
    zombie.prepare(DATASET)
    assert zombie.positions(DATASET, "t") == {}
    writer.write([block(1, 0, 4)])
    with pytest.raises(Fenced):
        zombie.write([block(2, 0, 9)])
    zombie.write([block(3, 0, 9, partition=1)])
    writer.write([block(4, 5, 6)])
    assert reader.position(DATASET).offsets == {0: 7, 1: 10}
    assert stored(reader) == [(1, 1, 1), (3, 1, 1), (4, 1, 1)]


def test_a_commit_that_comes_in_between_is_seen(
    writer: EmbeddedWriter, reader: EmbeddedReader, settings: LakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look at the position and the commit: maintenance, or another writer with the same block."""
    current_version, uri = Table.current_version, table_uri(settings, DATASET.name)
    other = EmbeddedWriter(settings)
    interruptions: list[Callable[[], Any]] = [
        lambda: other.write([block(1, 0, 4)]),
        lambda: DeltaTable(uri).optimize.compact(),
    ]
    other.prepare(DATASET)
    lake_tables.append(settings, DATASET, [log(8)], LakePosition("t", {1: 1}, query=EMBEDDED))
    lake_tables.append(settings, DATASET, [log(9)], LakePosition("t", {1: 2}, query=EMBEDDED))

    def interrupted(looked_at: Table) -> Any:
        found = current_version(looked_at)
        if interruptions:
            interruptions.pop()()
        return found

    monkeypatch.setattr(Table, "current_version", interrupted)
    writer.write([block(1, 0, 4)])
    assert not interruptions
    assert stored(reader) == [(1, 1, 1), (8, 1, 1), (9, 1, 1)]
    assert reader.position(DATASET).offsets == {0: 5, 1: 2}


def test_who_is_always_late_says_so(writer: EmbeddedWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    current_version = Table.current_version

    def stale(table: Table) -> Any:
        found = current_version(table)
        DeltaTable(table.uri).alter.set_table_properties({"delta.logRetentionDuration": "interval 30 days"})
        return found

    monkeypatch.setattr(Table, "current_version", stale)
    with pytest.raises(StoreDown, match="another process had committed"):
        writer.write([block(1, 0, 4)])


def test_the_refused_row_is_named_with_its_block(writer: EmbeddedWriter, reader: EmbeddedReader) -> None:
    good = RowCodec(DATASET).encode([log(2, number) for number in range(7)])
    lines = b"\n".join([*good[:5], b'{"id":5}', *good[5:]]) + b"\n"
    bad = Block(DATASET, "t", 1, 0, 9, CREATED // lake_tables.DAY, 8, lines)
    with pytest.raises(RowRejected, match="is missing"):
        writer.write([block(1, 0, 4), bad])
    assert stored(reader) == []
    (refused,) = writer.complete([block(1, 0, 4), bad])
    assert (refused.block, refused.row) == (1, 5)
    assert len(list(reader.rows(DATASET, 0, 9))) == 8


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"", "not one JSON object"),
        (b'{"id":1}{"id":2}', "not one JSON object"),
        (RowCodec(DATASET).encode([log(1)])[0].replace(b'"level":"INFO"', b'"lvl":"INFO"'), "level is missing"),
        (RowCodec(DATASET).encode([log(1)])[0].replace(b"INFO", b"\xff"), "invalid start byte"),
        (RowCodec(DATASET).encode([log(1, timestamp=-1)])[0], "timestamp is not between 1970 and 2100"),
    ],
)
def test_a_line_that_is_not_sound_is_refused_for_a_reason(writer: EmbeddedWriter, line: bytes, reason: str) -> None:
    with pytest.raises(RowRejected, match=reason):
        writer.write([Block(DATASET, "t", 0, 0, 9, CREATED // lake_tables.DAY, 1, line + b"\n")])


def test_a_column_of_a_newer_description_is_left_out(writer: EmbeddedWriter, reader: EmbeddedReader) -> None:
    line = RowCodec(DATASET).encode([log(1)])[0][:-1] + b',"region":"north"}\n'
    writer.write([Block(DATASET, "t", 0, 0, 9, CREATED // lake_tables.DAY, 1, line)])
    assert list(reader.rows(DATASET, 0, 9)) == [log(1)]


def test_a_table_filled_by_spark_is_refused_until_it_is_released(
    writer: EmbeddedWriter, reader: EmbeddedReader, settings: LakeSettings
) -> None:
    unfinished = LakePosition("t", {0: 5}, {0: 0}, "11-22", 7)
    lake_tables.append(settings, DATASET, [log(1)], unfinished)
    for attempt in (lambda: writer.positions(DATASET, "t"), lambda: writer.write([block(2, 5, 9)])):
        with pytest.raises(NeedsOperator, match="logpipe stream-to-lake --resume logs"):
            attempt()
    tables = Tables(settings, DATASET)
    handle, _ = tables.rows.current_version()
    lake_tables.append(settings, DATASET, [log(1)], unfinished)
    with pytest.raises(NeedsOperator, match="is being written: stop its writer"):
        tables.release(handle, LakePosition("t", {0: 5}), ())
    tables.rows.current_version()[0].delete("id >= 0")
    lake_tables.append(settings, DATASET, [log(1)], unfinished)
    tables.release(tables.rows.current_version()[0], LakePosition("t", {0: 5}, unfinished=unfinished), ())
    assert writer.positions(DATASET, "t") == {0: 5}
    writer.write([block(2, 5, 9)])
    assert stored(reader) == [(1, 1, 1), (2, 1, 1)]
    assert Table(table_uri(settings, DATASET.name)).position() == LakePosition(
        "t", {0: 10}, query=EMBEDDED, unfinished=unfinished
    )


def test_a_table_that_was_emptied_is_filled_again(
    writer: EmbeddedWriter, reader: EmbeddedReader, settings: LakeSettings
) -> None:
    writer.write([block(1, 0, 4)])
    tables = Tables(settings, DATASET)
    tables.prepare()
    tables.empty(LakePosition.first(), ())
    assert writer.positions(DATASET, "t") == {}
    with pytest.raises(Fenced):
        writer.write([block(2, 5, 9)])
    emptied = reader.position(DATASET)
    writer.write([block(1, 0, 4)])
    assert stored(reader) == [(1, 1, 1)]
    assert reader.position(DATASET) == StorePosition(emptied.table_id, "t", {0: 5})


def test_a_table_of_the_last_release_keeps_its_identity(
    writer: EmbeddedWriter, reader: EmbeddedReader, settings: LakeSettings
) -> None:
    lake_tables.append(settings, DATASET, [log(1)], LakePosition("t", {0: 5}, query=EMBEDDED))
    before = reader.position(DATASET)
    writer.write([block(2, 5, 9)])
    assert reader.position(DATASET) == StorePosition(before.table_id, "t", {0: 10})


def test_rows_that_no_commit_explains_need_an_operator(writer: EmbeddedWriter, settings: LakeSettings) -> None:
    lake_tables.append(settings, DATASET, [log(1)])
    with pytest.raises(NeedsOperator, match="--rebuild logs"):
        writer.positions(DATASET, "t")


def test_a_topic_created_again_needs_an_operator(writer: EmbeddedWriter) -> None:
    writer.write([block(1, 0, 4)])
    with pytest.raises(NeedsOperator, match="created again"):
        writer.positions(DATASET, "u")
    with pytest.raises(NeedsOperator, match="created again"):
        writer.write([block(2, 5, 9, topic_id="u")])


def test_of_two_writers_that_find_the_table_free_one_begins(settings: LakeSettings) -> None:
    """Spark appends whatever the table holds, so Spark claims the table before it reads a message."""
    embedded, tables = EmbeddedWriter(settings), Tables(settings, DATASET)
    embedded.prepare(DATASET)
    tables.prepare()
    free, _ = tables.rows.current_version()
    assert embedded.positions(DATASET, "t") == {}
    tables.claim(free, LakePosition.first())
    with pytest.raises(NeedsOperator, match="is filled by Spark"):
        embedded.write([block(1, 0, 4)])
    with pytest.raises(StoreDown):
        tables.claim(free, LakePosition.first())
    tables.release(tables.rows.current_version()[0], LakePosition.first("t"), ())
    free, _ = tables.rows.current_version()
    embedded.write([block(1, 0, 4)])
    with pytest.raises(StoreDown):
        tables.claim(free, LakePosition.first())


def test_a_writer_that_was_suspended_over_the_end_of_writes_is_fenced(
    writer: EmbeddedWriter, reader: EmbeddedReader, settings: LakeSettings
) -> None:
    writer.positions(DATASET, "t")
    writer.write([block(1, 0, 4)])
    EmbeddedWriter(settings).end_writes(DATASET)
    with pytest.raises(Fenced):
        writer.write([block(2, 5, 9)])
    assert stored(reader) == [(1, 1, 1)]
    assert writer.positions(DATASET, "t") == {0: 5}
    writer.write([block(2, 5, 9)])
    assert stored(reader) == [(1, 1, 1), (2, 1, 1)]


def test_nobody_can_tell_whether_a_batch_of_spark_is_under_way(writer: EmbeddedWriter, settings: LakeSettings) -> None:
    writer.end_writes(DATASET)  # of a table without a position
    writer.write([block(1, 0, 4)])
    writer.end_writes(DATASET)
    lake_tables.append(settings, DATASET, [log(2)], LakePosition("t", {0: 9}, query="some-query", owner_number=0))
    with pytest.raises(NeedsOperator, match="stop stream-to-lake, run `logpipe stream-to-lake --resume logs`"):
        writer.end_writes(DATASET)
    EmbeddedWriter(LakeSettings(hdfs_url=settings.hdfs_url, lake_path="/none")).end_writes(DATASET)  # without a table
