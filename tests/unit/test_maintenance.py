"""A table of the lake kept fit: files merged, days dropped, old files deleted, and the position always to be found."""

import os
import time
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path
from threading import Event, Thread

import pytest
from deltalake import DeltaTable

from services.core.ids import first_id
from services.core.queries import Filters, ListQuery
from services.core.rows import Row, RowCodec, checksum
from services.datasets.logs import DATASET
from services.lake import maintenance
from services.lake.embedded import EmbeddedReader
from services.lake.maintenance import TableMaintenance
from services.lake.table import LakePosition, table_uri
from services.lake.writer import EmbeddedWriter
from services.runtime.settings import LakeSettings
from tests import lake_tables

DAY = 86_400_000_000
NOON = 20_000 * DAY + DAY // 2
FIRST = date(1970, 1, 1) + timedelta(days=20_000)


@pytest.fixture
def settings(tmp_path: Path) -> LakeSettings:
    return LakeSettings(hdfs_url=tmp_path.as_uri())


@pytest.fixture
def reader(settings: LakeSettings) -> EmbeddedReader:
    return EmbeddedReader(settings)


@pytest.fixture
def table(settings: LakeSettings) -> TableMaintenance:
    return TableMaintenance(settings, DATASET)


def rows(batch: int, day: int = 0, count: int = 3) -> list[Row]:
    accepted = NOON + day * DAY
    first = first_id(batch)
    return [
        (first + n, accepted, accepted + batch * 1000 + n, "INFO", f"s{n}", "", f"é {n}", '{"a": 1.0}')
        for n in range(count)
    ]


def fill(settings: LakeSettings, batches: int, days: int = 1) -> None:
    for batch in range(1, batches + 1):
        lake_tables.append(settings, DATASET, rows(batch, batch % days), LakePosition("t", {0: batch}, {}, "q", batch))


def content(reader: EmbeddedReader) -> tuple[list[tuple[int, int, int]], int]:
    counted = list(reader.counts(DATASET, 0, 10**9))
    return counted, checksum(RowCodec(DATASET).encode(reader.rows(DATASET, 0, 10**9)))


def test_a_table_that_is_not_there_needs_nothing(table: TableMaintenance) -> None:
    assert table.small_files() == {}
    assert table.size() == (0, 0)
    assert table.compact(FIRST) == table.drop_days(FIRST) == table.vacuum(timedelta(hours=1)) == 0


def test_small_files_of_a_day_become_one_and_nothing_else_changes(
    table: TableMaintenance, reader: EmbeddedReader, settings: LakeSettings
) -> None:
    fill(settings, 12, days=2)
    before = content(reader)
    newest = ListQuery(DATASET, Filters((("service", "s1"),)), limit=5)
    page = reader.execute(newest, 99).rows
    assert table.small_files() == {FIRST: 6, FIRST + timedelta(days=1): 6}
    assert table.compact(FIRST) == 6
    assert table.small_files() == {FIRST: 1, FIRST + timedelta(days=1): 6}
    files = [Path(file) for file in DeltaTable(table_uri(settings, DATASET.name)).file_uris()]
    assert table.size() == (7, sum(file.stat().st_size for file in files))
    assert content(reader) == before
    assert reader.execute(newest, 99).rows == page
    assert reader.position(DATASET).offsets == {0: 12}


