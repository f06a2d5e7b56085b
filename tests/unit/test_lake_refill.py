"""What a replay writes into the lake: each row once, beside a stream, whose position stays as it is."""

from pathlib import Path
from typing import Any

import pytest

from services.core.errors import NeedsOperator, RowRejected, StoreDown
from services.core.ports import Block
from services.datasets.logs import DATASET
from services.lake import refill
from services.lake.embedded import EmbeddedReader
from services.lake.refill import RefillWriter
from services.lake.table import LakePosition, Table, table_uri
from services.lake.writer import EmbeddedWriter, commit_rows
from services.runtime.settings import LakeSettings
from spark_jobs.tables import Tables
from tests import lake_tables
from tests.unit.test_lake_writer import CREATED, block, log, stored

TOPIC = "t"
BOUNDS = {0: (0, 100)}


@pytest.fixture
def settings(tmp_path: Path) -> LakeSettings:
    return LakeSettings(hdfs_url=tmp_path.as_uri())


@pytest.fixture
def reader(settings: LakeSettings) -> EmbeddedReader:
    return EmbeddedReader(settings)


@pytest.fixture
def writer(settings: LakeSettings) -> RefillWriter:
    made = RefillWriter(settings)
    made.prepare(DATASET)
    return made


def replayed(batch: int, rows: int = 1) -> Block:
    return block(batch, batch, batch, topic_id="replay:1", rows=rows)


def position(settings: LakeSettings) -> LakePosition | None:
    return Table(table_uri(settings, DATASET.name)).position()


def test_an_empty_table_is_filled_and_its_stream_begins_at_the_beginning(
    settings: LakeSettings, reader: EmbeddedReader, writer: RefillWriter
) -> None:
    begun = writer.begin(DATASET, TOPIC, BOUNDS)
    assert (begun.topic_id, begun.offsets) == (TOPIC, {})
    assert begun == reader.position(DATASET)
    writer.write([replayed(1, 3)])
    stream = EmbeddedWriter(settings)
    stream.prepare(DATASET)
    assert stream.positions(DATASET, TOPIC) == {}
    stream.write([block(9, 0, 4)])
    writer.write([replayed(2, 3)])
    assert stored(reader) == [(1, 3, 3), (2, 3, 3), (9, 1, 1)]
    assert reader.position(DATASET).offsets == {0: 5}
    stream.write([block(10, 5, 5)])
    assert stored(reader)[-1] == (10, 1, 1)


def test_rows_that_are_there_are_not_written_again(reader: EmbeddedReader, writer: RefillWriter) -> None:
    writer.begin(DATASET, TOPIC, BOUNDS)
    writer.write([replayed(1, 2)])
    assert writer.complete([replayed(1, 5)]) == []
    writer.write([replayed(1, 5)])
    assert stored(reader) == [(1, 5, 5)]
    writer.write([block(2, 2, 2, rows=0)])


def test_a_commit_of_the_stream_in_between_is_seen(
    settings: LakeSettings, reader: EmbeddedReader, writer: RefillWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer.begin(DATASET, TOPIC, BOUNDS)
    stream = EmbeddedWriter(settings)
    stream.prepare(DATASET)
    stream.positions(DATASET, TOPIC)
    offsets = iter(range(2))

    def interrupted(*arguments: Any) -> None:
        for offset in offsets:
            stream.write([block(5 + offset, offset, offset)])
            break
        commit_rows(*arguments)

    monkeypatch.setattr(refill, "commit_rows", interrupted)
    writer.write([replayed(1)])
    assert stored(reader) == [(1, 1, 1), (5, 1, 1), (6, 1, 1)]
    assert reader.position(DATASET).offsets == {0: 2}


def test_a_table_of_spark_is_filled_and_stays_its_own(
    settings: LakeSettings, reader: EmbeddedReader, writer: RefillWriter
) -> None:
    of_spark = LakePosition(TOPIC, {0: 7}, {0: 3}, "a-query", 4, generation="g")
    lake_tables.append(settings, DATASET, [log(3)], of_spark)
    writer.begin(DATASET, TOPIC, BOUNDS)
    writer.write([replayed(1)])
    assert position(settings) == of_spark
    assert stored(reader) == [(1, 1, 1), (3, 1, 1)]


def test_rows_that_are_not_sound_are_returned_and_the_others_stored(
    reader: EmbeddedReader, writer: RefillWriter
) -> None:
    writer.begin(DATASET, TOPIC, BOUNDS)
    good = replayed(1, 2)
    poison = Block(DATASET, "replay:1", 0, 1, 1, CREATED // lake_tables.DAY, 3, good.lines + b'{"id": "none"}\n')
    with pytest.raises(RowRejected):
        writer.write([poison])
    assert stored(reader) == []
    [rejected] = writer.complete([poison])
    assert rejected.row == 2
    assert stored(reader) == [(1, 2, 2)]


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (LakePosition("another", {0: 7}, generation="g"), "was deleted and created again since"),
        (LakePosition(TOPIC, {0: 107}, generation="g"), "stands at offset 107 of partition 0, which has only 5 to 100"),
        (LakePosition(TOPIC, {0: 4}, generation="g"), "stands at offset 4"),
    ],
)
def test_a_stream_that_cannot_go_on_is_resumed_first(
    settings: LakeSettings, writer: RefillWriter, found: LakePosition, message: str
) -> None:
    lake_tables.append(settings, DATASET, [log(3)], found)
    with pytest.raises(NeedsOperator, match=f"{message}.*logpipe stream-to-lake --resume logs"):
        writer.begin(DATASET, TOPIC, {0: (5, 100)})
    assert position(settings) == found


def test_a_table_without_a_position_is_refused(settings: LakeSettings, writer: RefillWriter) -> None:
    lake_tables.append(settings, DATASET, [log(3)])
    with pytest.raises(NeedsOperator, match="--rebuild logs"):
        writer.begin(DATASET, TOPIC, BOUNDS)


def test_a_table_that_was_emptied_meanwhile_gets_nothing(settings: LakeSettings, writer: RefillWriter) -> None:
    writer.begin(DATASET, TOPIC, BOUNDS)
    writer.write([replayed(1)])
    Tables(settings, DATASET).prepare()
    Tables(settings, DATASET).empty(LakePosition.first(TOPIC), ())
    with pytest.raises(NeedsOperator, match="was emptied"):
        writer.write([replayed(2)])
    assert stored(EmbeddedReader(settings)) == []


def test_an_unreachable_lake_is_down(
    settings: LakeSettings, writer: RefillWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer.begin(DATASET, TOPIC, BOUNDS)

    def fail(*arguments: Any) -> None:
        raise OSError("no route")

    monkeypatch.setattr(refill, "commit_rows", fail)
    with pytest.raises(StoreDown, match="no route"):
        writer.write([replayed(1)])