def test_files_that_are_large_already_are_left_alone(
    table: TableMaintenance, settings: LakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(settings, 3)
    monkeypatch.setattr(maintenance, "_SMALL_BYTES", 100)
    assert table.small_files() == {}


def test_the_position_is_repeated_and_outlives_the_commits_before(
    table: TableMaintenance, reader: EmbeddedReader, settings: LakeSettings
) -> None:
    fill(settings, 3)
    table.compact(FIRST)
    table.repeat_position()
    uri = table_uri(settings, DATASET.name)
    handle = DeltaTable(uri)
    handle.create_checkpoint()
    for version in range(handle.version()):  # as the clean-up of the log would
        (Path(uri.removeprefix("file://")) / "_delta_log" / f"{version:020d}.json").unlink()
    assert EmbeddedReader(settings).position(DATASET).offsets == {0: 3}
    assert content(reader)[0] == [(1, 3, 3), (2, 3, 3), (3, 3, 3)]


def test_a_position_is_not_repeated_over_a_newer_one(
    table: TableMaintenance, reader: EmbeddedReader, settings: LakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(settings, 3)
    current_version = table._table.current_version

    def overtaken() -> object:
        found = current_version()
        lake_tables.append(settings, DATASET, rows(4), LakePosition("t", {0: 4}, {}, "q", 4))
        return found

    monkeypatch.setattr(table._table, "current_version", overtaken)
    table.repeat_position()
    assert reader.position(DATASET).offsets == {0: 4}


def test_days_before_a_day_are_dropped(table: TableMaintenance, reader: EmbeddedReader, settings: LakeSettings) -> None:
    fill(settings, 9, days=3)
    assert table.drop_days(FIRST + timedelta(days=2)) == 2
    assert table.drop_days(FIRST + timedelta(days=2)) == 0
    assert [batch for batch, *_ in content(reader)[0]] == [2, 5, 8]
    assert reader.position(DATASET).offsets == {0: 9}


def test_only_files_that_nobody_needs_are_deleted(
    table: TableMaintenance, reader: EmbeddedReader, settings: LakeSettings
) -> None:
    fill(settings, 4)
    folder = Path(table_uri(settings, DATASET.name).removeprefix("file://")) / f"day={FIRST}"
    young, old = folder / "part-young.parquet", folder / "part-old.parquet"
    for file in (young, old):
        file.write_bytes(b"of a commit that is under way, or was killed")
    two_hours_ago = time.time() - 7200
    os.utime(old, (two_hours_ago, two_hours_ago))
    table.compact(FIRST)
    before = content(reader)
    assert table.vacuum(timedelta(hours=1)) == 1
    assert young.exists()
    assert not old.exists()
    assert len(list(folder.iterdir())) == 4 + 1 + 1
    assert table.vacuum(timedelta(0)) == 4 + 1
    assert content(reader) == before


def test_compaction_while_rows_are_written_and_read(
    table: TableMaintenance, reader: EmbeddedReader, settings: LakeSettings
) -> None:
    """The embedded writer's commits fail when another comes first, and are made again: no row is lost or doubled."""
    writer = EmbeddedWriter(settings)
    writer.prepare(DATASET)
    stop = Event()
    problems: list[BaseException] = []

    def work(rounds: Iterator[None]) -> None:
        try:
            for _ in rounds:
                if stop.is_set():
                    return
        except BaseException as error:  # noqa: BLE001 - judged at the end
            problems.append(error)

    threads = [Thread(target=work, args=(rounds,)) for rounds in (compacting(table), reading(reader))]
    for thread in threads:
        thread.start()
    try:
        for batch in range(1, 31):
            lines = b"".join(line + b"\n" for line in RowCodec(DATASET).encode(rows(batch)))
            writer.write([lake_tables.block(DATASET, lines, batch - 1, NOON // DAY)])
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert problems == []
    assert content(reader)[0] == [(batch, 3, 3) for batch in range(1, 31)]
    assert reader.position(DATASET).offsets == {0: 30}
    assert table.small_files()[FIRST] < 30


def compacting(table: TableMaintenance) -> Iterator[None]:
    while True:
        if table.compact(FIRST):
            table.repeat_position()
        yield


def reading(reader: EmbeddedReader) -> Iterator[None]:
    seen = 0
    while True:
        found = [batch for batch, count, distinct in reader.counts(DATASET, 0, 99) if count == distinct == 3]
        assert found == list(range(1, len(found) + 1))
        assert len(found) >= seen
        seen = len(found)
        yield
